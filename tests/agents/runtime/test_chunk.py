"""The chunk of a run: how much it holds, and how it is tried again."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.kafka.writer import ChunkAbortedError, RefusedRecord, TransactionalWriter
from factory_agents.protocol import Counts
from factory_agents.runtime.chunk import Chunk
from factory_agents.runtime.outputs import Origin, Outputs
from factory_agents.telemetry import Observer, Subject
from tests.support.runs import Runs


@pytest.fixture
def writer(runs: Runs) -> Iterator[TransactionalWriter]:
    made = TransactionalWriter(runs.config, f"{runs.prefix}.t")
    made.open(time.monotonic() + 60)
    yield made
    made.abort()


def chunk(runs: Runs, writer: TransactionalWriter, largest: int = 100_000) -> tuple[Chunk, Outputs]:
    outputs = Outputs(runs.cluster, writer, Origin("p", "s", "a", "1"), output=runs.topic("out"), dead="")
    outputs.resolve()
    return Chunk(writer, outputs, largest=largest, name="stage 's'", observer=Observer(), subject=Subject("p", "s")), outputs


def commit(made: Chunk) -> None:
    made.commit(time.monotonic() + 30, lambda: None, Counts())


def refused(value: bytes = b"?", *, alone: bool = False) -> ChunkAbortedError:
    record = RefusedRecord("", None, value, "too odd", alone)
    return ChunkAbortedError(UnavailableError("too odd"), refused=True, records=[record])


PASSING = ChunkAbortedError(UnavailableError("the broker was away"), refused=False)


def test_it_is_full_when_it_holds_its_size(runs: Runs, writer: TransactionalWriter) -> None:
    made, _ = chunk(runs, writer, 10)
    assert (made.room, made.is_full, made.age) == (10, False, 0)
    made.add(10)
    assert (made.room, made.is_full) == (1, True)
    assert made.age > 0
    commit(made)
    assert (made.records, made.age) == (0, 0)


def test_after_a_refusal_it_is_small_and_careful_and_grows_with_each_commit(runs: Runs, writer: TransactionalWriter) -> None:
    made, outputs = chunk(runs, writer)
    made.add(50_000)
    made.retry(refused())
    assert (made.size, outputs.refusals.careful) == (1000, True)
    made.add(1000)
    made.retry(refused())  # which one it was is not known yet
    assert made.size == 500
    for size, careful in ((1000, True), (2000, False), (4000, False)):
        commit(made)
        assert (made.size, outputs.refusals.careful) == (size, careful)


def test_once_the_culprit_is_known_nothing_is_halved(runs: Runs, writer: TransactionalWriter) -> None:
    made, outputs = chunk(runs, writer)
    made.add(100)
    made.retry(refused())
    outputs.write_new(None, b"culprit", 7)
    made.add(100)
    topic = outputs.output and outputs.output.name
    record = RefusedRecord(str(topic), None, b"culprit", "too odd", alone=True)
    made.retry(ChunkAbortedError(UnavailableError("too odd"), refused=True, records=[record]))
    assert made.size == 100
    reject = outputs.write_new(None, b"other bytes", 7)
    assert reject is not None
    assert reject.reason == "refused by the broker: too odd"


def test_a_single_event_that_is_refused_for_no_reason_is_an_error(runs: Runs, writer: TransactionalWriter) -> None:
    made, _ = chunk(runs, writer, 1)
    made.add(1)
    made.retry(refused())
    with pytest.raises(ConfigurationError, match="stage 's': a record is refused: too odd"):
        made.retry(refused())


def test_what_keeps_failing_for_another_reason_is_raised_in_the_end(runs: Runs, writer: TransactionalWriter) -> None:
    made, _ = chunk(runs, writer)
    made.add(10)
    for _ in range(4):
        made.retry(PASSING)
    commit(made)
    for _ in range(4):
        made.retry(PASSING)
    with pytest.raises(UnavailableError, match="the broker was away"):
        made.retry(PASSING)
    assert made.size == 100_000
