"""PostgreSQL: the rows of a table or a query by their time column, read through a server-side cursor."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents.databases.postgres import database_from_env, explain, usage_grants
from factory_agents.databases.statements import one_statement, table_name
from factory_agents.errors import ConfigurationError
from factory_agents.protocol import Interval
from factory_agents.runtime.agents import Reject, SourceRecord
from factory_agents.sources.rows import (
    BATCH_RECORDS,
    DATE_LIKE,
    ReadOptions,
    TimeUnit,
    check_field,
    encode_key,
    paced,
    require_time_field,
    select,
    time_reject,
    to_micros,
    window_micros,
)

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

__all__ = ["Relation", "TableSource", "connect", "describe", "in_one_form", "querying"]

_TIMESTAMP, _TIMESTAMPTZ, _DATE, _BYTEA, _NUMERIC = 1114, 1184, 1082, 17, 1700
_TIMESTAMPS, _BYTEAS, _NUMERICS = 1115, 1001, 1231
_INTEGERS, _FRACTIONS = (20, 21, 23), (700, 701, _NUMERIC)
_PER_MICROSECOND: dict[TimeUnit, Decimal] = {"s": Decimal("1e-6"), "ms": Decimal("1e-3"), "us": Decimal(1), "ns": Decimal(1000)}
_MAGNITUDES: dict[TimeUnit, tuple[Decimal, Decimal]] = {
    "s": (Decimal(0), Decimal(10) ** 11),
    "ms": (Decimal(10) ** 11, Decimal(10) ** 14),
    "us": (Decimal(10) ** 14, Decimal(10) ** 17),
    "ns": (Decimal(10) ** 17, Decimal(10) ** 21),
}
"""The sizes by which ``rows.to_micros`` tells units apart."""


def connect(database_env: str) -> psycopg.Connection[Any]:
    """Connect to the database whose URL is in an environment variable. Nothing is set for the session, since a transaction pooler may
    lie between: begin each transaction with ``in_one_form``.

    Raises ConfigurationError where it is not set or not understood, UnavailableError where the database doesn't answer.
    """
    return database_from_env(database_env).connect("factory-agents")


_FORM = {
    "timezone": "UTC",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
}


def in_one_form(connection: psycopg.Connection[Any]) -> None:
    """Have values written in PostgreSQL's own default form, and times in UTC, until the transaction ends: whatever the connection's
    options, the database or the role say.
    """
    settings = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in _FORM.items())
    connection.execute(f"SELECT {settings}")


@contextmanager
def querying(what: str) -> Iterator[None]:
    """Turn psycopg's errors into ours: UnavailableError where a retry may help, ConfigurationError where the query is wrong."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        raise explain(error, what, ConfigurationError, right="SELECT") from error


class Relation(msgspec.Struct, frozen=True):
    """A table or query, its columns' names and type numbers."""

    what: str
    body: Any
    columns: dict[str, int]

    @property
    def row(self) -> sql.Identifier:
        """The name, which none of the columns has, of the one that ``as_json`` adds."""
        from psycopg import sql

        name = "factory_row"
        while name in self.columns:
            name += "_"
        return sql.Identifier(name)

    @property
    def as_json(self) -> sql.Composable:
        """A query for all its rows with one more column, ``row``: the row as a JSON object.

        Decimals become text (exact), times ISO-8601 in UTC, bytes base64, in lists, too (in lists of lists bytes are ``\\x`` and
        hexadecimal digits); PostgreSQL's own ``row_to_json`` does the rest.
        """
        from psycopg import sql

        columns = [sql.SQL(_AS.get(kind, "{0}") + " AS {0}").format(sql.Identifier(name)) for name, kind in self.columns.items()]
        # c.* is the whole row, whatever the columns are called: c alone would be a column of that name.
        row = sql.SQL("(SELECT row_to_json(c.*)::text FROM (SELECT {}) AS c)").format(sql.SQL(", ").join(columns))
        return sql.SQL("SELECT q.*, {} AS {} FROM {} AS q").format(row, self.row, self.body)


_AS = {
    _TIMESTAMP: "{0} AT TIME ZONE 'UTC'",
    _BYTEA: "translate(encode({0}, 'base64'), E'\\n', '')",
    _NUMERIC: "{0}::text",
    _TIMESTAMPS: "{0}::timestamptz[]",  # in the session's time zone, which is UTC
    _NUMERICS: "{0}::text[]",
    _BYTEAS: (
        "CASE WHEN array_ndims({0}) = 1 THEN ARRAY(SELECT translate(encode(e, 'base64'), E'\\n', '')"
        " FROM unnest({0}) WITH ORDINALITY AS u(e, n) ORDER BY n) ELSE {0}::text[] END"
    ),
}


def describe(connection: psycopg.Connection[Any], table: str, query: str) -> Relation:
    """Look at a table (``name`` or ``schema.name``, as publish takes it) or a query; raises ConfigurationError where it is not there or
    has a column twice.
    """
    from psycopg import sql
    from psycopg.errors import UndefinedTable

    what = f"table {table!r}" if table else "query"
    body: sql.Composable = sql.Identifier(*table_name(table)) if table else sql.SQL("({})").format(sql.SQL(one_statement(query)))
    with querying(what), connection.cursor() as cursor:
        try:
            cursor.execute(sql.SQL("SELECT * FROM {} AS q LIMIT 0").format(body))
        except UndefinedTable as error:
            connection.rollback()
            if grants := usage_grants(connection):
                raise ConfigurationError(f"{what}: {error.diag.message_primary}, or in a schema that may not be used: {grants}") from error
            raise
        columns = [(column.name, column.type_code) for column in cursor.description or ()]
    if len(dict(columns)) < len(columns):
        raise ConfigurationError(f"{what}: a column's name is there twice: {', '.join(name for name, _ in columns)}; rename it with AS")
    return Relation(what, body, dict(columns))


def _bounds(relation: Relation, time_field: str, unit: TimeUnit, interval: Interval) -> list[tuple[Any, Any]]:
    """Half-open ranges of the time column's own values that mean times within the interval."""
    kind = relation.columns[time_field]
    times = (interval.start.astimezone(UTC), interval.end.astimezone(UTC))
    if kind == _TIMESTAMPTZ:
        return [times]
    if kind == _TIMESTAMP:
        return [(times[0].replace(tzinfo=None), times[1].replace(tzinfo=None))]
    if kind == _DATE:
        return [(_first_day(times[0]), _first_day(times[1]))]
    return _numbers(relation, time_field, _numeric_ranges(*window_micros(interval), unit))


def _first_day(time: datetime) -> date | str:
    """The first day that doesn't begin before a time, as PostgreSQL takes it."""
    try:
        return (time + timedelta(days=1, microseconds=-1)).date()
    except OverflowError:  # within the last that Python has
        return "infinity"


def _numbers(relation: Relation, time_field: str, ranges: list[tuple[Decimal, Decimal]]) -> list[tuple[Any, Any]]:
    kind = relation.columns[time_field]
    if kind in _INTEGERS:
        return [(math.ceil(low), math.ceil(high)) for low, high in ranges]
    if kind in _FRACTIONS:
        return list(ranges)
    raise ConfigurationError(
        f"{relation.what}: the time column {time_field!r} is not a time, date or number; give a query that makes it one, "
        f"for example SELECT *, {time_field}::timestamptz AS at FROM …"
    )


def _within(time: sql.Identifier, ranges: Sequence[tuple[Any, Any]]) -> sql.Composable:
    from psycopg import sql

    parts: list[sql.Composable] = [
        sql.SQL("({0} >= {1} AND {0} < {2})").format(time, sql.Literal(low), sql.Literal(high)) for low, high in ranges
    ]
    return sql.SQL("({})").format(sql.SQL(" OR ").join(parts or [sql.SQL("false")]))


def _readable(relation: Relation, time_field: str, unit: TimeUnit) -> sql.Composable:
    """Whether the time column's value is a time within the years 1 to 9999, as ``rows.to_micros`` has it: true or false, never null."""
    from psycopg import sql

    time = sql.Identifier(time_field)
    if relation.columns[time_field] in (_TIMESTAMPTZ, _TIMESTAMP, _DATE):
        # '4714-11-24 BC' to infinity are the database's; Python's years end before its own
        return sql.SQL("({0} >= '0001-01-01' AND {0} < '10000-01-01') IS TRUE").format(time)
    readable = _within(time, _numbers(relation, time_field, _numeric_ranges(*window_micros(None), unit)))
    if unit != "auto":
        return sql.SQL("({}) IS TRUE").format(readable)
    likes = [
        sql.SQL(
            "CASE WHEN {0} >= {1} AND {0} < {2} THEN mod({0}::numeric, {3}) >= {4} AND mod({0}::numeric, {3}) < {5} ELSE false END"
        ).format(time, *map(sql.Literal, (like.low, like.high, like.modulus, like.first, like.last + 1)))
        for like in DATE_LIKE
    ]
    return sql.SQL("({} AND NOT ({})) IS TRUE").format(readable, sql.SQL(" OR ").join(likes))


def _why_unreadable(text: str, unit: TimeUnit) -> str:
    """What is wrong with a time, given as the database writes it ("" for null)."""
    with suppress(InvalidOperation):  # a date or a timestamp
        try:
            to_micros(Decimal(text) if text else None, unit)
        except ValueError as error:
            return str(error)
    return f"is {text[:40]}, outside of the years 1 to 9999"


def _numeric_ranges(start: int, end: int, unit: TimeUnit) -> list[tuple[Decimal, Decimal]]:
    """Half-open ranges of numbers that mean times within ``[start, end)`` microseconds; several, where magnitude tells the unit."""
    if unit != "auto":
        return [(start * _PER_MICROSECOND[unit], end * _PER_MICROSECOND[unit])]
    ranges = []
    for each, (least, most) in _MAGNITUDES.items():
        low, high = start * _PER_MICROSECOND[each], end * _PER_MICROSECOND[each]
        ranges += [(max(low, least), min(high, most)), (max(low, 1 - most), min(high, 1 - least))]
    return [(low, high) for low, high in ranges if low < high]


class _Fetched:
    """Rows as the cursor gave them: a time that cannot be read (else null), id, JSON."""

    def __init__(self, what: str, first: int, rows: Sequence[tuple[str | None, Any, str]], options: ReadOptions) -> None:
        self._what, self._first, self._rows, self._options = what, first, rows, options
        self.times = [0] * len(rows)

    def records(self, indices: Sequence[int]) -> list[SourceRecord]:
        """See ``Block.records``."""
        return [
            SourceRecord(encode_key(key), value.encode(), f"{self._what}:{self._first + i}", None if time is None else self._reject(time))
            for i, (time, key, value) in ((i, self._rows[i]) for i in indices)
        ]

    def _reject(self, time: str) -> Reject:
        return time_reject(self._options.time_field, ValueError(_why_unreadable(time, self._options.time_unit)))


class TableSource:
    """The rows of a PostgreSQL table or query, ordered by time, then id; each becomes a JSON object.

    Rows without a time within the years 1 to 9999 (null, infinite) come first and are rejected: they belong to the interval of the table's
    first time. Nothing cheap tells whether a table has
    changed: ``identity["volatile"]`` says so, and a run takes up neither a finished nor a half-finished result.
    """

    name = "ingest"
    version = "1"

    def __init__(self, table: str, query: str, database_env: str, options: ReadOptions) -> None:
        if options.time_format:
            raise ConfigurationError(
                "ingest: time_format is for files; give a query that makes the column a time, "
                "for example SELECT *, to_timestamp(day::text, 'YYYYMMDD') AS at FROM …"
            )
        self._table, self._query, self._env, self._options = table, query, database_env, options
        self._connection: psycopg.Connection[Any] | None = None
        self.identity: dict[str, Any] = {
            "params": options.identity | {"table": table, "query": query, "database_env": database_env},
            "volatile": True,
        }

    def read(self, interval: Interval | None, skip: int) -> Iterator[Sequence[SourceRecord]]:
        """See ``Source.read``; every read until ``close`` sees one snapshot, in one order.

        Raises ConfigurationError for a relation or column that is not there or doesn't fit, UnavailableError where the database doesn't
        answer.
        """
        require_time_field(self._options, interval)
        batches = select(self._blocks(interval, skip), None, 0, lambda: 0)
        return paced(batches, self._options.rate_limit)

    def close(self) -> None:
        """See ``Source.close``."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> psycopg.Connection[Any]:
        import psycopg

        if self._connection is None:
            self._connection = connect(self._env)
            self._connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            self._connection.read_only = True
        return self._connection

    def _blocks(self, interval: Interval | None, skip: int) -> Iterator[_Fetched]:
        connection = self._open()
        with querying(f"table {self._table!r}" if self._table else "query"):
            in_one_form(connection)
        relation = describe(connection, self._table, self._query)
        number = skip + 1
        with querying(relation.what), connection.cursor(f"factory_{secrets.token_hex(4)}") as cursor:
            cursor.execute(self._select(connection, relation, interval, skip))
            while rows := cursor.fetchmany(BATCH_RECORDS):
                yield _Fetched(relation.what, number, rows, self._options)
                number += len(rows)

    def _select(self, connection: psycopg.Connection[Any], relation: Relation, interval: Interval | None, skip: int) -> sql.Composed:
        from psycopg import sql

        time_field, id_field = self._options.time_field, self._options.id_field
        key: sql.Composable = sql.SQL("NULL::text")
        unreadable: sql.Composable = sql.SQL("NULL::text")
        where: sql.Composable = sql.SQL("true")
        order: list[sql.Composable] = [relation.row]
        if id_field in relation.columns:
            key = sql.SQL("{}::text").format(sql.Identifier(id_field))
            order.insert(0, key)
        if time_field:
            check_field(time_field, "time_field", list(relation.columns), relation.what)
            time, readable = sql.Identifier(time_field), _readable(relation, time_field, self._options.time_unit)
            unreadable = sql.SQL("CASE WHEN {} THEN NULL ELSE coalesce({}::text, '') END").format(readable, time)
            order = [readable, sql.SQL("{} NULLS FIRST").format(time), *order]
            where = self._where(connection, relation, interval, readable) if interval is not None else where
        return sql.SQL("SELECT {}, {}, {} FROM ({}) AS r WHERE {} ORDER BY {} OFFSET {}").format(
            unreadable, key, relation.row, relation.as_json, where, sql.SQL(", ").join(order), sql.Literal(skip)
        )

    def _where(
        self, connection: psycopg.Connection[Any], relation: Relation, interval: Interval, readable: sql.Composable
    ) -> sql.Composable:
        """The interval's rows, and those without a readable time if the first time is in it: each row is in exactly one interval."""
        from psycopg import sql

        field, unit = self._options.time_field, self._options.time_unit
        time = sql.Identifier(field)
        inside = _within(time, _bounds(relation, field, unit, interval))
        names = {"inside": inside, "readable": readable, "body": relation.body, "time": time}
        with querying(relation.what):
            first = connection.execute(
                sql.SQL("SELECT {inside} FROM {body} AS q WHERE {readable} ORDER BY {time} LIMIT 1").format(**names)
            ).fetchone()
            if first is None:
                example = sql.SQL("SELECT coalesce({time}::text, '') FROM {body} AS q ORDER BY {time} NULLS LAST LIMIT 1")
                if (found := connection.execute(example.format(**names)).fetchone()) is not None:
                    why = f"the first {_why_unreadable(found[0], unit)}" if found[0] else f"every row's time {field!r} is null"
                    raise ConfigurationError(f"{relation.what}: no row has a readable time in {field!r}; {why}")
        within = sql.SQL("({inside} AND {readable})").format(**names)
        return sql.SQL("({} OR NOT ({}))").format(within, readable) if first is not None and first[0] else within
