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
from tests.support.publication_model import PUBLICATIONS, Model
from tests.support.sink_bench import W1, W2, Bench, event, record
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
