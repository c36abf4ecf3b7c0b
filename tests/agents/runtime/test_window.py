"""Batches sized by how long the agent takes, and what a transform must not do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_agents.errors import AgentError, StoppedError, UnavailableError, WindowError
from factory_agents.kafka import reader
from factory_agents.kafka.config import KafkaConfig
from factory_agents.protocol import AgentRef, AgentResult, AgentRun, Counts, Window, merge_results
from factory_agents.runtime.outputs import Outputs
from factory_agents.runtime.session import RunContext
from factory_agents.runtime.source import run_source
from factory_agents.runtime.window import BatchSize, finish, process, run_transform
from tests.support.agents import judge
from tests.support.runs import Runs, events


@pytest.mark.parametrize("run_agent", [run_transform, run_source])
def test_an_agent_that_takes_for_ever_to_begin_is_left_when_it_is_time_to_go(run_agent: Callable[..., AgentResult]) -> None:
    making, go = threading.Event(), threading.Event()

    def make() -> Any:
        making.set()
        go.wait(60)

    run = AgentRun("p", "s", AgentRef("a"), window=Window("p", "t", "id", (), name="w"), output_topic="out")
    with pytest.raises(StoppedError, match="asked to stop"):
        run_agent(RunContext(KafkaConfig("127.0.0.1:1"), stop=making.is_set), run, make)
    go.set()


def sizes(seconds_a_record: float, batches: int) -> list[int]:
    size, found = BatchSize(), []
    for _ in range(batches):
        found.append(size.records)
        size.took(size.records * seconds_a_record)
    return found


def test_the_first_batch_is_one_record_since_nothing_is_known_yet() -> None:
    assert BatchSize().records == 1


def test_a_fast_agent_soon_gets_large_batches() -> None:
    assert sizes(0.00001, 20)[-1] == 10_000


@given(st.floats(0.00001, 100))
def test_a_batch_of_a_steady_agent_takes_about_half_a_second_or_is_one_record(seconds: float) -> None:
    assert all(n == 1 or n * seconds <= 0.5 for n in sizes(seconds, 40))


def test_an_agent_that_gets_slow_soon_gets_small_batches() -> None:
    size = BatchSize()
    size.records = 10_000
    size.took(100.0)
    assert size.records == 50


class Message:
    """The coordinates of a record."""

    def topic(self) -> str:
        return "t"

    def partition(self) -> int:
        return 3

    def offset(self) -> int:
        return 17


class Misbehaving:
    name, version, stateful, at_once = "mine", "1", False, 1
    identity: Any = None

    def __init__(self, what: Any) -> None:
        self._what = what

    def process(self, messages: Any) -> Any:
        if isinstance(self._what, Exception):
            raise self._what
        return self._what

    finish = process

    def compare(self, earlier: Any) -> None:
        return None

    def close(self) -> None:
        return None


def test_what_a_transform_raises_is_one_line_with_where_it_was() -> None:
    with pytest.raises(AgentError, match=r"agent 'mine', 2 records from t-3@17: raised KeyError: 'x'"):
        process(Misbehaving(KeyError("x")), [Message(), Message()])  # type: ignore[list-item]


def test_an_error_that_says_whether_to_retry_goes_through() -> None:
    with pytest.raises(UnavailableError):
        process(Misbehaving(UnavailableError("away")), [Message()])  # type: ignore[list-item]
    with pytest.raises(UnavailableError):
        finish(Misbehaving(UnavailableError("away")), Counts())


def test_as_many_outputs_as_records_are_expected() -> None:
    with pytest.raises(AgentError, match="gave 1 outputs, expected one each"):
        process(Misbehaving([None]), [Message(), Message()])  # type: ignore[list-item]


def test_an_agent_that_reads_a_topic_needs_a_window() -> None:
    run = AgentRun("p", "s", AgentRef("enrich"))
    with pytest.raises(WindowError, match="needs a window"):
        run_transform(RunContext(KafkaConfig("nowhere:1")), run, lambda: Misbehaving(None))


def identity_unless_sevens(event: dict[str, Any]) -> dict[str, Any] | None:
    return None if event["event_id"] % 700 == 7 else event


@pytest.mark.parametrize("function", [identity_unless_sevens, judge])
def test_few_records_with_headers_of_their_own_change_nothing_for_the_others(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any]
) -> None:
    """Those go on with their headers and in their order, whether a batch is looked at as a whole or record by record."""
    raw, mid = runs.topic("raw", partitions=2), runs.topic("mid", partitions=2)
    for start in range(0, 3000, 1000):
        runs.produce(raw, events(995, start))
        runs.produce(raw, events(5, start + 995), headers={"own": b"kept", "traceparent": b"none"})
    window = merge_results([runs.transform(runs.run(runs.window(raw), mid))])
    looked: list[int] = []

    def told(most: int) -> list[tuple[Any, ...]]:
        monkeypatch.setattr(reader, "_MOST_CARRIERS", most)
        out = runs.topic(f"out{most}", partitions=2)
        whole = Outputs._put_plain

        def put_plain(self: Outputs, messages: Any, *more: Any) -> int:
            looked.append(most)
            return whole(self, messages, *more)

        monkeypatch.setattr(Outputs, "_put_plain", put_plain)
        run = runs.run(window, out, stage=f"stage{most}")
        result = runs.transform(run, function)
        monkeypatch.setattr(Outputs, "_put_plain", whole)
        records = runs.manifest(result.manifest)
        kept = [(r.partition, r.id, {n: v for n, v in r.headers.items() if not n.startswith("factory-")}) for r in records]
        return [*sorted(kept, key=lambda one: one[0]), msgspec.structs.asdict(result.counts)]

    fast, slow = told(16), told(0)
    assert fast == slow
    assert looked.count(16) > looked.count(0)
    assert sum("own" in headers for *_, headers in fast[:-1]) > 10
