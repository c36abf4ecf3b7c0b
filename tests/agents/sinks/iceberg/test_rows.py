"""Keys of whole columns: which of them are the same."""

from __future__ import annotations

import pyarrow as pa
import pytest

from factory_agents.runtime.ledger_sink import RANK
from factory_agents.sinks.iceberg.rows import Keys, has_twice, keys_of, newest, places_among


def keys(*columns: pa.Array) -> Keys:
    names = [f"k{i}" for i in range(len(columns))]
    ranks = pa.array([bytes([i]) for i in range(len(columns[0]))], pa.large_binary())
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
