"""Changes as Debezium says them: JSON without a schema, a key of the key's columns, a tombstone behind each delete."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import msgspec

from factory_agents.errors import ConfigurationError
from factory_agents.replication.pgoutput import UNCHANGED, Begin, Change, Described, Value
from factory_agents.replication.values import Convert

__all__ = ["Envelopes", "Pair", "Place", "Table"]

Pair: TypeAlias = "tuple[bytes | None, bytes | None]"
"""A record's key and value."""

_encode = msgspec.json.Encoder().encode
_NULL = b"null"


class Table:
    """A table as the log describes it: its columns' names, what reads their values, and its key's columns."""

    def __init__(self, described: Described, converts: Sequence[Convert | None], key: Sequence[str]) -> None:
        self.described = described
        self.names = [column.name for column in described.columns]
        self.key = tuple(key)
        missing = [name for name in self.key if name not in self.names]
        if missing or not self.key:
            raise ConfigurationError(
                f"table {described.schema}.{described.table}: its changes do not hold the key's column "
                f"{', '.join(missing) or '(it has no key)'}; publish all columns of the key"
            )
        self._converts = [(i, convert) for i, convert in enumerate(converts) if convert is not None]
        self._key_at = [self.names.index(name) for name in self.key]

    def row(self, values: Sequence[Value]) -> dict[str, Any]:
        """The row as JSON's values. It must not lack any (``UNCHANGED``)."""
        read: list[Any] = list(values)
        for i, convert in self._converts:
            value = read[i]
            if value is not None:
                read[i] = convert(value)
        return dict(zip(self.names, read, strict=True))

    def key_texts(self, values: Sequence[Value]) -> list[Value]:
        """The key's values as they are in the log."""
        return [values[i] for i in self._key_at]

    def key_of(self, row: dict[str, Any]) -> dict[str, Any]:
        """The key's columns of a row."""
        return {name: row[name] for name in self.key}

    def key_only(self, values: Sequence[Value]) -> dict[str, Any]:
        """The key's columns of a row of which the log holds only these."""
        row = self.row([value if i in self._key_at else None for i, value in enumerate(values)])
        return self.key_of(row)


class Place(msgspec.Struct, frozen=True):
    """Where changes come from: the server's name in ``source``, the database, our version."""

    name: str
    database: str
    version: str


class Envelopes:
    """Makes records of one transaction's changes after another's."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._before = 0
        self._source = b""
        self._end = b""

    def begin(self, begin: Begin, table: Table | None, *, snapshot: bool = False) -> None:
        """A transaction whose changes come now."""
        self._begin = begin
        self._snapshot = snapshot
        if table is not None:
            self.describe(table)

    def describe(self, table: Table) -> None:
        """What the transaction's changes are of, from here on."""
        begin, described = self._begin, table.described
        source = {
            "version": self._place.version,
            "connector": "postgresql",
            "name": self._place.name,
            "ts_ms": begin.micros // 1000,
            "ts_us": begin.micros,
            "snapshot": "true" if self._snapshot else "false",
            "db": self._place.database,
            "schema": described.schema,
            "table": described.table,
            "txId": begin.xid or None,
            "xmin": None,
        }
        self._source = b',"source":' + _encode(source)[:-1] + b',"sequence":"[\\"%d\\",\\"' % self._before
        self._end = b',"ts_ms":%d,"transaction":null}' % int(time.time() * 1000)

    def ended(self, end: int) -> None:
        """The transaction was the last that ended, at ``end``."""
        self._before = end

    def made(self, table: Table, change: Change, lsn: int) -> Iterator[Pair]:
        """The records of a change; a change of the key is a delete and an insert.

        What an update leaves unchanged must have been put in.
        """
        new = table.row(change.new) if change.new is not None else None
        old = self._old(table, change)
        if new is None:
            yield from self._deleted(table, old or {}, lsn)
            return
        key = table.key_of(new)
        if change.op == "u" and old is not None and table.key_of(old) != key:
            yield from self._deleted(table, old, lsn)
            yield _encode(key), self._envelope(b"c", _NULL, _encode(new), lsn)
            return
        yield _encode(key), self._envelope(change.op.encode(), _encode(old) if old is not None else _NULL, _encode(new), lsn)

    def row(self, table: Table, values: Sequence[Value], lsn: int) -> Pair:
        """The record of a row that the snapshot holds."""
        row = table.row(values)
        return _encode(table.key_of(row)), self._envelope(b"r", _NULL, _encode(row), lsn)

    def truncated(self, lsn: int) -> Pair:
        """The record that says that the table was emptied."""
        return None, self._envelope(b"t", _NULL, _NULL, lsn)

    def _old(self, table: Table, change: Change) -> dict[str, Any] | None:
        if change.old is None:
            return None
        return table.row(change.old) if change.old_kind == "O" else table.key_only(change.old)

    def _deleted(self, table: Table, old: dict[str, Any], lsn: int) -> Iterator[Pair]:
        key = _encode(table.key_of(old))
        yield key, self._envelope(b"d", _encode(old), _NULL, lsn)
        yield key, None

    def _envelope(self, op: bytes, before: bytes, after: bytes, lsn: int) -> bytes:
        return b'{"before":%b,"after":%b%b%d\\"]","lsn":%d},"op":"%b"%b' % (before, after, self._source, lsn, lsn, op, self._end)


def fill(change: Change, current: Sequence[Value] | None) -> Change | None:
    """The change with what it left unchanged put in: from the row as it was, where that was logged, else from the row as it is now.

    None where that row is gone: a later change tells of it.
    """
    if change.new is None:
        return change
    source = change.old if change.old_kind == "O" else current
    if source is None:
        return None
    new = [source[i] if value is UNCHANGED else value for i, value in enumerate(change.new)]
    return change._replace(new=new)
