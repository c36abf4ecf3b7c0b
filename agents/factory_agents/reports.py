"""Validation reports as the ledger keeps them, window by window, and as pages and text for people."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any

from factory_agents.contracts import judge, parse_condition
from factory_agents.errors import ConfigurationError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.ledger import Ledger, LedgerView
from factory_agents.kafka.records import VerdictRecord
from factory_agents.kafka.topics import Cluster
from factory_agents.runtime.history import merged_reports
from factory_agents.text import printable

__all__ = ["WindowReport", "chosen", "html_page", "markdown", "quality_facets", "read_reports", "reports_of"]

_LEDGER_SECONDS = 120.0
_TREND = 48
"""Most windows in a trend: two days of hours."""


@dataclass(frozen=True)
class WindowReport:
    """The report of one stage over one window, its shards merged; ``report`` is as ``WindowStatistics.report`` gives it.

    Its checks are those of the contract, and those of tasks by conditions of their own. ``scope`` tells the mapped tasks of a stage apart.
    ``tolerated``: a task's verdict was ``fail``, and it went on.
    """

    pipeline: str
    stage: str
    window: str
    updated_at: int
    report: Mapping[str, Any]
    scope: str = ""
    tolerated: bool = False

    @property
    def outcome(self) -> str:
        """``pass``, ``warn`` or ``fail``."""
        return judge(self.report).outcome

    @property
    def verdict(self) -> str:
        """The outcome for a person."""
        return f"{self.outcome.upper()}{', and its task went on' if self.tolerated else ''}"

    @property
    def when(self) -> str:
        """The window's interval for a person, in UTC, or its name."""
        start, _, end = self.window.partition("/")
        try:
            return f"{datetime.fromisoformat(start):%F %H:%M} → {datetime.fromisoformat(end):%F %H:%M}"
        except ValueError:
            return self.window


def read_reports(config: KafkaConfig, pipeline: str, *, stage: str = "", prefix: str = "factory") -> list[WindowReport]:
    """Every complete validation report of a pipeline (of one of its stages), the newest window last.

    Raises UnavailableError without a broker.
    """
    with Cluster(config) as cluster:
        ledger = Ledger(config, cluster, prefix=prefix, pipeline=pipeline)
        if cluster.find(ledger.topic) is None:
            return []
        return reports_of(ledger.read(deadline=time.monotonic() + _LEDGER_SECONDS), stage)


def reports_of(view: LedgerView, stage: str = "") -> list[WindowReport]:
    """See ``read_reports``: from what was read of the ledger. A stage some of whose shards have no report yet has none."""
    verdicts: dict[tuple[object, ...], list[VerdictRecord]] = {}
    for v in view.of(VerdictRecord):
        verdicts.setdefault((v.pipeline, v.judged, v.window, v.scope, v.generation), []).append(v)
    found = []
    for r, at, report in merged_reports(view, stage):
        own = verdicts.get((r.pipeline, r.stage, r.window, r.scope, r.generation), ())
        judged = {**report, "checks": [*report["checks"], *(check for v in own for check in v.checks)]}
        found.append(WindowReport(r.pipeline, r.stage, r.window, at, judged, r.scope, any(v.tolerated for v in own)))
    return sorted(found, key=lambda r: (r.window, r.stage, r.scope))


def chosen(reports: Sequence[WindowReport], pipeline: str, window: str = "") -> WindowReport:
    """The newest, or that of a window, named as ``factory windows`` names it or by the start of its name.

    Raises ConfigurationError where there is none, or the name fits several.
    """
    if not reports:
        raise ConfigurationError(f"pipeline {pipeline!r}: the ledger holds no validation report; has its validate stage run?")
    if not window:
        return reports[-1]
    found = [r for r in reports if window in (r.window, r.when, f"{r.window} {r.scope}")] or [
        r for r in reports if r.window.startswith(window.replace(" ", "T"))
    ]
    if len(found) != 1:
        names = ", ".join(repr(f"{r.window} {r.scope}".rstrip()) for r in (found or reports)[-3:])
        what = f"{len(found)} reports fit" if found else "there is no report of"
        raise ConfigurationError(f"pipeline {pipeline!r}: {what} window {window!r}; expected one of {names}")
    return found[0]


def markdown(shown: WindowReport, *, most: int = sys.maxsize) -> str:
    """The report as Markdown; of each table and list at most so many rows, and then how many more there are."""
    report = shown.report
    worst = sorted(report["checks"], key=lambda c: ("fail", "warn", "pass").index(c["outcome"])) if most < sys.maxsize else report["checks"]
    conditions = [f"| {c['level']}s if {_cell(c['rule'])} | {c['outcome']} | {_cell(_observed(c))} |" for c in worst]
    parts = [
        [f"# {_title(shown)}", "", f"**{shown.verdict}** · {_contract(report)}"],
        _rows("| figure | value |\n|---|---|", [f"| {_cell(name)} | {_cell(value)} |" for name, value in _figures(report)], most),
        _rows("| condition | outcome | observed |\n|---|---|---|", conditions, most),
        _rows(
            "| rule | events | share |\n|---|---|---|",
            [f"| {_cell(rule)} | {n:,} | {share} |" for rule, n, share in _broken(report)],
            most,
        ),
        _rows("", [f"- `{place}` {_cell(reason)}" for place, reason in _samples(report)], most),
        _rows("", [f"- {_cell(text)}" for text in report.get("not_run", ())], most),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def _rows(head: str, rows: Sequence[str], most: int) -> list[str]:
    """Lines of a table or a list; none for no rows."""
    more = [f"{'| ' if head else '- '}… and {len(rows) - most:,} more{' |' if head else ''}"] if len(rows) > most else []
    return [*([head] if head else []), *rows[:most], *more] if rows else []


def html_page(shown: WindowReport, earlier: Iterable[WindowReport] = ()) -> str:
    """The report as a page that needs nothing else, runs no script and loads nothing; ``earlier`` windows make the trend."""
    report = shown.report
    before = [r for r in earlier if (r.stage, r.scope) == (shown.stage, shown.scope) and r.window < shown.window]
    parts = [
        f"<h1>{_h(_title(shown))}</h1>",
        f'<p class="{shown.outcome}"><b>{shown.verdict}</b> {_h(_contract(report))}</p>',
        _table("Figures", ("figure", "value"), [(_h(n), _h(v)) for n, v in _figures(report)], numbers={1}),
        _table(
            "Conditions",
            ("condition", "outcome", "observed"),
            [
                (_h(f"{c['level']}s if {c['rule']}"), f'<span class="{c["outcome"]}">{c["outcome"]}</span>', _h(_observed(c)))
                for c in report["checks"]
            ],
        ),
        _table("Broken rules", ("rule", "events", "share"), [(_h(r), f"{n:,}", s) for r, n, s in _broken(report)], numbers={1, 2}),
        _table("First rejected events", ("record", "what is wrong"), [(f"<code>{_h(p)}</code>", _h(r)) for p, r in _samples(report)]),
        _table("Not run", ("check",), [(_h(text),) for text in report.get("not_run", ())]),
        _trend([*before, shown][-_TREND:]),
        f"<p>Every rejected event stands whole in the dead-letter topic: <code>factory dead-letters list … --pipeline "
        f"{_h(shown.pipeline)} --window '{_h(shown.window)}'</code></p>"
        if report["rejected"]
        else "",
    ]
    return _PAGE.replace("{title}", _h(_title(shown))).replace("{body}", "\n".join(filter(None, parts)))


def quality_facets(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report as OpenLineage's data-quality facets of what was read: its figures, its rules and its conditions. Needs its client."""
    import attr
    from openlineage.client.facet_v2 import data_quality_assertions_dataset as assertions
    from openlineage.client.facet_v2 import data_quality_metrics_input_dataset as metrics

    columns = {name: metrics.ColumnMetrics(nullCount=count) for name, count in report["nulls"].items()}
    tests = [*_rule_tests(report), *_condition_tests(report)]
    known = {field.name for field in attr.fields(assertions.Assertion)}
    if "name" not in known:  # in older clients, which have fewer fields, the type has to tell tests of one figure apart
        tests = [{**one, "assertion": one["name"]} for one in tests]
    told = [{key: value for key, value in one.items() if key in known} for one in tests]
    return {
        "dataQualityMetrics": metrics.DataQualityMetricsInputDatasetFacet(columnMetrics=columns, rowCount=report["rows"]),
        "dataQualityAssertions": assertions.DataQualityAssertionsDatasetFacet([assertions.Assertion(**one) for one in told]),
    }


def _rule_tests(report: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Rules as tests: each rejects the events that break it, whatever their number."""
    for rule, n in report["rules"].items():
        kind, _, field = rule.partition(":")
        column = field if kind in ("schema", "reference") and field else None
        yield {"assertion": kind, "success": n == 0, "column": column, "name": rule, "severity": "warn", "expected": "0", "actual": str(n)}


def _condition_tests(report: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for check in report["checks"]:
        condition = parse_condition(check["rule"])
        column = condition.fields[0] if len(condition.fields) == 1 else None
        level = {"fail": "error", "warn": "warn"}[check["level"]]
        observed = None if check["observed"] is None else str(check["observed"])
        facts = {"name": condition.text, "severity": level, "expected": f"not {condition.text}", "actual": observed}
        yield {"assertion": condition.figure, "success": check["outcome"] == "pass", "column": column, **facts}


def _title(shown: WindowReport) -> str:
    return f"{shown.pipeline} · {shown.stage} {shown.scope}".rstrip() + f" · {shown.when} UTC"


def _contract(report: Mapping[str, Any]) -> str:
    contract = report["contract"]
    return f"contract {contract['name']}, version {contract['version']}"


def _figures(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows, valid = report["rows"], report["valid"]
    found = [("events", f"{rows:,}"), ("valid", f"{valid:,}"), ("rejected", _with_share(report["rejected"], rows))]
    counted = [name for name in ("duplicates", "late", "early", "untimed") if report[name] is not None]
    found += [(name, _with_share(report[name], valid)) for name in counted]
    found += [(f"null {field}", _with_share(n, valid)) for field, n in report["nulls"].items() if n]
    for figure in ("missing", "invalid", "duplicates_of"):  # a report of before these were counted has none
        name = figure.replace("_", " ")
        found += [(f"{name} {field}", _with_share(n, valid)) for field, n in report.get(figure, {}).items() if n]
    for field, volumes in report.get("volumes", {}).items():
        if volumes is not None:
            found.append((f"events per {field}", f"{volumes['fewest']:,} to {volumes['most']:,} ({volumes['keys']:,} keys)"))
    for field, facts in report.get("references", {}).items():
        found.append((f"values that {field} may have", f"{facts['values']:,} in {facts['source']}"))
    found += [(name.replace("_", " "), str(report[name])) for name in ("first_event", "last_event") if report[name]]
    return found


def _with_share(part: int, whole: int) -> str:
    return f"{part:,} ({_percent(part, whole)})" if whole else f"{part:,}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g} %" if whole else "–"


def _observed(check: Mapping[str, Any]) -> str:
    observed = check["observed"]
    if observed is None:
        return str(check.get("note", "not known"))
    return f"{100 * observed:.4g} %" if check["rule"].rstrip().endswith("%") else f"{observed:,}"


def _broken(report: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    found = sorted(((n, rule) for rule, n in report["rules"].items() if n), reverse=True)
    return [(rule, n, _percent(n, report["rows"])) for n, rule in found]


def _samples(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(f"{s['topic']}-{s['partition']}@{s['offset']}", str(s["reason"])) for s in report["samples"]]


def _cell(text: str) -> str:
    """Text in a cell of a Markdown table."""
    return printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")


def _h(text: object) -> str:
    return escape(printable(str(text)))


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """A table of cells that are HTML already; nothing for no rows."""
    if not rows:
        return ""
    right = set(numbers)
    heads = "".join(f'<th scope="col"{" class=n" if i in right else ""}>{_h(name)}</th>' for i, name in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{' class=n' if i in right else ''}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>" for row in rows
    )
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    scroll = f'<div class="scroll" role="region" aria-label="{_h(title)}" tabindex="0">{table}</div>'
    return f"<section><h2>{_h(title)}</h2>{scroll}</section>"


def _trend(reports: Sequence[WindowReport]) -> str:
    """Bars of the rejected share, window by window, the last one being the page's own."""
    if len(reports) < 2:  # one window is no trend
        return ""
    shares = [r.report["rejected"] / r.report["rows"] if r.report["rows"] else 0.0 for r in reports]
    most = max(shares) or 1.0
    width, height = 12, 80
    bars = []
    for i, (r, share) in enumerate(zip(reports, shares, strict=True)):
        tall = max(1.0, share / most * height)
        what = f"{r.when}: {_with_share(r.report['rejected'], r.report['rows'])} rejected, {r.outcome}"
        bars.append(
            f'<rect class="{r.outcome}" x="{i * width}" y="{height - tall:.1f}" width="{width - 2}" height="{tall:.1f}">'
            f"<title>{_h(what)}</title></rect>"
        )
    label = f"Share of rejected events over {len(reports)} windows, at most {most * 100:.3g} %"
    return (
        f'<section><h2>Trend</h2><svg role="img" aria-label="{_h(label)}" width="{len(reports) * width}" height="{height}" '
        f'viewBox="0 0 {len(reports) * width} {height}">'
        f"{''.join(bars)}</svg><p>{_h(label)}: {_h(reports[0].when)} to {_h(reports[-1].when)} UTC</p></section>"
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root { color-scheme: light dark; --line: #8884; --back: #fff; --text: #1b1b1b; --pass: #2e7d32; --warn: #8a5200; --fail: #c62828; }
@media (prefers-color-scheme: dark) {
  :root { --back: #161616; --text: #eee; --pass: #81c784; --warn: #ffb74d; --fail: #ef9a9a; }
}
html { background: var(--back); color: var(--text); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin: 1.5rem 0 .3rem; }
th, td code { white-space: nowrap; } .scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.pass { color: var(--pass); fill: var(--pass); } .warn { color: var(--warn); fill: var(--warn); }
.fail { color: var(--fail); fill: var(--fail); } svg { max-width: 100%; }
</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""
