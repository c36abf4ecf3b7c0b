"""What the ledger says of windows: which were planned, and how far each stage over them is."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Literal

import msgspec

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.ledger import FailureRecord, Ledger, LedgerView, MarkRecord, PlanRecord, StageRecord
from factory_agents.kafka.plan_view import interval_of
from factory_agents.kafka.prune_view import origin_of
from factory_agents.kafka.records import VerdictRecord
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import Counts, Interval

__all__ = ["StageStatus", "WindowStatus", "age_text", "read_windows", "windows_of"]

_LEDGER_SECONDS = 120.0
_QUIET_SECONDS = 180.0
"""An attempt commits several times a minute, unless it waits for another's open transaction: after so long nobody may be at work."""

_ORDER = {"failed": 0, "unfinished": 1, "planned": 1, "uncovered": 2, "finished": 3}


class StageStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far one stage over one window is, its shards taken together.

    ``state``: ``failed`` where the last attempt at a shard did, with its ``error``; ``stalled`` where an unfinished one has committed
    nothing for minutes, so that nobody may be at work; ``waiting`` where the pipeline's other windows have this stage and this one does
    not yet. ``percent`` is of the window's offsets, where the stage reads what was planned. ``generation`` is the newest shard's.
    """

    stage: str
    state: Literal["done", "running", "stalled", "failed", "waiting"]
    shards: int = 0
    of: int = 0
    percent: int | None = None
    counts: Counts = msgspec.field(default_factory=Counts)
    generation: int = 0
    updated: datetime | None = None
    error: str = ""

    @property
    def summary(self) -> str:
        """One line for a person."""
        if self.state == "waiting":
            return f"{self.stage}: not begun"
        shards = f" ({self.shards} of {self.of} shards)" if self.of > 1 and self.state != "done" else ""
        percent = f" {self.percent} %" if self.percent is not None and self.state != "done" else ""
        rejected = f", {self.counts.rejected:,} rejected" if self.counts.rejected else ""
        stalled = f"; nothing was committed for {age_text(self.updated)}" if self.state == "stalled" else ""
        why = f": {self.error}" if self.error else stalled
        return f"{self.stage}: {self.state}{percent}{shards}, {self.counts.consumed:,} read{rejected}{why}"


class WindowStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One window of a pipeline, or (``uncovered``) an interval between its windows that no run covers.

    ``records`` is what the stage that reads it read; until that is done, an upper bound: offsets, which markers of transactions take too
    (``exact`` says which).
    """

    pipeline: str
    window: str
    state: Literal["failed", "unfinished", "planned", "uncovered", "finished"]
    topic: str = ""
    records: int = 0
    exact: bool = False
    carried: int = 0
    stages: tuple[StageStatus, ...] = ()
    updated: datetime | None = None

    @property
    def when(self) -> str:
        """The interval for a person, ``2026-11-01 04:00 → 05:00`` (UTC), or the window's name."""
        parts = self.window.removesuffix("Z").split("Z/")
        try:
            start, end = (datetime.fromisoformat(part) for part in parts)
        except ValueError:
            return self.window
        return f"{_short(start)} → {_short(end).removeprefix(f'{start:%F} ')}"

    @property
    def since(self) -> str:
        """When the interval begins, for a person, or the window's name."""
        return self.when.partition(" → ")[0]

    @property
    def age_text(self) -> str:
        """How long ago something happened to it."""
        return age_text(self.updated)

    @property
    def records_text(self) -> str:
        """How many records it has, or has at most."""
        return f"{'' if self.exact else '≤ '}{self.records:,}"


def _now() -> datetime:
    return datetime.now(UTC)


def age_text(moment: datetime | None, now: datetime | None = None) -> str:
    """How long before ``now`` (by default the time) something happened, in one unit: ``40 s``, ``3 h``; empty for what never did."""
    if moment is None:
        return ""
    seconds = max(0, int(((now or _now()) - moment).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _short(time_: datetime) -> str:
    return f"{time_:%F %H:%M}" if not time_.second else f"{time_:%F %H:%M:%S}"


def read_windows(config: KafkaConfig, *, pipeline: str = "", prefix: str = "factory") -> list[WindowStatus]:
    """Every window (of one pipeline) that the ledger knows: failed ones first, then unfinished ones, then intervals that no run covers,
    then the rest, each part newest first; none where there is no ledger.

    Raises UnavailableError without a broker.
    """
    with Cluster(config) as cluster:
        ledger = Ledger(config, cluster, prefix=prefix, pipeline=pipeline)
        if cluster.find(ledger.topic) is None:
            return []
        return windows_of(ledger.read(deadline=time.monotonic() + _LEDGER_SECONDS))


@dataclass
class _Told:
    """What the ledger says of one window."""

    plans: list[PlanRecord] = field(default_factory=list)
    records: dict[str, list[StageRecord]] = field(default_factory=dict)
    failures: dict[str, list[FailureRecord]] = field(default_factory=dict)

    @property
    def updated(self) -> datetime | None:
        """When something happened to it last."""
        moments = [r.updated_at for of in self.records.values() for r in of] + [f.at for of in self.failures.values() for f in of]
        return _moment(max([*(plan.planned_at for plan in self.plans), *moments], default=0))


def windows_of(view: LedgerView) -> list[WindowStatus]:
    """See ``read_windows``: from what was read of the ledger."""
    told: dict[tuple[str, str], _Told] = {}
    stages_of: dict[str, dict[str, None]] = {}
    pruned, judges = _Pruned(view), {(v.pipeline, v.stage) for v in view.of(VerdictRecord) if v.stage != v.judged}
    for plan in view.of(PlanRecord):
        if not plan.topic or plan.former or pruned.plan(plan, view.offset(plan.key()) or 0):
            continue
        told.setdefault((plan.pipeline, plan.window), _Told()).plans.append(plan)
    for record in view.of(StageRecord):
        if pruned.work(record):
            continue
        told.setdefault((record.pipeline, record.window), _Told()).records.setdefault(record.stage, []).append(record)
        stages_of.setdefault(record.pipeline, {})[record.stage] = None
    for failure in view.of(FailureRecord):
        if pruned.work(failure):
            continue
        told.setdefault((failure.pipeline, failure.window), _Told()).failures.setdefault(failure.stage, []).append(failure)
        if (failure.pipeline, failure.stage) not in judges:  # they leave a record where they fail: no other window waits for one
            stages_of.setdefault(failure.pipeline, {})[failure.stage] = None
    found = [_window(*key, of, stages_of.get(key[0], {})) for key, of in told.items()]
    found += _uncovered(told)
    return sorted(sorted(found, key=lambda w: w.window, reverse=True), key=lambda w: _ORDER[w.state])


class _Pruned:
    """What was pruned, whether all of its records are deleted by now or not."""

    def __init__(self, view: LedgerView) -> None:
        self._marks = {(mark.pipeline, mark.origin): mark for mark in view.of(MarkRecord)}

    def plan(self, plan: PlanRecord, offset: int) -> bool:
        """Whether a planned window was."""
        mark = self._marks.get((plan.pipeline, plan.topic))
        return mark is not None and (mark.covers(plan.interval) if plan.interval is not None else offset < mark.offset)

    def work(self, record: StageRecord | FailureRecord) -> bool:
        """Whether the window of a stage's work was."""
        mark = self._marks.get((record.pipeline, origin_of(record.scope)))
        if mark is None:
            return False
        interval = interval_of(record.window)
        begin = record.result.ledger_offset if isinstance(record, StageRecord) and record.result is not None else 0
        return mark.covers(interval) if interval is not None else 0 < begin < mark.offset


def _window(pipeline: str, window: str, told: _Told, stages: Iterable[str]) -> WindowStatus:
    plans = told.plans
    names = dict.fromkeys((*stages, *told.failures))
    statuses = tuple(_stage(name, told.records.get(name, ()), told.failures.get(name, ()), plans) for name in names)
    finished = bool(told.records) and all(s.state == "done" for s in statuses)
    failed = any(s.state == "failed" for s in statuses)
    planned = sum(max(0, r.end - r.start) for plan in plans for r in plan.ranges)
    sources = {stage for stage, of in told.records.items() if any(r.result is not None and r.result.input is None for r in of)}
    reader = next((s for s in statuses if s.state == "done" and (s.percent is not None if plans else s.stage in sources)), None)
    begun = next((s.counts.consumed for s in statuses if s.state != "waiting"), 0)
    return WindowStatus(
        pipeline=pipeline,
        window=window,
        state="failed" if failed else "finished" if finished else "unfinished" if told.records else "planned",
        topic=", ".join(sorted({plan.topic for plan in plans})),
        records=reader.counts.consumed if reader is not None else planned if plans else begun,
        exact=reader is not None,
        carried=sum(plan.carried for plan in plans),
        stages=statuses,
        updated=told.updated,
    )


def _moment(milliseconds: int) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _stage(name: str, records: Sequence[StageRecord], failures: Sequence[FailureRecord], plans: Sequence[PlanRecord]) -> StageStatus:
    """One stage over one window: all that it does of different topics, sources or mapped tasks, taken together."""
    scopes = sorted({r.scope for r in records} | {f.scope for f in failures})
    if not scopes:
        return StageStatus(name, "waiting")
    statuses = []
    for scope in scopes:
        plan = next((p for p in plans if len(plans) == 1 or p.topic == scope.partition("[")[0]), None)
        statuses.append(_part(name, [r for r in records if r.scope == scope], [f for f in failures if f.scope == scope], plan))
    return statuses[0] if len(statuses) == 1 else _together(statuses)


def _together(parts: Sequence[StageStatus]) -> StageStatus:
    worst = next(part for state in ("failed", "stalled", "running", "done") for part in parts if part.state == state)
    percents = [part.percent for part in parts if part.percent is not None]
    counts = Counts()
    for part in parts:
        counts.add(part.counts)
    return msgspec.structs.replace(
        worst,
        shards=sum(part.shards for part in parts),
        of=sum(part.of for part in parts),
        percent=min(percents) if len(percents) == len(parts) else None,
        counts=counts,
        generation=max(part.generation for part in parts),
        updated=max((part.updated for part in parts if part.updated is not None), default=None),
    )


def _part(name: str, records: Sequence[StageRecord], failures: Sequence[FailureRecord], plan: PlanRecord | None) -> StageStatus:
    of = max([*((r.updated_at, r.shard.of) for r in records), *((f.at, f.shard.of) for f in failures)])[1]
    shards = [r for r in records if r.shard.of == of]
    failure = max((f for f in failures if f.shard.of == of and _still_true(f, shards)), key=lambda f: f.at, default=None)
    counts = Counts()
    for r in shards:
        if r.result is not None:
            counts.add(r.result.counts)
        elif r.progress is not None:
            counts.add(r.progress.counts)
    done = sum(r.result is not None for r in shards)
    updated = _moment(max([r.updated_at for r in shards] + ([failure.at] if failure else []), default=0))
    finished = done == of and failure is None
    return StageStatus(
        stage=name,
        state="failed" if failure else "done" if finished else "stalled" if _stalled(updated) else "running",
        shards=done,
        of=of,
        percent=_percent(shards, plan, of),
        counts=counts,
        generation=max((r.generation for r in shards), default=0),
        updated=updated,
        error=f"{failure.error}: {failure.message}" if failure else "",
    )


def _still_true(failure: FailureRecord, shards: Sequence[StageRecord]) -> bool:
    """Whether nothing has happened to the failure's shard since: neither a commit after it, nor an end by an attempt beside it."""
    record = next((r for r in shards if r.shard == failure.shard), None)
    return record is None or record.updated_at < (failure.began if record.result is not None else failure.at)


def _stalled(updated: datetime | None) -> bool:
    return updated is not None and (_now() - updated).total_seconds() > _QUIET_SECONDS


def _uncovered(told: Mapping[tuple[str, str], _Told]) -> Iterator[WindowStatus]:
    """Intervals between a pipeline's windows that hold something and belong to none of them."""
    lanes: dict[tuple[str, str], list[tuple[Interval, PlanRecord | None]]] = {}
    for (pipeline, _), of in told.items():
        for plan in of.plans:
            if plan.interval is not None:
                lanes.setdefault((pipeline, plan.topic_id), []).append((plan.interval, plan))
        if not of.plans and (interval := _interval(of)) is not None:
            lanes.setdefault((pipeline, ""), []).append((interval, None))
    for (pipeline, _), lane in lanes.items():
        lane.sort(key=lambda entry: entry[0].start)
        for (before, earlier), (after, later) in pairwise(lane):
            waiting = _between(earlier, later)
            if after.start > before.end and waiting != 0:
                topic = earlier.topic if earlier else ""
                key = Interval(before.end, after.start).key
                yield WindowStatus(pipeline, key, "uncovered", topic=topic, records=waiting or 0, updated=None)


def _interval(told: _Told) -> Interval | None:
    return next((r.result.interval for of in told.records.values() for r in of if r.result is not None), None)


def _between(plan: PlanRecord | None, after: PlanRecord | None) -> int | None:
    """How many offsets lie between two plans on one topic (a run after a pause carries on: none); None where that is unknown."""
    if plan is None or after is None:
        return None
    ends = {r.partition: r.end for r in plan.ranges}
    return sum(max(0, r.start - ends[r.partition]) for r in after.ranges if r.partition in ends)


def _positions(record: StageRecord) -> Iterable[tuple[int, int]]:
    if record.result is None:
        return () if record.progress is None else record.progress.positions.items()
    return [(r.partition, r.end) for r in record.result.input.ranges] if record.result.input is not None else ()


def _percent(shards: Sequence[StageRecord], plan: PlanRecord | None, of: int) -> int | None:
    """Offsets passed of those planned; None where the stage reads something else than what was planned."""
    if plan is None or not shards:
        return None
    ranges = {r.partition: r for r in plan.ranges}
    passed = 0
    for record in shards:
        for partition, offset in _positions(record):
            r = ranges.get(partition)
            if r is None or not r.start <= offset <= r.end:
                return None
            passed += offset - r.start
    if len(shards) == of and all(r.result is not None for r in shards):
        return 100
    size = sum(r.end - r.start for r in ranges.values())
    return min(99, 100 * passed // size) if size else None
