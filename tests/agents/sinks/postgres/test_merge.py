"""Which of two rows wins: any history of publications, against a model. Single cases are in ``factory_agents.testing``."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import sql

from factory_agents.errors import SinkError
from factory_agents.protocol import Shard
from factory_agents.sinks.postgres.live import PostgresLive
from factory_agents.sinks.postgres.table import OWN_COLUMNS
from factory_agents.testing.records import gone
from tests.support.publication_model import PUBLICATIONS, Model
from tests.support.sink_bench import CONTRACT, W1, W2, Bench, event, record
from tests.support.soak import examples


@settings(max_examples=examples(20, 60), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(history=st.lists(PUBLICATIONS, min_size=1, max_size=12))
@example([(W1, (0, 1), 1, [(event("a"), 0, 0)]), (W2, (0, 1), 1, [(event("a"), 0, 0)]), (W1, (0, 1), 1, [])])
@example([(W1, (1, 2), 2, [(event("a"), 0, 0)]), (W1, (1, 2), 3, []), (W1, (0, 2), 3, [])])
@example([(W1, (0, 2), 1, [(event("a"), 0, 0)]), (W1, (0, 2), 2, []), (W1, (0, 2), 2, [])])
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


class TestWindowsOfIntervalsAndOthers:
    """In one table: of these two the later record wins, whichever was published first."""

    OTHER = "since 7 p"
    PLAIN = CONTRACT | {"time": None, "version_field": None, "deletes": True}

    @pytest.mark.parametrize("other_first", [False, True])
    def test_the_later_record_wins(self, bench: Bench, other_first: bool) -> None:
        bench.contract = self.PLAIN
        publications = [
            (W2, [record(event("a", "window"), 3, 7, 5), record(event("b", "window"), 3, 8, 5)]),
            (self.OTHER, [record(event("a", "later"), 0, 0, 6), record(event("b", "earlier"), 0, 1, 4)]),
        ]
        for window, rows in reversed(publications) if other_first else publications:
            bench.publish(rows, window)
        assert bench.rows() == {"a": "later", "b": "window"}

    @pytest.mark.parametrize("other_first", [False, True])
    def test_a_delete_outweighs_earlier_records_alone(self, bench: Bench, other_first: bool) -> None:
        bench.contract = self.PLAIN
        publications = [
            (W2, [record(event("a"), 3, 7, 5), record(event("b"), 3, 8, 5), gone("c", 9, 3, 5), gone("d", 10, 3, 5)]),
            (self.OTHER, [gone("a", 0, 0, 6), gone("b", 1, 0, 4), record(event("c"), 0, 2, 6), record(event("d"), 0, 3, 4)]),
        ]
        for window, rows in reversed(publications) if other_first else publications:
            bench.publish(rows, window)
        assert set(bench.rows()) == {"b", "c"}

    def test_records_that_are_published_live_go_on_where_windows_ended(self, bench: Bench) -> None:
        bench.contract = self.PLAIN
        bench.publish([record(event("a", "1"), 0, 0, 5), record(event("b", "1"), 0, 1, 5)], W2)
        live = PostgresLive(bench.sink().target, {}, "g", "t")
        again = [record(event("a", "1"), 0, 0, 5), record(event("b", "1"), 0, 1, 5)]
        assert live.process([*again, record(event("a", "2"), 0, 2, 9), gone("b", 3, 0, 9)]) == [[]] * 4
        live.close()
        assert bench.rows() == {"a": "2"}
        assert bench.publish([record(event("a", "0"), 0, 0, 4)], W1).older == 1


def test_a_row_of_which_nothing_is_known_gives_way(bench: Bench) -> None:
    """That of a table which got our columns later."""
    bench.contract = CONTRACT | {"time": None, "version_field": None, "deletes": True}
    own = ", ".join(f"{name} {type_}" for name, (type_, _) in OWN_COLUMNS.items())
    bench.admin.execute(f"CREATE TABLE {bench.name} (id text PRIMARY KEY, value text, version int8, at timestamptz, {own})")  # type: ignore[arg-type]
    bench.admin.execute(f"INSERT INTO {bench.name} (id, value) VALUES ('a', 'old'), ('b', 'old'), ('c', 'old')")  # type: ignore[arg-type]
    outcome = bench.publish([record(event("a", "new"), 0, 0), gone("b", 1)], W1)
    assert (outcome.written, outcome.deleted) == (1, 1)
    assert bench.rows() == {"a": "new", "c": "old"}
