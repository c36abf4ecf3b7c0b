"""One claimed shard: its rows copied, merged where they have to be, older ones removed, the commit recorded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from factory_agents import failpoints
from factory_agents.errors import FencedError, UnavailableError
from factory_agents.kafka.messages import Message
from factory_agents.runtime.agents import Claim, Reject, SinkOutcome
from factory_agents.sinks.postgres.catalog import shape
from factory_agents.sinks.postgres.copy import CHECK_CONSTRAINTS, STAGING, Copy, Direct, Staged, is_of_a_row, may_be_staged
from factory_agents.sinks.postgres.deletes import Deletes
from factory_agents.sinks.postgres.ledger import Acquired, Ledger, Mine
from factory_agents.sinks.postgres.names import compose, identifier, names
from factory_agents.sinks.postgres.refusals import NUMBER, REACHED, SUSPECTS, find_refused
from factory_agents.sinks.postgres.rows import RowReader
from factory_agents.sinks.postgres.table import OWN_COLUMNS, TargetTable, not_after, same_key

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

__all__ = ["Publication"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MOST_REFUSED = 1000
"""How many refused rows are looked for at first."""


class _Merged(NamedTuple):
    """What became of the keys that a publication has: written, deleted, dropped by triggers, or else older than the table's."""

    written: int
    keys: int
    deleted: int = 0
    dropped: int = 0


class Publication:
    """One claimed shard: its rows, and what makes them visible.

    All of it happens in the connection's open transaction; whoever opened it ends it.
    """

    def __init__(self, connection: psycopg.Connection[Any], table: TargetTable, claim: Claim, acquired: Acquired) -> None:
        self.connection = connection
        self.table = table
        self.claim = claim
        self.fence = acquired.fence
        self._acquired = acquired
        deletes = table.key if table.deletes else ()
        self._reader = RowReader(table.columns, (_window_start(claim.window), acquired.publication), deletes)
        self._rows = 0
        self._most_refused = _MOST_REFUSED
        self._copy: Copy | None = None
        self._ledger = Ledger(connection, table, claim)
        self._sql = _Statements(table)

    def begin(self) -> None:
        """First in the transaction. Raises FencedError for a claim that was taken over."""
        self._ledger.begin(self.fence)

    def read(self, messages: Sequence[Message]) -> dict[int, Reject]:
        """Make rows of records, and keep those that fit for ``flow``; the others come back by index."""
        fitting, rejected = self._reader.read(messages)
        if fitting:
            self._rows += len(fitting)
            if self._copy is None:
                if self._acquired.fresh and self.table.may_be_copied_to:
                    self._copy = Direct(self.connection, self.table, self._acquired.publication)
                else:
                    self._copy = Staged(self.connection, self.table)
            self._copy.put(fitting)
        return rejected

    def flow(self) -> None:
        """Send rows on."""
        if self._copy is not None:
            self._copy.flow()

    def finish(self) -> None:
        """Send all rows that are left."""
        if self._copy is not None:
            self._copy.finish()

    def may_change_over(self, error: psycopg.Error) -> bool:
        """Whether the rows can be copied otherwise than they were when this happened."""
        return isinstance(self._copy, Direct) and may_be_staged(error)

    def change_over(self, connection: psycopg.Connection[Any]) -> None:
        """Take the rows to another connection, to be merged: for an error that ``may_change_over``."""
        self._ledger = Ledger(connection, self.table, self.claim)
        self.begin()
        staged = Staged(connection, self.table)
        if isinstance(self._copy, Direct):
            failpoints.hit("postgres.changing-over")
            self._copy.hand_over(staged)
        self.connection, self._copy = connection, staged

    def fenced(self) -> FencedError:
        """The error of a claim that was taken over."""
        return self._ledger.fenced()

    def is_altered(self) -> bool:
        """Whether the table is another one than was claimed, or has other columns or triggers."""
        return shape(self.connection, *self.table.place) != self.table.shape

    def altered(self) -> UnavailableError:
        """The error of a table that was altered since the claim."""
        return UnavailableError(
            f"table {self.table.text} was altered (a column, its type, a trigger, or the table) while it was published to; nothing was"
            " published, and a retry goes by what it is now"
        )

    def drop(self) -> None:
        """Let go of a COPY whose connection is closed."""
        if self._copy is not None:
            self._copy.drop()

    def apply(self, rejected: int) -> SinkOutcome:
        """Everything between the last row and the commit.

        Raises FencedError for a claim that was taken over, UnavailableError where the table was altered since the claim: rows are locked
        against that only once the first is written.
        """
        ledger = self._ledger
        mine = ledger.hold(self.fence)
        merged = self._merge() if isinstance(self._copy, Staged) else _Merged(self._rows, self._rows)
        if self._copy is not None and self.is_altered():
            raise self.altered()
        removed = self._sweep(mine)
        notes = self.table.notes if self.table.tracked else (*self.table.notes, *self._stale(mine, merged.keys))
        outcome = self._outcome(merged, rejected, removed=removed, notes=notes)
        ledger.write(self.fence, self._acquired.publication, outcome)
        return outcome

    def _outcome(self, merged: _Merged, rejected: int, *, removed: int = 0, notes: tuple[str, ...] = ()) -> SinkOutcome:
        return SinkOutcome(
            table=self.table.text,
            rows=self._rows,
            written=merged.written,
            duplicates=self._rows - merged.keys,
            older=merged.keys - merged.written - merged.deleted - merged.dropped,
            deleted=merged.deleted,
            dropped=merged.dropped,
            removed=removed,
            rejected=rejected,
            notes=notes,
        )

    def _merge(self) -> _Merged:
        """Delete, and merge the staged rows."""
        past = self._past()
        keys = self._value(self._sql.count_keys()) if self.table.deletes else None
        deleted, kept = self._delete(past)
        older = self._value(self._sql.count_older(past)) if self.table.drops_rows else None
        left = self._value(self._sql.count_keys()) if older is not None else 0
        written = self._count(self._sql.merge(past))
        self.connection.execute(CHECK_CONSTRAINTS)
        if keys is None:
            keys = self._rows if written == self._rows else self._value(self._sql.count_keys())
        dropped = max(0, left - written - older) if older is not None else 0
        return _Merged(written, keys, deleted, kept + dropped)

    def _delete(self, past: Sequence[int]) -> tuple[int, int]:
        if not self.table.deletes:
            return 0, 0
        return Deletes(self.connection, self.table).apply(past, self._forgotten())

    def _forgotten(self) -> list[int]:
        return self._ledger.past()

    def _past(self) -> list[int]:
        return self._ledger.past() if self.table.tracked else []

    def may_hold_refused(self, error: psycopg.Error) -> bool:
        """Whether ``apply`` failed for single rows, which ``take_out_refused`` finds."""
        return isinstance(self._copy, Staged) and is_of_a_row(error)

    def take_out_refused(self) -> dict[tuple[int, int], Reject]:
        """Take the rows and deletes that the database refuses out of those to be merged; why each is, by its record's partition and offset.

        There may be more: a row that is older than one of them, rows beside deletes, or those past a number that doubles each time.
        """
        past = self._past()

        def prepare() -> None:
            self._delete(past)
            self.connection.execute(self._sql.suspects())

        refused: dict[tuple[int, int], Reject] = {}
        if self.table.deletes:
            refused = Deletes(self.connection, self.table).find_refused(past, self._forgotten(), self._most_refused)
        if not refused:  # rows are merged after the deletes
            refused = find_refused(self.connection, prepare, lambda first, last: self._sql.merge(past, (first, last)), self._most_refused)
        taken = self._count(self._sql.take_out(refused)) if refused else 0
        self._rows -= taken
        self._most_refused *= 2
        return refused

    def _sweep(self, mine: Mine) -> int:
        """Delete what this window has in the table and no longer produces; the number of rows.

        Partitions may move between the shards of two plans, so an earlier plan's rows go when the whole of this plan is there, not
        before: no reader misses a row that moves from one shard to another.
        """
        ledger, claim, table = self._ledger, self.claim, self.table
        if not (table.tracked or table.deletes):
            return 0
        ledger.meet()
        current = [self._acquired.publication, *ledger.peers()]
        if len(current) == claim.shard.of:
            swept = ledger.stale(current)
        elif mine.plan == claim.plan:
            swept = ledger.own_older(self._acquired.publication)
        else:
            swept = []
        if not swept:
            return 0
        removed = self._count(self._sql.delete(swept)) if table.tracked else 0
        if table.deletes:
            Deletes(self.connection, self.table).forget(swept)
        ledger.forget(swept)
        return removed

    def _stale(self, mine: Mine, distinct: int) -> list[str]:
        """What a person should know of a table that doesn't say whose its rows are."""
        if not self._ledger.published_before() or not mine.same_table:
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


def _window_start(window: str) -> int:
    """Microseconds, as PostgreSQL counts them, at which an interval's window starts; 1970 for one that isn't of an interval."""
    first, between, _ = window.partition("/")
    try:
        start = datetime.fromisoformat(first) if between else _EPOCH
    except ValueError:
        start = _EPOCH
    since = (start if start.tzinfo is not None else start.replace(tzinfo=UTC)) - _POSTGRES_EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


class _Statements:
    """The queries over one table, composed."""

    def __init__(self, table: TargetTable) -> None:
        self._table = table
        self._columns = {c.name: c for c in table.columns}

    def merge(self, past: Sequence[int], suspects: tuple[int, int] | None = None) -> sql.Composed:
        """The newest staged row of each key, or the suspects of these numbers, into the table, in key order; it counts what stands there.

        ``past`` are the publications whose rows give way.
        """
        from psycopg import sql

        written = self._written()
        rows = self._newest(written)
        if suspects is not None:
            numbers = f"SELECT {{columns}} FROM (SELECT * FROM {SUSPECTS} WHERE {NUMBER} BETWEEN {{first}} AND {{last}} ORDER BY {NUMBER}"
            numbers += f" OFFSET 0) AS suspects WHERE pg_catalog.setval('{REACHED}', {NUMBER}) > 0"
            rows = compose(numbers, columns=names(written), first=suspects[0], last=suspects[1])
        newer = self._newer(past)
        return compose(
            "INSERT INTO {table} AS t ({columns}) {rows} ON CONFLICT ({key}) DO UPDATE SET {set}{where}",
            table=self._table.identifier,
            columns=names(written),
            rows=rows,
            key=names(self._table.key),
            set=sql.SQL(", ").join(compose("{c} = EXCLUDED.{c}", c=identifier(name)) for name in written),
            where=compose(" WHERE {newer}", newer=newer) if newer is not None else sql.SQL(""),
        )

    def _written(self) -> list[str]:
        return [*self._columns, *(OWN_COLUMNS if self._table.tracked else ())]

    def _newest(self, columns: Sequence[str] = ()) -> sql.Composed:
        """The newest staged row of each key, in key order: these columns, or all."""
        from psycopg import sql

        return compose(
            f"SELECT DISTINCT ON ({{key}}) {{columns}} FROM {STAGING}"
            " ORDER BY {key}{newest}, _factory_timestamp DESC, _factory_partition DESC, _factory_offset DESC",
            key=names(self._table.key),
            columns=names(columns) if columns else sql.SQL("*"),
            newest=sql.SQL("").join(compose(", {c} DESC NULLS LAST", c=identifier(n)) for n in self._order()),
        )

    def suspects(self) -> sql.Composed:
        """A table of the newest rows, numbered in key order."""
        return compose(
            f"CREATE TEMPORARY TABLE {SUSPECTS} ON COMMIT DROP AS"
            f" SELECT row_number() OVER (ORDER BY {{key}})::integer AS {NUMBER}, newest.* FROM ({{newest}}) AS newest",
            key=names(self._table.key),
            newest=self._newest(),
        )

    def take_out(self, rows: Iterable[tuple[int, int]]) -> sql.Composed:
        """Delete staged rows by partition and offset."""
        places = list(rows)
        return compose(
            f"DELETE FROM {STAGING} AS s USING unnest({{partitions}}::integer[], {{offsets}}::bigint[]) AS refused(p, o)"
            " WHERE s._factory_partition = refused.p AND s._factory_offset = refused.o",
            partitions=[p for p, _ in places],
            offsets=[o for _, o in places],
        )

    def count_keys(self) -> sql.Composed:
        """How many different keys are staged."""
        return compose(f"SELECT count(*) FROM (SELECT DISTINCT {{key}} FROM {STAGING}) AS k", key=names(self._table.key))

    def count_older(self, past: Sequence[int]) -> sql.Composed:
        """How many keys have a newer row in the table than the newest staged one."""
        from psycopg import sql

        newer = self._newer(past)
        return compose(
            "SELECT count(*) FROM ({newest}) AS excluded JOIN {table} AS t ON {same} WHERE NOT {newer}",
            newest=self._newest(),
            table=self._table.identifier,
            same=same_key(self._table, "t", "excluded"),
            newer=newer if newer is not None else sql.SQL("true"),
        )

    def delete(self, publications: Sequence[int]) -> sql.Composed:
        """Delete the rows of these publications."""
        return compose(
            "DELETE FROM {table} WHERE _factory_publication = ANY ({swept})", table=self._table.identifier, swept=list(publications)
        )

    def _order(self) -> list[str]:
        """What makes one row newer than another: version, then time, as far as there are such columns."""
        return [name for name in (self._table.version, self._table.time) if name is not None]

    def _newer(self, past: Sequence[int]) -> sql.Composable | None:
        """Whether the row that stands there (``t``) gives way: it is of our window's past, or not newer than ours; None: always.

        Rows of one window from different shards are both current, so they compare as well. Without a version or a time the later window
        wins, then the record with the later timestamp, then by its coordinates; of windows without an interval the records alone tell.
        """
        from psycopg import sql

        if not self._table.tracked and not self._order():
            return None
        newer: sql.Composable = sql.SQL("true")
        if self._table.tracked:
            newer = sql.SQL(not_after("t", "EXCLUDED"))
        for name in reversed(self._order()):
            newer = self._by(name, newer)
        return compose("(t._factory_publication = ANY ({past}) OR {newer})", past=list(past), newer=newer) if past else newer

    def _by(self, name: str, then: sql.Composable) -> sql.Composed:
        """Whether ours is newer by a column, nulls lowest, texts byte by byte; where both are equal, what follows decides."""
        collate = ' COLLATE "C"' if self._columns[name].kind.text else ""
        ours, theirs = f"EXCLUDED.{{c}}{collate}", f"t.{{c}}{collate}"
        template = f"CASE WHEN {ours} IS NOT DISTINCT FROM {theirs} THEN {{then}} ELSE coalesce({ours} > {theirs}, {theirs} IS NULL) END"
        return compose(template, c=identifier(name), then=then)
