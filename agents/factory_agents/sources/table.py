"""PostgreSQL: the rows of a table or a query by their time column, read through a server-side cursor."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents.databases.postgres import database_from_env, explain
from factory_agents.errors import ConfigurationError
from factory_agents.protocol import Interval
from factory_agents.runtime.agents import Reject, SourceRecord
from factory_agents.sources.rows import (
    BATCH_RECORDS,
    ReadOptions,
    TimeUnit,
    check_field,
    encode_key,
    paced,
    require_time_field,
    select,
    window_micros,
)

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

__all__ = ["Relation", "TableSource", "connect", "describe", "querying"]

_TIMESTAMP, _TIMESTAMPTZ, _DATE, _BYTEA, _NUMERIC = 1114, 1184, 1082, 17, 1700
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
    """Connect to the database whose URL stands in an environment variable, with times in UTC.

    Raises ConfigurationError where it is not set or not understood, UnavailableError where the database doesn't answer.
    """
    connection = database_from_env(database_env).connect("factory-agents")
    connection.autocommit = True
    connection.execute("SET TIME ZONE 'UTC'")
    connection.autocommit = False
    return connection


@contextmanager
def querying(what: str) -> Iterator[None]:
    """Turn psycopg's errors into ours: UnavailableError where a retry may help, ConfigurationError where the query is wrong."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        raise explain(error, what, ConfigurationError) from error


class Relation(msgspec.Struct, frozen=True):
    """A table or query, its columns' names and type numbers."""

    what: str
    body: Any
    columns: dict[str, int]

    @property
    def as_json(self) -> sql.Composable:
        """A query for all its rows with one more column, ``factory_row``: the row as a JSON object.

        Decimals become text (exact), times ISO-8601 in UTC, bytes base64; PostgreSQL's own ``row_to_json`` does the rest.
        """
        from psycopg import sql

        columns = [sql.SQL(_AS.get(kind, "{0}") + " AS {0}").format(sql.Identifier(name)) for name, kind in self.columns.items()]
        row = sql.SQL("(SELECT row_to_json(c)::text FROM (SELECT {}) AS c)").format(sql.SQL(", ").join(columns))
        return sql.SQL("SELECT q.*, {} AS factory_row FROM {} AS q").format(row, self.body)


_AS = {
    _TIMESTAMP: "{0} AT TIME ZONE 'UTC'",
    _BYTEA: "translate(encode({0}, 'base64'), E'\\n', '')",
    _NUMERIC: "{0}::text",
}


def describe(connection: psycopg.Connection[Any], table: str, query: str) -> Relation:
    """Look at a table (``name`` or ``schema.name``) or a query; raises ConfigurationError where it is not there or has a column twice."""
    from psycopg import sql

    what = f"table {table!r}" if table else "query"
    body: sql.Composable = sql.Identifier(*table.split(".")) if table else sql.SQL("({})").format(sql.SQL(query.strip().rstrip(";")))
    with querying(what), connection.cursor() as cursor:
        cursor.execute(sql.SQL("SELECT * FROM {} AS q LIMIT 0").format(body))
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
        days = [(time + timedelta(days=1, microseconds=-1)).date() for time in times]
        return [(days[0], days[1])]
    ranges = _numeric_ranges(*window_micros(interval), unit)
    if kind in _INTEGERS:
        return [(math.ceil(low), math.ceil(high)) for low, high in ranges]
    if kind in _FRACTIONS:
        return list(ranges)
    raise ConfigurationError(
        f"{relation.what}: the time column {time_field!r} is no time, date or number; give a query that makes it one, "
        f"for example SELECT *, {time_field}::timestamptz AS at FROM …"
    )


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
    """Rows as the cursor gave them: time is null, id, JSON."""

    def __init__(self, what: str, first: int, rows: Sequence[tuple[bool, Any, str]], time_field: str) -> None:
        self._what, self._first, self._rows, self._time_field = what, first, rows, time_field
        self.times = [0] * len(rows)

    def records(self, indices: Sequence[int]) -> list[SourceRecord]:
        """See ``Block.records``."""
        reject = Reject(f"the time {self._time_field!r} is null", rule="time")
        return [
            SourceRecord(encode_key(key), value.encode(), f"{self._what}:{self._first + i}", reject if untimed else None)
            for i, (untimed, key, value) in ((i, self._rows[i]) for i in indices)
        ]


class TableSource:
    """The rows of a PostgreSQL table or query, ordered by time, then id; each becomes a JSON object.

    Rows without a time come first, so they belong to the interval of the table's first time. Nothing cheap tells whether a table has
    changed: ``identity["volatile"]`` says so, and a run takes up neither a finished nor a half-finished result.
    """

    name = "ingest"
    version = "1"

    def __init__(self, table: str, query: str, database_env: str, options: ReadOptions) -> None:
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
        relation = describe(connection, self._table, self._query)
        number = skip + 1
        with querying(relation.what), connection.cursor(f"factory_{secrets.token_hex(4)}") as cursor:
            cursor.execute(self._select(connection, relation, interval, skip))
            while rows := cursor.fetchmany(BATCH_RECORDS):
                yield _Fetched(relation.what, number, rows, self._options.time_field)
                number += len(rows)

    def _select(self, connection: psycopg.Connection[Any], relation: Relation, interval: Interval | None, skip: int) -> sql.Composed:
        from psycopg import sql

        time_field, id_field = self._options.time_field, self._options.id_field
        key: sql.Composable = sql.SQL("NULL::text")
        untimed: sql.Composable = sql.SQL("false")
        where: sql.Composable = sql.SQL("true")
        order: list[sql.Composable] = [sql.SQL("factory_row")]
        if id_field in relation.columns:
            key = sql.SQL("{}::text").format(sql.Identifier(id_field))
            order.insert(0, key)
        if time_field:
            check_field(time_field, "time_field", list(relation.columns), relation.what)
            untimed = sql.SQL("{} IS NULL").format(sql.Identifier(time_field))
            order.insert(0, sql.SQL("{} NULLS FIRST").format(sql.Identifier(time_field)))
            where = self._where(connection, relation, interval) if interval is not None else where
        return sql.SQL("SELECT {}, {}, factory_row FROM ({}) AS r WHERE {} ORDER BY {} OFFSET {}").format(
            untimed, key, relation.as_json, where, sql.SQL(", ").join(order), sql.Literal(skip)
        )

    def _where(self, connection: psycopg.Connection[Any], relation: Relation, interval: Interval) -> sql.Composable:
        from psycopg import sql

        time = sql.Identifier(self._options.time_field)
        bounds = _bounds(relation, self._options.time_field, self._options.time_unit, interval)
        ranges: list[sql.Composable] = [
            sql.SQL("({0} >= {1} AND {0} < {2})").format(time, sql.Literal(low), sql.Literal(high)) for low, high in bounds
        ]
        inside = sql.SQL("({})").format(sql.SQL(" OR ").join(ranges or [sql.SQL("false")]))
        names = {"inside": inside, "body": relation.body, "time": time}
        with querying(relation.what):
            first = connection.execute(
                sql.SQL("SELECT {inside} FROM {body} AS q WHERE {time} IS NOT NULL ORDER BY {time} LIMIT 1").format(**names)
            ).fetchone()
            if first is None and connection.execute(sql.SQL("SELECT 1 FROM {body} AS q LIMIT 1").format(**names)).fetchone():
                raise ConfigurationError(f"{relation.what}: every row's time {self._options.time_field!r} is null")
        return sql.SQL("({inside} OR {time} IS NULL)").format(**names) if first is not None and first[0] else inside
