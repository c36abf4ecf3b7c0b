"""What the catalogue says of a table: its columns with their types, and the unique keys that an upsert can go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents.sinks.postgres.types import FoundType

if TYPE_CHECKING:
    import psycopg

__all__ = ["FoundColumn", "UniqueIndex", "columns", "relations", "row_triggers", "rules", "shape", "unique_indexes"]


class FoundColumn(msgspec.Struct, frozen=True):
    """A column as it is. ``supplied``: it has a default; ``generated``: nobody may write it; ``deterministic``: equal is equal bytes;
    ``collation`` is quoted, "" for none."""

    name: str
    type: FoundType
    required: bool
    supplied: bool
    generated: bool
    deterministic: bool
    collation: str


class UniqueIndex(msgspec.Struct, frozen=True):
    """A unique index, by its columns; ``flaw`` says why an upsert can't go by it, if so."""

    name: str
    primary: bool
    columns: tuple[str, ...]
    flaw: str


def columns(connection: psycopg.Connection[Any], oid: int) -> dict[str, FoundColumn]:
    """A table's columns by their names, in their order."""
    rows = connection.execute(
        """
        SELECT a.attname, a.atttypid::bigint, a.atttypmod, format_type(a.atttypid, a.atttypmod), a.attnotnull OR t.typnotnull,
               a.atthasdef OR a.attidentity <> '', a.attgenerated <> '' OR a.attidentity = 'a', coalesce(l.collisdeterministic, true),
               coalesce(quote_ident(n.nspname) || '.' || quote_ident(l.collname), '')
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
             LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
             LEFT JOIN pg_catalog.pg_namespace n ON n.oid = l.collnamespace
        WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
        """,
        [oid],
    ).fetchall()
    types = _types(connection, oid)
    return {row[0]: FoundColumn(row[0], _found_type(types, *row[1:4]), *row[4:]) for row in rows}


def relations(connection: psycopg.Connection[Any], schema: str, names: Sequence[str]) -> dict[str, int]:
    """Those of these tables that there are, and how many columns each has."""
    rows = connection.execute(
        """
        SELECT c.relname, (SELECT count(*) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = coalesce(nullif(%s, ''), current_schema()) AND c.relname = ANY (%s)
        """,
        [schema, list(names)],
    ).fetchall()
    return {str(name): int(count) for name, count in rows}


class _Type(msgspec.Struct, frozen=True):
    """A row of pg_type."""

    kind: str
    name: str
    base: int
    base_modifier: int
    base_shown: str
    element: int
    labels: list[str]
    equals: str


def _types(connection: psycopg.Connection[Any], oid: int) -> dict[int, _Type]:
    """The types of a table's columns, and those that domains and lists are made of."""
    rows = connection.execute(
        """
        WITH RECURSIVE known AS (
            SELECT atttypid AS oid FROM pg_catalog.pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped
            UNION
            SELECT CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.typelem END
            FROM known JOIN pg_catalog.pg_type t USING (oid) WHERE t.typtype = 'd' OR t.typcategory = 'A'
        )
        SELECT t.oid::bigint, t.typtype::text, format_type(t.oid, NULL), t.typbasetype::bigint, t.typtypmod,
               CASE t.typtype WHEN 'd' THEN format_type(t.typbasetype, t.typtypmod) ELSE '' END,
               CASE t.typcategory WHEN 'A' THEN t.typelem::bigint ELSE 0 END,
               ARRAY(SELECT enumlabel::text FROM pg_catalog.pg_enum WHERE enumtypid = t.oid ORDER BY enumsortorder),
               coalesce((
                   SELECT format('OPERATOR(%%I.%%s)', s.nspname, o.oprname)
                   FROM pg_catalog.pg_opclass c JOIN pg_catalog.pg_am m ON m.oid = c.opcmethod AND m.amname = 'btree'
                        JOIN pg_catalog.pg_amop a ON a.amopfamily = c.opcfamily AND a.amoplefttype = t.oid AND a.amoprighttype = t.oid
                             AND a.amopstrategy = 3
                        JOIN pg_catalog.pg_operator o ON o.oid = a.amopopr JOIN pg_catalog.pg_namespace s ON s.oid = o.oprnamespace
                   WHERE c.opcdefault AND c.opcintype = t.oid
               ), '=')
        FROM known JOIN pg_catalog.pg_type t USING (oid)
        """,
        [oid],
    ).fetchall()
    return {row[0]: _Type(*row[1:]) for row in rows}


def _found_type(types: Mapping[int, _Type], oid: int, modifier: int, shown: str, staged: str = "") -> FoundType:
    type_ = types[oid]
    if type_.kind == "d":
        return _found_type(types, type_.base, type_.base_modifier, shown, type_.base_shown)
    staged, inner = staged or shown, type_.element
    element = _found_type(types, inner, modifier, types[inner].name) if inner else None
    of_domains = inner != 0 and types[inner].kind == "d"
    if element is not None and of_domains:
        staged, inner = f"{element.staged}[]", _undomained(types, inner)
    base = "enum" if type_.kind == "e" else type_.name.rpartition(".")[2]
    return FoundType(shown, staged, base, modifier, tuple(type_.labels), element, inner, of_domains, type_.equals)


def _undomained(types: Mapping[int, _Type], oid: int) -> int:
    """What a domain is of, however many stand on each other."""
    while types[oid].kind == "d":
        oid = types[oid].base
    return oid


def unique_indexes(connection: psycopg.Connection[Any], oid: int) -> list[UniqueIndex]:
    """Every unique index of a table; primary keys first."""
    rows = connection.execute(
        """
        SELECT c.relname, i.indisprimary,
               ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, n)
                     JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                     WHERE k.n <= i.indnkeyatts ORDER BY k.n),
               CASE WHEN NOT i.indimmediate THEN 'is deferrable' WHEN i.indpred IS NOT NULL THEN 'is partial'
                    WHEN i.indexprs IS NOT NULL THEN 'is on an expression' WHEN NOT i.indisvalid THEN 'is not valid' ELSE '' END
        FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
        WHERE i.indrelid = %s AND i.indisunique ORDER BY i.indisprimary DESC, i.indexrelid
        """,
        [oid],
    ).fetchall()
    return [UniqueIndex(name, primary, tuple(columns), flaw) for name, primary, columns, flaw in rows]


_ROW_TRIGGERS = """
    EXISTS (
        SELECT FROM pg_catalog.pg_trigger
        WHERE NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 3 = 3 AND tgtype & 20 <> 0
              AND (tgrelid = c.oid OR tgrelid IN (SELECT relid FROM pg_catalog.pg_partition_tree(c.oid::regclass)))
    )
"""


def row_triggers(connection: psycopg.Connection[Any], oid: int) -> bool:
    """Whether triggers of the table, or of its partitions, see rows before they are written, and may drop them."""
    row = connection.execute(f"SELECT {_ROW_TRIGGERS} FROM pg_catalog.pg_class c WHERE c.oid = %s", [oid]).fetchone()
    return row is not None and bool(row[0])


def shape(connection: psycopg.Connection[Any], schema: str, name: str, columns: Sequence[str]) -> tuple[Any, ...] | None:
    """What rows of these columns go by, to be compared; None where there is no such table.

    Which one it is, its row triggers, and these columns and all that have to be filled, with their types.
    """
    return connection.execute(
        f"""
        SELECT c.oid::bigint, {_ROW_TRIGGERS}, ARRAY(
            SELECT format('%%s %%s %%s %%s', a.attname, a.atttypid, a.atttypmod, a.attnotnull) FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                  AND (a.attname = ANY (%s) OR (a.attnotnull AND NOT a.atthasdef AND a.attidentity = '')) ORDER BY a.attnum
        )
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s
        """,
        [list(columns), schema, name],
    ).fetchone()


def rules(connection: psycopg.Connection[Any], oid: int) -> list[str]:
    """The names of the rules that stand in for writing to the table."""
    query = "SELECT rulename FROM pg_catalog.pg_rewrite WHERE ev_class = %s AND ev_type <> '1' AND ev_enabled <> 'D' ORDER BY rulename"
    return [row[0] for row in connection.execute(query, [oid]).fetchall()]
