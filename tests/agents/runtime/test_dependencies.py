"""A service that an agent calls: an outage rejects nothing and is waited out; an event that fails alone is found."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from factory_agents.errors import UnavailableError
from factory_agents.runtime.agents import Reject, agent
from factory_agents.runtime.dependencies import Dependency, DependencyError, InterruptedBatchError, complete
from tests.agents.runtime.test_live import live, wait_written, written
from tests.support.runs import Runs, events
from tests.support.waiting import wait_for


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def dependency(clock: Clock | None = None, **more: Any) -> Dependency:
    return Dependency("crm", **{"clock": clock or Clock(), "chance": lambda: 1.0, **more})


def call(service: Dependency, works: bool, clock: Clock | None = None, seconds: float = 0.0) -> bool:
    """Whether it was called."""
    try:
        with service:
            if clock is not None:
                clock.now += seconds
            if not works:
                raise ConnectionError("refused")
    except DependencyError as error:
        return error.called
    return True


class TestBreaker:
    def test_it_opens_when_most_calls_fail_and_is_not_called_then(self) -> None:
        service = dependency()
        for i in range(10):
            call(service, i < 4)
        assert service.state == "open"
        assert not call(service, True)

    def test_few_failures_open_nothing(self) -> None:
        service = dependency()
        for i in range(100):
            call(service, i % 3 > 0)
        assert service.state == "closed"

    def test_slow_answers_open_it(self) -> None:
        clock = Clock()
        service = dependency(clock, slow_seconds=2)
        for _ in range(10):
            call(service, True, clock, 3)
        assert service.state == "open"

    def test_an_open_one_waits_longer_after_each_failed_try_up_to_a_bound_and_one_answer_closes_it(self) -> None:
        clock = Clock()
        service = dependency(clock, open_seconds=1, longest_open_seconds=5)
        service.trip()
        waited = []
        for _ in range(5):
            waited.append(service.wait_seconds)
            clock.now += service.wait_seconds
            assert service.state == "half-open"
            let_through = service.probes
            assert [call(service, False) for _ in range(let_through + 1)] == [True] * let_through + [False]
        assert waited == [1, 2, 4, 5, 5]
        clock.now += 5
        assert call(service, True)
        assert service.state == "closed"
        service.trip()
        assert service.wait_seconds == 1

    def test_an_error_of_another_type_says_that_it_answered(self) -> None:
        service = dependency()
        with pytest.raises(KeyError), service:
            raise KeyError("the event is bad")
        assert (service.answers, service.state) == (1, "closed")

    def test_an_error_of_one_called_within_is_not_its_own(self) -> None:
        outer, inner = dependency(), dependency()
        with pytest.raises(DependencyError) as raised, outer, inner:
            raise TimeoutError
        assert raised.value.dependency is inner
        assert not outer.answers

    def test_own_types_of_errors_are_taken(self) -> None:
        service = dependency(errors=(OSError,))
        with pytest.raises(DependencyError, match="crm: OSError: no route"), service:
            raise OSError("no route")


class BreakerMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order: never stuck, never more probes than allowed, never called while open."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.service = dependency(self.clock, open_seconds=1, longest_open_seconds=8)
        self.probes = 0

    @rule(works=st.booleans())
    def called(self, works: bool) -> None:
        before = self.service.state
        reached = call(self.service, works)
        assert reached or before != "closed"
        if before == "open":
            assert not reached
        self.probes = self.probes + reached if before == "half-open" and self.service.state == "half-open" else 0
        assert self.probes < self.service.probes

    @rule(seconds=st.sampled_from([0.1, 1.0, 8.0]))
    def later(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def tripped(self) -> None:
        self.service.trip()
        self.probes = 0
        assert self.service.state in ("open", "half-open")

    @invariant()
    def it_is_asked_again_before_long(self) -> None:
        assert 0 < self.service.wait_seconds <= 8 or self.service.state == "half-open"


TestBreakerMachine = BreakerMachine.TestCase


class TestComplete:
    """A batch whose events call a service: the output of each."""

    def run(self, calls: list[Callable[[], Any]], service: Dependency, done: int = 0) -> list[Any]:
        unnamed = dependency()
        return complete(
            list(range(done)), len(calls), lambda n: calls[n](), lambda error, _: ("refused", str(error)), unnamed, sleep=lambda _: None
        )

    def test_an_event_that_fails_alone_is_refused_and_keeps_its_place(self) -> None:
        service = dependency()

        def bad() -> Any:
            with service:
                raise ConnectionError("for this one only")

        def good() -> Any:
            with service:
                return "ok"

        outputs = self.run([good, bad, bad, good, bad, good], service)
        assert [o if o == "ok" else o[0] for o in outputs] == ["ok", "refused", "refused", "ok", "refused", "ok"]
        assert "for this one only" in outputs[1][1]

    def test_an_event_that_calls_nothing_proves_nothing(self) -> None:
        service = dependency()

        def bad() -> Any:
            with service:
                raise ConnectionError

        with pytest.raises(InterruptedBatchError) as raised:
            self.run([lambda: "ok", bad, lambda: "ok", bad, lambda: "ok"], service)
        assert raised.value.outputs == ["ok"]
        assert service.state == "open"

    def test_three_that_fail_in_a_row_are_an_outage(self) -> None:
        service = dependency()
        tries: list[int] = []

        def bad(n: int) -> Any:
            with service:
                tries.append(n)
                raise ConnectionError

        with pytest.raises(InterruptedBatchError) as raised:
            self.run([functools.partial(bad, n) for n in range(8)], service, done=1)
        assert raised.value.outputs == [0]
        assert set(tries) <= {1, 2, 3}
        assert raised.value.seconds > 0

    def test_each_time_that_none_is_answered_more_are_tried_the_next_time(self) -> None:
        clock = Clock()
        service = dependency(clock, open_seconds=1, longest_open_seconds=1)
        tries: list[int] = []

        def bad(n: int) -> Any:
            with service:
                tries.append(n)
                raise ConnectionError

        tried, worth = [], []
        for _ in range(6):
            with pytest.raises(InterruptedBatchError) as raised:
                self.run([functools.partial(bad, n) for n in range(80)], service)
            tried.append(len(set(tries)))
            worth.append(raised.value.events)
            tries.clear()
            clock.now += 1
        assert tried == [3, 3, 6, 12, 24, 48]
        assert worth == [4, 7, 13, 25, 49, 49]

    def test_one_that_fails_for_a_moment_is_tried_again(self) -> None:
        service = dependency()
        left = [3]

        def flaky() -> Any:
            with service:
                left[0] -= 1
                if left[0] >= 0:
                    raise TimeoutError
                return "ok"

        assert self.run([flaky, lambda: "x"], service) == ["ok", "x"]

    @given(st.lists(st.sampled_from(["good", "bad", "none"]), min_size=1, max_size=12), st.integers(0, 12))
    def test_whatever_happens_nothing_is_refused_during_an_outage_and_outputs_keep_their_order(
        self, kinds: list[str], down_from: int
    ) -> None:
        service = dependency()

        def attempt(n: int) -> Any:
            if kinds[n] == "none":
                return n
            with service:
                if kinds[n] == "bad" or n >= down_from:
                    raise ConnectionError(str(n))
                return n

        refused: list[int] = []

        def refuse(error: Exception, _: Dependency) -> Any:
            refused.append(int(str(error).rpartition(" ")[2]))
            return "refused"

        try:
            outputs = complete([], len(kinds), attempt, refuse, dependency(), sleep=lambda _: None)
            assert len(outputs) == len(kinds)
        except InterruptedBatchError as interrupted:
            outputs = list(interrupted.outputs)
        assert all(kinds[n] == "bad" and n < down_from for n in refused)
        assert all(output in (n, "refused") for n, output in enumerate(outputs))


class Service:
    """Up or down, as a test wants it; it counts its calls."""

    def __init__(self) -> None:
        self.up = True
        self.calls = 0

    def ask(self, event: dict[str, Any]) -> None:
        self.calls += 1
        if not self.up or event.get("poison"):
            raise ConnectionError("connection refused")


def test_a_live_agent_waits_an_outage_out_and_finds_the_event_that_is_bad_by_itself(runs: Runs) -> None:
    source, out = runs.topic("in", partitions=2), runs.topic("out", partitions=2)
    service = Service()
    crm = Dependency("crm", open_seconds=0.2, longest_open_seconds=0.4)

    def handle(event: dict[str, Any]) -> dict[str, Any]:
        with crm:
            service.ask(event)
        return event

    with live(runs, source, out, handle) as running:
        runs.produce(source, events(20))
        wait_written(runs, out, 20)
        service.up = False
        before = service.calls
        runs.produce(source, [*events(5, 20), *events(1, 25, poison=True), *events(14, 26)])
        wait_for(lambda: crm.state != "closed", "the breaker to open")
        opened = service.calls
        wait_for(lambda: service.calls > opened + 3, "it to be asked again")
        assert service.calls - before < 60
        assert written(runs, out) == list(range(20))
        service.up = True
        wait_written(runs, out, 39)
        counts = running.end()
    assert (counts.consumed, counts.forwarded, counts.rejected) == (40, 39, 1)
    (letter,) = runs.everything(f"{out}.dead")
    assert (letter.id, letter.dead_letter["rule"]) == (25, "unavailable")
    assert "while crm answered for other events" in letter.dead_letter["error"]
    assert written(runs, out) == [n for n in range(40) if n != 25]


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_live_agent_finds_several_events_in_a_row_that_are_bad_by_themselves(runs: Runs, concurrency: int) -> None:
    source, out = runs.topic("in", partitions=1), runs.topic("out", partitions=1)
    crm, service = Dependency("crm", open_seconds=0.1, longest_open_seconds=0.2), Service()

    @agent(version="1", concurrency=concurrency)
    def handle(event: dict[str, Any]) -> dict[str, Any]:
        with crm:
            service.ask(event)
        return event

    runs.produce(source, [*events(20, poison=True), *events(20, 20)])
    with live(runs, source, out, handle) as running:
        wait_written(runs, out, 20)
        assert running.end().rejected == 20
    assert written(runs, out) == list(range(20, 40))
    assert {r.dead_letter["rule"] for r in runs.everything(f"{out}.dead")} == {"unavailable"}


@pytest.mark.parametrize("batch", [False, True])
def test_of_a_service_that_is_not_declared_an_outage_is_waited_out_too(runs: Runs, batch: bool) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    service = Service()
    service.up = False

    def one(event: dict[str, Any]) -> dict[str, Any]:
        service.ask(event)
        return event

    def many(all_: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [one(event) for event in all_]

    runs.produce(source, events(10))
    function: Any = agent(version="1", batch=True)(many) if batch else one
    with live(runs, source, out, function) as running:
        wait_for(lambda: service.calls > 4, "several tries")
        service.up = True
        wait_written(runs, out, 10)
        assert running.end().rejected == 0


@pytest.mark.slow
def test_over_a_window_an_outage_fails_the_attempt_and_rejects_nothing() -> None:
    transform = agent(version="1")(_refused_connection).bind({})
    message: Any = type("M", (), {"value": lambda _: b'{"event_id": 1}', "topic": lambda _: "t"})()
    with pytest.raises(UnavailableError, match="connection refused"):
        transform.process([message] * 4)


def _refused_connection(event: dict[str, Any]) -> dict[str, Any]:
    raise ConnectionError("connection refused")


def test_errors_of_the_events_own_are_dead_letters_as_ever() -> None:
    def odd(event: dict[str, Any]) -> dict[str, Any]:
        with contextlib.suppress(KeyError):
            raise ConnectionError("kept to itself") if event["event_id"] == 2 else KeyError
        raise ValueError("odd")

    message: Any = type("M", (), {"value": lambda _: b'{"event_id": 1}', "topic": lambda _: "t"})()
    (output,) = agent(version="1")(odd).bind({}).process([message])
    assert isinstance(output, Reject)
    assert output.rule == "agent-error"
