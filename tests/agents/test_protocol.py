"""What orchestrator and agent say to each other: whole, versioned, and merged only when complete."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_agents.errors import ConfigurationError, WindowError
from factory_agents.protocol import (
    AgentRef,
    AgentResult,
    AgentRun,
    Counts,
    Interval,
    Manifest,
    Order,
    PartitionRange,
    Shard,
    Window,
    decode_result,
    decode_run,
    decode_window,
    encode,
    merge_results,
    plain,
    shard_window,
)

NINE, TEN = datetime(2026, 11, 1, 9, tzinfo=UTC), datetime(2026, 11, 1, 10, tzinfo=UTC)

ranges = st.builds(
    lambda p, start, size, count: PartitionRange(p, start, start + size, min(count, size)),
    st.integers(0, 40),
    st.integers(0, 1000),
    st.integers(1, 1000),
    st.integers(-1, 1000),
)
windows = st.builds(
    lambda rs, lost: Window("p", "t", "id", tuple(sorted(rs, key=lambda r: r.partition)), name="w", lost=lost),
    st.lists(ranges, max_size=20, unique_by=lambda r: r.partition),
    st.sampled_from([(), (PartitionRange(1, 0, 5),)]),
)


def weight(r: PartitionRange) -> int:
    return r.count if r.count >= 0 else r.end - r.start


def result(index: int = 0, of: int = 1, *rs: PartitionRange, **more: object) -> AgentResult:
    fixed: dict[str, object] = {"pipeline": "p", "stage": "s", "key": "w", "shard": Shard(index, of), "plan": "plan", "generation": index}
    fixed["ledger_offset"] = 100 + index
    fixed["manifest"] = Manifest("out", "id", f"s/f/{index}", rs)
    return AgentResult(**(fixed | more))  # type: ignore[arg-type]


class TestAnInterval:
    def test_has_one_key_for_equal_instants_and_sorts_by_its_start(self) -> None:
        zone = timezone(timedelta(hours=5, minutes=30))
        assert Interval(NINE.astimezone(zone), TEN.astimezone(zone)).key == Interval(NINE, TEN).key
        assert Interval(NINE, TEN).key == "2026-11-01T09:00:00.000Z/2026-11-01T10:00:00.000Z"
        assert Interval(NINE, TEN).key < Interval(TEN, TEN + timedelta(hours=1)).key

    @given(st.integers(0, 4 * 10**15), st.integers(1, 10**9))
    def test_has_a_key_that_says_just_its_ends_and_milliseconds_rounded_up(self, since_1970: int, micros: int) -> None:
        start = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=since_1970)
        try:
            interval = Interval(start, start + timedelta(microseconds=micros))
        except WindowError:
            assert micros < 1000
            return
        assert interval.start_ms < interval.end_ms
        for text, ms, moment in zip(
            interval.key.split("/"), (interval.start_ms, interval.end_ms), (interval.start, interval.end), strict=True
        ):
            assert datetime.fromisoformat(text) == moment
            rounded = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms)
            assert timedelta(0) <= rounded - moment < timedelta(milliseconds=1), "the first record in it"

    @pytest.mark.parametrize(("start", "end"), [(TEN, NINE), (NINE, NINE), (NINE, NINE + timedelta(microseconds=0))])
    def test_backwards_or_empty_is_refused(self, start: datetime, end: datetime) -> None:
        with pytest.raises(WindowError, match="not after its start"):
            Interval(start, end)


class TestJson:
    @given(windows)
    def test_of_a_window_gives_it_back_as_text_and_as_xcom_has_it(self, window: Window) -> None:
        assert decode_window(encode(window)) == window
        assert decode_window(json.loads(json.dumps(plain(window)))) == window

    def test_of_a_run_and_a_result_gives_them_back(self) -> None:
        run = AgentRun("p", "s", AgentRef("enrich"), interval=Interval(NINE, TEN), shard=Shard(1, 4), params={"a": [1, None]})
        assert decode_run(encode(run)) == run
        done = result(1, 4, PartitionRange(0, 1, 2, 1), counts=Counts(consumed=3, forwarded=3), interval=Interval(NINE, TEN))
        assert decode_result(encode(done)) == done
        assert decode_result(json.loads(json.dumps(plain(done)))) == done

    @pytest.mark.parametrize(
        ("decode", "data", "text"),
        [
            (decode_run, b'{"pipeline": "p"', "AgentRun: not what this version"),
            (decode_run, b'{"pipeline": "p", "stage": "s"}', "missing required field `agent`"),
            (decode_run, b'{"pipeline": "p", "stage": "s", "agent": {"name": "a"}, "windw": 1}', "unknown field `windw`"),
            (
                decode_run,
                b'{"pipeline": "p", "stage": "s", "agent": {"name": "a"}, "protocol": 9}',
                "protocol version 9, this side speaks 1",
            ),
            (decode_result, b'{"pipeline": 7}', r"Expected `str`, got `int` - at `\$.pipeline`"),
            (decode_window, b'{"pipeline": "p", "topic": "t", "topic_id": "i", "ranges": [[1]]}', r"at `\$.ranges\[0\]`"),
        ],
    )
    def test_that_does_not_fit_is_one_clear_error(self, decode: Callable[[bytes], object], data: bytes, text: str) -> None:
        with pytest.raises(ConfigurationError, match=text):
            decode(data)

    def test_with_a_backwards_interval_is_refused_too(self) -> None:
        data = {
            "pipeline": "p",
            "topic": "t",
            "topic_id": "i",
            "ranges": [],
            "interval": {"start": TEN.isoformat(), "end": NINE.isoformat()},
        }
        with pytest.raises(ConfigurationError, match="not after its start"):
            decode_window(json.dumps(data))


class TestShards:
    @given(windows, st.integers(1, 8))
    def test_partition_the_window(self, window: Window, shards: int) -> None:
        parts = shard_window(window, shards)
        assert 1 <= len(parts) <= shards
        assert sorted((r for part in parts for r in part.ranges), key=lambda r: r.partition) == list(window.ranges)
        assert [r for part in parts for r in part.lost] == list(window.lost)
        assert all(part.ranges for part in parts) or not window.ranges
        assert {(p.key, p.topic_id, p.writers, p.generation) for p in parts} == {(window.key, window.topic_id, window.writers, 0)}

    @given(windows, st.integers(1, 8))
    def test_are_balanced_within_the_largest_range(self, window: Window, shards: int) -> None:
        loads = [sum(map(weight, part.ranges)) for part in shard_window(window, shards)]
        assert max(loads) - min(loads) <= max(map(weight, window.ranges), default=0)

    @given(windows, st.integers(1, 8))
    def test_are_always_the_same(self, window: Window, shards: int) -> None:
        assert shard_window(window, shards) == shard_window(decode_window(encode(window)), shards)

    def test_of_an_empty_window_are_one(self) -> None:
        assert [part.ranges for part in shard_window(Window("p", "t", "id", (), name="w"), 5)] == [()]

    def test_less_than_one_are_refused(self) -> None:
        with pytest.raises(WindowError, match="at least 1, got 0"):
            shard_window(Window("p", "t", "id", (), name="w"), 0)


class TestMerging:
    @given(windows, st.integers(1, 8))
    def test_is_the_inverse_of_sharding(self, window: Window, shards: int) -> None:
        """Each shard writes what it read to where it read it."""
        parts = shard_window(window, shards)
        results = [result(i, len(parts), *part.ranges) for i, part in enumerate(parts)]
        for order in (results, results[::-1]):
            merged = merge_results(order)
            assert merged.ranges == window.ranges
            assert merged.writers == tuple(sorted(f"s/f/{i}" for i in range(len(parts))))

    def test_joins_what_several_shards_wrote_to_one_partition(self) -> None:
        merged = merge_results(
            [
                result(0, 3, PartitionRange(1, 10, 20, 5)),
                result(1, 3, PartitionRange(1, 15, 40, 9), PartitionRange(2, 3, 3, 0)),
                result(2, 3),
            ]
        )
        assert merged.ranges == (PartitionRange(1, 10, 40, 14),)
        assert (merged.topic, merged.topic_id, merged.name) == ("out", "id", "w")
        assert (merged.generation, merged.ledger_offset) == (2, 100), "the newest writer, and where all of them can be found"

    def test_joins_what_mapped_tasks_and_several_stages_wrote_to_one_topic(self) -> None:
        merged = merge_results(
            [
                result(1, 2, PartitionRange(1, 5, 9, 4), stage="enrich", origin="a", plan="x"),
                result(0, 1, PartitionRange(0, 3, 6, 2), stage="enrich", origin="b", instance=1, plan="y"),
                result(0, 2, stage="enrich", origin="a", plan="x"),
                result(0, 1, PartitionRange(1, 0, 6, 6), stage="correct", origin="a", plan="z"),
            ]
        )
        assert merged.ranges == (PartitionRange(0, 3, 6, 2), PartitionRange(1, 0, 9, 10))
        assert (merged.origin, merged.instance) == ("a", 0), "the first one's, however many are mapped beside it"

    def test_keeps_the_interval(self) -> None:
        merged = merge_results([result(interval=Interval(NINE, TEN))])
        assert (merged.interval, merged.name, merged.key) == (Interval(NINE, TEN), "", Interval(NINE, TEN).key)

    @pytest.mark.parametrize(
        ("results", "text"),
        [
            ([], "got none; was it skipped, or marked as a success by hand"),
            ([result(0, 4), result(2, 4), result(3, 4)], "shard 2 of 4 has no result; clear it"),
            ([result(0, 2), result(0, 2)], "2 results for 2 shards; clear the whole stage"),
            ([result(0, 2), result(1, 2), result(1, 2)], "3 results for 2 shards"),
            ([result(0, 2), result(7, 2)], "2 results for 2 shards"),
            ([result(0, 2), result(1, 2, plan="other")], "different plans"),
            ([result(0, 2), result(1, 3)], "different plans"),
            ([result(0, 2), result(1, 2, status="failed")], "shard 2 of 2 failed; clear it"),
            ([result(dry_run=True)], "dry run"),
            ([result(manifest=None)], "wrote to no topic"),
            ([result(manifest=None, truncated=True)], "take them from the ledger"),
            ([result(0, 2), result(1, 2, manifest=Manifest("out", "another id", "w"))], "was deleted and created again between"),
            ([result(0, 2), result(1, 2), result(0, 2, instance=1)], "stage 's' \\(mapped task 1\\): shard 2 of 2 has no result"),
            ([result(), result(stage="t", plan="x", key="another")], "stages 's', 't': results of different windows cannot be merged"),
            ([result(), result(stage="t", plan="x", pipeline="q")], "of pipeline 'q'"),
            (
                [result(), result(stage="t", plan="x", manifest=Manifest("o2", "i", "w"))],
                "topics .o2, out., and a stage reads one",
            ),
        ],
    )
    def test_of_anything_but_one_complete_set_is_refused(self, results: list[AgentResult], text: str) -> None:
        with pytest.raises(WindowError, match=text):
            merge_results(results)


class TestNames:
    def test_a_windows_key_is_its_interval_its_name_or_what_it_holds(self) -> None:
        bare = Window("p", "t", "id", (PartitionRange(0, 1, 2),))
        assert bare.key == msgspec.structs.replace(bare, generation=9, carried=3, gap=4).key
        assert bare.key != msgspec.structs.replace(bare, ranges=(PartitionRange(0, 1, 3),)).key
        assert msgspec.structs.replace(bare, name="n").key == "n"
        assert msgspec.structs.replace(bare, name="n", interval=Interval(NINE, TEN)).key == Interval(NINE, TEN).key

    def test_the_transactional_id_is_of_the_work_and_not_of_the_attempt(self) -> None:
        run = AgentRun("p", "s", AgentRef("a"), interval=Interval(NINE, TEN), shard=Shard(1, 4), run_id="1")
        assert run.transactional_id == f"factory|stage|p|s||{Interval(NINE, TEN).key}|1of4"
        again = msgspec.structs.replace(run, agent=AgentRef("a", "2"), params={"x": 1}, run_id="2", order=Order("2", 3), rerun="redo")
        assert again.transactional_id == run.transactional_id
        assert msgspec.structs.replace(run, shard=Shard(2, 4)).transactional_id != run.transactional_id

    def test_works_over_one_interval_are_told_apart_by_origin_and_instance(self) -> None:
        run = AgentRun("p", "s", AgentRef("a"), interval=Interval(NINE, TEN))
        others = [{"origin": "raw"}, {"origin": "raw", "instance": 1}, {"instance": 1}, {"instance": 2}]
        assert len({msgspec.structs.replace(run, **other).transactional_id for other in ({}, *others)}) == 5

    def test_names_with_dots_are_not_taken_for_each_other(self) -> None:
        one = AgentRun("a", "b.c", AgentRef("x"), name="n")
        assert one.transactional_id != msgspec.structs.replace(one, pipeline="a.b", stage="c").transactional_id


def test_counts_add_up_field_by_field() -> None:
    total = Counts(consumed=1, late=2)
    other = total.copy()
    total.add(Counts(consumed=3, lost=4))
    assert (total.consumed, total.late, total.lost) == (4, 2, 4)
    assert other == Counts(consumed=1, late=2)
