"""The table that is published to: compared with what the contract wants, given the columns that it lacks, or created."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import msgspec

from factory_agents.contracts import ColumnSpec, ColumnType, TableSpec
from factory_agents.errors import ConfigurationError, SinkError
from factory_agents.sinks.snowflake.names import column_name, listed, quoted
from factory_agents.sinks.snowflake.session import NotFoundError, Session

__all__ = ["PUBLICATION", "RANK", "Found", "TargetTable", "create_table", "find_table", "fit", "look_at_table", "open_table"]

RANK, PUBLICATION = "_FACTORY_RANK", "_FACTORY_PUBLICATION"
_OWN = {RANK: "BINARY", PUBLICATION: "NUMBER(38,0)"}
"""What a table keeps of each row: what it is compared by, and the publication that landed it."""
_LONGEST_TEXT = 16_777_216
_INTEGERS = {"bigint": 19, "integer": 10, "smallint": 5}
"""Whole numbers of a contract, and the digits that a column of them needs."""
_NUMERIC = (38, 9)
"""Digits of a ``numeric`` that says nothing of them."""
_MICROSECONDS = 6
_TYPES = {
    "double": "FLOAT",
    "real": "FLOAT",
    "boolean": "BOOLEAN",
    "timestamptz": "TIMESTAMP_TZ(9)",
    "timestamp": "TIMESTAMP_NTZ(9)",
    "date": "DATE",
    "json": "VARIANT",
}
_WRITTEN = ("text", "varchar", "char", *_INTEGERS, "numeric", *_TYPES)
_TYPE = re.compile(r"([A-Z_]+)(?:\((\d+)(?:,\s*(\d+))?\))?")


class Found(msgspec.Struct, frozen=True):
    """A column as the table has it."""

    name: str
    type: str
    nullable: bool = True
    filled: bool = False
    """Whether Snowflake gives it a value by itself."""
    computed: bool = False
    """Whether nothing can be written to it."""


class TargetTable(msgspec.Struct, frozen=True):
    """The table as it will be: ``spec`` are the contract's columns with what the table says of their types, ``names`` their names in it."""

    name: str
    spec: TableSpec
    names: tuple[str, ...]
    made: str
    """What tells one making of the table from another."""

    @property
    def key(self) -> tuple[str, ...]:
        """The key's columns, as the table calls them."""
        return tuple(name for name, column in zip(self.names, self.spec.columns, strict=True) if column.name in self.spec.key)


def open_table(
    session: Session, name: str, wanted: TableSpec, *, cluster_by: Sequence[str], create: bool, add_columns: bool
) -> TargetTable:
    """Find or create the table, compare it with what is wanted, and add the nullable columns that it lacks.

    Raises SinkError listing every column that doesn't fit, ConfigurationError where there is no such table and none may be made.
    """
    target, missing = look_at_table(session, name, wanted, cluster_by=cluster_by, create=create, add_columns=add_columns)
    if not target.made:
        session.run(create_table(name, wanted, cluster_by))
        target, missing = look_at_table(session, name, wanted, cluster_by=cluster_by, create=False, add_columns=add_columns)
    for column, type_ in missing.items():
        session.run(f"ALTER TABLE {quoted(name)} ADD COLUMN IF NOT EXISTS {quoted(column)} {type_}")
    if missing:
        target, _ = look_at_table(session, name, wanted, cluster_by=cluster_by, create=False, add_columns=True)
    return target


def look_at_table(
    session: Session, name: str, wanted: TableSpec, *, cluster_by: Sequence[str], create: bool, add_columns: bool
) -> tuple[TargetTable, dict[str, str]]:
    """The table as ``open_table`` would have it (``made`` is "" for one that it would create), and what columns it would add."""
    columns = find_table(session, name)
    if columns is None:
        if not create:
            raise ConfigurationError(f"table {name} does not exist, and create_table is off: create it, or switch that on")
        create_table(name, wanted, cluster_by)
        return TargetTable(name, wanted, tuple(column_name(c.name) for c in wanted.columns), ""), {}
    made = _made(session, name)
    missing, target = fit(name, columns, wanted)
    if missing and not add_columns:
        lacking = ", ".join(f"{column} {type_}" for column, type_ in missing.items())
        raise SinkError(f"table {name}: it lacks {lacking}, and add_columns is off: add them, or switch that on")
    return msgspec.structs.replace(target, made=made), missing


def find_table(session: Session, name: str) -> list[Found] | None:
    """The table's columns, or None where there is no such table."""
    try:
        rows = session.rows(f"DESCRIBE TABLE {quoted(name)}")
    except NotFoundError:
        return None
    return [Found(row[0], str(row[1]).upper(), row[3] == "Y", row[4] is not None, row[2] != "COLUMN") for row in rows]


def _made(session: Session, name: str) -> str:
    """When the table was created; raises SinkError for what is no table, such as a view."""
    found = session.rows(
        "SELECT CAST(CREATED AS VARCHAR), TABLE_TYPE FROM INFORMATION_SCHEMA.TABLES"
        " WHERE TABLE_SCHEMA = CURRENT_SCHEMA() AND TABLE_NAME = ?",
        name,
    )
    if not found or found[0][1] != "BASE TABLE":
        kind = str(found[0][1]).lower() if found else "no table"
        raise SinkError(f"{name}: expected a table, found {kind}; give another name")
    return str(found[0][0])


def create_table(name: str, wanted: TableSpec, cluster_by: Sequence[str]) -> str:
    """The statement that creates the table, unless it is there. Its key is declared; Snowflake doesn't enforce one."""
    _check_names(wanted)
    names = {column.name: column_name(column.name) for column in wanted.columns}
    columns = [f"{quoted(names[c.name])} {_created(c)}{'' if _may_be_null(c, wanted) else ' NOT NULL'}" for c in wanted.columns]
    columns += [f"{quoted(column)} {type_}" for column, type_ in _OWN.items()]
    columns.append(f"PRIMARY KEY ({listed(names[key] for key in wanted.key)})")
    unknown = [column for column in cluster_by if column not in names]
    if unknown:
        raise ConfigurationError(f"cluster_by {', '.join(unknown)}: expected columns of the contract: {', '.join(names)}")
    clustered = f" CLUSTER BY ({listed(names[column] for column in cluster_by)})" if cluster_by else ""
    return f"CREATE TABLE IF NOT EXISTS {quoted(name)} ({', '.join(columns)}){clustered}"


def _may_be_null(column: ColumnSpec, wanted: TableSpec) -> bool:
    return column.nullable and column.name not in wanted.key


def _check_names(wanted: TableSpec) -> None:
    seen: dict[str, str] = {}
    for column in wanted.columns:
        if column_name(column.name) in _OWN:
            raise ConfigurationError(f"column {column.name!r}: this name is the sink's own; rename the field")
        other = seen.setdefault(column_name(column.name), column.name)
        if other != column.name:
            raise ConfigurationError(f"columns {other!r} and {column.name!r} would both be {column_name(column.name)}; rename one")


def _created(column: ColumnSpec) -> str:
    """The type that a column of ours is created with; raises ConfigurationError for a contract's type that isn't written."""
    type_ = column.type
    if type_.array or type_.name not in _WRITTEN:
        raise ConfigurationError(
            f"column {column.name!r}: publish to Snowflake doesn't write {type_.text}, it writes {', '.join(_WRITTEN)}; change its columns"
        )
    if type_.name in ("text", "varchar", "char"):
        length = type_.arguments[0] if type_.arguments else 1 if type_.name == "char" else _LONGEST_TEXT
        return f"VARCHAR({min(length, _LONGEST_TEXT)})"
    if type_.name in _INTEGERS:
        return "NUMBER(38,0)"
    if type_.name == "numeric":
        precision, scale = (*type_.arguments, 0)[:2] if type_.arguments else _NUMERIC
        if precision > 38 or scale > min(precision, 37):
            raise ConfigurationError(f"column {column.name!r}: Snowflake has no room for {type_.text}: NUMBER holds 38 digits")
        return f"NUMBER({precision},{scale})"
    return _TYPES[type_.name]


def fit(name: str, columns: Sequence[Found], wanted: TableSpec) -> tuple[dict[str, str], TargetTable]:
    """What columns the table lacks, with their types, and the table as it will be; raises SinkError naming each that doesn't fit."""
    _check_names(wanted)
    have = _by_field(columns, wanted)
    specs, missing, misfits = [], {}, []
    for column in wanted.columns:
        created, found = _created(column), have.get(column.name)
        if found is None and _may_be_null(column, wanted):
            missing[column_name(column.name)] = created
            found = Found(column_name(column.name), created)
        misfit = _misfit(column, found, created)
        if misfit or found is None:
            misfits.append(misfit)
            continue
        specs.append(_spec(column, found))
    for own, type_ in _OWN.items():
        found = next((each for each in columns if each.name == own), None)
        if found is None:
            missing[own] = type_
        elif _parsed(found.type)[0] != _parsed(type_)[0]:
            misfits.append(f"column {own!r}: expected {type_}, found {found.type}")
    written = {found.name for found in have.values()} | _OWN.keys()
    misfits += [
        f"column {each.name!r}: NOT NULL without a default, and no event has it"
        for each in columns
        if not (each.nullable or each.filled or each.computed or each.name in written)
    ]
    if misfits:
        raise SinkError(f"table {name} does not fit:\n  " + "\n  ".join(misfits))
    names = tuple(have[c.name].name if c.name in have else column_name(c.name) for c in wanted.columns)
    return missing, TargetTable(name, msgspec.structs.replace(wanted, columns=tuple(specs)), names, "")


def _by_field(columns: Sequence[Found], wanted: TableSpec) -> Mapping[str, Found]:
    """The column of each field: the one with its very name, else the one that SQL finds by it."""
    by_name = {each.name: each for each in columns}
    found = {c.name: by_name.get(c.name) or by_name.get(column_name(c.name)) for c in wanted.columns}
    return {field: each for field, each in found.items() if each is not None}


def _misfit(column: ColumnSpec, found: Found | None, created: str) -> str:
    """Why a column cannot take what the contract gives, or ""."""
    if found is None:
        return f"column {column.name!r}: expected {created} and never null, found no such column; add it"
    if found.computed or not _FITS[_kind(column.type)](column.type, *_parsed(found.type)):
        return f"column {column.name!r}: expected {created}, found {found.type}{' that is computed' if found.computed else ''}"
    return ""


def _kind(type_: ColumnType) -> str:
    if type_.name in ("text", "varchar", "char"):
        return "text"
    return "integer" if type_.name in _INTEGERS else "double" if type_.name == "real" else type_.name


def _parsed(type_: str) -> tuple[str, tuple[int, ...]]:
    """A type's name and arguments; what isn't understood keeps its whole text, and fits nothing."""
    found = _TYPE.fullmatch(type_)
    return (found[1], tuple(int(a) for a in found.group(2, 3) if a is not None)) if found else (type_, ())


def _fits_moment(*names: str) -> Callable[[ColumnType, str, tuple[int, ...]], bool]:
    return lambda _, name, digits: name in names and (not digits or digits[0] >= _MICROSECONDS)


_FITS: Mapping[str, Callable[[ColumnType, str, tuple[int, ...]], bool]] = {
    "text": lambda _, name, __: name in ("VARCHAR", "TEXT", "STRING"),
    "integer": lambda type_, name, digits: name == "NUMBER" and digits[1:] == (0,) and digits[0] >= _INTEGERS[type_.name],
    "numeric": lambda _, name, digits: name == "NUMBER" and len(digits) == 2,
    "double": lambda _, name, __: name in ("FLOAT", "DOUBLE", "REAL"),
    "boolean": lambda _, name, __: name == "BOOLEAN",
    "date": lambda _, name, __: name == "DATE",
    "json": lambda _, name, __: name == "VARIANT",
    "timestamptz": _fits_moment("TIMESTAMP_TZ", "TIMESTAMP_LTZ"),
    "timestamp": _fits_moment("TIMESTAMP_NTZ"),
}
"""Whether a column of a type, with its arguments, takes every value of a contract's type that the reader lets pass."""


def _spec(column: ColumnSpec, found: Found) -> ColumnSpec:
    """What the reader lets pass: what the contract and the column both hold."""
    type_, (_, limits) = column.type, _parsed(found.type)
    if _kind(type_) == "text" and limits:
        own = type_.arguments or ((1,) if type_.name == "char" else ())
        type_ = ColumnType("varchar", (min(*own, *limits) if own else limits[0],))
    elif type_.name == "numeric":
        type_ = ColumnType("numeric", limits[:2])
    return msgspec.structs.replace(column, type=type_, nullable=column.nullable and found.nullable)
