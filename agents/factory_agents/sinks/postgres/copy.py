"""The two ways to copy rows: straight into the table while all their keys are new, else into a staging table to merge from.

Both hold a COPY open between batches, so that the server works on one while the next is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from factory_agents import failpoints
from factory_agents.sinks.postgres.names import compose, names
from factory_agents.sinks.postgres.rows import TableRow
from factory_agents.sinks.postgres.table import OWN_COLUMNS, TargetTable

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql
    from psycopg.abc import Buffer
    from psycopg.copy import Writer

__all__ = ["CHECK_CONSTRAINTS", "STAGING", "Copy", "Direct", "Staged", "is_of_a_row", "is_raised", "may_be_staged"]

STAGING = "factory_staging"
CHECK_CONSTRAINTS = "SET CONSTRAINTS ALL IMMEDIATE"

_OWN_COPIED_AS = ("int8", "int4", "int4", "int8", "int8")  # of OWN_COLUMNS; a timestamptz travels as microseconds
_CHUNK_BYTES = 16_000_000
_WAIT_LITTLE = """
    SELECT set_config('lock_timeout', '1s', true) FROM pg_catalog.pg_settings WHERE name = 'lock_timeout' AND setting::int > 1000
"""  # a direct copy: a merge waits longer, with fewer locks in its hands
_MET_OTHERS = frozenset({"40P01", "40001", "55P03", "0A000"})
"""Others in the way, and tables that take no COPY (row-level security)."""
_OF_A_ROW = ("21", "22", "23", "P0", "44", "54000")
"""A trigger's query that finds several rows, values, constraints, what triggers raise or don't find, rows that a view's check refuses,
values too large for an index."""
_NOT_OF_A_ROW = ("08", "40", "53", "55", "57", "58")
"""Outages and others in the way, even where a trigger says so."""
_RAISE = ("exec_stmt_raise", "exec_stmt_assert")


def is_of_a_row(error: psycopg.Error) -> bool:
    """Whether the database refuses a row: for its values, a constraint, a missing partition, or what a trigger says.

    A trigger raises with any code that its author likes.
    """
    state = error.sqlstate or ""
    return state.startswith(_OF_A_ROW) or (is_raised(error) and not state.startswith(_NOT_OF_A_ROW))


def is_raised(error: psycopg.Error) -> bool:
    """Whether a trigger's RAISE or ASSERT says so: that is the place in the server where the error comes from."""
    return error.diag.source_function in _RAISE


def may_be_staged(error: psycopg.Error) -> bool:
    """Whether a direct copy has failed where a staged one need not: keys that are there already, single rows, others in the way."""
    return is_of_a_row(error) or error.sqlstate in _MET_OTHERS


class _OpenCopy:
    """One COPY into a table, open until it is ended; ``sent`` is all that went, for another to send again (or None: not kept)."""

    def __init__(
        self, connection: psycopg.Connection[Any], query: sql.Composed, table: TargetTable, sent: list[Buffer] | None = None
    ) -> None:
        self._open = ExitStack()
        cursor = self._open.enter_context(connection.cursor())
        copy = self._open.enter_context(cursor.copy(query, writer=_keeping(cursor, sent)))
        copy.set_types([*(c.kind.copied_as for c in table.columns), *_OWN_COPIED_AS, *(["bool"] if table.deletes else [])])
        self._write = copy.write_row

    def write(self, rows: Iterable[TableRow]) -> None:
        write = self._write
        for row in rows:
            write(row)
        failpoints.hit("postgres.copying")

    def end(self) -> None:
        from psycopg.errors import AdminShutdown

        try:
            self._open.close()
        except ValueError as error:  # a pooler answers twice, which psycopg doesn't expect
            raise AdminShutdown("the session was ended in the middle of a COPY") from error

    def drop(self) -> None:
        """End it on a connection that is closed."""
        import psycopg

        with suppress(psycopg.Error):
            self._open.close()


def _keeping(cursor: psycopg.Cursor[Any], sent: list[Buffer] | None) -> Writer:
    """psycopg's own writer, with a second look at what it sends."""
    from psycopg.copy import LibpqWriter

    class Keeping(LibpqWriter):
        def write(self, data: Buffer) -> None:
            if sent is not None:
                sent.append(data)
            super().write(data)

    return Keeping(cursor)


class Direct:
    """Rows copied straight into the table, a savepoint a chunk.

    It holds for new keys only. At the first that is not (or when another holds one) the COPY fails, and ``hand_over`` gives all rows to
    a staged copy in a session of its own: nothing of this one, nor its locks, is left then.
    """

    def __init__(self, connection: psycopg.Connection[Any], table: TargetTable, publication: int) -> None:
        self._connection = connection
        self._table = table
        self._publication = publication
        self._copy: _OpenCopy | None = None
        self._waiting: list[TableRow] = []
        self._sent: list[Buffer] = []
        self._landed = False

    def put(self, rows: Sequence[TableRow]) -> None:
        """Take rows; nothing is sent."""
        self._waiting += rows

    def flow(self) -> None:
        """Send what came; a chunk is ended only now, when the next rows are there: the server wasn't kept waiting for them."""
        if sum(map(len, self._sent)) >= _CHUNK_BYTES:
            self._end_chunk()
        if not self._waiting:
            return
        if self._copy is None:
            self._copy = self._begin_chunk()
        self._copy.write(self._waiting)
        self._waiting = []

    def finish(self) -> None:
        """Send all and hear that it was taken, by constraints too that would be looked at with the commit only."""
        self.flow()
        self._end_chunk()
        self._connection.execute("SAVEPOINT factory_chunk")  # to come back to, as from a chunk
        self._connection.execute(CHECK_CONSTRAINTS)

    def _begin_chunk(self) -> _OpenCopy:
        self._connection.execute("SAVEPOINT factory_chunk")
        if not self._landed:
            self._connection.execute(_WAIT_LITTLE)
        query = compose("COPY {table} ({columns}) FROM STDIN (FORMAT binary)", table=self._table.identifier, columns=_columns(self._table))
        return _OpenCopy(self._connection, query, self._table, self._sent)

    def _end_chunk(self) -> None:
        copy, self._copy = self._copy, None
        if copy is None:
            return
        copy.end()
        self._connection.execute("RELEASE SAVEPOINT factory_chunk")
        self._landed = True
        self._sent.clear()

    def hand_over(self, staged: Staged) -> None:
        """Give all rows to a staged copy on another connection, those that the table has already too."""
        self._connection.execute("ROLLBACK TO SAVEPOINT factory_chunk")
        if self._landed:
            query = compose(
                "COPY (SELECT {columns} FROM {table} WHERE _factory_publication = {publication}) TO STDOUT (FORMAT binary)",
                columns=_columns(self._table),
                table=self._table.identifier,
                publication=self._publication,
            )
            with self._connection.cursor() as cursor, cursor.copy(query) as landed:
                staged.take_over(landed)
        if self._sent:
            staged.take_over(self._sent)
        staged.put(self._waiting)

    def drop(self) -> None:
        """Let go of a COPY whose connection is closed."""
        if self._copy is not None:
            self._copy.drop()


class Staged:
    """Rows copied into a temporary table, gone with the transaction: whoever merges it into the table locks no longer than that takes."""

    def __init__(self, connection: psycopg.Connection[Any], table: TargetTable) -> None:
        from psycopg import sql

        self._connection = connection
        self._table = table
        self._copy: _OpenCopy | None = None
        self._waiting: list[TableRow] = []
        columns = [
            compose("{name} " + type_ + (' COLLATE "C"' if c.kind.text else ""), name=sql.Identifier(c.name))
            for c, type_ in zip(table.columns, table.staged, strict=True)
        ]
        columns += [compose("{name} " + type_, name=sql.Identifier(name)) for name, (type_, _) in OWN_COLUMNS.items()]
        columns += [compose("_factory_deleted boolean")] if table.deletes else []
        query = "CREATE TEMPORARY TABLE {staging} ({columns}) ON COMMIT DROP"
        connection.execute(compose(query, staging=sql.SQL(STAGING), columns=sql.SQL(", ").join(columns)))

    def put(self, rows: Sequence[TableRow]) -> None:
        """Take rows; nothing is sent."""
        self._waiting += rows

    def flow(self) -> None:
        """Send what came."""
        rows, self._waiting = self._waiting, []
        if rows and self._copy is None:
            self._copy = _OpenCopy(self._connection, compose(f"COPY {STAGING} FROM STDIN (FORMAT binary)"), self._table)
        if rows and self._copy is not None:
            self._copy.write(rows)

    def finish(self) -> None:
        """Send all and hear that it was taken."""
        self.flow()
        copy, self._copy = self._copy, None
        if copy is not None:
            copy.end()

    def take_over(self, blocks: Iterable[Buffer]) -> None:
        """Take rows in the form of a binary COPY."""
        with self._connection.cursor() as cursor, cursor.copy(compose(f"COPY {STAGING} FROM STDIN (FORMAT binary)")) as copy:
            for block in blocks:
                copy.write(bytes(block))

    def drop(self) -> None:
        """Let go of a COPY whose connection is closed."""
        if self._copy is not None:
            self._copy.drop()


Copy: TypeAlias = Direct | Staged


def _columns(table: TargetTable) -> sql.Composed:
    return names([*(c.name for c in table.columns), *OWN_COLUMNS])
