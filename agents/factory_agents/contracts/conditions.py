"""Thresholds on a validation report as text (``rejected > 1 %``), and the pure judge that applies them."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, NoReturn

import msgspec

from factory_agents.contracts.documents import did_you_mean, one_of, show
from factory_agents.errors import ConfigurationError
from factory_agents.text import count

__all__ = ["Condition", "Line", "Outcome", "Verdict", "check", "judge", "observed", "parse_condition", "parse_conditions"]

Outcome = Literal["pass", "warn", "fail"]
Level = Literal["warn", "fail"]

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "between": lambda value, limits: limits[0] <= value <= limits[1],
    "not between": lambda value, limits: not limits[0] <= value <= limits[1],
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_UNITS = {"sec": "s", "second": "s", "seconds": "s", "m": "min", "minute": "min", "minutes": "min"}
_UNITS |= {"hour": "h", "hours": "h", "day": "d", "days": "d"}
_OF_FIELDS = {"null_rate": "nulls", "nulls": "nulls", "missing": "missing", "invalid": "invalid"}
"""Figures of a field, with the name of their counts in a report."""
_SHARE_OF = {"rejected": "rows", "duplicates": "valid", "late": "valid", "early": "valid", "untimed": "valid"}
_SHARE_OF |= dict.fromkeys(_OF_FIELDS, "valid")
_VOLUMES = {"keys": "keys", "most_per": "most", "fewest_per": "fewest"}
"""Figures of the events that each key has, with their names in a report."""
_FIGURES = (
    *("rows", "valid", "rejected", "rejected(rule)", "null_rate(field)", "nulls(field)", "missing(field)", "invalid(field)"),
    *("duplicates", "duplicates(fields)", "late", "early", "untimed", "freshness", "sql(query)"),
    *("keys(fields)", "most_per(fields)", "fewest_per(fields)", "drift(figure, windows)"),
)
_LEAST_WINDOWS, _MOST_WINDOWS = 3, 1_000
"""Earlier windows from which on a drift is judged, and how many it may be about."""
_NAMED = {**_OF_FIELDS, "sql": "sql"}
"""Figures with an argument, and where a report has their counts."""
_NUMBER = r"(-?\d+(?:[_,]\d{3})*(?:\.\d+)?)"
_CONDITION = re.compile(
    rf"\s*(\w+)\s*(?:\(\s*((?:[^()]|\([^()]*\))*?)\s*\))?\s*(?:(>=|<=|==|!=|>|<)\s*{_NUMBER}|((?:not\s+)?between)\s+{_NUMBER}\s+and\s+{_NUMBER})"
    r"\s*(%|[A-Za-z]+)?\s*"
)


class Condition(msgspec.Struct, frozen=True):
    """A parsed threshold: true where ``figure`` (of ``argument``, a field, fields or a rule) compares so with ``threshold``.

    The threshold's ``unit`` is ``""`` for a count, ``"%"`` for a share, else a unit of time. ``between`` and ``not between`` have an
    ``upper`` one too, and both belong to what lies between.
    """

    text: str
    figure: str
    argument: str
    comparison: str
    threshold: str
    unit: str
    upper: str = ""

    @property
    def limits(self) -> tuple[Fraction, ...]:
        """The threshold, or the two, as counts, shares of one, or seconds; exact."""
        values = [Fraction(text) for text in (self.threshold, self.upper) if text]
        return tuple(value / 100 if self.unit == "%" else value * _SECONDS.get(self.unit, 1) for value in values)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that the figure is about; none where it is about all events, a rule, or a drift."""
        if (self.figure == "duplicates" and self.argument) or self.figure in _VOLUMES:
            return tuple(name.strip() for name in self.argument.split(","))
        return (self.argument,) if self.figure in _OF_FIELDS else ()

    @property
    def compared(self) -> Condition:
        """Of a drift the figure that is compared with earlier windows, as a condition on it; of others itself."""
        if self.figure != "drift":
            return self
        figure = self.argument.rpartition(",")[0].strip()
        unit = {"null_rate": "%", "freshness": "s"}.get(figure.partition("(")[0].strip(), "")
        return parse_condition(f"{figure} > 0 {unit}")

    @property
    def windows(self) -> int:
        """Of a drift, with how many earlier windows it compares; of others none."""
        text = self.argument.rpartition(",")[2].strip() if self.figure == "drift" else "0"
        return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0

    def holds(self, observed: Fraction) -> bool:
        """Whether the figure, observed in the threshold's unit, compares so with it."""
        limits = self.limits
        return _COMPARE[self.comparison](observed, limits if self.upper else limits[0])


class Line(msgspec.Struct, frozen=True):
    """A line for a person, and how bad what it says is."""

    outcome: Outcome
    text: str


class Verdict(msgspec.Struct, frozen=True):
    """What a report comes to: the worst outcome, every check, and lines for a person (a summary first).

    ``failure`` is the one line of the error that a failed validation raises; empty for others.
    """

    outcome: Outcome
    checks: tuple[dict[str, Any], ...]
    lines: tuple[Line, ...]
    failure: str = ""


def parse_condition(text: str) -> Condition:
    """Read one condition, such as ``rejected > 1 %``, ``rows < 1``, ``null_rate(added) > 5 %`` or ``freshness > 2 h``.

    Raises ConfigurationError in one line.
    """
    match = _CONDITION.fullmatch(str(text))
    if match is None:
        what = "a figure, a comparison and a threshold, such as 'rejected > 1 %'"
        raise ConfigurationError(f"condition {show(text)}: expected {what}")
    figure, argument, comparison, number, between, lower, upper, unit = match.groups(default="")
    first, second = (text.replace(",", "").replace("_", "") for text in (number or lower, upper))
    comparison = comparison or " ".join(between.split())
    condition = Condition(" ".join(text.split()), figure, argument, comparison, first, _UNITS.get(unit, unit), second)
    if second and condition.limits[0] > condition.limits[1]:
        _fail(condition, f"expected the smaller number first, got {first} and {second}")
    _check_figure(condition)
    _check_unit(condition)
    return condition


def parse_conditions(conditions: str | Sequence[str], name: str) -> tuple[Condition, ...]:
    """One condition or several, from the setting called ``name``."""
    items = [conditions] if isinstance(conditions, str) else conditions
    if not isinstance(items, (list, tuple)):
        what = "a condition or a list of them, such as 'rejected > 1 %'"
        raise ConfigurationError(f"{name}: expected {what}, got {show(conditions)}")
    try:
        return tuple(parse_condition(item) for item in items)
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error}") from error


def _fail(condition: Condition, message: str) -> NoReturn:
    raise ConfigurationError(f"condition {condition.text!r}: {message}")


def _check_figure(c: Condition) -> None:
    names = [f.split("(")[0] for f in _FIGURES]
    if c.figure not in names:
        near = did_you_mean(c.figure, names) or did_you_mean(c.figure.removesuffix("_rate"), names)
        _fail(c, f"unknown figure {c.figure!r}{near or one_of('', _FIGURES)}")
    if c.figure in _NAMED and not c.argument:
        _fail(c, f"expected a {'query' if c.figure == 'sql' else 'field'} in brackets, such as {c.figure}(added)")
    if "" in c.fields and c.argument:
        _fail(c, f"expected fields with commas between them, such as duplicates(tenant, order), got ({c.argument})")
    if c.figure in _VOLUMES and not c.argument:
        _fail(c, f"expected the key's fields in brackets, such as {c.figure}(tenant)")
    if c.figure == "drift":
        _check_drift(c)
    elif c.argument and c.figure not in (*_NAMED, *_VOLUMES, "rejected", "duplicates"):
        _fail(c, f"{c.figure} takes nothing in brackets, got ({c.argument})")


def _check_drift(c: Condition) -> None:
    example = "such as 'drift(rows, 24) > 50 %'"
    if not 1 <= c.windows <= _MOST_WINDOWS:
        _fail(c, f"expected a figure and a number of windows from 1 to {_MOST_WINDOWS:,}, {example}")
    if c.argument.partition("(")[0].strip() == "drift":
        _fail(c, f"expected a figure that is no drift itself, {example}")
    try:
        _ = c.compared
    except ConfigurationError as error:
        _fail(c, str(error).partition(": ")[2])
    if c.unit != "%":
        _fail(c, f"expected a share in per cent, {example}")


def _check_unit(c: Condition) -> None:
    if c.figure == "drift":
        return
    if c.figure == "freshness":
        if c.unit not in _SECONDS:
            _fail(c, f"expected a time with its unit, one of {', '.join(_SECONDS)}, such as 'freshness > 2 h'")
    elif c.figure == "null_rate":
        if c.unit != "%":
            _fail(c, f"expected a share in per cent, such as 'null_rate({c.argument}) > 5 %'")
    elif c.unit == "%" and c.figure not in _SHARE_OF:
        _fail(c, f"{c.figure} is a count, which has no per cent")
    elif c.unit not in ("", "%"):
        _fail(c, f"expected a number or per cent, got the unit {c.unit!r}")


def check(report: Mapping[str, Any], condition: Condition, level: Level) -> dict[str, Any]:
    """Apply one condition: ``{rule, level, observed, threshold, outcome}``, with ``note`` where the figure is not known.

    ``observed`` and ``threshold`` (a list of two for ``between``) are counts, shares of one, or seconds. An empty window breaks no share
    and no freshness (that is what ``rows < 1`` is for); a figure that can't be known although there are events gives ``warn``.
    """
    limits = [_number(limit) for limit in condition.limits]
    threshold = limits if condition.upper else limits[0]
    result: dict[str, Any] = {"rule": condition.text, "level": level, "observed": None, "threshold": threshold, "outcome": "pass"}
    value = observed(report, condition)
    if value is not None:
        result["observed"] = _number(value)
        if condition.holds(value) and (condition.comparison in (">", ">=") or not _within_shards(report, condition)):
            result["outcome"] = level
        elif _within_shards(report, condition):
            result |= {"outcome": "warn", "note": _WITHIN}
    elif report["valid"]:
        result["outcome"] = "pass" if _is_young(report, condition) else "warn"
        result["note"] = _why_unknown(report, condition)
    else:
        result["note"] = "not known: the window holds no valid event" if report["rows"] else "not known: the window is empty"
    return result


_WITHIN = "at least: counted within each shard only; key the records by the id, or plan the window with shards=1"


def _within_shards(report: Mapping[str, Any], c: Condition) -> bool:
    """Whether a figure is only a lower bound: of duplicates, where those with one id may be in different shards."""
    keyed = report.get("keyed")
    is_exact = keyed is None or (keyed in c.fields if c.fields else bool(keyed))
    return c.figure == "duplicates" and report["shards"] > 1 and not is_exact


def observed(report: Mapping[str, Any], c: Condition) -> Fraction | None:
    """A condition's figure in a report: a count, a share of one, or seconds; None where it isn't known."""
    if c.figure == "drift":
        return _drift(report, c)
    if c.figure == "freshness":
        seconds = report["freshness_seconds"]
        return None if seconds is None else Fraction(str(seconds))
    count = _count(report, c)
    if count is None or c.unit != "%":
        return None if count is None else Fraction(str(count))
    return _share(int(count), report[_SHARE_OF[c.figure]])


def _drift(report: Mapping[str, Any], c: Condition) -> Fraction | None:
    """How far a figure is from its median over earlier windows, as a share of that; of zero anything else is 100 % away."""
    past = _past(report, c)
    value = observed(report, c.compared)
    if value is None or past is None or past["windows"] < min(c.windows, _LEAST_WINDOWS):
        return None
    usual = Fraction(str(past["median"]))
    return abs(value - usual) / abs(usual) if usual else Fraction(value != 0)


def _past(report: Mapping[str, Any], c: Condition) -> Mapping[str, Any] | None:
    """What a report knows of earlier windows, for a drift."""
    past: Mapping[str, Any] | None = report.get("history", {}).get(c.argument)
    return past


def _is_young(report: Mapping[str, Any], c: Condition) -> bool:
    """Whether a drift isn't known since there are too few windows yet."""
    return c.figure == "drift" and _past(report, c) is not None and observed(report, c.compared) is not None


def _count(report: Mapping[str, Any], c: Condition) -> int | float | None:
    if c.figure == "rejected" and c.argument:
        return _rejected_by(report, c)
    if c.figure in _VOLUMES:
        return _volume(report, c)
    if not c.fields and c.figure not in _NAMED:
        value: int | None = report[c.figure]
        return value
    counts = report.get(_NAMED.get(c.figure, "duplicates_of"), {})  # a report of before these were counted has none
    name = ", ".join(c.fields) or c.argument
    if name not in counts:
        what = c.figure if c.figure != "null_rate" else "nulls"
        _fail(c, f"the report counts no {what} of {name!r}{one_of(name, counts) if counts else ''}")
    count: int | float | None = counts[name]
    return count


def _volume(report: Mapping[str, Any], c: Condition) -> int | None:
    volumes = report.get("volumes", {})
    name = ", ".join(c.fields)
    if name not in volumes:
        _fail(c, f"the report counts no events per {name!r}{one_of(name, volumes) if volumes else ''}")
    known: Mapping[str, int] | None = volumes[name]
    if known is None or (c.figure == "fewest_per" and not known["keys"]):
        return None
    return known[_VOLUMES[c.figure]]


def _rejected_by(report: Mapping[str, Any], c: Condition) -> int:
    rules: Mapping[str, int] = report["rules"]
    if c.argument not in rules and c.argument.split(":")[0] not in ("schema", "decode", "time"):
        _fail(c, f"unknown rule {c.argument!r}{one_of(c.argument, rules)}")
    return rules.get(c.argument, 0)


def _share(part: int, whole: int) -> Fraction | None:
    return Fraction(part, whole) if whole else None


def _number(value: Fraction) -> int | float:
    return value.numerator if value.denominator == 1 else float(value)


def _why_unknown(report: Mapping[str, Any], c: Condition) -> str:
    if c.figure == "sql":
        return f"not known: {report.get('sql_unknown', {}).get(c.argument, 'SQL is run over windows only')}"
    if c.figure in _VOLUMES:
        return _why_no_volume(report, c)
    if c.figure == "drift":
        return _why_no_drift(report, c)
    if c.figure == "duplicates":
        return "not known: duplicates are counted in windows only"
    if report.get("window_end") is None:
        return "not known: the run has no interval to compare event times with"
    return "not known: no event has a time (does the contract name its field under 'time'?)"


def _why_no_volume(report: Mapping[str, Any], c: Condition) -> str:
    if report["volumes"][", ".join(c.fields)] is not None:
        return f"not known: no event has a value of {c.argument}"
    if report["shards"] > 1:
        return "not known: it needs the whole window in one shard: plan it with shards=1"
    return "not known: events per key are counted in windows only"


def _why_no_drift(report: Mapping[str, Any], c: Condition) -> str:
    past = _past(report, c)
    if past is None:
        return "not known: earlier windows are looked at by a pipeline's validate stage, for conditions of its contract"
    if observed(report, c.compared) is None:
        return _why_unknown(report, c.compared)
    return f"not known yet: {past['windows']} of {min(c.windows, _LEAST_WINDOWS)} earlier windows"


def judge(report: Mapping[str, Any] | None, fail_if: str | Sequence[str] = (), warn_if: str | Sequence[str] = ()) -> Verdict:
    """Judge a report by its contract's own conditions, which stand in it, and by those given; bad data is an outcome, no error.

    Raises ConfigurationError for a condition that can't be read or names what the report doesn't hold.
    """
    if not isinstance(report, Mapping) or "checks" not in report:
        raise ConfigurationError(f"expected a validation report, got {show(report)}; is the stage before a validate agent?")
    checks = list(report["checks"])
    for level, name, conditions in (("fail", "fail_if", fail_if), ("warn", "warn_if", warn_if)):
        checks += [check(report, c, "fail" if level == "fail" else "warn") for c in parse_conditions(conditions, name)]
    outcomes = {c["outcome"] for c in checks}
    outcome: Outcome = "fail" if "fail" in outcomes else "warn" if "warn" in outcomes else "pass"
    lines = [Line(outcome, f"{outcome.upper()}: {_summary(report)}")]
    lines += [Line(c["outcome"], f"  {_check_text(c)}") for c in sorted(checks, key=lambda c: ("fail", "warn", "pass").index(c["outcome"]))]
    lines += [Line("pass", f"  {n:,} × {rule}") for rule, n in _broken_rules(report)[:10]]
    lines += [Line("pass", f"  e.g. {_place(s)}: {s['reason']}") for s in report["samples"]]
    lines += [Line(*line) for line in _reference_lines(report)]
    lines += [Line("pass", f"  {text}") for text in report.get("not_run", ())]
    failure = f"{lines[0].text}{_causes(report, checks)}" if outcome == "fail" else ""
    return Verdict(outcome, tuple(checks), tuple(lines), failure)


def _summary(report: Mapping[str, Any]) -> str:
    contract = report["contract"]
    figures = [count(report["rows"], "row"), f"{report['valid']:,} valid", f"{report['rejected']:,} rejected"]
    figures[-1] += _per_cent(report["rejected_rate"])
    if report["duplicates"] is not None:
        within = f" (within each of {report['shards']} shards)" if report["shards"] > 1 and not report.get("keyed") else ""
        figures.append(f"{count(report['duplicates'], 'duplicate')}{within}")
    if report["late"]:
        figures.append(f"{report['late']:,} late")
    return f"{contract['name']} version {contract['version']}: {', '.join(figures)}"


def _reference_lines(report: Mapping[str, Any]) -> list[tuple[Outcome, str]]:
    """What the references held: news where events were checked against different content."""
    lines: list[tuple[Outcome, str]] = []
    for name, facts in report.get("references", {}).items():
        text = f"  {name}: {facts['values']:,} values in {facts['source']}"
        changed = "; they changed meanwhile: the shards were checked against different values"
        lines.append(("pass", text) if facts["digest"] else ("warn", text + changed))
    return lines


def _broken_rules(report: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Rules and how many events broke each, the most often broken first."""
    return sorted(((rule, n) for rule, n in report["rules"].items() if n), key=lambda pair: (-pair[1], pair[0]))


def _place(sample: Mapping[str, Any]) -> str:
    return f"{sample['topic']}-{sample['partition']}@{sample['offset']}"


def _causes(report: Mapping[str, Any], checks: Sequence[Mapping[str, Any]]) -> str:
    """The conditions that fail; and where one is about rejected events, the rule that was broken most often, with an example."""
    failing = [str(c["rule"]) for c in checks if c["outcome"] == "fail"]
    causes = f"; broken: {'; '.join(failing)}"
    rules = _broken_rules(report)
    if rules and any(parse_condition(c).figure in ("rejected", "valid") for c in failing):
        rule, n = rules[0]
        sample = next((s for s in report["samples"] if rule in s["rules"]), None)
        causes += f"; most often ({n:,}×) {rule}" + (f": {sample['reason']} ({_place(sample)})" if sample is not None else "")
    return causes


_WORDS = {">": "above", ">=": "from", "<": "below", "<=": "up to", "==": "at", "!=": "unless", "not between": "outside"}
_PASSED = {"pass": "ok", "warn": "warning", "fail": "broken"}


def _check_text(c: Mapping[str, Any]) -> str:
    """One check in a line: what was observed, in the unit of its condition, and what would be too much or too little."""
    condition = parse_condition(c["rule"])
    if c["observed"] is None:
        observed = c.get("note", "not known")
    elif condition.unit == "%":
        observed = f"{c['observed'] * 100:.4g} %"
    elif condition.unit:
        observed = f"{c['observed'] / _SECONDS[condition.unit]:,.6g} {condition.unit}"
    else:
        observed = f"{c['observed']:,}"
    figure = f"{condition.figure}({condition.argument})" if condition.argument else condition.figure
    word = _WORDS.get(condition.comparison, condition.comparison)
    upper = f" and {condition.upper}" if condition.upper else ""
    limit = f"{word} {condition.threshold}{upper} {condition.unit}".rstrip()
    note = f"; {c['note']}" if c["observed"] is not None and "note" in c else ""
    return f"{_PASSED[c['outcome']]}: {figure} {observed} ({c['level']}s {limit}){note}"


def _per_cent(share: float | None) -> str:
    return "" if share is None else f" ({share * 100:.3g} %)"
