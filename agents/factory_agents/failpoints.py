"""Named points at which a test makes this process die, stop or fail; inert unless ``FACTORY_FAILPOINTS`` names one.

``FACTORY_FAILPOINTS=chunk.before-commit=kill@3`` kills the process at the third pass of that point.
Actions: ``kill`` (SIGKILL), ``stop`` (SIGSTOP), ``raise``.
"""

from __future__ import annotations

import os
import signal

__all__ = ["hit"]

_counts: dict[str, int] = {}
_SPEC = os.environ.get("FACTORY_FAILPOINTS", "")


def _parse(text: str) -> dict[str, tuple[str, int]]:
    points = {}
    for item in filter(None, text.split(",")):
        name, _, action = item.partition("=")
        what, _, nth = action.partition("@")
        points[name] = (what, int(nth or 1))
    return points


_POINTS = _parse(_SPEC)


def hit(name: str) -> None:
    """Pass the point; nothing happens unless a test armed it."""
    if not _POINTS or name not in _POINTS:
        return
    _counts[name] = _counts.get(name, 0) + 1
    action, nth = _POINTS[name]
    if _counts[name] != nth:
        return
    if action == "raise":
        raise RuntimeError(f"failpoint {name}")
    os.kill(os.getpid(), signal.SIGSTOP if action == "stop" else signal.SIGKILL)
