"""A live agent waits for those who read what it writes, and goes on when they have caught up."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, TopicPartition

from factory_agents import SinkBackpressureError
from factory_agents.contracts import load_contract
from factory_agents.errors import DeadlineError, StoppedError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.runtime import exact_sink
from factory_agents.runtime.backpressure import Downstream, too_far
from factory_agents.runtime.exact_sink import ExactSink
from factory_agents.runtime.session import RunContext
from factory_agents.runtime.sink import run_sink
from tests.agents.runtime.test_live import live, written
from tests.agents.runtime.test_source import Rows, ingest
from tests.agents.runtime.test_source import a_run as source_run
from tests.support.runs import Runs, events
from tests.support.sqlite_sink import CONTRACT, DocumentedSink, published
from tests.support.waiting import wait_for


class Reader:
    """A consumer group that stands where a test wants it."""

    def __init__(self, runs: Runs, topic: str, group: str) -> None:
        self.topic = topic
        self.consumer = Consumer({"bootstrap.servers": runs.bootstrap, "group.id": group, "log_level": 0})

    def stands_at(self, offset: int) -> None:
        self.consumer.commit(offsets=[TopicPartition(self.topic, 0, offset)], asynchronous=False)

    def reads_all(self, runs: Runs) -> int:
        """Read what is there; how many records that were in all."""
        found = len(runs.everything(self.topic))
        self.stands_at(runs.cluster.stable_offset(self.topic, [0])[0])
        return found


def test_it_stops_at_the_limit_and_goes_on_at_half_of_it() -> None:
    was, states = False, []
    for lag in (60, 61, 55, 31, 30, 55, 60, 61):
        was = too_far(lag, 60, was)
        states.append(was)
    assert states == [False, True, True, True, False, False, False, True]


class SlowReader:
    """Reads a topic at so many records a second, in a thread of its own, and notes how far it was behind."""

    def __init__(self, runs: Runs, topic: str, group: str, rate: float) -> None:
        self.read, self.worst = 0, 0
        self._runs, self._topic, self._rate = runs, topic, rate
        self._reader = Reader(runs, topic, group)
        self._reader.stands_at(0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        began = time.monotonic()
        while not self._ended.wait(0.1):
            end = self._runs.cluster.stable_offset(self._topic, [0])[0]
            self.worst = max(self.worst, end - self.read)
            self.read = min(end, int((time.monotonic() - began) * self._rate))
            self._reader.stands_at(self.read)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        self._reader.consumer.close()


@pytest.mark.parametrize(("most", "reads"), [(2000, 4000), pytest.param(8000, 40_000, marks=pytest.mark.soak)])
def test_a_reader_at_a_tenth_of_the_speed_is_never_left_further_behind_than_allowed(
    runs: Runs, caplog: pytest.LogCaptureFixture, most: int, reads: int
) -> None:
    """With as much as the reader takes in twenty seconds, they stop and go on once in ten."""
    source, out = runs.topic("in"), runs.topic("out", partitions=1)
    for _ in range(reads // 500):
        runs.produce(source, events(1000))  # what waits is written as fast as can be
    reader = SlowReader(runs, out, f"{runs.prefix}.reader", rate=400)
    began = time.monotonic()
    try:
        with live(runs, source, out, max_lag_downstream=most) as one, live(runs, source, out, max_lag_downstream=most) as two:
            wait_for(lambda: reader.read > reads, "so many to be read", patience=60 + reads / 200)
            one.end()
            two.end()
    finally:
        reader.end()
    took = time.monotonic() - began
    stops = caplog.text.count("waiting for the readers of the output topic")
    print(f"furthest behind: {reader.worst}; {stops} stops of two members in {took:.0f} s; read {reader.read / took:.0f} a second")
    assert reader.worst <= most * 1.5  # each of the two knows what the other has written only by looking
    assert 2 <= stops <= 2 * (1 + took * 400 / (most / 2))  # once in the time that half of what is allowed takes to be read
    assert reader.read / took > 0.8 * 400  # it is never idle


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
        wait_for(lambda: "waiting for the readers of the output topic" in caplog.text, "it to wait")
        before = len(running.observed.of("lag"))
        wait_for(lambda: {} in running.observed.of("lag")[before:], "it to read no more")
        runs.produce(source, events(300, 300))
        looked = len(running.observed.of("lag"))
        wait_for(lambda: len(running.observed.of("lag")) > looked + 2, "some rounds of waiting")
        assert len(written(runs, out)) == 100
        wait_for(lambda: reader.reads_all(runs) == 600, "all to be written as it is read")
        assert running.end().consumed == 600
    assert written(runs, out) == list(range(600))
    reader.consumer.close()


def test_ingest_writes_no_more_than_its_readers_can_take(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    out = runs.topic("out", partitions=1)
    reader = Reader(runs, out, f"{runs.prefix}.reader")
    runs.produce(out, events(61))
    reader.stands_at(0)
    run = msgspec.structs.replace(source_run(runs), output_topic=out, max_lag_downstream=60)
    ended = threading.Event()
    with ThreadPoolExecutor() as pool:
        try:
            result = pool.submit(ingest, runs, run, Rows(100), stop=ended.is_set)
            wait_for(lambda: "waiting for the readers of the output topic" in caplog.text, "it to wait")
            assert len(runs.everything(out)) == 61  # those that were there
            reader.stands_at(31)
            wait_for(lambda: len(runs.everything(out)) > 61, "it to go on")
            assert len(runs.everything(out)) <= 91
            wait_for(lambda: reader.reads_all(runs) == 161, "all to be written as it is read")
            assert result.result(30).counts.produced == 100
            reader.stands_at(31)
            waits = caplog.text.count("waiting for the readers of the output topic")
            again = msgspec.structs.replace(run, rerun="redo", downstream_group=f"{runs.prefix}.reader")
            stopped = pool.submit(ingest, runs, again, Rows(100), stop=ended.is_set)
            wait_for(lambda: caplog.text.count("waiting for the readers of the output topic") > waits, "it to wait again")
            ended.set()
            with pytest.raises(StoppedError):
                stopped.result(30)
        finally:
            ended.set()
    reader.consumer.close()


class BusySink(DocumentedSink):
    """Asks to wait each time before it takes a part, and before it lands."""

    def __init__(self, path: str, retry_after: float) -> None:
        super().__init__(path)
        self.retry_after, self.asked = retry_after, threading.Event()
        self.free = False
        self.parts: list[Any] = []

    def _ask(self) -> None:
        self.asked.set()
        self.free = not self.free
        if self.free:
            raise SinkBackpressureError(retry_after=self.retry_after)

    def stage(self, part: Any, rows: Any) -> None:
        self._ask()
        self.parts.append((part, len(rows.rows)))
        super().stage(part, rows)

    def land(self, landing: Any) -> Any:
        self._ask()
        return super().land(landing)


def publish(runs: Runs, sink: BusySink, stop: Any = lambda: False, **more: Any) -> Any:
    def make() -> Any:
        return ExactSink(sink, load_contract(CONTRACT).table(), {})

    run = runs.run(runs.filled(100), name="publish", stage="publish", **more)
    return run_sink(RunContext(runs.config, stop=stop), run, make)


def test_a_sink_that_asks_to_wait_is_given_the_same_rows_later(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_sink, "_PART_BYTES", 1)
    sink = BusySink(str(tmp_path / "d.sqlite"), retry_after=0.01)
    result = publish(runs, sink)
    assert published(tmp_path / "d.sqlite") == list(range(100))
    assert result.counts.written == sum(rows for _, rows in sink.parts) == 100
    assert len({part.number for part, _ in sink.parts}) == len(sink.parts)


def test_who_waits_for_a_sink_ends_when_asked_to_or_out_of_time(runs: Runs, tmp_path: Path) -> None:
    sink = BusySink(str(tmp_path / "d.sqlite"), retry_after=3600)
    with pytest.raises(StoppedError, match="while the sink had it wait"):
        publish(runs, sink, stop=sink.asked.is_set)
    with pytest.raises(DeadlineError, match="while the sink had it wait"):
        publish(runs, BusySink(str(tmp_path / "d.sqlite"), retry_after=3600), deadline_seconds=3.0)
    assert published(tmp_path / "d.sqlite") == []
