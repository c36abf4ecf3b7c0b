"""The numbers of publications, which a table's rows bear: whoever publishes a window again takes back what bears its former ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from factory_agents.errors import SinkError
from factory_agents.sinks.postgres.deletes import memory_of
from factory_agents.sinks.postgres.names import compose
from factory_agents.sinks.postgres.table import PUBLICATIONS, TargetTable

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
_GIVER_OF = "to_regclass(pg_get_serial_sequence(format('%I.%I', {schema}::text, {numbers}::text), 'publication'))"
_SET = "SELECT setval(g, {borne}) FROM " + _GIVER_OF + " AS g WHERE has_sequence_privilege(g, 'UPDATE')"
_TAKEN_ONE_BY_ONE, _LAST = 10_000, 2**31 - 1


def pass_borne(connection: psycopg.Connection[Any], table: TargetTable) -> None:
    """Have the next numbers be above all that the ledger knows, and that rows or remembered deletes bear. It reads the whole table.

    Raises SinkError where that is too far to go: rows from elsewhere may bear any number.
    """
    of: dict[str, Any] = {"publications": table.publications, "table": table.name, "schema": table.schema, "numbers": PUBLICATIONS}
    bearing = [(table.publications, "publication")]
    bearing += [(table.identifier, "_factory_publication")] if table.tracked else []
    bearing += [(table.beside(memory_of(table.name)), "_factory_publication")] if table.deletes else []
    borne = 0
    for each, column in bearing:
        row = connection.execute(compose(f"SELECT coalesce(max({column}), 0) FROM {{each}}", each=each)).fetchone()
        borne = max(borne, row[0] if row is not None else 0)
    if not borne:
        return
    # One at a time sets what gives them, but not while it looks: that may take long, or wait for the table.
    connection.execute(compose("SELECT pg_advisory_xact_lock(hashtextextended({lock}, 0))", lock=f"{PUBLICATIONS}:pass:{table.schema}"))
    row = connection.execute(compose(_PASSED, first=1, last=1, **of)).fetchone()
    given = row[0] if row is not None else 0
    if given < borne <= given + _TAKEN_ONE_BY_ONE:  # needs no right on what gives them, and others may take some meanwhile
        connection.execute(compose(_PASSED, first=given + 1, last=borne, **of))
    elif given < borne and (borne >= _LAST or connection.execute(compose(_SET, borne=borne, **of)).fetchone() is None):
        raise SinkError(
            f"table {table.text}: its rows have _factory_publication up to {borne}, and {PUBLICATIONS} is at {given}: later ones would be"
            f" theirs, too; set that column to 0 in rows that came from elsewhere, or, as the owner of {PUBLICATIONS}, say:"
            f" ALTER TABLE {table.schema}.{PUBLICATIONS} ALTER publication RESTART WITH {borne + 1}"
        )
    connection.execute(compose(_FORGET, **of))
