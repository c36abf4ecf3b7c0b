"""Hashes of texts by whole columns, and what is there twice in a column: so that equal keys are looked for among few of many."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["comes_again", "hashes_of", "met_again"]

_WORD = 8
_WORDS = 8
"""How many words of a text are hashed by arithmetic, a column of them at a time; what comes after them by Iceberg's own hash, slower."""
_ODD = 0x9E3779B97F4A7C15
_BITS = 64
_SPARSE = 2
"""At least so many places for each number."""


def hashes_of(texts: pa.Array) -> pa.Array:
    """A number of 64 bits for each text or bytes, whatever else the column holds: the same for equal ones. That of null says nothing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found, odd = pa.repeat(_number(0), len(texts)), 1
    if not len(texts):
        return found
    texts = pc.fill_null(texts.view(pa.large_binary()), b"")
    least, most = pc.min_max(pc.binary_length(texts)).as_py().values()
    for at in range(0, min(most, _WORD * _WORDS), _WORD):
        odd = odd * _ODD % 2**_BITS
        word = pc.binary_slice(texts, at, at + _WORD)
        if at + _WORD > least:  # a word that isn't there is zero, and adds nothing
            word = pc.ascii_rpad(word.view(pa.large_string()), _WORD, "\0")
        numbers = pa.Array.from_buffers(pa.uint64(), len(word), [None, word.buffers()[2]])
        found = pc.add(found, pc.multiply(numbers, _number(odd)))
    if most > _WORD * _WORDS:
        from pyiceberg_core.transform import bucket

        rest = bucket(pc.binary_slice(texts, _WORD * _WORDS, most), 2**31 - 1)  # zero where nothing is left
        found = pc.add(found, pc.multiply(rest.cast(pa.uint64()), _number(odd * _ODD % 2**_BITS)))
    # A product's high bits depend on all bits below them: so do all bits of this one.
    return pc.multiply(pc.bit_wise_xor(found, pc.shift_right(found, _number(_BITS // 2))), _number(_ODD))


def _number(value: int) -> pa.Scalar:
    import pyarrow as pa

    return pa.scalar(value, pa.uint64())


def met_again(hashes: pa.Array) -> pa.Array:
    """Those of hashes that are there more than once.

    Each has a place by its highest bits, which keeps one of those that it is given. Equal ones either meet the one that is kept, or are all
    among the few that meet another, and are looked up.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    bits = (_SPARSE * len(hashes)).bit_length()
    places = pc.shift_right(hashes, _number(_BITS - bits)).cast(pa.uint32()).view(pa.int32())
    given = pc.inverse_permutation(places, max_index=2**bits - 1, output_type=pa.int32())
    given = pa.Array.from_buffers(given.type, len(given), [None, given.buffers()[1]])  # only places that keep one are asked
    kept = given.take(places)
    others = pc.not_equal(kept, pc.cast(pc.indices_nonzero(pa.repeat(True, len(hashes))), pa.int32()))
    left = hashes.filter(others)
    met = pc.equal(hashes.take(kept.filter(others)), left)
    return pa.concat_arrays([left.filter(met), comes_again(left.filter(pc.invert(met)))])


def comes_again(values: pa.Array) -> pa.Array:
    """Those values that were there before, looked up one by one; null is none."""
    import pyarrow.compute as pc

    values = values.drop_null()
    seen = values.dictionary_encode().indices  # each new one counts on
    return values.slice(1).filter(pc.less_equal(seen.slice(1), pc.cumulative_max(seen).slice(0, max(len(seen) - 1, 0))))
