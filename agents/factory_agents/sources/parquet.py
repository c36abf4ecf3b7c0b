"""Parquet: each row becomes a JSON object; row groups that lie outside of the interval are not read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from factory_agents.errors import ConfigurationError
from factory_agents.runtime.agents import Reject, SourceRecord
from factory_agents.sources.rows import (
    BATCH_RECORDS,
    Block,
    ReadOptions,
    Rows,
    as_is,
    check_field,
    encode_key,
    encode_row,
    time_reject,
    to_micros,
)

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["parquet_blocks"]


def parquet_blocks(file: BinaryIO, name: str, options: ReadOptions, bounds: tuple[int, int]) -> Iterator[Block]:
    """Blocks of rows, numbered from 1; a row without a readable time is rejected by rule ``time``.

    ``bounds`` are the interval's, in microseconds. Timestamps become ISO-8601 in UTC with microseconds at most. Raises ConfigurationError
    where the time field is missing or a column's name is there twice.
    """
    import pyarrow.parquet as pq

    reader = pq.ParquetFile(file)
    names = reader.schema_arrow.names
    if len(set(names)) < len(names):
        raise ConfigurationError(f"{name}: a column's name is there twice: {', '.join(names)}")
    if options.time_field:
        check_field(options.time_field, "time_field", names, name)
    number = 1
    for group in range(reader.num_row_groups):
        outside = _time_outside(reader, group, options.time_field, bounds)
        if outside is not None:
            yield Rows(name, as_is, [number], [outside], [None], [b""])
            number += reader.metadata.row_group(group).num_rows
            continue
        for batch in reader.iter_batches(batch_size=BATCH_RECORDS, row_groups=[group]):
            yield _Batch(batch, name, number, options)
            number += batch.num_rows


def _time_outside(reader: pq.ParquetFile, group: int, time_field: str, bounds: tuple[int, int]) -> int | None:
    """A time that stands for all of a row group, where its statistics prove that every row has a time and none lies within bounds."""
    import pyarrow as pa

    if not time_field:
        return None
    kind = reader.schema_arrow.field(time_field).type
    if not pa.types.is_timestamp(kind) or kind.unit == "ns":
        return None
    metadata = reader.metadata.row_group(group)
    columns = (metadata.column(i) for i in range(metadata.num_columns))
    statistics = next((c.statistics for c in columns if c.path_in_schema == time_field), None)
    if statistics is None or not statistics.has_min_max or not statistics.has_null_count or statistics.null_count:
        return None
    least, greatest = to_micros(statistics.min), to_micros(statistics.max)
    return least if greatest < bounds[0] or least >= bounds[1] else None


class _Batch:
    """One record batch as a block."""

    def __init__(self, batch: pa.RecordBatch, name: str, first: int, options: ReadOptions) -> None:
        self._batch, self._name, self._first = batch, name, first
        self._id_field = options.id_field
        self._rejects: dict[int, Reject] = {}
        self.times: list[int | None] = self._read_times(options) if options.time_field else [0] * batch.num_rows

    def _read_times(self, options: ReadOptions) -> list[int | None]:
        import pyarrow as pa

        column, unit = self._batch.column(options.time_field), options.time_unit
        if pa.types.is_timestamp(column.type):
            column, unit = column.cast(pa.int64()), column.type.unit
        times: list[int | None] = []
        for value in column.to_pylist():
            try:
                times.append(to_micros(value, unit))
            except ValueError as error:
                self._rejects[len(times)] = time_reject(options.time_field, error)
                times.append(None)
        return times

    def records(self, indices: Sequence[int]) -> list[SourceRecord]:
        """See ``Block.records``."""
        import pyarrow as pa

        batch = self._batch.take(pa.array(indices, pa.int64()))
        try:
            schema = pa.schema([f.with_type(_plain(f.type)) for f in batch.schema])
            rows: list[dict[str, Any]] = batch.cast(schema, safe=False).to_pylist()
        except (ValueError, pa.ArrowException) as error:
            first, last = self._first + indices[0], self._first + indices[-1]
            raise ConfigurationError(f"{self._name}: rows {first} to {last} have values that cannot be written as JSON: {error}") from error
        return [
            SourceRecord(encode_key(row.get(self._id_field)), encode_row(row), f"{self._name}:{self._first + i}", self._rejects.get(i))
            for i, row in zip(indices, rows, strict=True)
        ]


def _plain(kind: pa.DataType) -> pa.DataType:
    """The nearest type whose values are Python's own: times in microseconds, and in UTC."""
    import pyarrow as pa

    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC")
    if pa.types.is_time64(kind):
        return pa.time64("us")
    if pa.types.is_duration(kind):
        return pa.duration("us")
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(_plain(f.type)) for f in kind])
    return kind
