"""Events into Parquet as Snowflake loads it: plain types natively, the others as texts that it casts without loss."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

from factory_agents.contracts import ColumnType, TableSpec
from factory_agents.runtime.ledger_sink import RANK
from factory_agents.runtime.rows import RowReader
from factory_agents.sinks.arrow import ArrowReader, ArrowRows, as_parquet

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["json_loss", "open_reader", "parquet", "staged_type"]

_DIGITS = 38
"""Digits of a whole or decimal number in a VARIANT."""
_NATIVE = {"text": "VARCHAR", "varchar": "VARCHAR", "char": "VARCHAR", "json": "VARCHAR", "boolean": "BOOLEAN"}
_NATIVE |= {"double": "FLOAT", "real": "FLOAT", "bigint": "NUMBER(38,0)", "integer": "NUMBER(38,0)", "smallint": "NUMBER(38,0)"}


def staged_type(type_: ColumnType | None) -> str:
    """The type that a column is staged with; None for the rank."""
    return _NATIVE.get(type_.name, "VARCHAR") if type_ is not None else "VARCHAR"


def open_reader(table: TableSpec, window: str) -> ArrowReader:
    """Reads records as they are staged; JSON that a VARIANT cannot hold as it is, is rejected."""
    arrays: dict[str, Callable[[Sequence[Any]], pa.Array]] = {column.name: partial(_array, column.type) for column in table.columns}
    return ArrowReader(RowReader(table, window, checks={"json": json_loss}), arrays | {RANK: partial(_array, None)})


def parquet(rows: ArrowRows, table: TableSpec, names: Sequence[str]) -> io.BytesIO:
    """Rows as a file of Parquet, their columns under these names; the last one says which of them delete."""
    import pyarrow as pa

    deletes = pa.table(
        {name: _array(type_, values) for (name, type_), values in zip(_key_and_rank(table), zip(*rows.deleted, strict=True), strict=False)}
    )
    staged = pa.concat_tables([rows.table, deletes], promote_options="default")
    marks = pa.concat_arrays([pa.repeat(False, rows.table.num_rows), pa.repeat(True, deletes.num_rows)])
    return as_parquet(pa.table([*staged.columns, marks], names=list(names)))


def _key_and_rank(table: TableSpec) -> list[tuple[str, ColumnType | None]]:
    types = {column.name: column.type for column in table.columns}
    return [*((name, types[name]) for name in table.key), (RANK, None)]


def _array(type_: ColumnType | None, values: Sequence[Any]) -> pa.Array:
    import pyarrow as pa

    types = {"FLOAT": pa.float64(), "BOOLEAN": pa.bool_(), "NUMBER(38,0)": pa.int64()}
    text = _TEXTS.get(type_.name) if type_ is not None else bytes.hex
    if text is not None:
        values = [None if value is None else text(value) for value in values]
    return pa.array(values, types.get(staged_type(type_), pa.large_string()))


_TEXTS: Mapping[str, Callable[[Any], str]] = {
    "numeric": lambda number: f"{number:f}",
    "timestamptz": datetime.isoformat,
    "timestamp": datetime.isoformat,
    "date": str,
}


class _LossError(ValueError):
    """JSON that a VARIANT can't hold."""


def json_loss(text: str) -> str:
    """Why a VARIANT cannot hold a JSON text as it is, or ""."""
    try:
        value = _decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except _LossError as error:
        return str(error)
    except UnicodeEncodeError:
        return "half of a surrogate pair"
    except (ValueError, RecursionError):
        return "nested too deeply"
    return ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _LossError(f"the key {twice!r:.60} stands twice in one object")
    return found


def _number(text: str) -> None:
    """A decimal is kept in 38 digits; what has an exponent, as a double."""
    if re.search("[eE]", text) is None:
        if sum(map(str.isdigit, text)) <= _DIGITS:
            return
    elif Decimal(text) == Decimal(repr(float(text))):
        return
    raise _LossError(f"the number {text:.60} has more digits than a VARIANT holds")


_decode = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_int=_number).decode
