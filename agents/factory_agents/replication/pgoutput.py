"""The messages of PostgreSQL's ``pgoutput`` (protocol version 1), as bytes from the log to values; asks nobody."""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from factory_agents.errors import UnavailableError

__all__ = [
    "UNCHANGED",
    "Begin",
    "Change",
    "Column",
    "Commit",
    "Described",
    "Truncate",
    "Value",
    "parse",
]


class _Unchanged:
    """Stands for a large value that an update left as it was: the log doesn't hold it."""

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = _Unchanged()

Value: TypeAlias = "str | _Unchanged | None"
"""A column's value as text in PostgreSQL's own notation, null, or ``UNCHANGED``."""


class Begin(NamedTuple):
    """A transaction begins; it was committed at ``lsn`` (where its commit record begins), at ``micros`` since 1970."""

    lsn: int
    micros: int
    xid: int


class Commit(NamedTuple):
    """A transaction ends; ``end`` is where the log goes on behind it."""

    end: int


class Column(NamedTuple):
    """A column of a table as it was when the change was made; ``key``: it is a part of the replica identity. ``modifier`` is what its type
    was given (a length, or precision and scale), in PostgreSQL's own notation; -1: nothing.
    """

    name: str
    type: int
    key: bool
    modifier: int = -1


class Described(NamedTuple):
    """What a table looks like from here on. ``identity``: d (primary key), i (an index), f (the whole row) or n (none)."""

    oid: int
    schema: str
    table: str
    identity: str
    columns: tuple[Column, ...]


class Change(msgspec.Struct, frozen=True):
    """A row was inserted (c), updated (u) or deleted (d). ``old`` is there for a delete, and where ``old_kind`` is K (an update changed the
    key: only the key's columns are there) or O (the whole row was logged).
    """

    op: str
    oid: int
    old_kind: str
    old: list[Value] | None
    new: list[Value] | None


class Truncate(NamedTuple):
    """Tables were emptied."""

    oids: tuple[int, ...]


_SINCE_1970 = 946_684_800_000_000
_BEGIN, _COMMIT, _U32 = struct.Struct("!QqI"), struct.Struct("!BQQq"), struct.Struct("!I")
_n16, _n32, _column = struct.Struct("!H").unpack_from, _U32.unpack_from, struct.Struct("!Ii").unpack_from


def parse(body: bytes) -> Begin | Commit | Described | Change | Truncate | None:
    """One message; None for one that says nothing of rows. Raises UnavailableError for what is none."""
    try:
        reader = _READERS[body[0]]
    except (KeyError, IndexError):
        raise UnavailableError(f"replication: unknown message {body[:16]!r} of pgoutput") from None
    return reader(body) if reader is not None else None


def _begin(body: bytes) -> Begin:
    lsn, micros, xid = _BEGIN.unpack_from(body, 1)
    return Begin(lsn, micros + _SINCE_1970, xid)


def _commit(body: bytes) -> Commit:
    return Commit(_COMMIT.unpack_from(body, 1)[2])


def _insert(body: bytes) -> Change:
    return Change("c", _n32(body, 1)[0], "", None, _row(body, 6)[0])


def _update(body: bytes) -> Change:
    kind, at, old = chr(body[5]), 6, None
    if kind != "N":
        old, at = _row(body, at)
        at += 1
    return Change("u", _n32(body, 1)[0], "" if kind == "N" else kind, old, _row(body, at)[0])


def _delete(body: bytes) -> Change:
    return Change("d", _n32(body, 1)[0], chr(body[5]), _row(body, 6)[0], None)


def _truncate(body: bytes) -> Truncate:
    count = _n32(body, 1)[0]
    return Truncate(struct.unpack_from(f"!{count}I", body, 6))


def _row(body: bytes, at: int) -> tuple[list[Value], int]:
    (count,) = _n16(body, at)
    at += 2
    values: list[Value] = []
    append = values.append
    for _ in range(count):
        kind = body[at]
        at += 1
        if kind == 116:  # t
            (size,) = _n32(body, at)
            at += 4 + size
            append(body[at - size : at].decode())
        elif kind == 110:  # n
            append(None)
        else:
            append(UNCHANGED)
    return values, at


def _describe(body: bytes) -> Described:
    (oid,) = _n32(body, 1)
    schema, at = _text(body, 5)
    table, at = _text(body, at)
    identity, (count,) = chr(body[at]), _n16(body, at + 1)
    at += 3
    columns = []
    for _ in range(count):
        flags = body[at]
        name, at = _text(body, at + 1)
        type_, modifier = _column(body, at)
        columns.append(Column(name, type_, bool(flags & 1), modifier))
        at += 8
    return Described(oid, schema or "pg_catalog", table, identity, tuple(columns))


def _text(body: bytes, at: int) -> tuple[str, int]:
    end = body.index(0, at)
    return body[at:end].decode(), end + 1


_READERS: dict[int, Any] = {
    **{ord(c): None for c in "OYM"},  # where a change came from, a type's name, an application's message
    ord("B"): _begin,
    ord("C"): _commit,
    ord("I"): _insert,
    ord("U"): _update,
    ord("D"): _delete,
    ord("T"): _truncate,
    ord("R"): _describe,
}
