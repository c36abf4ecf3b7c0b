"""Distinct ids in bounded memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory_agents.contracts.distinct import DistinctCounter

BATCHES = st.lists(st.lists(st.integers(0, 300).map(str), max_size=60), max_size=12)


@settings(max_examples=30)
@given(BATCHES, st.sampled_from([1, 3, 10, 100]))
def test_spilling_counts_what_a_set_counts(batches: list[list[str]], limit: int) -> None:
    counter = DistinctCounter(limit)
    for batch in batches:
        counter.add(batch)
    everything = [value for batch in batches for value in batch]
    assert counter.added == len(everything)
    assert counter.count() == len(set(everything))
    counter.add(["one more"])
    assert counter.count() == len({*everything, "one more"})
    counter.close()


def test_many_ids_stay_within_the_memory_they_are_given() -> None:
    counter = DistinctCounter(1000)
    for start in range(0, 200_000, 2_000):
        counter.add(str(i // 2) for i in range(start, start + 2_000))
        assert len(counter._pending) <= 3_000
    assert counter.count() == 100_000
    counter.close()


def test_one_id_repeated_forever_takes_no_room() -> None:
    counter = DistinctCounter(100)
    for _ in range(100):
        counter.add(["same"] * 101)
    assert counter.count() == 1
    assert sum(file.seek(0, 2) for file in counter._files) <= 8 * 101
    counter.close()


def test_nothing_is_left_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    counter: Any = DistinctCounter(10)
    counter.add(str(i) for i in range(1000))
    assert counter.count() == 1000
    assert list(tmp_path.iterdir()) == []
    counter.close()
