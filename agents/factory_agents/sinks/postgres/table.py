"""The table that is published to: found and compared with what the contract wants, or created."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents.errors import ConfigurationError, SinkError
from factory_agents.sinks.postgres.rows import ColumnType, RowColumn

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

__all__ = [
    "LEDGER",
    "OWN_COLUMNS",
    "PUBLICATIONS",
    "TableName",
    "TargetTable",
    "WantedColumn",
    "WantedTable",
    "compose",
    "names",
    "open_table",
]

LEDGER = "factory_publishes"
"""The sink's own table, in the schema of the tables it speaks of."""

PUBLICATIONS = "factory_publications"
"""Beside it: which shard of which window each number in a row's ``_factory_publication`` stands for."""

OWN_COLUMNS = {
    "_factory_window": ("timestamptz", "timestamp with time zone"),
    "_factory_publication": ("integer", "integer"),
    "_factory_partition": ("integer", "integer"),
    "_factory_offset": ("bigint", "bigint"),
}
"""What a table of ours keeps of each row: its window's start, the publication that wrote it, and the record that it came from.

Fixed and narrow, because every row pays for them.
"""

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

_CREATED: dict[ColumnType, str] = {"double": "double precision", "json": "jsonb"}
_INTEGERS = {"bigint": 63, "integer": 31, "smallint": 15}
_FITTING: Mapping[str, ColumnType] = {
    "text": "text",
    "character varying": "text",
    "double precision": "double",
    "boolean": "boolean",
    "timestamp with time zone": "timestamptz",
    "jsonb": "json",
    "json": "json",
    "numeric": "numeric",
    "date": "date",
    "bigint": "bigint",
    "integer": "bigint",
    "smallint": "bigint",
}
"""PostgreSQL's types that take a contract's type (values are checked where theirs is narrower)."""


class TableName(msgspec.Struct, frozen=True):
    """A table's name, taken literally (case and all), with its schema ("" for the session's first)."""

    schema: str
    name: str

    @classmethod
    def parse(cls, text: str) -> TableName:
        """Read ``table``, ``schema.table`` or either part in double quotes; raises ConfigurationError for anything else."""
        parts = [quoted.replace('""', '"') or plain for quoted, plain in re.findall(r'(?:"((?:[^"]|"")+)"|([^."]+))(?:\.|$)', text)]
        shown = ".".join(parts)
        if not 1 <= len(parts) <= 2 or len(shown) != len(re.sub(r'"((?:[^"]|"")+)"', lambda m: m[1].replace('""', '"'), text)):
            raise ConfigurationError(
                f'table {text!r}: expected table or schema.table (a part with a dot or a quote in it in "double quotes")'
            )
        for part in parts:
            check_name(part, "table")
        return cls(*(parts if len(parts) == 2 else ["", *parts]))


def check_name(name: str, what: str) -> None:
    """Refuse a name that PostgreSQL would cut or cannot hold, with ConfigurationError."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = 0
    if not 1 <= size <= 63 or "\0" in name:
        raise ConfigurationError(f"{what} {name!r}: PostgreSQL takes names of 1 to 63 bytes in UTF-8, without NUL")


class WantedColumn(msgspec.Struct, frozen=True):
    """A column as the contract has it; ``unit`` (s, ms, us) where a time comes as a number."""

    name: str
    type: ColumnType
    nullable: bool
    unit: str = ""


class WantedTable(msgspec.Struct, frozen=True):
    """What the contract wants of a table; no ``columns`` where there is no contract: the table itself says then."""

    columns: tuple[WantedColumn, ...] = ()
    key: tuple[str, ...] = ()
    time: str | None = None
    version: str | None = None


class TargetTable(msgspec.Struct, frozen=True):
    """The table as it is: the columns that are written with the types they have, and whether it keeps each row's window (``tracked``)."""

    schema: str
    name: str
    columns: tuple[RowColumn, ...]
    types: tuple[str, ...]
    key: tuple[str, ...]
    time: str | None
    version: str | None
    tracked: bool
    oid: int
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """schema.table, for messages."""
        return f"{self.schema}.{self.name}"

    @property
    def identifier(self) -> sql.Identifier:
        """The table in a query."""
        from psycopg import sql

        return sql.Identifier(self.schema, self.name)

    @property
    def ledger(self) -> sql.Identifier:
        """The sink's own table beside it, in a query."""
        from psycopg import sql

        return sql.Identifier(self.schema, LEDGER)

    @property
    def publications(self) -> sql.Identifier:
        """The table of publications beside it, in a query."""
        from psycopg import sql

        return sql.Identifier(self.schema, PUBLICATIONS)


def compose(template: str, **parts: Any) -> sql.Composed:
    """A query: composables go in as they are, every other value as a literal (so that nothing reads a name's per cent sign)."""
    from psycopg import sql

    filled = {name: part if isinstance(part, sql.Composable) else sql.Literal(part) for name, part in parts.items()}
    return sql.SQL(template).format(**filled)


class _Found(msgspec.Struct, frozen=True):
    """A column of an existing table, as the catalogue has it."""

    name: str
    type: str
    base: str
    modifier: int
    required: bool
    supplied: bool
    generated: bool
    deterministic: bool


def open_table(connection: psycopg.Connection[Any], name: TableName, wanted: WantedTable, *, create: bool) -> TargetTable:
    """Find or create the table and the sink's ledger beside it, and compare it with what is wanted.

    Raises SinkError listing every column that doesn't fit, ConfigurationError where there is no such table and none may be made.
    """
    schema = name.schema or _default_schema(connection)
    oid = _relation(connection, schema, name.name)
    if oid is None:
        if not wanted.columns:
            raise ConfigurationError(f"table {schema}.{name.name} does not exist: create it, or give a contract so that it can be created")
        if not create:
            raise ConfigurationError(f"table {schema}.{name.name} does not exist, and create_table is off: create it, or switch that on")
        _create(connection, schema, name.name, _definition(wanted))
        oid = _relation(connection, schema, name.name)
    for own, columns in ((LEDGER, _LEDGER_COLUMNS), (PUBLICATIONS, _PUBLICATIONS_COLUMNS)):
        if _relation(connection, schema, own) is None:
            _create(connection, schema, own, compose(columns))
    if oid is None:
        raise SinkError(f"table {schema}.{name.name} was dropped while it was opened; retry")
    found = _columns(connection, oid)
    return _fit(connection, schema, name.name, oid, found, wanted)


def _default_schema(connection: psycopg.Connection[Any]) -> str:
    row = connection.execute("SELECT current_schema()").fetchone()
    if row is None or row[0] is None:
        raise ConfigurationError("the database session has no schema: name the table as schema.table")
    return str(row[0])


def _relation(connection: psycopg.Connection[Any], schema: str, name: str) -> int | None:
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

    connection.execute(compose("SELECT pg_advisory_xact_lock(hashtextextended({key}, 0))", key=f"{LEDGER}:create:{schema}"))
    table = sql.Identifier(schema, name)
    connection.execute(compose("CREATE TABLE IF NOT EXISTS {table} ({definition})", table=table, definition=definition))
    if name not in (LEDGER, PUBLICATIONS):
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


def _definition(wanted: WantedTable) -> sql.Composable:
    from psycopg import sql

    lines: list[sql.Composable] = []
    for column in wanted.columns:
        type_ = _CREATED.get(column.type, column.type)
        if column.name in wanted.key and column.type == "text":
            type_ += ' COLLATE "C"'  # ids are compared byte by byte: faster to sort and to look up
        null = "" if column.nullable and column.name not in wanted.key else " NOT NULL"
        lines.append(compose("{name} " + type_ + null, name=sql.Identifier(column.name)))
    lines += [compose("{name} " + created + " NOT NULL", name=sql.Identifier(name)) for name, (created, _) in OWN_COLUMNS.items()]
    lines.append(compose("PRIMARY KEY ({key})", key=names(wanted.key)))
    return sql.SQL(", ").join(lines)


def names(of: Iterable[str]) -> sql.Composed:
    """Names in a query, with commas between them."""
    from psycopg import sql

    return sql.SQL(", ").join(sql.Identifier(name) for name in of)


def _columns(connection: psycopg.Connection[Any], oid: int) -> dict[str, _Found]:
    rows = connection.execute(
        """
        SELECT a.attname, format_type(a.atttypid, a.atttypmod), format_type(a.atttypid, NULL), a.atttypmod, a.attnotnull,
               a.atthasdef OR a.attidentity <> '', a.attgenerated <> '' OR a.attidentity = 'a', coalesce(l.collisdeterministic, true)
        FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
        WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
        """,
        [oid],
    ).fetchall()
    return {row[0]: _Found(*row) for row in rows}


def _unique_keys(connection: psycopg.Connection[Any], oid: int) -> list[tuple[bool, tuple[str, ...]]]:
    """Columns of every index that an upsert can go by; primary keys first."""
    rows = connection.execute(
        """
        SELECT i.indisprimary, array_agg(a.attname::text ORDER BY k.n)
        FROM pg_catalog.pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, n), pg_catalog.pg_attribute a
        WHERE i.indrelid = %s AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
              AND k.n <= i.indnkeyatts AND a.attrelid = i.indrelid AND a.attnum = k.attnum
        GROUP BY i.indexrelid, i.indisprimary ORDER BY i.indisprimary DESC, i.indexrelid
        """,
        [oid],
    ).fetchall()
    return [(row[0], tuple(row[1])) for row in rows]


def _fit(
    connection: psycopg.Connection[Any], schema: str, name: str, oid: int, found: Mapping[str, _Found], wanted: WantedTable
) -> TargetTable:
    keys = _unique_keys(connection, oid)
    key = wanted.key or (keys[0][1] if keys and (keys[0][0] or len(keys) == 1) else ())
    columns, notes = (wanted.columns, ()) if wanted.columns else _inferred(f"{schema}.{name}", found, key)
    misfits = [m for c in columns if (m := _misfit(c, found.get(c.name), c.name in key))]
    own = [n for n in OWN_COLUMNS if n in found]
    misfits += _own_misfits(found) if own else []
    given = {c.name for c in columns} | set(OWN_COLUMNS)
    misfits += [
        f"column {f.name!r}: NOT NULL without a default, and no event has it"
        for f in found.values()
        if f.required and not f.supplied and f.name not in given
    ]
    if not key:
        misfits.append("no primary key or single unique constraint to upsert by; add one")
    elif not any(set(columns_) == set(key) for _, columns_ in keys):
        misfits.append(f"no unique constraint on the key ({', '.join(key)}); add one")
    if misfits:
        raise SinkError(f"table {schema}.{name} does not fit:\n  " + "\n  ".join(misfits))
    return TargetTable(
        schema=schema,
        name=name,
        columns=tuple(_row_column(c, found[c.name], c.name in key) for c in columns),
        types=tuple(found[c.name].type for c in columns),
        key=key,
        time=wanted.time,
        version=wanted.version,
        tracked=bool(own),
        oid=oid,
        notes=tuple(notes),
    )


def _inferred(table: str, found: Mapping[str, _Found], key: Sequence[str]) -> tuple[tuple[WantedColumn, ...], tuple[str, ...]]:
    """A table's own columns as those wanted; those that the database fills in, or of types not written here, are left out with a note."""
    columns, left_out = [], []
    for f in found.values():
        type_ = _FITTING.get(f.base)
        if f.name in OWN_COLUMNS or f.generated:
            continue
        if type_ is None or (f.required and f.supplied and f.name not in key):
            left_out.append(f"{f.name} ({f.type}{', has a default' if type_ else ''})")
        else:
            columns.append(WantedColumn(f.name, type_, not f.required))
    notes = (f"{table}: without a contract these columns are not written: {', '.join(left_out)}",) if left_out else ()
    return tuple(columns), notes


def _misfit(column: WantedColumn, found: _Found | None, key: bool) -> str:
    """Why a column cannot take what the contract gives, or ""."""
    expected = _CREATED.get(column.type, column.type)
    if found is None:
        return f"column {column.name!r}: expected {expected}, found no such column"
    if found.generated:
        return f"column {column.name!r}: expected {expected}, found one that PostgreSQL generates"
    if _FITTING.get(found.base) != column.type:
        return f"column {column.name!r}: expected {expected}, found {found.type}"
    if key and column.type == "json":
        return f"column {column.name!r}: expected a key that can be compared, found {found.type}"
    if key and not found.deterministic:
        return f"column {column.name!r}: expected a key that is compared byte by byte, found a collation that calls different texts equal"
    return ""


def _own_misfits(found: Mapping[str, _Found]) -> list[str]:
    misfits = []
    for name, (_, type_) in OWN_COLUMNS.items():
        if name not in found:
            misfits.append(f"column {name!r}: expected {type_} beside the other _factory_ columns, found no such column")
        elif found[name].type != type_:
            misfits.append(f"column {name!r}: expected {type_}, found {found[name].type}")
    return misfits


def _row_column(column: WantedColumn, found: _Found, key: bool) -> RowColumn:
    bits = _INTEGERS.get(found.base, 63)
    modifier = found.modifier - 4  # PostgreSQL's own way to store lengths and precisions
    has_modifier = found.modifier >= 4
    return RowColumn(
        name=column.name,
        type=column.type,
        stored=found.base,
        nullable=column.nullable and not found.required and not key,
        key=key,
        low=-(2**bits),
        high=2**bits - 1,
        length=modifier if has_modifier and found.base == "character varying" else None,
        digits=_digits(modifier) if has_modifier and found.base == "numeric" and column.type == "numeric" else None,
        unit=column.unit,
    )


def _digits(modifier: int) -> tuple[int, int]:
    scale = modifier & 0x7FF
    return modifier >> 16 & 0xFFFF, scale - 2048 if scale >= 1024 else scale


def check_wanted(wanted: WantedTable) -> None:
    """Refuse, with ConfigurationError, what no table could hold or be kept newest by."""
    for column in wanted.columns:
        check_name(column.name, "column")
        if column.name in OWN_COLUMNS:
            raise ConfigurationError(f"column {column.name!r}: names that begin with _factory_ are the sink's own; rename the field")
    _check_order(wanted.columns, wanted)


def _check_order(columns: Sequence[WantedColumn], wanted: WantedTable) -> None:
    types = {c.name: c.type for c in columns}
    if columns and not wanted.key:
        raise ConfigurationError("the contract names no key: publish upserts by it; add key: or id: to the contract")
    for what, name in (("time", wanted.time), ("version_field", wanted.version), *(("key", name) for name in wanted.key)):
        if name is not None and types.get(name, "json") == "json":
            why = "has no order (it is json)" if name in types else "is not among its columns"
            raise ConfigurationError(f"the contract's {what} {name!r} {why}: rows are compared by it; change its columns")
