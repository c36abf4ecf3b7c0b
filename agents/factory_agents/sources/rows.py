"""What every source shares: reading times, choosing an interval's rows, bounding batches, encoding keys, pacing."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from factory_agents.errors import ConfigurationError
from factory_agents.protocol import Interval
from factory_agents.runtime.agents import Reject, SourceRecord
from factory_agents.runtime.times import moment_of_text
from factory_agents.text import one_of

__all__ = [
    "BATCH_RECORDS",
    "DATE_LIKE",
    "Block",
    "ColumnType",
    "DateLike",
    "Header",
    "ReadOptions",
    "Rows",
    "TimeUnit",
    "TokenBucket",
    "all_to_micros",
    "as_is",
    "check_field",
    "encode_key",
    "encode_row",
    "paced",
    "require_time_field",
    "select",
    "time_reject",
    "to_micros",
    "window_micros",
]

BATCH_RECORDS = 5_000
TimeUnit: TypeAlias = Literal["auto", "s", "ms", "us", "ns"]
ColumnType: TypeAlias = Literal["string", "integer", "number", "boolean"]
Header: TypeAlias = Literal["strict", "rename"]


class DateLike(NamedTuple):
    """Numbers from ``low`` to below ``high`` whose rest by ``modulus`` lies from ``first`` to ``last``."""

    low: int
    high: int
    modulus: int
    first: int
    last: int


DATE_LIKE = (
    DateLike(1900, 2100, 1, 0, 0),
    DateLike(190001, 209913, 10**2, 1, 12),
    DateLike(10101, 991232, 10**4, 101, 1231),  # 240102
    DateLike(10100, 311300, 10**4, 100, 1299),  # 020124
    DateLike(10100, 123200, 10**4, 100, 3199),  # 010224
    DateLike(19000101, 20993113, 10**4, 101, 3112),  # 20240102, 20241301
    DateLike(2000010100, 2099123124, 10**6, 10100, 123123),  # 2024010203; of the last century it would be a second before 2034
    DateLike(190001010000, 209931122360, 10**8, 1010000, 31122359),
    DateLike(19000101000000, 20993112235960, 10**10, 101000000, 3112235959),
    DateLike(19000101000000 * 10**3, 20993112235960 * 10**3, 10**13, 101000000 * 10**3, 3112235960 * 10**3 - 1),
    DateLike(19000101000000 * 10**6, 20993112235960 * 10**6, 10**16, 101000000 * 10**6, 3112235960 * 10**6 - 1),
    DateLike(1011900, 31122100, 10**4, 1900, 2099),
)
"""What is more likely a year, month, day, hour, minute, second or a part of one as people write it than a count since 1970, the day before
the month, too; the last is a day with its year at the end.
"""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIRST = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND


class ReadOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How rows are read, whatever the system.

    ``time_field`` names the time by which rows belong to intervals (needed whenever there is one); ``time_unit`` is the unit of numeric
    times: ``auto`` goes by magnitude (below 1e11 seconds, below 1e14 milliseconds, below 1e17 microseconds, else nanoseconds), and takes no
    number that looks like a date (2024, 20240102): say its ``time_format``, as ``strptime`` has it (``%Y%m%d``; UTC without a zone).
    ``id_field`` names the field that becomes the record's key. ``rate_limit`` is in records a second, 0 for none.

    For files: ``format`` (``auto`` goes by the name), ``encoding`` of CSV and JSON Lines, and ``max_line_bytes``, past which a row is
    rejected. For CSV: ``delimiter`` (else what a first line ``sep=;`` says, or a comma), column ``types`` (every value is a string
    otherwise; an empty value of another type is null), ``nulls``, the words that mean null in any column, and ``header``, which says how
    to treat empty and repeated names: ``strict`` refuses them, ``rename`` makes them ``column_3`` (the third) and ``name_2`` (the second
    ``name``).
    """

    time_field: str = ""
    time_unit: TimeUnit = "auto"
    time_format: str = ""
    id_field: Annotated[str, msgspec.Meta(min_length=1)] = "event_id"
    format: Literal["auto", "jsonl", "csv", "tsv", "parquet"] = "auto"
    delimiter: Annotated[str, msgspec.Meta(max_length=1)] = ""
    encoding: str = "utf-8"
    types: dict[str, ColumnType] = {}
    nulls: tuple[str, ...] = ()
    header: Header = "strict"
    max_line_bytes: Annotated[int, msgspec.Meta(ge=1)] = 10 * 1024 * 1024
    rate_limit: Annotated[float, msgspec.Meta(ge=0)] = 0.0

    def __post_init__(self) -> None:
        """Refuse a ``time_format`` that ``strptime`` doesn't understand, an unknown ``encoding``, and a ``delimiter`` that is none."""
        if self.delimiter and self.delimiter in '"\r\n':
            raise ValueError(f"delimiter {self.delimiter!r}: expected what stands between two values, such as ; or a tab")
        try:
            "".encode(self.encoding)
        except LookupError as error:
            raise ValueError(f"encoding {self.encoding!r}: {error}; expected one that Python knows, such as utf-16 or cp1252") from None
        try:
            datetime.strptime("", self.time_format or "%Y")  # noqa: DTZ007
        except ValueError as error:
            if "does not match" not in str(error):
                raise ValueError(f"time_format {self.time_format!r}: {error}; expected directives as strptime has them") from None
        if self.time_format and not _YEARS & {*re.findall("%(.)", self.time_format)}:
            raise ValueError(f"time_format {self.time_format!r} has no year, so every time would be in 1900; expected %Y or %y in it")

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which records come out: all but the rate."""
        return {name: getattr(self, name) for name in ReadOptions.__struct_fields__ if name != "rate_limit"}


class Block(Protocol):
    """Some consecutive rows: their times in microseconds since 1970 UTC (None: not readable), and their records on demand."""

    @property
    def times(self) -> Sequence[int | None]:
        """One a row."""
        ...

    def records(self, indices: Sequence[int]) -> list[SourceRecord]:
        """The rows at these indices, as they go to the topic or are rejected."""
        ...


@dataclass(slots=True)
class Rows:
    """A block of rows in memory: a row's ``value`` is bytes as they stand, or what ``encode`` makes bytes of (it may raise Reject)."""

    name: str
    encode: Callable[[Any], bytes]
    numbers: Sequence[int]
    times: Sequence[int | None]
    keys: Sequence[Any]
    values: Sequence[Any]
    rejects: dict[int, Reject] = field(default_factory=dict)

    def records(self, indices: Sequence[int]) -> list[SourceRecord]:
        """See ``Block.records``."""
        name, numbers, keys, values = self.name, self.numbers, self.keys, self.values
        if not self.rejects and self.encode is as_is:
            return [SourceRecord(encode_key(keys[i]), values[i], f"{name}:{numbers[i]}") for i in indices]
        return [self._record(i) for i in indices]

    def _record(self, index: int) -> SourceRecord:
        key, value, where = encode_key(self.keys[index]), self.values[index], f"{self.name}:{self.numbers[index]}"
        reject = self.rejects.get(index)
        if type(value) is bytes:
            return SourceRecord(key, value, where, reject)
        try:
            return SourceRecord(key, self.encode(value), where, reject)
        except Reject as error:
            return SourceRecord(key, encode_row(value), where, error)


def as_is(value: bytes) -> bytes:
    """The ``encode`` of rows that are bytes already."""
    return value


def to_micros(value: Any, unit: TimeUnit = "auto", format_: str = "") -> int:
    """A time as microseconds since 1970 UTC, rounded down; raises ValueError saying what is wrong with it.

    Takes numbers (also as text), ISO-8601 text, datetimes and dates; what has no time zone is UTC; ``format_`` is for texts and numbers.
    """
    kind = type(value)
    if kind in _NUMBERS:
        return _formatted_to_micros(str(value).removesuffix(".0"), format_) if format_ else _number_to_micros(value, unit)
    if kind is str:
        return _formatted_to_micros(value, format_) if format_ else _text_to_micros(value, unit)
    if isinstance(value, datetime):
        micros = (value.replace(tzinfo=UTC) - _EPOCH if value.tzinfo is None else value - _EPOCH) // _MICROSECOND
        if not _FIRST <= micros <= _LAST:
            raise ValueError(f"is {value}, outside of the years 1 to 9999 in UTC")
        return micros
    if isinstance(value, date):
        return (datetime(value.year, value.month, value.day, tzinfo=UTC) - _EPOCH) // _MICROSECOND
    if value is None:
        raise ValueError("is missing or null")
    raise ValueError(f"is a {kind.__name__}, expected a number or an ISO-8601 text")


def all_to_micros(values: Sequence[Any], unit: TimeUnit = "auto", format_: str = "") -> list[int]:
    """``to_micros`` of each, faster where all are seconds (whole, or decimals), or whole milliseconds or microseconds."""
    kinds = set(map(type, values)) if not format_ else set()
    if kinds == {int} or kinds == {Decimal}:
        least, most = min(values), max(values)
        plain = unit != "auto" or not any(like.low <= most and least < like.high for like in DATE_LIKE)
        if unit in ("auto", "s") and plain and least >= 0 and most < 10**11:
            return [int(_FLOOR.multiply(value, 1_000_000)) for value in values] if Decimal in kinds else [v * 1_000_000 for v in values]
        if int in kinds and unit in ("auto", "ms") and plain and least >= (10**11 if unit == "auto" else 0) and most < 10**13:
            return [value * 1_000 for value in values]
        if int in kinds and unit == "us" and least >= _FIRST and most <= _LAST:
            return list(values)
    return [to_micros(value, unit, format_) for value in values]


_NUMBERS = (int, float, Decimal)
_YEARS = frozenset("YyGcxFD")
"""Directives of strptime's that hold a year."""
_MOST_DIGITS, _LONGEST_NUMBER = 30, 60
_NANOSECONDS = re.compile(r"([.,]\d{6})\d+")
_FLOOR = Context(prec=60, rounding=ROUND_FLOOR)
_PLACES: dict[str, int] = {"s": 6, "ms": 3, "us": 0, "ns": -3}


def _number_to_micros(value: int | float | Decimal, unit: TimeUnit) -> int:
    number: int | Decimal = value if isinstance(value, (int, Decimal)) else Decimal(repr(value))
    if isinstance(number, Decimal) and (not number.is_finite() or number.adjusted() > _MOST_DIGITS):
        raise ValueError(f"is {number:.6g}, not a time")
    if unit == "auto":
        if any(like.low <= number < like.high and like.first <= number % like.modulus < like.last + 1 for like in DATE_LIKE):
            raise _looks_like_a_date(value)
        size = max(number, -number)
        unit = "s" if size < 10**11 else "ms" if size < 10**14 else "us" if size < 10**17 else "ns"
    if isinstance(number, Decimal):
        micros = math.floor(number.scaleb(_PLACES[unit], _FLOOR))
    else:
        micros = number // 1000 if unit == "ns" else number * 10 ** _PLACES[unit]
    if not _FIRST <= micros <= _LAST:
        raise ValueError(f"is {Decimal(number):.20g} {unit}, outside of the years 1 to 9999")
    return micros


def _looks_like_a_date(value: Any) -> ValueError:
    return ValueError(f"is {value}, which looks like a date: set time_format to its form, such as %Y%m%d, or time_unit to its unit")


def _text_to_micros(text: str, unit: TimeUnit) -> int:
    text = text.strip()
    unsigned = text[1:] if text[:1] in ("-", "+") else text
    if len(text) <= _LONGEST_NUMBER and unsigned.isascii() and unsigned.replace(".", "", 1).isdigit():
        if unit == "auto" and len(unsigned) >= 6 and unsigned[0] == "0" and unsigned.isdigit():  # no count begins so: 050624
            raise _looks_like_a_date(text)
        return _number_to_micros(Decimal(text), unit)
    try:
        return to_micros(moment_of_text(_NANOSECONDS.sub(r"\1", text)))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"is {text[:40]!r}, expected ISO-8601 or a number within the years 1 to 9999") from error


def _formatted_to_micros(text: str, format_: str) -> int:
    zone: str | None = None
    try:
        read = datetime.strptime(text.strip(), format_)  # noqa: DTZ007  # what has no zone is UTC
        if "%Z" in format_ and read.tzinfo is None:
            zone = time.strptime(text.strip(), format_).tm_zone
        if zone is None or zone.upper() in ("UTC", "GMT"):
            return to_micros(read)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"is {text[:40]!r}, expected the form {format_}") from error
    raise ValueError(f"is {text[:40]!r}, and of zones by their names only UTC and GMT are known: give its offset, as %z")


def window_micros(interval: Interval | None) -> tuple[int, int]:
    """An interval's bounds in microseconds since 1970 UTC; bounds that hold every time, for None."""
    if interval is None:
        return _FIRST, _LAST + 1
    return (interval.start - _EPOCH) // _MICROSECOND, (interval.end - _EPOCH) // _MICROSECOND


def require_time_field(options: ReadOptions, interval: Interval | None) -> None:
    """Raise ConfigurationError where an interval is asked for and no field tells its rows."""
    if interval is not None and not options.time_field:
        raise ConfigurationError("ingest: an interval needs time_field, the name of the field that holds each row's time; set it")


def check_field(name: str, what: str, known: Sequence[str], where: str) -> None:
    """Raise ConfigurationError, with the name likely meant, where ``name`` is none of those ``known``."""
    if name in known:
        return
    raise ConfigurationError(f"{where}: {what} {name!r} is not there{one_of(name, known)}")


def time_reject(name: str, error: Exception) -> Reject:
    """Why a row is rejected whose time could not be read."""
    return Reject(f"the time {name!r} {error}", rule="time")


def select(blocks: Iterable[Block], interval: Interval | None, skip: int, first_time: Callable[[], int]) -> Iterator[list[SourceRecord]]:
    """The records of an interval's rows, in order, without the first ``skip``, at most ``BATCH_RECORDS`` at a time.

    Each block gives at least one batch, an empty one where it holds no row of the interval: so whoever reads can stop meanwhile.

    A row without a readable time belongs where the last readable one before it belongs; leading ones belong with ``first_time()``, the
    source's first readable time, which is asked for only if there are any. So every row is in exactly one of intervals that tile time.
    """
    start, end = window_micros(interval)
    inside: bool | None = None
    for block in blocks:
        chosen = []
        for index, micros in enumerate(block.times):
            if micros is not None:
                inside = start <= micros < end
            elif inside is None:
                inside = start <= first_time() < end
            if inside:
                chosen.append(index)
        skipped = min(skip, len(chosen))
        skip -= skipped
        if skipped == len(chosen):
            yield []
        for i in range(skipped, len(chosen), BATCH_RECORDS):
            yield block.records(chosen[i : i + BATCH_RECORDS])


def encode_key(value: Any) -> bytes | None:
    """An id as a record's key: text as it is, anything else as JSON; None for a missing, null or empty one."""
    if type(value) is str:
        return value.encode() or None
    return None if value is None else _encode_key(value)


_encode_key = msgspec.json.Encoder(enc_hook=str, decimal_format="number").encode

encode_row = msgspec.json.Encoder(enc_hook=str).encode
"""A row as JSON: decimals as text (exact), times as ISO-8601, bytes as base64; numbers that JSON lacks (NaN, infinities) become null."""


class TokenBucket:
    """Lets ``rate`` tokens a second pass, with bursts of at most ``burst``; ``clock`` gives monotonic seconds."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens = burst
        self._at = clock()

    def take(self, count: int) -> float:
        """Take tokens, on credit if need be; returns after how many seconds they may be used."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate) - count
        self._at = now
        return max(0.0, -self._tokens / self._rate)


def paced(
    batches: Iterator[list[SourceRecord]],
    rate: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[list[SourceRecord]]:
    """The same records at no more than ``rate`` a second (0: as fast as they come), in batches of at most a tenth of a second's.

    While it waits it yields an empty batch twice a second.
    """
    if not rate:
        yield from batches
        return
    piece = max(1, int(rate / 10))
    bucket = TokenBucket(rate, piece, clock)
    for batch in batches:
        for i in range(0, len(batch), piece):
            part = batch[i : i + piece]
            wait = bucket.take(len(part))
            while wait > 0:
                sleep(min(wait, 0.5))
                wait -= 0.5
                if wait > 0:
                    yield []
            yield part
