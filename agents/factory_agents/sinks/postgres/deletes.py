"""Tombstones as deletes: a record without a value removes its key's row, and every record of the key before it.

What was deleted is remembered in a table beside the target, so that an older record that is published later doesn't bring a row back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from factory_agents.errors import SinkError
from factory_agents.runtime.agents import Reject
from factory_agents.sinks.postgres.catalog import FoundColumn, columns
from factory_agents.sinks.postgres.copy import STAGING
from factory_agents.sinks.postgres.names import compose, identifier, names
from factory_agents.sinks.postgres.refusals import NUMBER, REACHED, SUSPECTS, find_refused
from factory_agents.sinks.postgres.table import OWN_COLUMNS, TargetTable, begin_creation, find_table, not_after, same_key

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

__all__ = ["Deletes", "memory_of"]

_TOMBSTONES = "factory_tombstones"


def memory_of(table: str) -> str:
    """The name of the table that remembers what was deleted from another."""
    name = f"factory_deleted_{table}"
    if len(name.encode()) <= 63:
        return name
    return f"factory_deleted_{hashlib.sha256(table.encode()).hexdigest()[:16]}"


class Deletes:
    """The deletes of one publication, before its rows are merged."""

    def __init__(self, connection: psycopg.Connection[Any], table: TargetTable) -> None:
        from psycopg import sql

        self._connection = connection
        self._table = table
        self._memory = sql.Identifier(table.schema, memory_of(table.name))
        self._key = names(table.key)

    def open(self) -> None:
        """Create the memory, if it isn't there, with the key's columns as the table has them; raises SinkError where it has others."""
        schema, table = self._table.schema, self._table
        if (memory := find_table(self._connection, schema, memory_of(table.name))) is not None:
            self._keep_up(memory)
            return
        own = ", ".join(f"ADD COLUMN {name} {type_} NOT NULL" for name, (type_, _) in OWN_COLUMNS.items())
        begin_creation(self._connection, schema, memory_of(table.name))
        if find_table(self._connection, schema, memory_of(table.name)) is None:
            self._run("CREATE TABLE {memory} AS SELECT {key} FROM {table} WITH NO DATA", memory=self._memory, table=table.identifier)
            self._run(f"ALTER TABLE {{memory}} ADD PRIMARY KEY ({{key}}), {own}", memory=self._memory)

    def _keep_up(self, memory: int) -> None:
        """Give the memory's key the types that the table's has by now."""
        import psycopg

        ours = {name: c for name, c in columns(self._connection, memory).items() if name not in OWN_COLUMNS}
        theirs = {name: c for name, c in columns(self._connection, self._table.oid).items() if name in self._table.key}
        if ours.keys() != theirs.keys():
            raise self._of_another_key(ours, theirs, "they are other columns")
        for name, column in theirs.items():
            if (ours[name].type, ours[name].collation) == (column.type, column.collation):
                continue
            collate = f" COLLATE {column.collation}" if column.collation else ""
            query = f"ALTER TABLE {{memory}} ALTER COLUMN {{name}} TYPE {column.type.shown}{collate}"
            try:
                self._run(query, memory=self._memory, name=identifier(name))
            except (psycopg.ProgrammingError, psycopg.DataError, psycopg.IntegrityError) as error:
                raise self._of_another_key(ours, theirs, error.diag.message_primary or str(error)) from error

    def _of_another_key(self, ours: Mapping[str, FoundColumn], theirs: Mapping[str, FoundColumn], why: str) -> SinkError:
        table = self._table
        was, now = (", ".join(f"{name} {c.type.shown}" for name, c in of.items()) for of in (ours, theirs))
        return SinkError(
            f"table {table.schema}.{memory_of(table.name)} remembers what was deleted from {table.text} by the key ({was}), which is"
            f" ({now}) now: {why}; drop it, and publish the windows again whose deletes count"
        )

    def apply(self, past: Sequence[int], forgotten: Sequence[int]) -> tuple[int, int]:
        """Delete, and take out of the staging what is not to be merged; how many keys are gone, and of how many a trigger kept the row.

        ``past`` are publications whose rows give way to ours whatever they hold, ``forgotten`` those whose deletes do.
        """
        self._prepare(forgotten)
        self._run(
            f"DELETE FROM {{table}} AS t USING {_TOMBSTONES} AS x WHERE {{before}}", table=self._table.identifier, before=self._before(past)
        )
        self._run(
            f"INSERT INTO {{memory}} ({{key}}, {{own}}) SELECT {{key}}, {{own}} FROM {_TOMBSTONES}"
            " ON CONFLICT ({key}) DO UPDATE SET {set}",
            memory=self._memory,
            own=names(OWN_COLUMNS),
            set=self._set(),
        )
        return self._gone(past)

    def find_refused(self, past: Sequence[int], forgotten: Sequence[int], most: int) -> dict[tuple[int, int], Reject]:
        """Why the database refuses deletes, by partition and offset of their records: ``most`` of them, or all.

        Constraints that are deferred aren't looked at where a row comes again after its delete.
        """
        refused: dict[tuple[int, int], Reject] = {}
        for again in (False, True):

            def prepare(*, again: bool = again) -> None:
                self._prepare(forgotten)
                self._run(
                    f"CREATE TEMPORARY TABLE {SUSPECTS} ON COMMIT DROP AS"
                    f" SELECT row_number() OVER (ORDER BY {{key}})::integer AS {NUMBER}, x.* FROM {_TOMBSTONES} AS x"
                    f" WHERE {{again}} = EXISTS (SELECT FROM {STAGING} AS s WHERE {{same}})",
                    again=again,
                    same=same_key(self._table, "s", "x"),
                )

            refused |= find_refused(self._connection, prepare, lambda *span: self._delete_suspects(past, span), most, deferred=not again)
        return refused

    def _delete_suspects(self, past: Sequence[int], span: tuple[int, int]) -> sql.Composed:
        """A delete that doesn't tell how far it came."""
        return compose(
            f"DELETE FROM {{table}} AS t USING {SUSPECTS} AS x WHERE x.{NUMBER} BETWEEN {{first}} AND {{last}} AND {{before}}"
            f" AND pg_catalog.setval('{REACHED}', {{last}}) > 0",
            first=span[0],
            last=span[1],
            table=self._table.identifier,
            before=self._before(past),
        )

    def _prepare(self, forgotten: Sequence[int]) -> None:
        """Make a table of the last delete of each key; records before it, and what was deleted since, are not to be merged."""
        table, memory = self._table, self._memory
        # Whoever publishes beside us would not see our deletes, nor we its rows.
        self._run("SELECT pg_advisory_xact_lock(hashtextextended({lock}, 0))", lock=f"factory_deletes:{table.text}")
        self._run(
            f"CREATE TEMPORARY TABLE {_TOMBSTONES} ON COMMIT DROP AS SELECT DISTINCT ON ({{key}}) {{key}}, {{own}} FROM {STAGING}"
            " WHERE _factory_deleted ORDER BY {key}, _factory_timestamp DESC, _factory_partition DESC, _factory_offset DESC",
            own=names(OWN_COLUMNS),
        )
        before = f"DELETE FROM {STAGING} AS s USING {_TOMBSTONES} AS x WHERE {{same}} AND {not_after('s', 'x')}"
        self._run(before, same=same_key(table, "s", "x"))
        for rows, alias in ((_TOMBSTONES, "x"), (STAGING, "s")):
            self._run(
                f"DELETE FROM {rows} AS {alias} USING {{memory}} AS d WHERE {{same}} AND d._factory_publication <> ALL ({{forgotten}})"
                f" AND NOT {not_after('d', alias)}",
                memory=memory,
                same=same_key(table, "d", alias),
                forgotten=list(forgotten),
            )

    def forget(self, publications: Sequence[int]) -> None:
        """Drop the deletes of publications that are none of the current ones."""
        self._run("DELETE FROM {memory} WHERE _factory_publication = ANY ({of})", memory=self._memory, of=list(publications))

    def _gone(self, past: Sequence[int]) -> tuple[int, int]:
        """Keys of which neither a staged row nor one in the table is left, and those of which a row is left that was to be deleted."""
        query = (
            f"SELECT count(*) FILTER (WHERE t.{{first}} IS NULL), count(*) FILTER (WHERE {{before}}) FROM {_TOMBSTONES} AS x"
            f" LEFT JOIN {{table}} AS t ON {{same}} WHERE NOT EXISTS (SELECT FROM {STAGING} AS s WHERE {{staged}})"
        )
        of = {"table": self._table.identifier, "same": same_key(self._table, "t", "x"), "before": self._before(past)}
        row = self._run(query, first=identifier(self._table.key[0]), staged=same_key(self._table, "s", "x"), **of).fetchone()
        return (int(row[0]), int(row[1])) if row is not None else (0, 0)

    def _before(self, past: Sequence[int]) -> sql.Composed:
        """Whether a row ``t`` of the table is of a key, and before a delete ``x`` of it."""
        same = same_key(self._table, "t", "x")
        if not self._table.tracked:
            return same
        newer = f" AND (t._factory_publication = ANY ({{past}}) OR {not_after('t', 'x')})"
        return same + compose(newer, past=list(past))

    def _set(self) -> sql.Composed:
        from psycopg import sql

        return sql.SQL(", ").join(compose("{c} = EXCLUDED.{c}", c=identifier(name)) for name in OWN_COLUMNS)

    def _run(self, query: str, **parts: Any) -> psycopg.Cursor[Any]:
        return self._connection.execute(compose(query, key=self._key, **parts))
