"""What a prune holds of a ledger: no more than there is room for, and all of each window before its limit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory_agents.kafka.ledger import StageRecord, StoredResult
from factory_agents.kafka.prune_view import NO_LIMIT, PruneView
from factory_agents.kafka.records import ALWAYS, CutRecord, MarkRecord, PlanRecord, encode_record, microseconds
from factory_agents.protocol import PartitionRange, Shard
from tests.support.planning_model import interval, ms


def work(window: str, shard: int = 0, offset: int = 0) -> StageRecord:
    return StageRecord("p", "s", window, Shard(shard, 12), "f", 1, scope="t", updated_at=1, result=StoredResult(ledger_offset=offset))


def plan(window: str, *, hour: int | None = None) -> PlanRecord:
    span = None if hour is None else interval(hour, hour + 1)
    return PlanRecord("p", "t", "id-1", window, (PartitionRange(0, 0, 1),), interval=span)


def put(view: PruneView, record: StageRecord | PlanRecord | CutRecord) -> bytes:
    key = record.key().encode()
    view.take(view.end, key, encode_record(record))
    view.end += 1
    return key


@pytest.mark.parametrize("hours", [range(1000), range(999, -1, -1), [(n * 377) % 1000 for n in range(1000)]], ids=["on", "back", "about"])
def test_it_holds_the_oldest_windows_and_no_more_than_there_is_room_for(hours: list[int]) -> None:
    view = PruneView("p", room=100)
    for hour in hours:
        window = interval(hour, hour + 1).key
        put(view, plan(window, hour=hour))
        put(view, CutRecord("p", "t", "id-1", ms(hour + 1), (1,)))
        for shard in range(3):
            put(view, work(window, shard))
    oldest = {interval(hour, hour + 1).key for hour in range(25)}
    assert {done.window for done in view.works.values()} == {key.rpartition("|")[2] for _, _, key in view.lane("id-1").spans} == oldest
    assert view.limit("t", ["id-1"]) == microseconds(interval(25, 26).start)
    assert len(view.lane("id-1").cuts) == 100
    assert len(view.keys()) < 200
    assert view.topics == set()


def test_windows_without_an_interval_are_in_the_order_of_the_ledger() -> None:
    view = PruneView("p", room=6)
    for n in range(50):
        put(view, plan(f"run-{50 - n}"))
        put(view, work(f"run-{50 - n}"))
    assert {done.window for done in view.works.values()} == {"run-50", "run-49", "run-48"}
    assert view.run_limit("t") == 6


def test_what_lies_below_a_known_mark_takes_no_room_from_the_others() -> None:
    mark = MarkRecord("p", "t", spans=((ALWAYS, microseconds(interval(20, 21).start)),))
    view = PruneView("p", room=8, marks=[mark])
    for hour in range(40):
        put(view, work(interval(hour, hour + 1).key))
        put(view, plan(interval(hour, hour + 1).key, hour=hour))
        put(view, CutRecord("p", "t", "id-1", ms(hour), (1,)))
    works, spans, cuts = {done.window for done in view.works.values()}, view.lane("id-1").spans, view.lane("id-1").cuts
    assert works == {interval(hour, hour + 1).key for hour in (*range(2), *range(20, 24))}
    assert [start for start, _, _ in spans] == [ms(hour) for hour in range(18, 24)], "of what is below, the last ones"
    assert [at for at, _ in cuts] == [ms(hour) for hour in range(18, 28)]


def test_works_that_name_no_plan_are_below_the_mark_before_which_they_lie() -> None:
    view = PruneView("p", room=8, marks=[MarkRecord("p", "t", offset=40)])
    for n in range(40):
        put(view, plan(f"run-{n}"))
        put(view, work(f"run-{n}"))
    assert {done.window for done in view.works.values()} == {f"run-{n}" for n in (*range(2), *range(20, 24))}
    assert view.run_limit("t") == 48


def test_a_work_that_turns_out_to_be_below_the_mark_is_counted_there_alone() -> None:
    view = PruneView("p", room=4, marks=[MarkRecord("p", "t", offset=10)])
    view.end = 20
    for n in range(9):
        put(view, work(f"run-{n}"))
        put(view, work(f"run-{n}", offset=5))
    assert {done.window for done in view.works.values()} == {"run-0"}
    assert view.run_limit("t") == NO_LIMIT


def test_a_window_with_more_records_than_there_is_room_for_is_held_alone() -> None:
    view = PruneView("p", room=4)
    for hour in (1, 0):
        for shard in range(9):
            put(view, work(interval(hour, hour + 1).key, shard))
    assert {done.window for done in view.works.values()} == {interval(0, 1).key}
    assert len(view.works) == 9


@settings(max_examples=100, deadline=None)
@given(
    records=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2), st.booleans()), max_size=60),
    room=st.integers(1, 8),
    timed=st.booleans(),
)
def test_all_is_known_of_each_window_before_the_limit(records: list[tuple[int, int, bool]], room: int, timed: bool) -> None:
    view, whole = PruneView("p", room=room), PruneView("p")
    knowing = PruneView("p", room=room, topics=("t",))  # it decodes only what there is room for
    put(knowing, CutRecord("p", "t", "id-1", 0, (1,)))
    first: dict[str, int] = {}
    for n, shard, gone in records:
        window = interval(n, n + 1).key if timed else f"run-{n}"
        for into in (view, whole, knowing):
            key = work(window, shard).key().encode()
            into.take(into.end, key, None if gone else encode_record(work(window, shard)))
            into.end += 1
        if not any(done.window == window for done in whole.works.values()):
            first.pop(window, None)
        else:
            first.setdefault(window, whole.end - 1)
    assert (knowing.works, knowing.scopes) == (view.works, view.scopes)
    limit = view.limit("t", []) if timed else view.run_limit("t")
    orders = {w: (microseconds(interval(int(w[11:13]), 99).start) if timed else at) for w, at in first.items()}
    known = {key: done for key, done in whole.works.items() if orders[done.window] < limit}
    assert {key: view.works.get(key) for key in known} == known
    assert limit < NO_LIMIT or view.works == whole.works
    assert len({done.window for done in view.works.values()}) <= 1 or len(view.works) <= room
