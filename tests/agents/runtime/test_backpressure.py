"""A live agent waits for those who read what it writes, and goes on when they have caught up."""

from __future__ import annotations

import threading
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
from tests.agents.runtime.test_live import live, wait_written, written
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
        before = len(running.observed.of("lag"))
        wait_for(lambda: {} in running.observed.of("lag")[before:], "it to read no more")
        runs.produce(source, events(300, 300))
        looked = len(running.observed.of("lag"))
        wait_for(lambda: len(running.observed.of("lag")) > looked + 2, "some rounds of waiting")
        assert len(written(runs, out)) == 300
        reader.stands_at(runs.cluster.high_watermark(out, [0])[0])
        wait_written(runs, out, 600)
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
            assert result.result(30).counts.produced == 100
            again = msgspec.structs.replace(run, rerun="redo", downstream_group=f"{runs.prefix}.reader")
            stopped = pool.submit(ingest, runs, again, Rows(100), stop=ended.is_set)
            wait_for(lambda: caplog.text.count("waiting for the readers of the output topic") == 2, "it to wait again")
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
