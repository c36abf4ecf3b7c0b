"""Waiting for a condition, never for a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from factory_agents.sandbox.processes import wait_until


def wait_for(condition: Callable[[], object], what: str, patience: float = 30) -> None:
    """Fail the test unless ``condition`` comes true within ``patience`` seconds."""
    if not wait_until(lambda: bool(condition()), patience):
        pytest.fail(f"waited {patience} s for {what}")
