"""Programs that a machine may have: on the PATH, or built into the cache of tools (``~/.cache/factory-tools/MODULE@VERSION/NAME``)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "factory-tools"


def find_tool(*names: str) -> str | None:
    """The first of these programs that is there."""
    for name in names:
        cached = sorted(CACHE.glob(f"*{name}@*/{name}"))
        found = shutil.which(name) or next((str(path) for path in reversed(cached)), None)
        if found:
            return found
    return None
