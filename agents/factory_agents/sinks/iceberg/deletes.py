"""What deletes do to a landing's rows and to what is remembered of earlier deletes, for whole columns at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from factory_agents.sinks.iceberg.rows import Keys, is_not_after, keys_of, newest, taken
from factory_agents.sinks.iceberg.table import PUBLICATION

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Deletes", "deletes_of"]


class Deletes(msgspec.Struct, frozen=True):
    """The deletes of one landing.

    ``keys`` are those that count, each key's last one; ``left`` the indexes of the landing's rows that no delete outweighs, one a key
    (None: all); ``distinct`` how many keys rows and deletes had. Of the ``remembered`` parts only those numbered ``replaced`` change:
    ``rest`` is what is remembered in their place.
    """

    keys: Keys
    left: list[int] | None
    distinct: int
    replaced: tuple[int, ...]
    rest: pa.Table


def deletes_of(
    told: pa.Table, new: Keys, remembered: Sequence[pa.Table], key: Sequence[str], past: Sequence[int], stale: Sequence[int]
) -> Deletes:
    """What counts of the deletes that a landing was ``told``, beside those ``remembered`` (tables of key, rank and publication).

    A delete that is remembered counts unless its publication is among ``past``; of two of one key the later one does.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    chosen = newest(keys_of(told, key))
    told = told if chosen is None else told.take(chosen)
    own = keys_of(told, key)
    distinct = len(pc.unique(pa.concat_arrays([new.keys, own.keys])))
    everything = pa.concat_tables([told.slice(0, 0), *remembered])
    known = keys_of(everything.filter(pc.invert(_is_of(everything, past))), key)
    later = pc.less(own.ranks, known.ranks.take(pc.index_in(own.keys, value_set=known.keys)))
    told = told.filter(pc.invert(pc.fill_null(later, False)))
    counts = keys_of(told, key)
    left = pc.indices_nonzero(pc.invert(pc.or_(is_not_after(new, counts), is_not_after(new, known))))
    kept = taken(new, left)
    if (chosen := newest(kept)) is not None:
        left = left.take(chosen)
    replaced, rest = [], [told]
    for number, part in enumerate(remembered):
        goes = pc.or_(pc.is_in(keys_of(part, key).keys, value_set=counts.keys), _is_of(part, stale))
        if pc.any(goes).as_py():
            replaced.append(number)
            rest.append(part.filter(pc.invert(goes)))
    return Deletes(counts, left.to_pylist() if len(left) < len(new) else None, distinct, tuple(replaced), pa.concat_tables(rest))


def _is_of(deletes: pa.Table, publications: Sequence[int]) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.is_in(deletes.column(PUBLICATION).combine_chunks(), value_set=pa.array(publications, pa.int64()))
