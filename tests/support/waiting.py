"""Waiting for a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

from factory_agents.sandbox.processes import wait_until

_T = TypeVar("_T")


def quickest(act: Callable[[], _T], *, times: int = 5) -> tuple[float, _T]:
    """The least seconds that it took, and its last answer: what waits for something does so each time, a busy machine not."""
    took = []
    for _ in range(times):
        began = time.monotonic()
        answer = act()
        took.append(time.monotonic() - began)
    return min(took), answer


def wait_for(condition: Callable[[], object], what: str, patience: float = 30) -> None:
    """Fail the test unless ``condition`` comes true within ``patience`` seconds."""
    if not wait_until(lambda: bool(condition()), patience):
        pytest.fail(f"waited {patience} s for {what}")
