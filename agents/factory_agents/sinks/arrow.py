"""Records into typed rows as Arrow tables, column by column: no row is made in between; and tables as files to load."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents.kafka.messages import Message
from factory_agents.runtime.agents import Reject
from factory_agents.runtime.rows import RowReader

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ArrowReader", "ArrowRows", "as_parquet"]

_DICTIONARY_BYTES = 256 * 1024
"""Columns of which every value is another give up their dictionary sooner, which is a fifth of the time."""

_DELETE_BYTES = 400
"""What a key and its place take in memory, about."""


class ArrowRows(msgspec.Struct, frozen=True):
    """Rows, and keys of rows to delete as in ``Rows``."""

    table: pa.Table
    deleted: list[tuple[Any, ...]]

    @property
    def nbytes(self) -> int:
        """What they take, and about as much while they are written."""
        return 2 * int(self.table.nbytes) + _DELETE_BYTES * len(self.deleted)


class ArrowReader:
    """What a ``RowReader`` reads, in Arrow; ``arrays``: what makes each column, the rank's last, of its values."""

    def __init__(self, reader: RowReader, arrays: Mapping[str, Callable[[Sequence[Any]], pa.Array]]) -> None:
        self._reader = reader
        self._names, self._arrays = list(arrays), list(arrays.values())

    def read(self, messages: Sequence[Message]) -> tuple[list[ArrowRows], dict[int, Reject]]:
        """See ``Reader.read``."""
        import pyarrow as pa

        chunks, rejected = self._reader.columns(messages)
        if not chunks:
            return [], rejected
        columns = zip(*(chunk.columns for chunk in chunks), strict=True)
        arrays = [array(list(chain.from_iterable(parts))) for array, parts in zip(self._arrays, columns, strict=True)]
        deleted = [key for chunk in chunks for key in chunk.deleted]
        return [ArrowRows(pa.Table.from_arrays(arrays, self._names), deleted)], rejected

    def join(self, batches: Sequence[ArrowRows]) -> ArrowRows:
        """See ``Reader.join``."""
        import pyarrow as pa

        table = pa.concat_tables([batch.table for batch in batches])
        return ArrowRows(table, [key for batch in batches for key in batch.deleted])


def as_parquet(table: pa.Table) -> io.BytesIO:
    """A table as a file of Parquet."""
    import pyarrow.parquet as pq

    data = io.BytesIO()
    pq.write_table(table, data, compression="snappy", dictionary_pagesize_limit=_DICTIONARY_BYTES)
    return data
