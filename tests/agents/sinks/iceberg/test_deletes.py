"""Deletes at Iceberg: where they are remembered, and what other engines see of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from factory_agents.errors import ConfigurationError
from factory_agents.kafka.messages import Message
from factory_agents.runtime import exact_sink
from factory_agents.runtime.agents import SinkOutcome
from factory_agents.testing.records import CONTRACT, W1, W2, W3, at, event, gone, record
from tests.support.iceberg import Bench


@pytest.fixture
def bench(bench: Bench) -> Bench:
    bench.contract = CONTRACT | {"deletes": True}
    bench.params = {"mode": "upsert"}
    return bench


def publish(bench: Bench, records: Sequence[Message], window: str) -> SinkOutcome:
    sink: Any = bench.sink()
    sink.claim(bench.claim(window))
    for each in records:
        assert sink.write([each]) == {}
    outcome: SinkOutcome = sink.commit(rejected=0)
    sink.close()
    return outcome


def test_they_outlive_snapshots_and_no_reader_sees_them(bench: Bench) -> None:
    publish(bench, at([event("a"), event("b")]), W1)
    publish(bench, [gone("a"), gone("c", 1)], W2)
    assert bench.rows("id") == [("b",)]
    table = bench.load()
    table.maintenance.expire_snapshots().by_ids(
        [s.snapshot_id for s in table.snapshots() if s.snapshot_id not in {ref.snapshot_id for ref in table.metadata.refs.values()}]
    ).commit()
    publish(bench, at([event("a"), event("c"), event("d")]), W1)
    assert bench.rows("id") == [("d",)]


def test_of_rows_in_several_parts_the_newest_that_no_later_part_deletes_lands(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_sink, "_PART_BYTES", 1)
    rows = [record(event("a", "old", 9), 0, 0), gone("b", 1), gone("a", 2), record(event("a", "new", 1), 0, 3), record(event("b"), 0, 4)]
    outcome = publish(bench, rows, W1)
    assert (outcome.written, outcome.duplicates, outcome.deleted) == (2, 3, 0)
    assert bench.rows("id", "value") == [("a", "new"), ("b", "x")]


def test_a_landing_without_deletes_leaves_what_is_remembered_alone(bench: Bench) -> None:
    publish(bench, [gone("a")], W2)
    before = bench.load().snapshot_by_name("factory_deletes")
    publish(bench, at([event("b")]), W3)
    assert bench.load().snapshot_by_name("factory_deletes") == before


def test_rows_that_another_writer_added_are_deleted_too(bench: Bench) -> None:
    publish(bench, at([event("a")]), W1)
    table = bench.load()
    table.append(pa.Table.from_pylist([{"id": "foreign"}], schema=table.schema().as_arrow()))
    assert publish(bench, [gone("foreign")], W2).deleted == 1
    assert bench.rows("id") == [("a",)]


def test_partitioned_by_a_column_that_a_delete_does_not_have(bench: Bench) -> None:
    bench.params |= {"partition_by": ["value", "day(at)"]}
    publish(bench, at([event("a", "x", 1, "2026-11-01T00:00:00Z"), event("b", "y")]), W1)
    assert publish(bench, [gone("a")], W2).deleted == 1
    assert publish(bench, at([event("a", "x", 7, "2030-11-01T00:00:00Z")]), W1).older == 1
    assert bench.rows("id") == []


def test_append_refuses_a_contract_with_deletes(bench: Bench) -> None:
    with pytest.raises(
        ConfigurationError, match=r"takes no deletes with mode: append, and the contract has deletes: true; use mode: upsert"
    ):
        bench.sink(mode="append")
