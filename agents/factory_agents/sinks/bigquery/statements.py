"""What is asked of BigQuery in GoogleSQL: the ledger's changes, and the one transaction that lands a publication."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import astuple

from factory_agents.runtime.sink_ledger import Figures
from factory_agents.sinks.bigquery.rows import DELETED, POSITION, Field
from factory_agents.sinks.bigquery.table import MADE, OWN_FIELDS, TargetTable

__all__ = ["FIGURES", "MOVED", "change_entry", "create_ledger", "entries", "forget", "holds", "landing", "read_entry", "try_rights"]

FIGURES = Figures(*(9_000_000_000_000_000_001 + i for i in range(4)))
"""What stands for figures that only the landing transaction knows; it puts them into the entry's text in their places."""

MOVED = "factory: the entry in the ledger has changed"
"""What the landing transaction says when it lands nothing, because the entry isn't the one that it was made for."""

_THIS = "window_key = @window"
_ZEROS = {
    "STRING": "''",
    "INT64": "0",
    "FLOAT64": "0",
    "BOOL": "FALSE",
    "TIMESTAMP": "TIMESTAMP '1970-01-01 00:00:00+00'",
    "DATE": "DATE '1970-01-01'",
    "NUMERIC": "NUMERIC '0'",
    "BIGNUMERIC": "BIGNUMERIC '0'",
}
"""Any value of the type: it stands where a null is compared, beside a flag that says which of both it is."""


def create_ledger(ledger: str) -> str:
    """The ledger with its head, a row that every claim changes: so two first claims of a window cannot both be made."""
    return f"CREATE TABLE IF NOT EXISTS `{ledger}` AS SELECT '' AS window_key, '0' AS entry, CURRENT_TIMESTAMP() AS changed_at"


def read_entry(ledger: str) -> str:
    """The ledger's head and the entry of one window, each with its key."""
    return f"SELECT window_key, entry FROM `{ledger}` WHERE {_THIS} OR window_key = ''"


def entries(ledger: str) -> str:
    """Keys and entries of one making of the table, whose keys end with ``@suffix``."""
    return f"SELECT window_key, entry FROM `{ledger}` WHERE ENDS_WITH(window_key, @suffix)"


def forget(ledger: str) -> str:
    """Delete the rows ``@held``: each a key, a line's end and the entry that it must still have."""
    return f"DELETE FROM `{ledger}` WHERE CONCAT(window_key, '\\n', entry) IN UNNEST(@held)"


def holds(table: str) -> str:
    """Whether rows of a publication are in the table."""
    return f"SELECT COUNT(*) FROM (SELECT 1 FROM `{table}` WHERE _factory_publication = @publication LIMIT 1)"


def try_rights(table: TargetTable, missing: Sequence[Field]) -> str:
    """Changes nothing, and needs the rights of a landing on the table itself, which lacks some columns still."""
    columns, nothing = _names([f.name for f in table.fields if f not in missing]), f"`{table.text}` WHERE FALSE"
    return f"{_same_making(table)}\nDELETE FROM {nothing};\nINSERT INTO `{table.text}` ({columns}) SELECT {columns} FROM {nothing};"


def _same_making(table: TargetTable) -> str:
    """Fail where the table isn't there any more, or was made again: the entry that we hold fences nobody in another.

    Of its creation BigQuery's API tells the millisecond; whichever way that was rounded.
    """
    tables = f"{table.text.rpartition('.')[0]}.INFORMATION_SCHEMA.TABLES"
    made = f"SELECT UNIX_MILLIS(creation_time) FROM `{tables}` WHERE table_name = '{table.name}'"
    return f"ASSERT ABS(({made}) - {table.made}) <= 1 AS 'factory: the table was dropped or recreated';"


def change_entry(ledger: str) -> str:
    """Compare and set: ``@new`` where the entry is ``@old`` ("": where there is none). Two rows are changed where it was: the head too."""
    return f"""
MERGE `{ledger}` AS l
USING (SELECT '' AS window_key UNION ALL SELECT @window) AS s
ON l.window_key = s.window_key
WHEN MATCHED AND l.window_key = '' THEN
  UPDATE SET entry = CAST(CAST(l.entry AS INT64) + 1 AS STRING), changed_at = CURRENT_TIMESTAMP()
WHEN MATCHED AND l.entry = @old THEN UPDATE SET entry = @new, changed_at = CURRENT_TIMESTAMP()
WHEN NOT MATCHED AND @old = '' THEN
  INSERT (window_key, entry, changed_at) VALUES (@window, @new, CURRENT_TIMESTAMP())
"""


def landing(table: TargetTable, ledger: str, memory: str, staged: Sequence[str], *, sweep: bool) -> str:
    """The script that makes a publication visible: its rows, what gives way to them, and the ledger's entry, or nothing of these.

    It takes ``@window``, ``@old`` and ``@new`` as ``change_entry`` does, ``@publication``, ``@window_start``, and the lists ``@past`` and
    ``@stale``. DELETE and INSERT in place of MERGE: what is counted is told apart, and emulators run it in a transaction. ``memory``
    remembers deletes, where the table has them. The table's making is asserted right before the transaction, since nothing says that
    INFORMATION_SCHEMA may be read within one.
    """
    lines = ["DECLARE distinct_keys, written_rows, removed_rows, gone_keys INT64 DEFAULT 0;"]
    if staged:
        lines += _arrived(table, staged) if table.deletes else _newest(table, staged)
    lines += [_same_making(table), "BEGIN TRANSACTION;", f"ASSERT (SELECT entry FROM `{ledger}` WHERE {_THIS}) = @old AS '{MOVED}';"]
    if staged:
        lines += [*(_delete(table, memory) if table.deletes else ()), *_put(table)]
    if sweep:
        lines += [
            f"DELETE FROM `{table.text}` WHERE _factory_publication IN UNNEST(@stale);",
            "SET removed_rows = @@row_count;",
        ]
        if table.deletes:
            lines.append(f"DELETE FROM `{memory}` WHERE _factory_publication IN UNNEST(@stale);")
    if staged and table.deletes:
        lines += _remember(table, memory)
    entry = "@new"
    for figure, variable in zip(astuple(FIGURES), ("distinct_keys", "written_rows", "removed_rows", "gone_keys"), strict=True):
        entry = f"REPLACE({entry}, '{figure}', CAST({variable} AS STRING))"
    lines += [
        f"UPDATE `{ledger}` SET entry = {entry}, changed_at = CURRENT_TIMESTAMP() WHERE {_THIS} AND entry = @old;",
        f"ASSERT @@row_count = 1 AS '{MOVED}';",
        "COMMIT TRANSACTION;",
    ]
    return "\n".join(lines)


_OWN = f"@window_start AS _factory_window, @publication AS _factory_publication, {', '.join(POSITION)}"
_EPOCH = "TIMESTAMP '1970-01-01 00:00:00+00'"
_LATEST = ("_factory_timestamp DESC", "_factory_partition DESC", "_factory_offset DESC")


def _newest(table: TargetTable, staged: Sequence[str]) -> list[str]:
    """The newest staged row of each key, as the table takes it."""
    return [
        (
            f"CREATE TEMP TABLE newest AS SELECT {', '.join(map(_landed, table.fields))}, {_OWN} FROM ({_all(staged)}) WHERE TRUE"
            f" QUALIFY {_is_first(table)};"
        ),
        "SET distinct_keys = (SELECT COUNT(*) FROM newest);",
    ]


def _all(staged: Sequence[str]) -> str:
    return " UNION ALL ".join(f"SELECT * FROM `{part}`" for part in staged)


def _is_first(table: TargetTable) -> str:
    """Whether a row is the newest of its key's, as long as the window is one."""
    order = ", ".join((*(f"`{name}` DESC NULLS LAST" for name in _order(table)), *_LATEST))
    return f"ROW_NUMBER() OVER (PARTITION BY {_names(table.key)} ORDER BY {order}) = 1"


def _arrived(table: TargetTable, staged: Sequence[str]) -> list[str]:
    """All staged rows, as the table takes them (of those of one key a delete may outweigh the newest), and the last delete of each key."""
    parts = _all(staged)
    return [
        f"CREATE TEMP TABLE arrived AS SELECT {', '.join(map(_landed, table.fields))}, {_OWN} FROM ({parts}) WHERE NOT {DELETED};",
        (
            f"CREATE TEMP TABLE gone AS SELECT {_names(table.key)}, {_OWN} FROM ({parts}) WHERE {DELETED}"
            f" QUALIFY ROW_NUMBER() OVER (PARTITION BY {_names(table.key)} ORDER BY {', '.join(_LATEST)}) = 1;"
        ),
        f"SET distinct_keys = (SELECT COUNT(*) FROM (SELECT DISTINCT {_names(table.key)} FROM ({parts})));",
    ]


def _delete(table: TargetTable, memory: str) -> list[str]:
    """Apply our deletes, and those that are remembered, to the table and to the staged rows; what they leave are the newest."""
    known = f"SELECT 1 FROM `{memory}` AS m WHERE m.{MADE} = {table.made} AND m._factory_publication NOT IN UNNEST(@past) AND"
    outweighed = _at_least(_place("m", "s"))
    return [
        (
            f"CREATE TEMP TABLE deletes AS SELECT * FROM gone AS s"
            f" WHERE NOT EXISTS ({known} {_same(table, 'm', 's')} AND NOT {_at_least(_place('s', 'm'))});"
        ),
        (
            f"CREATE TEMP TABLE newest AS SELECT * FROM arrived AS s WHERE NOT EXISTS ({known} {_same(table, 'm', 's')} AND {outweighed})"
            f" AND NOT EXISTS (SELECT 1 FROM deletes AS m WHERE {_same(table, 'm', 's')} AND {outweighed}) QUALIFY {_is_first(table)};"
        ),
        (
            f"DELETE FROM `{table.text}` AS t WHERE EXISTS (SELECT 1 FROM deletes AS s WHERE {_same(table, 's', 't')}"
            f" AND (t._factory_publication IN UNNEST(@past) OR {_at_least(_place('s', 't'))}));"
        ),
        f"DELETE FROM `{memory}` WHERE {MADE} != {table.made};",
        f"DELETE FROM `{memory}` AS m WHERE EXISTS (SELECT 1 FROM deletes AS s WHERE {_same(table, 's', 'm')});",
    ]


def _remember(table: TargetTable, memory: str) -> list[str]:
    """Remember our deletes, and count the keys that have no row any more."""
    columns = _names([*table.key, *(f.name for f in OWN_FIELDS)])
    return [
        f"INSERT INTO `{memory}` ({columns}, {MADE}) SELECT {columns}, {table.made} FROM deletes;",
        (
            "SET gone_keys = (SELECT COUNT(*) FROM deletes AS s"
            f" WHERE NOT EXISTS (SELECT 1 FROM `{table.text}` AS t WHERE {_same(table, 's', 't')}));"
        ),
    ]


def _same(table: TargetTable, one: str, other: str) -> str:
    return " AND ".join(f"{one}.`{name}` = {other}.`{name}`" for name in table.key)


def _landed(field: Field) -> str:
    """A staged column as the table takes it: JSON was staged as text. Its numbers are doubles already, so nothing is rounded."""
    parsed = _parsed(f"`{field.name}`", field)
    return f"{parsed} AS `{field.name}`"


def _parsed(value: str, field: Field) -> str:
    if not _holds_json(field):
        return value
    if field.repeated:
        element = Field(field.name, field.type, fields=field.fields)
        return f"ARRAY(SELECT {_parsed('item', element)} FROM UNNEST({value}) AS item WITH OFFSET AS place ORDER BY place)"
    if field.type == "STRUCT":
        members = ", ".join(f"{_parsed(f'{value}.`{f.name}`', f)} AS `{f.name}`" for f in field.fields)
        return f"IF({value} IS NULL, NULL, STRUCT({members}))"
    return f"PARSE_JSON({value}, wide_number_mode=>'round')"


def _holds_json(field: Field) -> bool:
    return field.type == "JSON" or any(map(_holds_json, field.fields))


def _put(table: TargetTable) -> list[str]:
    """The newest rows in place of those that give way to them. ``NOT EXISTS`` finds the others: they are newer than ours."""
    columns = _names([*(f.name for f in table.fields), *(f.name for f in OWN_FIELDS)])
    same = _same(table, "s", "t")
    delete = (
        f"DELETE FROM `{table.text}` AS t WHERE EXISTS (SELECT 1 FROM newest AS s WHERE {same}"
        f" AND (t._factory_publication IN UNNEST(@past) OR {_is_newer(table)}));"
    )
    insert = (
        f"INSERT INTO `{table.text}` ({columns}) SELECT {columns} FROM newest AS s"
        f" WHERE NOT EXISTS (SELECT 1 FROM `{table.text}` AS t WHERE {same});"
    )
    return [delete, insert, "SET written_rows = @@row_count;"]


def _order(table: TargetTable) -> list[str]:
    """What makes one row newer than another: version, then time, as far as there are such columns."""
    return [name for name in (table.version, table.time) if name is not None]


def _is_newer(table: TargetTable) -> str:
    """Whether the staged row ``s`` is at least as new as the table's row ``t``: by version, time, window and record, nulls lowest."""
    ranks: list[tuple[str, str]] = []
    for name in _order(table):
        field = table.field(name)
        ranks += [(f"(s.`{name}` IS NOT NULL)", f"(t.`{name}` IS NOT NULL)")]
        zero = _ZEROS[field.type]
        ranks += [(f"COALESCE(s.`{name}`, {zero})", f"COALESCE(t.`{name}`, {zero})")]
    return _at_least([*ranks, *_place("s", "t")])


def _place(one: str, other: str) -> list[tuple[str, str]]:
    """What says where two rows' records lie among all others; ``other`` may be of somebody who doesn't say.

    Of a window without an interval (which starts in 1970) it isn't known which others are before it: records alone are compared then.
    """
    numbers = ("_factory_timestamp", "_factory_partition", "_factory_offset")
    own, others = f"{one}._factory_window", f"COALESCE({other}._factory_window, TIMESTAMP '0001-01-01 00:00:00+00')"
    no_interval = f"{_EPOCH} IN ({own}, {others})"
    window = (f"IF({no_interval}, {_EPOCH}, {own})", f"IF({no_interval}, {_EPOCH}, {others})")
    return [window, *((f"{one}.{name}", f"COALESCE({other}.{name}, -1)") for name in numbers)]


def _at_least(ranks: Sequence[tuple[str, str]]) -> str:
    """Whether the first of these pairs that differs has the greater one first, or none differs."""
    one, other = ranks[-1]
    condition = f"{one} >= {other}"
    for one, other in reversed(ranks[:-1]):
        condition = f"({one} > {other} OR ({one} = {other} AND {condition}))"
    return condition


def _names(of: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in of)
