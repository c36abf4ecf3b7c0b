"""An agent's process that says, in the last line of its log, how much memory it needed at most (``peak_mb``)."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def measured(main: Callable[[], int]) -> int:
    """Run to the end, then tell. (Not ``getrusage``: its figure includes the process that this one was forked from.)"""
    code = main()
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    print(f"peak_mb={int(found[1]) // 1024 if found else -1}", file=sys.stderr, flush=True)
    return code


def peak_of(log: str) -> int:
    """Megabytes, from the log of a process that ran to its end."""
    found = re.search(r"^peak_mb=(\d+)$", log, re.MULTILINE)
    assert found, log
    return int(found[1])


def peak_of_python(code: str) -> tuple[str, int]:
    """What code printed that ran in a process of its own, and the megabytes that this needed at most."""
    whole = f"import sys; from tests.support.measured import measured\ndef main():\n    {code}\n    return 0\nsys.exit(measured(main))"
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), peak_of(done.stderr)


if __name__ == "__main__":
    from factory_agents.run import main

    sys.exit(measured(main))
