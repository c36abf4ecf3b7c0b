"""What is asked of Snowflake in SQL: the ledger, the staging tables, and the statements of the one transaction that lands a publication.

DELETE and INSERT in place of MERGE: what is counted is told apart, and emulators run it in a transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from factory_agents.contracts import ColumnType
from factory_agents.runtime.rank import PLACE
from factory_agents.sinks.snowflake.names import listed, quoted
from factory_agents.sinks.snowflake.rows import staged_type
from factory_agents.sinks.snowflake.table import PUBLICATION, RANK, TargetTable

__all__ = [
    "change_entry",
    "copy",
    "count",
    "count_gone",
    "count_keys",
    "create_empty",
    "create_ledger",
    "create_memory",
    "create_newest",
    "create_rows",
    "create_staging",
    "delete_outdone",
    "delete_outlived",
    "delete_outweighed",
    "delete_publications",
    "drop",
    "entries",
    "fill_newest",
    "first_entry",
    "forget",
    "forget_deletes",
    "holds",
    "insert_newest",
    "lock_ledger",
    "read_entry",
    "remember",
    "staged_names",
    "try_rights",
]

_DELETES = "DELETES"
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


def try_rights(table: TargetTable, missing: Collection[str]) -> list[str]:
    """Change nothing, and need the rights of a landing on the table itself, which lacks some columns still."""
    name, columns = quoted(table.name), listed(column for column in table.names if column not in missing)
    nothing = f"{name} WHERE FALSE"
    return [f"DELETE FROM {nothing}", f"INSERT INTO {name} ({columns}) SELECT {columns} FROM {nothing}"]


def staged_names(table: TargetTable) -> list[str]:
    """What the columns are called while they are staged; the last are the rank, and whether the row deletes."""
    return [*(f"C{i}" for i in range(len(table.names) + 1)), _DELETES]


def _staged(table: TargetTable) -> list[tuple[str, str]]:
    types = [*(staged_type(c.type) for c in table.spec.columns), staged_type(None), "BOOLEAN"]
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


def _values(table: TargetTable, publication: int) -> dict[str, str]:
    """A staged row as the table takes it: columns, and what they are made of."""
    *staged, rank, _ = staged_names(table)
    values = {named: _cast(name, c.type) for name, named, c in zip(staged, table.names, table.spec.columns, strict=True)}
    return values | {RANK: f"TO_BINARY({rank}, 'HEX')", PUBLICATION: f"CAST({publication:d} AS NUMBER(38,0))"}


def create_newest(newest: str, staging: str, table: TargetTable, publication: int, *, deletes: bool = False) -> str:
    """The newest staged row of each key, or its last delete, as the table takes it; before the transaction, since DDL would end one."""
    values = _values(table, publication)
    names = (*table.key, RANK, PUBLICATION) if deletes else tuple(values)
    columns = ", ".join(f"{values[name]} AS {quoted(name)}" for name in names)
    rank = staged_names(table)[-2]
    return (
        f"CREATE OR REPLACE TEMPORARY TABLE {quoted(newest)} AS SELECT {columns} FROM {quoted(staging)}"
        f" WHERE {'' if deletes else 'NOT '}{_DELETES}"
        f" QUALIFY ROW_NUMBER() OVER (PARTITION BY {', '.join(values[name] for name in table.key)} ORDER BY {rank} DESC) = 1"
    )


def create_rows(rows: str, staging: str, table: TargetTable, publication: int) -> str:
    """All staged rows, as the table takes them: of those of one key a delete may outweigh the newest, and leave another."""
    columns = ", ".join(f"{value} AS {quoted(name)}" for name, value in _values(table, publication).items())
    return f"CREATE OR REPLACE TEMPORARY TABLE {quoted(rows)} AS SELECT {columns} FROM {quoted(staging)} WHERE NOT {_DELETES}"


def create_empty(made: str, other: str) -> str:
    """An empty table of this session's own with another's columns."""
    return f"CREATE OR REPLACE TEMPORARY TABLE {quoted(made)} AS SELECT * FROM {quoted(other)} WHERE FALSE"


def create_memory(memory: str, table: TargetTable) -> str:
    """What remembers the deletes of a table: their key, their place as the rank, and their publication."""
    columns = listed([*table.key, RANK, PUBLICATION])
    return f"CREATE TABLE IF NOT EXISTS {quoted(memory)} AS SELECT {columns} FROM {quoted(table.name)} WHERE FALSE"


def count_keys(staging: str, table: TargetTable) -> str:
    """How many keys staged rows and deletes have."""
    values = _values(table, 0)
    return f"SELECT COUNT(*) FROM (SELECT DISTINCT {', '.join(values[name] for name in table.key)} FROM {quoted(staging)})"


def _place(rows: str) -> str:
    """Where a record lies among all others: what its rank ends with. A delete's rank is nothing else."""
    return f"RIGHT(HEX_ENCODE({quoted(rows)}.{quoted(RANK)}), {2 * PLACE})"


def _is_among(rows: str, publications: Sequence[int]) -> str:
    return f"{quoted(rows)}.{quoted(PUBLICATION)} IN ({', '.join(f'{number:d}' for number in publications)})" if publications else "FALSE"


def delete_outlived(table: TargetTable, deletes: str, memory: str, past: Sequence[int]) -> str:
    """Delete those deletes of ours of whose key a later one is remembered."""
    later = f"{_place(memory)} > {_place(deletes)} AND NOT ({_is_among(memory, past)})"
    return f"DELETE FROM {quoted(deletes)} USING {quoted(memory)} WHERE {_same(table, deletes, memory)} AND {later}"


def delete_outweighed(table: TargetTable, rows: str, deletes: str, spared: Sequence[int] = (), also: Sequence[int] = ()) -> str:
    """Delete rows that a delete of their key outweighs: not those of deletes that are ``spared``, and ``also`` rows of publications."""
    before = f"{quoted(rows)}.{quoted(RANK)} IS NULL OR {_place(rows)} <= {_place(deletes)} OR {_is_among(rows, also)}"
    return (
        f"DELETE FROM {quoted(rows)} USING {quoted(deletes)} WHERE {_same(table, rows, deletes)} AND ({before})"
        f" AND NOT ({_is_among(deletes, spared)}) AND {_OURS}"
    )


def fill_newest(table: TargetTable, newest: str, rows: str) -> str:
    """Take the newest row of each key."""
    columns = listed(_columns(table))
    return (
        f"INSERT INTO {quoted(newest)} ({columns}) SELECT {columns} FROM {quoted(rows)}"
        f" QUALIFY ROW_NUMBER() OVER (PARTITION BY {listed(table.key)} ORDER BY {quoted(RANK)} DESC) = 1"
    )


def forget_deletes(table: TargetTable, memory: str, deletes: str) -> str:
    """Delete what is remembered of the keys that ours speak of."""
    return f"DELETE FROM {quoted(memory)} USING {quoted(deletes)} WHERE {_same(table, memory, deletes)} AND {_OURS}"


def remember(table: TargetTable, memory: str, deletes: str) -> str:
    """Remember our deletes."""
    columns = listed([*table.key, RANK, PUBLICATION])
    return f"INSERT INTO {quoted(memory)} ({columns}) SELECT {columns} FROM {quoted(deletes)} WHERE {_OURS}"


def count_gone(table: TargetTable, deletes: str) -> str:
    """How many keys of our deletes have no row any more."""
    return (
        f"SELECT COUNT(*) FROM {quoted(deletes)} WHERE NOT EXISTS"
        f" (SELECT 1 FROM {quoted(table.name)} WHERE {_same(table, table.name, deletes)})"
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
    return _same(table, table.name, newest)


def _same(table: TargetTable, one: str, other: str) -> str:
    return " AND ".join(f"{quoted(one)}.{quoted(name)} = {quoted(other)}.{quoted(name)}" for name in table.key)


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


def delete_publications(table: str, stale: Sequence[int]) -> str:
    """Delete all rows of publications."""
    return f"DELETE FROM {quoted(table)} WHERE {quoted(PUBLICATION)} IN ({', '.join(f'{number:d}' for number in stale)}) AND {_OURS}"
