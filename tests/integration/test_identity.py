"""What a piece of work is: works over one interval that differ in topic, source or mapped task never meet, in Kafka or in a table."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from factory_agents.errors import ConfigurationError, SinkError, WindowError
from factory_agents.kafka.cuts import plan_window
from factory_agents.protocol import AgentRef, AgentResult, AgentRun, Interval, Order, Shard, Window
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext
from factory_agents.stage_plan import StageInput, stage_input
from tests.support.runs import Runs, events

CONTRACT = {
    "name": "events",
    "id": "event_id",
    "schema": {"type": "object", "required": ["event_id"], "properties": {"event_id": {"type": "integer"}}},
}
NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


class Hour:
    """One interval of one pipeline, whose stages run over whatever they are given, and publish to one table."""

    def __init__(self, runs: Runs, database_url: str) -> None:
        self.runs, self.database_url = runs, database_url
        self.table = f"t_{runs.prefix.replace('-', '_')}"
        now = datetime.now(UTC)
        self.interval = Interval(now - timedelta(hours=1), now + timedelta(seconds=50))  # what arrives while the test runs, too

    def topic(self, name: str, first: int, n: int = 10) -> Window:
        """A new topic with events numbered from ``first`` on, planned."""
        topic = self.runs.topic(name, partitions=2, message_timestamp_type="LogAppendTime")
        self.runs.produce(topic, events(n, first))
        return self.plan(topic)

    def plan(self, topic: str, **more: Any) -> Window:
        return plan_window(
            self.runs.config, pipeline=self.runs.prefix, topic=topic, interval=self.interval, prefix=self.runs.prefix, **more
        )

    def work(self, given: StageInput, agent: str, output: str = "", instance: int = 0, **more: Any) -> AgentRun:
        run = self.runs.run(
            given.window,
            output,
            name=agent,
            stage=agent,
            shard=given.shard,
            plan=given.plan,
            origin=given.window.origin,
            instance=instance,
            params={"table": self.table, "contract": CONTRACT} if agent == "publish" else {},
        )
        return msgspec.structs.replace(run, **more)

    def run(self, given: Any, agent: str, output: str = "", *, shard: Any = None, **more: Any) -> AgentResult:
        return execute(RunContext(self.runs.config), self.work(stage_input(given, shard), agent, output, **more))

    def rows(self) -> list[int]:
        with psycopg.connect(self.database_url) as connection:
            return [row[0] for row in connection.execute(f'SELECT event_id FROM "{self.table}" ORDER BY 1').fetchall()]  # type: ignore[arg-type]


@pytest.fixture
def hour(runs: Runs, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Hour:
    monkeypatch.setenv("DATABASE_URL", database_url)
    return Hour(runs, database_url)


class TestTwoTopics:
    def test_are_published_side_by_side_whatever_is_run_again(self, hour: Hour) -> None:
        windows = [hour.topic("one", 0), hour.topic("other", 10)]
        for window in windows:
            assert hour.run(window, "publish").counts.written == 10
        for n in (1, 2):
            for window in windows:
                cleared = hour.run(window, "publish", order=Order("run", n, n, again=True))
                assert (cleared.reused, cleared.counts.removed) == (False, 0)
                assert hour.rows() == list(range(20))
        assert all(hour.run(window, "publish").reused for window in windows)

    def test_of_a_mapped_stage_are_merged_by_a_stage_over_all_of_them(self, hour: Hour) -> None:
        out = hour.runs.topic("enriched", partitions=2)
        windows = [hour.topic("one", 0), hour.topic("other", 10)]
        results = [hour.run(window, "enrich", out, mapped=2) for window in windows]
        assert hour.run(results, "publish").counts.written == 20
        results[0] = hour.run(windows[0], "enrich", out, mapped=2, order=Order("run", 1, 1, again=True))
        assert hour.run(results, "publish").counts.removed == 0
        assert hour.rows() == list(range(20))
        with pytest.raises(WindowError, match="stage 'enrich': 1 of 2 tasks have a result"):
            stage_input(results[:1])

    def test_in_a_mapped_group_are_chains_of_their_own(self, hour: Hour) -> None:
        out = hour.runs.topic("enriched", partitions=2)
        for i, window in enumerate([hour.topic("one", 0), hour.topic("other", 10)]):
            enriched = hour.run(window, "enrich", out, instance=i)
            assert hour.run(enriched, "publish", instance=i).counts.written == 10
        assert hour.rows() == list(range(20))


class TestMappedTasks:
    def test_over_parameters_of_one_window_are_works_of_their_own(self, hour: Hour) -> None:
        out, window = hour.runs.topic("out", partitions=2), hour.topic("one", 0)
        results = [hour.run(window, "enrich", out, instance=i, mapped=3) for i in range(3)]
        assert len({r.manifest.writer for r in results if r.manifest}) == 3
        assert not any(
            hour.run(window, "enrich", out, instance=i, mapped=3, params={"function": "tests.support.agents:mark"}).reused for i in range(3)
        )
        assert stage_input(results).window.size == 30

    def test_of_ingest_over_sources_into_one_topic_are_published_as_one(self, hour: Hour, tmp_path: Path) -> None:
        raw = hour.runs.topic("raw", partitions=2)
        results = []
        for i in range(3):
            (tmp_path / f"{i}.jsonl").write_text("".join(f'{{"event_id": {10 * i + n}, "at": "{NOON.isoformat()}"}}\n' for n in range(10)))
            run = hour.runs.run(
                None,
                raw,
                name="ingest",
                stage="ingest",
                interval=Interval(NOON, NOON + timedelta(hours=1)),
                params={"source": str(tmp_path / f"{i}.jsonl"), "time_field": "at"},
                instance=i,
                mapped=3,
            )
            results.append(execute(RunContext(hour.runs.config), run))
        assert hour.run(results, "publish").counts.written == 30
        each = [hour.run(result, "publish", stage="each", instance=i) for i, result in enumerate(results)]
        assert [r.counts.removed for r in each] == [0, 0, 0]
        assert hour.rows() == list(range(30))

    def test_in_a_group_over_shards_hand_each_shard_on(self, hour: Hour) -> None:
        enriched, valid = (hour.runs.topic(name, partitions=2) for name in ("enriched", "valid"))
        window = hour.topic("one", 0)
        enriched_shards = [hour.run(window, "enrich", enriched, shard=(i, 2)) for i in range(2)]
        results = [hour.run(result, "enrich", valid, stage="then") for result in enriched_shards]
        assert [r.shard for r in results] == [Shard(0, 2), Shard(1, 2)]
        assert hour.run(results, "publish").counts.written == 10
        assert hour.rows() == list(range(10))


class TestAStage:
    def test_taken_out_lets_what_comes_without_it_be_published(self, hour: Hour) -> None:
        window = hour.topic("one", 0)
        enriched = hour.run(window, "enrich", hour.runs.topic("enriched", partitions=2))
        valid = hour.run(enriched, "validate", hour.runs.topic("valid", partitions=2), params={"contract": CONTRACT})
        hour.run(valid, "publish")
        for given in (window, enriched, window, valid, enriched):
            published = hour.run(given, "publish")
            assert (published.reused, published.counts.written) == (False, 10)
            assert hour.rows() == list(range(10))

    def test_taken_out_lets_what_comes_without_it_be_published_though_an_attempt_is_killed(self, hour: Hour, database_url: str) -> None:
        """Its dead letters are out by then: the work is in progress, and no longer finished."""
        topic = hour.runs.topic("one", partitions=2, message_timestamp_type="LogAppendTime")
        hour.runs.produce(topic, [*events(10), b"{"])
        window = hour.plan(topic)
        hour.run(hour.run(window, "enrich", hour.runs.topic("enriched", partitions=2)), "publish")
        killed = hour.runs.attempt(hour.work(stage_input(window), "publish"), "sink.before-commit", secrets={"DATABASE_URL": database_url})
        assert killed.wait() == -signal.SIGKILL, killed.log
        assert hour.run(window, "publish").counts.written == 10

    def test_whose_shards_are_published_one_by_one_may_be_done_again_in_any_order(self, hour: Hour) -> None:
        out, window = hour.runs.topic("enriched", partitions=2), hour.topic("one", 0)
        shards = [hour.run(window, "enrich", out, shard=(i, 2)) for i in range(2)]
        assert [hour.run(shards[i], "publish").counts.written for i in (1, 0)] == [5, 5]
        older, again = shards[1], Order("run", 1, 1, again=True)
        shards[1] = hour.run(window, "enrich", out, shard=(1, 2), order=again)
        for i in (1, 0, 1, 0):
            published = hour.run(shards[i], "publish", rerun="redo")
            assert (published.counts.written, published.counts.removed) == (5, 0)
        with pytest.raises(SinkError, match="this manifest is of the older generation"):
            hour.run(older, "publish")
        for given in (shards, shards[0], shards[1], shards):  # published as one, shard by shard, and as one again
            assert not hour.run(given, "publish").reused
        assert hour.rows() == list(range(10))

    def test_in_the_number_of_shards_that_it_had_before_is_done_again_and_published(self, hour: Hour) -> None:
        """What another number of them gave is newer than what is remembered."""
        out, window = hour.runs.topic("enriched", partitions=2), hour.topic("one", 0)
        for of, reused in ((2, False), (1, False), (2, False), (2, True)):
            shards = [hour.run(window, "enrich", out, shard=(i, of)) for i in range(of)]
            published = [hour.run(shards, "publish", shard=(i, of)) for i in range(of)]
            assert {r.reused for r in (*shards, *published)} == {reused}
            assert sum(r.counts.written for r in published) == 10
        assert hour.rows() == list(range(10))

    def test_that_gave_a_newer_manifest_makes_its_older_one_refused(self, hour: Hour) -> None:
        out, window = hour.runs.topic("enriched", partitions=2), hour.topic("one", 0)
        older = hour.run(window, "enrich", out)
        newer = hour.run(window, "enrich", out, order=Order("run", 1, 1, again=True))
        hour.run(newer, "publish")
        with pytest.raises(Exception, match="this manifest is of the older generation"):
            hour.run(older, "publish")

    def test_beside_another_is_published_with_it(self, hour: Hour) -> None:
        """Fan-in: two stages that wrote to one topic."""
        out = hour.runs.topic("enriched", partitions=2)
        left = hour.run(hour.topic("one", 0), "enrich", out, stage="left")
        right = hour.run(hour.topic("other", 10), "enrich", out, stage="right")
        assert hour.run([left, right], "publish").counts.written == 20
        assert hour.rows() == list(range(20))


class TestIngest:
    @pytest.fixture
    def ingest(self, runs: Runs, tmp_path: Path) -> Any:
        raw = runs.topic("raw", partitions=1)
        source = tmp_path / "rows.jsonl"
        times = [NOON + timedelta(microseconds=n * 200) for n in range(20)] + [NOON + timedelta(hours=h) for h in range(1, 5)]
        source.write_text("".join(f'{{"event_id": {n}, "at": "{at.isoformat()}"}}\n' for n, at in enumerate(times)))

        def ingest(start: timedelta, end: timedelta, **more: Any) -> AgentResult:
            interval = Interval(NOON + start, NOON + end)
            params = {"source": str(source), "time_field": "at"}
            run = runs.run(None, raw, "ingest", stage="ingest", params=params, interval=interval)
            return execute(RunContext(runs.config), msgspec.structs.replace(run, **more))

        return ingest

    def test_of_overlapping_intervals_is_refused_and_writes_nothing(self, ingest: Any, runs: Runs) -> None:
        hours = [timedelta(hours=h) for h in range(6)]
        ingest(hours[1], hours[3])
        for start, end in ((0, 2), (2, 4), (0, 5), (1, 2)):
            for more in ({}, {"dry_run": True}):
                with pytest.raises(WindowError, match=r"overlaps .* which was read from the same source"):
                    ingest(hours[start], hours[end], **more)
        assert ingest(hours[1], hours[3]).reused
        assert ingest(hours[3], hours[5]).counts.consumed == 2
        assert ingest(hours[0], hours[2], instance=1).counts.consumed == 21, "another mapped task's source is another one"
        assert len(runs.everything(f"{runs.prefix}.raw")) == 2 + 2 + 21

    def test_of_intervals_that_differ_below_a_millisecond_is_two_works(self, ingest: Any) -> None:
        middle = timedelta(milliseconds=1, microseconds=500)
        assert ingest(timedelta(), middle).counts.consumed == 8
        assert ingest(middle, timedelta(milliseconds=4)).counts.consumed == 12
        with pytest.raises(WindowError, match="overlaps"):
            ingest(timedelta(), middle + timedelta(microseconds=100))

    def test_of_another_version_of_a_built_in_is_other_work(self, ingest: Any) -> None:
        hour = (timedelta(hours=1), timedelta(hours=2))
        ingest(*hour)
        named = ingest(*hour, agent=AgentRef("ingest", "of our own"))
        assert (named.reused, named.version) == (False, "of our own")
        assert ingest(*hour, agent=AgentRef("ingest", "of our own")).reused


@pytest.mark.parametrize("same_as", ["output", "input"])
def test_dead_letters_never_go_where_events_are_read(runs: Runs, same_as: str) -> None:
    window, out = runs.filled(3), runs.topic("out")
    run = runs.run(window, out, dead_letter_topic=out if same_as == "output" else window.topic)
    with pytest.raises(ConfigurationError, match=f"is its {same_as} topic too: rejected events would be read as good ones"):
        runs.transform(run)
    assert runs.everything(out) == []


@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
def test_dead_letters_never_go_where_compaction_takes_them_away(runs: Runs, policy: str) -> None:
    topic, dead = runs.topic("in", partitions=1), runs.topic("dead", partitions=1, cleanup_policy=policy)
    runs.produce(topic, [b"{", b"["], key=b"k")
    with pytest.raises(ConfigurationError, match=f"dead-letter topic '{dead}' has cleanup.policy=.*only the newest letter of each key"):
        runs.transform(runs.run(runs.window(topic), runs.topic("out"), dead_letter_topic=dead, max_rejected="100 %"))
    assert runs.everything(dead) == []
