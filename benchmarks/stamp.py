"""An agent that notes when its first event came (``BENCH_STAMP`` names the file), on the clock that all processes share."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

_noted = False


def stamp(event: dict[str, Any]) -> dict[str, Any]:
    """Set the field that every contestant sets."""
    global _noted
    if not _noted:
        Path(os.environ["BENCH_STAMP"]).write_text(str(time.monotonic()))
        _noted = True
    event["enriched"] = True
    return event


def mark(event: dict[str, Any]) -> dict[str, Any]:
    """Set the field, and note nothing."""
    event["enriched"] = True
    return event
