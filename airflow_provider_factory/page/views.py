"""From a snapshot to what the page shows: pure functions, testable without a server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from airflow_provider_factory.page.snapshot import Snapshot
from factory_agents.kafka.windows import StageStatus, WindowStatus

__all__ = ["Freshness", "Pipeline", "StageCell", "WindowRow", "freshness", "overview", "pipeline"]

SHOWN = 200
"""Most windows on one page."""

_STATES = {"finished": "whole", "unfinished": "open", "planned": "waiting"}


@dataclass(frozen=True)
class StageCell:
    """One stage over one window; ``parts`` add up to ``consumed`` where the stage is done."""

    name: str
    state: str
    consumed: int
    parts: tuple[tuple[str, int], ...]
    summary: str


@dataclass(frozen=True)
class WindowRow:
    """One window: when, how far, what each stage did."""

    when: str
    state: str
    records: int
    age: str
    stages: tuple[StageCell, ...]


@dataclass(frozen=True)
class Pipeline:
    """A pipeline's sentence, its figures, and its windows, those that are not whole first."""

    name: str
    sentence: str
    whole: int
    open: int
    rejected: int
    consumed: int
    windows: tuple[WindowRow, ...]
    more: int = 0


@dataclass(frozen=True)
class Freshness:
    """How old the figures are, in words; ``stale`` where Kafka doesn't answer."""

    text: str
    stale: bool


def freshness(snapshot: Snapshot, now: datetime) -> Freshness:
    """What the page says of its figures' age."""
    if snapshot.error:
        since = f"{snapshot.down_since:%H:%M:%S} UTC" if snapshot.down_since else "just now"
        figures = f"figures from {snapshot.taken_at:%H:%M:%S} UTC" if snapshot.taken_at else "no figures yet"
        return Freshness(f"Kafka cannot be read since {since}; {figures}. {snapshot.error}", True)
    if snapshot.taken_at is None:
        return Freshness("Reading the ledger …", False)
    return Freshness(f"As of {snapshot.age_seconds(now)} s ago", False)


def overview(snapshot: Snapshot, readable: Iterable[str]) -> tuple[Pipeline, ...]:
    """Every pipeline that the user may read, those with work left first, with its ten newest windows at most."""
    allowed = set(readable)
    of: dict[str, list[WindowStatus]] = {}
    for window in snapshot.windows:
        if window.pipeline in allowed:
            of.setdefault(window.pipeline, []).append(window)
    found = [_pipeline(name, windows, 10) for name, windows in of.items()]
    return tuple(sorted(found, key=lambda p: (not p.open, p.name)))


def pipeline(snapshot: Snapshot, name: str) -> Pipeline:
    """One pipeline, with as many windows as a page holds."""
    return _pipeline(name, [w for w in snapshot.windows if w.pipeline == name], SHOWN)


def _pipeline(name: str, windows: Sequence[WindowStatus], most: int) -> Pipeline:
    left = [w for w in windows if w.state != "finished"]
    first = [w.stages[0] for w in windows if w.stages]
    return Pipeline(
        name=name,
        sentence=_sentence(windows, left),
        whole=len(windows) - len(left),
        open=len(left),
        rejected=sum(s.counts.rejected for w in windows for s in w.stages),
        consumed=sum(s.counts.consumed for s in first),
        windows=tuple(_row(w) for w in windows[:most]),
        more=max(0, len(windows) - most),
    )


def _sentence(windows: Sequence[WindowStatus], left: Sequence[WindowStatus]) -> str:
    if not windows:
        return "No window has been planned."
    waiting = sum(w.records for w in left)
    if left:
        oldest = min(left, key=lambda w: w.window)
        what = f"{_count(len(left), 'window')} not whole since {oldest.when}; {_count(waiting, 'event')} wait"
    else:
        what = f"All {_count(len(windows), 'window')} whole"
    rejected = sum(s.counts.rejected for w in windows for s in w.stages)
    return f"{what}; {_count(rejected, 'event')} rejected." if rejected else f"{what}."


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _row(window: WindowStatus) -> WindowRow:
    state = _STATES.get(window.state, window.state)
    return WindowRow(window.when, state, window.records, window.age_text, tuple(_cell(s) for s in window.stages))


def _cell(stage: StageStatus) -> StageCell:
    c = stage.counts
    landed = (("written", c.written), ("duplicates", c.duplicates), ("older", c.older))
    forwarded = landed if any(n for _, n in landed) else (("forwarded", c.forwarded),)
    parts = (*forwarded, ("filtered", c.filtered), ("rejected", c.rejected))
    return StageCell(stage.stage, stage.state, c.consumed, tuple(p for p in parts if p[1]), stage.summary)


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)
