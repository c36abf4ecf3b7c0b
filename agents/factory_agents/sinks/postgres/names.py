"""Names of tables and columns, and queries composed with them: names are quoted by the driver, never formatted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents.databases.statements import table_name
from factory_agents.errors import ConfigurationError

if TYPE_CHECKING:
    from psycopg import sql

__all__ = ["TableName", "check_name", "compose", "identifier", "names"]


class TableName(msgspec.Struct, frozen=True):
    """A table's name, taken literally (case and all), with its schema ("" for the session's first)."""

    schema: str
    name: str

    @classmethod
    def parse(cls, text: str) -> TableName:
        """Read ``table``, ``schema.table`` or either part in double quotes; raises ConfigurationError for anything else."""
        parts = table_name(text)
        for part in parts:
            check_name(part, "table")
        return cls(*(parts if len(parts) == 2 else ("", *parts)))


def check_name(name: str, what: str) -> None:
    """Refuse a name that PostgreSQL would cut or cannot hold, with ConfigurationError."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = 0
    if not 1 <= size <= 63 or "\0" in name:
        raise ConfigurationError(f"{what} {name!r}: PostgreSQL takes names of 1 to 63 bytes in UTF-8, without NUL")


def compose(template: str, **parts: Any) -> sql.Composed:
    """A query: composables go in as they are, every other value as a literal (so that nothing reads a name's per cent sign)."""
    from psycopg import sql

    filled = {name: part if isinstance(part, sql.Composable) else sql.Literal(part) for name, part in parts.items()}
    return sql.SQL(template).format(**filled)


def identifier(name: str) -> sql.Identifier:
    """A name in a query."""
    from psycopg import sql

    return sql.Identifier(name)


def names(of: Iterable[str]) -> sql.Composed:
    """Names in a query, with commas between them."""
    from psycopg import sql

    return sql.SQL(", ").join(sql.Identifier(name) for name in of)
