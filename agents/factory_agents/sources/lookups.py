"""Reference data that enrich joins to events by a key: a file held in memory, or a PostgreSQL table read as keys come."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol

import msgspec

from factory_agents.errors import ConfigurationError
from factory_agents.runtime.agents import Reject, SourceRecord, decode_event
from factory_agents.runtime.numbers import Digits, Kept
from factory_agents.sources.files import FileSource
from factory_agents.sources.rows import ColumnType, Header, ReadOptions, check_field
from factory_agents.sources.table import Relation, connect, describe, in_one_form, querying

if TYPE_CHECKING:
    import psycopg

__all__ = ["Lookup", "LookupJoin"]

_INTEGER_KINDS = (20, 21, 23)
_TEXT_KINDS = (25, 1043)
_UUID_KIND = 2950
_CANONICAL = {
    "bigint": re.compile(r"0|-?[1-9][0-9]{0,18}"),
    "uuid": re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "text": re.compile(r"[^\0\ud800-\udfff]*"),
}
"""The texts that a key may be at all: of others the database would make an error, and the table doesn't have them."""


class Lookup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One reference, and what of it is added to an event.

    The event's field ``on`` is looked up in the column ``key`` (the same name by default; values are compared as text) of a ``file`` (any
    that ingest reads, with its ``format`` and how its CSV is written) or of a ``table`` in the database of the environment variable
    ``database_env``. ``fields`` of the row found (all but the key by default) are added, their names after ``prefix``, replacing what has
    these names.
    Where there is no row: ``null`` adds nulls, ``skip`` leaves the event as it is, ``reject`` dead-letters it. ``cache_size`` rows of a
    table are kept.
    """

    on: Annotated[str, msgspec.Meta(min_length=1)]
    file: str = ""
    format: Literal["auto", "jsonl", "csv", "tsv", "parquet"] = "auto"
    delimiter: Annotated[str, msgspec.Meta(max_length=1)] = ""
    encoding: str = "utf-8"
    types: dict[str, ColumnType] = {}
    nulls: tuple[str, ...] = ()
    header: Header = "strict"
    table: str = ""
    database_env: str = "DATABASE_URL"
    key: str = ""
    fields: tuple[str, ...] = ()
    prefix: str = ""
    on_missing: Literal["null", "reject", "skip"] = "null"
    cache_size: Annotated[int, msgspec.Meta(ge=0)] = 100_000

    def __post_init__(self) -> None:
        """Refuse a lookup of nothing, or of two things."""
        if bool(self.file) == bool(self.table):
            raise ValueError(f"the lookup on {self.on!r} needs either a file or a table")


class _Row(NamedTuple):
    """A row of a reference, and the numbers in it that a float cannot hold."""

    values: dict[str, Any]
    kept: Kept


class _Reference(Protocol):
    """Rows by key."""

    identity: dict[str, Any]
    what: str

    def names(self) -> Sequence[str]:
        """The columns."""
        ...

    def find(self, keys: Iterable[str]) -> dict[str, _Row]:
        """The rows of those keys that have one."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class LookupJoin:
    """Adds to each event what its lookups find; give ``join`` to a ``FunctionTransform``.

    Their files are ``confined`` to those that someone from outside may name, or not. ``identity`` holds the lookups and their files'
    checksums; a table can change, so with one it is ``volatile``. ``kept`` is where numbers that a float cannot hold are put with their
    digits (see ``Digits``).
    """

    def __init__(self, lookups: Sequence[Lookup], *, confined: bool = False) -> None:
        self.kept: Kept = {}
        self._parts = [_Part(lookup, confined=confined) for lookup in lookups]
        self.identity: dict[str, Any] = {"lookups": [part.identity for part in self._parts]}
        if any(lookup.table for lookup in lookups):
            self.identity["volatile"] = True

    def join(self, events: Sequence[dict[str, Any]]) -> list[dict[str, Any] | Reject]:
        """The events with what was found added, or why they are rejected; a table is asked once for all of them.

        Raises UnavailableError when its database doesn't answer.
        """
        joined: list[dict[str, Any] | Reject] = list(events)
        for part in self._parts:
            joined = part.join(joined, self.kept)
        return joined

    def close(self) -> None:
        """Disconnect."""
        for part in self._parts:
            part.reference.close()


class _Part:
    def __init__(self, lookup: Lookup, *, confined: bool) -> None:
        self._lookup = lookup
        key = lookup.key or lookup.on
        self.reference: _Reference = _FileReference(lookup, key, confined=confined) if lookup.file else _TableReference(lookup, key)
        self.identity = msgspec.to_builtins(lookup) | self.reference.identity
        self._pairs: list[tuple[str, str]] = []

    def join(self, events: list[dict[str, Any] | Reject], kept: Kept) -> list[dict[str, Any] | Reject]:
        on = self._lookup.on
        keys = [None if isinstance(event, Reject) else _key_text(event.get(on), kept) for event in events]
        rows = self.reference.find({key for key in keys if key is not None})
        pairs = self._names()
        joined: list[dict[str, Any] | Reject] = []
        for event, key in zip(events, keys, strict=True):
            if isinstance(event, Reject):
                joined.append(event)
            elif key is not None and (row := rows.get(key)) is not None:
                event.update((name, _own(row.values.get(column))) for column, name in pairs)
                kept.update(row.kept)
                joined.append(event)
            else:
                joined.append(self._missing(event))
        return joined

    def _names(self) -> list[tuple[str, str]]:
        if not self._pairs:
            columns = self._lookup.fields or self.reference.names()
            self._pairs = [(column, self._lookup.prefix + column) for column in columns]
        return self._pairs

    def _missing(self, event: dict[str, Any]) -> dict[str, Any] | Reject:
        if self._lookup.on_missing == "reject":
            on = self._lookup.on
            return Reject(f"{on}={event.get(on)!r} is not in {self.reference.what}", rule="lookup")
        if self._lookup.on_missing == "null":
            event.update((name, None) for _, name in self._names())
        return event


def _own(value: Any) -> Any:
    """A copy of what the agent could change within, so that the next event finds the reference as it was."""
    return copy.deepcopy(value) if isinstance(value, (dict, list)) else value


def _key_text(value: Any, kept: Kept) -> str | None:
    if type(value) is str:
        return value
    if type(value) is float and (long := kept.get(id(value))) is not None:
        return long[1]
    if value is None or isinstance(value, (dict, list)):
        return None
    return msgspec.json.encode(value).decode()


def _read(record: SourceRecord, digits: Digits) -> tuple[dict[str, Any], str]:
    """A row of a file, or what is wrong with it."""
    try:
        if record.reject is not None:
            raise record.reject
        return decode_event(record.value, digits.decode), ""
    except Reject as reject:
        return {}, reject.reason


class _FileReference:
    """All of a file in memory."""

    def __init__(self, lookup: Lookup, key: str, *, confined: bool) -> None:
        how = {name: getattr(lookup, name) for name in ("format", "delimiter", "encoding", "types", "nulls", "header")}
        source = FileSource([lookup.file], ReadOptions(id_field=key, **how), confined=confined)
        self.what = f"file {lookup.file!r}"
        self.identity = {"files": source.identity["files"]}
        self._rows: dict[str, _Row] = {}
        digits = Digits()
        columns: dict[str, None] = {}
        for batch in source.read(None, 0):
            for record in batch:
                row, problem = _read(record, digits)
                columns.update(dict.fromkeys(row))
                text = _key_text(row.get(key), digits.kept)
                if text is None and not problem:
                    problem = f"no value in the key column {key!r}"
                if text in self._rows:
                    problem = f"the key {key}={text!r} is there twice"
                if problem or text is None:
                    check_field(key, "the lookup's key column", list(columns) or [key], self.what)
                    raise ConfigurationError(f"{record.where}: {problem}; correct this reference file")
                self._rows[text] = _Row(row, digits.taken())
        for name in lookup.fields if self._rows else ():
            check_field(name, "the lookup's field", list(columns), self.what)
        columns.pop(key, None)
        self._names = list(columns)

    def names(self) -> Sequence[str]:
        return self._names

    def find(self, keys: Iterable[str]) -> dict[str, _Row]:
        return self._rows

    def close(self) -> None:
        self._rows = {}


class _TableReference:
    """A table's rows as their keys come, the latest used ones kept; keys without a row are asked for again."""

    def __init__(self, lookup: Lookup, key: str) -> None:
        self._lookup, self._key = lookup, key
        self.what = f"table {lookup.table!r}"
        self.identity: dict[str, Any] = {}
        self._connection: psycopg.Connection[Any] | None = None
        self._relation: Relation | None = None
        self._cache: OrderedDict[str, _Row] = OrderedDict()
        self._digits = Digits()

    def names(self) -> Sequence[str]:
        _, relation = self._open()
        return [name for name in relation.columns if name != self._key]

    def _open(self) -> tuple[psycopg.Connection[Any], Relation]:
        if self._connection is None or self._relation is None:
            self.close()
            connection = self._connection = connect(self._lookup.database_env)
            connection.autocommit = True
            relation = describe(connection, self._lookup.table, "")
            known = list(relation.columns)
            check_field(self._key, "the lookup's key column", known, self.what)
            for name in self._lookup.fields:
                check_field(name, "the lookup's field", known, self.what)
            self._relation = relation
        return self._connection, self._relation

    def find(self, keys: Iterable[str]) -> dict[str, _Row]:
        found: dict[str, _Row] = {}
        absent = []
        for key in sorted(keys):
            row = self._cache.get(key)
            if row is None:
                absent.append(key)
            else:
                self._cache.move_to_end(key)
                found[key] = row
        if absent:
            found |= self._query(absent)
        return found

    def _query(self, keys: list[str]) -> dict[str, _Row]:
        from psycopg import sql

        connection, relation = self._open()
        kind = relation.columns[self._key]
        cast = "bigint" if kind in _INTEGER_KINDS else "uuid" if kind == _UUID_KIND else "text"
        keys = [key for key in keys if _CANONICAL[cast].fullmatch(key)]
        if cast == "bigint":
            keys = [key for key in keys if -(2**63) <= int(key) < 2**63]
        column = "{}" if cast != "text" or kind in _TEXT_KINDS else "{}::text"
        query = sql.SQL(
            "SELECT {key}::text, {row} FROM ({rows}) AS r WHERE " + column.format("{key}") + " = ANY({keys}::" + cast + "[])"
        ).format(key=sql.Identifier(self._key), row=relation.row, rows=relation.as_json, keys=sql.Literal(keys))
        rows: dict[str, _Row] = {}
        try:
            with querying(self.what), connection.transaction():
                in_one_form(connection)
                fetched = connection.execute(query).fetchall()  # with parameters a % in a column's name would be one, too
        except BaseException:
            self.close()
            raise
        for key, text in fetched:
            if key in rows:
                raise ConfigurationError(
                    f"{self.what}: the key {self._key}={key!r} is there twice; look up by a column whose values are unique"
                )
            rows[key] = _Row(self._digits.decode(text), self._digits.taken())
            self._keep(key, rows[key])
        return rows

    def _keep(self, key: str, row: _Row) -> None:
        self._cache[key] = row
        while len(self._cache) > self._lookup.cache_size:
            self._cache.popitem(last=False)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._relation = None
