"""Typed rows as Arrow tables of an Iceberg table's columns, and which of two rows wins, for whole columns at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents.runtime.ledger_sink import RANK
from factory_agents.runtime.rank import PLACE
from factory_agents.sinks.iceberg.hashes import comes_again, hashes_of, met_again
from factory_agents.sinks.iceberg.table import PUBLICATION

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Beside",
    "Keys",
    "beside",
    "column_of",
    "deletes_table",
    "filled",
    "has_twice",
    "is_not_after",
    "joined",
    "keys_of",
    "newest",
    "places_among",
    "taken",
]


@dataclass(frozen=True)
class Keys:
    """Keys (each as one value), the first column of each, and ranks of rows, one beside the other."""

    keys: pa.Array
    first: pa.Array
    ranks: pa.Array

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def hashes(self) -> pa.Array | None:
        """Hashes of texts; None for keys that are told apart as fast themselves."""
        import pyarrow as pa

        is_text = pa.types.is_large_string(self.keys.type) or pa.types.is_large_binary(self.keys.type)
        return hashes_of(self.keys) if is_text else None


class Beside(msgspec.Struct, frozen=True):
    """What a landing does to some rows of the table, and they to it.

    ``kept``: which of them stay; ``stays``: whether all do. ``removed``: how many go without a successor. ``blocked``: the indexes of new
    rows that the table has newer; ``standing``: those of deletes.
    """

    kept: pa.Array
    stays: bool
    removed: int
    blocked: pa.Array
    standing: pa.Array


def column_of(type_: pa.DataType) -> Callable[[Sequence[Any]], pa.Array]:
    """What makes a column of its values."""
    import pyarrow as pa

    return lambda values: pa.array(_plain(values, type_), type_)


def deletes_table(names: Sequence[str], deleted: Sequence[Sequence[Any]], schema: pa.Schema, publication: int) -> pa.Table:
    """Keys of rows to delete, each with its rank, as a table."""
    if not deleted:
        return schema.empty_table()
    columns = zip(names, zip(*deleted, strict=True), strict=True)
    return filled(schema, {name: column_of(schema.field(name).type)(values) for name, values in columns}, publication)


def filled(schema: pa.Schema, columns: Mapping[str, pa.Array], publication: int | None = None) -> pa.Table:
    """Columns, with a publication beside them, as a table; what else it has is null, or, where it may not be, the least that it holds."""
    import pyarrow as pa

    size = len(next(iter(columns.values())))
    if publication is not None:
        columns = {**columns, PUBLICATION: pa.repeat(pa.scalar(publication, pa.int64()), size)}
    return pa.Table.from_arrays([columns[f.name] if f.name in columns else _blank(f, size) for f in schema], schema=schema)


def _blank(field: pa.Field, size: int) -> pa.Array:
    import pyarrow as pa

    of = field.type
    if field.nullable:
        return pa.nulls(size, of)
    least: Any = [] if pa.types.is_nested(of) else "" if pa.types.is_large_string(of) else b"" if pa.types.is_large_binary(of) else 0
    return pa.array([bool(least) if pa.types.is_boolean(of) else least], of).take(pa.array([0] * size, pa.int64()))


def _plain(values: Sequence[Any], type_: pa.DataType) -> Sequence[Any]:
    """Values as Arrow takes them: a UUID as text, in a list too."""
    import pyarrow as pa

    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return [value if value is None else _plain(value, type_.value_type) for value in values]
    if not pa.types.is_large_string(type_) or set(map(type, values)) <= {str, type(None)}:
        return values
    return [value if value is None else str(value) for value in values]


def keys_of(table: pa.Table, key: Sequence[str]) -> Keys:
    """Keys and ranks of a table's rows; several columns are joined to one value, which no other key has."""
    columns = [_without_minus_zero(_whole(table, name)) for name in key]
    return Keys(_single(columns), columns[0], _whole(table, RANK))


def _whole(table: pa.Table, name: str) -> pa.Array:
    import pyarrow as pa

    found = table.column(name)
    if found.num_chunks == 1:
        return found.chunk(0)  # to combine one is to copy it
    found = found.combine_chunks()
    return found if isinstance(found, pa.Array) else pa.concat_arrays(found.chunks)


def _without_minus_zero(column: pa.Array) -> pa.Array:
    """Zero has two forms among floats: they compare as one, and are looked up as two."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.add(column, pa.scalar(0.0, column.type)) if pa.types.is_floating(column.type) else column


def _single(columns: Sequence[pa.Array]) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    if len(columns) == 1:
        return columns[0]
    texts = [c if pa.types.is_large_binary(c.type) else pc.cast(pc.cast(c, pa.large_string()), pa.large_binary()) for c in columns]
    parts = [part for text in texts for part in (pc.cast(pc.cast(pc.binary_length(text), pa.large_string()), pa.large_binary()), text)]
    return pc.binary_join_element_wise(*parts, pa.scalar(b" ", pa.large_binary()))


def joined(parts: Sequence[Keys]) -> Keys:
    """The keys of several parts; those of one are not copied."""
    import pyarrow as pa

    some = [part for part in parts if len(part)] or list(parts[:1])
    if len(some) == 1:
        return some[0]
    keys, ranks = (pa.concat_arrays([getattr(part, name) for part in some]) for name in ("keys", "ranks"))
    alike = all(part.first is part.keys for part in some)  # keys of one column, once
    return Keys(keys, keys if alike else pa.concat_arrays([part.first for part in some]), ranks)


def has_twice(parts: Sequence[Keys]) -> bool:
    """Whether a key is there twice. Those that share a hash are compared."""
    import pyarrow as pa
    import pyarrow.compute as pc

    hashes = [part.hashes for part in parts if part.hashes is not None]
    if not hashes:
        return len(comes_again(pa.concat_arrays([part.keys for part in parts]))) > 0
    shared = met_again(hashes[0] if len(hashes) == 1 else pa.concat_arrays(hashes))
    if not len(shared):
        return False
    some = [part.keys.filter(pc.is_in(part.hashes, value_set=shared)) for part in parts]
    return len(comes_again(pa.concat_arrays(some))) > 0


def newest(keys: Keys) -> pa.Array | None:
    """The indexes of each key's greatest rank, in order; None where no key is there twice."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not has_twice([keys]):
        return None
    order = pc.sort_indices(pa.table({"key": keys.keys, "rank": keys.ranks}), sort_keys=[("key", "ascending"), ("rank", "descending")])
    ordered = keys.keys.take(order)
    first = pc.fill_null(pc.not_equal(ordered.slice(1), ordered.slice(0, max(len(ordered) - 1, 0))), True)  # null is no other's key
    chosen = order.filter(pa.concat_arrays([pa.array([True]), first]))
    return chosen.take(pc.sort_indices(chosen))


def taken(keys: Keys, indexes: pa.Array) -> Keys:
    """Some of the keys."""
    return Keys(keys.keys.take(indexes), keys.first.take(indexes), keys.ranks.take(indexes))


def places_among(keys: Keys, others: Keys) -> list[int]:
    """The indexes of those keys that others have too."""
    import pyarrow.compute as pc

    if not len(keys):
        return []
    found: list[int] = pc.indices_nonzero(pc.is_in(keys.keys, value_set=others.keys)).to_pylist()
    return found


def is_not_after(rows: Keys, deletes: Keys) -> pa.Array:
    """Which rows a delete of their key outweighs: its rank is a place, and theirs ends with one."""
    import pyarrow.compute as pc

    at = pc.index_in(rows.keys, value_set=deletes.keys)
    before = pc.less_equal(pc.binary_slice(rows.ranks, -PLACE), deletes.ranks.take(at))
    return pc.and_(pc.is_valid(at), pc.fill_null(before, pc.is_null(rows.ranks)))


def beside(
    new: Keys, deletes: Keys, found: pa.Table, key: Sequence[str], past: Sequence[int], stale: Sequence[int], *, newer_wins: bool
) -> Beside:
    """What becomes of rows that the table has (their key, rank and publication) when new ones land, and deletes.

    A row gives way to a new one of its key if its publication is among ``past`` or, with ``newer_wins``, its rank is no greater; else it
    blocks the new one. A delete takes it along if its publication is among ``past``, or it isn't after the delete. Rows of ``stale`` go
    whatever comes.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    publications = _whole(found, PUBLICATION)
    old = keys_of(found, key)
    place = pc.index_in(old.keys, value_set=new.keys)
    matched = pc.is_valid(place)
    is_past, is_stale = (pc.is_in(publications, value_set=pa.array(of, pa.int64())) for of in (past, stale))
    deleted_at = pc.index_in(old.keys, value_set=deletes.keys)
    named = pc.is_valid(deleted_at)
    deleted = pc.and_(named, pc.or_(is_past, is_not_after(old, deletes)))
    if newer_wins:
        not_newer = pc.fill_null(pc.greater_equal(new.ranks.take(place), old.ranks), pc.is_null(old.ranks))
        outdone = pc.and_(matched, pc.or_(is_past, not_newer))
        blocked = place.filter(pc.and_not(matched, pc.or_(outdone, deleted)))
    else:
        outdone = pc.and_(matched, is_past)
        blocked = pa.array([], place.type)
    removed = pc.sum(pc.and_not(is_stale, pc.or_(matched, deleted))).as_py() or 0
    kept = pc.invert(pc.or_(pc.or_(outdone, deleted), is_stale))
    return Beside(kept, pc.all(kept, min_count=0).as_py(), removed, blocked, deleted_at.filter(pc.and_not(named, deleted)))
