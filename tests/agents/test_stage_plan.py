"""What a stage reads: a window, a planned shard, a plan, a result, or the results of mapped stages and of several ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, overload

import msgspec
import pytest

from factory_agents.errors import WindowError
from factory_agents.protocol import AgentResult, Manifest, PartitionRange, Shard, plain
from factory_agents.stage_plan import auto_shards, plan_shards, stage_input
from tests.support.samples import result, window


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
    plan = plan_shards(window(4), 2)
    assert [entry["shard"] for entry in plan] == [[0, 2], [1, 2]]
    assert [sorted(r[0] for r in entry["window"]["ranges"]) for entry in plan] == [[0, 3], [1, 2]]
    assert len({entry["plan"] for entry in plan}) == 1


def test_an_empty_hour_has_one_shard() -> None:
    assert len(plan_shards(window(0), 4)) == 1


def test_a_planned_shard_is_run_as_planned() -> None:
    entry = json.loads(json.dumps(plan_shards(window(4), 2)[1]))
    given = stage_input(entry)
    assert (given.shard, given.plan) == (Shard(1, 2), entry["plan"])
    assert [r.partition for r in given.window.ranges] == [1, 2]


def test_a_whole_plan_is_the_window_again() -> None:
    given = stage_input(Lazy(plan_shards(window(4), 3)))
    assert given.window == window(4)
    assert given.shard == Shard()


def test_a_plan_with_a_shard_missing_is_refused() -> None:
    with pytest.raises(WindowError, match="expected the 3 shards of one plan, got 2"):
        stage_input(plan_shards(window(4), 3)[:2])


@pytest.mark.parametrize("wrap", [list, Lazy, tuple], ids=["list", "lazy", "tuple"])
def test_results_of_a_mapped_stage_are_merged(wrap: Any) -> None:
    given = stage_input(wrap([plain(result(1, 2)), plain(result(0, 2))]))
    assert given.window.topic == "enriched"
    assert given.window.writers == ("enrich/f0", "enrich/f1")
    assert [r.partition for r in given.window.ranges] == [0, 1]


def test_a_result_and_its_json_are_the_same_input() -> None:
    one = result()
    assert stage_input(one) == stage_input(plain(one)) == stage_input(json.dumps(plain(one)))


@pytest.mark.parametrize("nothing", [None, [], Lazy([])], ids=["none", "list", "lazy"])
def test_no_result_never_means_nothing_to_read(nothing: Any) -> None:
    with pytest.raises(WindowError, match="was it skipped, or marked as a success by hand"):
        stage_input(nothing)


def test_a_mapped_task_whose_result_is_missing_is_told_of() -> None:
    a, b = result(origin="a", mapped=3), result(origin="b", mapped=3, plan="p2")
    with pytest.raises(WindowError, match="stage 'enrich': 2 of 3 tasks have a result; was one skipped"):
        stage_input(Lazy([plain(a), plain(b)]))
    with pytest.raises(WindowError, match="1 of 3 tasks"):
        stage_input([[plain(a)], plain(result(stage="correct"))])
    assert stage_input(plain(a)).window.origin == "a", "one that is given by itself is all there is to read"


def test_results_of_several_stages_are_merged_however_they_are_given() -> None:
    one, other = result(0, 2), result(1, 2)
    correct = result(stage="correct", plan="p2", manifest=Manifest("enriched", "T2", "correct/f/7", (PartitionRange(5, 3, 9, 6),)))
    for value in ([Lazy([one, other]), plain(correct)], [[plain(one), other], [correct]], [one, other, correct]):
        given = stage_input(value)
        assert given.window.writers == ("correct/f/7", "enrich/f0", "enrich/f1")
        assert [r.partition for r in given.window.ranges] == [0, 1, 5]


def test_a_stage_of_several_without_a_result_is_told_of() -> None:
    with pytest.raises(WindowError, match="one of the stages before: 0 of 1 tasks have a result"):
        stage_input([plain(result()), None])


def test_windows_of_several_topics_are_to_be_mapped() -> None:
    with pytest.raises(WindowError, match=r"expected one window, got several .*expand\(window=…\)"):
        stage_input(Lazy([plan_shards(window(2), 1), plan_shards(window(2, topic="other"), 1)]))


def test_one_shards_result_is_read_by_the_same_shard_of_the_next_stage() -> None:
    given = [stage_input(plain(result(i, 2))) for i in range(2)]
    assert [g.shard for g in given] == [Shard(0, 2), Shard(1, 2)]
    assert [g.window.writers for g in given] == [("enrich/f0",), ("enrich/f1",)]
    assert len({g.plan for g in given}) == 1
    assert given[0].sharded
    with pytest.raises(WindowError, match="one shard already"):
        stage_input(plain(result(0, 2)), (0, 2))


def test_a_missing_shard_is_named() -> None:
    with pytest.raises(WindowError, match="shard 2 of 3 has no result"):
        stage_input([plain(result(0, 3)), plain(result(2, 3))])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{'a': 1}", "tojson"),
        (5, "got int"),
        ([plain(result(status="failed"))], "failed"),
        ([plain(result(dry_run=True))], "dry run"),
        ([plain(result(manifest=None))], "no topic"),
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
    place = plan_shards(window(4), 2)[1]
    assert stage_input(window(6), place).shard == Shard(1, 2)


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (1,), "x"])
def test_a_bad_shard_is_refused(shard: Any) -> None:
    with pytest.raises(WindowError, match=r"shard|window"):
        stage_input(window(), shard)


def test_the_label_says_shard_partitions_and_records() -> None:
    assert stage_input(plan_shards(window(4), 2)[0]).label == "1 of 2: partitions 0, 3, up to 50 records"
    assert stage_input(window(0)).label == "1 of 1: nothing, up to 0 records"


def test_a_shard_planned_and_one_asked_for_are_of_the_same_plan() -> None:
    whole = window(4)
    for i, entry in enumerate(plan_shards(whole, 3)):
        assert stage_input(entry) == stage_input(whole, (i, 3)) == stage_input(json.loads(json.dumps(plain(whole))), [i, 3])


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
