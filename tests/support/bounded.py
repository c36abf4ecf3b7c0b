"""Code in a process of its own that is told how much time and memory it took."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

_AROUND = """
import json, resource, sys
{code}
usage = resource.getrusage(resource.RUSAGE_SELF)  # its ru_maxrss begins with what the parent had
with open("/proc/self/status") as status:
    most = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps([most / 1024, usage.ru_utime + usage.ru_stime, answer]))
"""


@dataclass(frozen=True)
class Cost:
    """Mebibytes of memory at most resident, seconds of the processor, and what the code left in ``answer``."""

    mebibytes: float
    seconds: float
    answer: Any


def cost_of(code: str, *arguments: str) -> Cost:
    """Run code that leaves a JSON-able ``answer``; ``arguments`` are its ``sys.argv[1:]``."""
    command = [sys.executable, "-c", _AROUND.format(code=code), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return Cost(*json.loads(done.stdout.splitlines()[-1]))
