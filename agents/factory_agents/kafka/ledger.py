"""The ledger: one compacted topic that holds every cut, plan, progress and result, read before and written with the work it speaks of.

A pipeline's records lie in one partition, so that its writers are ordered and a reader needs no other. The record key is the kind and
what it is about; the last record of a key counts. Offsets of that partition serve as the pipeline's logical clock (``generation``).
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable
from typing import TypeVar, cast

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from factory_agents.errors import ConfigurationError, DeadlineError
from factory_agents.kafka.config import KafkaConfig, is_transient, kafka_error
from factory_agents.kafka.messages import Message
from factory_agents.kafka.records import (
    AttemptRecord,
    CutRecord,
    FailureRecord,
    LedgerRecord,
    MarkRecord,
    PipelineRecord,
    PlanRecord,
    Progress,
    ReplayRecord,
    StageRecord,
    StoredResult,
    encode_record,
    failure_key,
    shards_key,
    stage_key,
)
from factory_agents.kafka.topics import Cluster
from factory_agents.kafka.view import Follower, LedgerView, Wanted, about_plans, everything
from factory_agents.protocol import AgentResult, Work

__all__ = [
    "LEDGER_PARTITIONS",
    "LEDGER_SETTINGS",
    "AttemptRecord",
    "CutRecord",
    "FailureRecord",
    "Ledger",
    "LedgerRecord",
    "LedgerView",
    "MarkRecord",
    "PipelineRecord",
    "PlanRecord",
    "Progress",
    "ReplayRecord",
    "StageRecord",
    "StoredResult",
    "Wanted",
    "about_plans",
    "failure_key",
    "ledger_topic",
    "partition_of",
    "read_result",
    "read_stage",
    "shards_key",
    "stage_key",
]

_Follower = TypeVar("_Follower", bound=Follower)

_FRESH_SECONDS = 12 * 3600.0
"""How long a follower may rest: what was deleted meanwhile is told for a day (``delete.retention.ms``), then it isn't there any more."""

LEDGER_PARTITIONS = 12
LEDGER_SETTINGS = {
    "cleanup.policy": "compact",
    "segment.bytes": "16777216",  # the segment that is written to is never compacted: what was pruned of it is read by everybody
    "segment.ms": "86400000",
    "max.compaction.lag.ms": "86400000",  # deletions are small beside what they delete: by the dirty ratio alone they would wait for days
    "min.cleanable.dirty.ratio": "0.3",
}


def ledger_topic(prefix: str) -> str:
    """The ledger's topic for a prefix: ``factory.ledger`` by default."""
    return f"{prefix}.ledger"


def partition_of(pipeline: bytes) -> int:
    """In which partition all of a pipeline's records lie."""
    return zlib.crc32(pipeline) % LEDGER_PARTITIONS


class Ledger:
    """Reads and writes one pipeline's records (all pipelines' with ``pipeline=""``: reading only)."""

    def __init__(self, config: KafkaConfig, cluster: Cluster, *, prefix: str, pipeline: str) -> None:
        self._config = config
        self._cluster = cluster
        self.topic = ledger_topic(prefix)
        self.pipeline = pipeline
        self.partition = partition_of(pipeline.encode())

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

    def read(self, *, start: int = 0, deadline: float, wanted: Wanted = everything) -> LedgerView:
        """Everything committed up to the partition's high watermark of now; waits for open transactions below it.

        ``deadline`` is a ``time.monotonic()`` value; raises DeadlineError past it.
        """
        view = LedgerView(self.pipeline, wanted)
        self._follow(view, start, deadline, stable=False)
        return view

    def read_stable(self, *, deadline: float, wanted: Wanted = everything) -> LedgerView:
        """What is committed and to be seen now, waiting for nobody: enough for what never changes once it is there, as plans don't."""
        view = LedgerView(self.pipeline, wanted)
        self._follow(view, 0, deadline, stable=True)
        return view

    def follow(self, follower: Follower, *, start: int = 0, deadline: float, stable: bool = False) -> None:
        """Have a follower take what came since it was here last: as ``read`` does it, or with ``stable`` as ``read_stable`` does.

        It begins again with another topic of this name, and when it has rested for too long.
        """
        topic_id = self._cluster.topic(self.topic).id
        if follower.topic_id != topic_id or time.monotonic() - follower.read_at > _FRESH_SECONDS:
            follower.restart(topic_id)
        self._follow(follower, start, deadline, stable=stable)
        follower.read_at = time.monotonic()

    def _follow(self, follower: Follower, start: int, deadline: float, *, stable: bool) -> None:
        partitions = self._partitions()
        ask = self._cluster.stable_offset if stable else self._cluster.high_watermark
        ends = ask(self.topic, partitions)
        missing = [p for p in partitions if p not in follower.positions]
        starts = self._cluster.log_start(self.topic, missing)
        follower.positions |= {p: max(start, starts[p]) for p in missing}
        follower.end = ends[partitions[0]]
        todo = {p: end for p, end in ends.items() if follower.positions[p] < end}
        if todo:
            consumer = self._config.consumer(auto_offset_reset="earliest")
            try:
                consumer.assign([TopicPartition(self.topic, p, follower.positions[p]) for p in todo])
                self._drain(consumer, todo, follower, deadline)
            finally:
                consumer.close()

    def _partitions(self) -> list[int]:
        return [self.partition] if self.pipeline else list(range(LEDGER_PARTITIONS))

    def _drain(self, consumer: Consumer, todo: dict[int, int], follower: Follower, deadline: float) -> None:
        while todo:
            for message in cast("list[Message]", consumer.consume(10_000, 0.02)):
                error, partition, offset = message.error(), message.partition(), message.offset()
                end = todo.get(partition)
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    if not is_transient(error):
                        raise kafka_error(error, f"reading the ledger {self.topic}-{partition}", topic=f"READ on topic {self.topic!r}")
                    continue
                if end is None:
                    continue
                if error is None and offset < end:
                    follower.take(offset, message.key() or b"", message.value())
                    follower.positions[partition] = offset + 1
                if offset >= (end if error is not None else end - 1):
                    follower.positions[partition] = end
                    del todo[partition]
            if todo and time.monotonic() > deadline:
                raise DeadlineError(
                    f"the ledger {self.topic} could not be read to its end in time: a transaction on partition {next(iter(todo))} is still "
                    f"open, or its broker is down; a transaction ends with its producer or after its timeout; try again then"
                )

    def produce(self, producer: Producer, records: Iterable[LedgerRecord]) -> None:
        """Put records into the producer's open transaction."""
        for record in records:
            producer.produce(self.topic, encode_record(record), record.key().encode(), partition=self.partition)

    def erase(self, producer: Producer, keys: Iterable[bytes]) -> None:
        """Put deletions of records into the producer's open transaction."""
        for key in keys:
            producer.produce(self.topic, None, key, partition=self.partition)


def read_stage(config: KafkaConfig, work: Work, *, prefix: str = "factory", start: int = 0, timeout: float = 60.0) -> StageRecord | None:
    """What the ledger says of a piece of work, in progress or finished, or None; ``start``: where to begin to look."""
    with Cluster(config) as cluster:
        ledger = Ledger(config, cluster, prefix=prefix, pipeline=work.pipeline)
        if cluster.find(ledger.topic) is None:
            return None
        key = stage_key(work)
        record = ledger.read(start=start, deadline=time.monotonic() + timeout, wanted=key.encode().__eq__).get(key)
        return record if isinstance(record, StageRecord) else None


def read_result(config: KafkaConfig, work: Work, *, prefix: str = "factory", timeout: float = 60.0) -> AgentResult | None:
    """The finished result in the ledger for a piece of work, or None."""
    record = read_stage(config, work, prefix=prefix, timeout=timeout)
    return record.answer() if record is not None else None
