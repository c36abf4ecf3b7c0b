"""Typed rows as Arrow tables of an Iceberg table's columns, and which of two rows wins, for whole columns at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents.runtime.ledger_sink import RANK, Rows
from factory_agents.sinks.iceberg.table import PUBLICATION

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Beside", "Keys", "arrow_table", "beside", "joined", "keys_of", "newest", "taken"]


class Keys(msgspec.Struct, frozen=True):
    """Keys (each as one value), the first column of each, and ranks of rows, one beside the other."""

    keys: pa.Array
    first: pa.Array
    ranks: pa.Array

    def __len__(self) -> int:
        return len(self.keys)


class Beside(msgspec.Struct, frozen=True):
    """What a landing does to some rows of the table, and they to it.

    ``kept``: which of them stay; ``stays``: whether all do. ``removed``: how many go without a successor. ``blocked``: the indexes of new
    rows that the table has newer.
    """

    kept: pa.Array
    stays: bool
    removed: int
    blocked: pa.Array


def arrow_table(rows: Rows, schema: pa.Schema, publication: int) -> pa.Table:
    """Rows as the table's columns, in its order; what no event has is null."""
    import pyarrow as pa

    columns = dict(zip(rows.columns, zip(*rows.rows, strict=True), strict=True))
    arrays = []
    for field in schema:
        if field.name == PUBLICATION:
            arrays.append(pa.array([publication], field.type).take(pa.array([0] * len(rows.rows))))
        elif field.name in columns:
            arrays.append(pa.array(_plain(columns[field.name], field.type), field.type))
        else:
            arrays.append(pa.nulls(len(rows.rows), field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _plain(values: Sequence[Any], type_: pa.DataType) -> Sequence[Any]:
    """Values as Arrow takes them: a UUID as text."""
    import pyarrow as pa

    if not pa.types.is_large_string(type_) or all(type(value) in (str, type(None)) for value in values):
        return values
    return [value if value is None else str(value) for value in values]


def keys_of(table: pa.Table, key: Sequence[str]) -> Keys:
    """Keys and ranks of a table's rows; several columns are joined to one value, which no other key has."""
    columns = [_whole(table, name) for name in key]
    return Keys(_single(columns), columns[0], _whole(table, RANK))


def _whole(table: pa.Table, name: str) -> pa.Array:
    import pyarrow as pa

    found = table.column(name).combine_chunks()
    return found if isinstance(found, pa.Array) else pa.concat_arrays(found.chunks)


def _single(columns: Sequence[pa.Array]) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    if len(columns) == 1:
        return columns[0]
    texts = [c if pa.types.is_large_binary(c.type) else pc.cast(pc.cast(c, pa.large_string()), pa.large_binary()) for c in columns]
    parts = [part for text in texts for part in (pc.cast(pc.cast(pc.binary_length(text), pa.large_string()), pa.large_binary()), text)]
    return pc.binary_join_element_wise(*parts, pa.scalar(b" ", pa.large_binary()))


def joined(parts: Sequence[Keys]) -> Keys:
    """The keys of several parts."""
    import pyarrow as pa

    return Keys(*(pa.concat_arrays([getattr(part, name) for part in parts]) for name in Keys.__struct_fields__))


def newest(keys: Keys) -> pa.Array | None:
    """The indexes of each key's greatest rank, in order; None where no key is there twice."""
    import pyarrow as pa
    import pyarrow.compute as pc

    order = pc.sort_indices(pa.table({"key": keys.keys, "rank": keys.ranks}), sort_keys=[("key", "ascending"), ("rank", "descending")])
    ordered = keys.keys.take(order)
    first = pc.not_equal(ordered.slice(1), ordered.slice(0, max(len(ordered) - 1, 0)))
    if pc.all(first, min_count=0).as_py():
        return None
    chosen = order.filter(pa.concat_arrays([pa.array([True]), first]))
    return chosen.take(pc.sort_indices(chosen))


def taken(keys: Keys, indexes: pa.Array) -> Keys:
    """Some of the keys."""
    return Keys(*(getattr(keys, name).take(indexes) for name in Keys.__struct_fields__))


def beside(new: Keys, found: pa.Table, key: Sequence[str], past: Sequence[int], stale: Sequence[int], *, newer_wins: bool) -> Beside:
    """What becomes of rows that the table has (their key, rank and publication) when the new ones land.

    A row gives way to a new one of its key if its publication is among ``past`` or, with ``newer_wins``, its rank is no greater; else it
    blocks the new one. Rows of ``stale`` go whatever comes.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    publications = _whole(found, PUBLICATION)
    old = keys_of(found, key)
    place = pc.index_in(old.keys, value_set=new.keys)
    matched = pc.is_valid(place)
    is_past, is_stale = (pc.is_in(publications, value_set=pa.array(of, pa.int64())) for of in (past, stale))
    if newer_wins:
        not_newer = pc.fill_null(pc.greater_equal(new.ranks.take(place), old.ranks), pc.is_null(old.ranks))
        outdone = pc.and_(matched, pc.or_(is_past, not_newer))
        blocked = place.filter(pc.and_(matched, pc.invert(outdone)))
    else:
        outdone = pc.and_(matched, is_past)
        blocked = pa.array([], place.type)
    removed = pc.sum(pc.and_(is_stale, pc.invert(matched))).as_py() or 0
    kept = pc.invert(pc.or_(outdone, is_stale))
    return Beside(kept, pc.all(kept, min_count=0).as_py(), removed, blocked)
