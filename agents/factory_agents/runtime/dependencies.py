"""What an agent calls and cannot do without: retried in place, guarded by a breaker, and told from an event that is bad by itself."""

from __future__ import annotations

import asyncio
import functools
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Literal, NoReturn
from weakref import WeakSet

from factory_agents.errors import UnavailableError

__all__ = ["OUTAGES", "Dependency", "DependencyError", "InterruptedBatchError", "awaited", "breakers", "complete", "tried"]

OUTAGES = (ConnectionError, TimeoutError)
"""What says of itself that a service failed, and not that an event is bad."""

_calls: ContextVar[tuple[tuple[Dependency, float, int], ...]] = ContextVar("calls", default=())
"""The calls under way in this thread or task, when each began, and how many were answered by then."""
_late: ContextVar[list[tuple[Dependency, int]] | None] = ContextVar("late", default=None)
"""Takes the dependencies whose calls were cancelled, since they took too long, and how many calls each had answered before."""

State = Literal["closed", "open", "half-open"]

_FEWEST = 10
"""Calls that a rate needs before it says anything."""
_PROBES, _MOST_PROBES = 3, 48
"""Calls that a breaker half open lets through, each of another event: one of them may be bad by itself.

So may several in a row: each time that none is answered, twice as many are let through the next time.
"""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class DependencyError(UnavailableError):
    """A dependency failed, or its breaker is open and it wasn't called at all (``called`` is false then).

    ``answers_before``: how many calls it had answered when this one began.
    """

    def __init__(self, message: str, dependency: Dependency, *, called: bool, answers_before: int = 0) -> None:
        super().__init__(message)
        self.dependency = dependency
        self.called = called
        self.answers_before = answers_before


class InterruptedBatchError(UnavailableError):
    """What an agent needs isn't there: ``outputs`` are of the first events of a batch, the others have to wait some ``seconds``.

    Then it is worth trying so many ``events``.
    """

    def __init__(self, message: str, outputs: Sequence[Any], seconds: float, events: int = _PROBES + 1) -> None:
        super().__init__(message)
        self.outputs = outputs
        self.seconds = seconds
        self.events = events


class Dependency:
    """A service that an agent calls, inside ``with``; one object for all calls in a process.

    What is raised inside, of the types in ``errors``, says that the service failed, not that the event is bad: the event is tried again,
    ``retries`` times at most, after pauses that grow. Its breaker opens when more than ``failure_rate`` of the last ``calls`` calls failed
    or took ``slow_seconds`` or longer: nothing is called then, and a live agent waits, first ``open_seconds``, twice as long after each
    failed try, up to ``longest_open_seconds``. An event for which the service fails, while it answers for others, is a dead letter.
    What is raised of the types in ``busy`` (a limit of its rate, say) is neither a failure nor an answer.

    :param name: for messages, metrics and breakers.
    :param errors: exceptions that say that the service failed.
    :param busy: exceptions that are neither a failure nor an answer.
    :param retries: further tries of one event.
    :param failure_rate: the share of calls above which the breaker opens, 0 to 1.
    :param calls: how many calls that share is of.
    :param slow_seconds: a call that takes as long counts as failed.
    :param open_seconds: how long nothing is called at first.
    :param longest_open_seconds: how long at most.
    :param clock: seconds, for tests.
    :param chance: a number from 0 to 1, for tests.

    Example::

        prices = Dependency("prices", errors=(ConnectionError, TimeoutError), retries=3)


        @agent(concurrency=16)
        def priced(event: dict) -> dict:
            with prices:
                return {**event, "price": price_of(event["item"])}
    """

    def __init__(
        self,
        name: str,
        *,
        errors: tuple[type[Exception], ...] = OUTAGES,
        busy: tuple[type[Exception], ...] = (),
        retries: int = 3,
        failure_rate: float = 0.5,
        calls: int = 20,
        slow_seconds: float = float("inf"),
        open_seconds: float = 1.0,
        longest_open_seconds: float = 30.0,
        clock: Callable[[], float] | None = None,
        chance: Callable[[], float] | None = None,
    ) -> None:
        self.name = name
        self.retries = retries
        self._errors, self._busy = errors, busy
        self._failure_rate = failure_rate
        self._slow_seconds = slow_seconds
        self._shortest, self._longest = open_seconds, longest_open_seconds
        self._clock, self._chance = clock or time.monotonic, chance or random.random
        self._lock = threading.Lock()
        self._last: deque[bool] = deque(maxlen=max(calls, _FEWEST))
        self._state: State = "closed"
        self._open_seconds = 0.0
        self._open_until = 0.0
        self._probes = 0
        self.probes = _PROBES
        """Calls that it lets through when it is half open."""
        self._failure = ""
        self.answers = 0
        """Calls that it answered, ever."""
        _known.add(self)

    def __repr__(self) -> str:
        return f"Dependency({self.name!r}, {self.state})"

    @property
    def state(self) -> State:
        """``closed``: it is called. ``open``: it is not. ``half-open``: it may be called a few times, to see whether it is back."""
        with self._lock:
            if self._state == "open" and self._clock() >= self._open_until:
                return "half-open"
            return self._state

    def __enter__(self) -> Dependency:
        """Begin a call. Raises DependencyError where the breaker is open."""
        with self._lock:
            if self._state == "open" and self._clock() >= self._open_until:
                self._state, self._probes = "half-open", 0
            if self._state == "open" or (self._state == "half-open" and self._probes >= self.probes):
                raise DependencyError(
                    f"{self.name}: not called: its breaker is open, since it failed before{self._failure}", self, called=False
                )
            self._probes += self._state == "half-open"
        _calls.set((*_calls.get(), (self, self._clock(), self.answers)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End a call. Raises DependencyError in the place of an error that says that the service failed."""
        *outer, (_, began, answers) = _calls.get()
        _calls.set(tuple(outer))
        took = self._clock() - began
        if isinstance(error, asyncio.CancelledError):
            self._failed(f": no answer within {took:.3g} s")
            if (late := _late.get()) is not None:
                late.append((self, answers))
            return
        if isinstance(error, DependencyError) and error.dependency is not self:
            return  # of another one, called within
        if isinstance(error, self._busy):
            with self._lock:
                self._probes -= self._state == "half-open"
            return
        if error is None or not isinstance(error, (*self._errors, UnavailableError)):
            self._answered(slow=took >= self._slow_seconds)
            return
        failure = f": {type(error).__name__}: {error}"
        self._failed(failure)
        raise DependencyError(f"{self.name}{failure}", self, called=True, answers_before=answers) from error

    def _answered(self, *, slow: bool) -> None:
        with self._lock:
            self.answers += 1
            if self._state == "half-open" and not slow:
                self._state, self._open_seconds, self.probes = "closed", 0.0, _PROBES
                self._last.clear()
            self._note(not slow)

    def _failed(self, failure: str) -> None:
        with self._lock:
            self._failure = failure
            self._note(False)

    def _note(self, well: bool) -> None:
        self._last.append(well)
        if self._state == "half-open":
            if not well and self._probes >= self.probes:
                self._open()
        elif len(self._last) >= _FEWEST and self._last.count(False) > self._failure_rate * len(self._last):
            self._open()

    def forgive(self) -> None:
        """The last failure doesn't count: the same event is tried again, and may be bad by itself."""
        with self._lock:
            if self._last and not self._last[-1]:
                self._last.pop()

    def trip(self) -> None:
        """Open the breaker: it failed for several events in a row."""
        with self._lock:
            if self._state != "open":
                self._open()

    def _open(self) -> None:
        if self._state == "half-open":
            self.probes = min(_MOST_PROBES, 2 * self.probes)
        self._state = "open"
        self._open_seconds = min(self._longest, self._open_seconds * 2 or self._shortest)
        self._open_until = self._clock() + self._open_seconds * (0.5 + self._chance() / 2)
        self._last.clear()

    @property
    def wait_seconds(self) -> float:
        """How long it is not worth asking again."""
        with self._lock:
            return max(0.0, self._open_until - self._clock()) if self._state == "open" else self._shortest

    def pause(self, attempt: int) -> float:
        """Seconds to wait before attempt number ``attempt`` (from 1) at the same event: at random, up to a bound that doubles."""
        return self._chance() * min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0**attempt)


_known: WeakSet[Dependency] = WeakSet()


def breakers() -> dict[str, State]:
    """The state of each dependency's breaker in this process, by name; of several of one name the one that is not closed."""
    states: dict[str, State] = {}
    for dependency in list(_known):
        if states.get(dependency.name, "closed") == "closed":
            states[dependency.name] = dependency.state
    return states


def complete(
    outputs: list[Any],
    events: int,
    attempt: Callable[[int], Any],
    refused: Callable[[Exception, Dependency], Any],
    unnamed: Dependency,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Any]:
    """Outputs of a whole batch of so many events, whose first ``outputs`` are there: from an event on for which a service failed.

    ``attempt`` gives the output of the n-th event and raises DependencyError where a service fails; ``unnamed`` is that of services which
    aren't declared: whether an event called one at all isn't known, so nothing shows that it answers for others. ``refused`` makes the
    output of an event for which a service fails while it does. Raises InterruptedBatchError where the service seems to be down for all.
    """
    waiting: list[tuple[int, int, Dependency]] = []  # of which event it failed, and how many calls it had answered then
    while len(outputs) < events:
        n = len(outputs)
        try:
            outputs.append(tried(functools.partial(attempt, n), sleep))
        except DependencyError as error:
            waiting.append((n, error.dependency.answers, error.dependency))
            outputs.append(None)
            if not error.called or (len(waiting) >= _PROBES and error.dependency.state != "half-open"):
                _interrupt(outputs, waiting, error)
            last = error
            continue
        alone = [entry for entry in waiting if entry[2] is not unnamed and entry[2].answers > entry[1]]
        for entry in alone:
            index, _, dependency = entry
            try:
                outputs[index] = attempt(index)
            except DependencyError as error:
                if not error.called:
                    _interrupt(outputs, waiting, error)
                error.dependency.forgive()
                outputs[index] = refused(error, dependency)
            waiting.remove(entry)
    if waiting:
        _interrupt(outputs, waiting, last)
    return outputs


def tried(attempt: Callable[[], Any], sleep: Callable[[float], None] = time.sleep) -> Any:
    """What an attempt gives, tried again in place as often as the dependency that fails allows, while its breaker is closed."""
    tries = 0
    while True:
        try:
            return attempt()
        except DependencyError as error:
            tries += 1
            if tries > error.dependency.retries or error.dependency.state != "closed":
                raise
            error.dependency.forgive()
            sleep(error.dependency.pause(tries))


async def awaited(attempt: Callable[[], Coroutine[Any, Any, Any]], seconds: float | None, unnamed: Dependency) -> Any:
    """See ``tried``, of a coroutine that has to end within so many ``seconds`` each time."""
    tries = 0
    while True:
        late: list[tuple[Dependency, int]] = []
        _late.set(late)
        try:
            try:
                return await asyncio.wait_for(attempt(), seconds)
            except TimeoutError as error:
                dependency, answers = late[0] if late else (unnamed, 0)
                said = f"{dependency.name}: no answer within {seconds:g} s"
                raise DependencyError(said, dependency, called=True, answers_before=answers) from error
        except DependencyError as error:
            tries += 1
            if tries > error.dependency.retries or error.dependency.state != "closed":
                raise
            error.dependency.forgive()
            await asyncio.sleep(error.dependency.pause(tries))


def _interrupt(outputs: list[Any], waiting: Sequence[tuple[int, int, Dependency]], error: DependencyError) -> NoReturn:
    for _, _, dependency in waiting:
        dependency.trip()
    first, _, dependency = waiting[0]
    raise InterruptedBatchError(str(error), outputs[:first], dependency.wait_seconds, dependency.probes + 1) from error
