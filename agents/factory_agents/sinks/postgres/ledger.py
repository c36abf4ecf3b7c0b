"""The sink's own ledger in the database: who may write a shard of a window, and what was committed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents.errors import FencedError, SinkError
from factory_agents.runtime.agents import Claim, SinkOutcome
from factory_agents.sinks.postgres.table import TargetTable, compose

if TYPE_CHECKING:
    import psycopg

__all__ = ["Ledger", "Mine", "Taken"]

_THIS_WINDOW = "table_name = {table} AND pipeline = {pipeline} AND stage = {stage} AND window_key = {window}"
_THIS_SHARD = _THIS_WINDOW + " AND shard = {shard} AND shards = {shards}"
_THIS_PLAN = "(claimed_plan IS NOT DISTINCT FROM {plan} AND shards = {shards})"


class Taken(msgspec.Struct, frozen=True):
    """What a claim gave: our fence, and the stored outcome where nothing is left to do."""

    fence: int
    outcome: SinkOutcome | None = None


class Mine(msgspec.Struct, frozen=True):
    """Our ledger row as an earlier commit left it."""

    fence: int
    plan: str | None
    generation: int | None
    outcome: dict[str, Any] | None


class Ledger:
    """The rows of ``factory_publishes`` that speak of one window at one table: a row a shard.

    A claim raises its shard's fence. It also raises those of the window's shards that other plans claimed, and forgets what they
    committed (not its generation): two plans of a window never commit beside each other, and only a whole plan is ever reused.
    """

    def __init__(self, connection: psycopg.Connection[Any], table: TargetTable, claim: Claim) -> None:
        self._connection = connection
        self._claim = claim
        self._parts: dict[str, Any] = {
            "ledger": table.ledger,
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
        }
        conditions = {"this_window": _THIS_WINDOW, "this_shard": _THIS_SHARD, "this_plan": _THIS_PLAN}
        self._parts |= {name: compose(condition, **self._parts) for name, condition in conditions.items()}

    def _run(self, query: str, **more: Any) -> psycopg.Cursor[Any]:
        return self._connection.execute(compose(query, **self._parts, **more))

    def _row(self, query: str) -> Any:
        return self._run(query).fetchone()

    def take(self) -> Taken:
        """Claim the shard. Raises SinkError where rows of a newer manifest of the window are in the table."""
        claim = self._claim
        self._run("SELECT pg_advisory_xact_lock(hashtextextended('claim:' || {lock}, 0))")
        spared = " AND NOT ({this_shard})" if claim.shard.of == 1 else ""  # one shard is a whole plan, whatever its name
        self._run(
            "UPDATE {ledger} SET fence = fence + 1, claimed_plan = NULL, plan = NULL, fingerprint = NULL"
            " WHERE {this_window} AND NOT {this_plan}" + spared
        )
        fence, plan, fingerprint, epoch, outcome = self._row(
            "INSERT INTO {ledger} AS l"
            " (table_name, pipeline, stage, window_key, shard, shards, fence, claimed_plan, claimed_generation, claimed_at)"
            " VALUES ({table}, {pipeline}, {stage}, {window}, {shard}, {shards}, 1, {plan}, {generation}, now())"
            " ON CONFLICT (table_name, pipeline, stage, window_key, shard, shards) DO UPDATE SET fence = l.fence + 1,"
            " claimed_plan = EXCLUDED.claimed_plan, claimed_generation = EXCLUDED.claimed_generation, claimed_at = now()"
            " RETURNING fence, plan, fingerprint, epoch, outcome"
        )
        newest = self._row("SELECT max(input_generation) FROM {ledger} WHERE {this_window} AND committed_at IS NOT NULL")[0]
        if newest is not None and newest > claim.input_generation:
            raise SinkError(
                f"table {self._parts['table']}, window {claim.window}: it holds generation {newest} of its input, this manifest is of the"
                f" older generation {claim.input_generation}; publish the newest one (clear the stages before, so that they run again)"
            )
        same = fingerprint == claim.fingerprint and (plan == claim.plan or claim.shard.of == 1)
        if same and claim.reuse and epoch >= claim.epoch:
            return Taken(fence, msgspec.convert({**outcome, "reused": True}, SinkOutcome))
        return Taken(fence)

    def hold(self, fence: int) -> Mine:
        """Lock our row until the transaction's end; raises FencedError where it isn't ours any more."""
        row = self._row("SELECT fence, plan, generation, outcome FROM {ledger} WHERE {this_shard} FOR UPDATE")
        if row is None or row[0] != fence:
            raise FencedError(
                f"table {self._parts['table']}, window {self._claim.window}, shard {self._claim.shard.key}: a newer attempt took over;"
                " this one stops and publishes nothing"
            )
        return Mine(*row)

    def since(self) -> int:
        """The least generation of this plan's shards: rows of this window below it were left by an earlier plan."""
        own = "least(claimed_generation, CASE WHEN plan = {plan} THEN generation END)"
        return int(self._row(f"SELECT min({own}) FROM {{ledger}} WHERE {{this_window}} AND {{this_plan}}")[0])

    def meet(self) -> None:
        """Let the shards of one window end one after the other, so that the last one sees all others."""
        self._run("SELECT pg_advisory_xact_lock(hashtextextended('end:' || {lock}, 0))")

    def peers(self) -> list[tuple[str, int]]:
        """The other shards of this plan that are committed: shard and generation."""
        rows = self._run(
            "SELECT shard || 'of' || shards, generation FROM {ledger}"
            " WHERE {this_window} AND {this_plan} AND plan = {plan} AND NOT ({this_shard})"
        )
        return [(row[0], row[1]) for row in rows]

    def published_before(self) -> bool:
        """Whether this shard, or another plan of the window, was ever committed: else nothing of the window can be stale."""
        row = self._row(
            "SELECT count(*) FROM {ledger} WHERE {this_window} AND committed_at IS NOT NULL"
            " AND ({this_shard} OR plan IS NULL OR NOT ({this_plan} AND plan = {plan}))"
        )
        return bool(row[0])

    def write(self, fence: int, outcome: SinkOutcome) -> None:
        """Record the commit."""
        self._run(
            "UPDATE {ledger} SET plan = {plan}, fingerprint = {fingerprint}, input_generation = {input_generation},"
            " generation = {generation}, epoch = {epoch}, outcome = {outcome}::jsonb, committed_fence = {fence}, committed_at = now()"
            " WHERE {this_shard}",
            fence=fence,
            outcome=msgspec.json.encode(outcome).decode(),
        )

    def committed(self, fence: int) -> bool:
        """Whether the claim with this fence was committed; a server process that is still at it is waited for."""
        row = self._row("SELECT committed_fence FROM {ledger} WHERE {this_shard} FOR UPDATE")
        return row is not None and row[0] == fence
