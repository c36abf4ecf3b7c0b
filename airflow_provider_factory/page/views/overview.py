"""The first page: a sentence for each pipeline, and how far it is behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from airflow_provider_factory.page.snapshot import Details, Snapshot
from airflow_provider_factory.page.views.common import STATES, Chart, Part, chart, link, parts_of
from airflow_provider_factory.page.views.flow import Flow, flow
from factory_agents.kafka.windows import StageStatus, WindowStatus
from factory_agents.text import count, printable, shortened

__all__ = ["SHOWN", "Pipeline", "StageCell", "WindowRow", "overview", "pipeline", "window_path"]

SHOWN = 50
"""Most windows on one page."""

_FEW = 5
_LONGEST = 120
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class StageCell:
    """One stage over one window; ``parts`` add up to ``consumed``."""

    name: str
    state: str
    consumed: int
    parts: tuple[Part, ...]
    summary: str


@dataclass(frozen=True)
class WindowRow:
    """One window: when, how far, what each stage did."""

    when: str
    path: str
    state: str
    records: str
    age: str
    stages: tuple[StageCell, ...]


@dataclass(frozen=True)
class Pipeline:
    """A pipeline's sentence, its figures, where its events go, and its windows, those that are not whole first."""

    name: str
    sentence: str
    whole: int
    open: int
    rejected: int
    consumed: int
    age: str
    lag: str
    lags: tuple[tuple[str, Chart], ...]
    flow: Flow
    windows: tuple[WindowRow, ...]
    more: int = 0


def overview(snapshot: Snapshot, readable: Iterable[str]) -> tuple[Pipeline, ...]:
    """Every pipeline that the user may read, those with work left first, each with a few windows."""
    allowed = set(readable)
    of: dict[str, list[WindowStatus]] = {}
    for window in snapshot.figures.windows:
        if window.pipeline in allowed:
            of.setdefault(window.pipeline, []).append(window)
    found = [_pipeline(snapshot, name, windows, _FEW) for name, windows in of.items()]
    return tuple(sorted(found, key=lambda p: (not p.open, p.name)))


def pipeline(snapshot: Snapshot, name: str, page: int = 0) -> Pipeline:
    """One pipeline, with as many windows as a page holds."""
    return _pipeline(snapshot, name, snapshot.of(name), SHOWN, max(0, page) * SHOWN)


def window_path(window: str) -> str:
    """Where a window's page is, below ``pipelines/<name>/``."""
    return link("window", key=window)


def _pipeline(snapshot: Snapshot, name: str, windows: Sequence[WindowStatus], most: int, first: int = 0) -> Pipeline:
    left = [w for w in windows if w.state != "finished"]
    readers = [w.stages[0] for w in windows if w.stages]
    newest = max((w for w in windows if w.updated), key=lambda w: w.updated or _NEVER, default=None)
    behind = [total for total in snapshot.figures.lags if total.reader == name]
    charts = [(total.topic, chart(snapshot.figures.trend(name, total.topic))) for total in behind]
    return Pipeline(
        name=name,
        sentence=_sentence(snapshot, name, windows, left),
        whole=len(windows) - len(left),
        open=len(left),
        rejected=sum(s.counts.rejected for w in windows for s in w.stages),
        consumed=sum(s.counts.consumed for s in readers),
        age=newest.age_text if newest else "",
        lag=", ".join(f"{count(total.lag, 'record')} on {total.topic}" for total in behind),
        lags=tuple((topic, line) for topic, line in charts[:_FEW] if line is not None),
        flow=flow(snapshot, windows),
        windows=tuple(_row(w) for w in windows[first : first + most]),
        more=max(0, len(windows) - first - most),
    )


def _sentence(snapshot: Snapshot, name: str, windows: Sequence[WindowStatus], left: Sequence[WindowStatus]) -> str:
    if not windows:
        return "No window has been planned."
    waiting = sum(w.records for w in left)
    if left:
        oldest = min(left, key=lambda w: w.window)
        said = [
            f"{count(len(left), 'window')} not whole since {oldest.since}",
            count(waiting, "event", "waits", "wait"),
        ]
        failed = sum(w.state == "failed" for w in left)
        said[0] += f" ({failed:,} failed)" if failed else ""
    else:
        said = [f"All {count(len(windows), 'window')} whole"]
    rejected = sum(s.counts.rejected for w in windows for s in w.stages)
    if rejected:
        said.append(f"{count(rejected, 'event')} rejected{_reason(snapshot, name, rejected)}")
    return "; ".join(said) + "."


def _reason(snapshot: Snapshot, name: str, rejected: int) -> str:
    """The rule that most rejected events broke, where validation reports tell."""
    rules: Counter[str] = Counter()
    contract = ""
    for (owner, _), details in snapshot.figures.details.items():
        if owner == name:
            contract = _count_rules(details, rules) or contract
    if not rules:
        return ""
    rule, n = rules.most_common(1)[0]
    where = f" in {contract}" if contract else ""
    return f", {min(100, round(100 * n / rejected))} % of them: {shortened(printable(rule), _LONGEST)}{where}"


def _count_rules(details: Details, rules: Counter[str]) -> str:
    contract = ""
    for record in details.stages:
        report = (record.result.report if record.result is not None else None) or {}
        rules.update({str(rule): int(n) for rule, n in (report.get("rules") or {}).items() if n})
        if about := report.get("contract"):
            contract = f"{about.get('name')} v{about.get('version')}"
    return contract


def _row(window: WindowStatus) -> WindowRow:
    state = STATES.get(window.state, window.state)
    path = window_path(window.window)
    return WindowRow(window.when, path, state, window.records_text, window.age_text, tuple(_cell(s) for s in window.stages))


def _cell(stage: StageStatus) -> StageCell:
    return StageCell(stage.stage, stage.state, stage.counts.consumed, parts_of(stage.counts), stage.summary)
