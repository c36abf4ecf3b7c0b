"""A thread in which the agent's code runs, so that the runtime can commit, and stop, while the agent is busy."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

from factory_agents.errors import AgentError

__all__ = ["AgentThread"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_EVERY = 0.1
_CLOSE_SECONDS = 2.0
_STACK_BYTES = 16 * 1024 * 1024  # as deep as a main thread's, on systems too that give threads little
_stack_size = threading.Lock()


class AgentThread:
    """Runs one call after the other, all in the same thread: an agent may keep what belongs to its thread.

    A transaction that waited for a slow agent would outlive its timeout. So the runtime calls the agent here and is asked ``meanwhile``,
    every tenth of a second, whether there is something to commit or a reason to go.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._busy = False
        self._since = 0.0
        context = contextvars.copy_context()  # whose lines it logs
        self._thread = threading.Thread(target=lambda: context.run(self._serve), name=f"agent {name}", daemon=True)
        with _stack_size:  # the process has one for all threads: it is as it was before another agent looks
            before = threading.stack_size(_STACK_BYTES)
            try:
                self._thread.start()
            finally:
                threading.stack_size(before)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            answer: tuple[Any, BaseException | None]
            try:
                answer = job(), None
            except BaseException as error:
                answer = None, error
            del job
            self._answers.put(answer)
            del answer

    def call(self, function: Callable[[], _T], meanwhile: Callable[[], None] = lambda: None) -> _T:
        """The function's value, or what it raised. What ``meanwhile`` raises leaves the call behind; the next one waits for its end first.

        Raises AgentError when the agent tried to end the process.
        """
        while self._busy:
            with contextlib.suppress(Empty):
                self._answers.get(timeout=_EVERY)
                self._busy = False
                break
            meanwhile()
        self._busy = True
        self._since = time.monotonic()
        self._jobs.put(function)
        while True:
            try:
                value, error = self._answers.get(timeout=_EVERY)
                break
            except Empty:
                meanwhile()
        self._busy = False
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            raise AgentError(f"the agent raised {error!r} to end the process; raise Reject(reason) to refuse an event") from error
        if error is not None:
            raise error
        result: _T = value
        return result

    @property
    def busy_seconds(self) -> float:
        """How long the call has lasted that is under way."""
        return time.monotonic() - self._since if self._busy else 0.0

    def close(self, cleanup: Callable[[], Any] = lambda: None) -> None:
        """Call ``cleanup`` there and end the thread; one that is still busy is left to end by itself."""
        self._jobs.put(cleanup)
        self._jobs.put(None)
        if not self._busy:
            self._thread.join(_CLOSE_SECONDS)
