"""One claimed shard on its way into the table: staged by COPY, merged in one statement, swept, recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from factory_agents import failpoints
from factory_agents.runtime.agents import Claim, Reject, Row, SinkOutcome
from factory_agents.sinks.postgres.ledger import Ledger, Mine
from factory_agents.sinks.postgres.rows import RowColumn, RowReader, StagedRow
from factory_agents.sinks.postgres.table import TargetTable, compose, names

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

__all__ = ["Publication"]

_STAGING = "factory_staging"
_ZEROS = {
    "text": "''::text",
    "bigint": "0",
    "double": "0::double precision",
    "boolean": "false",
    "timestamptz": "'epoch'::timestamptz",
    "numeric": "0",
    "date": "'epoch'::date",
}
"""Any value of the type: it stands where a null is compared, beside a flag that says which of both it is."""


class Publication:
    """One claimed shard: the rows staged for it, and their merge.

    All of it happens in the connection's open transaction; whoever opened it ends it.
    """

    def __init__(self, connection: psycopg.Connection[Any], table: TargetTable, claim: Claim, fence: int) -> None:
        self.connection = connection
        self.table = table
        self.claim = claim
        self.fence = fence
        self._reader = RowReader(table.columns)
        self._types = [*(c.staged_type for c in table.columns), "int4", "int8"]
        self._staged = 0
        self._ledger = Ledger(connection, table, claim)
        self._sql = _Statements(table, claim)

    def stage(self, rows: Sequence[Row]) -> dict[int, Reject]:
        """Check the rows and copy those that fit into the staging table; the others come back by index."""
        staged, rejected = self._reader.read(rows)
        if staged:
            if not self._staged:
                self.connection.execute(self._sql.create_staging())
            self._copy(staged)
            self._staged += len(staged)
        return rejected

    def _copy(self, rows: Sequence[StagedRow]) -> None:
        with self.connection.cursor() as cursor, cursor.copy(f"COPY pg_temp.{_STAGING} FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(self._types)
            write = copy.write_row
            for row in rows:
                write(row)
            failpoints.hit("postgres.copying")

    def merge(self, rejected: int) -> SinkOutcome:
        """Everything between the first lock and the commit. Raises FencedError for a claim that was taken over."""
        ledger = self._ledger
        mine = ledger.hold(self.fence)
        written = distinct = 0
        if self._staged:
            written = self._count(self._sql.merge(ledger.since()))
            distinct = self._staged if written == self._staged else self._value(self._sql.count_keys())
        outcome = SinkOutcome(
            table=self.table.text,
            rows=self._staged,
            written=written,
            duplicates=self._staged - distinct,
            older=distinct - written,
            removed=self._sweep(mine) if self.table.tracked else 0,
            rejected=rejected,
            notes=self.table.notes if self.table.tracked else (*self.table.notes, *self._stale(mine, distinct)),
        )
        ledger.write(self.fence, outcome)
        return outcome

    def _sweep(self, mine: Mine) -> int:
        """Delete what this window has in the table and no longer produces; the number of rows.

        Partitions may move between the shards of two plans, so an earlier plan's rows go when the whole of this plan is there, not
        before: no reader misses a row on its way from one shard to another.
        """
        ledger, claim = self._ledger, self.claim
        ledger.meet()
        if not ledger.published_before():
            return 0
        current = [(claim.shard.key, claim.generation), *ledger.peers()]
        if len(current) == claim.shard.of:
            return self._count(self._sql.delete_all_but(current))
        return self._count(self._sql.delete_own_older()) if mine.plan == claim.plan else 0

    def _stale(self, mine: Mine, distinct: int) -> list[str]:
        """What a person should know of a table that doesn't say whose its rows are."""
        if not self._ledger.published_before():
            return []
        why = f"{self.table.text} has no _factory_ columns, so nothing is deleted from it"
        if mine.outcome is None or self.claim.shard.of > 1:
            return [f"{why}: how many rows of this window's earlier generation are stale cannot be told"]
        before = mine.outcome["written"] + mine.outcome["older"]
        return [f"{why}: of {before} rows of generation {mine.generation}, at least {max(0, before - distinct)} are stale"]

    def _count(self, query: sql.Composed) -> int:
        return self.connection.execute(query).rowcount

    def _value(self, query: sql.Composed) -> int:
        row = self.connection.execute(query).fetchone()
        return int(row[0]) if row is not None else 0


class _Statements:
    """The queries over one table for one claim, composed."""

    def __init__(self, table: TargetTable, claim: Claim) -> None:
        from psycopg import sql

        self._table = table
        self._claim = claim
        self._places = {c.name: sql.Identifier(f"c{i}") for i, c in enumerate(table.columns)}
        self._columns = {c.name: c for c in table.columns}
        self._values = {c.name: self._cast(c, type_) for c, type_ in zip(table.columns, table.types, strict=True)}
        self._staging = sql.SQL(f"pg_temp.{_STAGING}")
        self._window = f"{claim.window} {claim.stage}"

    def create_staging(self) -> sql.Composed:
        """The staging table, gone with the transaction; texts compare byte by byte there."""
        from psycopg import sql

        columns = [
            compose("{name} " + c.staged_type + (' COLLATE "C"' if c.staged_type == "text" else ""), name=self._places[c.name])
            for c in self._table.columns
        ]
        return compose(
            "CREATE TEMPORARY TABLE {staging} ({columns}, _partition int4, _offset int8) ON COMMIT DROP",
            staging=self._staging,
            columns=sql.SQL(", ").join(columns),
        )

    def merge(self, since: int) -> sql.Composed:
        """The newest staged row of each key into the table, in key order; it counts those that stand there now."""
        from psycopg import sql

        table, claim = self._table, self._claim
        parts: dict[str, Any] = {
            "table": table.identifier,
            "columns": names(self._places),
            "values": sql.SQL(", ").join(self._values.values()),
            "key": names(table.key),
            "staging": self._staging,
            "staged_key": self._staged_key(),
            "newest": sql.SQL("").join(compose(", {c} DESC NULLS LAST", c=self._values[n]) for n in self._order()),
            "set": sql.SQL(", ").join(compose("{c} = EXCLUDED.{c}", c=sql.Identifier(n)) for n in self._places),
            "own_columns": sql.SQL(""),
            "own_values": sql.SQL(""),
            "own_set": sql.SQL(""),
            "where": self._where(since),
        }
        if table.tracked:
            parts["own_columns"] = sql.SQL(", _factory_window, _factory_shard, _factory_generation, _factory_partition")
            parts["own_values"] = compose(", {w}, {s}, {g}, _partition", w=self._window, s=claim.shard.key, g=claim.generation)
            own = ("_factory_window", "_factory_shard", "_factory_generation", "_factory_partition")
            parts["own_set"] = sql.SQL("").join(compose(", {c} = EXCLUDED.{c}", c=sql.Identifier(n)) for n in own)
        return compose(
            "INSERT INTO {table} AS t ({columns}{own_columns})"
            " SELECT DISTINCT ON ({staged_key}) {values}{own_values} FROM {staging}"
            " ORDER BY {staged_key}{newest}, _partition DESC, _offset DESC"
            " ON CONFLICT ({key}) DO UPDATE SET {set}{own_set}{where}",
            **parts,
        )

    def count_keys(self) -> sql.Composed:
        """How many different keys are staged."""
        return compose("SELECT count(*) FROM (SELECT DISTINCT {key} FROM {staging}) AS k", key=self._staged_key(), staging=self._staging)

    def delete_all_but(self, current: Sequence[tuple[str, int]]) -> sql.Composed:
        """Delete the window's rows that are of none of these shards in their generations."""
        from psycopg import sql

        kept = sql.SQL(", ").join(compose("({shard}, {generation})", shard=shard, generation=generation) for shard, generation in current)
        return compose(
            "DELETE FROM {table} WHERE _factory_window = {window} AND (_factory_shard, _factory_generation) NOT IN ({kept})",
            table=self._table.identifier,
            window=self._window,
            kept=kept,
        )

    def delete_own_older(self) -> sql.Composed:
        """Delete the rows this shard left in earlier generations."""
        return compose(
            "DELETE FROM {table} WHERE _factory_window = {window} AND _factory_shard = {shard} AND _factory_generation <> {generation}",
            table=self._table.identifier,
            window=self._window,
            shard=self._claim.shard.key,
            generation=self._claim.generation,
        )

    def _staged_key(self) -> sql.Composed:
        from psycopg import sql

        return sql.SQL(", ").join(self._values[name] for name in self._table.key)

    def _order(self) -> list[str]:
        """What makes one row newer than another: version, then time, as far as there are such columns."""
        return [name for name in (self._table.version, self._table.time) if name is not None]

    def _cast(self, column: RowColumn, type_: str) -> sql.Composable:
        place = self._places[column.name]
        if column.type == "timestamptz" and column.unit:
            return compose("to_timestamp({c} / {factor})", c=place, factor=column.unit_factor)
        return compose("{c}::" + type_, c=place) if column.type in ("json", "numeric") else place

    def _where(self, since: int) -> sql.Composable:
        """The row that stands there gives way if it is of our window's past, or not newer than ours.

        Rows of one window from different shards are both current, so they compare as well: by their partitions at last.
        """
        from psycopg import sql

        theirs, ours = self._ranks("t"), self._ranks("EXCLUDED")
        if not self._table.tracked:
            return compose(" WHERE ROW({ours}) >= ROW({theirs})", ours=ours, theirs=theirs) if self._order() else sql.SQL("")
        comma = sql.SQL(", " if self._order() else "")
        return compose(
            " WHERE (t._factory_window = {window} AND (t._factory_shard = {shard} OR t._factory_generation < {since}))"
            " OR ROW({ours}{comma}EXCLUDED._factory_window, EXCLUDED._factory_partition)"
            " >= ROW({theirs}{comma}t._factory_window, t._factory_partition)",
            window=self._window,
            shard=self._claim.shard.key,
            since=since,
            ours=ours,
            theirs=theirs,
            comma=comma,
        )

    def _ranks(self, side: str) -> sql.Composed:
        """Version and time of one side for a row comparison, nulls lowest, texts byte by byte."""
        from psycopg import sql

        ranks = []
        for name in self._order():
            column = self._columns[name]
            collate = ' COLLATE "C"' if column.type == "text" else ""
            value = f"{side}.{{c}}{collate}"
            template = f"{side}.{{c}} IS NOT NULL, coalesce({value}, {_ZEROS[column.type]}{collate})" if column.nullable else value
            ranks.append(compose(template, c=sql.Identifier(name)))
        return sql.SQL(", ").join(ranks)
