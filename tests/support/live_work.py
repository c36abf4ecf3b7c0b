"""Work that goes on until it is told to stop, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from factory_agents.protocol import Counts

_PATIENCE = 60


class LiveWork:
    """``work`` is given what says when to stop, and gives what became of its records."""

    def __init__(self, work: Callable[[Callable[[], bool]], Counts]) -> None:
        self.stop = threading.Event()
        self.counts: Counts | None = None
        self.error: BaseException | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.counts = self._work(self.stop.is_set)
        except BaseException as error:
            self.error = error

    def wait(self) -> None:
        """Until it has ended."""
        self._thread.join(_PATIENCE)
        assert not self._thread.is_alive()

    def end(self) -> Counts:
        """Stop it; its counts, or its error raised."""
        self.stop.set()
        self.wait()
        if self.error is not None:
            raise self.error
        assert self.counts is not None
        return self.counts


_Live = TypeVar("_Live", bound=LiveWork)


@contextmanager
def ending(running: _Live) -> Iterator[_Live]:
    """The work under way; it is stopped at the end, whatever comes of it."""
    try:
        yield running
    finally:
        running.stop.set()
        running.wait()
