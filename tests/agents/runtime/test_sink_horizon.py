"""What sinks' ledgers forget: which windows lie below a mark, by whose name, and what an older mark takes back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_agents.errors import SinkError, WindowError
from factory_agents.kafka.records import ALWAYS, MarkRecord, microseconds
from factory_agents.protocol import Interval, Shard
from factory_agents.runtime.agents import Claim
from factory_agents.runtime.sink_horizon import Horizons, horizons_key, is_below, own_name, read_horizons
from factory_agents.runtime.sink_ledger import entry_key, key_text, parts_of, read_entry

START = datetime(2026, 3, 1, tzinfo=UTC)
DAY = 24 * 3600.0
NOW = 1.8e9


def hour(n: int) -> str:
    return Interval(START + timedelta(hours=n), START + timedelta(hours=n + 1)).key


def claim(window: str, origin: str = "raw", **changes: Any) -> Claim:
    return replace(Claim("p", "s", f"{window} p {origin}", Shard(), "plan", "f", 1, 1, origin=origin), **changes)


def until(n: int, **more: Any) -> MarkRecord:
    return MarkRecord("p", "raw", spans=((ALWAYS, microseconds(START + timedelta(hours=n))),), **more)


@given(st.lists(st.text(alphabet="| ab"), min_size=1, max_size=4))
def test_a_keys_parts_are_what_it_was_made_of(parts: list[str]) -> None:
    assert parts_of(key_text(*parts)) == parts


@given(st.text(alphabet="| ph"), st.text(alphabet="| ph"), st.text(alphabet="| ph", min_size=1))
def test_no_entry_is_stored_where_horizons_are(pipeline: str, stage: str, window: str) -> None:
    one = replace(claim("w"), pipeline=pipeline, stage=stage)
    assert entry_key(replace(one, window=window)) != horizons_key(one)


def test_a_window_is_below_by_its_times_else_by_its_last_claim() -> None:
    mark = until(2, offset=300)
    assert [is_below(f"{hour(n)} p raw", 1000, claim("w"), mark) for n in range(4)] == [True, True, False, False]
    assert [is_below("manual p raw", generation, claim("w"), mark) for generation in (0, 299, 300)] == [False, True, False]
    for other in (f"{hour(0)} p ra", f"{hour(0)} p other", f"{hour(0)} q raw"):
        assert not is_below(other, 1, claim("w"), mark)
    assert is_below(f"{hour(0)} p raw[3]", 1, claim("w"), mark)


def test_a_windows_own_name_has_no_pipeline_and_scope() -> None:
    assert own_name("with a space p raw[12]", "p", "raw") == "with a space"
    assert own_name("w p", "p", "") == "w"
    assert own_name("w p raw", "p", "r.w") is None


def test_what_is_refused_stays_so_whatever_a_later_mark_says() -> None:
    moved = Horizons().moved("raw", until(2), NOW)
    assert not moved.is_due("raw", NOW + DAY - 1)
    assert moved.is_due("raw", NOW + DAY)
    assert moved.is_due("raw", NOW - 1)  # somebody's clock was ahead
    assert moved.is_due("other", NOW)
    for later in (moved, moved.moved("raw", until(1), NOW + DAY), moved.moved("raw", None, NOW + DAY)):
        again = read_horizons(later.text, "t")
        with pytest.raises(WindowError, match=r"table t, stage 's': window 2026-03-01T01.* was pruned from the ledger"):
            again.refuse(claim(hour(1)), "t")
        again.refuse(claim(hour(2)), "t")
        again.refuse(claim(hour(1), origin="other"), "t")
        again.refuse(claim("manual"), "t")
    with pytest.raises(SinkError, match="table t: its ledger's horizon cannot be read"):
        read_horizons("{", "t")


def test_an_entry_of_an_earlier_release_has_no_generation() -> None:
    old = read_entry('{"claims":[{"publication":7,"shard":0,"shards":1,"plan":"p"}],"landed":[]}', "t")
    assert old.generation == 0
