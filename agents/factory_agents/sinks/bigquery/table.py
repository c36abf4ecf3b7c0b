"""The table that is published to: found and compared with what the contract wants, given the columns that it lacks, or created."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from factory_agents.contracts import Column, ColumnType, Contract
from factory_agents.errors import ConfigurationError, SinkError
from factory_agents.sinks.bigquery.rows import POSITION, Field

if TYPE_CHECKING:
    from google.cloud import bigquery

    from factory_agents.sinks.bigquery.warehouse import Warehouse

__all__ = [
    "MADE",
    "OWN_FIELDS",
    "Partitioning",
    "TableName",
    "TargetTable",
    "WantedTable",
    "check_memory",
    "look_at_table",
    "open_memory",
    "open_table",
    "schema_field",
    "wanted_table",
]

PartitionUnit = Literal["hour", "day", "month", "year"]

OWN_FIELDS = (
    Field("_factory_window", "TIMESTAMP"),
    Field("_factory_publication", "INT64"),
    *(Field(name, "INT64") for name in POSITION),
)
"""What a table keeps of each row: its window's start, the publication that landed it, and the record that it came from."""
MADE = "_factory_made"
"""Of a delete that is remembered, the making of the table that it speaks of."""

_TYPES = {
    "text": "STRING",
    "char": "STRING",
    "varchar": "STRING",
    "bigint": "INT64",
    "integer": "INT64",
    "smallint": "INT64",
    "double": "FLOAT64",
    "real": "FLOAT64",
    "boolean": "BOOL",
    "timestamptz": "TIMESTAMP",
    "json": "JSON",
    "numeric": "NUMERIC",
    "date": "DATE",
}
"""A contract's types as a table of ours has them."""
_LIMITS = {"NUMERIC": (29, 9), "BIGNUMERIC": (38, 38)}
"""Digits before and after the point that a column may be limited to."""
_STANDARD = {"INTEGER": "INT64", "FLOAT": "FLOAT64", "BOOLEAN": "BOOL", "RECORD": "STRUCT"}
_LEGACY = {"INT64": "INTEGER", "FLOAT64": "FLOAT", "BOOL": "BOOLEAN", "STRUCT": "RECORD"}
_NOT_COMPARED = ("JSON", "STRUCT")
_CLUSTERED = ("STRING", "INT64", "BOOL", "TIMESTAMP", "DATE", "NUMERIC", "BIGNUMERIC")
_RESERVED = ("_factory_", "_table_", "_file_", "_partition", "_row_timestamp", "__root__", "_colidentifier")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,299}")


class TableName(msgspec.Struct, frozen=True):
    """A table's name; ``project`` is "" for the credentials' own."""

    project: str
    dataset: str
    table: str

    @classmethod
    def parse(cls, text: str) -> TableName:
        """Read ``dataset.table`` or ``project.dataset.table``; raises ConfigurationError for anything else."""
        found = re.fullmatch(r"(?:([a-z0-9][a-z0-9.:-]*[a-z0-9])[.])?([A-Za-z0-9_]{1,1024})[.]([A-Za-z0-9_-]{1,1000})", text)
        if found is None:
            raise ConfigurationError(f"table {text!r}: expected dataset.table or project.dataset.table, such as analytics.events")
        return cls(found[1] or "", found[2], found[3])


class WantedTable(msgspec.Struct, frozen=True):
    """What the contract wants of a table; no ``fields`` where there is no contract: the table itself says then."""

    fields: tuple[Field, ...] = ()
    key: tuple[str, ...] = ()
    time: str | None = None
    version: str | None = None
    deletes: bool = False


class Partitioning(msgspec.Struct, frozen=True):
    """How a table of ours is laid out. ``cluster_by`` is None for the key."""

    partition_by: str = ""
    partition_unit: PartitionUnit = "day"
    cluster_by: tuple[str, ...] | None = None
    kms_key: str = ""


class TargetTable(msgspec.Struct, frozen=True):
    """The table as it is: the fields that are written with the types they have. ``made`` tells one making of it from another."""

    name: str
    text: str
    fields: tuple[Field, ...]
    key: tuple[str, ...]
    time: str | None
    version: str | None
    made: int
    notes: tuple[str, ...] = ()
    deletes: bool = False

    def field(self, name: str) -> Field:
        """One of its fields."""
        return next(f for f in self.fields if f.name == name)


def wanted_table(contract: Contract) -> WantedTable:
    """The contract's columns as a table; where the event time is a number it is read in the contract's unit.

    Raises ConfigurationError for a contract that no table could hold or be kept newest by.
    """
    unit = contract.time_unit if contract.time_unit != "iso" else ""
    fields = tuple(_wanted_field(c, contract.key, unit if c.name == contract.time else "") for c in contract.columns())
    wanted = WantedTable(fields, contract.key, contract.time, contract.version_field, contract.deletes)
    _check_wanted(wanted, contract.source)
    return wanted


def _wanted_field(column: Column, key: Sequence[str], unit: str) -> Field:
    type_ = ColumnType.parse(column.type)
    if type_ is None or type_.name not in _TYPES:
        raise ConfigurationError(
            f"column {column.name!r}: publish to BigQuery doesn't write {column.type}, it writes {', '.join(_TYPES)}; change its columns"
        )
    name, digits = _TYPES[type_.name], None
    if type_.name == "numeric" and type_.arguments:
        precision, scale = (*type_.arguments, 0)[:2]
        name, digits = (
            next((n for n, (whole, after) in _LIMITS.items() if precision - scale <= whole and scale <= after), ""),
            (precision, scale),
        )
        if not name:
            raise ConfigurationError(
                f"column {column.name!r}: BigQuery has no room for {column.type}: BIGNUMERIC holds 38 digits on each side"
            )
    length = type_.arguments[0] if name == "STRING" and type_.arguments else 1 if type_.name == "char" else None
    required = (not column.nullable or column.name in key) and not type_.array
    return Field(column.name, name, type_.array, required, max_length=length, digits=digits, unit=unit)


def _check_wanted(wanted: WantedTable, source: str) -> None:
    if not wanted.fields:
        raise ConfigurationError(f"contract {source}: it declares no fields, so it gives a table no columns; add a schema or columns")
    if not wanted.key:
        raise ConfigurationError("the contract names no key: publish upserts by it; add key: or id: to the contract")
    seen: dict[str, str] = {}
    for field in wanted.fields:
        if not _NAME.fullmatch(field.name):
            raise ConfigurationError(
                f"column {field.name!r}: BigQuery takes names of letters, digits and _, up to 300, that don't begin with a digit"
            )
        if field.name.lower().startswith(_RESERVED):
            raise ConfigurationError(f"column {field.name!r}: names that begin so are BigQuery's or the sink's own; rename the field")
        other = seen.setdefault(field.name.lower(), field.name)
        if other != field.name:
            raise ConfigurationError(f"columns {other!r} and {field.name!r}: BigQuery's names don't differ by case alone; rename one")
    _check_order({f.name: f for f in wanted.fields}, wanted)


def _check_order(fields: Mapping[str, Field], wanted: WantedTable) -> None:
    for what, name in (("time", wanted.time), ("version_field", wanted.version), *(("key", name) for name in wanted.key)):
        field = fields.get(name) if name is not None else None
        if name is not None and (field is None or field.repeated or field.type in _NOT_COMPARED):
            why = f"has no order (it is {field.sql})" if field is not None else "is not among its columns"
            raise ConfigurationError(f"the contract's {what} {name!r} {why}: rows are compared by it; change its columns")


def open_table(
    warehouse: Warehouse, name: str, wanted: WantedTable, layout: Partitioning, *, create: bool, add_columns: bool
) -> TargetTable:
    """Find or create the table, compare it with what is wanted, and add the nullable columns that it lacks.

    Raises SinkError listing every column that doesn't fit, ConfigurationError where there is no such table and none may be made.
    """
    target, missing = look_at_table(warehouse, name, wanted, layout, create=create, add_columns=add_columns)
    if not target.made:
        warehouse.create(_definition(warehouse.name(name), wanted, layout))
        target, missing = look_at_table(warehouse, name, wanted, layout, create=False, add_columns=add_columns)
    if missing:
        clauses = ", ".join(f"ADD COLUMN IF NOT EXISTS `{f.name}` {f.limited}" for f in missing)
        warehouse.rows(f"ALTER TABLE `{target.text}` {clauses}")
        target, _ = look_at_table(warehouse, name, wanted, layout, create=False, add_columns=True)
    return target


def look_at_table(
    warehouse: Warehouse, name: str, wanted: WantedTable, layout: Partitioning, *, create: bool, add_columns: bool
) -> tuple[TargetTable, list[Field]]:
    """The table as ``open_table`` would have it (``made`` is 0 for one that it would create), and what columns it would add; errors too."""
    text = warehouse.name(name)
    found = warehouse.table(name)
    if found is None:
        if not wanted.fields:
            raise ConfigurationError(f"table {text} does not exist: create it, or give a contract so that it can be created")
        if not create:
            raise ConfigurationError(f"table {text} does not exist, and create_table is off: create it, or switch that on")
        _definition(text, wanted, layout)
        return TargetTable(name, text, wanted.fields, wanted.key, wanted.time, wanted.version, 0, deletes=wanted.deletes), []
    if found.table_type != "TABLE":
        raise SinkError(f"{text}: expected a table, found a {found.table_type.lower().replace('_', ' ')}; give another name")
    missing, target = _fit(found, wanted, text)
    if missing and not add_columns:
        names = ", ".join(f"{f.name} {f.sql}" for f in missing)
        raise SinkError(f"table {text}: it lacks {names}, and add_columns is off: add them, or switch that on")
    return target, missing


def _definition(name: str, wanted: WantedTable, layout: Partitioning) -> bigquery.Table:
    from google.cloud import bigquery
    from google.cloud.bigquery.table import PrimaryKey, TableConstraints

    table = bigquery.Table(name, schema=[schema_field(f) for f in (*wanted.fields, *OWN_FIELDS)])
    fields = {f.name: f for f in wanted.fields}
    table.table_constraints = TableConstraints(primary_key=PrimaryKey(columns=list(wanted.key)), foreign_keys=None)
    if layout.partition_by:
        field = fields.get(layout.partition_by)
        if field is None or field.type not in ("TIMESTAMP", "DATE"):
            raise ConfigurationError(f"partition_by {layout.partition_by!r}: expected a timestamptz or date among the contract's columns")
        table.time_partitioning = bigquery.TimePartitioning(type_=layout.partition_unit.upper(), field=layout.partition_by)
    clustered = layout.cluster_by if layout.cluster_by is not None else [k for k in wanted.key if fields[k].type in _CLUSTERED][:4]
    unknown = [c for c in clustered if c not in fields or fields[c].type not in _CLUSTERED]
    if unknown or len(clustered) > 4:
        raise ConfigurationError(
            f"cluster_by {', '.join(clustered)}: expected up to 4 columns of the contract that are neither json nor double"
        )
    if clustered:
        table.clustering_fields = list(clustered)
    if layout.kms_key:
        table.encryption_configuration = bigquery.EncryptionConfiguration(kms_key_name=layout.kms_key)
    return table


def open_memory(warehouse: Warehouse, name: str, table: TargetTable, kms_key: str) -> None:
    """Find or create the table that remembers the deletes of another; raises as ``check_memory`` does."""
    from google.cloud import bigquery

    key = tuple(table.field(name) for name in table.key)
    if warehouse.table(name) is None:
        memory = bigquery.Table(warehouse.name(name), schema=[schema_field(f) for f in _remembered(table)])
        memory.description = f"What was deleted from {table.text}"
        if clustered := [f.name for f in key if f.type in _CLUSTERED][:4]:
            memory.clustering_fields = clustered
        if kms_key:
            memory.encryption_configuration = bigquery.EncryptionConfiguration(kms_key_name=kms_key)
        warehouse.create(memory)
    check_memory(warehouse, name, table)


def _remembered(table: TargetTable) -> tuple[Field, ...]:
    return (*(table.field(name) for name in table.key), *OWN_FIELDS, Field(MADE, "INT64"))


def check_memory(warehouse: Warehouse, name: str, table: TargetTable) -> None:
    """Raise SinkError where the table that remembers deletes does so by another key."""
    found = warehouse.table(name)
    have = {f.name.lower(): f.sql for f in map(_field, found.schema)} if found is not None else {}
    lacking = [f"{f.name} {f.sql}" for f in _remembered(table) if have.get(f.name.lower()) != f.sql]
    if lacking:
        raise SinkError(
            f"table {warehouse.name(name)}, which remembers deletes, lacks {', '.join(lacking)}: give the key that it was made with, or"
            " drop it, which forgets them"
        )


def schema_field(field: Field) -> bigquery.SchemaField:
    """A field as the API takes it."""
    from google.cloud import bigquery

    limits: dict[str, Any] = {} if field.max_length is None else {"max_length": field.max_length}
    if field.digits is not None:
        limits |= zip(("precision", "scale"), field.digits, strict=True)
    return bigquery.SchemaField(
        field.name,
        _LEGACY.get(field.type, field.type),
        "REPEATED" if field.repeated else "REQUIRED" if field.required else "NULLABLE",
        fields=[schema_field(f) for f in field.fields],
        **limits,
    )


def _field(found: bigquery.SchemaField) -> Field:
    """A field as the API has it."""
    type_ = str(found.field_type).upper()
    digits = None
    if found.precision is not None:
        digits = (int(found.precision), int(found.scale or 0))
    return Field(
        name=found.name,
        type=_STANDARD.get(type_, type_),
        repeated=found.mode == "REPEATED",
        required=found.mode == "REQUIRED",
        fields=tuple(map(_field, found.fields)),
        max_length=int(found.max_length) if found.max_length is not None else None,
        digits=digits,
    )


def _fit(found: bigquery.Table, wanted: WantedTable, text: str) -> tuple[list[Field], TargetTable]:
    """What columns the table lacks, and the table as it will be with them; raises SinkError naming each that doesn't fit."""
    have = {f.name.lower(): f for f in map(_field, found.schema)}
    defaults = {f.name.lower() for f in found.schema if f.default_value_expression}
    constraints = found.table_constraints
    primary = constraints.primary_key.columns if constraints is not None and constraints.primary_key is not None else []
    key = wanted.key or tuple(primary)
    fields, notes = (wanted.fields, []) if wanted.fields else _inferred(have.values(), defaults, key, text)
    misfits = [m for f in fields if (m := _misfit(f, have.get(f.name.lower()), f.name in key))]
    misfits += [m for f in OWN_FIELDS if (m := _misfit(f, have.get(f.name, f), False))]
    written = {f.name.lower() for f in fields}
    misfits += [
        f"column {f.name!r}: REQUIRED without a default, and no event has it"
        for lower, f in have.items()
        if f.required and lower not in written and lower not in defaults
    ]
    if not key:
        misfits.append("no primary key to upsert by, and no contract that names one; give a contract")
    if misfits:
        raise SinkError(f"table {text} does not fit:\n  " + "\n  ".join(misfits))
    missing = [f for f in (*fields, *OWN_FIELDS) if f.name.lower() not in have]
    target = TargetTable(
        name=found.table_id,
        text=text,
        fields=tuple(_written(f, have.get(f.name.lower(), f), f.name in key) for f in fields),
        key=key,
        time=wanted.time,
        version=wanted.version,
        made=round(found.created.timestamp() * 1000) if found.created is not None else 0,
        notes=tuple(notes),
        deletes=wanted.deletes,
    )
    return missing, target


def _inferred(have: Any, defaults: set[str], key: Sequence[str], text: str) -> tuple[tuple[Field, ...], list[str]]:
    """A table's own columns as those wanted; those of types not written here, or that BigQuery fills in, are left out with a note."""
    own = {f.name for f in OWN_FIELDS}
    fields, left_out = [], []
    for field in have:
        if field.name in own:
            continue
        if not _is_written(field) or (field.name.lower() in defaults and field.name not in key):
            left_out.append(f"{field.name} ({field.sql})")
        else:
            fields.append(field)
    notes = [f"{text}: without a contract these columns are not written: {', '.join(left_out)}"] if left_out else []
    return tuple(fields), notes


def _is_written(field: Field) -> bool:
    return all(map(_is_written, field.fields)) if field.type == "STRUCT" else field.type in {*_TYPES.values(), "BIGNUMERIC"}


def _misfit(wanted: Field, found: Field | None, key: bool) -> str:
    """Why a column cannot take what the contract gives, or "" (also for one that can be added)."""
    if found is None:
        return f"column {wanted.name!r}: expected {wanted.sql} and never null, found no such column; add it" if wanted.required else ""
    fits = found.type == wanted.type and found.repeated == wanted.repeated
    if wanted.type == "NUMERIC":
        fits = found.type in ("NUMERIC", "BIGNUMERIC") and found.repeated == wanted.repeated
    if wanted.type == "JSON" and not wanted.repeated:  # the table's own structure says more than the contract does
        fits = (found.repeated or found.type in _NOT_COMPARED) and _is_written(found)
    if not fits:
        return f"column {wanted.name!r}: expected {wanted.sql}, found {found.sql}"
    if key and (found.repeated or found.type in _NOT_COMPARED):
        return f"column {wanted.name!r}: expected a key that can be compared, found {found.sql}"
    return ""


def _written(wanted: Field, found: Field, key: bool) -> Field:
    """A column of the table, with what the contract knows of its values."""
    required = (wanted.required or found.required or key) and not found.repeated
    return msgspec.structs.replace(found, required=required, unit=wanted.unit)
