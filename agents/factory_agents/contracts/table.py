"""The table that a contract describes: its columns, their types, its key, and what makes one row newer than another."""

from __future__ import annotations

import re

import msgspec

from factory_agents.errors import ConfigurationError

__all__ = ["COLUMN_TYPES", "Column", "ColumnSpec", "ColumnType", "DeleteMarker", "TableSpec"]

COLUMN_TYPES = {
    "text": 0,
    "bigint": 0,
    "double": 0,
    "boolean": 0,
    "timestamptz": 0,
    "json": 0,
    "numeric": 2,
    "date": 0,
    "char": 1,
    "varchar": 1,
    "integer": 0,
    "smallint": 0,
    "real": 0,
    "timestamp": 0,
    "time": 0,
    "interval": 0,
    "uuid": 0,
    "bytea": 0,
    "inet": 0,
}
"""The names of column types, with how many arguments each takes at most: ``numeric(10,2)``, ``char(3)``."""


class ColumnType(msgspec.Struct, frozen=True):
    """A column's type: its name, its arguments (length, or precision and scale), and whether it is a list of such values (``text[]``)."""

    name: str
    arguments: tuple[int, ...] = ()
    array: bool = False

    @classmethod
    def parse(cls, text: str) -> ColumnType | None:
        """Read ``name``, ``name(n)`` or ``name(p,s)``, each perhaps followed by ``[]``; None for anything else."""
        found = re.fullmatch(r"(\w+)\s*(?:\(\s*(\d{1,8})\s*(?:,\s*(\d{1,4})\s*)?\))?\s*(\[\])?", text)
        if found is None or found[1] not in COLUMN_TYPES:
            return None
        arguments = tuple(int(a) for a in found.group(2, 3) if a is not None)
        return cls(found[1], arguments, found[4] is not None) if len(arguments) <= COLUMN_TYPES[found[1]] else None

    @property
    def text(self) -> str:
        """As it is in a contract."""
        return self.name + (f"({','.join(map(str, self.arguments))})" if self.arguments else "") + ("[]" if self.array else "")

    @property
    def ordered(self) -> bool:
        """Whether rows can be compared by it."""
        return self.array or self.name != "json"


class Column(msgspec.Struct, frozen=True):
    """One column of the table that a contract makes; its name is the field's, its type as ``ColumnType`` reads it."""

    name: str
    type: str
    nullable: bool
    primary_key: bool


class ColumnSpec(msgspec.Struct, frozen=True):
    """A column that a sink writes; ``unit`` (s, ms, us) where a time comes as a number."""

    name: str
    type: ColumnType
    nullable: bool
    unit: str = ""


class DeleteMarker(msgspec.Struct, frozen=True):
    """How an event says that it deletes its key's row: its ``field`` has one of these ``values``."""

    field: str
    values: tuple[str | int | float | bool, ...]

    def __str__(self) -> str:
        """As a contract says it."""
        return f"{self.field}: {', '.join(map(str, self.values))}"


class TableSpec(msgspec.Struct, frozen=True):
    """What a contract wants of a table; no ``columns`` where there is no contract: the table itself says then.

    Of two rows of one ``key`` the one with the greater ``version`` is newer, else the one with the later ``time``, as far as there are such
    columns. ``deletes``: a record without a value removes its key's row, and so does an event with the ``delete_marker``.
    """

    columns: tuple[ColumnSpec, ...] = ()
    key: tuple[str, ...] = ()
    time: str | None = None
    version: str | None = None
    deletes: bool = False
    delete_marker: DeleteMarker | None = None

    def column(self, name: str) -> ColumnSpec | None:
        """One of its columns, or None."""
        return next((c for c in self.columns if c.name == name), None)

    def check_order(self) -> None:
        """Raise ConfigurationError where rows have no key, or are compared by what has no order."""
        if self.columns and not self.key:
            raise ConfigurationError("the contract names no key: publish upserts by it; add key: or id: to the contract")
        for what, name in (("time", self.time), ("version_field", self.version), *(("key", name) for name in self.key)):
            column = self.column(name) if name is not None else None
            if name is not None and (column is None or not column.type.ordered):
                why = "has no order (it is json)" if column is not None else "is not among its columns"
                raise ConfigurationError(f"the contract's {what} {name!r} {why}: rows are compared by it; change its columns")
