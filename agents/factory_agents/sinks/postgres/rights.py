"""The rights that publishing takes, asked for before a row is written: what is missing is named by the GRANT that gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from factory_agents.errors import ConfigurationError
from factory_agents.sinks.postgres.deletes import memory_of
from factory_agents.sinks.postgres.names import compose
from factory_agents.sinks.postgres.table import HORIZONS, LEDGER, OWN_COLUMNS, PUBLICATIONS, TargetTable

if TYPE_CHECKING:
    import psycopg

__all__ = ["check_rights"]

_WRITE = ("SELECT", "INSERT", "UPDATE")
_ALL = (*_WRITE, "DELETE")
_MISSING = """
    SELECT format('GRANT %s ON %I.%I TO %I', string_agg(x.needed, ', ' ORDER BY x.n), {schema}::text, x.name, current_user)
    FROM unnest({tables}::text[], {rights}::text[]) WITH ORDINALITY AS x(name, needed, n)
        JOIN pg_catalog.pg_class c ON c.relname = x.name
        JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace AND s.nspname = {schema}
    WHERE NOT has_table_privilege(c.oid, x.needed) AND (
        x.needed = 'DELETE' OR EXISTS (
            SELECT FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                AND (x.name <> {target} OR a.attname = ANY ({columns}::text[]))
                AND NOT has_column_privilege(c.oid, a.attnum, x.needed)))
    GROUP BY x.name
    UNION ALL
    SELECT format('GRANT USAGE ON SCHEMA %I TO %I', {schema}::text, current_user) WHERE NOT has_schema_privilege({schema}, 'USAGE')
    UNION ALL
    SELECT format('GRANT TEMPORARY ON DATABASE %I TO %I', current_database(), current_user)
    WHERE NOT has_database_privilege(current_database(), 'TEMPORARY')
"""

_HIDDEN = """
    SELECT c.relname, quote_ident(current_user) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace
    WHERE s.nspname = {schema} AND c.relname = ANY ({tables}::text[]) AND row_security_active(c.oid) ORDER BY c.relname
"""


def check_rights(connection: psycopg.Connection[Any], table: TargetTable, written: Sequence[str] = ()) -> None:
    """Raise ConfigurationError for rights that the session's role lacks, and for rows that may be hidden from it.

    On the table itself the rights on the columns written suffice. ``written``: more tables of the sink's own.
    """
    own = {LEDGER: _ALL, PUBLICATIONS: _ALL, HORIZONS: _WRITE, **dict.fromkeys(written, _WRITE)}
    needed = {table.name: _ALL if table.tracked or table.deletes else _WRITE, **own}
    if table.deletes:
        needed[memory_of(table.name)] = _ALL
    pairs = [(name, right) for name, rights in needed.items() for right in rights]
    query = compose(
        _MISSING,
        schema=table.schema,
        tables=[name for name, _ in pairs],
        rights=[right for _, right in pairs],
        target=table.name,
        columns=[*(c.name for c in table.columns), *(OWN_COLUMNS if table.tracked else ())],
    )
    missing = [row[0] for row in connection.execute(query).fetchall()]
    if missing:
        raise ConfigurationError(
            f"table {table.text}: the database's user lacks rights that publish needs; have their owner say: {'; '.join(missing)}"
        )
    hidden = connection.execute(compose(_HIDDEN, schema=table.schema, tables=list(needed))).fetchall()
    if hidden:
        raise ConfigurationError(
            f"table {table.text}: row-level security may hide rows of {', '.join(row[0] for row in hidden)} from the database's user, and "
            f"publish can't replace what it doesn't see; have a superuser say: ALTER ROLE {hidden[0][1]} BYPASSRLS; or publish as the "
            "table's owner"
        )
