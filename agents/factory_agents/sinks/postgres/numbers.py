"""The numbers of publications, which a table's rows bear: whoever publishes a window again takes back what bears its former ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from factory_agents.sinks.postgres.deletes import memory_of
from factory_agents.sinks.postgres.names import compose
from factory_agents.sinks.postgres.table import TargetTable

if TYPE_CHECKING:
    import psycopg

__all__ = ["GIVER", "pass_borne"]

GIVER = """
    ARRAY(SELECT format('%s/%s', o::oid, pg_relation_filenode(o)) FROM to_regclass(format('%I.%I', {schema}::text, {numbers}::text)) AS o)
"""
"""What gives the numbers: one that was made again, or restored by itself, would give some of them twice."""

_PASSED = """
    INSERT INTO {publications} (table_name, pipeline, stage, window_key, shard, shards, generation)
    SELECT {table}, '', 'passed', '', 0, 1, 0 FROM generate_series({first}, {last}) RETURNING publication
"""
_FORGET = "DELETE FROM {publications} WHERE table_name = {table} AND pipeline = '' AND stage = 'passed'"


def pass_borne(connection: psycopg.Connection[Any], table: TargetTable) -> None:
    """Have the next numbers be above all that the ledger knows, and that rows or remembered deletes bear. It reads the whole table."""
    of: dict[str, Any] = {"publications": table.publications, "table": table.name}
    bearing = [(table.publications, "publication")]
    bearing += [(table.identifier, "_factory_publication")] if table.tracked else []
    bearing += [(table.beside(memory_of(table.name)), "_factory_publication")] if table.deletes else []
    borne = 0
    for each, column in bearing:
        row = connection.execute(compose(f"SELECT coalesce(max({column}), 0) FROM {{each}}", each=each)).fetchone()
        borne = max(borne, row[0] if row is not None else 0)
    if not borne:
        return
    row = connection.execute(compose(_PASSED, first=1, last=1, **of)).fetchone()
    if row is not None and row[0] < borne:
        connection.execute(compose(_PASSED, first=row[0] + 1, last=borne, **of))
    connection.execute(compose(_FORGET, **of))
