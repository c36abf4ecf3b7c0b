"""Names as Snowflake has them: what is written plainly is upper case, everything else is quoted."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from factory_agents.errors import ConfigurationError

__all__ = ["TableName", "column_name", "listed", "quoted"]

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*")
_PART = re.compile(r'([A-Za-z_][A-Za-z0-9_$]*)|"((?:[^"]|"")+)"')
_LONGEST = 255
_LONGEST_TABLE = 200
"""The ledger's name is longer than its table's."""


class TableName(msgspec.Struct, frozen=True):
    """A table's name, each part as Snowflake keeps it; "" for the session's own database or schema."""

    database: str
    schema: str
    table: str

    @classmethod
    def parse(cls, text: str) -> TableName:
        """Read ``table``, ``schema.table`` or ``database.schema.table`` as SQL does; raises ConfigurationError for anything else."""
        parts: list[str] = []
        at = 0
        while (found := _PART.match(text, at)) and len(parts) < 3:
            parts.append(found[1].upper() if found[1] is not None else found[2].replace('""', '"'))
            at = found.end()
            if at == len(text) and all(len(part) <= _LONGEST for part in parts) and len(parts[-1]) <= _LONGEST_TABLE:
                return cls(*[""] * (3 - len(parts)), *parts)
            if text[at : at + 1] != ".":
                break
            at += 1
        raise ConfigurationError(
            f"table {text!r}: expected table, schema.table or database.schema.table, such as analytics.public.events;"
            ' a name that is not plain needs double quotes: public."my events"'
        )


def quoted(name: str) -> str:
    """A name as SQL takes it literally."""
    return '"' + name.replace('"', '""') + '"'


def listed(names: Iterable[str]) -> str:
    """Names with commas between them."""
    return ", ".join(map(quoted, names))


def column_name(field: str) -> str:
    """What a field's column is called in a table of ours: a plain name in upper case, so that SQL finds it unquoted."""
    return field.upper() if _PLAIN.fullmatch(field) else field
