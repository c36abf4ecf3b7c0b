"""Bytes that compare as rows of one key do, so that any database can tell which of two is newer."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from factory_agents.contracts import TableSpec
from factory_agents.errors import ConfigurationError

__all__ = ["PLACE", "rank_of", "ranker", "window_start"]

PLACE = 40
"""How many bytes at a rank's end say where its record lies among all others, whatever its values: window, timestamp, partition, offset."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COMPARED = {
    *("text", "char", "varchar", "bigint", "integer", "smallint", "double", "real", "boolean", "numeric"),
    *("timestamptz", "timestamp", "date", "time", "uuid"),
}
_SIGN = 1 << 63
_FLIP = bytes(255 - b for b in range(256))


def ranker(table: TableSpec, window: str, generation: int = 0) -> Callable[[Sequence[Any], int, int, int], bytes]:
    """Makes a row's rank of its values and its record's timestamp, partition and offset.

    Rows of one key are compared by version, time (no value is the least), the window's start, the record, and the generation. Raises
    ConfigurationError where the version or the time is of a type that isn't compared here.
    """
    names = [c.name for c in table.columns]
    places = []
    for name in filter(None, (table.version, table.time)):
        column = table.column(name)
        if column is None or column.type.array or column.type.name not in _COMPARED:
            shown = column.type.text if column is not None else "no column"
            expected = ", ".join(sorted(_COMPARED))
            raise ConfigurationError(f"column {name!r}: rows are compared by it; expected one of {expected}, got {shown}")
        places.append(names.index(name))
    start, end = _whole(window_start(window)), _whole(generation)

    def rank(values: Sequence[Any], timestamp: int, partition: int, offset: int) -> bytes:
        own = struct.pack(">QQQ", timestamp + _SIGN, partition + _SIGN, offset + _SIGN)
        return b"".join([*(rank_of(values[i]) for i in places), start, own, end])

    return rank


def window_start(window: str) -> int:
    """When an interval's window starts, in microseconds since 1970; 0 for one that isn't of an interval."""
    first, between, _ = window.partition("/")
    try:
        start = datetime.fromisoformat(first) if between else _EPOCH
    except ValueError:
        return 0
    return _micros(start)


def rank_of(value: Any) -> bytes:
    """One value's bytes: of two values of one type the greater has the greater bytes, and none is the beginning of another."""
    if value is None:
        return b"\0"
    if isinstance(value, str):
        return b"\1" + value.encode("utf-8", "surrogatepass").replace(b"\0", b"\0\xff") + b"\0\0"
    if isinstance(value, int):  # booleans too
        return b"\1" + _whole(value)
    if isinstance(value, float):
        return b"\1" + _double(value)
    if isinstance(value, Decimal):
        return b"\1" + _decimal(value)
    if isinstance(value, uuid.UUID):
        return b"\1" + value.bytes
    if isinstance(value, time):
        return b"\1" + _whole(_micros(datetime.combine(_EPOCH.date(), value)))
    if isinstance(value, datetime):
        return b"\1" + _whole(_micros(value))
    if isinstance(value, date):
        return b"\1" + _whole(value.toordinal())
    raise TypeError(f"rows are not compared by {type(value).__name__}")


def _micros(moment: datetime) -> int:
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _whole(number: int) -> bytes:
    return (number + _SIGN).to_bytes(8, "big")


def _double(number: float) -> bytes:
    data = struct.pack(">d", number + 0.0)  # -0.0 is 0.0
    return data.translate(_FLIP) if data[0] & 0x80 else bytes([data[0] | 0x80]) + data[1:]


def _decimal(number: Decimal) -> bytes:
    """Sign, place of the first digit, digits: complemented where the sign is negative."""
    if not number:
        return b"\1"
    digits = bytes(d + 1 for d in number.as_tuple().digits).lstrip(b"\1").rstrip(b"\1")
    size = (number.adjusted() + 2**31).to_bytes(4, "big") + digits + b"\0"
    return b"\2" + size if number > 0 else b"\0" + size.translate(_FLIP)
