"""The ledger: one compacted topic that holds every cut, plan, progress and result, read before and written with the work it speaks of.

A pipeline's records lie in one partition, so that its writers are ordered and a reader needs no other. The record key is the kind and
what it is about; the last record of a key counts. Offsets of that partition serve as the pipeline's logical clock (``generation``).
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable
from typing import TypeVar

from confluent_kafka import Producer

from factory_agents.errors import ConfigurationError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.followed import FollowedTopic
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
    StreamRecord,
    encode_record,
    failure_key,
    shards_key,
    stage_key,
)
from factory_agents.kafka.topics import Cluster
from factory_agents.kafka.view import ABOUT_PLANS, EVERYTHING, Follower, LedgerView, Wanted
from factory_agents.protocol import AgentResult, Work

__all__ = [
    "ABOUT_PLANS",
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
    "StreamRecord",
    "Wanted",
    "failure_key",
    "ledger_topic",
    "partition_of",
    "read_result",
    "read_stage",
    "shards_key",
    "stage_key",
]

_Follower = TypeVar("_Follower", bound=Follower)

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


class Ledger(FollowedTopic):
    """Reads and writes one pipeline's records (all pipelines' with ``pipeline=""``: reading only)."""

    def __init__(self, config: KafkaConfig, cluster: Cluster, *, prefix: str, pipeline: str) -> None:
        self.pipeline = pipeline
        self.partition = partition_of(pipeline.encode())
        partitions = [self.partition] if pipeline else range(LEDGER_PARTITIONS)
        super().__init__(config, cluster, ledger_topic(prefix), partitions, kind="ledger")

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

    def read(self, *, start: int = 0, deadline: float, wanted: Wanted = EVERYTHING) -> LedgerView:
        """Everything committed up to the partition's high watermark of now; waits for open transactions below it.

        ``deadline`` is a ``time.monotonic()`` value; raises DeadlineError past it.
        """
        view = LedgerView(self.pipeline, wanted)
        self._read_on(view, start, deadline, stable=False)
        return view

    def read_stable(self, *, deadline: float, wanted: Wanted = EVERYTHING) -> LedgerView:
        """What is committed and to be seen now, waiting for nobody: enough for what never changes once it is there, as plans don't."""
        view = LedgerView(self.pipeline, wanted)
        self._read_on(view, 0, deadline, stable=True)
        return view

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
        record = ledger.read(start=start, deadline=time.monotonic() + timeout, wanted=(key.encode(),)).get(key)
        return record if isinstance(record, StageRecord) else None


def read_result(config: KafkaConfig, work: Work, *, prefix: str = "factory", timeout: float = 60.0) -> AgentResult | None:
    """The finished result in the ledger for a piece of work, or None."""
    record = read_stage(config, work, prefix=prefix, timeout=timeout)
    return record.answer() if record is not None else None
