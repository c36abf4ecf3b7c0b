"""Dead letters as tests make them: written by hand, with a ledger that vouches for them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from confluent_kafka import Producer

from factory_agents.kafka.ledger import Ledger, StageRecord, StoredResult
from factory_agents.kafka.writer import TransactionalWriter
from factory_agents.protocol import Manifest, PartitionRange, Shard
from factory_agents.runtime.dead_letters import Letter, LetterTopic, Selection
from factory_agents.runtime.outputs import DEAD_LETTER_HEADER, DeadLetter
from tests.support.runs import Rec, Runs

EVERY = Selection()


def letter(error: str = "broken", rule: str = "r", stage: str = "s", **more: Any) -> DeadLetter:
    return DeadLetter(error, rule, "p", stage, "agent", "1", **{"window": "w", **more})


def put(
    runs: Runs, topic: str, letters: Sequence[tuple[DeadLetter, bytes | None]], writer: str = "", partitions: int = 2, at: int = 0
) -> None:
    """Write letters one after another round a topic's partitions, under their stage's name or another."""
    producer = Producer({"bootstrap.servers": runs.bootstrap})
    now = at or time.time_ns() // 1_000_000 - len(letters)
    for i, (why, value) in enumerate(letters):
        headers: list[tuple[str, Any]] = [
            ("own", b"kept"),
            ("factory-writer", (writer or f"{why.stage}/f/1").encode()),
            (DEAD_LETTER_HEADER, msgspec.json.encode(why)),
        ]
        producer.produce(topic, value, key=f"k{i}", partition=i % partitions, headers=headers, timestamp=now + i)
    assert producer.flush(60) == 0


def vouch(runs: Runs, topic: str, stage: str = "s", *, read: Manifest | None = None, origin: str = "", **more: Any) -> None:
    """Have the ledger say that a stage wrote what the topic holds under its name now."""
    writer = f"{stage}/f/1"
    found = [r for r in runs.everything(topic) if r.headers.get("factory-writer") == writer.encode()]
    counts = Counter(r.partition for r in found)
    facts = runs.cluster.topic(topic)
    ends = runs.cluster.high_watermark(topic, range(facts.partitions))
    manifest = Manifest(topic, facts.id, writer, tuple(PartitionRange(p, 0, ends[p], n) for p, n in sorted(counts.items())))
    result = StoredResult(dead_letters=manifest, input=read, origin=origin)
    record = StageRecord(pipeline="p", stage=stage, window="w", shard=Shard(), fingerprint="f", generation=1, result=result)
    write_ledger(runs, msgspec.structs.replace(record, **more))


def write_ledger(runs: Runs, record: StageRecord) -> None:
    ledger = Ledger(runs.config, runs.cluster, prefix=runs.prefix, pipeline=record.pipeline)
    ledger.ensure()
    writer = TransactionalWriter(runs.config, f"{runs.prefix}.ledger-of-test")
    writer.open(time.monotonic() + 60)
    writer.begin()
    ledger.produce(writer.producer, [record])
    writer.commit(time.monotonic() + 60)


def fill(runs: Runs, letters: Sequence[tuple[DeadLetter, bytes | None]], partitions: int = 2) -> str:
    """A dead-letter topic with these letters, each of finished work."""
    topic = runs.topic("out.dead", partitions=partitions)
    put(runs, topic, letters, partitions=partitions)
    for stage in sorted({why.stage for why, _ in letters}):
        vouch(runs, topic, stage)
    return topic


def select(runs: Runs, topic: str, selection: Selection = EVERY) -> Iterator[Letter]:
    return LetterTopic(runs.config, topic, prefix=runs.prefix).select(selection)


def replayed(runs: Runs, topic: str) -> list[Rec]:
    return sorted(runs.everything(topic), key=lambda r: r.value or b"")
