"""The table that is published to: found and compared with what the contract wants, or created."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents.contracts import ColumnSpec, ColumnType, TableSpec
from factory_agents.databases.postgres import usage_grants
from factory_agents.errors import ConfigurationError, SinkError
from factory_agents.sinks.postgres.catalog import FoundColumn, UniqueIndex, columns, row_triggers, rules, shape, unique_indexes
from factory_agents.sinks.postgres.names import TableName, check_name, compose, names
from factory_agents.sinks.postgres.rows import RowColumn
from factory_agents.sinks.postgres.types import KEY_BYTES, fits, kind_of, natural_type

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

__all__ = [
    "HORIZONS",
    "LEDGER",
    "OWN_COLUMNS",
    "PUBLICATIONS",
    "ColumnSpec",
    "TableSpec",
    "TargetTable",
    "begin_creation",
    "check_wanted",
    "find_table",
    "not_after",
    "open_table",
    "same_key",
]

LEDGER = "factory_publishes"
"""The sink's own table, in the schema of the tables it speaks of."""

PUBLICATIONS = "factory_publications"
"""Beside it: which shard of which window each number in a row's ``_factory_publication`` stands for."""

HORIZONS = "factory_horizons"
"""And this: of which times each stage's windows were forgotten."""

_OWN = "_factory_"

OWN_COLUMNS = {
    "_factory_window": ("timestamptz", "timestamp with time zone"),
    "_factory_publication": ("integer", "integer"),
    "_factory_partition": ("integer", "integer"),
    "_factory_offset": ("bigint", "bigint"),
    "_factory_timestamp": ("bigint", "bigint"),
}
"""What a table of ours keeps of each row: its window's start, the publication that wrote it, and the record that it came from.

The record's timestamp is in milliseconds since 1970. Fixed and narrow, because every row pays for them.
"""

_RECORD = "{0}._factory_timestamp, {0}._factory_partition, {0}._factory_offset"

_LEDGER_COLUMNS = """
    table_name text COLLATE "C" NOT NULL,
    pipeline text COLLATE "C" NOT NULL,
    stage text COLLATE "C" NOT NULL,
    window_key text COLLATE "C" NOT NULL,
    shard integer NOT NULL,
    shards integer NOT NULL,
    fence bigint NOT NULL,
    claimed_plan text,
    claimed_generation bigint NOT NULL,
    claimed_at timestamptz NOT NULL,
    plan text,
    fingerprint text,
    input_generation bigint,
    generation bigint,
    epoch bigint,
    publication integer,
    outcome jsonb,
    committed_fence bigint,
    committed_at timestamptz,
    relations text[],
    PRIMARY KEY (table_name, pipeline, stage, window_key, shard, shards)
"""

_PUBLICATIONS_COLUMNS = """
    publication integer GENERATED ALWAYS AS IDENTITY,
    table_name text COLLATE "C" NOT NULL,
    pipeline text COLLATE "C" NOT NULL,
    stage text COLLATE "C" NOT NULL,
    window_key text COLLATE "C" NOT NULL,
    shard integer NOT NULL,
    shards integer NOT NULL,
    generation bigint NOT NULL,
    published_at timestamptz,
    PRIMARY KEY (table_name, pipeline, stage, window_key, publication)
"""

_HORIZONS_COLUMNS = """
    table_name text COLLATE "C" NOT NULL,
    pipeline text COLLATE "C" NOT NULL,
    stage text COLLATE "C" NOT NULL,
    origin text COLLATE "C" NOT NULL,
    spans jsonb NOT NULL,
    looked_at timestamptz NOT NULL,
    PRIMARY KEY (table_name, pipeline, stage, origin)
"""

_OWN_TABLES = {LEDGER: _LEDGER_COLUMNS, PUBLICATIONS: _PUBLICATIONS_COLUMNS, HORIZONS: _HORIZONS_COLUMNS}

_CREATED = {"double": "double precision", "json": "jsonb"}
"""What PostgreSQL calls a contract's types, where it isn't the same."""


class TargetTable(msgspec.Struct, frozen=True):
    """The table as it is: the columns that are written, and whether it keeps each row's window (``tracked``).

    ``staged`` are the columns' types for a table without the checks of domains. ``drops_rows``: it has triggers that may drop rows.
    ``checks_elements``: a list's elements are of a domain, which their binary form would have to name.
    ``equals`` are the operators that compare the key's columns, ``collations`` theirs, "" for the types that have none.
    """

    schema: str
    name: str
    columns: tuple[RowColumn, ...]
    staged: tuple[str, ...]
    key: tuple[str, ...]
    time: str | None
    version: str | None
    tracked: bool
    oid: int
    deletes: bool = False
    drops_rows: bool = False
    checks_elements: bool = False
    equals: tuple[str, ...] = ()
    collations: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    shape: tuple[Any, ...] | None = None

    @property
    def place(self) -> tuple[str, str, tuple[str, ...]]:
        """Schema, name and the columns that are written."""
        return self.schema, self.name, (*(c.name for c in self.columns), *(OWN_COLUMNS if self.tracked else ()))

    @property
    def may_be_copied_to(self) -> bool:
        """Whether new rows may go straight into it: whose they are can be told, and no trigger and no delete has a say."""
        return self.tracked and not (self.drops_rows or self.deletes or self.checks_elements)

    @property
    def text(self) -> str:
        """schema.table, for messages."""
        return f"{self.schema}.{self.name}"

    @property
    def identifier(self) -> sql.Identifier:
        """The table in a query."""
        from psycopg import sql

        return sql.Identifier(self.schema, self.name)

    def beside(self, name: str) -> sql.Identifier:
        """A table in the same schema, in a query."""
        from psycopg import sql

        return sql.Identifier(self.schema, name)

    @property
    def ledger(self) -> sql.Identifier:
        """The sink's own table beside it, in a query."""
        return self.beside(LEDGER)

    @property
    def publications(self) -> sql.Identifier:
        """The table of publications beside it, in a query."""
        return self.beside(PUBLICATIONS)


def same_key(table: TargetTable, of_table: str, staged: str) -> sql.Composed:
    """Whether a row of the table (or of one made like it) has the key of a staged one, as the table's index compares it."""
    from psycopg import sql

    equal = [
        compose(f"{of_table}.{{k}} {equals} {staged}.{{k}}{f' COLLATE {collation}' if collation else ''}", k=sql.Identifier(name))
        for name, equals, collation in zip(table.key, table.equals, table.collations, strict=True)
    ]
    return sql.SQL(" AND ").join(equal)


def not_after(one: str, other: str) -> str:
    """Whether a row's record is not after another's, in a query: by the window, the timestamp, the coordinates.

    Of a window without an interval (which starts in 1970) it isn't known which others are before it, so records alone are compared then. A
    row of which nothing is known is before all.
    """
    places = [f"ROW({{0}}._factory_window, {_RECORD})", f"ROW({_RECORD})"]
    whole, record = (f"{place.format(one)} <= {place.format(other)}" for place in places)
    no_interval = f"TIMESTAMPTZ '1970-01-01 00:00:00+00' IN ({one}._factory_window, {other}._factory_window)"
    return f"coalesce(CASE WHEN {no_interval} THEN {record} ELSE {whole} END, true)"


def open_table(connection: psycopg.Connection[Any], name: TableName, wanted: TableSpec, *, create: bool) -> TargetTable:
    """Find or create the table and the sink's ledger beside it, and compare it with what is wanted.

    Raises SinkError listing every column that doesn't fit, ConfigurationError where there is no such table and none may be made, or where
    it isn't known which one is meant.
    """
    schema = name.schema or _default_schema(connection)
    oid = find_table(connection, schema, name.name)
    if oid is None:
        _check_may_be_created(connection, schema, name, wanted, create=create)
        _create(connection, schema, name.name, _definition(wanted))
        oid = find_table(connection, schema, name.name)
    for own, definition in _OWN_TABLES.items():
        if find_table(connection, schema, own) is None:
            _create(connection, schema, own, compose(definition))
    if oid is None:
        raise SinkError(f"table {schema}.{name.name} was dropped while it was opened; retry")
    if not _has_column(connection, schema, LEDGER, "relations"):
        _add_column(connection, schema, LEDGER, "relations", "text[]")
    found = columns(connection, oid)
    if "_factory_offset" in found and "_factory_timestamp" not in found:
        _add_column(connection, schema, name.name, "_factory_timestamp", "bigint NOT NULL DEFAULT 0")
        found = columns(connection, oid)
    if rewriting := rules(connection, oid):
        raise SinkError(
            f"table {schema}.{name.name} has rules ({', '.join(rewriting)}): COPY passes them over, and PostgreSQL allows no upsert beside"
            " them; make them triggers, which publish respects"
        )
    table = _fit(schema, name.name, oid, found, unique_indexes(connection, oid), wanted)
    return msgspec.structs.replace(table, drops_rows=row_triggers(connection, oid), shape=shape(connection, *table.place))


def _default_schema(connection: psycopg.Connection[Any]) -> str:
    row = connection.execute("SELECT current_schema()").fetchone()
    if row is None or row[0] is None:
        grants = usage_grants(connection)
        todo = f"have its owner say: {grants}; or " if grants else ""
        raise ConfigurationError(f"the database session has no schema that it may use: {todo}name the table as schema.table")
    return str(row[0])


def _check_may_be_created(connection: psycopg.Connection[Any], schema: str, name: TableName, wanted: TableSpec, *, create: bool) -> None:
    """Raise ConfigurationError where a table that is missing is not to be created."""
    missing = f"table {schema}.{name.name} does not exist"
    if not name.schema and (other := _searched_schema(connection, name.name)):
        raise ConfigurationError(
            f"{missing}, and {other}.{name.name} does, which the session searches too: name the one that is meant as schema.table"
        )
    if not wanted.columns:
        raise ConfigurationError(f"{missing}: create it, or give a contract so that it can be created")
    if not create:
        raise ConfigurationError(f"{missing}, and create_table is off: create it, or switch that on")


def _searched_schema(connection: psycopg.Connection[Any], name: str) -> str:
    """The first schema of the search_path that has a table of this name, or ""."""
    row = connection.execute(
        "SELECT s.name FROM unnest(current_schemas(false)) WITH ORDINALITY AS s(name, n)"
        " JOIN pg_catalog.pg_namespace p ON p.nspname = s.name JOIN pg_catalog.pg_class c ON c.relnamespace = p.oid"
        " WHERE c.relname = %s AND c.relkind IN ('r', 'p') ORDER BY s.n LIMIT 1",
        [name],
    ).fetchone()
    return str(row[0]) if row is not None else ""


def find_table(connection: psycopg.Connection[Any], schema: str, name: str) -> int | None:
    """The number (oid) of the table of this name, None where there is nothing; raises SinkError for what is no table."""
    row = connection.execute(
        "SELECT c.oid, c.relkind FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s",
        [schema, name],
    ).fetchone()
    if row is None:
        return None
    kind = row[1].decode() if isinstance(row[1], bytes) else row[1]
    if kind not in ("r", "p"):
        kinds = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "i": "an index", "c": "a type"}
        raise SinkError(f"{schema}.{name}: expected a table, found {kinds.get(kind, 'something else')}; give another name")
    return int(row[0])


def _create(connection: psycopg.Connection[Any], schema: str, name: str, definition: sql.Composable) -> None:
    """Create a table once, however many do so at the same moment (IF NOT EXISTS alone fails for one of two at once)."""
    from psycopg import sql

    begin_creation(connection, schema, name)
    table = sql.Identifier(schema, name)
    connection.execute(compose("CREATE TABLE IF NOT EXISTS {table} ({definition})", table=table, definition=definition))
    if name not in _OWN_TABLES:
        indexed = connection.execute(
            compose(
                "SELECT 1 FROM pg_catalog.pg_indexes WHERE schemaname = {s} AND tablename = {t} AND indexdef LIKE {like}",
                s=schema,
                t=name,
                like="%(_factory_publication)%",
            )
        ).fetchone()
        if indexed is None:
            # Rows of a publication lie together, so the pages' ranges find them; a tree of them would cost more than the rows.
            connection.execute(compose("CREATE INDEX ON {table} USING brin (_factory_publication)", table=table))


def _has_column(connection: psycopg.Connection[Any], schema: str, table: str, column: str) -> bool:
    query = (
        "SELECT 1 FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s AND a.attname = %s"
    )
    return connection.execute(query, [schema, table, column]).fetchone() is not None


def _add_column(connection: psycopg.Connection[Any], schema: str, table: str, column: str, definition: str) -> None:
    """Add one that earlier releases didn't make."""
    from psycopg import sql

    query = "ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column} " + definition
    connection.execute(compose(query, table=sql.Identifier(schema, table), column=sql.Identifier(column)))


def begin_creation(connection: psycopg.Connection[Any], schema: str, name: str) -> None:
    """Let one session at a time create tables of ours in a schema, until its transaction ends.

    Raises ConfigurationError where the session's role may not create this one.
    """
    lacking = compose(
        "SELECT format('GRANT USAGE, CREATE ON SCHEMA %I TO %I', {s}::text, current_user)"
        " WHERE NOT (has_schema_privilege({s}, 'USAGE') AND has_schema_privilege({s}, 'CREATE'))",
        s=schema,
    )
    if row := connection.execute(lacking).fetchone():
        raise ConfigurationError(
            f"table {schema}.{name} does not exist, and the database's user may not create it; have the schema's owner say: {row[0]};"
            " or create the table beforehand (docs/least-rights.md)"
        )
    connection.execute(compose("SELECT pg_advisory_xact_lock(hashtextextended({key}, 0))", key=f"{LEDGER}:create:{schema}"))


def _created(type_: ColumnType) -> str:
    """A contract's type as PostgreSQL has it."""
    return msgspec.structs.replace(type_, name=_CREATED.get(type_.name, type_.name)).text


def _definition(wanted: TableSpec) -> sql.Composable:
    from psycopg import sql

    lines: list[sql.Composable] = []
    for column in wanted.columns:
        type_ = _created(column.type)
        if column.name in wanted.key and column.type == ColumnType("text"):
            type_ += ' COLLATE "C"'  # ids are compared byte by byte: faster to sort and to look up
        null = "" if column.nullable and column.name not in wanted.key else " NOT NULL"
        lines.append(compose("{name} " + type_ + null, name=sql.Identifier(column.name)))
    lines += [compose("{name} " + created + " NOT NULL", name=sql.Identifier(name)) for name, (created, _) in OWN_COLUMNS.items()]
    lines.append(compose("PRIMARY KEY ({key})", key=names(wanted.key)))
    return sql.SQL(", ").join(lines)


def _fit(
    schema: str,
    name: str,
    oid: int,
    found: Mapping[str, FoundColumn],
    indexes: Sequence[UniqueIndex],
    wanted: TableSpec,
) -> TargetTable:
    usable = [index for index in indexes if not index.flaw]
    key = wanted.key or (usable[0].columns if usable and (usable[0].primary or len(usable) == 1) else ())
    columns, notes = (wanted.columns, ()) if wanted.columns else _inferred(f"{schema}.{name}", found, key)
    misfits = [m for c in columns if (m := _misfit(c, found.get(c.name), c.name in key))]
    own = [n for n in OWN_COLUMNS if n in found]
    misfits += _own_misfits(found) if own else []
    misfits += _unfilled(columns, found, key)
    misfits += _key_misfits(key, indexes)
    if misfits:
        raise SinkError(f"table {schema}.{name} does not fit:\n  " + "\n  ".join(misfits))
    text_keys = sum(c.name in key and kind_of(c.type, found[c.name].type).text for c in columns)
    return TargetTable(
        schema=schema,
        name=name,
        columns=tuple(_row_column(c, found[c.name], KEY_BYTES // max(1, text_keys) if c.name in key else 0) for c in columns),
        staged=tuple(found[c.name].type.staged for c in columns),
        checks_elements=any(found[c.name].type.of_domains for c in columns),
        key=key,
        time=wanted.time,
        version=wanted.version,
        tracked=bool(own),
        oid=oid,
        deletes=wanted.deletes,
        equals=tuple(found[name].type.equals for name in key),
        collations=tuple(found[name].collation for name in key),
        notes=tuple(notes),
    )


def _inferred(table: str, found: Mapping[str, FoundColumn], key: Sequence[str]) -> tuple[tuple[ColumnSpec, ...], tuple[str, ...]]:
    """A table's own columns as those wanted; those that the database fills in, or of types not written here, are left out with a note."""
    columns, left_out = [], []
    for f in found.values():
        type_ = natural_type(f.type)
        if f.name.startswith(_OWN) or f.generated:
            continue
        if type_ is None or (f.required and f.supplied and f.name not in key):
            left_out.append(f"{f.name} ({f.type.shown}{', has a default' if type_ else ''})")
        else:
            columns.append(ColumnSpec(f.name, type_, not f.required))
    notes = (f"{table}: without a contract these columns are not written: {', '.join(left_out)}",) if left_out else ()
    return tuple(columns), notes


def _misfit(column: ColumnSpec, found: FoundColumn | None, key: bool) -> str:
    """Why a column cannot take what the contract gives, or ""."""
    expected = _created(column.type)
    if found is None:
        return f"column {column.name!r}: expected {expected}, found no such column"
    if found.generated:
        return f"column {column.name!r}: expected {expected}, found one that PostgreSQL generates"
    if not fits(column.type, found.type):
        return f"column {column.name!r}: expected {expected}, found {found.type.shown}"
    if key and not column.type.ordered:
        return f"column {column.name!r}: expected a key that can be compared, found {found.type.shown}"
    if key and not found.deterministic:
        return f"column {column.name!r}: expected a key that is compared byte by byte, found a collation that calls different texts equal"
    return ""


def _unfilled(columns: Sequence[ColumnSpec], found: Mapping[str, FoundColumn], key: Sequence[str]) -> list[str]:
    """What no event fills: columns of the key that can't be written, and others that must not be null."""
    given = {c.name for c in columns} | set(OWN_COLUMNS)
    misfits = []
    for f in found.values():
        if f.name in given:
            continue
        if f.name in key:
            why = "PostgreSQL generates it, so no event has it" if f.generated else f"a key of type {f.type.shown} is not written"
            misfits.append(f"column {f.name!r} of the key: {why}; give a contract with another key, and a unique constraint on it")
        elif f.required and not f.supplied:
            misfits.append(f"column {f.name!r}: NOT NULL without a default, and no event has it")
    return misfits


def _key_misfits(key: Sequence[str], indexes: Sequence[UniqueIndex]) -> list[str]:
    flawed = [f"{i.name} ({', '.join(i.columns)}) {i.flaw}" for i in indexes if i.flaw and (not key or set(i.columns) == set(key))]
    others = [f"there is one on ({', '.join(i.columns)})" for i in indexes if not i.flaw]
    if not key:
        return [
            "; ".join(["no primary key or single unique constraint to upsert by; add one, or give a contract with a key", *flawed, *others])
        ]
    if any(set(i.columns) == set(key) for i in indexes if not i.flaw):
        return []
    return ["; ".join([f"no unique constraint on the key ({', '.join(key)}); add one", *flawed, *others])]


def _own_misfits(found: Mapping[str, FoundColumn]) -> list[str]:
    misfits = []
    for name, (_, type_) in OWN_COLUMNS.items():
        if name not in found:
            misfits.append(f"column {name!r}: expected {type_} beside the other _factory_ columns, found no such column")
        elif found[name].type.base != type_:
            misfits.append(f"column {name!r}: expected {type_}, found {found[name].type.shown}")
    return misfits


def _row_column(column: ColumnSpec, found: FoundColumn, key_bytes: int) -> RowColumn:
    return RowColumn(
        name=column.name,
        kind=kind_of(column.type, found.type, key_bytes=key_bytes, unit=column.unit),
        nullable=column.nullable and not found.required and not key_bytes,
    )


def check_wanted(wanted: TableSpec) -> None:
    """Refuse, with ConfigurationError, what no table could hold or be kept newest by."""
    for column in wanted.columns:
        check_name(column.name, "column")
        if column.name.startswith(_OWN):
            raise ConfigurationError(f"column {column.name!r}: names that begin with _factory_ are the sink's own; rename the field")
    wanted.check_order()
