"""Parquet: each row becomes a JSON object; row groups that lie outside of the interval are not read.

A few bytes of such a file can mean more than any memory holds: a long text that a million rows share, a list of a million zeros. So what
rows share stays shared until a few of them are written out, batches are bounded in bytes, and a column that is a thousand times what the
file holds of it is refused.
"""

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
    all_to_micros,
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

_BATCH_BYTES = 8 << 20
"""About what the rows of one batch may take."""
_MOST_BYTES, _MOST_TIMES = 256 << 20, 200
"""A column of a row group that takes more than this, and more than so many times what the file holds of it, is not read."""


def parquet_blocks(file: BinaryIO, name: str, options: ReadOptions, bounds: tuple[int, int]) -> Iterator[Block]:
    """Blocks of rows, numbered from 1; rejected are a row without a readable time by rule ``time``, one with a value that JSON has no
    form for by ``type`` and one of more than ``max_line_bytes`` by ``length``.

    ``bounds`` are the interval's, in microseconds. Timestamps become ISO-8601 in UTC with microseconds at most. Raises ConfigurationError
    where the time field is missing, a column's name is there twice, or a column would not fit into memory.
    """
    import pyarrow.parquet as pq

    reader = pq.ParquetFile(file, coerce_int96_timestamp_unit="us")  # in nanoseconds the year 9999 would be another one
    names = reader.schema_arrow.names
    if len(set(names)) < len(names):
        raise ConfigurationError(f"{name}: a column's name is there twice: {', '.join(names)}")
    if options.time_field:
        check_field(options.time_field, "time_field", names, name)
    shared = _shared_columns(reader)
    reader = pq.ParquetFile(file, metadata=reader.metadata, read_dictionary=shared, coerce_int96_timestamp_unit="us")
    number = 1
    for group in range(reader.num_row_groups):
        outside = _time_outside(reader, group, options.time_field, bounds)
        if outside is not None:
            yield Rows(name, as_is, [number], [outside], [None], [b""])
            number += reader.metadata.row_group(group).num_rows
            continue
        for batch in reader.iter_batches(batch_size=_batch_rows(reader, group, name), row_groups=[group]):
            for part, sizes in _bounded(batch):
                yield _Batch(part, sizes, name, number, options)
                number += part.num_rows


def _shared_columns(reader: pq.ParquetFile) -> list[str]:
    """Texts and bytes of which the file holds each value once: they are read as it holds them."""
    metadata = reader.metadata
    columns = [metadata.row_group(group).column(i) for group in range(metadata.num_row_groups) for i in range(metadata.num_columns)]
    return sorted({c.path_in_schema for c in columns if c.physical_type == "BYTE_ARRAY" and c.has_dictionary_page})


def _batch_rows(reader: pq.ParquetFile, group: int, name: str) -> int:
    """How many rows of a group make a batch; raises ConfigurationError for a column that is too large to be read."""
    metadata = reader.metadata.row_group(group)
    total: int = 0
    for i in range(metadata.num_columns):
        column, kind = metadata.column(i), reader.schema.column(i)
        text = column.physical_type == "BYTE_ARRAY"
        width = 4 if text else kind.length or 8
        size = column.num_values * width + (column.total_uncompressed_size if text else 0)
        repeated = kind.max_repetition_level > 0
        if (text or repeated) and size > max(_MOST_BYTES, _MOST_TIMES * column.total_compressed_size):
            raise ConfigurationError(
                f"{name}: row group {group + 1}, column {column.path_in_schema!r}: {column.total_compressed_size:,} bytes of the file mean "
                f"{size >> 20:,} MiB in memory; if that is meant, write it in smaller row groups"
            )
        total += size
    rows: int = _BATCH_BYTES * metadata.num_rows // max(1, total)
    return max(1, min(BATCH_RECORDS, rows))


def _bounded(batch: pa.RecordBatch) -> Iterator[tuple[pa.RecordBatch, list[int]]]:
    """The batch in parts of about ``_BATCH_BYTES`` once its rows share nothing, at least a row each; with the sizes of their rows."""
    names = sum(len(name) + 8 for name in batch.schema.names)
    sizes = [names + sum(row) for row in zip(*(_sizes(column).to_pylist() for column in batch.columns), strict=True)]
    start, taken = 0, 0
    for i, size in enumerate(sizes):
        if taken and taken + size > _BATCH_BYTES:
            yield batch.slice(start, i - start), sizes[start:i]
            start, taken = i, 0
        taken += size
    yield batch.slice(start), sizes[start:]


def _sizes(array: pa.Array) -> pa.Array:
    """About how many bytes each value takes by itself."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind, types = array.type, pa.types
    if types.is_dictionary(kind):
        return pc.fill_null(pc.take(_sizes(array.dictionary), array.indices), 0)
    if types.is_string(kind) or types.is_binary(kind) or types.is_large_string(kind) or types.is_large_binary(kind):
        return pc.fill_null(pc.binary_length(array).cast(pa.int64()), 0)
    if types.is_struct(kind):
        total = pa.repeat(8, len(array))
        for i in range(kind.num_fields):
            total = pc.add(total, _sizes(array.field(i)))
        return total
    if types.is_map(kind):
        return _sums(array.offsets, pc.add(_sizes(array.keys), _sizes(array.items)))
    if types.is_list(kind) or types.is_large_list(kind):
        return _sums(array.offsets, _sizes(array.values))
    return pa.repeat(max(8, array.nbytes // max(1, len(array))), len(array))


def _sums(offsets: pa.Array, sizes: pa.Array) -> pa.Array:
    """What the elements of each list take together."""
    import pyarrow as pa
    import pyarrow.compute as pc

    before = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(sizes)])
    return pc.subtract(before.take(offsets[1:]), before.take(offsets[:-1]))


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
    try:
        least, greatest = to_micros(statistics.min), to_micros(statistics.max)
    except (ValueError, OverflowError):  # beyond Python's years
        return None
    return least if greatest < bounds[0] or least >= bounds[1] else None


class _Batch:
    """Some rows of a record batch as a block."""

    def __init__(self, batch: pa.RecordBatch, sizes: list[int], name: str, first: int, options: ReadOptions) -> None:
        self._batch, self._sizes, self._name, self._first, self._options = batch, sizes, name, first, options
        self._rejects: dict[int, Reject] = {}
        self.times: list[int | None] = self._read_times() if options.time_field else [0] * batch.num_rows

    def _read_times(self) -> list[int | None]:
        import pyarrow as pa

        options = self._options
        column, unit = self._batch.column(options.time_field), options.time_unit
        if pa.types.is_timestamp(column.type):
            column, unit = column.cast(pa.int64()), column.type.unit
        elif pa.types.is_date(column.type):
            column, unit = _seconds(column), "s"
        try:
            return list(all_to_micros(_shared(column), unit, options.time_format))
        except _unfit():
            return [self._time(i, column[i], unit) for i in range(len(column))]

    def _time(self, index: int, value: Any, unit: Any) -> int | None:
        try:
            return to_micros(value.as_py(), unit, self._options.time_format)
        except _unfit() as error:
            self._rejects[index] = time_reject(self._options.time_field, error)
            return None

    def records(self, indices: Sequence[int]) -> list[SourceRecord]:
        """See ``Block.records``."""
        limit = self._options.max_line_bytes
        fitting = [i for i in indices if self._sizes[i] <= limit]
        rows = dict(zip(fitting, self._rows(fitting), strict=True))
        return [self._record(i, *(rows.get(i) or self._large_row(i))) for i in indices]

    def _record(self, index: int, row: dict[str, Any], reject: Reject | None) -> SourceRecord:
        where = f"{self._name}:{self._first + index}"
        return SourceRecord(encode_key(row.get(self._options.id_field)), encode_row(row), where, self._rejects.get(index) or reject)

    def _rows(self, indices: Sequence[int]) -> list[tuple[dict[str, Any], Reject | None]]:
        import pyarrow as pa

        try:
            return [(row, None) for row in _python(self._batch.take(pa.array(indices, pa.int64())))]
        except _unfit():
            return [self._odd_row(i) for i in indices]

    def _odd_row(self, index: int) -> tuple[dict[str, Any], Reject | None]:
        """A row by its columns, one of which may have a value that JSON has no form for: it comes as Arrow's text."""
        row: dict[str, Any] = {}
        reject: Reject | None = None
        for name in self._batch.schema.names:
            cell = self._batch.select([name]).slice(index, 1)
            try:
                row |= _python(cell)[0]
            except _unfit() as error:
                row[name] = _text(cell.column(0))
                reject = reject or Reject(f"column {name!r}: {row[name]!s:.60} has no form in JSON: {error}", rule="type")
        return row, reject

    def _large_row(self, index: int) -> tuple[dict[str, Any], Reject | None]:
        """What is kept of a row that would not fit into a record."""
        row = self._batch.slice(index, 1)
        small = [i for i, column in enumerate(row.columns) if _sizes(column)[0].as_py() <= _KEPT_BYTES]
        limit = self._options.max_line_bytes
        reject = Reject(f"the row is longer than max_line_bytes={limit}; its small columns are kept", rule="length")
        return (_python(row.select(small)) or [{}])[0], reject


_KEPT_BYTES = 4096


def _unfit() -> tuple[type[Exception], ...]:
    """What Arrow and Python raise of values that the other has no form for."""
    import pyarrow as pa

    return (ValueError, OverflowError, pa.ArrowException)


def _seconds(dates: pa.Array) -> pa.Array:
    """The beginnings of days since 1970, as Python has no day after the year 9999."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_date64(dates.type):
        return pc.divide(dates.cast(pa.int64()), 1000)
    return pc.multiply(dates.cast(pa.int32()).cast(pa.int64()), 86_400)


def _shared(column: pa.Array) -> list[Any]:
    """The values in Python, each made once however many rows share it."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        values: list[Any] = column.to_pylist()
        return values
    known = [*column.dictionary.to_pylist(), None]
    return [known[-1 if i is None else i] for i in column.indices.to_pylist()]


def _python(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows as Python has them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = [pc.cast(column, options=pc.CastOptions(_plain(column.type), allow_time_truncate=True)) for column in batch.columns]
    rows: list[dict[str, Any]] = pa.RecordBatch.from_arrays(columns, batch.schema.names).to_pylist()
    return rows


def _text(cell: pa.Array) -> str:
    import pyarrow as pa

    try:
        return str(cell.cast(pa.string())[0].as_py())
    except _unfit():
        return f"a {cell.type}"


def _plain(kind: pa.DataType) -> pa.DataType:
    """The nearest type whose values are Python's own: times in microseconds, and in UTC."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC")
    if pa.types.is_time64(kind):
        return pa.time64("us")
    if pa.types.is_duration(kind):
        return pa.duration("us")
    if pa.types.is_map(kind):
        return pa.map_(_plain(kind.key_type), _plain(kind.item_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type)), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(_plain(f.type)) for f in kind])
    return kind
