"""A pipeline's intervals on a calendar: which are whole, open, failed, late, or missing altogether."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby

from airflow_provider_factory.page.runs import MOST_SPANS, Run, Schedule
from airflow_provider_factory.page.snapshot import Snapshot
from airflow_provider_factory.page.views.overview import window_path
from airflow_provider_factory.page.views.run import interval_start
from factory_agents.kafka.windows import WindowStatus

__all__ = ["Calendar", "Cell", "Day", "calendar", "gaps", "span_of"]

_SYMBOLS = {"whole": "✓", "open": "…", "late": "!", "failed": "✕", "missing": "–"}
_HOUR = timedelta(hours=1)
_LONGEST, _SHORTEST = timedelta(days=366), timedelta(hours=1)


@dataclass(frozen=True)
class Cell:
    """One interval; ``start`` is what a backfill is asked for, ``path`` its window's page or empty."""

    start: str
    label: str
    time: str
    state: str
    symbol: str
    path: str
    run: str


@dataclass(frozen=True)
class Day:
    """The intervals that begin on one day."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Calendar:
    """The days of a span of time, how many intervals are in which state, and where to look before and after."""

    days: tuple[Day, ...]
    totals: tuple[tuple[str, int], ...]
    scheduled: bool
    since: str
    until: str
    earlier: str
    later: str
    missing: int


def span_of(snapshot: Snapshot, name: str, until: datetime | None, at: datetime) -> tuple[datetime, datetime]:
    """What a calendar shows: so many of the pipeline's newest interval's length, up to ``until`` (by default now)."""
    intervals = [found for w in snapshot.of(name) if (found := _interval(w)) is not None]
    length = min((end - start for start, end in sorted(intervals)[-24:]), default=_HOUR)
    end = until if until is not None else at
    span = min(_LONGEST, max(_SHORTEST, length * MOST_SPANS))
    try:
        return end - span, end
    except OverflowError:
        return at - span, at


def gaps(
    snapshot: Snapshot, name: str, since: datetime, until: datetime, runs: Sequence[Run], at: datetime
) -> list[tuple[datetime, datetime]]:
    """The times of a calendar, from the pipeline's first interval on, of which neither the ledger nor Airflow knows an interval."""
    known = sorted({*_windows(snapshot, name), *_runs(runs)})
    if not known:
        return []
    found, end = [], max(since, known[0][0])
    for start, finish in known:
        if end < start < until:
            found.append((end, start))
        end = max(end, finish)
    last = min(until, at)
    return [*found, (end, last)] if end < last else found


def calendar(
    snapshot: Snapshot, name: str, since: datetime, until: datetime, runs: Sequence[Run], schedule: Schedule, at: datetime
) -> Calendar:
    """All intervals that begin in the span: the ledger's, those of runs, and the schedule's where neither knows of one (``gaps``)."""
    windows, of_run = _windows(snapshot, name), _runs(runs)
    first = min((start for start, _ in (*windows, *of_run)), default=None)
    spans = {span for span in (*windows, *of_run, *schedule.spans) if since <= span[0] < until}
    shown = sorted(spans)[-MOST_SPANS:]
    cells = [_cell(span, windows.get(span), of_run.get(span), at) for span in shown]
    days = tuple(
        Day(f"{day:%a %F}", tuple(cell for _, cell in of)) for day, of in groupby(zip(shown, cells, strict=True), lambda x: x[0][0].date())
    )
    totals = Counter(cell.state for cell in cells)
    length = until - since
    return Calendar(
        days=days,
        totals=tuple((state, totals[state]) for state in _SYMBOLS if totals[state]),
        scheduled=schedule.known,
        since=f"{since:%F %H:%M}",
        until=f"{until:%F %H:%M}",
        earlier=_moment(since) if first is not None and first < since else "",
        later=_moment(until + length) if until < at else "",
        missing=totals["missing"],
    )


def _windows(snapshot: Snapshot, name: str) -> dict[tuple[datetime, datetime], WindowStatus]:
    return {found: w for w in snapshot.of(name) if w.state != "uncovered" and (found := _interval(w)) is not None}


def _runs(runs: Sequence[Run]) -> dict[tuple[datetime, datetime], Run]:
    """The newest run of each interval."""
    return {(run.start, run.end): run for run in reversed(runs) if run.start is not None and run.end is not None and run.start < run.end}


def _cell(span: tuple[datetime, datetime], window: WindowStatus | None, run: Run | None, at: datetime) -> Cell:
    start, end = span
    state = _state(window, run, span, at)
    text = f"{start:%F %H:%M} → {end:%H:%M}" if end - start < timedelta(days=1) else f"{start:%F %H:%M} → {end:%F %H:%M}"
    why = f", run {run.state}" if run is not None else ", no run"
    path = window_path(window.window) if window is not None else ""
    return Cell(_moment(start), f"{text}: {state}{why}", f"{start:%H:%M}", state, _SYMBOLS[state], path, run.run_id if run else "")


def _state(window: WindowStatus | None, run: Run | None, span: tuple[datetime, datetime], at: datetime) -> str:
    if window is not None and window.state == "finished":
        return "whole"
    if (window is not None and window.state == "failed") or (run is not None and run.state == "failed"):
        return "failed"
    if window is None and run is None:
        return "missing"
    if window is None and run is not None and run.state == "success":
        return "whole"  # it had nothing to plan, or the ledger has forgotten it
    return "late" if at > span[1] + (span[1] - span[0]) else "open"


def _interval(window: WindowStatus) -> tuple[datetime, datetime] | None:
    start = interval_start(window.window)
    if start is None:
        return None
    try:
        return start, datetime.fromisoformat(window.window.partition("/")[2]).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
