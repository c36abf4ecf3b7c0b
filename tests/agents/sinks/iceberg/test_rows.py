"""Keys of whole columns: which of them are the same."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg_core.transform import bucket

from factory_agents.runtime.ledger_sink import RANK
from factory_agents.sinks.iceberg.rows import Keys, has_twice, keys_of, newest, places_among


def keys(*columns: pa.Array) -> Keys:
    names = [f"k{i}" for i in range(len(columns))]
    ranks = pa.array([i.to_bytes(4, "big") for i in range(len(columns[0]))], pa.large_binary())
    return keys_of(pa.table([*columns, ranks], [*names, RANK]), names)


@pytest.mark.parametrize("beside", [(), (pa.array(["x", "x"]),)])
def test_minus_zero_is_zero(beside: tuple[pa.Array, ...]) -> None:
    both = keys(pa.array([0.0, -0.0]), *beside)
    assert has_twice([both])
    assert newest(both).to_pylist() == [1]
    minus, plain = (keys(pa.array([value]), *(c.slice(0, 1) for c in beside)) for value in (-0.0, 0.0))
    assert places_among(minus, plain) == [0]


def test_keys_are_looked_for_in_all_parts() -> None:
    one, two = keys(pa.array(["a", "b"])), keys(pa.array(["c", "a"]))
    assert not has_twice([one])
    assert has_twice([one, two])


def test_of_a_key_that_is_there_twice_the_greatest_rank_stays() -> None:
    assert newest(keys(pa.array(["a", "b", "a", "c"]))).to_pylist() == [1, 2, 3]
    assert newest(keys(pa.array(["a", "b"]))) is None


def test_keys_of_one_hash_are_told_apart() -> None:
    """Among so many texts some share a hash of 31 bits."""
    texts = [f"event-{i:07d}" for i in range(200_000)]
    assert len(set(bucket(pa.array(texts, pa.large_string()), 2**31 - 1).to_pylist())) < len(texts)
    assert not has_twice([keys(pa.array(texts, pa.large_string()))])
    assert has_twice([keys(pa.array(texts, pa.large_string())), keys(pa.array(texts[-1:], pa.large_string()))])


@pytest.mark.parametrize(
    "values",
    [[1, 2, 1], [True, False, True], ["", "a", ""], [b"", b"a", b""], [Decimal("1.0"), Decimal("2.0"), Decimal("1.0")]],
    ids=lambda values: type(values[0]).__name__,
)
def test_keys_of_any_type_are_looked_for(values: list[Any]) -> None:
    column = pa.array(values)
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        column = column.cast(pa.large_string() if pa.types.is_string(column.type) else pa.large_binary())
    assert has_twice([keys(column)])
    assert not has_twice([keys(column.slice(1))])
    assert not has_twice([keys(column.slice(0, 0))])
