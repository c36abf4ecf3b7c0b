"""The ledger: one compacted topic that holds every cut, plan, progress and result, read before and written with the work it speaks of.

A pipeline's records lie in one partition, so that its writers are ordered and a reader needs no other. The record key is the kind and
what it is about; the last record of a key counts. Offsets of that partition serve as the pipeline's logical clock (``generation``).
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

import msgspec
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from factory_agents.errors import ConfigurationError, DeadlineError
from factory_agents.kafka.config import KafkaConfig, kafka_error, passing
from factory_agents.kafka.messages import Message
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import AgentResult, Counts, Interval, Order, PartitionRange, Shard, Work

__all__ = [
    "LEDGER_PARTITIONS",
    "LEDGER_SETTINGS",
    "CutRecord",
    "FailureRecord",
    "Ledger",
    "LedgerRecord",
    "LedgerView",
    "PipelineRecord",
    "PlanRecord",
    "Progress",
    "ReplayRecord",
    "StageRecord",
    "Wanted",
    "about_plans",
    "failure_key",
    "ledger_topic",
    "read_result",
]

LEDGER_PARTITIONS = 12
LEDGER_SETTINGS = {"cleanup.policy": "compact", "segment.bytes": "67108864", "min.cleanable.dirty.ratio": "0.3"}
_SEPARATOR = "|"


class PipelineRecord(msgspec.Struct, frozen=True, tag="pipeline", tag_field="kind"):
    """How a pipeline's windows are made, fixed by its first plan."""

    pipeline: str
    mode: Literal["intervals", "since_last"]

    def key(self) -> str:
        """The record key."""
        return _SEPARATOR.join(("pipeline", self.pipeline))


class CutRecord(msgspec.Struct, frozen=True, omit_defaults=True, tag="cut", tag_field="kind"):
    """A time on a topic as an offset per partition (by position), fixed once and for good.

    ``at`` is the time in milliseconds, or the moment of planning for a cut that a run (``run_key``) made. ``scheduled`` cuts are ends of
    scheduled intervals, which a later run may carry on from; a cut that a manual run made gets that mark when a scheduled run asks for it.
    """

    pipeline: str
    topic: str
    topic_id: str
    at: int
    offsets: tuple[int, ...]
    run_key: str = ""
    scheduled: bool = False

    def key(self) -> str:
        """The record key."""
        return _SEPARATOR.join(("cut", self.pipeline, self.topic_id, self.run_key or str(self.at)))


class PlanRecord(msgspec.Struct, frozen=True, omit_defaults=True, tag="plan", tag_field="kind"):
    """A window that was planned, whether anything ran over it yet or not.

    ``carried`` and ``gap`` as in Window. ``replaces`` is the id of the topic that was deleted with what it held, which was accepted;
    ``former`` says that the window stays what it was on that one, as this one holds nothing for it. Of a source ``topic`` is empty, and
    ``topic_id`` names the stage that reads it.
    """

    pipeline: str
    topic: str
    topic_id: str
    window: str
    ranges: tuple[PartitionRange, ...]
    interval: Interval | None = None
    carried: int = 0
    lost: tuple[PartitionRange, ...] = ()
    gap: int = 0
    replaces: str = ""
    former: bool = False
    planned_at: int = 0

    def key(self) -> str:
        """The record key."""
        return _SEPARATOR.join(("plan", self.pipeline, self.topic_id, self.window))


class Progress(msgspec.Struct, omit_defaults=True):
    """How far an unfinished stage is: next offset per input partition (or rows of a source), what it wrote so far, and what was lost."""

    positions: dict[int, int] = {}
    rows: int = 0
    outputs: dict[int, tuple[int, int, int]] = {}
    dead: dict[int, tuple[int, int, int]] = {}
    counts: Counts = msgspec.field(default_factory=Counts)
    read: dict[int, int] = {}
    lost: tuple[PartitionRange, ...] = ()


class StageRecord(msgspec.Struct, frozen=True, omit_defaults=True, tag="stage", tag_field="kind"):
    """A shard of a stage over a window: in progress, or finished with its result.

    ``scope`` tells works over the same window apart (``AgentRun.scope``). ``redo`` is the run that told the work in progress to be done
    again: its own retries resume it. ``orders`` are those that the work obeyed, by task instance; ``epoch`` counts how many of them
    told it to begin again.
    """

    pipeline: str
    stage: str
    window: str
    shard: Shard
    fingerprint: str
    generation: int
    scope: str = ""
    epoch: int = 0
    updated_at: int = 0
    redo: str = ""
    orders: tuple[Order, ...] = ()
    progress: Progress | None = None
    result: AgentResult | None = None

    def key(self) -> str:
        """The record key."""
        return stage_key(Work(self.pipeline, self.stage, self.window, self.shard, self.scope))


class ReplayRecord(msgspec.Struct, frozen=True, omit_defaults=True, tag="replay", tag_field="kind"):
    """Dead letters that one transaction put back into a topic: their offsets by partition.

    ``at`` (milliseconds) says when, ``first`` (``partition@offset``) names one of them.
    """

    pipeline: str
    topic_id: str
    to: str
    offsets: dict[int, list[int]]
    at: int
    first: str

    def key(self) -> str:
        """The record key: its own for each transaction."""
        return _SEPARATOR.join(("replay", self.pipeline, self.topic_id, f"{self.at}.{self.first}"))


class FailureRecord(msgspec.Struct, frozen=True, omit_defaults=True, tag="failure", tag_field="kind"):
    """The last attempt at a stage's shard failed: why, when it began and when it ended (milliseconds).

    For whoever looks, no more: what is done or to be resumed stands in StageRecords. One of these that began before the shard was
    finished says nothing any more.
    """

    pipeline: str
    stage: str
    window: str
    shard: Shard
    began: int
    at: int
    error: str
    message: str
    retriable: bool = False
    run_id: str = ""
    scope: str = ""

    def key(self) -> str:
        """The record key."""
        return failure_key(Work(self.pipeline, self.stage, self.window, self.shard, self.scope))


def _work_key(kind: str, work: Work) -> str:
    return _SEPARATOR.join((kind, work.pipeline, work.stage, work.scope, work.window, ""))


def shards_key(work: Work) -> str:
    """What the record keys of all shards of a work's stage over its window begin with (and those of windows with a longer name)."""
    return _work_key("stage", work)


def stage_key(work: Work) -> str:
    """The record key of what was done."""
    return shards_key(work) + work.shard.key


def failure_key(work: Work) -> str:
    """The record key of the last failure."""
    return _work_key("failure", work) + work.shard.key


LedgerRecord: TypeAlias = PipelineRecord | CutRecord | PlanRecord | StageRecord | ReplayRecord | FailureRecord
_decoder = msgspec.json.Decoder(LedgerRecord)


def ledger_topic(prefix: str) -> str:
    """The ledger's topic for a prefix: ``factory.ledger`` by default."""
    return f"{prefix}.ledger"


Wanted: TypeAlias = Callable[[bytes], bool]
"""Which records a reader needs, by their keys: decoding one costs fifteen times as much as passing it over."""


def _everything(_: bytes) -> bool:
    return True


def about_plans(key: bytes) -> bool:
    """What planners need: cuts and plans, not what stages did, which are most of a ledger."""
    return not key.startswith((b"stage" + _SEPARATOR.encode(), b"failure" + _SEPARATOR.encode()))


@dataclass
class LedgerView:
    """What a read of the ledger found, for one pipeline: the last record of each key with its offset, and the end of the read."""

    records: dict[str, tuple[int, LedgerRecord]] = field(default_factory=dict)
    end: int = 0

    def of(self, type_: type[Any]) -> list[Any]:
        """All records of one type, oldest first."""
        return [r for _, r in sorted(self.records.values(), key=lambda item: item[0]) if isinstance(r, type_)]

    def get(self, key: str) -> LedgerRecord | None:
        """The last record of a key."""
        found = self.records.get(key)
        return None if found is None else found[1]

    def offset(self, key: str) -> int | None:
        """Where the last record of a key lies."""
        found = self.records.get(key)
        return None if found is None else found[0]


class Ledger:
    """Reads and writes one pipeline's records (all pipelines' with ``pipeline=""``: reading only)."""

    def __init__(self, config: KafkaConfig, cluster: Cluster, *, prefix: str, pipeline: str) -> None:
        self._config = config
        self._cluster = cluster
        self.topic = ledger_topic(prefix)
        self.pipeline = pipeline
        self.partition = zlib.crc32(pipeline.encode()) % LEDGER_PARTITIONS

    def ensure(self) -> None:
        """Create the topic if it is absent; ConfigurationError where it has too few partitions, or a policy that deletes records."""
        facts = self._cluster.ensure(self.topic, LEDGER_PARTITIONS, settings=LEDGER_SETTINGS)
        if facts.partitions < LEDGER_PARTITIONS:
            raise ConfigurationError(
                f"topic {self.topic!r} has {facts.partitions} partitions, the ledger needs {LEDGER_PARTITIONS}; "
                f"add partitions before anything is written to it"
            )
        policy = self._cluster.settings(self.topic).get("cleanup.policy", "compact")
        if policy != LEDGER_SETTINGS["cleanup.policy"]:
            raise ConfigurationError(
                f"topic {self.topic!r} has cleanup.policy={policy}, the ledger needs compact: what was planned and done would be deleted, "
                f"and done again; set it (factory topics apply --fix, or kafka-configs)"
            )

    def read(self, *, start: int = 0, deadline: float, wanted: Wanted = _everything) -> LedgerView:
        """Everything committed up to the partition's high watermark of now; waits for open transactions below it.

        ``deadline`` is a ``time.monotonic()`` value; raises DeadlineError past it.
        """
        return self._read(start, self._cluster.high_watermark(self.topic, self._partitions()), deadline, wanted)

    def glance(self, *, deadline: float, wanted: Wanted = _everything) -> LedgerView:
        """What is committed and to be seen now, waiting for nobody: enough for what never changes once it is there, as plans don't."""
        return self._read(0, self._cluster.stable_offset(self.topic, self._partitions()), deadline, wanted)

    def _partitions(self) -> list[int]:
        return [self.partition] if self.pipeline else list(range(LEDGER_PARTITIONS))

    def _read(self, start: int, ends: dict[int, int], deadline: float, wanted: Wanted) -> LedgerView:
        partitions = list(ends)
        starts = self._cluster.log_start(self.topic, partitions)
        view = LedgerView(end=ends[partitions[0]])
        todo = {p: ends[p] for p in partitions if max(start, starts[p]) < ends[p]}
        if not todo:
            return view
        consumer = self._config.consumer(auto_offset_reset="earliest")
        try:
            consumer.assign([TopicPartition(self.topic, p, max(start, starts[p])) for p in todo])
            self._drain(consumer, todo, view, deadline, wanted)
        finally:
            consumer.close()
        return view

    def _drain(self, consumer: Consumer, todo: dict[int, int], view: LedgerView, deadline: float, wanted: Wanted) -> None:
        prefix = f"{_SEPARATOR}{self.pipeline}{_SEPARATOR}".encode() if self.pipeline else b""
        while todo:
            for message in cast("list[Message]", consumer.consume(10_000, 0.02)):
                error, partition = message.error(), message.partition()
                end = todo.get(partition)
                if error is not None:
                    if error.code() != KafkaError._PARTITION_EOF and not passing(error):
                        raise kafka_error(error, f"reading the ledger {self.topic}-{partition}")
                    if error.code() == KafkaError._PARTITION_EOF and end is not None and message.offset() >= end:
                        del todo[partition]
                    continue
                if end is None:
                    continue
                if message.offset() < end:
                    self._add(view, message, prefix, wanted)
                if message.offset() >= end - 1:
                    del todo[partition]
            if todo and time.monotonic() > deadline:
                raise DeadlineError(
                    f"the ledger {self.topic} could not be read to its end in time: a transaction on partition {next(iter(todo))} is still "
                    f"open, or its broker is down; a transaction ends with its producer or after its timeout; try again then"
                )

    def _add(self, view: LedgerView, message: Message, prefix: bytes, wanted: Wanted) -> None:
        key = message.key() or b""
        if (prefix and prefix not in key + b"|") or not wanted(key):
            return
        value = message.value()
        if value is None:  # somebody deleted the record
            view.records.pop(key.decode(errors="replace"), None)
            return
        try:
            record = _decoder.decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"ledger record {self.topic}-{message.partition()}@{message.offset()}: not one this version can read ({error}); "
                f"was it written by a newer release?"
            ) from error
        if not self.pipeline or record.pipeline == self.pipeline:
            view.records[record.key()] = (message.offset(), record)

    def produce(self, producer: Producer, records: Iterable[LedgerRecord]) -> None:
        """Put records into the producer's open transaction."""
        for record in records:
            producer.produce(self.topic, msgspec.json.encode(record), record.key().encode(), partition=self.partition)


def read_result(config: KafkaConfig, work: Work, *, prefix: str = "factory", timeout: float = 60.0) -> AgentResult | None:
    """The finished result that stands in the ledger for a piece of work, or None."""
    with Cluster(config) as cluster:
        ledger = Ledger(config, cluster, prefix=prefix, pipeline=work.pipeline)
        if cluster.find(ledger.topic) is None:
            return None
        key = stage_key(work)
        record = ledger.read(deadline=time.monotonic() + timeout, wanted=key.encode().__eq__).get(key)
        return record.result if isinstance(record, StageRecord) else None
