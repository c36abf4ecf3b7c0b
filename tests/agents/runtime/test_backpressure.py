"""A live agent waits for those who read what it writes, and goes on when they have caught up."""

from __future__ import annotations

import pytest
from confluent_kafka import Consumer, TopicPartition

from factory_agents.kafka.config import KafkaConfig
from factory_agents.runtime.backpressure import Downstream, too_far
from tests.agents.runtime.test_live import live, wait_written, written
from tests.support.runs import Runs, events
from tests.support.waiting import wait_for


class Reader:
    """A consumer group that stands where a test wants it."""

    def __init__(self, runs: Runs, topic: str, group: str) -> None:
        self.topic = topic
        self.consumer = Consumer({"bootstrap.servers": runs.bootstrap, "group.id": group, "log_level": 0})

    def stands_at(self, offset: int) -> None:
        self.consumer.commit(offsets=[TopicPartition(self.topic, 0, offset)], asynchronous=False)


def test_it_stops_at_the_limit_and_goes_on_at_half_of_it() -> None:
    was, states = False, []
    for lag in (60, 61, 55, 31, 30, 55, 60, 61):
        was = too_far(lag, 60, was)
        states.append(was)
    assert states == [False, True, True, True, False, False, False, True]


def test_a_group_that_is_named_is_the_only_one_looked_at(runs: Runs) -> None:
    out = runs.topic("out", partitions=1)
    runs.produce(out, events(100))
    old, new = (Reader(runs, out, f"{runs.prefix}.{name}") for name in ("old", "new"))
    old.stands_at(0)
    new.stands_at(100)
    downstream = Downstream(KafkaConfig(runs.bootstrap), out, 10, group=f"{runs.prefix}.new", every=0.05)
    every = Downstream(KafkaConfig(runs.bootstrap), out, 10, every=0.05)
    try:
        wait_for(lambda: every.is_behind, "the old group to count where none is named")
        assert not downstream.is_behind
    finally:
        for one in (downstream, every):
            one.close()
        for reader in (old, new):
            reader.consumer.close()


def test_a_live_agent_waits_and_loses_and_doubles_nothing(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    source, out = runs.topic("in"), runs.topic("out", partitions=1)
    reader = Reader(runs, out, f"{runs.prefix}.reader")
    reader.stands_at(0)
    with live(runs, source, out, max_lag_downstream=100) as running:
        runs.produce(source, events(300))
        wait_written(runs, out, 300)
        wait_for(lambda: "waiting for the readers of the output topic" in caplog.text, "it to wait")
        wait_for(lambda: running.observed.of("lag")[-1] == {}, "it to read no more")
        runs.produce(source, events(300, 300))
        looked = len(running.observed.of("lag"))
        wait_for(lambda: len(running.observed.of("lag")) > looked + 2, "some rounds of waiting")
        assert len(written(runs, out)) == 300
        reader.stands_at(runs.cluster.high_watermark(out, [0])[0])
        wait_written(runs, out, 600)
        assert running.end().consumed == 600
    assert written(runs, out) == list(range(600))
    reader.consumer.close()
