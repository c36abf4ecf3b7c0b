"""Events into rows as the table takes them: every value checked here, so that one bad event never fails a window."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime
from decimal import Context, Decimal, InvalidOperation
from itertools import repeat
from operator import add
from typing import Annotated, Any, Literal, TypeAlias, cast

import msgspec
from msgspec.structs import astuple

from factory_agents.kafka.messages import Message
from factory_agents.runtime.agents import Reject

__all__ = ["KEY_BYTES", "ColumnType", "RowColumn", "RowReader", "TableRow"]

ColumnType: TypeAlias = Literal["text", "bigint", "double", "boolean", "timestamptz", "json", "numeric", "date"]
TableRow: TypeAlias = "tuple[Any, ...]"
"""One value a column, as psycopg's binary COPY takes it, then the sink's own: those that all rows share, partition and offset."""

KEY_BYTES = 2500
"""What the text columns of a key may take together: an index entry holds about a third of PostgreSQL's 8 KiB page."""

_CHUNK = 2000
_MOST = 1.7976931348623157e308
_FIRST, _LAST = datetime(1, 1, 2, tzinfo=UTC).timestamp(), datetime(9999, 12, 30, tzinfo=UTC).timestamp()
_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000}
_UNFIT = (msgspec.MsgspecError, ValueError, TypeError, ArithmeticError, RecursionError)
_NUMERIC_DIGITS = 2000
_EXACT = Context(prec=2 * _NUMERIC_DIGITS)
_encode = msgspec.json.Encoder().encode
_ESCAPED = re.compile(r'["\\\x00-\x1f]')
_NUL_IN_JSON = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class RowColumn(msgspec.Struct, frozen=True):
    """What a column takes.

    ``stored`` is the table's own type, without its length. ``low`` and ``high`` bound an integer, ``length`` the characters of a text and
    ``digits`` (precision, scale) a numeric, where that type is narrower than ours. ``unit`` (s, ms, us) says that a time comes as a number.
    """

    name: str
    type: ColumnType
    stored: str
    nullable: bool = True
    key: bool = False
    low: int = -(2**63)
    high: int = 2**63 - 1
    length: int | None = None
    digits: tuple[int, int] | None = None
    unit: str = ""

    @property
    def copied_as(self) -> str:
        """What psycopg is told that a value is; json goes as the bytes that PostgreSQL's binary COPY has for it, which are text."""
        return _COPIED[self.stored]


_COPIED = {
    "text": "text",
    "character varying": "text",
    "bigint": "int8",
    "integer": "int4",
    "smallint": "int2",
    "double precision": "float8",
    "boolean": "bool",
    "timestamp with time zone": "timestamptz",
    "jsonb": "text",
    "json": "text",
    "numeric": "numeric",
    "date": "date",
}
_JSONB_VERSION = "\x01"  # what its binary form begins with


class _Fields:
    """What events have in the columns' places. ``typed``: readers check types; they can't for names that have to be escaped in JSON."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self.typed = not any(map(_ESCAPED.search, names))

    def reader(self, types: Sequence[tuple[Any, Any]]) -> Callable[[Iterable[bytes]], Iterator[TableRow]]:
        """Reads events; ``types`` are each column's type and default."""
        names = self._names
        if not self.typed:
            decode = msgspec.json.Decoder(dict[str, Any]).decode
            return lambda values: (tuple(map(event.get, names)) for event in map(decode, values))
        fields = [(f"c{i}", *type_) for i, type_ in enumerate(types)]
        event = msgspec.defstruct("Event", fields, rename={f"c{i}": name for i, name in enumerate(names)}, gc=False, kw_only=True)
        decode_fields = msgspec.json.Decoder(event).decode
        return lambda values: map(astuple, map(decode_fields, values))


class RowReader:
    """Makes rows of records: whole chunks at msgspec's speed, one by one where a chunk holds something unfit.

    ``shared`` are the integers that follow the columns' values in every row. Of an event's other fields nothing is looked at but that they
    are JSON.
    """

    def __init__(self, columns: Sequence[RowColumn], shared: tuple[int, ...]) -> None:
        self._columns = tuple(columns)
        self._shared = shared
        text_keys = sum(c.key and c.type == "text" for c in columns)
        self._key_bytes = KEY_BYTES // max(1, text_keys)
        self._prepared = tuple((i, prepare) for i, c in enumerate(columns) if (prepare := _prepare(c)) is not None)
        types = tuple(self._type(c) for c in columns)
        self._row_types: Any = list[tuple[*types, *(int for _ in shared), int, int]]  # type: ignore[valid-type,misc]
        decoded = [Any if _prepare(c) is not None else t for t, c in zip(types, columns, strict=True)]
        fields = _Fields(tuple(c.name for c in columns))
        self._typed = fields.reader([(t, None if c.nullable else msgspec.NODEFAULT) for t, c in zip(decoded, columns, strict=True)])
        self._untyped = fields.reader([(Any, None) for _ in columns])
        self._is_typed = fields.typed and not self._prepared

    def read(self, messages: Sequence[Message]) -> tuple[list[TableRow], dict[int, Reject]]:
        """The rows of records that fit, in order, and why the others cannot be written, by their index."""
        fitting: list[TableRow] = []
        rejected: dict[int, Reject] = {}
        for start in range(0, len(messages), _CHUNK):
            chunk = messages[start : start + _CHUNK]
            try:
                fitting += self._chunk(chunk)
            except _UNFIT:
                self._one_by_one(chunk, start, fitting, rejected)
        return fitting, rejected

    def _chunk(self, messages: Sequence[Message]) -> list[TableRow]:
        kind = type(messages[0])
        values = cast("list[bytes]", list(map(kind.value, messages)))
        together = b"\n".join(values)
        if not together.isascii():
            together.decode()  # the decoder doesn't look into what it passes over
        if b"\\u0000" in together:
            raise ValueError
        own = zip(*map(repeat, self._shared), map(kind.partition, messages), map(kind.offset, messages), strict=False)
        rows: list[Any] = list(map(add, self._typed(values), own))
        return rows if self._is_typed else msgspec.convert([self._with_prepared(row) for row in rows], self._row_types)

    def _with_prepared(self, row: TableRow) -> list[Any]:
        values = list(row)
        for i, prepare in self._prepared:
            if values[i] is not None:
                values[i] = prepare(values[i])
        return values

    def _one_by_one(self, messages: Sequence[Message], start: int, fitting: list[TableRow], rejected: dict[int, Reject]) -> None:
        for i, message in enumerate(messages, start):
            try:
                values = map(self._value, self._columns, self._fields(message.value()))
                fitting.append((*values, *self._shared, message.partition(), message.offset()))
            except Reject as reject:
                rejected[i] = reject

    def _fields(self, value: bytes | None) -> tuple[Any, ...]:
        """What an event has in the columns' places; raises Reject for what is not a JSON object."""
        if value is None:
            raise Reject("the record has no value (a tombstone), expected a JSON object", rule="decode")
        try:
            value.decode()
            return next(self._untyped([value]))
        except msgspec.ValidationError as error:
            raise Reject(f"not an event: {error}", rule="decode") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Reject(f"not JSON: {error}", rule="decode") from error

    def _type(self, column: RowColumn) -> Any:
        type_ = self._plain_type(column)
        return type_ | None if column.nullable else type_

    def _plain_type(self, column: RowColumn) -> Any:
        meta = msgspec.Meta
        if column.type == "text" and (column.key or column.length is not None):
            # In UTF-8 a character takes up to four bytes; what lies between is measured one by one.
            return Annotated[
                str, meta(max_length=min(column.length or self._key_bytes, self._key_bytes // 4 if column.key else _MAX_LENGTH))
            ]
        types: dict[ColumnType, Any] = {
            "text": str,
            "bigint": Annotated[int, meta(ge=column.low, le=column.high)],
            "double": Annotated[float, meta(ge=-_MOST, le=_MOST)],
            "boolean": bool,
            "timestamptz": Annotated[datetime, meta(tz=True)],
            "json": str,
            "numeric": Decimal,
            "date": date,
        }
        return types[column.type]

    def _value(self, column: RowColumn, value: Any) -> Any:
        """One value as its column takes it; raises Reject saying what is wrong with it."""
        if value is None:
            if column.nullable:
                return None
            raise Reject(f"column {column.name!r}: missing or null, expected {column.type}", rule="missing")
        try:
            return self._checked(column, value)
        except _UNFIT as error:
            raise Reject(f"column {column.name!r}: {_why(error, column, value)}", rule="column") from error

    def _checked(self, column: RowColumn, value: Any) -> Any:
        prepare = _prepare(column)
        if prepare is not None:
            value = prepare(value)
        if column.type == "json":
            if _NUL_IN_JSON.search(value):
                raise ValueError("holds a NUL character, which PostgreSQL's json cannot")
            return value
        if column.type == "text":
            return self._checked_text(column, value)
        if column.type == "bigint" and type(value) is float and value.is_integer():
            value = int(value)
        if column.type == "timestamptz" and type(value) is str:
            value = _time(value)
        return msgspec.convert(value, self._plain_type(column))

    def _checked_text(self, column: RowColumn, value: Any) -> str:
        text = msgspec.convert(value, str)
        if "\0" in text:
            raise ValueError("holds a NUL character, which PostgreSQL's text cannot")
        if column.length is not None and len(text) > column.length:
            raise ValueError(f"{len(text)} characters, the column takes {column.length}")
        if len(text.encode()) > self._key_bytes and column.key:
            raise ValueError(f"{len(text.encode())} bytes, a key takes {self._key_bytes}")
        return text


_MAX_LENGTH = 2**31


def _prepare(column: RowColumn) -> Callable[[Any], Any] | None:
    """What makes a value one that is checked as the others are, for the types that need it."""
    if column.type == "json":
        version = _JSONB_VERSION if column.stored == "jsonb" else ""
        return lambda value: version + _encode(value).decode()
    if column.type == "numeric":
        return lambda value: _numeric(value, column.digits)
    if column.type == "timestamptz" and column.unit:
        return lambda value: _from_number(value, _UNITS[column.unit])
    return None


def _from_number(value: Any, factor: int) -> datetime:
    if type(value) not in (int, float):
        raise TypeError(f"expected a number, got {type(value).__name__}")
    if not _FIRST * factor <= value <= _LAST * factor:
        raise ValueError("not a time between the years 1 and 9999")
    return datetime.fromtimestamp(value / factor, UTC)


def _numeric(value: Any, digits: tuple[int, int] | None) -> Decimal:
    if type(value) not in (int, float, str):
        raise TypeError(f"expected a number or its text, got {type(value).__name__}")
    try:
        number = Decimal(str(value))
    except InvalidOperation as error:
        raise ValueError("expected a number or its text") from error
    text = str(number)
    if not number.is_finite() or abs(number.adjusted()) > _NUMERIC_DIGITS or len(text) > _NUMERIC_DIGITS:
        raise ValueError("not a number that a numeric column holds")
    if digits is not None and number:
        precision, scale = digits
        if _EXACT.quantize(number, Decimal(1).scaleb(-scale)).adjusted() >= precision - scale:
            raise ValueError(f"the column takes numeric({precision},{scale})")
    return number


def _time(text: str) -> datetime:
    """ISO-8601 as Python reads it, a leap second included; without a zone it is UTC, as the contract has it."""
    time = datetime.fromisoformat(re.sub(r"(:\d\d):60(?!\d)", r"\1:59", text).replace("z", "Z"))
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _why(error: BaseException, column: RowColumn, value: Any) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, msgspec.ValidationError):
        shown = f": {value!r:.60}" if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""
        return f"{str(error).replace('Expected', 'expected', 1)}{shown} (the column is {column.type})"
    return f"{error} (the column is {column.type})"
