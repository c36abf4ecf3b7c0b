"""How much is tried: little where every change waits for it, much in ``make soak``."""

from __future__ import annotations

import os

SOAK = bool(os.environ.get("FACTORY_SOAK"))


def examples(quick: int, soak: int) -> int:
    """How many examples of a property are tried."""
    return soak if SOAK else quick
