"""The agent's thread: one call after the other, and the caller free meanwhile."""

from __future__ import annotations

import threading
import time

import pytest

from factory_agents.errors import AgentError
from factory_agents.runtime.agent_thread import AgentThread


def test_calls_run_in_one_thread_that_is_not_the_callers() -> None:
    thread = AgentThread("a")
    idents = {thread.call(threading.get_ident) for _ in range(5)}
    thread.close()
    assert len(idents) == 1
    assert idents != {threading.get_ident()}


def test_what_the_call_raises_is_raised_to_the_caller() -> None:
    thread = AgentThread("a")
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 // 0)
    assert thread.call(lambda: 7) == 7
    thread.close()


@pytest.mark.parametrize("ending", [SystemExit(0), KeyboardInterrupt()])
def test_an_agent_cannot_end_the_process(ending: BaseException) -> None:
    thread = AgentThread("a")

    def leave() -> None:
        raise ending

    with pytest.raises(AgentError, match="to end the process"):
        thread.call(leave)
    thread.close()


def test_the_caller_is_asked_meanwhile() -> None:
    thread, asked = AgentThread("a"), threading.Event()
    assert thread.call(lambda: asked.wait(10), asked.set) is True
    thread.close()


def test_a_call_left_behind_is_waited_for_by_the_next_and_its_value_dropped() -> None:
    thread, go = AgentThread("a"), threading.Event()

    def impatient() -> None:
        raise TimeoutError

    def busy() -> str:
        go.wait(10)
        return "late"

    with pytest.raises(TimeoutError):
        thread.call(busy, impatient)
    assert thread.call(lambda: "next", go.set) == "next"
    thread.close()


def test_closing_cleans_up_there_and_does_not_wait_for_a_busy_agent() -> None:
    thread, cleaned, go = AgentThread("a"), threading.Event(), threading.Event()

    def impatient() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        thread.call(lambda: go.wait(30), impatient)
    began = time.monotonic()
    thread.close(cleaned.set)
    assert time.monotonic() - began < 20  # and not the thirty seconds that it is busy
    assert not cleaned.is_set()
    go.set()
    assert cleaned.wait(30)
