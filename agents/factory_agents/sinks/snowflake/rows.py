"""Events into Parquet as Snowflake loads it: plain types natively, the others as texts that it casts without loss."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from factory_agents.contracts import ColumnType, TableSpec
from factory_agents.kafka.messages import Message
from factory_agents.runtime.agents import Reject
from factory_agents.runtime.ledger_sink import Rows
from factory_agents.runtime.rows import RowReader

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["JsonCheckingReader", "json_loss", "parquet", "staged_type"]

_DIGITS = 38
"""Digits of a whole or decimal number in a VARIANT."""
_NATIVE = {"text": "VARCHAR", "varchar": "VARCHAR", "char": "VARCHAR", "json": "VARCHAR", "boolean": "BOOLEAN"}
_NATIVE |= {"double": "FLOAT", "real": "FLOAT", "bigint": "NUMBER(38,0)", "integer": "NUMBER(38,0)", "smallint": "NUMBER(38,0)"}


def staged_type(type_: ColumnType | None) -> str:
    """The type that a column is staged with; None for the rank."""
    return _NATIVE.get(type_.name, "VARCHAR") if type_ is not None else "VARCHAR"


def parquet(rows: Rows, table: TableSpec, names: Sequence[str]) -> bytes:
    """Rows as a file of Parquet, their columns under these names; the last one says which of them delete."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = [*(column.type for column in table.columns), None]
    places = [table.key.index(column.name) if column.name in table.key else None for column in table.columns]
    deleted = [(*(None if place is None else row[place] for place in places), row[-1]) for row in rows.deleted]
    columns = zip(*rows.rows, *deleted, strict=True)
    arrays = [_array(values, type_) for values, type_ in zip(columns, types, strict=True)]
    arrays.append(pa.array([False] * len(rows.rows) + [True] * len(deleted)))
    data = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, names=list(names)), data, compression="snappy")
    return data.getvalue()


def _array(values: Sequence[Any], type_: ColumnType | None) -> pa.Array:
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


class JsonCheckingReader:
    """The runtime's reader, and a Reject for JSON that a VARIANT cannot hold as it is."""

    def __init__(self, table: TableSpec, window: str) -> None:
        self._reader = RowReader(table, window)
        self._deletes = table.deletes
        self._places = [(i, c.name) for i, c in enumerate(table.columns) if c.type.name == "json"]

    def read(self, messages: Sequence[Message]) -> tuple[list[Rows], dict[int, Reject]]:
        """See ``Reader.read``."""
        batches, rejected = self._reader.read(messages)
        if not (self._places and batches):
            return batches, rejected
        (batch,) = batches
        tombstones = self._deletes
        kept, indexes = [], (i for i, m in enumerate(messages) if i not in rejected and not (tombstones and m.value() is None))
        unfit: dict[int, Reject] = {}
        for i, row in zip(indexes, batch.rows, strict=True):
            reject = self._check(row)
            if reject is None:
                kept.append(row)
            else:
                unfit[i] = reject
        rejected |= unfit
        return [Rows(batch.columns, kept, batch.nbytes, batch.deleted)] if kept or batch.deleted else [], rejected

    def _check(self, row: Sequence[Any]) -> Reject | None:
        for place, name in self._places:
            loss = json_loss(row[place]) if row[place] is not None else ""
            if loss:
                return Reject(f"column {name!r}: {loss} (the column is VARIANT)", rule="column")
        return None

    def join(self, batches: Sequence[Rows]) -> Rows:
        """See ``Reader.join``."""
        return self._reader.join(batches)


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
    raise _LossError(f"the number {text:.60} has more digits than it holds")


_decode = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_int=_number).decode
