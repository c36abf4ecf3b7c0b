"""What the ledger says of windows: which were planned, and how far each stage over them is."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.ledger import Ledger, LedgerView, PlanRecord, StageRecord
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import Counts

__all__ = ["StageStatus", "WindowStatus", "read_windows", "windows_of"]

_LEDGER_SECONDS = 120.0


class StageStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far one stage over one window is, its shards taken together.

    ``state``: ``waiting`` where the pipeline's other windows have this stage and this one does not yet. ``percent`` is of the window's
    offsets, where the stage reads what was planned. ``generation`` is the newest shard's.
    """

    stage: str
    state: Literal["done", "running", "waiting"]
    shards: int = 0
    of: int = 0
    percent: int | None = None
    counts: Counts = msgspec.field(default_factory=Counts)
    generation: int = 0
    updated: datetime | None = None

    @property
    def summary(self) -> str:
        """One line for a person."""
        if self.state == "waiting":
            return f"{self.stage}: not begun"
        shards = f" ({self.shards} of {self.of} shards)" if self.of > 1 and self.state != "done" else ""
        percent = f" {self.percent} %" if self.percent is not None and self.state == "running" else ""
        rejected = f", {self.counts.rejected:,} rejected" if self.counts.rejected else ""
        return f"{self.stage}: {self.state}{percent}{shards}, {self.counts.consumed:,} read{rejected}"


class WindowStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One window of a pipeline. ``records`` is an upper bound (offsets) where it was planned on a topic, else what its first stage read."""

    pipeline: str
    window: str
    state: Literal["planned", "unfinished", "finished"]
    topic: str = ""
    records: int = 0
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
    def age_text(self) -> str:
        """How long ago something happened to it."""
        if self.updated is None:
            return ""
        seconds = max(0, int((datetime.now(UTC) - self.updated).total_seconds()))
        for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
            if seconds >= 2 * size:
                return f"{seconds // size} {unit}"
        return f"{seconds} s"


def _short(time_: datetime) -> str:
    return f"{time_:%F %H:%M}" if not time_.second else f"{time_:%F %H:%M:%S}"


def read_windows(config: KafkaConfig, *, pipeline: str = "", prefix: str = "factory") -> list[WindowStatus]:
    """Every window (of one pipeline) that the ledger knows, unfinished ones first, each part newest first; none where there is no ledger.

    Raises UnavailableError without a broker.
    """
    with Cluster(config) as cluster:
        ledger = Ledger(config, cluster, prefix=prefix, pipeline=pipeline)
        if cluster.find(ledger.topic) is None:
            return []
        return windows_of(ledger.read(deadline=time.monotonic() + _LEDGER_SECONDS))


def windows_of(view: LedgerView) -> list[WindowStatus]:
    """See ``read_windows``: from what was read of the ledger."""
    plans: dict[tuple[str, str], PlanRecord] = {(p.pipeline, p.window): p for p in view.of(PlanRecord)}
    records: dict[tuple[str, str], dict[str, list[StageRecord]]] = {key: {} for key in plans}
    stages_of: dict[str, dict[str, None]] = {}
    for record in view.of(StageRecord):
        records.setdefault((record.pipeline, record.window), {}).setdefault(record.stage, []).append(record)
        stages_of.setdefault(record.pipeline, {})[record.stage] = None
    found = [_window(*key, plans.get(key), of, stages_of.get(key[0], {})) for key, of in records.items()]
    return sorted(sorted(found, key=lambda w: w.window, reverse=True), key=lambda w: w.state == "finished")


def _window(
    pipeline: str, window: str, plan: PlanRecord | None, begun: dict[str, list[StageRecord]], stages: Iterable[str]
) -> WindowStatus:
    statuses = tuple(_stage(name, begun[name], plan) if name in begun else StageStatus(name, "waiting") for name in stages)
    finished = bool(begun) and all(s.state == "done" for s in statuses)
    updated = max([0 if plan is None else plan.planned_at, *(r.updated_at for of in begun.values() for r in of)])
    first = next((s.counts.consumed for s in statuses if s.state != "waiting"), 0)
    return WindowStatus(
        pipeline=pipeline,
        window=window,
        state="finished" if finished else "unfinished" if begun else "planned",
        topic=plan.topic if plan is not None else "",
        records=sum(max(0, r.end - r.start) for r in plan.ranges) if plan is not None else first,
        carried=plan.carried if plan is not None else 0,
        stages=statuses,
        updated=datetime.fromtimestamp(updated / 1000, UTC) if updated else None,
    )


def _stage(name: str, records: Sequence[StageRecord], plan: PlanRecord | None) -> StageStatus:
    of = max(records, key=lambda r: r.updated_at).shard.of
    shards = [r for r in records if r.shard.of == of]
    done = [r for r in shards if r.result is not None]
    counts = Counts()
    for r in shards:
        if r.result is not None:
            counts.add(r.result.counts)
        elif r.progress is not None:
            counts.add(r.progress.counts)
    finished = len(done) == of
    updated = max(r.updated_at for r in shards)
    return StageStatus(
        stage=name,
        state="done" if finished else "running",
        shards=len(done),
        of=of,
        percent=100 if finished else _percent(shards, plan),
        counts=counts,
        generation=max(r.generation for r in shards),
        updated=datetime.fromtimestamp(updated / 1000, UTC) if updated else None,
    )


def _positions(record: StageRecord) -> Iterable[tuple[int, int]]:
    if record.result is None:
        return () if record.progress is None else record.progress.positions.items()
    return [(r.partition, r.end) for r in record.result.input.ranges] if record.result.input is not None else ()


def _percent(shards: Sequence[StageRecord], plan: PlanRecord | None) -> int | None:
    """Offsets passed of those planned; None where the stage reads something else than what was planned."""
    if plan is None:
        return None
    ranges = {r.partition: r for r in plan.ranges}
    passed = 0
    for record in shards:
        for partition, offset in _positions(record):
            r = ranges.get(partition)
            if r is None or not r.start <= offset <= r.end:
                return None
            passed += offset - r.start
    size = sum(r.end - r.start for r in ranges.values())
    return min(99, 100 * passed // size) if size else None
