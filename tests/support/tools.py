"""Programs that a machine may have: on the PATH, or built into the cache of tools (``~/.cache/factory-tools/MODULE@VERSION/NAME``)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from factory_agents.sandbox.processes import alive, free_port, last_line, spawn, stop, wait_until

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "factory-tools"


def find_tool(*names: str) -> str | None:
    """The first of these programs that is there."""
    for name in names:
        cached = sorted(CACHE.glob(f"*{name}@*/{name}"))
        found = shutil.which(name) or next((str(path) for path in reversed(cached)), None)
        if found:
            return found
    return None


CRANE = find_tool("crane")


@contextmanager
def image_registry(folder: Path) -> Iterator[str]:
    """A registry of images and charts on loopback, in memory: its address."""
    assert CRANE is not None
    address, log = f"127.0.0.1:{free_port('127.0.0.1')}", folder / "registry.log"
    process = spawn([CRANE, "registry", "serve", "--address", address], log=log)
    try:
        assert wait_until(lambda: subprocess.run([str(CRANE), "catalog", address], capture_output=True, check=False).returncode == 0, 30)
        assert alive(process), last_line(log)
        yield address
    finally:
        stop(process, (signal.SIGTERM, 10), (signal.SIGKILL, 5))
