"""The table that is published to: created, or compared with what the contract wants and given what it lacks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents.contracts import ColumnSpec, ColumnType, TableSpec
from factory_agents.errors import ConfigurationError, SinkError
from factory_agents.runtime.ledger_sink import RANK

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.partitioning import PartitionField, PartitionSpec
    from pyiceberg.schema import Schema
    from pyiceberg.table import Table
    from pyiceberg.types import IcebergType

__all__ = ["PUBLICATION", "Layout", "open_table", "table_name"]

PUBLICATION = "_factory_publication"
_OWN = {RANK: "binary", PUBLICATION: "long"}
"""What a table keeps of each row: what it is compared by, and the publication that landed it."""
_NUMERIC = (38, 9)
"""Digits of a ``numeric`` that says nothing of them."""
_NAMED = {"integer": "int", "smallint": "int", "bigint": "long", "double": "double", "real": "float", "boolean": "boolean", "date": "date"}
_NAMED |= {"time": "time", "timestamptz": "timestamptz", "timestamp": "timestamp", "bytea": "binary"}
_NAMED |= dict.fromkeys(("text", "varchar", "char", "json", "uuid", "inet", "interval"), "string")
_PARTITION = re.compile(r"(\w+)\((?:(\d+),\s*)?(.+)\)")
_BY_TIME = {"year", "month", "day", "hour"}
_NOT_WRITTEN = {("truncate", "binary"), ("bucket", "time")}
"""Transforms that Iceberg has, and pyiceberg can't apply."""
_PROPERTIES = {
    "format-version": "2",
    f"write.metadata.metrics.column.{RANK}": "none",
    # Each commit writes the ledger with the metadata: of old ones a few are enough.
    "write.metadata.previous-versions-max": "20",
    "write.metadata.delete-after-commit.enabled": "true",
    # Columns of which every value is another give up their dictionary sooner: parts are written in three quarters of the time, and smaller.
    "write.parquet.dict-size-bytes": "262144",
}


class Layout(msgspec.Struct, frozen=True):
    """How a new table is laid out: partition transforms (``day(at)``, ``bucket(16, id)``, ``country``), properties, and where it lies."""

    partition_by: tuple[str, ...] = ()
    properties: Mapping[str, str] = {}
    location: str = ""


def table_name(text: str) -> tuple[str, ...]:
    """Read ``namespace.table``, with any number of namespaces; raises ConfigurationError for anything else."""
    parts = tuple(text.split("."))
    if len(parts) < 2 or not all(parts):
        raise ConfigurationError(f"table {text!r}: expected namespace.table, such as analytics.events")
    return parts


def open_table(
    catalog: Catalog, name: tuple[str, ...], wanted: TableSpec, layout: Layout, *, create: bool, evolve: bool
) -> tuple[Table, TableSpec]:
    """Find or create the table, add the nullable columns that it lacks, widen those that are too narrow; and what rows it takes then.

    Raises SinkError listing every column that doesn't fit, ConfigurationError where there is no such table and none may be made.
    """
    table, changes, spec = look_at_table(catalog, name, wanted, layout, create=create, evolve=evolve)
    if table is None:
        _create(catalog, name, wanted, layout)
        table, changes, spec = look_at_table(catalog, name, wanted, layout, create=False, evolve=evolve)
    if table is None:
        raise SinkError(f"table {'.'.join(name)} was dropped while it was opened; retry")
    if changes:
        table = _evolve(table, changes)
        spec = _within(table.schema(), wanted)
    return table, spec


def look_at_table(
    catalog: Catalog, name: tuple[str, ...], wanted: TableSpec, layout: Layout, *, create: bool, evolve: bool
) -> tuple[Table | None, dict[str, str], TableSpec]:
    """The table (None for one that ``open_table`` would create), the columns that it would change, and what rows it takes; errors too."""
    from pyiceberg.exceptions import NoSuchTableError

    try:
        table = catalog.load_table(name)
    except NoSuchTableError:
        if not create:
            raise ConfigurationError(
                f"table {'.'.join(name)} does not exist, and create_table is off: create it, or switch that on"
            ) from None
        _partitioned(wanted, layout)
        return None, {}, wanted
    changes = _changes(table, wanted)
    if changes and not evolve:
        lacking = ", ".join(f"{column} {type_}" for column, type_ in changes.items())
        raise SinkError(f"table {'.'.join(name)}: it lacks {lacking}, and evolve is off: change it, or switch that on")
    return table, changes, _within(table.schema(), wanted) if not changes else wanted


def _partitioned(wanted: TableSpec, layout: Layout) -> tuple[Schema, PartitionSpec]:
    """A new table's columns and partitions; raises ConfigurationError for what Iceberg doesn't have."""
    from pyiceberg.partitioning import PartitionSpec

    schema = _schema(wanted)
    return schema, PartitionSpec(*(_partition(text, schema, 1000 + i) for i, text in enumerate(layout.partition_by)))


def _create(catalog: Catalog, name: tuple[str, ...], wanted: TableSpec, layout: Layout) -> Table:
    from pyiceberg.exceptions import NoSuchNamespaceError, TableAlreadyExistsError

    schema, spec = _partitioned(wanted, layout)
    properties = {**_PROPERTIES, **layout.properties}

    def create() -> Table:
        return catalog.create_table(name, schema, location=layout.location or None, partition_spec=spec, properties=properties)

    try:
        return create()
    except TableAlreadyExistsError:  # somebody else was faster
        return catalog.load_table(name)
    except NoSuchNamespaceError:
        catalog.create_namespace_if_not_exists(name[:-1])
        return create()


def _schema(wanted: TableSpec) -> Schema:
    from pyiceberg.schema import Schema
    from pyiceberg.types import NestedField

    fields, many = [], len(wanted.columns) + len(_OWN)
    names: dict[str, str] = {}
    for column in wanted.columns:
        other = names.setdefault(column.name.lower(), column.name)
        if other != column.name:
            raise ConfigurationError(f"columns {other!r} and {column.name!r}: most readers of Iceberg don't tell them apart; rename one")
    for place, column in enumerate(wanted.columns, 1):
        _check(column, wanted)
        fields.append(NestedField(place, column.name, _type(_shown(column.type), many + place), required=not _may_be_null(column, wanted)))
    fields += [NestedField(len(fields) + i, name, _type(type_), required=False) for i, (name, type_) in enumerate(_OWN.items(), 1)]
    return Schema(*fields)


def _may_be_null(column: ColumnSpec, wanted: TableSpec) -> bool:
    return column.name not in wanted.key and column.nullable


def _check(column: ColumnSpec, wanted: TableSpec) -> None:
    if column.name in _OWN:
        raise ConfigurationError(f"column {column.name!r}: this name is the sink's own; rename the field")
    if column.type.array and column.name in wanted.key:
        raise ConfigurationError(f"column {column.name!r}: a list is no key in Iceberg; change the contract's key")
    if column.type.name == "numeric" and column.type.arguments:
        precision, scale = (*column.type.arguments, 0)[:2]
        if precision > 38 or scale > precision:
            raise ConfigurationError(f"column {column.name!r}: Iceberg has no room for {column.type.text}: decimal holds 38 digits")


def _shown(type_: ColumnType) -> str:
    """The type of Iceberg that a column is created with, as its schemas write it."""
    if type_.name == "numeric":
        precision, scale = (*type_.arguments, 0)[:2] if type_.arguments else _NUMERIC
        shown = f"decimal({precision}, {scale})"
    else:
        shown = _NAMED[type_.name]
    return f"list<{shown}>" if type_.array else shown


def _type(shown: str, element: int = -1) -> IcebergType:
    """A type from its text; ``element`` is the id of a list's elements, where the schema doesn't number them itself."""
    from pyiceberg.types import ListType, NestedField

    if shown.startswith("list<"):
        return ListType(element, _type(shown[5:-1]), element_required=False)
    found: IcebergType = NestedField.model_validate({"id": 1, "name": "x", "type": shown.replace(" ", ""), "required": False}).field_type
    return found


def _partition(text: str, schema: Schema, number: int) -> PartitionField:
    """One partition transform; raises ConfigurationError for what is none, or of no column."""
    from pyiceberg.partitioning import PartitionField
    from pyiceberg.transforms import parse_transform

    found = _PARTITION.fullmatch(text)
    transform, width, column = found.groups() if found else ("identity", None, text)
    fits = width is not None if transform in ("bucket", "truncate") else width is None and transform in {"identity", *_BY_TIME}
    names = [field.name for field in schema.fields]
    if not fits or column not in names:
        raise ConfigurationError(
            f"partition_by {text!r}: expected a column ({', '.join(names[:-2])}), or year, month, day, hour, bucket(16, …) or"
            " truncate(4, …) of one"
        )
    source = schema.find_field(column)
    made = parse_transform(f"{transform}[{width}]" if width else transform)
    if not made.can_transform(source.field_type) or (transform, str(source.field_type)) in _NOT_WRITTEN:
        raise ConfigurationError(f"partition_by {text!r}: column {column!r} is {source.field_type}, which it doesn't take")
    name = column if transform == "identity" else f"{column}_{transform}"
    return PartitionField(source_id=source.field_id, field_id=number, transform=made, name=name)


def _changes(table: Table, wanted: TableSpec) -> dict[str, str]:
    """Columns that the table lacks or holds too narrowly, with the types that they need; raises SinkError naming each that can't fit."""
    have = {field.name: field for field in table.schema().fields}
    spelled = {name.lower(): name for name in have}
    changes, misfits = {}, []
    for column in wanted.columns:
        _check(column, wanted)
        field, shown = have.get(column.name), _shown(column.type)
        if field is None:
            misfit = _misses(column, spelled.setdefault(column.name.lower(), column.name), wanted)
            if misfit:
                misfits.append(misfit)
            else:
                changes[column.name] = shown
        elif not _fits(column.type, str(field.field_type)):
            if _widens(str(field.field_type), shown):
                changes[column.name] = shown
            else:
                misfits.append(f"column {column.name!r}: expected {shown}, found {field.field_type}")
    for own, type_ in _OWN.items():
        if own not in have:
            changes[own] = type_
        elif str(have[own].field_type) != type_:
            misfits.append(f"column {own!r}: expected {type_}, found {have[own].field_type}")
    written = {column.name for column in wanted.columns}
    misfits += [f"column {name!r}: required, and no event has it" for name, field in have.items() if field.required and name not in written]
    if misfits:
        raise SinkError(f"table {'.'.join(table.name())} does not fit:\n  " + "\n  ".join(misfits))
    return changes


def _misses(column: ColumnSpec, other: str, wanted: TableSpec) -> str:
    """Why a table cannot be given a column that it lacks, or ""; ``other`` is one that it has, or gets, if it differs by case alone."""
    if other != column.name:
        return f"column {column.name!r}: found {other!r}, which most readers of Iceberg don't tell from it; rename the field"
    if _may_be_null(column, wanted):
        return ""
    return f"column {column.name!r}: expected {_shown(column.type)} and never null, found no such column; add it"


_DECIMAL = re.compile(r"decimal\((\d+), (\d+)\)")


def _fits(type_: ColumnType, found: str) -> bool:
    """Whether a column takes every value of a contract's type that the reader lets pass."""
    wanted = _shown(type_)
    if type_.name == "numeric" and not type_.array and _DECIMAL.fullmatch(found):
        return not type_.arguments or not _widens(found, wanted)  # the reader goes by the digits that both hold
    return found == wanted or (wanted, found) in (("int", "long"), ("float", "double"))


def _widens(found: str, wanted: str) -> bool:
    """Whether Iceberg lets a column become the wider type."""
    if (found, wanted) in (("int", "long"), ("float", "double")):
        return True
    of, to = _DECIMAL.fullmatch(found), _DECIMAL.fullmatch(wanted)
    return of is not None and to is not None and of[2] == to[2] and int(of[1]) < int(to[1])


def _evolve(table: Table, changes: Mapping[str, str]) -> Table:
    """Add and widen; two at once may both try, and the second finds it done."""
    from pyiceberg.exceptions import CommitFailedException

    for tries_left in reversed(range(5)):
        have = {field.name: str(field.field_type) for field in table.schema().fields}
        try:
            with table.update_schema() as update:
                for name, type_ in changes.items():
                    if name not in have:
                        update.add_column((name,), _type(type_))
                    elif have[name] != type_ and _widens(have[name], type_):
                        update.update_column((name,), field_type=_type(type_))
        except CommitFailedException:
            if not tries_left:
                raise
        table = table.refresh()
        if tries_left and _lacks(table, changes):
            continue
        break
    return table


def _lacks(table: Table, changes: Mapping[str, str]) -> bool:
    return not changes.keys() <= {field.name for field in table.schema().fields}


def _within(schema: Schema, wanted: TableSpec) -> TableSpec:
    """What the reader lets pass: what the contract and the table both hold."""
    columns: list[ColumnSpec] = []
    for column in wanted.columns:
        field: Any = schema.find_field(column.name)
        type_ = column.type
        if found := _DECIMAL.fullmatch(str(field.field_type)):
            precision, scale = int(found[1]), int(found[2])
            own = (*type_.arguments, 0)[:2] if type_.arguments else (precision, scale)
            scale = min(scale, own[1])
            type_ = ColumnType("numeric", (min(precision - int(found[2]), own[0] - own[1]) + scale, scale))
        elif type_.name == "numeric" and type_.array:
            type_ = msgspec.structs.replace(type_, arguments=type_.arguments or _NUMERIC)
        columns.append(msgspec.structs.replace(column, type=type_, nullable=column.nullable and not field.required))
    return msgspec.structs.replace(wanted, columns=tuple(columns))
