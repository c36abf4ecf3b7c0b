"""Calls side by side: the order of a key is kept, outputs keep their places, and an outage drops nothing."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory_agents.errors import ConfigurationError
from factory_agents.kafka.group import GroupReader
from factory_agents.protocol import Shard, shard_window
from factory_agents.runtime.agents import FunctionTransform, Reject, agent
from factory_agents.runtime.dependencies import Dependency, InterruptedBatchError
from factory_agents.runtime.side_by_side import PER_LANE, Pace, SideBySide
from factory_agents.runtime.window import BatchSize
from tests.agents.runtime.test_live import live, wait_written, written
from tests.support.runs import Runs, events
from tests.support.soak import examples
from tests.support.waiting import wait_for


class Record:
    def __init__(self, n: int, key: bytes | None = None, value: bytes | None = None) -> None:
        self._n, self._key, self._value = n, key, value

    def value(self) -> bytes:
        return self._value if self._value is not None else json.dumps({"event_id": self._n}).encode()

    def key(self) -> bytes | None:
        return self._key

    def topic(self) -> str:
        return "t"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._n

    def timestamp(self) -> tuple[int, int]:
        return (1, 0)


def process(function: Callable[..., Any], records: list[Any], **more: Any) -> list[Any]:
    transform = agent(version="1", **more)(function).bind({})
    try:
        return [o if not isinstance(o, bytes) else json.loads(o)["event_id"] for o in transform.process(records)]
    finally:
        transform.close()


def plainly(handle: Callable[[int], Any]) -> Callable[..., Any]:
    def function(event: dict[str, Any]) -> Any:
        handle(event["event_id"])
        return event

    return function


def asynchronously(handle: Callable[[int], Any]) -> Callable[..., Any]:
    async def function(event: dict[str, Any]) -> Any:
        await asyncio.sleep(0)
        handle(event["event_id"])
        return event

    return function


KINDS = pytest.mark.parametrize("kind", [plainly, asynchronously])


def test_so_many_calls_are_made_at_the_same_time(runs: Runs) -> None:
    barrier = threading.Barrier(8)

    def wait(_: int) -> None:
        barrier.wait(20)  # passes only when eight are here

    assert process(plainly(wait), [Record(n) for n in range(16)], concurrency=8) == list(range(16))


def test_coroutines_are_too_and_no_more_than_allowed() -> None:
    here = most = 0

    async def function(event: dict[str, Any]) -> Any:
        nonlocal here, most
        here += 1
        most = max(most, here)
        await asyncio.sleep(0.01)
        here -= 1
        return event

    assert process(function, [Record(n) for n in range(40)], concurrency=8) == list(range(40))
    assert most == 8


@KINDS
@settings(max_examples=examples(15, 30))
@given(keys=st.lists(st.sampled_from([b"a", b"b", b"c", None]), min_size=1, max_size=30))
def test_events_of_a_key_are_handled_in_their_order(kind: Callable[..., Any], keys: list[bytes | None]) -> None:
    seen: list[int] = []
    assert process(kind(seen.append), [Record(n, key) for n, key in enumerate(keys)], concurrency=4) == list(range(len(keys)))
    assert sorted(seen) == list(range(len(keys)))
    for key in {k for k in keys if k is not None}:
        of_key = [n for n in seen if keys[n] == key]
        assert of_key == sorted(of_key)


@KINDS
def test_what_an_event_raises_is_its_own(kind: Callable[..., Any]) -> None:
    def handle(n: int) -> None:
        if n == 3:
            raise ValueError("odd")
        if n == 5:
            raise Reject("no", rule="mine")

    outputs = process(kind(handle), [Record(n) if n != 4 else Record(4, value=b"{") for n in range(8)], concurrency=4)
    assert [o.rule for o in outputs if isinstance(o, Reject)] == ["agent-error", "decode", "mine"]
    assert [o for o in outputs if not isinstance(o, Reject)] == [0, 1, 2, 6, 7]


@KINDS
def test_an_event_that_fails_alone_is_refused_and_the_rest_of_its_key_goes_on(kind: Callable[..., Any]) -> None:
    crm = Dependency("crm", retries=0)
    gate = threading.Semaphore(0)

    def handle(n: int) -> None:
        with crm:
            if n == 0:
                raise ConnectionError("for this one")
        if n == 9:
            gate.release()

    outputs = process(kind(handle), [Record(n, b"k" if n < 2 else None) for n in range(10)], concurrency=2)
    assert isinstance(outputs[0], Reject)
    assert outputs[0].rule == "unavailable"
    assert outputs[1:] == list(range(1, 10))


@KINDS
def test_an_event_whose_service_comes_back_meanwhile_is_called_again(kind: Callable[..., Any]) -> None:
    crm = Dependency("crm", retries=0)
    calls: Counter[int] = Counter()

    def handle(n: int) -> None:
        calls[n] += 1
        with crm:
            if n == 0 and calls[n] == 1:
                raise ConnectionError("away")

    assert process(kind(handle), [Record(n) for n in range(8)], concurrency=2) == list(range(8))
    assert calls.total() == 9


@KINDS
@settings(max_examples=examples(20, 50))
@given(data=st.data())
def test_in_an_outage_what_stands_before_it_is_kept_and_nothing_is_refused(kind: Callable[..., Any], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 20))
    down = data.draw(st.sets(st.integers(0, count - 1), min_size=1))

    def handle(n: int) -> None:
        if n in down:
            raise ConnectionError("refused")

    transform = agent(version="1", concurrency=3)(kind(handle)).bind({})
    transform._unnamed.retries = 0
    records: Any = [Record(n, data.draw(st.sampled_from([b"a", b"b", None]))) for n in range(count)]
    try:
        with pytest.raises(InterruptedBatchError) as raised:
            transform.process(records)
    finally:
        transform.close()
    assert [json.loads(o)["event_id"] for o in raised.value.outputs] == list(range(len(raised.value.outputs)))
    assert len(raised.value.outputs) <= min(down)


def test_a_call_without_an_answer_in_time_is_an_outage_of_what_it_called() -> None:
    crm = Dependency("crm", retries=0)

    async def function(event: dict[str, Any]) -> Any:
        with crm:
            await asyncio.sleep(60 if event["event_id"] == 1 else 0)
        return event

    outputs = process(function, [Record(n) for n in range(4)], concurrency=1, timeout=0.1)
    assert isinstance(outputs[1], Reject)
    assert "crm: no answer within 0.1 s" in outputs[1].reason
    assert outputs[::2] == [0, 2]


@KINDS
def test_an_event_that_fails_after_all_others_is_bad_if_the_service_still_answers(kind: Callable[..., Any]) -> None:
    crm = Dependency("crm", retries=0)
    calls: Counter[int] = Counter()
    answered = threading.Semaphore(0)

    def handle(n: int) -> None:
        calls[n] += 1
        with crm:
            if n == 9:
                assert calls[n] > 1 or all(answered.acquire(timeout=30) for _ in range(9))
                raise ConnectionError("for this one")
        answered.release()

    outputs = process(kind(handle), [Record(n) for n in range(10)], concurrency=16)
    assert isinstance(outputs[9], Reject)
    assert outputs[:9] == list(range(9))
    assert calls == {**dict.fromkeys(range(8), 1), 8: 2, 9: 2}  # one of them was asked about once more


def test_an_event_that_never_gets_an_answer_is_bad_while_others_do() -> None:
    crm = Dependency("crm", retries=0)

    async def function(event: dict[str, Any]) -> Any:
        with crm:
            await asyncio.sleep(60 if event["event_id"] in (3, 4) else 0)
        return event

    outputs = process(function, [Record(n) for n in range(20)], concurrency=32, timeout=0.1)
    assert [n for n, output in enumerate(outputs) if isinstance(output, Reject)] == [3, 4]


def test_a_breaker_that_was_open_lets_the_rest_through_once_its_first_calls_were_answered() -> None:
    now = [0.0]
    crm = Dependency("crm", retries=0, clock=lambda: now[0])
    crm.trip()
    now[0] = 3600.0

    async def function(event: dict[str, Any]) -> Any:
        with crm:
            await asyncio.sleep(60 if event["event_id"] == 0 else 0)
        return event

    outputs = process(function, [Record(n) for n in range(20)], concurrency=32, timeout=0.1)
    assert isinstance(outputs[0], Reject)
    assert outputs[1:] == list(range(1, 20))


@KINDS
def test_a_service_that_went_away_after_its_last_answer_is_an_outage(kind: Callable[..., Any]) -> None:
    crm = Dependency("crm", retries=0)
    up = threading.Event()
    up.set()

    def handle(n: int) -> None:
        with crm:
            if n == 5:
                up.clear()
            if not up.is_set():
                raise ConnectionError("away")

    with pytest.raises(InterruptedBatchError) as raised:
        process(kind(handle), [Record(n) for n in range(6)], concurrency=1)
    assert [json.loads(o)["event_id"] for o in raised.value.outputs] == list(range(5))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"concurrency": 0}, "expected at least 1"),
        ({"concurrency": 2, "batch": True}, "leave concurrency and async out"),
        ({"timeout": 3}, "a plain function cannot be ended"),
        ({"calls_per_second": 0}, "expected a number above 0"),
        ({"calls_per_second": 9, "batch": True}, "calls_per_second is for agents that take one event"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        agent(version="1", **arguments)(lambda event: event)


def test_a_batch_is_never_smaller_than_what_keeps_all_calls_busy() -> None:
    size = BatchSize(least=64)
    size.took(60)
    assert size.records == 64


@KINDS
@pytest.mark.parametrize("concurrency", [1, 4])
def test_calls_begin_no_faster_than_this_process_has_a_share_of(kind: Callable[..., Any], concurrency: int) -> None:
    transform = agent(version="1", concurrency=concurrency, calls_per_second=100)(kind(lambda n: None)).bind({})
    transform.share(0.5)  # type: ignore[attr-defined]
    records: list[Any] = [Record(n) for n in range(20)]
    began = time.monotonic()
    try:
        assert len(transform.process(records)) == 20
    finally:
        transform.close()
    assert time.monotonic() - began > 13 / 50, "but for those of the first tenth of a second"


def test_who_has_no_share_makes_no_calls() -> None:
    pace = Pace(1000)
    pace.share = 0
    assert not pace.begin()
    pace.share = 0.1
    assert pace.begin()


def test_a_shard_and_a_member_make_their_share_of_the_calls(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    paced = agent(version="1", calls_per_second=100)(lambda event: event)
    shard, out = shard_window(runs.filled(80, partitions=2), 2)[0], runs.topic("out")
    began = time.monotonic()
    done = runs.transform(runs.run(shard, out, shard=Shard(0, 2)), paced.bind({}))
    assert time.monotonic() - began > 30 / 50, "with another shard it makes 100"
    assert done.counts.produced == shard.size == 40
    source, seen = runs.topic("in", partitions=2), runs.topic("seen")
    runs.produce(source, events(60))
    shares, share = deque[float](maxlen=20), FunctionTransform.share
    monkeypatch.setattr(FunctionTransform, "share", lambda self, of: (shares.append(of), share(self, of)))
    with live(runs, source, seen, paced) as first, live(runs, source, seen, paced) as second:
        wait_for(lambda: list(shares) == 20 * [0.5], "each to have its half")
        wait_written(runs, seen, 60)
        assert first.end().consumed + second.end().consumed == 60


@KINDS
def test_a_record_has_one_idempotency_key_whatever_happens(kind: Callable[..., Any]) -> None:
    def plain(event: dict[str, Any], idempotency_key: str, *, more: int = 0) -> dict[str, Any]:
        return {"event_id": idempotency_key}

    async def coroutine(event: dict[str, Any], idempotency_key: str, *, more: int = 0) -> dict[str, Any]:
        return {"event_id": idempotency_key}

    function = plain if kind is plainly else coroutine
    records = [Record(n) for n in range(3)]
    keys = process(function, records)
    assert len(set(keys)) == 3
    assert process(function, records[1:]) == keys[1:], "the same when it is tried again"
    assert process(function, records, concurrency=8) == keys
    assert not set(process(function, records, name="other")) & set(keys)
    assert process(function, [Record(0, value=b'{"event_id": 9}')]) != keys[:1], "a topic that was made again has another record there"
    with pytest.raises(ConfigurationError, match="unknown parameter 'idempotency_key'"):
        agent(version="1")(function).bind({"idempotency_key": "x"})
    with pytest.raises(ConfigurationError, match="idempotency_key is for agents that take one event"):
        agent(version="1", batch=True)(plain)


class Held:
    """An agent whose calls wait until they are let go, all of them or one by one."""

    def __init__(self, kind: str) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self._free: set[int] = set()
        self._all = False
        self._turn = threading.Condition()
        function = self._plain if kind == "thread" else self._coroutine
        self.agent = agent(version="1", concurrency=4)(function)

    def _is_free(self, n: int) -> bool:
        return self._all or n in self._free

    def _plain(self, event: dict[str, Any]) -> dict[str, Any]:
        n = event["event_id"]
        self.begun.append(n)
        with self._turn:
            assert self._turn.wait_for(lambda: self._is_free(n), 60)
        self.ended.append(n)
        return event

    async def _coroutine(self, event: dict[str, Any]) -> dict[str, Any]:
        return await asyncio.to_thread(self._plain, event)

    def free(self, *numbers: int) -> None:
        """Let these calls go; without any, all."""
        with self._turn:
            self._free |= set(numbers)
            self._all |= not numbers
            self._turn.notify_all()


@pytest.fixture(params=["thread", "coroutine"])
def held(request: pytest.FixtureRequest) -> Iterator[Held]:
    made = Held(request.param)
    yield made
    made.free()


@contextmanager
def window(held: Held) -> Iterator[SideBySide]:
    transform = held.agent.bind({})
    calls = transform.side_by_side  # type: ignore[attr-defined]
    try:
        yield calls
    finally:
        transform.close()


def put(calls: SideBySide, line: int, *numbers: int, key: bytes | None = None) -> None:
    records: list[Any] = [Record(n, key) for n in numbers]
    for record in records:
        calls.put(line, [record], after=record.offset() + 1)


def until(calls: SideBySide, is_so: Callable[[], bool]) -> None:
    wait_for(lambda: calls.wait(0.01) or is_so(), "the calls")


def taken(calls: SideBySide, most: int = 1000) -> dict[int, int]:
    """Where each line is handled to."""
    return {line: piece.after for line, piece in calls.take(most)}


def test_later_records_are_called_while_one_takes_long_and_what_lies_before_it_is_taken(held: Held) -> None:
    with window(held) as calls:
        put(calls, 0, *range(10))
        put(calls, 1, *range(10, 20))
        assert calls.unfinished == 20
        held.free(*range(3), *range(4, 20))
        until(calls, lambda: len(held.ended) == 19 and len(calls._under_way) == 1)
        assert taken(calls) == {0: 3, 1: 20}
        assert calls.unfinished == 7
        assert not calls.extend(1, 25), "nothing of that line is left: it is handled to there"
        assert calls.extend(0, 15)
        put(calls, 0, *range(20, 200))
        assert calls.room == 0, "there is a bound"
        held.free()
        until(calls, lambda: calls.is_resting)
        assert taken(calls, 5) == {0: 8}
        assert [p.after for _, p in calls.take(1000)][:3] == [9, 15, 21]
        assert calls.unfinished == 0
        assert calls.room == 4 * PER_LANE


def test_what_is_forgotten_ends_for_nothing_and_its_key_waits_for_that(held: Held) -> None:
    with window(held) as calls:
        put(calls, 0, 0, 1, key=b"k")
        put(calls, 1, 2)
        wait_for(lambda: sorted(held.begun) == [0, 2], "two calls")
        calls.keep({1})
        assert calls.unfinished == 1
        put(calls, 0, 0, 1, key=b"k")  # as if they were read again
        held.free(1, 2)
        until(calls, lambda: taken(calls) == {1: 3})
        assert held.begun.count(0) == 1, "of one key, one call at a time"
        held.free()
        until(calls, lambda: taken(calls) == {0: 2})
        assert held.ended in ([2, 0, 0, 1], [0, 2, 0, 1])
        calls.end()
        put(calls, 0, 5)
        calls.wait(0.0)
        assert calls.is_resting
        assert calls.room < 4 * PER_LANE


@KINDS
def test_one_that_fails_alone_does_not_hold_the_window_up(kind: Callable[..., Any]) -> None:
    crm = Dependency("crm", retries=0)

    def handle(n: int) -> None:
        with crm:
            if n == 3:
                raise ConnectionError("for this one")

    transform = agent(version="1", concurrency=4)(kind(handle)).bind({})
    calls = transform.side_by_side  # type: ignore[attr-defined]
    try:
        put(calls, 0, *range(40))
        until(calls, lambda: calls.is_resting)
        outputs = [piece.outputs[0] for _, piece in calls.take(1000)]
    finally:
        transform.close()
    assert [n for n, output in enumerate(outputs) if isinstance(output, Reject)] == [3]
    assert len(outputs) == 40


class TestLive:
    """Calls in flight beyond what is committed."""

    def test_the_prefix_of_each_partition_is_committed_and_a_stop_waits_for_what_is_under_way_and_begins_nothing(
        self, runs: Runs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held = Held("coroutine")
        ending, end = threading.Event(), SideBySide.end
        monkeypatch.setattr(SideBySide, "end", lambda calls: end(calls) or ending.set())
        source, out = runs.topic("in", partitions=2), runs.topic("out", partitions=2)
        runs.produce(source, events(100))
        with live(runs, source, out, held.agent) as running:
            held.free(*range(10), *range(11, 100))
            wait_for(lambda: len(held.ended) == 99, "all but one")  # they were called while 10 was under way
            wait_written(runs, out, 55)
            assert [r.id for r in runs.everything(out) if r.partition == 0] == list(range(0, 10, 2)), "up to the one that takes long"
            runs.produce(source, events(20, 100))
            wait_for(lambda: len(held.begun) == 103, "as many as may be under way")
            running.stop.set()
            assert ending.wait(30)
            held.free()
            counts = running.end()
        assert len(held.begun) == 103, "nothing new"
        assert counts.consumed == 103
        assert written(runs, out) == sorted(held.begun)
        for partition in range(2):
            ids = [r.id for r in runs.everything(out) if r.partition == partition]
            assert ids == sorted(ids)

    def test_what_is_under_way_of_partitions_that_go_is_left_to_their_new_owner(self, runs: Runs) -> None:
        held = Held("thread")
        source, out = runs.topic("in", partitions=2), runs.topic("out", partitions=2)
        runs.produce(source, events(4))
        with live(runs, source, out, held.agent) as one:
            wait_for(lambda: len(held.begun) == 4, "the calls")
            with live(runs, source, out, lambda event: event) as other:
                wait_written(runs, out, 2)  # of the partition that it has now
                held.free()
                wait_written(runs, out, 4)
                assert other.end().consumed == one.end().consumed == 2
        assert written(runs, out) == [0, 1, 2, 3]

    def test_an_end_that_was_seen_before_more_came_takes_nothing_back(self, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
        """One batch holds a record, the partition's end behind it, and a record that came after it."""
        source, out, batch = runs.topic("in", partitions=1), runs.topic("out", partitions=1), GroupReader.batch
        calls = agent(version="1", concurrency=2)(lambda event: event)

        def around_an_end(reader: GroupReader, size: int, timeout: float) -> list[Any]:
            got = batch(reader, size, timeout)
            while got and not reader.ends:
                got += batch(reader, size, 0.1)
            if got:
                monkeypatch.setattr(GroupReader, "batch", batch)
                ends = reader.ends
                runs.produce(source, events(1, 1))
                wait_for(lambda: got.extend(batch(reader, 1, 0.1)) or reader.ends not in ({}, ends), "one more, and its end")
                reader.ends = ends  # of which nothing is heard before the agent ends
            return got

        monkeypatch.setattr(GroupReader, "batch", around_an_end)
        runs.produce(source, events(1))
        with live(runs, source, out, calls) as first:
            wait_written(runs, out, 2)
            assert first.end().consumed == 2
        runs.produce(source, events(1, 2))
        with live(runs, source, out, calls):
            wait_written(runs, out, 3)
        assert written(runs, out) == [0, 1, 2]
