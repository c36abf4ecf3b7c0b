"""Reads ISO-8601 times as events hold them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from factory_agents.contracts.documents import show

__all__ = ["iso_time"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_END = r"(?<=[Tt ])24:00(?::00(?:[.,]0+)?)?(?=$|[Zz+-])"


def iso_time(value: Any) -> int | None:
    """Microseconds since 1970 of an ISO-8601 text (without a zone it is UTC), None of None; ValueError for anything else."""
    if value is None:
        return None
    try:
        time = _parse_iso(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"expected an ISO-8601 time, such as 2026-11-01T04:00:00Z, got {show(value)}") from error
    since = time - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _parse_iso(value: str) -> datetime:
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        if not re.search(r":60(?!\d)|z$|" + _DAY_END, value):
            raise
        plain = re.sub(r":60(?!\d)", ":59", value).upper()  # a leap second, a small z: RFC 3339 has both; the day's end: ISO 8601
        ends = re.search(_DAY_END, plain)
        time = datetime.fromisoformat(re.sub(_DAY_END, "00:00", plain)) + timedelta(days=1 if ends else 0)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
