"""Failpoints do nothing unless a test arms one, and then at the pass that it names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

PROGRAM = "from factory_agents.failpoints import hit\nfor n in range(3): print(n, flush=True); hit('here'); hit('there')"


def passes(points: str | None) -> tuple[int, int]:
    """How a process ended that passes two points three times, and how often it began to."""
    environment = {k: v for k, v in os.environ.items() if k != "FACTORY_FAILPOINTS"} | ({"FACTORY_FAILPOINTS": points} if points else {})
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, len(done.stdout.split())


@pytest.mark.parametrize("points", [None, "elsewhere=kill", "here=kill@4"])
def test_a_point_that_is_not_reached_does_nothing(points: str | None) -> None:
    assert passes(points) == (0, 3)


@pytest.mark.parametrize(
    ("points", "code", "begun"), [("here=kill", -signal.SIGKILL, 1), ("there=kill@3", -signal.SIGKILL, 3), ("a=stop,here=raise@2", 1, 2)]
)
def test_an_armed_point_acts_at_its_pass(points: str, code: int, begun: int) -> None:
    assert passes(points) == (code, begun)
