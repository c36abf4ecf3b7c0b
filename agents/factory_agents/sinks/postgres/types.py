"""PostgreSQL's types: which contract's types each takes, and how a value of an event becomes what its binary COPY wants."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import struct
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Context, Decimal
from functools import partial
from typing import Annotated, Any, Literal

import msgspec

from factory_agents.contracts import ColumnType
from factory_agents.runtime.numbers import decode_exact, whole_number
from factory_agents.runtime.times import UNITS, check_clock, moment_of_number, moment_of_text, split_time, without_zone

__all__ = ["KEY_BYTES", "FoundType", "Kind", "fits", "kind_of", "natural_type"]

KEY_BYTES = 2500
"""What the text columns of a key may take together: an index entry holds about a third of PostgreSQL's 8 KiB page."""

_TEXTS = frozenset({"text", "char", "varchar"})
_WHOLE = frozenset({"bigint", "integer", "smallint"})
_FLOATS = frozenset({"double", "real"})
_STRINGS = ("text", "character varying", "character", "name", "citext")
_BITS = {"bigint": 63, "integer": 31, "smallint": 15}
_TAKES: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(_STRINGS, _TEXTS),
    **dict.fromkeys(_BITS, _WHOLE),
    "enum": _TEXTS,
    "double precision": _FLOATS,
    "real": _FLOATS,
    "numeric": _WHOLE | _FLOATS | {"numeric"},
    "boolean": frozenset({"boolean"}),
    "timestamp with time zone": _TEXTS | {"timestamptz", "timestamp"},
    "timestamp without time zone": _TEXTS | {"timestamptz", "timestamp"},
    "date": _TEXTS | {"date"},
    "time without time zone": _TEXTS | {"time"},
    "time with time zone": _TEXTS | {"time"},
    "interval": _TEXTS | {"interval"},
    "uuid": _TEXTS | {"uuid"},
    "bytea": _TEXTS | {"bytea"},
    "inet": _TEXTS | {"inet"},
    "cidr": _TEXTS | {"inet"},
    "json": _TEXTS | {"json"},
    "jsonb": _TEXTS | {"json"},
}
"""The contract's types that each of PostgreSQL's takes; values are checked where it is narrower."""

_NATURAL = {
    **dict.fromkeys(_STRINGS, "text"),
    "enum": "text",
    "double precision": "double",
    "timestamp with time zone": "timestamptz",
    "timestamp without time zone": "timestamp",
    "time without time zone": "time",
    "time with time zone": "time",
    "cidr": "inet",
    "jsonb": "json",
}

_MOST_DOUBLE = 1.7976931348623157e308
_MOST_REAL = 3.4028234663852886e38
_MOST_CHARACTERS = 2**31
_LARGEST_OFFSET = 16 * 3600
_NUMERIC_DIGITS = 2000
_EXACT = Context(prec=2 * _NUMERIC_DIGITS)
_JSONB_VERSION = b"\x01"  # what its binary form begins with
_NUL_IN_JSON = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_EXTREME_NUMBER = re.compile(rb"[0-9][eE][+-]?[0-9]{4}|[0-9]{2000}")
_JSON_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*')
_LARGEST_WEIGHT, _LARGEST_SCALE = 131_071, 16_383  # of PostgreSQL's numeric, which jsonb's numbers are


class FoundType(msgspec.Struct, frozen=True):
    """A column's type as the catalogue has it, domains followed to what they stand for.

    ``shown`` is its name for messages, ``staged`` the one for a table without the domains' checks. ``base`` is PostgreSQL's name without
    length, or ``enum``, with its ``labels``; a list has the type of its ``element`` instead, which PostgreSQL knows by ``element_oid``
    (``of_domains``: the elements are of a domain, and this is what the domain is of). ``equals`` is the operator by which indexes tell its
    values apart: that of an extension's type may be in a schema that isn't searched.
    """

    shown: str
    staged: str
    base: str
    modifier: int = -1
    labels: tuple[str, ...] = ()
    element: FoundType | None = None
    element_oid: int = 0
    of_domains: bool = False
    equals: str = "="

    @property
    def length(self) -> int | None:
        """The most characters that a text may have."""
        return self.modifier - 4 if self.base in ("character varying", "character") and self.modifier >= 4 else None

    @property
    def digits(self) -> tuple[int, int] | None:
        """Precision and scale of a numeric that has them."""
        if self.base != "numeric" or self.modifier < 4:
            return None
        scale = (self.modifier - 4) & 0x7FF
        return (self.modifier - 4) >> 16 & 0xFFFF, scale - 2048 if scale >= 1024 else scale


class Kind(msgspec.Struct, frozen=True):
    """How the values of one column are read and copied.

    msgspec reads JSON as ``decoded``, ``finish`` makes of that what is copied; where it doesn't take a value that is right all the same
    (a time without a zone), ``lenient`` gets what is decoded without a type, fractions as decimals. What ``finish`` refuses because a
    decoded value lost it ``of_raw`` reads. psycopg copies a value as the type ``copied_as``: for bytes that have PostgreSQL's binary form
    already, bytea.
    """

    name: str
    decoded: Any
    copied_as: str
    finish: Callable[[Any], Any] | None = None
    lenient: Callable[[Any], Any] | None = None
    of_raw: Callable[[msgspec.Raw], Any] | None = None
    text: bool = False

    @property
    def default(self) -> Any:
        """What stands for a missing value in place of ``decoded``."""
        return _NULL if self.decoded is msgspec.Raw else None

    def read(self, raw: msgspec.Raw) -> Any:
        """A value that is not null, as it is copied; raises what ``UNFIT`` names."""
        if self.of_raw is not None:
            return self.of_raw(raw)
        try:
            value = msgspec.json.decode(raw, type=self.decoded)
        except msgspec.ValidationError:
            if self.lenient is None:
                raise
            value = self.lenient(decode_exact(raw))
        _refuse_nul(value)
        return self.finish(value) if self.finish is not None else value


UNFIT = (msgspec.MsgspecError, ValueError, TypeError, ArithmeticError, RecursionError)
"""What reading a value that doesn't fit raises."""

_NULL = msgspec.Raw(b"null")


def fits(wanted: ColumnType, found: FoundType) -> bool:
    """Whether a column takes values of a contract's type."""
    if found.element is not None:
        return wanted.name == "json" if not wanted.array else fits(ColumnType(wanted.name), found.element)
    if wanted.array:
        return found.base in ("json", "jsonb")
    return wanted.name in _TAKES.get(found.base, ())


def natural_type(found: FoundType) -> ColumnType | None:
    """The contract's type that says the same as a column's; None for one that isn't written."""
    if found.element is not None:
        element = natural_type(found.element)
        return None if element is None else ColumnType(element.name, array=True)
    return ColumnType(_NATURAL.get(found.base, found.base)) if found.base in _TAKES else None


def kind_of(wanted: ColumnType, found: FoundType, *, key_bytes: int = 0, unit: str = "") -> Kind:
    """How values are read for a column that ``fits``; ``key_bytes`` is what a text of a key may take, ``unit`` a number's as a time."""
    base = found.base
    if found.element is not None:
        return Kind(found.shown, msgspec.Raw, "bytea", finish=_Array(found, wanted).binary)
    if base in ("json", "jsonb"):
        version = _JSONB_VERSION if base == "jsonb" else b""
        return _document(base, version) if wanted.name in _TEXTS and not wanted.array else _json(base, version)
    if base in _STRINGS:
        return _text(found, key_bytes)
    if base == "enum":
        return Kind(f"one of {', '.join(found.labels)}", Literal[found.labels] if found.labels else None, "text", text=False)
    if base in _BITS:
        bits = _BITS[base]
        whole = Annotated[int, msgspec.Meta(ge=-(2**bits), le=2**bits - 1)]
        return Kind(base, whole, f"int{(bits + 1) // 8}", lenient=lambda value: msgspec.convert(whole_number(value), whole))
    if base == "numeric":
        return Kind(found.shown, Decimal, "numeric", finish=lambda number: _numeric(number, found.digits))
    if unit and base in _FROM_NUMBER:
        copied_as, finish = _FROM_NUMBER[base]
        moment = partial(moment_of_number, micros=UNITS[unit])
        return Kind(
            base,
            int | float,
            copied_as,
            finish=lambda value: finish(moment(value)),
            of_raw=lambda raw: finish(moment(_number(raw))),
        )
    return _SIMPLE[base]


def _text(found: FoundType, key_bytes: int) -> Kind:
    longest, name = found.length, f"{found.base}({found.length})" if found.length is not None else found.base
    if found.base == "name":
        key_bytes = 63
    # In UTF-8 a character takes up to four bytes; what lies between is measured one by one.
    most = min(longest if longest is not None else _MOST_CHARACTERS, key_bytes // 4 if key_bytes else _MOST_CHARACTERS)
    decoded = Annotated[str, msgspec.Meta(max_length=most)] if most < _MOST_CHARACTERS else str

    def measured(value: Any) -> str:
        text = msgspec.convert(value, str)
        if longest is not None and len(text) > longest:
            raise ValueError(f"{len(text)} characters, the column takes {longest}")
        if key_bytes and len(text.encode()) > key_bytes:
            raise ValueError(f"{len(text.encode())} bytes, a key takes {key_bytes}")
        return text

    return Kind(name, decoded, "text", lenient=measured, text=True)


def _json(base: str, version: bytes) -> Kind:
    """Any JSON, as it came: no digit of a number is lost on the way."""

    def finish(raw: msgspec.Raw) -> bytes | None:
        text = bytes(raw)
        if text == b"null":
            return None
        if version and _EXTREME_NUMBER.search(text):
            _refuse_extreme_numbers(text)
        return version + text

    return Kind(base, msgspec.Raw, "bytea", finish=finish)


def _document(base: str, version: bytes) -> Kind:
    """JSON that events have as a text."""

    def finish(text: str) -> bytes:
        document = text.encode()
        raw = msgspec.json.decode(document, type=msgspec.Raw)
        _refuse_nul(raw)
        if version and _EXTREME_NUMBER.search(document):
            _refuse_extreme_numbers(document)
        return version + document

    return Kind(f"{base} in a text", str, "bytea", finish=finish)


class _Array:
    """A list, of lists perhaps: its binary form is put together here, since psycopg doesn't know every element's type."""

    def __init__(self, found: FoundType, wanted: ColumnType) -> None:
        inner = found.element or found
        self._oid = found.element_oid
        self._element = kind_of(ColumnType(wanted.name) if wanted.array else natural_type(inner) or ColumnType("text"), inner)
        self._dump = _dumper(self._element.copied_as)

    def binary(self, raw: msgspec.Raw) -> bytes | None:
        """The list as PostgreSQL's COPY has it."""
        if bytes(raw) == b"null":
            return None
        shape: list[int] = []
        values: list[tuple[int, Any]] = []
        self._flatten(raw, 0, shape, values)
        if any(depth + 1 != len(shape) for depth, _ in values):
            raise ValueError("expected a list at every place of a list of lists")
        if not values:
            shape = []
        has_null = any(value is None for _, value in values)
        head = struct.pack("!iiI", len(shape), has_null, self._oid) + b"".join(struct.pack("!ii", length, 1) for length in shape)
        return head + b"".join(self._item(value) for _, value in values)

    def _flatten(self, raw: msgspec.Raw, depth: int, shape: list[int], values: list[tuple[int, Any]]) -> None:
        items = _decode_list(raw)
        if depth == len(shape):
            shape.append(len(items))
        if len(items) != shape[depth] or depth > 5:
            raise ValueError("lists within a list must be of one length, at most 6 deep")
        for item in items:
            text = bytes(item)
            if text.startswith(b"["):
                self._flatten(item, depth + 1, shape, values)
            else:
                values.append((depth, None if text == b"null" else self._element.read(item)))

    def _item(self, value: Any) -> bytes:
        if value is None:
            return struct.pack("!i", -1)
        data = self._dump(value)
        return struct.pack("!i", len(data)) + data


_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def _dumper(name: str) -> Callable[[Any], bytes]:
    """psycopg's own way to a type's binary form."""
    from psycopg import adapters
    from psycopg.pq import Format

    oid = adapters.types.get_oid(name)
    dumper = adapters.get_dumper_by_oid(oid, Format.BINARY)(type(None))

    def dump(value: Any) -> bytes:
        return bytes(dumper.dump(value) or b"")

    return dump


def _refuse_nul(value: Any) -> None:
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("holds a NUL character, which PostgreSQL's text cannot")
    elif isinstance(value, msgspec.Raw) and _NUL_IN_JSON.search(value):
        raise ValueError("holds a NUL character, which PostgreSQL's text and json cannot")


def _refuse_extreme_numbers(document: bytes) -> None:
    for token in _JSON_TOKENS.findall(document):
        if token.startswith(b'"'):
            continue
        number = Decimal(token.decode())
        exponent = number.as_tuple().exponent
        if number.adjusted() > _LARGEST_WEIGHT or (isinstance(exponent, int) and exponent < -_LARGEST_SCALE):
            raise ValueError(f"holds the number {token[:40].decode()}, which is beyond jsonb's")


def _numeric(number: Decimal, digits: tuple[int, int] | None) -> Decimal:
    if not number.is_finite() or abs(number.adjusted()) > _NUMERIC_DIGITS or len(number.as_tuple().digits) > _NUMERIC_DIGITS:
        raise ValueError("not a number that a numeric column holds")
    if digits is not None and number:
        precision, scale = digits
        if number.adjusted() >= precision - scale:
            raise ValueError(f"the column takes numeric({precision},{scale})")
        if _EXACT.quantize(number, Decimal(1).scaleb(-scale)) != number:
            raise ValueError(f"the column takes numeric({precision},{scale}): it would be rounded")
    return number


def _number(raw: msgspec.Raw) -> int | Decimal:
    """A number with all its digits."""
    value = msgspec.json.decode(raw, type=int | float)
    return value if type(value) is int else Decimal(bytes(raw).decode())


_FROM_NUMBER: Mapping[str, tuple[str, Callable[[datetime], Any]]] = {
    "timestamp with time zone": ("timestamptz", lambda moment: moment),
    "timestamp without time zone": ("timestamp", without_zone),
    "date": ("date", lambda moment: moment.date()),
}


def _time_of_day(text: str) -> tuple[time, int]:
    """A time of day, and its microseconds since midnight: the day's end has no time of Python's."""
    check_clock(text.removeprefix("T"))
    plain, more = split_time(text)
    found = time.fromisoformat(plain)
    return found, ((found.hour * 60 + found.minute) * 60 + found.second) * 1_000_000 + found.microsecond + more


def _local_time(text: str) -> bytes:
    found, since = _time_of_day(text)
    if found.tzinfo is not None:
        raise ValueError("expected a time of day without a zone")
    return struct.pack("!q", since)


def _zoned_time(text: str) -> bytes:
    found, since = _time_of_day(text)
    offset = (found.utcoffset() or timedelta()).total_seconds()
    if abs(offset) >= _LARGEST_OFFSET or offset != int(offset):
        raise ValueError("expected an offset of whole seconds, below 16 hours")
    return struct.pack("!qi", since, -int(offset))


def _bytes_of(text: Any) -> bytes:
    r"""Base64 (as ingest gives bytes), without its padding too, or PostgreSQL's own ``\x`` and hexadecimal digits."""
    if type(text) is not str:
        raise TypeError(f"expected base64 text, got {type(text).__name__}")
    try:
        if text.startswith("\\x"):
            return bytes.fromhex(text[2:])
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (ValueError, binascii.Error) as error:
        raise ValueError(r"expected base64, or \x and hexadecimal digits") from error


def _address(text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    if "%" in text:
        raise ValueError("an address with a zone, which the column would lose")
    return ipaddress.ip_interface(text)


def _uuid_of(text: Any) -> uuid.UUID:
    if type(text) is not str:
        raise TypeError(f"expected a UUID as text, got {type(text).__name__}")
    return uuid.UUID(text)


_ISO_INTERVAL = re.compile(
    r"(?P<sign>[+-])?P(?:(?P<years>[+-]?\d+)Y)?(?:(?P<months>[+-]?\d+)M)?(?:(?P<weeks>[+-]?\d+)W)?(?:(?P<days>[+-]?\d+)D)?"
    r"(?:T(?=.)(?:(?P<hours>[+-]?\d+)H)?(?:(?P<minutes>[+-]?\d+)M)?(?:(?P<seconds>[+-]?\d+(?:\.\d+)?)S)?)?"
)
_CLOCK = re.compile(r"(?P<sign>[+-])?(?P<hours>\d+):(?P<minutes>\d\d)(?::(?P<seconds>\d\d(?:\.\d+)?))?")
_WORDS = re.compile(r"([+-]?\d+(?:\.\d+)?) ?(year|mon|month|week|day|hour|min|minute|sec|second|yr|hr)s?", re.IGNORECASE)
_WORD_UNITS = {"mon": "months", "min": "minutes", "sec": "seconds", "yr": "years", "hr": "hours"}


def _interval(text: str) -> bytes:
    """An interval's binary form from ISO-8601's (``P1DT2H``) or PostgreSQL's own (``1 day 02:00:00``)."""
    parts = _interval_parts(text.strip())
    micros = round(((parts["hours"] * 60 + parts["minutes"]) * 60 + parts["seconds"]) * 1_000_000)
    days, months = parts["weeks"] * 7 + parts["days"], parts["years"] * 12 + parts["months"]
    if days != int(days) or months != int(months):
        raise ValueError("expected whole years, months, weeks and days")
    try:
        return struct.pack("!qii", micros, int(days), int(months))
    except struct.error as error:
        raise ValueError("an interval beyond PostgreSQL's") from error


def _interval_parts(text: str) -> dict[str, Decimal]:
    parts = dict.fromkeys(("years", "months", "weeks", "days", "hours", "minutes", "seconds"), Decimal(0))
    iso = _ISO_INTERVAL.fullmatch(text)
    if iso is not None and any(iso.group(name) for name in parts):
        _add_parts(parts, iso, parts)
        return parts
    clock = _CLOCK.search(text)
    words = text if clock is None else text[: clock.start()] + text[clock.end() :]
    if clock is not None:
        _add_parts(parts, clock, ("hours", "minutes", "seconds"))
    for number, unit in _WORDS.findall(words):
        parts[_WORD_UNITS.get(unit.lower(), f"{unit.lower()}s")] += Decimal(number)
    if _WORDS.sub("", words).strip() or not (clock or words.strip()):
        raise ValueError("expected an interval such as P1DT2H or 1 day 02:00:00")
    return parts


def _add_parts(parts: dict[str, Decimal], found: re.Match[str], names: Sequence[str] | Mapping[str, Any]) -> None:
    sign = -1 if found.group("sign") == "-" else 1
    for name in names:
        parts[name] += sign * Decimal(found.group(name) or 0)


def _kinds(*kinds: tuple[str, Any, str, Callable[[Any], Any] | None, Callable[[Any], Any] | None]) -> dict[str, Kind]:
    return {name: Kind(name, decoded, copied_as, finish, lenient) for name, decoded, copied_as, finish, lenient in kinds}


_SIMPLE = _kinds(
    ("double precision", Annotated[float, msgspec.Meta(ge=-_MOST_DOUBLE, le=_MOST_DOUBLE)], "float8", None, None),
    ("real", Annotated[float, msgspec.Meta(ge=-_MOST_REAL, le=_MOST_REAL)], "float4", None, None),
    ("boolean", bool, "bool", None, None),
    ("timestamp with time zone", Annotated[datetime, msgspec.Meta(tz=True)], "timestamptz", None, moment_of_text),
    ("timestamp without time zone", datetime, "timestamp", without_zone, moment_of_text),
    ("date", date, "date", None, None),
    ("time without time zone", str, "bytea", _local_time, None),
    ("time with time zone", str, "bytea", _zoned_time, None),
    ("interval", str, "bytea", _interval, None),
    ("uuid", uuid.UUID, "uuid", None, _uuid_of),
    ("bytea", bytes, "bytea", None, _bytes_of),
    ("inet", str, "inet", _address, None),
    ("cidr", str, "cidr", ipaddress.ip_network, None),
)
