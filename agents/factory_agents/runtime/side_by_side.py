"""An agent's calls side by side, in a window that moves on: events of one key one after the other, the others at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Coroutine, Hashable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from queue import Empty, SimpleQueue
from typing import Any, Literal, Protocol, TypeAlias

from factory_agents.errors import AgentError
from factory_agents.kafka.messages import Message
from factory_agents.reject import Reject
from factory_agents.runtime.dependencies import Dependency, DependencyError, InterruptedBatchError, awaited, tried

__all__ = ["PER_LANE", "Coroutines", "Failure", "Outcome", "Pace", "Piece", "Pool", "SideBySide", "Suspects", "Tasks", "Threads"]

PER_LANE = 16
"""Records in the window for each call at a time: while one call is slow, that many others end behind it before places stay empty."""
_AHEAD, _LEAST_AHEAD = 2, 64
"""Calls that the pool has, for each that it may make at a time, and at least: it goes on while whoever takes their outputs commits, and
isn't waited for after each call.
"""
_SUSPECTS = 3
"""Events for which a service failed that are called again at the same time: if all of them are bad, they don't open its breaker."""
_MOST_BYTES = 64 * 1024 * 1024
_CLOSE_SECONDS = 2.0
_CAUGHT_UP_SECONDS = 0.1
"""Calls that were not begun in their time may be begun at once, as far as that was not longer ago: whoever begins them looks up seldom."""
_NO_SHARE_SECONDS = 1.0


@dataclass(frozen=True)
class Failure:
    """A call for which a service failed, and how many calls the service had answered by then."""

    error: DependencyError
    answers: int


@dataclass(frozen=True)
class Raised:
    """A call that raised what is no event's fault, such as a lack of memory."""

    error: BaseException


class Suspects:
    """Tells an event that is bad by itself from an outage: a service failed for it, answered for others, and failed for it again."""

    def __init__(self) -> None:
        self._failed: dict[Hashable, int] = {}

    def judge(self, event: Hashable, failure: Failure) -> Literal["outage", "again", "bad"]:
        """What follows from a failure; ``again``: call once more, since the service answers for others."""
        service = failure.error.dependency
        if not failure.error.called:  # by now it may have answered those that were let through
            return "again" if service.state == "closed" else "outage"
        is_bad = self._is_bad(event, failure)
        self._failed[event] = failure.answers
        if is_bad:
            return "bad"
        return "outage" if service.answers == failure.answers else "again"

    def halts(self, failure: Failure) -> bool:
        """Whether no other event is called until it is known what follows from a failure."""
        service = failure.error.dependency
        if not failure.error.called:
            return service.state != "closed"
        return service.answers == failure.answers and service.state != "half-open"

    def __contains__(self, event: Hashable) -> bool:
        return event in self._failed

    def doubt(self, event: Hashable, failure: Failure) -> bool:
        """Whether only one more call of the service can tell: it was called, and has answered nobody since."""
        return failure.error.called and failure.error.dependency.answers == failure.answers and not self._is_bad(event, failure)

    def forget(self, event: Hashable) -> None:
        """The event needs no judgement any more."""
        self._failed.pop(event, None)

    def _is_bad(self, event: Hashable, failure: Failure) -> bool:
        before = self._failed.get(event)
        return before is not None and failure.error.answers_before > before


class Pace:
    """So many calls a second, made by several processes together: by this one, as many as its ``share`` (0 to 1) of them."""

    def __init__(self, a_second: float) -> None:
        self._a_second = a_second
        self._next = 0.0
        self.share = 1.0

    @property
    def seconds(self) -> float:
        """How long it is until the next call may begin."""
        return _NO_SHARE_SECONDS if self.share <= 0 else max(0.0, self._next - time.monotonic())

    def begin(self) -> bool:
        """Whether a call may begin now; if so it is counted."""
        if self.seconds:
            return False
        self._next = max(self._next, time.monotonic() - _CAUGHT_UP_SECONDS) + 1 / (self._a_second * self.share)
        return True


Outcome: TypeAlias = Any
"""What a call returned, a ``Failure``, or ``Raised``."""


def _failure(error: DependencyError) -> Failure:
    return Failure(error, error.dependency.answers)


class Job(Protocol):
    """A call to be made: ``began`` is set when it is."""

    event: Any
    began: float


class Pool(Protocol):
    """Makes calls, so many at a time, in the order in which they are started. What became of each is put into ``ended``."""

    ended: SimpleQueue[tuple[Any, Outcome]]

    def start(self, calls: Sequence[Job]) -> None:
        """Call the agent's function, once there is a place for it."""
        ...

    def withdraw(self) -> Sequence[Any]:
        """The calls that haven't begun: they don't any more."""
        ...

    def close(self) -> None:
        """Start nothing more; what is under way comes to nothing."""
        ...


def _drained(jobs: SimpleQueue[Any]) -> list[Any]:
    drained = []
    with contextlib.suppress(Empty):
        while True:
            drained.append(jobs.get_nowait())
    return drained


class Threads:
    """See ``Pool``: calls of a plain function, each in one of ``most`` threads, which don't keep a process from ending."""

    def __init__(self, name: str, most: int, handle: Callable[[Any], Any]) -> None:
        self.ended: SimpleQueue[tuple[Any, Outcome]] = SimpleQueue()
        self._name, self._most, self._handle = name, most, handle
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self, calls: Sequence[Job]) -> None:
        """See ``Pool``."""
        for call in calls:
            self._jobs.put(call)
        for _ in range(min(len(calls), self._most - len(self._threads))):
            context = contextvars.copy_context()  # whose lines it logs
            name = f"{self._name} {len(self._threads)}"
            self._threads.append(threading.Thread(target=context.run, args=(self._serve,), name=name, daemon=True))
            self._threads[-1].start()

    def withdraw(self) -> Sequence[Any]:
        """See ``Pool``."""
        return _drained(self._jobs)

    def _serve(self) -> None:
        while (call := self._jobs.get()) is not None:
            call.began = time.monotonic()
            outcome: Outcome
            try:
                outcome = tried(functools.partial(self._handle, call.event))
            except DependencyError as error:
                outcome = _failure(error)
            except BaseException as error:
                outcome = Raised(error)
            self.ended.put((call, outcome))
            del call, outcome

    def close(self) -> None:
        """See ``Pool``: threads that are still at a call end after it."""
        _drained(self._jobs)
        for _ in self._threads:
            self._jobs.put(None)


class Tasks:
    """See ``Pool``: calls of a coroutine function in one event loop, in a thread of its own.

    One without an answer within ``timeout`` seconds counts as an outage of what it called.
    """

    def __init__(
        self, name: str, most: int, timeout: float | None, unnamed: Dependency, handle: Callable[[Any], Coroutine[Any, Any, Any]]
    ) -> None:
        self.ended: SimpleQueue[tuple[Any, Outcome]] = SimpleQueue()
        self._most, self._timeout, self._unnamed, self._handle = most, timeout, unnamed, handle
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(self._cancel())
        self._loop.close()

    async def _cancel(self) -> None:
        self._is_closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def start(self, calls: Sequence[Job]) -> None:
        """See ``Pool``."""
        for call in calls:
            self._jobs.put(call)
        self._loop.call_soon_threadsafe(self._begin)  # in the context of whoever asks, whose lines it logs

    def withdraw(self) -> Sequence[Any]:
        """See ``Pool``."""
        return _drained(self._jobs)

    def _begin(self) -> None:
        while len(self._tasks) < self._most and not self._is_closed:
            try:
                call = self._jobs.get_nowait()
            except Empty:
                return
            task = self._loop.create_task(self._follow(call))
            self._tasks.add(task)
            task.add_done_callback(self._go_on)

    def _go_on(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._begin()

    async def _follow(self, call: Job) -> None:
        call.began = time.monotonic()
        outcome: Outcome
        try:
            outcome = await awaited(functools.partial(self._handle, call.event), self._timeout, self._unnamed)
        except DependencyError as error:
            outcome = _failure(error)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            outcome = Raised(error)
        self.ended.put((call, outcome))

    def close(self) -> None:
        """See ``Pool``."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_SECONDS)


_UNFINISHED: Any = object()


class Piece:
    """Records that are finished together, and ``after``: what holds once they and all before them on their line are."""

    def __init__(self, messages: Sequence[Message], after: Any) -> None:
        self.messages, self.after = messages, after
        self.outputs: list[Any] = [_UNFINISHED] * len(messages)
        self.left = len(messages)
        self.bytes = sum(len(message.value() or b"") for message in messages)
        self.is_dropped = False

    @property
    def begun(self) -> list[Any]:
        """Outputs of the first records, up to one that has none yet."""
        return list(takewhile(lambda output: output is not _UNFINISHED, self.outputs))

    def finish(self, n: int, output: Any) -> None:
        """The n-th record's output."""
        self.outputs[n] = output
        self.left -= 1


@dataclass(eq=False, slots=True)
class _Call:
    """A record whose event is called, in the piece that it belongs to."""

    piece: Piece
    n: int
    message: Message
    event: Any
    kept: Any
    turn: int
    began: float = 0.0


class Handles(Protocol):
    """What an agent makes of records: ``decoded`` an event and what belongs to it (raises Reject), ``finished`` an output of a result."""

    def decoded(self, message: Message) -> tuple[Any, Any]:
        """The event, and what ``finished`` needs of it."""
        ...

    def finished(self, result: Any, message: Message, kept: Any) -> Any:
        """The output."""
        ...

    def refused(self, error: Exception, dependency: Dependency) -> Reject:
        """The output of an event for which a service fails, while it answers for others."""
        ...


class SideBySide:
    """Up to ``most`` calls at a time, of records that wait in a window of bounded size.

    Records are put on lines, a partition each for instance, in pieces; ``take`` gives the finished pieces with which a line begins, so that
    what is taken is always all that was put before it. Calls are begun in the order of the records; one waits for the record of the same
    key before it. All methods are called from one thread; calls are made by the ``pool``.

    Where a service fails for an event, no more calls are begun (but those that a breaker half open lets through) until it has answered for
    another one (then the event is called once more, and is bad if the service fails for it again) or all that is under way has ended: then
    it is an outage (InterruptedBatchError).

    With a ``pace``, calls begin no faster than it says.
    """

    def __init__(self, pool: Pool, most: int, agent: Handles, unnamed: Dependency, pace: Pace | None = None) -> None:
        self._pool, self._most, self._agent, self._unnamed, self._pace = pool, most, agent, unnamed, pace
        # with a pace, what the pool has already begins when there is a place for it
        self._most_ahead = max(_LEAST_AHEAD, _AHEAD * most) if pace is None else most
        self._window = max(PER_LANE * most, _LEAST_AHEAD)
        self._lines: dict[Hashable, deque[Piece]] = {}
        self._keys: dict[bytes, deque[_Call]] = {}
        """By key, those that wait for the one before them."""
        self._ready: deque[_Call] = deque()
        self._under_way: set[_Call] = set()
        self._failed: dict[_Call, Failure] = {}
        self._suspects = Suspects()
        self._answered: _Call | None = None
        self._probe: _Call | None = None
        self._has_probed = self._is_ending = False
        self._turn = self._bytes = 0
        self.unfinished = 0
        """Records that were put and not taken."""

    @property
    def room(self) -> int:
        """How many more records there is a place for."""
        if self._failed or self._bytes >= _MOST_BYTES:
            return 0
        return max(0, self._window - self.unfinished)

    @property
    def busy_seconds(self) -> float:
        """How long the oldest call has lasted whose outcome is waited for."""
        began = min((call.began for call in self._under_way if call.began and not call.piece.is_dropped), default=0.0)
        return time.monotonic() - began if began else 0.0

    @property
    def is_resting(self) -> bool:
        """Whether no call is under way whose outcome is waited for."""
        return all(call.piece.is_dropped for call in self._under_way)

    def put(self, line: Hashable, messages: Sequence[Message], read: Sequence[Message] | None = None, *, after: Any = None) -> Piece:
        """One more piece of a line; ``read`` are its records as a codec has read them."""
        piece = Piece(messages, after)
        self._lines.setdefault(line, deque()).append(piece)
        self.unfinished += len(messages)
        self._bytes += piece.bytes
        for n, message in enumerate(messages if read is None else read):
            try:
                event, kept = self._agent.decoded(message)
            except Reject as reject:
                piece.finish(n, reject)
                continue
            self._turn += 1
            call = _Call(piece, n, message, event, kept, self._turn)
            key = message.key()
            if key is None:
                self._ready.append(call)
            elif key in self._keys:
                self._keys[key].append(call)
            else:
                self._keys[key] = deque()
                self._ready.append(call)
        self._start()
        return piece

    def put_rejected(self, line: Hashable, message: Message, reject: Reject, *, after: Any = None) -> None:
        """One more record, whose output is known."""
        piece = Piece([message], after)
        piece.finish(0, reject)
        self._lines.setdefault(line, deque()).append(piece)
        self.unfinished += 1
        self._bytes += piece.bytes

    def extend(self, line: Hashable, after: Any) -> bool:
        """What holds once all that was put on a line is finished; False where nothing of it is left."""
        pieces = self._lines.get(line)
        if not pieces:
            return False
        pieces[-1].after = after
        return True

    def take(self, most: int) -> list[tuple[Any, Piece]]:
        """The finished pieces with which each line begins, and their lines, until they have so many records."""
        taken: list[tuple[Any, Piece]] = []
        for line, pieces in list(self._lines.items()):
            while pieces and not pieces[0].left and most > 0:
                piece = pieces.popleft()
                self._settle(piece)
                most -= len(piece.messages)
                taken.append((line, piece))
            if not pieces:
                del self._lines[line]
        return taken

    def _settle(self, piece: Piece) -> None:
        self.unfinished -= len(piece.messages)
        self._bytes -= piece.bytes

    def keep(self, lines: Container[Any]) -> None:
        """Forget the records of all other lines. Calls of theirs that are under way go on to their end, and their keys wait for that."""
        gone = [line for line in self._lines if line not in lines]
        if not gone:
            return
        self._withdraw()
        for line in gone:
            for piece in self._lines.pop(line):
                piece.is_dropped = True
                self._settle(piece)
        self._answered = None  # it may be of a line that is gone
        for call in [call for call in self._failed if call.piece.is_dropped]:
            del self._failed[call]
            self._leave(call)
        self._ready, ready = deque(), self._ready
        for call in ready:
            if call.piece.is_dropped:
                self._leave(call)
            else:
                self._ready.append(call)

    def end(self) -> None:
        """Begin no more calls."""
        self._is_ending = True
        self._withdraw()

    def wait(self, seconds: float) -> None:
        """Take in what ends within so many seconds; sooner where there are places for records that were not put yet.

        Raises InterruptedBatchError where a service is down: what stands before the events that it failed for can be taken.
        """
        until = time.monotonic() + seconds
        self._start()
        while True:
            if self.is_resting and self._failed:
                self._rest()
            if not self.unfinished or not (self._under_way or self._ready):
                return
            with contextlib.suppress(Empty):
                self._end(*self._pool.ended.get(timeout=max(0.0, min(until - time.monotonic(), self._pause))))
                while not self._pool.ended.empty():
                    self._end(*self._pool.ended.get())
            self._judge()
            self._start()
            if (not self._ready and self.room and len(self._under_way) < self._most) or time.monotonic() >= until:
                return

    @property
    def _may_start(self) -> bool:
        """Whether there is a call to begin and a place for it."""
        has_place = bool(self._ready) and len(self._under_way) < self._most_ahead and not self._is_ending
        return has_place and not (self._failed and self._is_halted)

    @property
    def _is_halted(self) -> bool:
        """Whether what is under way has yet to tell whether a service that failed is away; not while its breaker lets calls through."""
        return any(f.error.dependency is self._unnamed or self._suspects.halts(f) for f in self._failed.values())

    @property
    def _pause(self) -> float:
        """Seconds until a call may begin for which nothing has to end before."""
        return math.inf if self._pace is None or not self._may_start else self._pace.seconds

    def _start(self) -> None:
        begun: list[_Call] = []
        while self._may_start and (self._pace is None or self._pace.begin()):
            call = self._ready.popleft()
            call.began = 0.0
            self._under_way.add(call)
            begun.append(call)
        if begun:
            self._pool.start(begun)

    def _withdraw(self) -> None:
        """Calls for which there was no place yet wait again."""
        calls = self._pool.withdraw()
        self._under_way.difference_update(calls)
        self._ready.extendleft(reversed(calls))

    def _end(self, call: _Call, outcome: Outcome) -> None:
        self._under_way.remove(call)
        if call is self._probe:
            self._probe = None
        elif call.piece.is_dropped:
            self._leave(call)
        elif isinstance(outcome, Failure):
            self._failed[call] = outcome
            if self._is_halted:
                self._withdraw()
        elif isinstance(outcome, Raised):
            self._leave(call)
            if isinstance(outcome.error, (SystemExit, KeyboardInterrupt)):
                raise AgentError(
                    f"the agent raised {outcome.error!r} to end the process; raise Reject(reason) to refuse an event"
                ) from outcome.error
            raise outcome.error
        else:
            self._finish(call, self._agent.finished(outcome, call.message, call.kept))
            self._has_probed = False
            if self._answered is None or call.turn > self._answered.turn:
                self._answered = call

    def _finish(self, call: _Call, output: Any) -> None:
        call.piece.finish(call.n, output)
        self._leave(call)

    def _leave(self, call: _Call) -> None:
        """It is done with: the next one of its key is called."""
        self._suspects.forget(call)
        key = call.message.key()
        if key is None:
            return
        waiting = self._keys[key]
        while waiting:
            if not (follower := waiting.popleft()).piece.is_dropped:
                self._ready.appendleft(follower)
                return
        del self._keys[key]

    def _judge(self) -> None:
        if not self._failed:
            return
        places = _SUSPECTS - sum(call in self._suspects for call in (*self._under_way, *self._ready))
        for call, failure in list(self._failed.items()):
            dependency = failure.error.dependency
            verdict = "outage" if dependency is self._unnamed else self._suspects.judge(call, failure)
            if verdict == "outage" or (verdict == "again" and failure.error.called and places <= 0):
                continue
            del self._failed[call]
            if verdict == "bad":
                dependency.forgive()
                self._finish(call, self._agent.refused(failure.error, dependency))
            else:
                places -= failure.error.called
                self._ready.appendleft(call)
            self._has_probed = False

    def _rest(self) -> None:
        """Nothing is under way, and a service has answered nobody since it failed: ask once more about an event that it answered for.

        For what the service says to it, nothing else: no later event of its key was answered.
        """
        self._judge()
        self._start()
        if not self._failed or not self.is_resting:
            return
        known = self._answered
        in_doubt = any(self._suspects.doubt(c, f) for c, f in self._failed.items() if f.error.dependency is not self._unnamed)
        if known is not None and in_doubt and not self._has_probed:
            self._has_probed = True
            self._probe = _Call(Piece([known.message], None), 0, known.message, known.event, known.kept, known.turn)
            self._under_way.add(self._probe)
            self._pool.start([self._probe])
            return
        failure = next(iter(self._failed.values()))
        dependency = failure.error.dependency
        dependency.trip()
        raise InterruptedBatchError(str(failure.error), [], dependency.wait_seconds) from failure.error

    def close(self) -> None:
        """End the pool."""
        self._pool.close()


class Coroutines:
    """Calls of a coroutine function, at most ``most`` at a time, each within ``timeout`` seconds, all of a batch in one go."""

    def __init__(self, most: int, timeout: float | None, unnamed: Dependency) -> None:
        self._most, self._timeout, self._unnamed = most, timeout, unnamed
        self._loop = asyncio.new_event_loop()

    def run(self, calls: int, call: Callable[[int], Coroutine[Any, Any, Any]]) -> list[Outcome]:
        """What became of each of so many calls, by its number; raises what a call raised that is no outage."""
        outcomes: list[Outcome] = [None] * calls

        async def follow(n: int, free: asyncio.Semaphore) -> None:
            async with free:
                try:
                    outcomes[n] = await awaited(functools.partial(call, n), self._timeout, self._unnamed)
                except DependencyError as error:
                    outcomes[n] = _failure(error)

        async def all_() -> None:
            free = asyncio.Semaphore(self._most)
            async with asyncio.TaskGroup() as group:
                for n in range(calls):
                    group.create_task(follow(n, free))

        self._loop.run_until_complete(all_())
        return outcomes

    def close(self) -> None:
        """Close the event loop."""
        self._loop.close()
