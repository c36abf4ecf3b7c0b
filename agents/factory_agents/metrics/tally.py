"""Counts what the ledger tells: each record once over all starts of the server, by where the last life had been heard to."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from factory_agents.kafka.ledger import partition_of
from factory_agents.kafka.records import RECORD_VERSION
from factory_agents.kafka.view import Follower
from factory_agents.protocol import Counts, Interval, Shard
from factory_agents.telemetry.metrics import Series, Snapshot, Totals, Values

__all__ = ["LedgerTally", "Told"]


@dataclass(frozen=True)
class Told(Snapshot):
    """All that was counted up to ``positions`` of the ledger with this id, and how the windows stood then.

    ``cuts`` are the offsets of each pipeline's last cut of a topic, by pipeline, topic and topic id.
    """

    topic_id: str = ""
    positions: Mapping[int, int] = field(default_factory=dict)
    cuts: Mapping[tuple[str, str, str], tuple[int, ...]] = field(default_factory=dict)


_MOST_SHARDS = 100_000  # there is one a partition at most


class _Result(msgspec.Struct, frozen=True):
    agent: str = ""
    version: str = ""
    interval: Interval | None = None
    counts: Counts = msgspec.field(default_factory=Counts)
    seconds: float = 0.0


class _Record(msgspec.Struct, frozen=True):
    """The few fields that are counted, of whatever kind of record."""

    pipeline: str
    version: int = 1
    stage: str = ""
    scope: str = ""
    window: str = ""
    shard: Shard = Shard()
    updated_at: int = 0
    at: int = 0
    planned_at: int = 0
    epoch: int = 0
    redo: str = ""
    agent: str = ""
    error: str = ""
    result: _Result | None = None
    topic: str = ""
    topic_id: str = ""
    former: bool = False
    offsets: tuple[int, ...] = ()
    behind: int = 0
    changed: int = 0


_DECODER = msgspec.json.Decoder(_Record)


@dataclass(slots=True)
class _Standing:
    """A stage over a window: which of its shards (as bits) have records, are done, and have a failure's record."""

    of: int = 1
    begun: int = 0
    done: int = 0
    failed: int = 0
    last: int = 0
    landed: bool = False

    @property
    def whole(self) -> bool:
        return self.done == (1 << self.of) - 1


class LedgerTally(Follower):
    """Counts a ledger's records from where it was counted before (``counted``, of the topic with this id), else from its begin.

    What was counted before is read again at the start, as it tells how windows stand; it makes series of zeros.
    """

    def __init__(self, counted: Mapping[int, int] | None = None, topic_id: str = "") -> None:
        super().__init__()
        self._before = (topic_id, dict(counted or {}))
        self._from: dict[int, int] = {}
        self._partitions: dict[bytes, int] = {}
        self._totals = Totals()
        self._unreadable = self._number = 0
        self._ends: dict[tuple[str, str], tuple[int, int]] = {}
        self._clear()

    def _clear(self) -> None:
        self._standings: dict[tuple[str, str, str, str], _Standing] = {}
        self._open: dict[tuple[str, str, str, str], int] = {}
        self._plans: dict[tuple[str, str], dict[str, int]] = {}
        self._begun: dict[tuple[str, str], int] = {}
        self._cuts: dict[tuple[str, str, str], tuple[int, tuple[int, ...]]] = {}
        self._streams: dict[tuple[str, str, str], _Record] = {}
        self._versions: dict[tuple[str, str, str], tuple[int, str]] = {}

    def restart(self, topic_id: str) -> None:
        """See ``Follower.restart``: how windows stand is found out again, and nothing is counted twice."""
        if topic_id == self.topic_id:
            self._from = self._counted()
        else:
            known, counted = self._before
            self._from = counted if known == topic_id else {}
        super().restart(topic_id)
        self.read_at = time.monotonic()  # where this read is broken off, the next one goes on

    def forget(self) -> None:
        """See ``Follower.forget``; what was counted stays."""
        self._clear()

    def _counted(self) -> dict[int, int]:
        return {p: max(self._from.get(p, 0), self.positions.get(p, 0)) for p in self._from.keys() | self.positions.keys()}

    def take(self, offset: int, key: bytes, value: bytes | None) -> None:
        """See ``Follower.take``."""
        kind, _, rest = key.partition(b"|")
        if kind not in _KINDS:
            return
        pipeline = rest.partition(b"|")[0]
        partition = self._partitions.get(pipeline)
        if partition is None:
            partition = self._partitions[pipeline] = partition_of(pipeline)
        if value is None:
            self._deleted(kind, key)
            return
        counts = offset >= self._from.get(partition, 0)
        try:
            record = _DECODER.decode(value)
            readable = record.version <= RECORD_VERSION and 0 <= record.shard.index < record.shard.of <= _MOST_SHARDS
        except (msgspec.MsgspecError, ValueError, RecursionError):
            readable = False
        if readable:
            _KINDS[kind](self, record, counts)
        else:
            self._unreadable += 1

    def told(self) -> Told:
        """What came of it so far."""
        cuts = {key: offsets for key, (_, offsets) in self._cuts.items()}
        self._number += 1
        return Told(self._number, self._totals.frozen(), self._gauges(), self.topic_id, self._counted(), cuts)

    def _stage(self, record: _Record, counts: bool) -> None:
        standing = self._standing(record)
        bit = 1 << record.shard.index
        standing.begun |= bit
        if record.result is None:
            standing.done &= ~bit
        else:
            standing.done |= bit
            self._result(record, record.result, standing, counts)
        self._note(record, standing, record.updated_at)

    def _result(self, record: _Record, result: _Result, standing: _Standing, counts: bool) -> None:
        stage = (record.pipeline, record.stage)
        agent = (result.agent, *stage)
        self._totals.add("agent_success_total", agent, counts)
        self._versions[agent] = max(self._versions.get(agent, (0, "")), (record.updated_at, result.version))
        for name, amount in result.counts.told().items():
            self._totals.count(agent, name, amount * counts)
        self._totals.observe("factory_run_seconds", agent, result.seconds, counts)
        if standing.whole:
            self._finished(record, result.interval, standing, counts)

    def _finished(self, record: _Record, interval: Interval | None, standing: _Standing, counts: bool) -> None:
        """All shards of a stage over a window are done; it has landed if they are so for the first time."""
        stage = (record.pipeline, record.stage)
        self._totals.add("factory_windows_finished_total", stage, counts)
        first = not (standing.landed or record.epoch or record.redo)
        standing.landed = True
        if interval is None:
            return
        self._ends[stage] = max(self._ends.get(stage, (0, 0)), (interval.end_ms, interval.end_ms - interval.start_ms))
        self._totals.observe("factory_window_landing_seconds", stage, max(0, record.updated_at - interval.end_ms) / 1000, counts and first)

    def _failure(self, record: _Record, counts: bool) -> None:
        standing = self._standing(record)
        standing.failed |= 1 << record.shard.index
        self._note(record, standing, record.at)

    def _attempt(self, record: _Record, counts: bool) -> None:
        self._totals.add("agent_failure_total", (record.agent, record.pipeline, record.stage, record.error), counts)

    def _plan(self, record: _Record, counts: bool) -> None:
        if record.topic and not record.former:
            self._plans.setdefault((record.pipeline, record.window), {})[record.topic_id] = record.planned_at

    def _cut(self, record: _Record, counts: bool) -> None:
        key = (record.pipeline, record.topic, record.topic_id)
        have = self._cuts.get(key)
        if have is None or record.at >= have[0]:
            self._cuts[key] = (record.at, record.offsets)

    def _stream(self, record: _Record, counts: bool) -> None:
        self._streams[record.pipeline, record.stage, record.scope] = record

    def _standing(self, record: _Record) -> _Standing:
        key = (record.pipeline, record.stage, record.scope, record.window)
        standing = self._standings.get(key)
        if standing is None:
            standing = self._standings[key] = _Standing()
            window = (record.pipeline, record.window)
            self._begun[window] = self._begun.get(window, 0) + 1
        if standing.of != record.shard.of:  # another plan
            standing.of, standing.done = record.shard.of, 0
        return standing

    def _note(self, record: _Record, standing: _Standing, at: int) -> None:
        key = (record.pipeline, record.stage, record.scope, record.window)
        standing.last = max(standing.last, at)
        if standing.whole:
            self._open.pop(key, None)
        else:
            self._open[key] = standing.last

    def _deleted(self, kind: bytes, key: bytes) -> None:
        """A record was pruned, or taken back."""
        parts = key.decode(errors="replace").split("|")
        if kind == b"plan" and len(parts) == 4:
            self._forget_plan((parts[1], parts[3]), parts[2])
        elif kind == b"stream" and len(parts) == 4:
            self._streams.pop((parts[1], parts[2], parts[3]), None)
        elif kind in (b"stage", b"failure") and len(parts) == 6:
            _, pipeline, stage, scope, window, shard = parts
            index = shard.partition("of")[0]
            if index.isdecimal() and int(index) < _MOST_SHARDS:
                self._forget_work((pipeline, stage, scope, window), 1 << int(index), kind)

    def _forget_plan(self, window: tuple[str, str], topic_id: str) -> None:
        plans = self._plans.get(window, {})
        plans.pop(topic_id, None)
        if not plans:
            self._plans.pop(window, None)

    def _forget_work(self, key: tuple[str, str, str, str], bit: int, kind: bytes) -> None:
        standing = self._standings.get(key)
        if standing is None:
            return
        if kind == b"failure":
            standing.failed &= ~bit
        else:
            standing.begun &= ~bit
            standing.done &= ~bit
        if not standing.begun | standing.failed:
            del self._standings[key]
            self._open.pop(key, None)
            window = (key[0], key[3])
            self._begun[window] -= 1
            if not self._begun[window]:
                del self._begun[window]

    def _gauges(self) -> Values:
        gauges: dict[Series, tuple[float, ...]] = {("factory_ledger_unreadable_records", ()): (float(self._unreadable),)}
        resting = self._resting()
        known = {(pipeline, stage) for pipeline, stage, _, _ in self._standings} | {(pipeline, "") for pipeline, _ in self._plans}
        for stage in known:
            found = resting.get(stage, [])
            gauges["factory_windows_open", stage] = (float(len(found)),)
            if found:
                gauges["factory_window_open_updated_timestamp_seconds", stage] = (min(found) / 1000,)
        for stage, (end, length) in self._ends.items():
            if stage not in known:  # all of it was pruned
                continue
            gauges["factory_window_end_timestamp_seconds", stage] = (end / 1000,)
            gauges["factory_window_length_seconds", stage] = (length / 1000,)
        for agent, (_, version) in self._versions.items():
            if agent[1:] in known:
                gauges["factory_agent_info", (*agent, version)] = (1.0,)
        for (pipeline, stage_name, _), stream in self._streams.items():
            labels = (pipeline, stage_name)
            gauges["factory_replication_behind_bytes", labels] = (float(stream.behind),)
            gauges["factory_replication_read_timestamp_seconds", labels] = (stream.at / 1000,)
            gauges["factory_replication_changed_timestamp_seconds", labels] = (stream.changed / 1000,)
        return gauges

    def _resting(self) -> dict[tuple[str, str], list[int]]:
        """When something was said last of each open window, by pipeline and stage; without a stage those that none has begun."""
        resting: dict[tuple[str, str], list[int]] = {}
        for (pipeline, stage, _, _), last in self._open.items():
            resting.setdefault((pipeline, stage), []).append(last)
        for (pipeline, window), plans in self._plans.items():
            if (pipeline, window) not in self._begun:
                resting.setdefault((pipeline, ""), []).append(max(plans.values()))
        return resting


_KINDS = {
    b"stage": LedgerTally._stage,
    b"failure": LedgerTally._failure,
    b"attempt": LedgerTally._attempt,
    b"plan": LedgerTally._plan,
    b"cut": LedgerTally._cut,
    b"stream": LedgerTally._stream,
}
