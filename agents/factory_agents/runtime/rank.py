"""Bytes that compare as rows of one key do, so that any database can tell which of two is newer."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from operator import add
from typing import Any

from factory_agents.contracts import TableSpec
from factory_agents.errors import ConfigurationError

__all__ = ["PLACE", "Ranker", "rank_of", "window_start"]

PLACE = 40
"""How many bytes at a rank's end say where its record lies among all others, whatever its values: window, timestamp, partition, offset."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COMPARED = {
    *("text", "char", "varchar", "bigint", "integer", "smallint", "double", "real", "boolean", "numeric"),
    *("timestamptz", "timestamp", "date", "time", "uuid"),
}
_SIGN = 1 << 63
_PACK = struct.Struct(">8sQQQ8s").pack
_FLIP = bytes(255 - b for b in range(256))


class Ranker:
    """Makes rows' ranks of their values and their records' timestamps, partitions and offsets.

    Rows of one key are compared by version, time (no value is the least), the window's start, the record, and the generation. Raises
    ConfigurationError where the version or the time is of a type that isn't compared here.
    """

    def __init__(self, table: TableSpec, window: str, generation: int = 0) -> None:
        names = [c.name for c in table.columns]
        self._places = []
        for name in filter(None, (table.version, table.time)):
            column = table.column(name)
            if column is None or column.type.array or column.type.name not in _COMPARED:
                shown = column.type.text if column is not None else "no column"
                expected = ", ".join(sorted(_COMPARED))
                raise ConfigurationError(f"column {name!r}: rows are compared by it; expected one of {expected}, got {shown}")
            self._places.append(names.index(name))
        self._start, self._end = _whole(window_start(window)), _whole(generation)

    def one(self, values: Sequence[Any], timestamp: int, partition: int, offset: int) -> bytes:
        """The rank of one row."""
        (rank,) = self.many([[value] for value in values], [(timestamp, partition, offset)])
        return rank

    def many(self, columns: Sequence[Sequence[Any]], records: Iterable[tuple[int, int, int]]) -> list[bytes]:
        """The ranks of rows whose values are given column by column."""
        start, end, pack = self._start, self._end, _PACK
        ranks = [pack(start, t + _SIGN, p + _SIGN, o + _SIGN, end) for t, p, o in records]
        for i in reversed(self._places):
            ranks = list(map(add, map(rank_of, columns[i]), ranks))
        return ranks


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
    try:
        return _RANKS[type(value)](value)
    except KeyError:
        raise TypeError(f"rows are not compared by {type(value).__name__}") from None


def _micros(moment: datetime) -> int:
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


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


_RANKS: Mapping[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"\0",
    str: lambda text: b"\1" + text.encode("utf-8", "surrogatepass").replace(b"\0", b"\0\xff") + b"\0\0",
    int: lambda number: b"\1" + _whole(number),
    bool: lambda flag: b"\1" + _whole(flag),
    float: lambda number: b"\1" + _double(number),
    Decimal: lambda number: b"\1" + _decimal(number),
    uuid.UUID: lambda value: b"\1" + value.bytes,
    time: lambda value: b"\1" + _whole(_micros(datetime.combine(_EPOCH.date(), value))),
    datetime: lambda moment: b"\1" + _whole(_micros(moment)),
    date: lambda day: b"\1" + _whole(day.toordinal()),
}
