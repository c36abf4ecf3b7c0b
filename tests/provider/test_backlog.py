"""When an event-driven pipeline should start: from figures, and from a topic."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache

import pytest

from airflow_provider_factory.backlog import Enough, Sizes, Waiting, look, reason_to_start
from factory_agents.kafka.cuts import plan_window
from factory_agents.kafka.lag import Lags
from tests.support.measured import peak_of_python
from tests.support.raw_records import Raw, batch, put
from tests.support.runs import Runs, events

WAITING = Waiting(taken={0: 10, 1: 0}, ends={0: 15, 1: 7}, old={0: 10, 1: 0}, size=900)


@pytest.mark.parametrize(
    ("enough", "reason"),
    [
        (Enough(records=12), "12 records wait, 12 are enough"),
        (Enough(records=13), ""),
        (Enough(size=900), "900 bytes wait, 900 are enough"),
        (Enough(size=901), ""),
        (Enough(age=60), ""),
        (Enough(records=13, size=1), "900 bytes wait, 1 are enough"),
    ],
)
def test_a_run_starts_when_enough_waits(enough: Enough, reason: str) -> None:
    assert reason_to_start(enough, WAITING, {}) == reason


def test_a_run_starts_when_the_oldest_has_waited_long_enough() -> None:
    assert reason_to_start(Enough(age=60), replace(WAITING, old={0: 11, 1: 0}), {}) == "the oldest of 12 records has waited 60 s"


def test_records_seen_for_long_enough_are_old_whatever_their_own_time() -> None:
    assert reason_to_start(Enough(age=60), WAITING, {}, watched=60) == "the oldest of 12 records has waited 60 s"
    assert reason_to_start(Enough(age=60), WAITING, {}, watched=59) == ""
    assert reason_to_start(Enough(age=60), WAITING, WAITING.ends, watched=60) == ""


def test_what_a_run_was_started_for_does_not_count_again() -> None:
    assert reason_to_start(Enough(records=1, size=1, age=0), replace(WAITING, old=WAITING.ends), WAITING.ends) == ""
    assert reason_to_start(Enough(records=2), replace(WAITING, ends={0: 17, 1: 7}), WAITING.ends) == "2 records wait, 2 are enough"


def test_positions_ages_and_sizes_are_those_beyond_the_pipelines_last_window(runs: Runs) -> None:
    topic = runs.topic("in", partitions=3, retention_ms=-1)  # else the broker deletes the old record, at any moment
    sizes = Sizes(topic)
    asked = {"topic": topic, "pipeline": runs.prefix, "prefix": runs.prefix, "sizes": sizes}
    long_ago, now = 1_600_000_000_000, round(time.time() * 1000)

    runs.produce(topic, events(3), partition=0, timestamp=now)
    runs.produce(topic, events(1), partition=1, timestamp=now)
    waiting = look(runs.config, runs.cluster, Lags(runs.config, runs.cluster), enough=Enough(size=10_000, age=3600), begun={}, **asked)  # type: ignore[arg-type]
    assert (waiting.taken, waiting.ends, waiting.old) == ({0: 0, 1: 0, 2: 0}, {0: 3, 1: 1, 2: 0}, {0: 0, 1: 0, 2: 0})
    assert waiting.size == sum(map(len, [*events(3), *events(1)]))

    plan_window(runs.config, pipeline=runs.prefix, topic=topic, interval=None, run_key="first", prefix=runs.prefix)
    runs.produce(topic, events(2, start=7), partition=0, timestamp=now)
    waiting = look(runs.config, runs.cluster, Lags(runs.config, runs.cluster), enough=Enough(size=10_000, age=3600), begun={}, **asked)  # type: ignore[arg-type]
    assert (waiting.taken, waiting.ends, waiting.size) == ({0: 3, 1: 1, 2: 0}, {0: 5, 1: 1, 2: 0}, sum(map(len, events(2, start=7))))
    assert not reason_to_start(Enough(age=3600), waiting, {})

    runs.produce(topic, [b"x"], partition=2, timestamp=long_ago)
    waiting = look(runs.config, runs.cluster, Lags(runs.config, runs.cluster), enough=Enough(age=3600), begun={}, **asked)  # type: ignore[arg-type]
    assert reason_to_start(Enough(age=3600), waiting, {}) == "the oldest of 3 records has waited 3600 s"


@cache
def holding(megabytes: int) -> bytes:
    return batch([Raw(b"x" * (megabytes << 20), b"key")], "zstd")


class TestSizesOfATopicThatOthersWriteTo:
    def counted(self, runs: Runs, topic: str, enough: int) -> int:
        """In as many looks as it takes."""
        sizes, ends = Sizes(topic), runs.cluster.high_watermark(topic, [0])
        counted = -1
        while counted != (counted := sizes.beyond(runs.config, runs.cluster, {0: 0}, ends, enough)):
            pass
        return counted

    def test_count_a_value_that_no_producer_of_ours_could_write(self, runs: Runs) -> None:
        topic = runs.topic("in", partitions=1)
        runs.produce(topic, [b"12345"])
        put(runs.bootstrap, topic, 0, holding(40))
        runs.produce(topic, [b"67890"])
        assert self.counted(runs, topic, 1 << 40) == (40 << 20) + 3 + 10

    def test_count_a_batch_that_nobody_can_read_as_what_it_is_at_least_and_go_on(self, runs: Runs) -> None:
        topic = runs.topic("in", partitions=1)
        put(runs.bootstrap, topic, 0, holding(120))
        runs.produce(topic, [b"12345"])
        assert self.counted(runs, topic, 1 << 40) == 100_000_000 + 5

    def test_are_counted_in_a_pods_memory_and_one_look_takes_a_moment(self, runs: Runs) -> None:
        topic = runs.topic("in", partitions=1)
        put(runs.bootstrap, topic, 0, *[holding(60)] * 25)
        code = (
            "import time; from airflow_provider_factory.backlog import Sizes; from factory_agents.kafka.config import KafkaConfig; "
            f"from factory_agents.kafka.topics import Cluster; config = KafkaConfig({runs.bootstrap!r}); began = time.monotonic(); "
            f"Sizes({topic!r}).beyond(config, Cluster(config), {{0: 0}}, {{0: 25}}, 1 << 40); print(time.monotonic() - began)"
        )
        seconds, megabytes = peak_of_python(code)
        assert float(seconds) < 15
        assert megabytes < 600
