"""Events into rows as the table takes them: every value checked here, so that one bad event never fails a window."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from operator import add, itemgetter
from typing import Any, TypeAlias, cast

import msgspec
from msgspec.structs import astuple

from factory_agents.kafka.messages import Message
from factory_agents.runtime.agents import Reject
from factory_agents.runtime.record_key import KeyColumn, KeyReader
from factory_agents.sinks.postgres.types import UNFIT, Kind
from factory_agents.text import not_json

__all__ = ["RowColumn", "RowReader", "TableRow"]

TableRow: TypeAlias = "tuple[Any, ...]"
"""One value a column, as psycopg's binary COPY takes it, then the sink's own: what all rows share, partition, offset, timestamp."""

_CHUNK = 2000
_ESCAPED = re.compile(r'["\\\x00-\x1f]')
_NULL = b"null"
_LAST = itemgetter(1)


def _has_value(message: Message) -> bool:
    return message.value() is not None


class RowColumn(msgspec.Struct, frozen=True):
    """What a column takes."""

    name: str
    kind: Kind
    nullable: bool = True


class _Fields:
    """What events have in the columns' places."""

    def __init__(self, columns: Sequence[RowColumn]) -> None:
        self._names = tuple(c.name for c in columns)
        self.typed = not any(map(_ESCAPED.search, self._names))
        """Whether names are found by msgspec; those that have to be escaped in JSON are not."""

    def reader(self, types: Sequence[tuple[Any, Any]]) -> Callable[[Iterable[bytes]], Iterator[TableRow]]:
        """Reads events; ``types`` are each column's type and default."""
        fields = [(f"c{i}", *type_) for i, type_ in enumerate(types)]
        rename = {f"c{i}": name for i, name in enumerate(self._names)}
        decode = msgspec.json.Decoder(msgspec.defstruct("Event", fields, rename=rename, gc=False, kw_only=True)).decode
        return lambda values: map(astuple, map(decode, values))

    def raw_reader(self) -> Callable[[bytes], TableRow]:
        """Reads one event's values as they stand in it; None for those that are missing."""
        if self.typed:
            read = self.reader([(msgspec.Raw, None) for _ in self._names])
            return lambda value: next(read([value]))
        decode, names = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode, self._names
        return lambda value: tuple(map(decode(value).get, names))


class RowReader:
    """Makes rows of records: whole chunks at msgspec's speed, one by one where a chunk holds something unfit.

    ``shared`` are the integers that follow the columns' values in every row. Of an event's other fields nothing is looked at but that they
    are JSON. With ``deletes``, the columns of a key, a record without a value is a row too, of what its own key says; rows end with
    whether they are one.
    """

    def __init__(self, columns: Sequence[RowColumn], shared: tuple[int, ...], deletes: Sequence[str] = ()) -> None:
        self._columns = tuple(columns)
        self._shared = shared
        self._tombstones = _Tombstones(columns, deletes) if deletes else None
        self._live = (False,) if deletes else ()
        self._finished = tuple((i, c.kind.finish, c.nullable) for i, c in enumerate(columns) if c.kind.finish is not None)
        fields = _Fields(columns)
        self._typed = fields.reader([_field(c) for c in columns]) if fields.typed else None
        self._raw = fields.raw_reader()

    def read(self, messages: Sequence[Message]) -> tuple[list[TableRow], dict[int, Reject]]:
        """The rows of records that fit, in order, and why the others cannot be written, by their index."""
        if self._tombstones is not None and not all(map(_has_value, messages)):
            return self._read_with_tombstones(self._tombstones, messages)
        return self._read_events(messages)

    def _read_with_tombstones(self, tombstones: _Tombstones, messages: Sequence[Message]) -> tuple[list[TableRow], dict[int, Reject]]:
        places = [i for i, message in enumerate(messages) if message.value() is not None]
        fitting, rejected = self._read_events([messages[i] for i in places])
        rejected = {places[i]: reject for i, reject in rejected.items()}
        for i, message in enumerate(messages):
            if message.value() is None:
                try:
                    values = tombstones.read(message.key())
                except Reject as reject:
                    rejected[i] = reject
                else:
                    fitting.append((*values, *self._shared, message.partition(), message.offset(), message.timestamp()[1], True))
        return fitting, rejected

    def _read_events(self, messages: Sequence[Message]) -> tuple[list[TableRow], dict[int, Reject]]:
        fitting: list[TableRow] = []
        rejected: dict[int, Reject] = {}
        for start in range(0, len(messages), _CHUNK):
            chunk = messages[start : start + _CHUNK]
            try:
                fitting += self._chunk(chunk)
            except UNFIT:
                self._one_by_one(chunk, start, fitting, rejected)
        return fitting, rejected

    def _chunk(self, messages: Sequence[Message]) -> list[TableRow]:
        if self._typed is None:
            raise ValueError
        kind = type(messages[0])
        values = cast("list[bytes]", list(map(kind.value, messages)))
        together = b"\n".join(values)
        if not together.isascii():
            together.decode()  # the decoder doesn't look into what it passes over
        if b"\\u0000" in together:
            raise ValueError
        rows: Iterator[TableRow] = self._typed(values)
        if self._finished:
            rows = map(self._finish, rows)
        timestamps = map(_LAST, map(kind.timestamp, messages))
        own = zip(
            *map(repeat, self._shared),
            map(kind.partition, messages),
            map(kind.offset, messages),
            timestamps,
            *map(repeat, self._live),
            strict=False,
        )
        return list(map(add, rows, own))

    def _finish(self, row: TableRow) -> TableRow:
        values = list(row)
        for i, finish, nullable in self._finished:
            value = values[i]
            if value is not None:
                values[i] = value = finish(value)
            if value is None and not nullable:
                raise ValueError
        return tuple(values)

    def _one_by_one(self, messages: Sequence[Message], start: int, fitting: list[TableRow], rejected: dict[int, Reject]) -> None:
        for i, message in enumerate(messages, start):
            try:
                values = map(_value, self._columns, self._fields(message.value()))
                fitting.append((*values, *self._shared, message.partition(), message.offset(), message.timestamp()[1], *self._live))
            except Reject as reject:
                rejected[i] = reject

    def _fields(self, value: bytes | None) -> tuple[Any, ...]:
        """What an event has in the columns' places; raises Reject for what is not a JSON object."""
        if value is None:
            raise Reject("the record has no value (a tombstone), expected a JSON object", rule="decode")
        try:
            value.decode()
            return self._raw(value)
        except msgspec.ValidationError as error:
            raise Reject(f"not an event: {error}", rule="decode") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Reject(f"not JSON: {not_json(value, error)}", rule="decode") from error


class _Tombstones:
    """Rows of records without a value: the key's columns, as the record's own key says them; every other column is null."""

    def __init__(self, columns: Sequence[RowColumn], key: Sequence[str]) -> None:
        by_name = {c.name: c for c in columns}
        self._key = KeyReader([KeyColumn(name, by_name[name].kind.name, by_name[name].kind.text, _reads(by_name[name])) for name in key])
        self._places = tuple(next((i for i, name in enumerate(key) if name == c.name), -1) for c in columns)

    def read(self, key: bytes | None) -> tuple[Any, ...]:
        """One value a column of the table; raises Reject for a key that doesn't say which row is meant."""
        values = self._key.read(key)
        return tuple(None if place < 0 else values[place] for place in self._places)


def _reads(column: RowColumn) -> Callable[[msgspec.Raw], Any]:
    return lambda raw: _value(column, raw)


def _field(column: RowColumn) -> tuple[Any, Any]:
    """A column's type and default for msgspec."""
    kind = column.kind
    if not column.nullable:
        return kind.decoded, msgspec.NODEFAULT
    return (kind.decoded if kind.decoded is msgspec.Raw else kind.decoded | None), kind.default


def _value(column: RowColumn, raw: msgspec.Raw | None) -> Any:
    """One value as its column takes it; raises Reject saying what is wrong with it."""
    if raw is None or bytes(raw) == _NULL:
        if column.nullable:
            return None
        raise Reject(f"column {column.name!r}: missing or null, expected {column.kind.name}", rule="missing")
    try:
        return column.kind.read(raw)
    except UNFIT as error:
        raise Reject(f"column {column.name!r}: {_why(error, raw)} (the column is {column.kind.name})", rule="column") from error


def _why(error: BaseException, raw: msgspec.Raw) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, msgspec.ValidationError):
        text = bytes(raw).decode()
        shown = f": {text[:60]}" if text[0] not in "[{tf" else ""
        return str(error).replace("Expected", "expected", 1) + shown
    return str(error)
