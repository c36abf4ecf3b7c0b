"""What is there twice in a column, found by hashes: the same as a dict says, whatever the texts and hashes are."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from unicodedata import normalize
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from factory_agents.runtime.ledger_sink import RANK
from factory_agents.sinks.iceberg import rows
from factory_agents.sinks.iceberg.hashes import _ODD, comes_again, hashes_of, met_again
from factory_agents.sinks.iceberg.rows import has_twice, joined, keys_of, newest

ALIKE = ["", "\0", "a", "a\0", "b" * 8, "b" * 8 + "\0", *("c" * n for n in (63, 64, 65)), "c" * 64 + "\0", *("d" * 200 + n for n in "12")]
ACCENTED = [normalize(form, "é ﬁ Å") for form in ("NFC", "NFD", "NFKC", "NFKD")]
MOMENTS = [datetime(2026, 11, 1, 6, tzinfo=UTC), datetime(2026, 11, 1, 7, tzinfo=ZoneInfo("Europe/Berlin"))]
CENTS = st.sampled_from([Decimal(1), Decimal("1.0"), Decimal("1.00"), Decimal("-0.00"), Decimal(0), Decimal("10.01")])
TEXTS = st.sampled_from([*ALIKE, *ACCENTED]) | st.text(max_size=70)
COLUMNS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.large_string(), TEXTS),
    (pa.large_binary(), TEXTS.map(str.encode) | st.binary(max_size=140)),
    (pa.int64(), st.sampled_from([0, -1, 2**63 - 1, -(2**63)]) | st.integers(-3, 3)),
    (pa.float64(), st.sampled_from([0.0, -0.0, 1.5, float("inf"), float("nan")])),
    (pa.decimal128(38, 9), CENTS),
    (pa.timestamp("us", "UTC"), st.sampled_from(MOMENTS) | st.integers(0, 3).map(lambda n: MOMENTS[0] + timedelta(microseconds=n))),
    (pa.date32(), st.integers(0, 3).map(lambda n: date(2026, 1, 1 + n))),
    (pa.bool_(), st.booleans()),
]


@st.composite
def parts_of_a_window(draw: st.DrawFn) -> tuple[list[pa.DataType], list[list[tuple[Any, ...]]]]:
    columns = draw(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=3))
    key = st.tuples(*(values for _, values in columns))
    some = draw(st.lists(key, min_size=1, max_size=8))
    part = st.lists(st.sampled_from(some) | key, max_size=12)
    return [type_ for type_, _ in columns], draw(st.lists(part, min_size=1, max_size=4))


def as_dict_keys(keys: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Keys as a dict tells them apart, where one NaN is as good as another."""
    return [tuple("NaN" if value != value else value for value in key) for key in keys]


@given(parts_of_a_window(), st.booleans())
def test_keys_are_told_apart_as_by_a_dict(window: tuple[list[pa.DataType], list[list[tuple[Any, ...]]]], one_hash: bool) -> None:
    types, parts = window
    names = [f"k{i}" for i in range(len(types))]
    made, count = [], 0
    for part in parts:
        columns = [pa.array([key[i] for key in part], type_) for i, type_ in enumerate(types)]
        ranks = pa.array([n.to_bytes(4, "big") for n in range(count, count + len(part))], pa.large_binary())
        padding = [column.take(pa.array([0] * bool(len(part)), pa.int64())) for column in columns]  # columns that begin within a buffer
        whole = pa.table([pa.concat_arrays([pad, column]) for pad, column in zip(padding, columns, strict=True)], names)
        made.append(keys_of(whole.slice(int(len(part) > 0)).append_column(RANK, ranks), names))
        count += len(part)
    with pytest.MonkeyPatch.context() as patched:
        if one_hash:
            patched.setattr(rows, "hashes_of", lambda texts: pa.repeat(pa.scalar(7, pa.uint64()), len(texts)))
        keys = as_dict_keys([key for part in parts for key in part])
        last = {key: n for n, key in enumerate(keys)}
        assert has_twice(made) == (len(last) < len(keys))
        if not any("NaN" in key for key in keys):
            chosen = newest(joined(made))
            assert (chosen.to_pylist() if chosen is not None else list(range(len(keys)))) == sorted(last.values())


@given(st.lists(st.sampled_from([0, 1, 2**32, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1), max_size=50))
@example([1, 2, 1, 2, 3, 3, 3])
def test_hashes_that_are_met_again(hashes: list[int]) -> None:
    """Small ones share one place: those that meet another number there are looked up."""
    again = {number for number, times in Counter(hashes).items() if times > 1}
    assert set(met_again(pa.array(hashes, pa.uint64())).to_pylist()) == again
    assert set(comes_again(pa.array(hashes, pa.uint64())).to_pylist()) == again


@given(st.lists(TEXTS | st.none(), max_size=20))
def test_a_hash_is_of_the_text_alone(texts: list[str | None]) -> None:
    """Texts share one that differ in zeros at their end, at most."""
    together = hashes_of(pa.array(texts, pa.large_string())).to_pylist()
    for text, found in zip(texts, together, strict=True):
        assert text is None or hashes_of(pa.array([text], pa.large_string())).to_pylist() == [found]
    stripped = {(found, text.rstrip("\0")) for text, found in zip(texts, together, strict=True) if text is not None}
    assert len({found for found, _ in stripped}) == len(stripped)


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        ([None, None, None], None),
        (["1", None, "1"], [1, 2]),
        ([None, None, "1", "1"], [0, 1, 3]),
        (["", None, "", None], [1, 2, 3]),
    ],
)
@pytest.mark.parametrize("of", [pa.large_string(), pa.large_binary(), pa.int64()])
@pytest.mark.parametrize("composite", [False, True])
def test_null_is_no_key(keys: list[str | None], kept: list[int] | None, of: pa.DataType, composite: bool) -> None:
    """The reader lets none through. Two of them are not one key, and hide nobody else's."""
    values = [int(key or 0) if key is not None and pa.types.is_integer(of) else key for key in keys]
    column = pa.array([value.encode() if isinstance(value, str) and of == pa.large_binary() else value for value in values], of)
    more = {"more": pa.repeat("x", len(keys)).cast(pa.large_string())} if composite else {}
    ranks = pa.array([bytes([n]) for n in range(len(keys))], pa.large_binary())
    found = keys_of(pa.table({"k": column, **more, RANK: ranks}), ["k", *more])
    assert has_twice([found]) == (kept is not None)
    chosen = newest(found)
    assert (chosen if chosen is None else chosen.to_pylist()) == kept


@pytest.mark.parametrize("twice", [False, True])
def test_keys_made_to_share_one_hash_are_told_apart(twice: bool) -> None:
    """The hash's arithmetic is public: any number of keys of two words can be made to share one."""
    keys = [(-_ODD * n % 2**64).to_bytes(8, "little") + n.to_bytes(8, "little") for n in range(50_000)]
    keys += keys[7:8] * twice
    column = pa.array(keys, pa.large_binary())
    assert len(hashes_of(column).unique()) == 1
    ranks = pa.array([n.to_bytes(4, "big") for n in range(len(keys))], pa.large_binary())
    found = keys_of(pa.table({"k": column, RANK: ranks}), ["k"])
    assert has_twice([found]) == twice
    chosen = newest(found)
    assert (chosen if chosen is None else chosen.to_pylist()) == ([n for n in range(50_001) if n != 7] if twice else None)


def test_many_texts_have_a_hash_each() -> None:
    texts = [f"{kind}{i}" for i in range(100_000) for kind in ("order-", f"https://shop.example/{'x' * 60}/")]
    hashes = hashes_of(pa.array(texts, pa.large_string()))
    assert len(hashes.unique()) > 0.999 * len(texts)
    assert not len(met_again(hashes_of(pa.array(texts[::2], pa.large_string()))))
