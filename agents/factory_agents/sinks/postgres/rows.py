"""Events into rows as the table takes them: every value checked here, so that one bad event never fails a window."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from decimal import Context, Decimal, InvalidOperation
from operator import itemgetter
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from factory_agents.runtime.agents import Reject, Row

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


class RowReader:
    """Makes rows of events: whole chunks at msgspec's speed, one by one where a chunk holds something unfit.

    ``shared`` are the integers that follow the columns' values in every row.
    """

    def __init__(self, columns: Sequence[RowColumn], shared: tuple[int, ...]) -> None:
        self._columns = tuple(columns)
        self._names = tuple(c.name for c in columns)
        self._values: Callable[[dict[str, Any]], tuple[Any, ...]] = (
            itemgetter(*self._names) if len(columns) > 1 else lambda event: (event[self._names[0]],)
        )
        self._shared = shared
        text_keys = sum(c.key and c.type == "text" for c in columns)
        self._key_bytes = KEY_BYTES // max(1, text_keys)
        self._prepared = tuple((i, prepare) for i, c in enumerate(columns) if (prepare := _prepare(c)) is not None)
        types = tuple(self._type(c) for c in columns)
        self._row_types: Any = list[tuple[*types, *(int for _ in shared), int, int]]  # type: ignore[valid-type,misc]

    def read(self, rows: Sequence[Row]) -> tuple[list[TableRow], dict[int, Reject]]:
        """The rows that fit, in order, and why the others cannot be written, by their index."""
        fitting: list[TableRow] = []
        rejected: dict[int, Reject] = {}
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            try:
                fitting += self._chunk(chunk)
            except _UNFIT:
                self._one_by_one(chunk, start, fitting, rejected)
        return fitting, rejected

    def _chunk(self, rows: Sequence[Row]) -> list[TableRow]:
        names, shared, values = self._names, self._shared, self._values
        raw: list[Any]
        try:
            raw = [(*values(event), *shared, partition, offset) for event, partition, offset in rows]
        except KeyError:
            raw = [(*map(event.get, names), *shared, partition, offset) for event, partition, offset in rows]
        if self._prepared:
            raw = [self._with_prepared(row) for row in raw]
        checked: list[TableRow] = msgspec.convert(raw, self._row_types)
        # Encoding the lot is the cheapest look into every string: it shows NUL, and raises for lone surrogates.
        if b"\\u0000" in _encode(checked):
            raise ValueError
        return checked

    def _with_prepared(self, row: TableRow) -> list[Any]:
        values = list(row)
        for i, prepare in self._prepared:
            if values[i] is not None:
                values[i] = prepare(values[i])
        return values

    def _one_by_one(self, rows: Sequence[Row], start: int, fitting: list[TableRow], rejected: dict[int, Reject]) -> None:
        for i, (event, partition, offset) in enumerate(rows, start):
            try:
                row = (*(self._value(c, event.get(c.name)) for c in self._columns), *self._shared, partition, offset)
            except Reject as reject:
                rejected[i] = reject
            else:
                fitting.append(row)

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
            value.encode()
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
    if isinstance(error, UnicodeEncodeError):
        return "holds half of a surrogate pair, which is no character"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, msgspec.ValidationError):
        shown = f": {value!r:.60}" if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""
        return f"{str(error).replace('Expected', 'expected', 1)}{shown} (the column is {column.type})"
    return f"{error} (the column is {column.type})"
