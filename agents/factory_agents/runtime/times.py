"""Times as events have them, exact to the microsecond or refused: what msgspec's own decoder is too strict for, and numbers."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

__all__ = ["UNITS", "check_clock", "moment_of_number", "moment_of_text", "split_time", "without_zone"]

UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
"""Microseconds of a contract's units."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = -62_135_596_800, 253_402_300_800
_SAFE = 2**51
"""Microseconds up to which a float of any unit says which one is meant."""
_NO_YEAR = "not a time between the years 1 and 9999"
_DAY = 86_400_000_000
_MICRO = Decimal("0.000001")
_DAY_END = re.compile(r"(?:(?<=[Tt ])|^)24(?::?00){1,2}(?:[.,]0+)?(?=$|[Zz+-])")
_CLOCK = re.compile(r"\d\d(:?)(?:\d\d(?:\1\d\d(?:[.,]\d+)?)?)?(?:[Zz+-].*)?")
_DAY_AND_CLOCK = re.compile(r"[0-9W-]{7,10}[Tt ]")
_LONG_FRACTION = re.compile(r"[.,](\d{7,})")


def moment_of_number(value: float | Decimal, micros: int) -> datetime:
    """A time from a number since 1970, exact to the microsecond; raises ValueError for a float that cannot say which one it is."""
    since: Any = value * micros
    if type(value) is float and abs(since) >= _SAFE:
        if math.ulp(value) * micros > 1:
            raise ValueError("a float of this size keeps no microseconds")
        since = Decimal(repr(value)) * micros
    if not _FIRST * 1_000_000 <= since < _LAST * 1_000_000 or (whole := round(since)) == _LAST * 1_000_000:
        raise ValueError(_NO_YEAR)
    return _EPOCH + timedelta(microseconds=whole)


def check_clock(text: str) -> None:
    """Refuse, with ValueError, what Python reads as another time of day than is meant: 12.50 is half a second past twelve to it."""
    if not _CLOCK.fullmatch(text):
        raise ValueError("expected a time of day such as 04:05:06")


def split_time(text: str) -> tuple[str, int]:
    """A time that Python reads, and the microseconds to add to it: a day for 24:00, more than six digits of a second rounded."""
    more = 0
    if fraction := _LONG_FRACTION.search(text):
        more = int(Decimal(f"0.{fraction[1]}").quantize(_MICRO, ROUND_HALF_UP) * 1_000_000)
        text = text[: fraction.start()] + text[fraction.end() :]
    if not more and (end := _DAY_END.search(text)):
        text, more = f"{text[: end.start()]}00{text[end.start() + 2 :]}", _DAY
    return text, more


def moment_of_text(text: Any) -> datetime:
    """ISO-8601 as Python reads it, a leap second and the day's end at 24:00 included; without a zone it is UTC, as the contract has it."""
    if type(text) is not str:
        raise TypeError(f"expected a time as text, got {type(text).__name__}")
    if clock := _DAY_AND_CLOCK.match(text):
        check_clock(text[clock.end() :])
    plain, more = split_time(re.sub(r"(:\d\d):60(?!\d)", r"\1:59", text).replace("z", "Z"))
    try:
        found = datetime.fromisoformat(plain) + timedelta(microseconds=more)
    except OverflowError as error:
        raise ValueError(_NO_YEAR) from error
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def without_zone(moment: datetime) -> datetime:
    """A time of UTC without saying so."""
    try:
        return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)
    except OverflowError as error:
        raise ValueError(_NO_YEAR) from error
