"""What is asked of Snowflake in SQL: the ledger, the staging tables, and the statements of the one transaction that lands a publication.

DELETE and INSERT in place of MERGE: what is counted is told apart, and emulators run it in a transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

from factory_agents.contracts import ColumnType
from factory_agents.sinks.snowflake.names import listed, quoted
from factory_agents.sinks.snowflake.rows import staged_type
from factory_agents.sinks.snowflake.table import PUBLICATION, RANK, TargetTable

__all__ = [
    "change_entry",
    "copy",
    "count",
    "create_ledger",
    "create_newest",
    "create_staging",
    "delete_outdone",
    "delete_publications",
    "drop",
    "entries",
    "first_entry",
    "forget",
    "holds",
    "insert_newest",
    "lock_ledger",
    "read_entry",
    "staged_names",
]

_OURS = "CURRENT_TRANSACTION() = ?"
"""Holds in the transaction of this id only: a statement that comes after its end, whoever ended it, changes nothing."""


def create_ledger(ledger: str) -> str:
    """The ledger with its head, a row that every change of it changes: so all changes, and all landings, come one after the other."""
    return (
        f"CREATE TABLE IF NOT EXISTS {quoted(ledger)} AS SELECT CAST('' AS VARCHAR) AS WINDOW_KEY, CAST('0' AS VARCHAR) AS ENTRY,"
        " CURRENT_TIMESTAMP() AS CHANGED_AT"
    )


def lock_ledger(ledger: str) -> str:
    """Change the head, which waits until nobody else's transaction has; what this transaction reads after it is what they left."""
    return (
        f"UPDATE {quoted(ledger)} SET ENTRY = CAST(CAST(ENTRY AS NUMBER(38,0)) + 1 AS VARCHAR), CHANGED_AT = CURRENT_TIMESTAMP()"
        " WHERE WINDOW_KEY = ''"
    )


def read_entry(ledger: str) -> str:
    """The entry of one window."""
    return f"SELECT ENTRY FROM {quoted(ledger)} WHERE WINDOW_KEY = ?"


def first_entry(ledger: str) -> str:
    """Put an entry (window, entry, window, transaction) where there is none."""
    return (
        f"INSERT INTO {quoted(ledger)} (WINDOW_KEY, ENTRY, CHANGED_AT) SELECT ?, ?, CURRENT_TIMESTAMP()"
        f" WHERE NOT EXISTS (SELECT 1 FROM {quoted(ledger)} WHERE WINDOW_KEY = ?) AND {_OURS}"
    )


def change_entry(ledger: str) -> str:
    """Put an entry in the place of another (new, window, old, transaction)."""
    return f"UPDATE {quoted(ledger)} SET ENTRY = ?, CHANGED_AT = CURRENT_TIMESTAMP() WHERE WINDOW_KEY = ? AND ENTRY = ? AND {_OURS}"


def entries(ledger: str) -> str:
    """Keys and entries of one making of the table, whose keys end with the suffix."""
    return f"SELECT WINDOW_KEY, ENTRY FROM {quoted(ledger)} WHERE ENDSWITH(WINDOW_KEY, ?)"


def forget(ledger: str, count: int) -> str:
    """Delete so many rows (each a key, a line's end and the entry that it must still have; then the transaction)."""
    held = ", ".join("?" * count)
    return f"DELETE FROM {quoted(ledger)} WHERE WINDOW_KEY || CHR(10) || ENTRY IN ({held}) AND {_OURS}"


def holds(table: str, publication: int) -> str:
    """Whether rows of a publication are in the table."""
    return f"SELECT 1 FROM {quoted(table)} WHERE {quoted(PUBLICATION)} = {publication:d} LIMIT 1"


def staged_names(table: TargetTable) -> list[str]:
    """What the columns are called while they are staged; the last is the rank."""
    return [f"C{i}" for i in range(len(table.names) + 1)]


def _staged(table: TargetTable) -> list[tuple[str, str]]:
    types = [*(staged_type(c.type) for c in table.spec.columns), staged_type(None)]
    return list(zip(staged_names(table), types, strict=True))


def create_staging(staging: str, table: TargetTable) -> str:
    """A table of this session's own that rows are loaded into; it ends with the session."""
    columns = ", ".join(f"{name} {type_}" for name, type_ in _staged(table))
    return f"CREATE TEMPORARY TABLE IF NOT EXISTS {quoted(staging)} ({columns})"


def copy(staging: str, file: str, table: TargetTable) -> str:
    """Load a file of the staging table's own stage. No text in it means NULL."""
    names = ", ".join(name for name, _ in _staged(table))
    values = ", ".join(f"$1:{name}::{type_}" for name, type_ in _staged(table))
    return (
        f"COPY INTO {quoted(staging)} ({names}) FROM (SELECT {values} FROM @%{staging}/{file})"
        " FILE_FORMAT = (TYPE = PARQUET NULL_IF = ()) PURGE = TRUE"
    )


def _cast(name: str, type_: ColumnType) -> str:
    """A staged column as the table takes it."""
    if type_.name == "json":
        return f"PARSE_JSON({name})"
    if type_.name == "numeric":
        return f"CAST({name} AS NUMBER({', '.join(map(str, type_.arguments))}))"
    return f"CAST({name} AS {_CASTS[type_.name]})" if type_.name in _CASTS else name


_CASTS = {"timestamptz": "TIMESTAMP_TZ", "timestamp": "TIMESTAMP_NTZ", "date": "DATE"}


def create_newest(newest: str, staging: str, table: TargetTable, publication: int) -> str:
    """The newest staged row of each key, as the table takes it; made before the transaction, since DDL would end one."""
    *staged, rank = staged_names(table)
    values = {named: _cast(name, c.type) for name, named, c in zip(staged, table.names, table.spec.columns, strict=True)}
    own = {RANK: f"TO_BINARY({rank}, 'HEX')", PUBLICATION: f"CAST({publication:d} AS NUMBER(38,0))"}
    columns = ", ".join(f"{value} AS {quoted(named)}" for named, value in (values | own).items())
    return (
        f"CREATE OR REPLACE TEMPORARY TABLE {quoted(newest)} AS SELECT {columns} FROM {quoted(staging)}"
        f" QUALIFY ROW_NUMBER() OVER (PARTITION BY {', '.join(values[name] for name in table.key)} ORDER BY {rank} DESC) = 1"
    )


def count(table: str) -> str:
    """How many rows a table has."""
    return f"SELECT COUNT(*) FROM {quoted(table)}"


def drop(table: str) -> str:
    """Drop a table, if it is there."""
    return f"DROP TABLE IF EXISTS {quoted(table)}"


def _columns(table: TargetTable) -> list[str]:
    return [*table.names, RANK, PUBLICATION]


def _same_key(table: TargetTable, newest: str) -> str:
    return " AND ".join(f"{quoted(table.name)}.{quoted(name)} = {quoted(newest)}.{quoted(name)}" for name in table.key)


def delete_outdone(table: TargetTable, newest: str, past: Sequence[int]) -> str:
    """Delete the table's rows that give way to the newest staged ones: those of ``past`` whatever they hold, and those of a lower rank."""
    own, new = quoted(table.name), quoted(newest)
    outdone = [f"{own}.{quoted(RANK)} IS NULL", f"{new}.{quoted(RANK)} >= {own}.{quoted(RANK)}"]
    if past:
        outdone.append(f"{own}.{quoted(PUBLICATION)} IN ({', '.join(f'{number:d}' for number in past)})")
    return f"DELETE FROM {own} USING {new} WHERE {_same_key(table, newest)} AND ({' OR '.join(outdone)}) AND {_OURS}"


def insert_newest(table: TargetTable, newest: str) -> str:
    """Insert the newest staged rows of keys that the table doesn't have: those that it has are newer than ours."""
    columns = listed(_columns(table))
    return (
        f"INSERT INTO {quoted(table.name)} ({columns}) SELECT {columns} FROM {quoted(newest)}"
        f" WHERE NOT EXISTS (SELECT 1 FROM {quoted(table.name)} WHERE {_same_key(table, newest)}) AND {_OURS}"
    )


def delete_publications(table: TargetTable, stale: Sequence[int]) -> str:
    """Delete all rows of publications."""
    return f"DELETE FROM {quoted(table.name)} WHERE {quoted(PUBLICATION)} IN ({', '.join(f'{number:d}' for number in stale)}) AND {_OURS}"
