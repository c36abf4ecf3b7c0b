"""Which of two rows wins, within a window and against the table; any history of publications, against a model."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import sql

from factory_agents.errors import SinkError
from factory_agents.protocol import Shard
from tests.support.publication_model import PUBLICATIONS, Model
from tests.support.sink_bench import W1, W2, Bench, at, event, record


class TestTheNewestWins:
    def test_duplicates_in_a_window_go_by_version_then_time_then_coordinates(self, bench: Bench) -> None:
        rows = [
            *at([event("v", "v1", 1, "2026-11-01T09:00:00Z"), event("v", "v2", 2, "2026-11-01T01:00:00Z"), event("v", "null", None, None)]),
            *at([event("t", "late", 1, "2026-11-01T09:00:00Z"), event("t", "early", 1, "2026-11-01T01:00:00Z"), event("t", "null", 1)]),
            *[record(event("c", "p1o0"), 1, 0), record(event("c", "p0o9"), 0, 9), record(event("c", "p1o1"), 1, 1)],
        ]
        outcome = bench.publish(rows)
        assert (outcome.rows, outcome.written, outcome.duplicates, outcome.older) == (9, 3, 6, 0)
        assert bench.rows() == {"v": "v2", "t": "late", "c": "p1o1"}

    def test_what_the_table_has_newer_stays_and_is_counted(self, bench: Bench) -> None:
        bench.publish(at([event("v", "kept", 2), event("t", "kept", 1, "2026-11-01T09:00:00Z"), event("w", "kept")]), window=W2)
        older = [event("v", "old", 1, "2027-01-01T00:00:00Z"), event("t", "old", 1, "2026-11-01T08:00:00Z")]
        older += [event("w", "old"), event("w", "old")]
        outcome = bench.publish(at([*older, event("n", "new")]), window=W1)
        assert (outcome.rows, outcome.written, outcome.duplicates, outcome.older) == (5, 1, 1, 3)
        assert bench.rows() == {"v": "kept", "t": "kept", "w": "kept", "n": "new"}

    def test_with_all_equal_the_later_window_wins_whatever_came_first(self, bench: Bench) -> None:
        for order in ((W1, W2), (W2, W1)):
            for window in order:
                bench.publish(at([event("k", window)]), window=window)
            assert bench.rows() == {"k": W2}

    @pytest.mark.parametrize("windows", [(W1, W1), ("run-b p", "run-a p"), ("live-2 p", "live-1 p")], ids=["one", "since_last", "live"])
    @pytest.mark.parametrize("turned", [False, True], ids=["in order", "out of order"])
    def test_without_version_or_time_the_later_record_wins_whatever_its_partition(
        self, bench: Bench, windows: tuple[str, str], turned: bool
    ) -> None:
        bench.contract = {"name": "n", "id": "id", "columns": {"id": "text", "value": "text"}}
        earlier, later = (record(event("k", v), p, o, timestamp=t) for v, p, o, t in (("earlier", 3, 7, 1000), ("later", 0, 2, 2000)))
        if windows[0] == windows[1]:
            assert bench.publish([later, earlier] if turned else [earlier, later], window=W1).duplicates == 1
        else:
            publications = [([earlier], windows[0]), ([later], windows[1])]
            for rows, window in reversed(publications) if turned else publications:
                bench.publish(rows, window=window)
        assert bench.rows() == {"k": "later"}

    def test_between_shards_the_later_record_wins_whoever_commits_last(self, bench: Bench) -> None:
        for order in ((0, 1), (1, 0)):
            for i in order:
                bench.publish([record(event("k", f"partition {i}"), i, 0, timestamp=2 - i)], shard=Shard(i, 2))
            assert bench.rows() == {"k": "partition 0"}

    def test_of_records_of_one_millisecond_the_coordinates_decide(self, bench: Bench) -> None:
        bench.publish([record(event("k", f"p{p}o{o}"), p, o, timestamp=5) for p, o in ((1, 0), (0, 9), (1, 1), (0, 3))])
        assert bench.rows() == {"k": "p1o1"}

    def test_the_later_window_wins_over_a_later_timestamp(self, bench: Bench) -> None:
        """What a stage writes again has later timestamps than what it wrote for the windows after."""
        for order in ((W1, W2), (W2, W1)):
            for window in order:
                bench.publish([record(event("k", window), 0, 0, timestamp=9 if window == W1 else 1)], window=window)
            assert bench.rows() == {"k": W2}

    def test_between_shards_of_one_window_the_partition_decides_whoever_commits_last(self, bench: Bench) -> None:
        for order in ((0, 1), (1, 0)):
            for i in order:
                bench.publish(at([event("k", f"partition {i}")], partition=i), shard=Shard(i, 2))
            assert bench.rows() == {"k": "partition 1"}

    @pytest.mark.parametrize(
        ("type_", "least", "more", "most"),
        [
            ("numeric", "9", 10, "10.5"),
            ("bigint", 9, 10, 11),
            ("double", 9.5, 10, 1e3),
            ("text", "1.10", "1.9", "2"),
            ("date", "2026-09-01", "2026-10-01", "2026-11-01"),
            ("boolean", None, False, True),
        ],
    )
    def test_a_version_is_compared_as_its_column_is(self, bench: Bench, type_: str, least: Any, more: Any, most: Any) -> None:
        bench.contract = {"name": "n", "id": "id", "version_field": "v", "columns": {"id": "text", "value": "text", "v": type_}}
        bench.publish(at([{"id": "a", "v": more, "value": "more"}, {"id": "a", "v": least, "value": "least"}]), window=W2)
        assert bench.publish(at([{"id": "a", "v": least, "value": "least"}]), window=W1).older == 1
        assert bench.rows() == {"a": "more"}
        bench.publish(at([{"id": "a", "v": most, "value": "most"}]), window=W1)
        assert bench.rows() == {"a": "most"}

    def test_a_key_is_compared_as_its_column_is(self, bench: Bench) -> None:
        bench.contract = {"name": "n", "key": ["n", "id"], "columns": {"n": "numeric", "id": "text", "value": "text"}}
        outcome = bench.publish(at([{"n": "1.0", "id": "", "value": "first"}, {"n": 1, "id": "", "value": "second"}]))
        assert (outcome.written, outcome.duplicates) == (1, 1)
        assert bench.rows() == {"": "second"}

    def test_a_new_generation_of_the_window_replaces_even_by_a_lower_version(self, bench: Bench) -> None:
        bench.publish(at([event("k", "first", 9)]))
        bench.publish(at([event("k", "second", 1)]), input_generation=2)
        assert bench.rows() == {"k": "second"}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(history=st.lists(PUBLICATIONS, min_size=1, max_size=12))
@example([(W1, (0, 1), 1, [(event("a"), 0, 0)]), (W2, (0, 1), 1, [(event("a"), 0, 0)]), (W1, (0, 1), 1, [])])
@example([(W1, (1, 2), 2, [(event("a"), 0, 0)]), (W1, (1, 2), 3, []), (W1, (0, 2), 3, [])])
def test_any_history_of_publications_leaves_what_the_rules_say(bench: Bench, history: list[Any]) -> None:
    bench.name = f"m_{secrets.token_hex(6)}"
    model = Model()
    for generation, (window, (index, of), input_generation, events) in enumerate(history, 1):
        rows = [(e, index + of * p, offset, timestamp) for offset, (e, p, timestamp) in enumerate(events)]
        expected = model.publish(window, (index, of), input_generation, generation, rows)
        changes = {
            "plan": f"{input_generation}/{of}",
            "fingerprint": f"f{generation}",
            "input_generation": input_generation,
            "generation": generation,
        }
        if expected is None:
            with pytest.raises(SinkError, match="older generation"):
                bench.publish([record(*row) for row in rows], window, Shard(index, of), **changes)
            continue
        outcome = bench.publish([record(*row) for row in rows], window, Shard(index, of), **changes)
        assert (outcome.written, outcome.duplicates, outcome.older, outcome.removed) == expected
        found = bench.query(
            "SELECT id, value, version, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM {t} ORDER BY id"
        )
        wanted = [(k, r["event"]["value"], r["event"]["version"], r["event"]["at"]) for k, r in sorted(model.table.items())]
        assert found == wanted
    bench.admin.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(bench.name)))
