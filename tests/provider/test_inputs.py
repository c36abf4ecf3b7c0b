"""What a stage reads: a window, a planned shard, a plan, a result, or the results of a mapped stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, overload

import msgspec
import pytest

from airflow_provider_factory.inputs import auto_shards, planned, stage_input
from factory_agents.errors import WindowError
from factory_agents.protocol import AgentResult, PartitionRange, Shard, to_data
from tests.provider.samples import result, window


class Lazy(Sequence[Any]):
    """Stands for Airflow's lazy sequence of XComs: neither a list nor JSON-able."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._items[index]


def test_a_plan_is_made_of_whole_partitions_balanced_by_records() -> None:
    plan = planned(window(4), 2)
    assert [entry["shard"] for entry in plan] == [[0, 2], [1, 2]]
    assert [sorted(r[0] for r in entry["window"]["ranges"]) for entry in plan] == [[0, 3], [1, 2]]
    assert len({entry["plan"] for entry in plan}) == 1


def test_an_empty_hour_has_one_shard() -> None:
    assert len(planned(window(0), 4)) == 1


def test_a_planned_shard_is_run_as_planned() -> None:
    entry = json.loads(json.dumps(planned(window(4), 2)[1]))
    given = stage_input(entry)
    assert (given.shard, given.plan) == (Shard(1, 2), entry["plan"])
    assert [r.partition for r in given.window.ranges] == [1, 2]


def test_a_whole_plan_is_the_window_again() -> None:
    given = stage_input(Lazy(planned(window(4), 3)))
    assert given.window == window(4)
    assert given.shard == Shard()


def test_a_plan_with_a_shard_missing_is_refused() -> None:
    with pytest.raises(WindowError, match="expected the 3 shards of one plan, got 2"):
        stage_input(planned(window(4), 3)[:2])


@pytest.mark.parametrize("wrap", [list, Lazy, tuple], ids=["list", "lazy", "tuple"])
def test_results_of_a_mapped_stage_are_merged(wrap: Any) -> None:
    given = stage_input(wrap([to_data(result(1, 2)), to_data(result(0, 2))]))
    assert given.window.topic == "enriched"
    assert given.window.writers == ("enrich/f0", "enrich/f1")
    assert [r.partition for r in given.window.ranges] == [0, 1]


def test_a_result_and_its_json_are_the_same_input() -> None:
    one = result()
    assert stage_input(one) == stage_input(to_data(one)) == stage_input(json.dumps(to_data(one)))


@pytest.mark.parametrize("nothing", [None, [], Lazy([])], ids=["none", "list", "lazy"])
def test_no_result_never_means_nothing_to_read(nothing: Any) -> None:
    with pytest.raises(WindowError, match="was it skipped, or marked as a success by hand"):
        stage_input(nothing)


def test_a_missing_shard_is_named() -> None:
    with pytest.raises(WindowError, match="shard 2 of 3 has no result"):
        stage_input([to_data(result(0, 3)), to_data(result(2, 3))])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{'a': 1}", "tojson"),
        (5, "got int"),
        ([to_data(result(status="failed"))], "failed"),
        ([to_data(result(dry_run=True))], "dry run"),
        ([to_data(result(manifest=None))], "no topic"),
    ],
)
def test_anything_else_is_refused_with_a_reason(value: Any, message: str) -> None:
    with pytest.raises(WindowError, match=message):
        stage_input(value)


def test_shards_over_a_merged_window_tile_it() -> None:
    whole = stage_input(window(5)).window
    parts = [stage_input(whole, (i, 3)) for i in range(3)]
    assert sorted(r.partition for p in parts for r in p.window.ranges) == [0, 1, 2, 3, 4]
    assert len({p.plan for p in parts}) == 1


def test_more_shards_than_partitions_leave_some_empty_but_present() -> None:
    parts = [stage_input(window(2), [i, 4]) for i in range(4)]
    assert [len(p.window.ranges) for p in parts] == [1, 1, 0, 0]
    assert [p.shard for p in parts] == [Shard(i, 4) for i in range(4)]


def test_a_planned_shard_tells_which_part_of_a_later_window_to_run() -> None:
    place = planned(window(4), 2)[1]
    assert stage_input(window(6), place).shard == Shard(1, 2)


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (1,), "x"])
def test_a_bad_shard_is_refused(shard: Any) -> None:
    with pytest.raises(WindowError, match=r"shard|window"):
        stage_input(window(), shard)


def test_the_label_says_shard_partitions_and_records() -> None:
    assert stage_input(planned(window(4), 2)[0]).label == "1 of 2: partitions 0, 3, up to 50 records"
    assert stage_input(window(0)).label == "1 of 1: nothing, up to 0 records"


def test_the_plan_is_told_by_what_is_read_not_by_where_the_ledger_stands() -> None:
    plans = {stage_input(window(ledger_offset=n)).plan for n in (0, 7)}
    assert len(plans) == 1
    assert stage_input(window(3)).plan not in plans


def test_decoded_results_are_taken_too() -> None:
    results: list[AgentResult] = [result(0, 2), result(1, 2)]
    assert stage_input(results).window.topic == "enriched"


@pytest.mark.parametrize(
    ("partitions", "size", "per_shard", "shards"),
    [(4, 10, 100, 1), (4, 10, 50, 2), (4, 10, 1, 4), (12, 1000, 20_000, 4), (0, 0, 10, 1)],
)
def test_auto_shards_go_by_records_and_partitions(partitions: int, size: int, per_shard: int, shards: int) -> None:
    assert auto_shards(window(partitions, size), per_shard) == shards


def test_auto_shards_dont_count_empty_partitions() -> None:
    half = msgspec.structs.replace(window(4), ranges=tuple(PartitionRange(p, 5, 5 if p % 2 else 500_005) for p in range(4)))
    assert auto_shards(half, 1000) == 2
