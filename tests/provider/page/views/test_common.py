"""The parts of a stage's records add up to what it read, whatever the figures are."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_factory.page.views.common import chart, link, paid, parts_of
from factory_agents.protocol import Counts
from factory_agents.text import count

numbers = st.integers(0, 10**12)
any_counts = st.builds(Counts, **dict.fromkeys(Counts.__struct_fields__, numbers))


@given(any_counts)
def test_the_parts_add_up_for_any_counts(counts: Counts) -> None:
    parts = parts_of(counts)
    assert sum(p.count for p in parts) == counts.consumed
    assert len({p.name for p in parts}) == len(parts)


@given(any_counts)
def test_the_bar_is_whole_and_its_parts_lie_side_by_side(counts: Counts) -> None:
    parts = parts_of(counts)
    end = 0.0
    for p in parts:
        assert p.start == pytest.approx(end, abs=0.01)
        end = p.start + p.width
    assert end == pytest.approx(100 if any(p.count > 0 for p in parts) else 0, abs=0.1)


@given(forwarded=numbers, filtered=numbers, rejected=numbers, written=numbers)
def test_nothing_is_unexplained_where_the_counts_are_right(forwarded: int, filtered: int, rejected: int, written: int) -> None:
    counts = Counts(consumed=forwarded + filtered + rejected, forwarded=forwarded, filtered=filtered, rejected=rejected)
    at_a_sink = msgspec.structs.replace(counts, written=min(written, forwarded), older=forwarded - min(written, forwarded))
    for shown in (parts_of(counts), parts_of(at_a_sink)):
        assert "unexplained" not in {p.name for p in shown}


def test_a_lag_over_time_is_drawn_within_its_frame_and_said_in_words() -> None:
    line = chart(((1000.0, 5), (1300.0, 20), (1600.0, 0)))
    assert line is not None
    assert line.text == "5 to 0 records behind in 10 min, at most 20"
    assert (line.times, line.values) == ((1000, 1300, 1600), (5, 20, 0))
    points = [tuple(map(float, point.split(","))) for point in line.points.split()]
    assert [x for x, _ in points] == [0, 120, 240]
    assert points[1][1] < points[0][1] < points[2][1] <= 32
    assert chart(((1000.0, 5),)) is None


def test_what_no_part_explains_is_said() -> None:
    assert [(p.name, p.count) for p in parts_of(Counts(consumed=10, forwarded=7))] == [("forwarded", 7), ("unexplained", 3)]


def test_texts() -> None:
    assert (count(1, "window"), count(1200, "window")) == ("1 window", "1,200 windows")
    assert [p.text for p in parts_of(Counts(consumed=1202, forwarded=1202, written=1201, duplicates=1))] == ["1,201 written", "1 duplicate"]
    assert link("window", key="a/b&c", stage="") == "window?key=a%2Fb%26c"


def test_what_a_model_was_paid_is_said_in_words() -> None:
    counts = Counts(asked=1200, prompt_tokens=90_000, completion_tokens=10_000, nanocost=1_234_500_000)
    assert paid(counts) == "1,200 calls of a model, 100,000 tokens, cost 1.2345"
    assert paid(Counts(asked=1, completion_tokens=1)) == "1 call of a model, 1 token"
    assert paid(Counts(consumed=3)) == ""
