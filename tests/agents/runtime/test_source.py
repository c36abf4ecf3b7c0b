"""A source into a topic: chunks by row, resumed by row, and never an open transaction while the source is slow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from factory_agents.errors import AgentError, ConfigurationError, DeadlineError, StoppedError, UnavailableError
from factory_agents.protocol import AgentResult, AgentRun, Interval
from factory_agents.runtime.agents import SourceRecord
from factory_agents.runtime.session import RunContext
from factory_agents.runtime.source import run_source
from tests.support.runs import Runs, events
from tests.support.waiting import wait_for

HOUR = Interval(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 1, tzinfo=UTC))


class Rows:
    """Numbered rows in batches; ``before`` is called with each batch's first row."""

    name, version = "rows", "1"

    def __init__(self, n: int, batch: int = 10, before: Callable[[int], None] = lambda _: None, **identity: Any) -> None:
        self.identity: dict[str, Any] = {"n": n} | identity
        self._rows = [SourceRecord(None, v, f"file:{i}") for i, v in enumerate(events(n))]
        self._batch, self._before = batch, before
        self.skipped: list[int] = []
        self.closed = False

    def read(self, interval: Interval | None, skip: int) -> Iterator[Sequence[SourceRecord]]:
        self.skipped.append(skip)
        for start in range(skip, len(self._rows), self._batch):
            self._before(start)
            yield self._rows[start : start + self._batch]

    def close(self) -> None:
        self.closed = True


def ingest(runs: Runs, run: AgentRun, rows: Rows, config: Any = None, **context: Any) -> AgentResult:
    try:
        return run_source(RunContext(config or runs.config, **context), run, lambda: rows)
    finally:
        wait_for(lambda: rows.closed, "the source to be closed in its thread")


def a_run(runs: Runs, **more: Any) -> AgentRun:
    return runs.run(None, runs.topic("out"), "ingest", interval=HOUR, **more)


def check(runs: Runs, result: AgentResult, n: int) -> None:
    assert sorted(r.id for r in runs.manifest(result.manifest)) == list(range(n))
    assert (result.counts.consumed, result.counts.forwarded, result.counts.produced) == (n, n, n)
    assert len(runs.everything(result.manifest.topic if result.manifest else "")) == n


def test_every_row_is_written_once_and_found_again(runs: Runs) -> None:
    run = a_run(runs, chunk_records=32)
    check(runs, ingest(runs, run, Rows(100, batch=7)), 100)
    again = Rows(100)
    result = ingest(runs, run, again)
    assert result.reused
    assert again.skipped == []


def test_an_attempt_that_broke_off_is_resumed_by_row_and_each_row_keeps_its_partition(runs: Runs) -> None:
    def broken(row: int) -> None:
        if row == 60:
            raise UnavailableError("the server is away")

    run = a_run(runs, chunk_records=25)
    with pytest.raises(UnavailableError):
        ingest(runs, run, Rows(100, before=broken))
    rows = Rows(100, batch=9)
    result = ingest(runs, run, rows)
    assert rows.skipped == [50]
    assert result.resumed
    check(runs, result, 100)
    assert all(r.partition == r.id % 4 for r in runs.manifest(result.manifest))


def test_changed_content_is_read_again(runs: Runs) -> None:
    run = a_run(runs)
    ingest(runs, run, Rows(10, checksum="a"))
    result = ingest(runs, run, Rows(12, checksum="b"))
    assert not result.reused
    assert sorted(r.id for r in runs.manifest(result.manifest)) == list(range(12))


def test_content_that_cannot_be_told_apart_is_always_read_again(runs: Runs) -> None:
    run = a_run(runs, chunk_records=5)
    for _ in range(2):
        rows = Rows(10, volatile=True)
        result = ingest(runs, run, rows)
        assert rows.skipped == [0]
        assert sorted(r.id for r in runs.manifest(result.manifest)) == list(range(10))


def test_a_source_slower_than_the_transaction_timeout_succeeds(runs: Runs) -> None:
    def slow(row: int) -> None:
        if row == 20:
            runs.outlast_a_transaction()

    check(runs, ingest(runs, a_run(runs), Rows(40, before=slow), config=runs.configured(transaction_timeout_ms=1000)), 40)


def test_a_stop_while_the_source_is_slow_commits_what_came(runs: Runs) -> None:
    asked, released = threading.Event(), threading.Event()

    def slow(row: int) -> None:
        if row == 20:
            asked.set()
            released.wait(60)

    run = a_run(runs)
    with pytest.raises(StoppedError):
        run_source(RunContext(runs.config, stop=asked.is_set), run, lambda: Rows(40, before=slow))
    released.set()
    rows = Rows(40)
    check(runs, ingest(runs, run, rows), 40)
    assert rows.skipped == [20]


def test_running_out_of_time_is_a_failure(runs: Runs) -> None:
    run = a_run(runs, deadline_seconds=1.0)
    with pytest.raises(DeadlineError):
        ingest(runs, run, Rows(100, before=lambda _: time.sleep(0.3)))
    check(runs, ingest(runs, msgspec.structs.replace(run, deadline_seconds=0.0), Rows(100)), 100)


def test_what_a_source_raises_is_one_line(runs: Runs) -> None:
    def broken(_: int) -> None:
        raise KeyError("column")

    with pytest.raises(AgentError, match="source 'rows': raised KeyError: 'column'"):
        ingest(runs, a_run(runs), Rows(5, before=broken))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "source 'rows': raised TypeError: 'NoneType' object is not iterable"),
        ([{"a": 1}], "source 'rows': read.. gave dict, expected lists of SourceRecord"),
        ([[{"a": 1}]], "source 'rows': read.. gave a list of dict, expected lists of SourceRecord"),
        ([SourceRecord(None, b"{}", "here")], "source 'rows': read.. gave SourceRecord, expected lists of SourceRecord"),
    ],
)
def test_a_source_that_gives_something_else_is_told_what_is_expected(runs: Runs, given: Any, says: str) -> None:
    rows = Rows(0)
    rows.read = lambda interval, skip: given  # type: ignore[method-assign]
    with pytest.raises(AgentError, match=says):
        ingest(runs, a_run(runs), rows)


def test_a_source_needs_a_topic(runs: Runs) -> None:
    run = runs.run(None, "", "ingest", interval=HOUR)
    with pytest.raises(ConfigurationError, match="needs a topic to write to"):
        run_source(RunContext(runs.config), run, lambda: Rows(1))


def test_an_empty_source_is_done_and_says_so(runs: Runs) -> None:
    result = ingest(runs, a_run(runs), Rows(0))
    check(runs, result, 0)


@pytest.mark.parametrize("point", ["chunk.after-produce=kill@3", "chunk.before-ledger=kill@2", "chunk.after-commit=kill@2"])
def test_a_killed_ingest_of_a_file_is_completed(runs: Runs, point: str, tmp_path: Any) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(events(200, time="2026-01-01T00:30:00Z")) + b"\n")
    params = {"source": str(path), "time_field": "time"}
    run = a_run(runs, chunk_records=50, params=params)
    runs.killed(run, point)
    result = runs.finished(run)
    assert sorted(r.id for r in runs.manifest(result.manifest)) == list(range(200))
    assert len(runs.everything(run.output_topic)) == 200
