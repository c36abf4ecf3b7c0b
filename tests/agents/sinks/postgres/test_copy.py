"""New keys go straight into the table; one that is not new makes all of the window be merged, and nobody sees the difference."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from factory_agents.runtime.agents import SinkOutcome
from factory_agents.sinks.postgres import copy
from tests.support.sink_bench import ALL_TYPES, W1, W2, W3, Bench, at, event, record


class TestStraightIn:
    """New keys go straight into the table; one that isn't new makes all of the window be merged, and nobody sees the difference."""

    @pytest.fixture
    def merges(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        seen: list[str] = []

        class Seen(copy.Staged):
            def __init__(self, connection: psycopg.Connection[Any], table: Any) -> None:
                seen.append(table.text)
                super().__init__(connection, table)

        monkeypatch.setattr("factory_agents.sinks.postgres.merge.Staged", Seen)
        return seen

    def test_a_window_of_new_keys_needs_no_merge(self, bench: Bench, merges: list[str]) -> None:
        for window, ids in ((W1, "abcdefgh"), (W2, "ijklmnop")):
            outcome = bench.publish(at([event(i, i) for i in ids]), window=window)
            assert (outcome.rows, outcome.written, outcome.duplicates, outcome.older) == (8, 8, 0, 0)
        assert merges == []
        assert bench.rows() == {i: i for i in "abcdefghijklmnop"}

    @pytest.mark.parametrize("place", range(8))
    def test_a_key_that_is_there_or_comes_twice_is_decided_as_ever(self, bench: Bench, merges: list[str], place: int) -> None:
        bench.publish(at([event("there", "newer", 5), event("behind", "older", 1)]), window=W2)
        rows = [event(f"k{i}", "x", 1) for i in range(8)]
        rows[place:place] = [event("there", "late", 4), event("behind", "wins", 2), event("k0", "twice", 2), event("k7", "lower", 0)]
        outcome = bench.publish(at(rows), window=W1)
        assert merges == [f"public.{bench.name}"]
        assert (outcome.rows, outcome.written, outcome.duplicates, outcome.older) == (12, 9, 2, 1)
        assert bench.rows() == {f"k{i}": "x" for i in range(1, 8)} | {"k0": "twice", "there": "newer", "behind": "wins"}
        assert bench.query("SELECT count(DISTINCT _factory_publication), count(DISTINCT _factory_offset) FROM {t}") == [(2, 10)]

    def test_a_window_that_met_keys_twice_lets_the_next_one_be_merged_from_the_start(self, bench: Bench, merges: list[str]) -> None:
        bench.publish(at([event("a"), event("a")]), window=W1)
        bench.publish(at([event("b")]), window=W2)
        bench.publish(at([event("c")]), window=W3)
        assert len(merges) == 2

    def test_every_type_lands_alike_on_both_ways(self, bench: Bench, merges: list[str]) -> None:
        bench.contract = ALL_TYPES
        full = {
            "text": "é😀\\",
            "bigint": -(2**63),
            "double": 0.1,
            "boolean": True,
            "timestamptz": "2026-11-01T04:00:00.123456+05:30",
            "json": {"a": ["\\u0000", None, 'x"\n']},
            "numeric": "-12345678901234567890.1234567890",
            "date": "2026-02-28",
        }
        rows = at([{"id": "full"} | full, {"id": "empty"}])
        columns = ", ".join(f'"{c}"::text' for c in ALL_TYPES["columns"] if c != "id")
        bench.publish(rows)
        straight = bench.query(f"SELECT {columns} FROM {{t}} ORDER BY id")
        assert merges == []
        bench.query("DELETE FROM {t} RETURNING 1")
        bench.publish(rows)
        assert len(merges) == 1
        assert bench.query(f"SELECT {columns} FROM {{t}} ORDER BY id") == straight
        assert straight[1][4:7] == (
            "2026-10-31 22:30:00.123456+00",
            '{"a": ["\\\\u0000", null, "x\\"\\n"]}',
            "-12345678901234567890.1234567890",
        )

    def test_two_windows_that_hold_keys_of_each_other_both_land(self, bench: Bench, merges: list[str]) -> None:
        bench.publish([], window=W3)
        first, second = bench.sink(), bench.sink()
        first.claim(bench.claim(window=W1))
        second.claim(bench.claim(window=W2))
        first.write(at([event("a", "first")]))
        second.write(at([event("b", "second")]))
        first.write(at([event("c", "first")]))  # ends the chunk before: a is in the table, and held
        second.write(at([event("d", "second")]))
        assert not bench.waits_for_lock()

        def end(sink: Any, other: str, offset: int) -> SinkOutcome:
            sink.write([record(event(other, other * 2), 0, offset)])
            outcome: SinkOutcome = sink.commit(rejected=0)
            return outcome

        with ThreadPoolExecutor(2) as pool:
            ends = [pool.submit(end, first, "b", 7), pool.submit(end, second, "a", 7)]
            assert sum(e.result().rows for e in ends) == 6
        assert merges
        assert bench.rows() == {"a": "aa", "b": "second", "c": "first", "d": "second"}

    def test_what_is_published_again_leaves_no_numbers_behind(self, bench: Bench) -> None:
        for _ in range(3):
            bench.publish(at([event("a")]))
        sink = bench.sink()
        sink.claim(bench.claim(fingerprint="abandoned"))
        bench.publish(at([event("a")]))
        query = (
            "SELECT count(*), max(publication) = (SELECT _factory_publication FROM {t}) FROM factory_publications WHERE table_name = {name}"
        )
        assert bench.query(query, name=bench.name) == [(1, True)]
