"""Lag is what a committed reader has still to read; asking for it changes nothing."""

from __future__ import annotations

import random
import re
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.kafka.ages import FirstUnread, Place
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.cuts import plan_window
from factory_agents.kafka.lag import Lags, LagTotal, PartitionLag, _LastCuts, group_lag, lag_of, lag_totals, pipeline_lag, topic_lag
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import Interval
from tests.support.kafka_tools import described_groups
from tests.support.measured import peak_of_python
from tests.support.raw_records import Raw, batch, put
from tests.support.runs import Runs, events
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient


def commit(bootstrap: str, group: str, topic: str, offsets: dict[int, int]) -> None:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "enable.auto.commit": False})
    consumer.commit(offsets=[TopicPartition(topic, p, o) for p, o in offsets.items()], asynchronous=False)
    consumer.close()


def test_lag_counts_from_the_committed_offset_and_without_one_from_the_log_start(runs: Runs) -> None:
    topic = runs.topic(partitions=2)
    runs.produce(topic, events(5), partition=0)
    runs.produce(topic, events(3), partition=1)
    commit(runs.bootstrap, runs.prefix, topic, {0: 2})
    assert group_lag(runs.config, runs.prefix, [topic]) == [
        PartitionLag(topic, 0, committed=2, end=5, lag=3),
        PartitionLag(topic, 1, committed=None, end=3, lag=3),
    ]


def test_lag_ends_where_an_open_transaction_begins(runs: Runs) -> None:
    topic = runs.topic(partitions=1)
    runs.produce(topic, events(2))
    commit(runs.bootstrap, runs.prefix, topic, {0: 0})
    writer = runs.config.producer(f"{runs.prefix}.open")
    writer.init_transactions(30)
    writer.begin_transaction()
    writer.produce(topic, b"{}")
    writer.flush(60)
    assert [r.end for r in group_lag(runs.config, runs.prefix, [topic])] == [2]
    commit(runs.bootstrap, runs.prefix, topic, {0: 3})  # by a client that reads what isn't committed
    assert [r.lag for r in group_lag(runs.config, runs.prefix, [topic])] == [0]
    writer.commit_transaction(30)


def test_a_position_on_a_topic_that_was_created_again_since_is_none(runs: Runs) -> None:
    """A client commits where it stands, not which topic that was."""
    topic = runs.topic(partitions=2)
    runs.produce(topic, events(3), partition=0)
    commit(runs.bootstrap, runs.prefix, topic, {0: 9, 1: 9})
    assert group_lag(runs.config, runs.prefix, [topic]) == [
        PartitionLag(topic, 0, committed=9, end=3, lag=3),
        PartitionLag(topic, 1, committed=9, end=0, lag=0),
    ]


class TestOfATransactionalTopic:
    """A client that commits after each message leaves the transactions' markers behind its position: nobody waits for those."""

    @pytest.fixture
    def producer(self, runs: Runs) -> Producer:
        producer = runs.config.producer(f"{runs.prefix}.writer")
        producer.init_transactions(30)
        return producer

    def write(self, producer: Producer, topic: str, partition: int = 0, count: int = 1, *, abort: bool = False) -> None:
        producer.begin_transaction()
        for value in events(count):
            producer.produce(topic, value, partition=partition)
        producer.flush(60)
        if abort:
            producer.abort_transaction(30)
        else:
            producer.commit_transaction(30)

    def read(self, runs: Runs, topic: str, most: int) -> None:
        """As an ordinary consumer: one message, one commit."""
        settings = {
            "bootstrap.servers": runs.bootstrap,
            "group.id": runs.prefix,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
        consumer = Consumer(settings)
        consumer.subscribe([topic])
        for _ in range(most):
            message = consumer.poll(30)
            assert message is not None
            assert message.error() is None
            consumer.commit(message, asynchronous=False)
        consumer.close()

    def lags(self, runs: Runs, topic: str) -> list[int]:
        return [r.lag for r in group_lag(runs.config, runs.prefix, [topic])]

    def test_is_none_when_all_is_read(self, runs: Runs, producer: Producer) -> None:
        topic = runs.topic(partitions=2)
        for partition in (0, 1, 0, 1, 0):
            self.write(producer, topic, partition)
        self.read(runs, topic, 5)
        committed = Cluster(runs.config).committed(runs.prefix)
        assert sum(committed.values()) < sum(Cluster(runs.config).stable_offset(topic, range(2)).values()), "it stands before markers"
        assert self.lags(runs, topic) == [0, 0]

    def test_counts_up_to_the_last_record_that_can_be_seen(self, runs: Runs, producer: Producer) -> None:
        topic = runs.topic(partitions=1)
        self.write(producer, topic, count=3)
        self.write(producer, topic, count=2)
        self.read(runs, topic, 2)
        assert group_lag(runs.config, runs.prefix, [topic]) == [PartitionLag(topic, 0, committed=2, end=6, lag=4)]
        self.read(runs, topic, 3)
        assert self.lags(runs, topic) == [0]

    @pytest.mark.soak
    @pytest.mark.timeout(600)
    def test_kafkas_own_tool_counts_the_markers_too(self, runs: Runs, producer: Producer) -> None:
        topic = runs.topic(partitions=1)
        for count in (3, 2):
            self.write(producer, topic, count=count)
        for read, ours, of_tool in ((2, 4, 5), (3, 0, 1)):
            self.read(runs, topic, read)
            assert self.lags(runs, topic) == [ours]
            assert described_groups(runs.bootstrap)[runs.prefix, topic, 0][-1] == of_tool

    @pytest.mark.parametrize("aborted", [1, 40, 2000])
    def test_what_was_aborted_behind_the_last_record_is_no_lag(self, runs: Runs, producer: Producer, aborted: int) -> None:
        topic = runs.topic(partitions=1)
        self.write(producer, topic, count=30)
        self.write(producer, topic, count=aborted, abort=True)
        self.read(runs, topic, 30)
        assert self.lags(runs, topic) == [0]
        commit(runs.bootstrap, runs.prefix, topic, {0: 10})
        assert self.lags(runs, topic) == [20]

    def test_where_nothing_was_ever_committed_there_is_none_without_records(self, runs: Runs, producer: Producer) -> None:
        topic = runs.topic(partitions=2)
        self.write(producer, topic, abort=True)
        commit(runs.bootstrap, runs.prefix, topic, {1: 0})
        assert self.lags(runs, topic) == [0, 0]

    def test_is_looked_up_again_without_reading_as_long_as_nothing_happens(
        self, runs: Runs, producer: Producer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        topic = runs.topic(partitions=1)
        self.write(producer, topic, count=5)
        commit(runs.bootstrap, runs.prefix, topic, {0: 2})
        lags, readers = Lags(runs.config, runs.cluster), []
        consumer = KafkaConfig.consumer
        monkeypatch.setattr(KafkaConfig, "consumer", lambda *a, **k: readers.append(1) or consumer(*a, **k))
        assert [[r.lag for r in lags.of_group(runs.prefix)] for _ in range(3)] == [[3]] * 3
        commit(runs.bootstrap, runs.prefix, topic, {0: 5})
        assert [r.lag for r in lags.of_group(runs.prefix)] == [0]
        assert len(readers) == 1
        self.write(producer, topic)
        assert [r.lag for r in lags.of_group(runs.prefix)] == [2]
        assert len(readers) == 2


class TestOfATopicThatOthersWriteTo:
    BOMB = batch([Raw(b"x" * (120 << 20))], "zstd")
    LARGE = batch([Raw(b"x" * (60 << 20))], "zstd")

    def test_a_batch_that_nobody_can_read_counts_as_what_it_is(self, runs: Runs) -> None:
        topic = runs.topic(partitions=1)
        runs.produce(topic, events(2))
        put(runs.bootstrap, topic, 0, self.BOMB)
        commit(runs.bootstrap, runs.prefix, topic, {0: 1})
        assert [r.lag for r in group_lag(runs.config, runs.prefix, [topic])] == [2]
        runs.produce(topic, events(3))
        assert [r.lag for r in group_lag(runs.config, runs.prefix, [topic])] == [5]

    def test_what_batches_expand_to_takes_no_memory(self, runs: Runs) -> None:
        topic = runs.topic(partitions=1)
        put(runs.bootstrap, topic, 0, *[self.LARGE] * 30)
        commit(runs.bootstrap, runs.prefix, topic, {0: 0})
        code = "from factory_agents.kafka.lag import group_lag; from factory_agents.kafka.config import KafkaConfig; "
        code += f"print(group_lag(KafkaConfig({runs.bootstrap!r}), {runs.prefix!r}, [{topic!r}])[0].lag)"
        said, megabytes = peak_of_python(code)
        assert said == "30"
        assert megabytes < 300


def test_lag_of_records_deleted_by_retention_is_none(runs: Runs, admin: AdminClient) -> None:
    topic = runs.topic(partitions=1)
    runs.produce(topic, events(9))
    commit(runs.bootstrap, runs.prefix, topic, {0: 2})
    admin.delete_records([TopicPartition(topic, 0, 6)])[TopicPartition(topic, 0)].result()
    assert group_lag(runs.config, runs.prefix) == [PartitionLag(topic, 0, committed=2, end=9, lag=3)]


def test_asking_commits_nothing_and_joins_no_group(runs: Runs) -> None:
    topic = runs.topic(partitions=2)
    runs.produce(topic, events(4))
    commit(runs.bootstrap, runs.prefix, topic, {0: 1})
    cluster = Cluster(runs.config)
    before = (cluster.committed(runs.prefix), cluster.group(runs.prefix))
    first = group_lag(runs.config, runs.prefix)
    assert group_lag(runs.config, runs.prefix) == first
    assert (cluster.committed(runs.prefix), cluster.group(runs.prefix)) == before


def test_without_topics_those_that_the_group_has_committed_for(runs: Runs) -> None:
    one, other = runs.topic("one", partitions=1), runs.topic("other", partitions=1)
    commit(runs.bootstrap, runs.prefix, one, {0: 0})
    assert [r.topic for r in group_lag(runs.config, runs.prefix)] == [one]
    assert [r.topic for r in group_lag(runs.config, runs.prefix, [other])] == [other]


def test_an_unknown_group_and_an_unknown_topic_are_one_clear_line(runs: Runs) -> None:
    topic = runs.topic(partitions=1)
    with pytest.raises(ConfigurationError, match=f"consumer group '{runs.prefix}': it has neither members nor committed offsets"):
        group_lag(runs.config, runs.prefix, [topic])
    commit(runs.bootstrap, runs.prefix, topic, {0: 0})
    with pytest.raises(ConfigurationError, match=r"topic 'no\.such': unknown topic"):
        group_lag(runs.config, runs.prefix, ["no.such"])


@pytest.mark.slow
def test_without_a_broker_the_lag_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match=r"no broker answered at 127\.0\.0\.1:1"):
        Cluster(KafkaConfig("127.0.0.1:1"), timeout=1.0).group("anyone")


def test_every_group_on_a_topic(runs: Runs) -> None:
    topic, other = runs.topic(partitions=1), runs.topic("other", partitions=1)
    runs.produce(topic, events(3))
    commit(runs.bootstrap, f"{runs.prefix}-a", topic, {0: 1})
    commit(runs.bootstrap, f"{runs.prefix}-b", topic, {0: 3})
    commit(runs.bootstrap, f"{runs.prefix}-c", other, {0: 0})
    assert {g: [r.lag for r in rows] for g, rows in topic_lag(runs.config, [topic]).items()} == {
        f"{runs.prefix}-a": [2],
        f"{runs.prefix}-b": [0],
    }


def test_a_pipelines_lag_is_what_arrived_since_its_last_cut(runs: Runs) -> None:
    topic = runs.topic(partitions=2, message_timestamp_type="LogAppendTime")
    runs.produce(topic, events(4))
    assert sum(r.lag for r in pipeline_lag(runs.config, runs.prefix, [topic], prefix=runs.prefix)) == 4
    now = datetime.now(UTC)
    plan_window(
        runs.config,
        pipeline=runs.prefix,
        topic=topic,
        interval=Interval(now - timedelta(hours=1), now + timedelta(seconds=1)),
        prefix=runs.prefix,
    )
    assert sum(r.lag for r in pipeline_lag(runs.config, runs.prefix, prefix=runs.prefix)) == 0
    runs.produce(topic, events(3))
    assert sum(r.lag for r in pipeline_lag(runs.config, runs.prefix, prefix=runs.prefix)) == 3


def test_a_pipelines_lag_is_followed_and_its_ledger_read_once(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = runs.topic(partitions=1)
    runs.produce(topic, events(4))

    def plan(key: str) -> None:
        plan_window(runs.config, pipeline=runs.prefix, topic=topic, interval=None, run_key=key, prefix=runs.prefix)

    plan("first")
    lags, taken = Lags(runs.config, runs.cluster), []
    take = _LastCuts.take
    monkeypatch.setattr(_LastCuts, "take", lambda self, offset, *record: taken.append(offset) or take(self, offset, *record))
    runs.produce(topic, events(3))
    assert [sum(r.lag for r in lags.of_pipeline(runs.prefix, prefix=runs.prefix)) for _ in range(3)] == [3] * 3
    first = len(taken)
    plan("second")
    assert [sum(r.lag for r in lags.of_pipeline(runs.prefix, prefix=runs.prefix)) for _ in range(3)] == [0] * 3
    assert len(taken) == len(set(taken)) == first + 1, "a cut is new, the rest was passed once, and a plan isn't needed"
    runs.admin.delete_topics([f"{runs.prefix}.ledger"])[f"{runs.prefix}.ledger"].result(30)
    wait_for(lambda: runs.cluster.find(f"{runs.prefix}.ledger") is None, "the ledger to be gone")
    runs.produce(topic, events(1))
    plan("of another ledger")
    assert sum(r.lag for r in lags.of_pipeline(runs.prefix, prefix=runs.prefix)) == 0


def test_a_pipeline_that_planned_nothing_must_be_told_its_topics(runs: Runs) -> None:
    with pytest.raises(ConfigurationError, match="it has planned no window yet"):
        pipeline_lag(runs.config, runs.prefix, prefix=runs.prefix)


def test_whose_lag_must_be_said_once() -> None:
    config = KafkaConfig("127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="whose lag"):
        lag_of(config, group=None, topics=None, pipeline=None)
    with pytest.raises(ConfigurationError, match="leave 'g' or --pipeline out"):
        lag_of(config, group="g", topics=None, pipeline="p")


def test_totals_name_the_partition_that_is_furthest_behind() -> None:
    rows = {"a": [PartitionLag("t", 0, 1, 4, 3), PartitionLag("t", 1, None, 9, 9)], "b": [PartitionLag("t", 0, 4, 4, 0)]}
    assert lag_totals(rows) == [LagTotal("a", "t", 2, 12, 9, 1), LagTotal("b", "t", 1, 0, 0, 0)]


NOW = int(time.time() * 1000)  # what is older than the topic's retention may go at any time


class TestTheAgeOfTheFirstUnread:
    """How long a reader's next record has waited, which says more than how many there are."""

    def at(self, runs: Runs, topic: str, *times: int) -> None:
        producer = Producer({"bootstrap.servers": runs.bootstrap})
        for ms in times:
            producer.produce(topic, b"{}", partition=0, timestamp=ms)
        producer.flush(60)

    def test_each_reader_is_told_its_own(self, runs: Runs) -> None:
        topic = runs.topic(partitions=2)
        self.at(runs, topic, NOW, NOW + 1, NOW + 2)
        places = [Place(topic, 0, offset) for offset in range(3)]
        assert FirstUnread(runs.config).times([*places, Place(topic, 1, 0)]) == dict(zip(places, (NOW, NOW + 1, NOW + 2), strict=True))

    def test_what_was_aborted_is_no_record(self, runs: Runs) -> None:
        topic = runs.topic(partitions=1)
        writer = runs.config.producer(f"{runs.prefix}.writer")
        writer.init_transactions(30)
        for abort in (True, False):
            writer.begin_transaction()
            writer.produce(topic, b"{}", partition=0, timestamp=NOW if abort else NOW + 1)
            writer.flush(60)
            (writer.abort_transaction if abort else writer.commit_transaction)(30)
        assert FirstUnread(runs.config).times([Place(topic, 0, 0)]) == {Place(topic, 0, 0): NOW + 1}

    def test_a_reader_that_stands_still_is_not_asked_for_again(self, runs: Runs) -> None:
        topic = runs.topic(partitions=1)
        self.at(runs, topic, NOW)
        unread, place = FirstUnread(runs.config), Place(topic, 0, 0)
        assert unread.times([place]) == {place: NOW}
        unread._config = KafkaConfig("127.0.0.1:1")
        assert unread.times([place]) == {place: NOW}


def test_the_lag_of_many_groups_is_that_of_each(runs: Runs) -> None:
    topics = [runs.topic(f"many{i}", partitions=3) for i in range(2)]
    for i, topic in enumerate(topics):
        runs.produce(topic, events(30 * (i + 1)))
        for g in range(3):
            commit(runs.bootstrap, f"{runs.prefix}.{g}", topic, {0: g, 1: 2 * g})
    with Cluster(runs.config) as cluster:
        lags = Lags(runs.config, cluster)
        found = lags.of_groups(re.compile(re.escape(runs.prefix) + r"\.\d").fullmatch, topics.__contains__)  # type: ignore[arg-type]
        assert found == {f"{runs.prefix}.{g}": lags.of_group(f"{runs.prefix}.{g}", sorted(topics)) for g in range(3)}
        assert lags.of_groups(lambda name: name == f"{runs.prefix}.0", lambda name: False) == {f"{runs.prefix}.0": []}


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_the_lag_of_20_groups_on_500_partitions_is_what_kafkas_own_tool_says(runs: Runs) -> None:
    topic, chance = runs.topic("wide", partitions=500), random.Random(15)
    runs.produce(topic, events(20_000))
    ends = runs.cluster.high_watermark(topic, range(500))
    groups = [f"{runs.prefix}.{g}" for g in range(20)]
    for group in groups:
        commit(runs.bootstrap, group, topic, {p: chance.randint(0, ends[p]) for p in chance.sample(range(500), 450)})
    with Cluster(runs.config) as cluster:
        lags, seconds = Lags(runs.config, cluster), []
        for _ in range(5):
            began = time.perf_counter()
            found = lags.of_groups(groups.__contains__, topic.__eq__)
            seconds.append(time.perf_counter() - began)
    ours = {(g, r.topic, r.partition): (r.committed, r.end, r.lag) for g, rows in found.items() for r in rows if r.committed is not None}
    told = {key: row for key, row in described_groups(runs.bootstrap).items() if key[0] in groups}
    assert len(told) == 20 * 450
    assert ours == told
    print(f"20 groups on 500 partitions: {min(seconds):.2f} to {max(seconds):.2f} s")
