"""Records into typed rows by a contract's columns, for sinks that have no reader of their own."""

from __future__ import annotations

import ipaddress
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Context, Decimal
from typing import Annotated, Any

import msgspec
from msgspec.structs import astuple

from factory_agents.contracts import ColumnSpec, ColumnType, TableSpec
from factory_agents.errors import ConfigurationError
from factory_agents.kafka.messages import Message
from factory_agents.runtime.agents import Reject
from factory_agents.runtime.ledger_sink import RANK, Rows
from factory_agents.runtime.numbers import decode_exact, whole_number
from factory_agents.runtime.rank import PLACE, Ranker
from factory_agents.runtime.record_key import KeyColumn, KeyReader
from factory_agents.runtime.times import UNITS, moment_of_number, moment_of_text, without_zone
from factory_agents.text import not_json

__all__ = ["Columns", "RowReader"]

_UNFIT = (msgspec.MsgspecError, ValueError, TypeError, ArithmeticError, RecursionError)
_CHUNK = 2_000
"""Records that are read together: one that doesn't fit as it is costs as many others the faster way."""
_BITS = {"bigint": 63, "integer": 31, "smallint": 15}
_MOST_DOUBLE, _MOST_REAL = 1.7976931348623157e308, 3.4028234663852886e38
_NUMERIC_DIGITS = 1000
_VALUE_BYTES = 60
"""What a value takes in memory beside its own bytes, about."""
_EXACT = Context(prec=3000)
_NULL = msgspec.Raw(b"null")
_MOMENTS = ("timestamptz", "timestamp", "date")
"""Types that a number is made a time for; in a column of numbers it stays one."""


class Columns(msgspec.Struct, frozen=True):
    """Typed rows column by column, as in ``Rows``; and keys of rows to delete."""

    columns: Sequence[Sequence[Any]]
    deleted: list[tuple[Any, ...]] = []


class RowReader:
    """Makes ``Rows`` of records: whole chunks at msgspec's speed, one by one where a chunk holds what doesn't fit as it is.

    ``checks``, by type, say why a sink can't hold a value, or "".
    """

    def __init__(
        self, table: TableSpec, window: str, generation: int = 0, *, checks: Mapping[str, Callable[[Any], str]] | None = None
    ) -> None:
        self._columns = [_Column(spec, in_key=spec.name in table.key) for spec in table.columns]
        for column, spec in zip(self._columns, table.columns, strict=True):
            if check := (checks or {}).get(spec.type.name):
                column.finish = _checked(column.finish, check)
        self._names = (*(c.name for c in table.columns), RANK)
        self._decode = _decoder([(c.decoded, c.default) for c in self._columns], table)
        self._decode_raw = _decoder([(msgspec.Raw, _NULL)] * len(self._columns), table)
        self._finish = [(i, c) for i, c in enumerate(self._columns) if c.finish is not None or c.required]
        self._ranker = Ranker(table, window, generation)
        self._nothing = [None] * len(self._columns)
        by_name = {c.name: c for c in self._columns}
        self._deletes = KeyReader([by_name[name].as_key for name in table.key]) if table.deletes else None

    def read(self, messages: Sequence[Message]) -> tuple[list[Rows], dict[int, Reject]]:
        """See ``Reader.read``."""
        batch = Rows(self._names, [], sum(map(len, messages)) + _VALUE_BYTES * len(self._names) * len(messages))
        chunks, rejected = self.columns(messages)
        for chunk in chunks:
            batch.rows.extend(zip(*chunk.columns, strict=True))
            batch.deleted.extend(chunk.deleted)
        return [batch] if batch.rows or batch.deleted else [], rejected

    def columns(self, messages: Sequence[Message]) -> tuple[list[Columns], dict[int, Reject]]:
        """The same, column by column, in chunks that each have some."""
        found: list[Columns] = []
        rejected: dict[int, Reject] = {}
        for start in range(0, len(messages), _CHUNK):
            chunk = messages[start : start + _CHUNK]
            try:
                found.append(Columns(self._chunk(chunk)))
            except _UNFIT:
                found += self._each(chunk, start, rejected)
        return found, rejected

    def _chunk(self, messages: Sequence[Message]) -> list[Sequence[Any]]:
        """Events all of which fit as they are; raises what ``_UNFIT`` names where one doesn't."""
        values: list[Any] = [message.value() for message in messages]
        together = b"\n".join(values)
        if not together.isascii():
            together.decode()  # the decoder doesn't look into what it passes over
        columns: list[Sequence[Any]] = list(zip(*map(astuple, map(self._decode, values)), strict=True))
        for i, column in self._finish:
            columns[i] = column.all_finished(columns[i])
        records = ((message.timestamp()[1], message.partition(), message.offset()) for message in messages)
        return [*columns, self._ranker.many(columns, records)]

    def _each(self, messages: Sequence[Message], start: int, rejected: dict[int, Reject]) -> list[Columns]:
        """What each record is, or, added to ``rejected``, why it is nothing."""
        rows: list[tuple[Any, ...]] = []
        deleted: list[tuple[Any, ...]] = []
        for i, message in enumerate(messages, start):
            value = message.value()
            try:
                if value is None and self._deletes is not None:
                    deleted.append((*self._deletes.read(message.key()), self._rank(self._nothing, message)[-PLACE:]))
                else:
                    values = self._values(value)
                    rows.append((*values, self._rank(values, message)))
            except Reject as reject:
                rejected[i] = reject
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(self._names)
        return [Columns(columns, deleted)] if rows or deleted else []

    def _rank(self, values: Sequence[Any], message: Message) -> bytes:
        return self._ranker.one(values, message.timestamp()[1], message.partition(), message.offset())

    def join(self, batches: Sequence[Rows]) -> Rows:
        """See ``Reader.join``."""
        rows = [row for batch in batches for row in batch.rows]
        deleted = [key for batch in batches for key in batch.deleted]
        return Rows(self._names, rows, sum(batch.nbytes for batch in batches), deleted)

    def _values(self, value: bytes | None) -> list[Any]:
        try:
            if value is not None:
                value.decode()  # the decoder doesn't look into what it passes over
                values = list(astuple(self._decode(value)))
                for i, column in self._finish:
                    values[i] = column.finished(values[i])
                return values
        except _UNFIT:
            pass
        return self._one_by_one(value)

    def _one_by_one(self, value: bytes | None) -> list[Any]:
        """Column by column: what the decoder is too strict for, or a Reject that names the column."""
        if value is None:
            raise Reject("the record has no value (a tombstone), expected a JSON object", rule="decode")
        try:
            value.decode()
            raw = astuple(self._decode_raw(value))
        except msgspec.ValidationError as error:
            raise Reject(f"not an event: {error}", rule="decode") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Reject(f"not JSON: {not_json(value, error)}", rule="decode") from error
        return [column.read(text) for column, text in zip(self._columns, raw, strict=True)]


def _decoder(types: Sequence[tuple[Any, Any]], table: TableSpec) -> Callable[[bytes], Any]:
    """Reads an event's columns; ``types`` are each one's type and default."""
    names = [c.name for c in table.columns]
    fields = [(f"c{i}", *type_) for i, type_ in enumerate(types)]
    try:
        row = msgspec.defstruct("Row", fields, rename={f"c{i}": name for i, name in enumerate(names)}, gc=False, kw_only=True)
    except ValueError as error:
        raise ConfigurationError(f"the contract's columns: {error}; rename the field, or leave it out of columns") from error
    return msgspec.json.Decoder(row).decode


class _Column:
    """How one column's values are read."""

    def __init__(self, spec: ColumnSpec, *, in_key: bool) -> None:
        self.name, self.shown = spec.name, spec.type.text
        self._is_text = spec.type.name in ("text", "varchar", "char")
        self.required = in_key or not spec.nullable
        kind = _number_kind(spec.unit, spec.type) if spec.unit and spec.type.name in _MOMENTS else _kind(spec.type, in_key=in_key)
        self._type, self.finish, self._lenient = kind
        if spec.type.array:
            self._type, self.finish, self._lenient = _list_kind(*kind)
        self.decoded: Any = self._type if self._type is msgspec.Raw else self._type | None
        self.default: Any = _NULL if self._type is msgspec.Raw else None

    @property
    def as_key(self) -> KeyColumn:
        """As a column of the key that records' own keys are read by."""
        return KeyColumn(self.name, self.shown, self._is_text, self.read)

    def finished(self, value: Any) -> Any:
        """A decoded value as it is given on; raises what ``_UNFIT`` names."""
        if value is not None and self.finish is not None:
            value = self.finish(value)
        if value is None and self.required:
            raise ValueError("missing or null")
        return value

    def all_finished(self, values: Sequence[Any]) -> Sequence[Any]:
        """The same of many values."""
        finish = self.finish
        if finish is not None:
            values = [None if value is None else finish(value) for value in values]
        if self.required and None in values:
            raise ValueError("missing or null")
        return values

    def read(self, raw: msgspec.Raw) -> Any:
        """One value from its JSON; raises a Reject that says what is wrong with it."""
        text = bytes(raw)
        if text == b"null":
            if self.required:
                raise Reject(f"column {self.name!r}: missing or null, expected {self.shown}", rule="missing")
            return None
        try:
            return self._converted(raw)
        except _UNFIT as error:
            said = str(error).replace("Expected", "expected", 1) if isinstance(error, msgspec.MsgspecError) else str(error)
            shown = f": {_show(text)}" if text[:1] not in b"[{" else ""
            raise Reject(f"column {self.name!r}: {said}{shown} (the column is {self.shown})", rule="column") from error

    def _converted(self, raw: msgspec.Raw) -> Any:
        try:
            typed = msgspec.json.decode(raw, type=self._type)
        except msgspec.ValidationError:
            if self._lenient is None:
                raise
            typed = self._lenient(decode_exact(raw))
        return self.finish(typed) if self.finish is not None else typed


def _show(text: bytes) -> str:
    """The beginning of a value, for a message."""
    return text[:60].decode(errors="replace")


_Kind = tuple[Any, Callable[[Any], Any] | None, Callable[[Any], Any] | None]
"""What the decoder reads, what is made of that, and what takes a value that the decoder is too strict for."""


def _kind(type_: ColumnType, *, in_key: bool) -> _Kind:
    name = type_.name
    if name in _BITS:
        whole = Annotated[int, msgspec.Meta(ge=-(2 ** _BITS[name]), le=2 ** _BITS[name] - 1)]
        return whole, None, lambda value: msgspec.convert(whole_number(value), whole)
    if name in ("char", "varchar"):
        longest = type_.arguments[0] if type_.arguments else 1 if name == "char" else None
        return Annotated[str, msgspec.Meta(max_length=longest)] if longest is not None else str, None, None
    if name == "numeric":
        digits = type_.arguments
        return Decimal, lambda n: _without_zeros(_numeric(n, digits)) if in_key else _numeric(n, digits), None
    return _KINDS[name]


def _list_kind(element: Any, finish: Callable[[Any], Any] | None, lenient: Callable[[Any], Any] | None) -> _Kind:
    def finished(values: Any) -> list[Any]:
        return [None if v is None else finish(v) if finish is not None else v for v in values]

    def leniently(values: Any) -> list[Any]:
        if type(values) is not list:
            raise TypeError("expected a list")
        return [None if v is None else _item(v, element, lenient) for v in values]

    item: Any = element if element is msgspec.Raw else element | None
    return list[item], finished, leniently


def _item(value: Any, element: Any, lenient: Callable[[Any], Any] | None) -> Any:
    try:
        return msgspec.convert(value, element)
    except msgspec.ValidationError:
        if lenient is None:
            raise
        return lenient(value)


def _number_kind(unit: str, type_: ColumnType) -> _Kind:
    """A time that comes as a number since 1970."""
    finish = _KINDS[type_.name][1] if type_.name in ("timestamptz", "timestamp") else None

    def moment(value: Any) -> Any:
        found = moment_of_number(value, UNITS[unit])
        return found.date() if type_.name == "date" else finish(found) if finish is not None else found

    return int | float, moment, None


def _checked(finish: Callable[[Any], Any] | None, check: Callable[[Any], str]) -> Callable[[Any], Any]:
    def checked(value: Any) -> Any:
        value = value if finish is None else finish(value)
        if value is not None and (why := check(value)):
            raise ValueError(why)
        return value

    return checked


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)


def _text_of(raw: msgspec.Raw) -> str | None:
    """A JSON value as it came: no digit of a number is lost on the way."""
    text = bytes(raw).decode()
    return None if text == "null" else text


def _numeric(number: Decimal, digits: tuple[int, ...]) -> Decimal:
    if not number.is_finite() or abs(number.adjusted()) > _NUMERIC_DIGITS:
        raise ValueError("not a number that a numeric column holds")
    if digits and number:
        precision, scale = (*digits, 0)[:2]
        if number.adjusted() >= precision - scale or -int(_EXACT.normalize(number).as_tuple().exponent) > scale:
            raise ValueError(f"the column takes {precision - scale} digits before the point and {scale} after it")
    return number


def _without_zeros(number: Decimal) -> Decimal:
    """Equal numbers as equal texts: 1.0 as 1."""
    number = _EXACT.normalize(number)
    return _EXACT.quantize(number, Decimal(1)) if int(number.as_tuple().exponent) > 0 else number


def _inet(text: str) -> str:
    return str(ipaddress.ip_interface(text)) if "/" in text else str(ipaddress.ip_address(text))


_KINDS: Mapping[str, _Kind] = {
    "text": (str, None, None),
    "double": (Annotated[float, msgspec.Meta(ge=-_MOST_DOUBLE, le=_MOST_DOUBLE)], None, None),
    "real": (Annotated[float, msgspec.Meta(ge=-_MOST_REAL, le=_MOST_REAL)], None, None),
    "boolean": (bool, None, None),
    "timestamptz": (Annotated[datetime, msgspec.Meta(tz=True)], _utc, moment_of_text),
    "timestamp": (datetime, without_zone, moment_of_text),
    "date": (date, None, None),
    "time": (time, None, None),
    "json": (msgspec.Raw, _text_of, None),
    "interval": (str, None, None),
    "uuid": (uuid.UUID, None, None),
    "bytea": (bytes, None, None),
    "inet": (str, _inet, None),
}
