"""Ranks: bytes that compare as values and records do."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_agents.contracts import load_contract
from factory_agents.errors import ConfigurationError
from factory_agents.runtime.rank import Ranker, rank_of, window_start
from tests.support.sink_bench import W1, W2

NUMBERS = st.decimals(allow_nan=False, allow_infinity=False, places=None) | st.integers(-(10**40), 10**40).map(Decimal)
KINDS = [
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8")),
    st.booleans(),
    NUMBERS,
    st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5))])),
    st.datetimes(),
    st.dates(),
    st.times(),
    st.uuids(),
]


@given(st.sampled_from(KINDS).flatmap(lambda kind: st.tuples(kind, kind)))
def test_values_compare_as_their_bytes_do(pair: tuple[Any, Any]) -> None:
    one, other = pair
    if isinstance(one, str):
        assert (rank_of(one) < rank_of(other)) == (one.encode() < other.encode())
    else:
        assert (rank_of(one) < rank_of(other)) == (one < other)
    assert (rank_of(one) == rank_of(other)) == (one == other)
    assert rank_of(None) < rank_of(one)


@given(
    st.sampled_from(KINDS).flatmap(lambda kind: st.tuples(kind | st.none(), kind | st.none())), st.binary(max_size=3), st.binary(max_size=3)
)
def test_what_follows_a_value_decides_only_between_equal_ones(pair: tuple[Any, Any], after: bytes, after_other: bytes) -> None:
    one, other = map(rank_of, pair)
    if one != other:
        assert (one + after < other + after_other) == (one < other)


def test_version_time_window_and_record_in_this_order() -> None:
    columns = {"id": "text", "v": "bigint", "at": "timestamptz"}
    table = load_contract({"name": "n", "id": "id", "time": "at", "version_field": "v", "columns": columns}).table()
    later = datetime(2026, 11, 1, tzinfo=UTC)
    rows = [
        (W1, ("x", None, later), 9, 9, 9),
        (W1, ("x", 1, None), 9, 9, 9),
        (W1, ("x", 1, later), 1, 1, 1),
        (W1, ("x", 1, later), 1, 1, 2),
        (W1, ("x", 1, later), 1, 2, 0),
        (W1, ("x", 1, later), 2, 0, 0),
        (W2, ("x", 1, later), -1, 0, 0),
        (W1, ("x", 2, None), 0, 0, 0),
    ]
    ranks = [Ranker(table, window).one(values, *record) for window, values, *record in rows]  # type: ignore[call-arg]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == len(ranks)


@pytest.mark.parametrize("window", ["run-1 p", "all", "live-2-x p", "no/time p"])
def test_a_window_of_no_interval_has_no_start(window: str) -> None:
    assert window_start(window) == 0
    assert window_start(W1) == 1_793_491_200_000_000


@pytest.mark.parametrize("value", [date(1, 1, 1), time(23, 59), uuid.UUID(int=1), Decimal("-1e-999"), -1.5, False])
def test_no_value_is_the_beginning_of_another(value: Any) -> None:
    assert rank_of(value).startswith(b"\1")


def test_what_has_no_order_here_is_named() -> None:
    table = load_contract({"name": "n", "id": "id", "version_field": "v", "columns": {"id": "text", "v": "text[]"}}).table()
    with pytest.raises(ConfigurationError, match=r"column 'v': rows are compared by it; expected one of bigint, .* got text\[\]"):
        Ranker(table, W1)
