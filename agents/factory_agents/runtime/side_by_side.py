"""An agent's calls side by side: events of one key one after the other, the others at the same time."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Literal, TypeAlias

from factory_agents.runtime.dependencies import Dependency, DependencyError, awaited, tried

__all__ = ["Coroutines", "Failure", "Outcome", "Skipped", "Suspects", "Threads"]


@dataclass(frozen=True)
class Failure:
    """A call for which a service failed, and how many calls the service had answered by then."""

    error: DependencyError
    answers: int


class Suspects:
    """Tells an event that is bad by itself from an outage: a service failed for it, answered for others, and failed for it again."""

    def __init__(self) -> None:
        self._failed: dict[Hashable, int] = {}

    def judge(self, event: Hashable, failure: Failure) -> Literal["outage", "again", "bad"]:
        """What follows from a failure; ``again``: call once more, since the service answers for others. After a whole round of calls."""
        service = failure.error.dependency
        if not failure.error.called:  # by now it may have answered those that were let through
            return "again" if service.state == "closed" else "outage"
        is_bad = self._is_bad(event, failure)
        self._failed[event] = failure.answers
        if is_bad:
            return "bad"
        return "outage" if service.answers == failure.answers else "again"

    def doubt(self, event: Hashable, failure: Failure) -> bool:
        """Whether only one more call of the service can tell: it was called, and has answered nobody since."""
        return failure.error.called and failure.error.dependency.answers == failure.answers and not self._is_bad(event, failure)

    def _is_bad(self, event: Hashable, failure: Failure) -> bool:
        before = self._failed.get(event)
        return before is not None and failure.error.answers_before > before


class Skipped:
    """Not called: an event of the same key before it failed."""


Outcome: TypeAlias = Any
"""What a call returned, a ``Failure``, or ``Skipped``."""


def _lanes(events: Sequence[int], keys: Sequence[Hashable]) -> list[list[int]]:
    """Events by key, in their order; one without a key is alone."""
    lanes: dict[Hashable, list[int]] = {}
    for n in events:
        lanes.setdefault(("key", keys[n]) if keys[n] is not None else ("alone", n), []).append(n)
    return list(lanes.values())


def _failure(error: DependencyError) -> Failure:
    return Failure(error, error.dependency.answers)


class Threads:
    """Calls of a plain function, each in one of ``most`` threads; they don't keep a process from ending."""

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most = name, most
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def run(self, events: Sequence[int], keys: Sequence[Hashable], call: Callable[[int], Any]) -> dict[int, Outcome]:
        """What became of each of these events (by number); raises what a call raised that is no outage."""
        lanes = _lanes(events, keys)
        outcomes: dict[int, Outcome] = {}
        ended: SimpleQueue[BaseException | None] = SimpleQueue()

        def follow(lane: list[int]) -> None:
            try:
                for n in lane:
                    try:
                        outcomes[n] = tried(functools.partial(call, n))
                    except DependencyError as error:
                        outcomes[n] = _failure(error)
                        break
                ended.put(None)
            except BaseException as error:
                ended.put(error)

        for lane in lanes:
            self._jobs.put(functools.partial(follow, lane))
        while len(self._threads) < min(self._most, len(lanes)):
            thread = threading.Thread(target=self._serve, name=f"{self._name} {len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        errors = [error for _ in lanes if (error := ended.get()) is not None]
        if errors:
            raise errors[0]
        return {n: outcomes.get(n, Skipped) for n in events}

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def close(self) -> None:
        """End the threads; those still at a call end after it."""
        for _ in self._threads:
            self._jobs.put(None)


class Coroutines:
    """Calls of a coroutine function, at most ``most`` at a time, each within ``timeout`` seconds."""

    def __init__(self, most: int, timeout: float | None, unnamed: Dependency) -> None:
        self._most, self._timeout, self._unnamed = most, timeout, unnamed
        self._loop = asyncio.new_event_loop()

    def run(self, events: Sequence[int], keys: Sequence[Hashable], call: Callable[[int], Coroutine[Any, Any, Any]]) -> dict[int, Outcome]:
        """See ``Threads.run``; a call without an answer in time counts as an outage of what it called."""
        outcomes: dict[int, Outcome] = {}

        async def follow(lane: list[int], free: asyncio.Semaphore) -> None:
            for n in lane:
                async with free:
                    try:
                        outcomes[n] = await awaited(functools.partial(call, n), self._timeout, self._unnamed)
                    except DependencyError as error:
                        outcomes[n] = _failure(error)
                        return

        async def all_() -> None:
            free = asyncio.Semaphore(self._most)
            async with asyncio.TaskGroup() as group:
                for lane in _lanes(events, keys):
                    group.create_task(follow(lane, free))

        self._loop.run_until_complete(all_())
        return {n: outcomes.get(n, Skipped) for n in events}

    def close(self) -> None:
        """Close the event loop."""
        self._loop.close()
