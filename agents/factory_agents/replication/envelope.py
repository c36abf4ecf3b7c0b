"""Changes as Debezium says them: JSON without a schema, a key of the key's columns, a tombstone behind each delete."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeAlias

import msgspec

from factory_agents.errors import ConfigurationError
from factory_agents.replication.pgoutput import UNCHANGED, Begin, Change, Described, Value
from factory_agents.replication.values import Convert, json_writer, quoted

__all__ = ["Envelopes", "Pair", "Place", "Table"]

Pair: TypeAlias = "tuple[bytes | None, bytes | None]"
"""A record's key and value."""

_encode = msgspec.json.Encoder().encode
_NULL = "null"


class Table:
    """A table as the log describes it: its columns' names, what makes JSON of their values, and its key's columns."""

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
        writers = enumerate(map(json_writer, converts))
        self._writers = [(i, write) for i, write in writers if write is not None]
        self._key_at = [self.names.index(name) for name in self.key]
        self._key_of: Callable[[list[Any]], object] = itemgetter(*self._key_at)
        self._row_form, self._key_form = _form(self.names), _form(self.key)

    def texts(self, values: Sequence[Value]) -> list[Any]:
        """Each value as JSON. The row must not lack any (``UNCHANGED``)."""
        texts: list[Any] = list(values)
        for i, write in self._writers:
            value = texts[i]
            if value is not None:
                texts[i] = write(value)
        return [_NULL if text is None else text for text in texts] if None in texts else texts

    def row(self, texts: list[Any]) -> str:
        """The row as JSON."""
        return self._row_form % tuple(texts)

    def key_row(self, texts: list[Any]) -> str:
        """The key's columns of a row as JSON; the others need not be there."""
        return self._key_form % self._key_of(texts)

    def key_texts(self, values: Sequence[Value]) -> list[Value]:
        """The key's values as they are in the log."""
        return [values[i] for i in self._key_at]

    def logged(self, change: Change) -> dict[int, Value]:
        """What the log holds of the row as it was, by the column's place: all of it, or the key."""
        old = change.old or ()
        return {i: value for i, value in enumerate(old) if change.old_kind == "O" or i in self._key_at}


def _form(names: Sequence[str]) -> str:
    """An object of these names, for values to be put in with ``%``."""
    return "{" + ",".join(f"{quoted(name)}:".replace("%", "%%") + "%s" for name in names) + "}"


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
        self._source = ""
        self._end = ""

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
        self._source = f',"source":{_encode(source).decode()[:-1]},"sequence":"[\\"{self._before}\\",\\"'
        self._end = f'"ts_ms":{int(time.time() * 1000)},"transaction":null}}'

    def ended(self, end: int) -> None:
        """The transaction was the last that ended, at ``end``."""
        self._before = end

    def made(self, table: Table, change: Change, lsn: int) -> Sequence[Pair]:
        """The records of a change; a change of the key is a delete and an insert.

        What an update leaves unchanged must have been put in.
        """
        op, before, old = change.op, _NULL, change.old
        if old is not None:
            was = table.texts(old)
            was_key = table.key_row(was)
            before = table.row(was) if change.old_kind == "O" else was_key
        if change.new is None:
            return self._deleted(was_key, before, lsn)
        texts = table.texts(change.new)
        key = table.key_row(texts)
        if old is not None and op == "u" and was_key != key:
            return *self._deleted(was_key, before, lsn), (key.encode(), self._envelope("c", _NULL, table.row(texts), lsn))
        return ((key.encode(), self._envelope(op, before, table.row(texts), lsn)),)

    def row(self, table: Table, values: Sequence[Value], lsn: int) -> Pair:
        """The record of a row that the snapshot holds."""
        texts = table.texts(values)
        return table.key_row(texts).encode(), self._envelope("r", _NULL, table.row(texts), lsn)

    def truncated(self, lsn: int) -> Pair:
        """The record that says that the table was emptied."""
        return None, self._envelope("t", _NULL, _NULL, lsn)

    def _deleted(self, key: str, before: str, lsn: int) -> Sequence[Pair]:
        return (key.encode(), self._envelope("d", before, _NULL, lsn)), (key.encode(), None)

    def _envelope(self, op: str, before: str, after: str, lsn: int) -> bytes:
        return f'{{"before":{before},"after":{after}{self._source}{lsn}\\"]","lsn":{lsn}}},"op":"{op}",{self._end}'.encode()


def fill(change: Change, source: Mapping[int, Value]) -> Change:
    """The change with what it left unchanged put in, where the source has it (by the column's place)."""
    new = [source.get(i, value) if value is UNCHANGED else value for i, value in enumerate(change.new or ())]
    return msgspec.structs.replace(change, new=new)
