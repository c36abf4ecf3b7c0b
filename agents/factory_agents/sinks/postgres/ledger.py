"""The sink's own ledger in the database: who may write a shard of a window, what was committed, whose rows are whose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents.errors import FencedError, SinkError
from factory_agents.runtime.agents import Claim, SinkOutcome
from factory_agents.sinks.postgres.horizon import Horizon
from factory_agents.sinks.postgres.names import compose
from factory_agents.sinks.postgres.publication_numbers import GIVER, pass_borne
from factory_agents.sinks.postgres.table import PUBLICATIONS, TargetTable

if TYPE_CHECKING:
    import psycopg

__all__ = ["RELATIONS", "Acquired", "Ledger", "Mine"]

_THIS_WINDOW = "table_name = {table} AND pipeline = {pipeline} AND stage = {stage} AND window_key = {window}"
_THIS_SHARD = _THIS_WINDOW + " AND shard = {shard} AND shards = {shards}"
# Another shard of our plan: it may have an input of its own, newer than ours.
_BESIDE = "(plan IS NOT DISTINCT FROM {plan} AND shards = {shards} AND shard <> {shard})"
_THIS_PLAN = "(claimed_plan IS NOT DISTINCT FROM {plan} AND shards = {shards})"

# What holds the table's rows: each relation (a partition, where it has some) with its file. A table that was dropped and created again,
# restored, renamed or truncated has others; a partition that was detached is missing.
RELATIONS = """
    ARRAY(SELECT format('%s/%s', r.oid, pg_relation_filenode(r.oid))
          FROM (SELECT {oid}::oid AS oid UNION SELECT relid FROM pg_catalog.pg_partition_tree({oid}::oid::regclass)) AS r
          WHERE pg_relation_filenode(r.oid) IS NOT NULL)
"""
# And the columns that are written, by their numbers: one that was dropped and added again has another, and is empty.
_COLUMNS = """
    ARRAY(SELECT format('%s/column %s', attrelid, attnum) FROM pg_catalog.pg_attribute
          WHERE attrelid = {oid}::oid AND attname = ANY ({columns}) AND NOT attisdropped)
"""
# Without a contract the table says what is written: a column that was added since is empty. Earlier releases noted no columns.
_SAME_TABLE = """
    (relations IS NULL
     OR (relations <@ {relations} AND (strpos(array_to_string(relations, ' '), '/column ') = 0 OR {written} <@ relations)))
"""
_COMMITTED = "committed_at IS NOT NULL"
# Those who publish now, found by the lock that each holds: only sessions of our own role, which we may end.
_PUBLISHERS = """
    SELECT pg_terminate_backend(l.pid)
    FROM (SELECT hashtextextended('publish:' || {lock} || ' ' || shard || 'of' || shards, 0) AS number
          FROM {ledger} WHERE {this_window} AND ({this_shard} OR NOT {this_plan})) AS fenced
    JOIN pg_catalog.pg_locks l ON l.locktype = 'advisory' AND l.objsubid = 1
        AND l.classid::bigint = (fenced.number >> 32) & 4294967295 AND l.objid::bigint = fenced.number & 4294967295
    JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid AND a.datid = l.database
    WHERE a.datname = current_database() AND a.usename = current_user AND a.pid <> pg_backend_pid()
"""


class Acquired(msgspec.Struct, frozen=True):
    """What a claim gave: our fence, the number that our rows bear, and the stored outcome where nothing is left to do.

    ``fresh`` says that the rows' keys are likely new to the table, and each there once.
    """

    fence: int
    publication: int
    fresh: bool
    outcome: SinkOutcome | None = None


class Mine(msgspec.Struct, frozen=True):
    """Our ledger row as an earlier commit left it, and whether the table is the one that it speaks of."""

    fence: int
    plan: str | None
    generation: int | None
    outcome: dict[str, Any] | None
    same_table: bool


class Ledger:
    """What ``factory_publishes`` (a row a shard) and ``factory_publications`` (a row a publication) say of one window at one table.

    A claim raises its shard's fence. It also raises those of the window's shards that other plans claimed, and forgets what they
    committed (not its generation): two plans of a window never commit beside each other, and only a whole plan is ever reused.
    """

    def __init__(self, connection: psycopg.Connection[Any], table: TargetTable, claim: Claim) -> None:
        self._connection = connection
        self._claim = claim
        self._horizon = Horizon(connection, table, claim)
        self._parts: dict[str, Any] = {
            "ledger": table.ledger,
            "publications": table.publications,
            "lock": f"factory_publishes:{table.text}:{claim.window} {claim.stage}",
            "table": table.name,
            "pipeline": claim.pipeline,
            "stage": claim.stage,
            "window": claim.window,
            "shard": claim.shard.index,
            "shards": claim.shard.of,
            "plan": claim.plan,
            "fingerprint": claim.fingerprint,
            "input_generation": claim.input_generation,
            "generation": claim.generation,
            "epoch": claim.epoch,
            "target": table.identifier,
            "oid": table.oid,
            "columns": [column.name for column in table.columns],
            "schema": table.schema,
            "numbers": PUBLICATIONS,
        }
        self._table = table
        self._tracked = table.tracked
        conditions = {
            "this_window": _THIS_WINDOW,
            "this_shard": _THIS_SHARD,
            "this_plan": _THIS_PLAN,
            "beside": _BESIDE,
            "written": _COLUMNS,
            "relations": f"({RELATIONS} || {_COLUMNS} || {GIVER})",
            "same_table": _SAME_TABLE,
        }
        for name, condition in conditions.items():
            self._parts[name] = compose(condition, **self._parts)

    def _run(self, query: str, **more: Any) -> psycopg.Cursor[Any]:
        return self._connection.execute(compose(query, **self._parts, **more))

    def _row(self, query: str, **more: Any) -> Any:
        return self._run(query, **more).fetchone()

    def acquire(self) -> Acquired:
        """Claim the shard. Raises SinkError where rows of a newer manifest of the window are in the table, WindowError
        for a window that was forgotten.
        """
        claim = self._claim
        self._horizon.refuse()
        self._run("SELECT pg_advisory_xact_lock(hashtextextended('claim:' || {lock}, 0))")
        self._refuse_older()
        self.evict()
        spared = " AND NOT ({this_shard})" if claim.shard.of == 1 else ""  # one shard is a whole plan, whatever its name
        self._run(
            "UPDATE {ledger} SET fence = fence + 1, claimed_plan = NULL, plan = NULL, fingerprint = NULL"
            " WHERE {this_window} AND NOT {this_plan}" + spared
        )
        fence, plan, fingerprint, epoch, outcome, publication, same_table = self._row(
            "INSERT INTO {ledger} AS l"
            " (table_name, pipeline, stage, window_key, shard, shards, fence, claimed_plan, claimed_generation, claimed_at)"
            " VALUES ({table}, {pipeline}, {stage}, {window}, {shard}, {shards}, 1, {plan}, {generation}, now())"
            " ON CONFLICT (table_name, pipeline, stage, window_key, shard, shards) DO UPDATE SET fence = l.fence + 1,"
            " claimed_plan = EXCLUDED.claimed_plan, claimed_generation = EXCLUDED.claimed_generation, claimed_at = now()"
            " RETURNING fence, plan, fingerprint, epoch, outcome, publication, {same_table}"
        )
        self._refuse_older()  # again: who was publishing has ended only now
        same = fingerprint == claim.fingerprint and (plan == claim.plan or claim.shard.of == 1)
        if same and claim.reuse and epoch >= claim.epoch and same_table and self._is_there(publication, outcome):
            return Acquired(fence, 0, False, msgspec.convert({**outcome, "reused": True}, SinkOutcome))
        self._run("DELETE FROM {publications} WHERE {this_window} AND {this_shard} AND published_at IS NULL")
        if not self._knows_table():
            pass_borne(self._connection, self._table)
        (number,) = self._row(
            "INSERT INTO {publications} (table_name, pipeline, stage, window_key, shard, shards, generation)"
            " VALUES ({table}, {pipeline}, {stage}, {window}, {shard}, {shards}, {generation}) RETURNING publication"
        )
        return Acquired(fence, number, self._fresh())

    def _knows_table(self) -> bool:
        """Whether something was published to the table as it is, and since the ledger was made: the numbers given now are new to it."""
        query = "SELECT EXISTS (SELECT FROM {ledger} WHERE table_name = {table} AND relations <@ {relations} AND " + _COMMITTED + ")"
        return bool(self._row(query)[0])

    def _is_there(self, publication: int, outcome: dict[str, Any]) -> bool:
        """Whether rows of a publication are in the table (any rows, where it doesn't keep whose they are); else somebody deleted them."""
        of = " WHERE _factory_publication = {number}" if self._tracked else ""
        return not outcome["written"] or bool(self._row("SELECT EXISTS (SELECT FROM {target}" + of + ")", number=publication)[0])

    def _refuse_older(self) -> None:
        newest = self._row("SELECT max(input_generation) FROM {ledger} WHERE {this_window} AND NOT {beside} AND " + _COMMITTED)[0]
        if newest is not None and newest > self._claim.input_generation:
            raise SinkError(
                f"table {self._parts['table']}, window {self._claim.window}: it holds generation {newest} of its input, this manifest is of"
                f" the older generation {self._claim.input_generation}; publish the newest one (clear the stages before, so that they run"
                " again)"
            )

    def _fresh(self) -> bool:
        """Whether nothing of the window was ever published, and the newest other window met no key twice."""
        if self.published_before():
            return False
        before = self._row(
            "SELECT (outcome->>'duplicates')::bigint + (outcome->>'older')::bigint FROM {ledger}"
            " WHERE table_name = {table} AND pipeline = {pipeline} AND stage = {stage} AND "
            + _COMMITTED
            + " ORDER BY window_key DESC LIMIT 1"  # by the primary key's index; by the time of the commit it would sort all of them
        )
        return before is None or not before[0]

    def evict(self) -> None:
        """End the sessions that still publish what this claim takes over, as far as they are ours to end: no lock of theirs stays."""
        self._run(_PUBLISHERS)

    def begin(self, fence: int) -> None:
        """Begin to publish, to be found by ``evict`` until the transaction's end; raises FencedError where we were taken over."""
        self._run("SELECT pg_advisory_xact_lock_shared(hashtextextended('publish:' || {lock} || ' ' || {shard} || 'of' || {shards}, 0))")
        if not self.is_current(fence):
            raise self.fenced()

    def is_current(self, fence: int) -> bool:
        """Whether nobody has claimed the shard since."""
        row = self._row("SELECT fence FROM {ledger} WHERE {this_shard}")
        return row is not None and row[0] == fence

    def was_taken_over(self, fence: int) -> bool:
        """Whether somebody has claimed the shard since. A claim ends our session before it stands: one that is being made is waited for."""
        self._run("SELECT pg_advisory_xact_lock_shared(hashtextextended('claim:' || {lock}, 0))")
        return not self.is_current(fence)

    def fenced(self) -> FencedError:
        """The error of a claim that was taken over."""
        return FencedError(
            f"table {self._parts['table']}, window {self._claim.window}, shard {self._claim.shard.key}: a newer attempt took over;"
            " this one stops and publishes nothing"
        )

    def hold(self, fence: int) -> Mine:
        """Lock our row until the transaction's end; raises FencedError where it isn't ours any more."""
        row = self._row("SELECT fence, plan, generation, outcome, {same_table} FROM {ledger} WHERE {this_shard} FOR UPDATE")
        if row is None or row[0] != fence:
            raise self.fenced()
        return Mine(*row)

    def _since(self) -> int:
        """The least generation of this plan's shards: rows of this window below it were left by an earlier plan."""
        own = "least(claimed_generation, CASE WHEN plan = {plan} THEN generation END)"
        return int(self._row(f"SELECT min({own}) FROM {{ledger}} WHERE {{this_window}} AND {{this_plan}}")[0])

    def meet(self) -> None:
        """Let the shards of one window end one after the other, so that the last one sees all others."""
        self._run("SELECT pg_advisory_xact_lock(hashtextextended('end:' || {lock}, 0))")

    def peers(self) -> list[int]:
        """The publications of the other shards of this plan that are committed."""
        rows = self._run("SELECT publication FROM {ledger} WHERE {this_window} AND {this_plan} AND plan = {plan} AND NOT ({this_shard})")
        return [row[0] for row in rows]

    def past(self) -> list[int]:
        """Publications whose rows give way to ours whatever they hold: this shard's earlier ones, and all of an earlier plan."""
        return self._publications("({this_shard} OR generation < {since})", since=self._since())

    def stale(self, current: Sequence[int]) -> list[int]:
        """Publications of this window that are none of the current ones."""
        return self._publications("publication <> ALL ({current})", current=list(current))

    def own_older(self, publication: int) -> list[int]:
        """This shard's earlier publications of this plan."""
        return self._publications(
            "{this_shard} AND publication <> {publication} AND generation >= {since}", publication=publication, since=self._since()
        )

    def _publications(self, condition: str, **more: Any) -> list[int]:
        query = "SELECT publication FROM {publications} WHERE {this_window} AND published_at IS NOT NULL AND " + condition
        return [row[0] for row in self._run(query, **more)]

    def forget(self, publications: Sequence[int]) -> None:
        """Drop publications of which no row is left."""
        self._run("DELETE FROM {publications} WHERE {this_window} AND publication = ANY ({swept})", swept=list(publications))

    def published_before(self) -> bool:
        """Whether this shard, or another plan of the window, was ever committed: else nothing of the window can be stale."""
        row = self._row(
            "SELECT count(*) FROM {ledger} WHERE {this_window} AND "
            + _COMMITTED
            + " AND ({this_shard} OR plan IS NULL OR NOT ({this_plan} AND plan = {plan}))"
        )
        return bool(row[0])

    def write(self, fence: int, publication: int, outcome: SinkOutcome) -> None:
        """Record the commit."""
        self._run(
            "UPDATE {ledger} SET plan = {plan}, fingerprint = {fingerprint}, input_generation = {input_generation},"
            " generation = {generation}, epoch = {epoch}, publication = {publication}, outcome = {outcome}::jsonb,"
            " committed_fence = {fence}, committed_at = now(), relations = {relations} WHERE {this_shard}",
            fence=fence,
            publication=publication,
            outcome=msgspec.json.encode(outcome).decode(),
        )
        self._run("UPDATE {publications} SET published_at = now() WHERE {this_window} AND publication = {mine}", mine=publication)

    def committed(self, fence: int) -> bool:
        """Whether the claim with this fence was committed; a server process that is still at it is waited for."""
        row = self._row("SELECT committed_fence FROM {ledger} WHERE {this_shard} FOR UPDATE")
        return row is not None and row[0] == fence
