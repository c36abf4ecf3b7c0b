"""The ledger: what one pipeline reads of it, whoever else writes there."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from factory_agents.errors import ConfigurationError, DeadlineError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.ledger import (
    ABOUT_PLANS,
    LEDGER_PARTITIONS,
    CutRecord,
    Ledger,
    LedgerRecord,
    PipelineRecord,
    PlanRecord,
    Progress,
    ReplayRecord,
    StageRecord,
    StoredResult,
    read_result,
)
from factory_agents.kafka.planning import PlanRequest, planned
from factory_agents.kafka.records import RECORD_VERSION, encode_record
from factory_agents.kafka.topics import Cluster, TopicInfo
from factory_agents.kafka.windows import read_windows
from factory_agents.protocol import AgentResult, Counts, Interval, Manifest, Order, PartitionRange, Shard, Work
from tests.conftest import TopicFactory
from tests.support.brokers import three_brokers
from tests.support.log import Transaction
from tests.support.waiting import wait_for


class Ledgers:
    """A ledger of this test's own."""

    def __init__(self, config: KafkaConfig, prefix: str) -> None:
        self.config, self.prefix = config, prefix

    def of(self, pipeline: str) -> Ledger:
        return Ledger(self.config, Cluster(self.config), prefix=self.prefix, pipeline=pipeline)

    def write(self, ledger: Ledger, *records: LedgerRecord) -> None:
        producer = self.config.producer(f"{self.prefix}.{ledger.pipeline}")
        producer.init_transactions(10)
        producer.begin_transaction()
        ledger.produce(producer, records)
        producer.commit_transaction(10)

    def put(self, partition: int, key: bytes | None, value: bytes | None) -> None:
        """Any record at all."""
        producer = Producer({"bootstrap.servers": self.config.bootstrap})
        producer.produce(f"{self.prefix}.ledger", value, key, partition=partition)
        assert producer.flush(60) == 0


@pytest.fixture
def ledgers(bootstrap: str, prefix: str, admin: AdminClient) -> Iterator[Ledgers]:
    made = Ledgers(KafkaConfig(bootstrap), prefix)
    made.of("p").ensure()
    yield made
    admin.delete_topics([f"{prefix}.ledger"])[f"{prefix}.ledger"].exception()


def soon() -> float:
    return time.monotonic() + 20


def cut(pipeline: str, at: int, *offsets: int) -> CutRecord:
    return CutRecord(pipeline, "t", "id", at, offsets)


def sharing_partition(ledgers: Ledgers, pipeline: str) -> str:
    """Another pipeline whose records lie in the same partition."""
    partition = ledgers.of(pipeline).partition
    return next(f"other-{n}" for n in range(1000) if ledgers.of(f"other-{n}").partition == partition)


def test_gives_back_every_kind_of_record(ledgers: Ledgers) -> None:
    records: list[LedgerRecord] = [
        PipelineRecord("p", "intervals"),
        cut("p", 5, 1, 2),
        PlanRecord("p", "t", "id", "w", (PartitionRange(0, 1, 2),), carried=1, gap=2, replaces="old"),
        StageRecord("p", "s", "w", Shard(1, 2), "f", 3, progress=Progress(positions={0: 4}, lost=(PartitionRange(0, 1, 2),))),
        StageRecord("p", "s2", "w", Shard(), "f", 4, result=StoredResult("agent", counts=Counts(consumed=7, forwarded=7))),
    ]
    ledgers.write(ledgers.of("p"), *records)
    view = ledgers.of("p").read(deadline=soon())
    assert [r for type_ in (PipelineRecord, CutRecord, PlanRecord, StageRecord) for r in view.of(type_)] == records
    assert [view.offset(r.key()) for r in records] == [0, 1, 2, 3, 4]
    assert view.end in (5, 6)  # with the transaction's marker, which may come some moments late
    done, unfinished = Work("p", "s2", "w"), Work("p", "s", "w", Shard(1, 2))
    assert read_result(ledgers.config, done, prefix=ledgers.prefix) == records[-1].answer()  # type: ignore[union-attr]
    assert read_result(ledgers.config, unfinished, prefix=ledgers.prefix) is None


def test_the_last_record_of_a_key_counts(ledgers: Ledgers) -> None:
    ledgers.write(ledgers.of("p"), cut("p", 5, 1), cut("p", 6, 2), msgspec.structs.replace(cut("p", 5, 1), scheduled=True))
    view = ledgers.of("p").read(deadline=soon())
    assert [(c.at, c.scheduled) for c in view.of(CutRecord)] == [(6, False), (5, True)]


def test_a_deleted_record_is_none(ledgers: Ledgers) -> None:
    ledgers.write(ledgers.of("p"), cut("p", 5, 1), cut("p", 6, 2))
    ledgers.put(ledgers.of("p").partition, cut("p", 5).key().encode(), None)
    assert [c.at for c in ledgers.of("p").read(deadline=soon()).of(CutRecord)] == [6]


def test_records_of_other_pipelines_are_passed_over(ledgers: Ledgers) -> None:
    other = sharing_partition(ledgers, "p")
    ledgers.write(ledgers.of(other), cut(other, 1, 1), StageRecord(other, "p", "w", Shard(), "f", 1))
    ledgers.write(ledgers.of("p"), cut("p", 2, 2))
    view = ledgers.of("p").read(deadline=soon())
    assert [view.get(key).pipeline for key in list(view.keys())] == ["p"]  # type: ignore[union-attr]


def test_what_others_write_that_nobody_can_read_is_passed_over(ledgers: Ledgers) -> None:
    other, partition = sharing_partition(ledgers, "p"), ledgers.of("p").partition
    for key, value in ((b"note|%s|1" % other.encode(), b'{"kind": "note"}'), (None, b"junk"), (b"\xff\xfe", b"\x00")):
        ledgers.put(partition, key, value)
    ledgers.write(ledgers.of("p"), cut("p", 2, 2))
    assert len(ledgers.of("p").read(deadline=soon()).keys()) == 1


def test_a_kind_that_a_newer_release_brought_is_passed_over(ledgers: Ledgers) -> None:
    ledgers.put(ledgers.of("p").partition, b"note|p|1", b'{"version": 9, "kind": "note", "pipeline": "p"}')
    ledgers.write(ledgers.of("p"), cut("p", 2, 2))
    assert ledgers.of("p").read(deadline=soon()).keys() == ["cut|p|id|2"]


@pytest.mark.parametrize(
    "value", [b'{"version": 3, "kind": "cut", "pipeline": "p", "topic": "t", "topic_id": "id", "at": 1, "offsets": [1]}', b"\xff"]
)
def test_a_record_that_only_a_newer_release_can_read_is_one_clear_error_for_whoever_needs_it(ledgers: Ledgers, value: bytes) -> None:
    ledgers.put(ledgers.of("p").partition, b"cut|p|id|1", value)
    ledgers.write(ledgers.of("p"), cut("p", 2, 2))
    view = ledgers.of("p").read(deadline=soon())
    assert view.get("cut|p|id|2") == cut("p", 2, 2)
    with pytest.raises(
        ConfigurationError, match=r"ledger record 'cut\|p\|id\|1' at offset 0: not one that this version can read .*newer release"
    ):
        view.of(CutRecord)


def test_fields_that_a_newer_release_added_are_passed_over(ledgers: Ledgers) -> None:
    value = msgspec.json.encode(msgspec.to_builtins(cut("p", 5, 1)) | {"colour": "blue"})
    ledgers.put(ledgers.of("p").partition, cut("p", 5).key().encode(), value)
    assert ledgers.of("p").read(deadline=soon()).of(CutRecord) == [cut("p", 5, 1)]


def of_the_future(value: Any) -> Any:
    """The same with a field more in every object that is none of names and numbers."""
    if isinstance(value, dict):
        parts = {name: of_the_future(part) for name, part in value.items()}
        return parts if all(str(name).isdigit() for name in parts) else {**parts, "colour": {"of": "the sky"}}
    return [of_the_future(part) for part in value] if isinstance(value, list | tuple) else value


def test_fields_in_every_part_of_a_record_are_passed_over(ledgers: Ledgers) -> None:
    interval = Interval(datetime(2026, 11, 1, 1, tzinfo=UTC), datetime(2026, 11, 1, 2, tzinfo=UTC))
    manifest = Manifest("t", "id", "w", (PartitionRange(0, 1, 2, 1),))
    result = StoredResult("a", "1", interval=interval, input=manifest, manifest=manifest, counts=Counts(consumed=1))
    records: list[LedgerRecord] = [
        PlanRecord("p", "t", "id", interval.key, (PartitionRange(0, 1, 2),), interval=interval),
        StageRecord("p", "s", interval.key, Shard(0, 2), "f", 3, orders=(Order("t", 1),), result=result),
        StageRecord("p", "s", interval.key, Shard(1, 2), "f", 3, progress=Progress(positions={0: 4}, counts=Counts(consumed=4))),
    ]
    for record in records:
        value = msgspec.json.encode(of_the_future(msgspec.json.decode(encode_record(record))))
        ledgers.put(ledgers.of("p").partition, record.key().encode(), value)
    view = ledgers.of("p").read(deadline=soon())
    assert [view.get(record.key()) for record in records] == records


def test_every_record_says_its_version() -> None:
    for record in (PipelineRecord("p", "intervals"), cut("p", 1, 1), StageRecord("p", "s", "w", Shard(), "f", 1)):
        assert json.loads(encode_record(record))["version"] == RECORD_VERSION


class TestWhatCommit3110607Wrote:
    """``data/ledger_of_3110607.jsonl``: intervals, arrivals, a source, a stage in two shards, one that was left off, a replay."""

    RECORDS: ClassVar[list[dict[str, Any]]] = [
        json.loads(line) for line in (Path(__file__).parent / "data" / "ledger_of_3110607.jsonl").read_text().splitlines()
    ]

    @pytest.fixture
    def old(self, ledgers: Ledgers) -> Ledgers:
        for record in self.RECORDS:
            ledgers.put(record["partition"], record["key"].encode(), json.dumps(record["value"]).encode())
        return ledgers

    def test_is_read_whole(self, old: Ledgers) -> None:
        view = old.of("").read(deadline=soon())
        found = [view.of(PipelineRecord), view.of(CutRecord), view.of(PlanRecord), view.of(StageRecord), view.of(ReplayRecord)]
        assert [len(of_kind) for of_kind in found] == [2, 6, 5, 6, 1]
        assert sum(map(len, found)) == len(self.RECORDS)

    def test_its_windows_are_planned_already(self, old: Ledgers) -> None:
        plan = next(r["value"] for r in self.RECORDS if r["value"]["kind"] == "plan" and r["value"]["pipeline"] == "hourly")
        interval = msgspec.convert(plan["interval"], Interval)
        view = old.of("hourly").read_stable(deadline=soon(), wanted=ABOUT_PLANS)
        window = planned(view, PlanRequest("hourly", plan["topic"], interval), TopicInfo(plan["topic"], plan["topic_id"], 3))
        assert window is not None
        assert window.ranges == msgspec.convert(plan["ranges"], tuple[PartitionRange, ...])

    def test_its_results_are_found(self, old: Ledgers) -> None:
        for record in (r["value"] for r in self.RECORDS if r["value"]["kind"] == "stage"):
            work = Work(record["pipeline"], record["stage"], record["window"], Shard(*record["shard"]))
            found = read_result(old.config, work, prefix=old.prefix)
            assert found == (msgspec.convert(record["result"], AgentResult) if "result" in record else None)

    def test_its_windows_are_shown(self, old: Ledgers) -> None:
        shown = read_windows(old.config, prefix=old.prefix)
        stages = {s.stage: (s.state, s.counts.consumed) for w in shown if w.pipeline == "hourly" for s in w.stages if s.state != "waiting"}
        assert stages == {"enrich": ("done", 15), "check": ("done", 15), "ingest": ("done", 3), "reject-some": stages["reject-some"]}
        assert {w.topic for w in shown} == {"raw_events"}


def test_what_is_not_committed_is_waited_for_by_a_read_and_not_by_a_glance(ledgers: Ledgers, bootstrap: str) -> None:
    ledger = ledgers.of("p")
    ledgers.write(ledger, cut("p", 1, 1))
    transaction = Transaction(bootstrap, ledger.topic, "open")
    transaction.write([msgspec.json.encode(cut("p", 2, 2)).decode()], partition=ledger.partition, key=cut("p", 2).key())
    assert len(ledger.read_stable(deadline=soon()).of(CutRecord)) == 1
    with pytest.raises(DeadlineError, match="still open"):
        ledger.read(deadline=time.monotonic() + 0.3)
    transaction.commit()
    assert len(ledger.read(deadline=soon()).of(CutRecord)) == 2


def test_what_is_aborted_is_passed_over(ledgers: Ledgers, bootstrap: str) -> None:
    ledger = ledgers.of("p")
    transaction = Transaction(bootstrap, ledger.topic, "open")
    transaction.write(["not even JSON"], partition=ledger.partition, key=cut("p", 2).key())
    transaction.abort()
    assert ledger.read(deadline=soon()).keys() == []


def test_a_read_may_begin_at_a_known_offset(ledgers: Ledgers) -> None:
    ledgers.write(ledgers.of("p"), cut("p", 1, 1), cut("p", 2, 2), cut("p", 3, 3))
    view = ledgers.of("p").read(start=1, deadline=soon())
    assert [c.at for c in view.of(CutRecord)] == [2, 3]
    assert ledgers.of("p").read(start=view.end, deadline=soon()).keys() == []


def test_a_reader_of_all_pipelines_sees_them_all(ledgers: Ledgers) -> None:
    names = [f"p{n}" for n in range(LEDGER_PARTITIONS)]
    for name in names[:4]:
        ledgers.write(ledgers.of(name), cut(name, 1, 1))
    assert {c.pipeline for c in ledgers.of("").read(deadline=soon()).of(CutRecord)} == set(names[:4])


def test_a_ledger_with_too_few_partitions_is_refused(bootstrap: str, prefix: str, topic: TopicFactory) -> None:
    config = KafkaConfig(bootstrap)
    topic("ledger", partitions=3)
    with pytest.raises(ConfigurationError, match=r"has 3 partitions, the ledger needs 12"):
        Ledger(config, Cluster(config), prefix=prefix, pipeline="p").ensure()


@pytest.mark.parametrize("policy", ["delete", "compact,delete"])
def test_a_ledger_that_would_forget_is_refused(bootstrap: str, prefix: str, topic: TopicFactory, policy: str) -> None:
    config = KafkaConfig(bootstrap)
    topic("ledger", partitions=LEDGER_PARTITIONS, cleanup_policy=policy)
    with pytest.raises(ConfigurationError, match=rf"cleanup\.policy={policy}, the ledger needs compact.*--fix") as caught:
        Ledger(config, Cluster(config), prefix=prefix, pipeline="p").ensure()
    assert "\n" not in str(caught.value)


def test_passes_over_what_its_reader_does_not_need(ledgers: Ledgers) -> None:
    stage = StageRecord("p", "s", "w", Shard(), "f", 3, result=StoredResult())
    ledgers.write(ledgers.of("p"), PipelineRecord("p", "intervals"), cut("p", 5, 1), stage)
    planner = ledgers.of("p").read(deadline=soon(), wanted=ABOUT_PLANS)
    assert set(planner.keys()) == {"pipeline|p", "cut|p|id|5"}
    assert set(ledgers.of("p").read(deadline=soon(), wanted=(stage.key().encode(),)).keys()) == {stage.key()}
    assert planner.end >= 3, "what is passed over still counts for the clock"


@pytest.mark.slow
def test_it_is_read_to_its_end_by_whoever_had_asked_a_broker_that_froze(tmp_path: Path) -> None:
    """Another one leads its partition after some seconds; a client waits a minute for the frozen one's answer."""
    with three_brokers(tmp_path, "127.0.0.1") as brokers, Cluster(KafkaConfig(brokers.bootstrap)) as cluster:
        ledger = Ledger(KafkaConfig(brokers.bootstrap), cluster, prefix="x", pipeline="p")
        ledger.ensure()
        transaction = Transaction(brokers.bootstrap, ledger.topic, "open", socket_timeout_ms=5_000)  # its coordinator may freeze
        transaction.write(["{}"], partition=ledger.partition, key="other|o")

        frozen = brokers.leader(ledger.topic, ledger.partition)
        with ThreadPoolExecutor(1) as pool:
            read = pool.submit(ledger.read, deadline=time.monotonic() + 120)
            pause = time.monotonic() + 2
            wait_for(lambda: time.monotonic() > pause, "it to wait for the transaction")
            os.kill(brokers.processes[frozen].pid, signal.SIGSTOP)
            try:
                wait_for(lambda: brokers.leader(ledger.topic, ledger.partition) not in (frozen, -1), "another leader", 60)
                transaction.commit(patience=60)
                assert read.result(20).end > 0
            finally:
                os.kill(brokers.processes[frozen].pid, signal.SIGCONT)
