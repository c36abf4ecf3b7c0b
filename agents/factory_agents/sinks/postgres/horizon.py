"""What the sink's own ledger forgets: windows that the pipeline's ledger has forgotten, which are refused here from then on, too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents.kafka.pruning import merged
from factory_agents.kafka.records import MarkRecord, pruned
from factory_agents.runtime.agents import Claim
from factory_agents.runtime.sink_horizon import Spans, forgotten_interval, is_below
from factory_agents.sinks.postgres.names import compose
from factory_agents.sinks.postgres.table import HORIZONS, TargetTable

if TYPE_CHECKING:
    import psycopg

__all__ = ["Horizon"]

_THIS_STAGE = "table_name = {table} AND pipeline = {pipeline} AND stage = {stage}"
_DAILY = "1 day"
_LOCK = "pg_advisory_xact_lock{shared}(hashtextextended('horizon:' || {lock}, 0))"


class Horizon:
    """What ``factory_horizons`` (a row an origin of a stage) says of one table: the spans of time whose windows were forgotten.

    A claim and a prune of one stage exclude each other, so that a window is either forgotten, and refused, or claimed, and then whoever
    claimed it finds itself fenced.
    """

    def __init__(self, connection: psycopg.Connection[Any], table: TargetTable, claim: Claim) -> None:
        self._connection = connection
        self._table = table
        self._claim = claim
        self._parts: dict[str, Any] = {
            "horizons": table.beside(HORIZONS),
            "ledger": table.ledger,
            "publications": table.publications,
            "lock": f"{table.text} {claim.pipeline} {claim.stage}",
            "table": table.name,
            "pipeline": claim.pipeline,
            "stage": claim.stage,
            "origin": claim.origin,
        }
        self._parts["this_stage"] = compose(_THIS_STAGE, **self._parts)

    def _run(self, query: str, **more: Any) -> psycopg.Cursor[Any]:
        return self._connection.execute(compose(query, **self._parts, **more))

    def refuse(self) -> None:
        """Raise WindowError for a claim of a window that was forgotten."""
        self._run("SELECT " + _LOCK.replace("{shared}", "_shared"))
        rows = self._run("SELECT origin, spans FROM {horizons} WHERE {this_stage}")
        found = forgotten_interval(self._claim, ((origin, _read_spans(spans)) for origin, spans in rows))
        if found is not None:
            raise pruned(f"table {self._table.text}, stage {self._claim.stage!r}", found.key)

    def is_due(self) -> bool:
        """Whether nobody has looked since yesterday."""
        query = "SELECT FROM {horizons} WHERE {this_stage} AND origin = {origin} AND looked_at > now() - {daily}::interval"
        return self._run(query, daily=_DAILY).fetchone() is None

    def prune(self, mark: MarkRecord | None) -> int:
        """Forget what lies below the mark, and say so; how many rows went. A window that somebody works on stays until the next time."""
        self._run("SELECT " + _LOCK.replace("{shared}", ""))
        self._run(
            "INSERT INTO {horizons} AS h (table_name, pipeline, stage, origin, spans, looked_at)"
            " VALUES ({table}, {pipeline}, {stage}, {origin}, {spans}::jsonb, now())"
            " ON CONFLICT (table_name, pipeline, stage, origin) DO UPDATE SET looked_at = now(), spans = EXCLUDED.spans",
            spans=msgspec.json.encode(merged([*self._spans(), *(mark.spans if mark is not None else ())])).decode(),
        )
        windows = self._unlocked(list(self._forgotten(mark))) if mark is not None else []
        self._run("DELETE FROM {publications} WHERE {this_stage} AND window_key = ANY ({windows})", windows=windows)
        return self._run("DELETE FROM {ledger} WHERE {this_stage} AND window_key = ANY ({windows})", windows=windows).rowcount

    def _spans(self) -> Spans:
        """What was forgotten before: a ledger that was restored, and tells of an older mark, takes none of it back."""
        row = self._run("SELECT spans FROM {horizons} WHERE {this_stage} AND origin = {origin}").fetchone()
        return _read_spans(row[0]) if row is not None else ()

    def _forgotten(self, mark: MarkRecord) -> Iterator[str]:
        """Windows of this origin that lie below the mark: by their times, or (without an interval) by when they were claimed last."""
        rows = self._run("SELECT window_key, max(claimed_generation) FROM {ledger} WHERE {this_stage} GROUP BY window_key")
        for window, generation in rows:
            if is_below(window, generation, self._claim, mark):
                yield window

    def _unlocked(self, windows: list[str]) -> list[str]:
        """Those of which nobody holds a row; they are locked from here on, and none is added while we hold the stage."""
        query = "SELECT window_key FROM {ledger} WHERE {this_stage} AND window_key = ANY ({windows})"
        there = Counter(self._run(query, windows=windows))
        ours = Counter(self._run(query + " FOR UPDATE SKIP LOCKED", windows=windows))
        return [window for (window,), count in there.items() if ours[window,] == count]


def _read_spans(spans: Any) -> Spans:
    return msgspec.convert(spans, Spans)
