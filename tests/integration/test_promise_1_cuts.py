"""Promise 1: cuts are written once. Windows tile, each record is in exactly one, whoever plans, when, and in which order."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from factory_agents.errors import ConfigurationError, DataLossError, DeadlineError, WindowError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.cuts import partition_passed, plan_window, preview_window
from factory_agents.kafka.ledger import CutRecord, Ledger, PlanRecord, ledger_topic
from factory_agents.kafka.planning import Policy
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import Interval, Window
from tests.conftest import TopicFactory
from tests.support.log import HOUR, Transaction, Writer, hour, hours_ago, values_of
from tests.support.topics import create_topic
from tests.support.waiting import wait_for


@pytest.fixture
def config(bootstrap: str) -> KafkaConfig:
    return KafkaConfig(bootstrap)


class Pipeline:
    """A pipeline that plans windows on one topic, with the suite's ledger."""

    def __init__(self, config: KafkaConfig, name: str, topic: str) -> None:
        self.config, self.name, self.topic = config, name, topic

    def plan(self, interval: Interval | None, policy: Policy = "index", **more: object) -> Window:
        return plan_window(
            self.config,
            pipeline=self.name,
            topic=self.topic,
            interval=interval,
            prefix="promises",
            policy=policy,
            **more,  # type: ignore[arg-type]
        )

    def values(self, interval: Interval | None, policy: Policy = "index", **more: object) -> list[str]:
        return values_of(self.config, self.plan(interval, policy, **more))

    def ledger(self) -> Ledger:
        return Ledger(self.config, Cluster(self.config), prefix="promises", pipeline=self.name)


@pytest.fixture
def hourly(config: KafkaConfig, prefix: str, topic: TopicFactory) -> Pipeline:
    """A pipeline on a topic of one partition whose producers set the time."""
    return Pipeline(config, prefix, topic(partitions=1, message_timestamp_type="CreateTime", message_timestamp_after_max_ms=2**62))


@pytest.fixture
def writer(bootstrap: str, hourly: Pipeline) -> Writer:
    return Writer(bootstrap, hourly.topic)


def add_partitions(admin: AdminClient, topic: str, total: int) -> None:
    admin.create_partitions([NewPartitions(topic, total)])[topic].result()
    wait_for(
        lambda: sum(p.leader >= 0 for p in admin.list_topics(topic, timeout=10).topics[topic].partitions.values()) == total,
        "the new partitions",
    )


def recreate(admin: AdminClient, topic: str, partitions: int, **config: object) -> None:
    admin.delete_topics([topic])[topic].result()
    wait_for(lambda: topic not in admin.list_topics(timeout=10).topics, "the topic to be gone")
    create_topic(admin, topic, partitions, **config)


class TestAWindow:
    def test_holds_the_records_between_its_two_cuts(self, hourly: Pipeline, writer: Writer) -> None:
        for ago in (3.5, 2.5, 2.0, 1.5, 1.0, 0.5):
            writer.write([f"at -{ago}"], hours_ago(ago))
        assert hourly.values(hour(2)) == ["at -1.5", "at -2.0"]

    def test_is_the_same_when_planned_again_after_more_arrived(self, hourly: Pipeline, writer: Writer) -> None:
        writer.write("abc", hours_ago(1.5))
        first = hourly.plan(hour(2))
        writer.write("late", hours_ago(1.5))
        assert hourly.plan(hour(2)) == first
        assert hourly.plan(hour(2), "carry") == first

    def test_is_planned_over_an_empty_topic_and_over_empty_partitions(self, config: KafkaConfig, prefix: str, topic: TopicFactory) -> None:
        empty = Pipeline(config, prefix, topic(partitions=3))
        window = empty.plan(hour(1))
        assert window.ranges == ()
        assert values_of(config, window) == []

    def test_is_shown_by_a_preview_that_writes_nothing(self, hourly: Pipeline, writer: Writer) -> None:
        writer.write("abc", hours_ago(1.5))
        shown = preview_window(hourly.config, pipeline=hourly.name, topic=hourly.topic, interval=hour(2), prefix="promises")
        writer.write("d", hours_ago(0.5))
        assert hourly.plan(hour(2)).ranges == shown.ranges
        writer.write("e", hours_ago(0.5))
        preview_window(hourly.config, pipeline=hourly.name, topic=hourly.topic, interval=hour(1), prefix="promises")
        hourly.plan(hour(2))
        assert len(hourly.ledger().read(deadline=_soon()).of(PlanRecord)) == 1

    def test_of_500_partitions_is_planned_and_read(self, config: KafkaConfig, bootstrap: str, prefix: str, topic: TopicFactory) -> None:
        wide = Pipeline(config, prefix, topic(partitions=500))
        producer = Writer(bootstrap, wide.topic)
        for p in range(0, 500, 50):
            producer.write([f"{p:03}"], hours_ago(0.5), partition=p)
        assert hourly_values(wide, hour(1)) == [f"{p:03}" for p in range(0, 500, 50)]


class TestALateRecord:
    def test_between_two_hourly_runs_is_in_exactly_one(self, hourly: Pipeline, writer: Writer) -> None:
        writer.write(["in time"], hours_ago(1.5))
        first = hourly.plan(hour(2))
        writer.write(["late"], hours_ago(1.5))
        writer.write(["next"], hours_ago(0.5))
        second = hourly.plan(hour(1))
        assert values_of(hourly.config, first) == ["in time"]
        assert values_of(hourly.config, second) == ["late", "next"]

    def test_that_arrives_out_of_order_stays_where_it_arrived(self, hourly: Pipeline, writer: Writer) -> None:
        for ago in (2.5, 1.5, 2.2, 1.2, 2.9, 0.5):
            writer.write([f"{ago}"], hours_ago(ago))
        windows = [hourly.values(hour(ago)) for ago in (3, 2, 1)]
        assert sorted(v for values in windows for v in values) == ["0.5", "1.2", "1.5", "2.2", "2.5", "2.9"]
        assert windows[1] == ["1.2", "1.5", "2.2", "2.9"]

    def test_of_a_past_hour_written_in_several_transactions_is_in_exactly_one_window(self, hourly: Pipeline, bootstrap: str) -> None:
        """The markers carry the broker's time, and the index finds them: they end the past hour's window."""
        transaction = Transaction(bootstrap, hourly.topic, "refill")
        for part in "abc":
            transaction.write([f"{part}{n}" for n in range(3)], hours_ago(3.5))
            transaction.commit(again=part != "c")
        past = hourly.values(hour(4))
        rest = [v for ago in (3, 2, 1) for v in hourly.values(hour(ago))]
        later = hourly.values(Interval(hours_ago(0), datetime.now(UTC) + timedelta(seconds=30)))
        assert sorted([*past, *rest, *later]) == [f"{part}{n}" for part in "abc" for n in range(3)]


class TestAWrongClock:
    def test_far_ahead_does_not_close_the_topic(self, hourly: Pipeline, writer: Writer) -> None:
        writer.write(["a"], hours_ago(2.5))
        assert hourly.values(hour(3)) == ["a"]
        writer.write(["from 2040"], datetime(2040, 1, 1, tzinfo=UTC))
        writer.write(["b"], hours_ago(1.5))
        assert hourly.values(hour(2)) == ["b", "from 2040"]
        writer.write(["c"], hours_ago(0.5))
        assert hourly.values(hour(1)) == ["c"]

    def test_far_ahead_hides_nothing_from_the_first_window(
        self, hourly: Pipeline, writer: Writer, caplog: pytest.LogCaptureFixture
    ) -> None:
        writer.write(["from 2040"], datetime(2040, 1, 1, tzinfo=UTC))
        writer.write(["a"], hours_ago(1.5))
        writer.write(["b"], hours_ago(0.5))
        assert [hourly.values(hour(ago)) for ago in (2, 1)] == [["a", "b", "from 2040"], []]
        assert "partitions [0] hold records of a clock more than 5 minutes ahead" in caplog.text

    def test_far_ahead_is_not_taken_for_a_partition_that_has_passed_the_end(self, hourly: Pipeline, writer: Writer) -> None:
        writer.write(["from 2040"], datetime(2040, 1, 1, tzinfo=UTC))
        assert partition_passed(hourly.config, hourly.topic, hours_ago(0)) == {0: False}
        recent = Pipeline(hourly.config, hourly.name, hourly.topic)
        assert recent.plan(hour(1)).topic == hourly.topic

    def test_within_five_minutes_is_believed(self, hourly: Pipeline, writer: Writer) -> None:
        writer.write(["a"], hours_ago(0.5))
        writer.write(["ahead"], datetime.now(UTC) + timedelta(minutes=4))
        writer.write(["b"], hours_ago(0.5))
        assert hourly.values(hour(1)) == ["a"]
        assert partition_passed(hourly.config, hourly.topic, hours_ago(0)) == {0: True}


class TestAnOpenTransaction:
    def test_on_the_topic_does_not_hold_up_the_plan_and_its_records_come_in_one_window(
        self, hourly: Pipeline, writer: Writer, bootstrap: str
    ) -> None:
        writer.write(["a"], hours_ago(1.5))
        transaction = Transaction(bootstrap, hourly.topic, "open")
        transaction.write(["open"], hours_ago(1.4))
        first = hourly.plan(hour(2))
        transaction.commit()
        second = hourly.values(hour(1))
        third = hourly.values(Interval(hours_ago(0), datetime.now(UTC) + timedelta(seconds=30)))
        assert sorted(values_of(hourly.config, first) + second + third) == ["a", "open"]

    def test_on_the_ledger_is_waited_for(self, hourly: Pipeline, writer: Writer, bootstrap: str) -> None:
        writer.write(["a"], hours_ago(1.5))
        hourly.plan(hour(3))
        ledger = hourly.ledger()
        transaction = Transaction(bootstrap, ledger.topic, hourly.name)
        transaction.write(["{}"], partition=ledger.partition, key="somebody|else")
        assert hourly.values(hour(3)) == [], "what is planned already is not held up"
        with ThreadPoolExecutor() as pool:
            planning = pool.submit(hourly.values, hour(2))
            assert not planning.done()
            transaction.abort()
            assert planning.result(20) == ["a"]

    def test_on_the_ledger_that_outlasts_the_deadline_is_named(self, hourly: Pipeline, bootstrap: str) -> None:
        ledger = hourly.ledger()
        ledger.ensure()
        transaction = Transaction(bootstrap, ledger.topic, hourly.name)
        transaction.write(["{}"], partition=ledger.partition, key="somebody|else")
        with pytest.raises(DeadlineError, match=rf"ledger {ledger.topic}.*partition {ledger.partition} is still open"):
            hourly.plan(hour(2), timeout=0.5)
        transaction.abort()


class TestABackfill:
    @pytest.mark.parametrize("agos", [(6, 5, 4, 3, 2, 1), (1, 2, 3, 4, 5, 6), (4, 2, 6, 1, 3, 5)], ids=["forward", "reverse", "shuffled"])
    def test_tiles(self, hourly: Pipeline, writer: Writer, agos: tuple[int, ...]) -> None:
        everything = []
        for ago in (6, 5, 4, 3, 2, 1):
            values = [f"{ago}-{n}" for n in range(4)]
            writer.write(values[:2], hours_ago(ago - 0.3))
            writer.write(values[2:], hours_ago(ago + 1.5))  # late
            everything += values
        got = [v for ago in agos for v in hourly.values(hour(ago))]
        assert sorted(got) == sorted(everything)

    def test_by_twelve_planners_at_once_tiles(self, hourly: Pipeline, writer: Writer) -> None:
        for ago in range(12, 0, -1):
            writer.write([f"{ago}"], hours_ago(ago - 0.5))
        with ThreadPoolExecutor(12) as pool:
            windows = list(pool.map(hourly.plan, [hour(ago) for ago in range(12, 0, -1)]))
        assert [values_of(hourly.config, w) for w in windows] == [[f"{ago}"] for ago in range(12, 0, -1)]


class TestTwoPlanners:
    def test_of_one_window_at_once_get_the_same(self, hourly: Pipeline, writer: Writer) -> None:
        writer.write("abc", hours_ago(1.5))
        together = threading.Barrier(4)

        def plan(_: int) -> Window:
            together.wait(10)
            return hourly.plan(hour(2))

        with ThreadPoolExecutor(4) as pool:
            windows = list(pool.map(plan, range(4)))
        assert all(w == windows[0] for w in windows)
        assert len(hourly.ledger().read(deadline=_soon()).of(CutRecord)) == 2

    def test_one_that_was_overtaken_writes_nothing(self, hourly: Pipeline, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is held up between its decision and its commit; meanwhile more arrives, and another plans the same window."""
        writer.write(["a"], hours_ago(1.5))
        decided, overtaken = threading.Event(), threading.Event()

        def hold_up(point: str) -> None:
            if point == "plan.before-commit" and threading.current_thread().name.startswith("slow"):
                decided.set()
                assert overtaken.wait(20)

        monkeypatch.setattr("factory_agents.kafka.cuts.failpoints.hit", hold_up)
        with ThreadPoolExecutor(1, "slow") as pool:
            slow = pool.submit(hourly.plan, hour(2))
            assert decided.wait(20)
            writer.write(["b"], hours_ago(1.4))
            fast = hourly.plan(hour(2))
            overtaken.set()
            assert slow.result(30) == fast
        assert values_of(hourly.config, fast) == ["a", "b"]


class TestAKilledPlanner:
    """In a process of its own, as a task runs it."""

    CODE = """
import sys
from datetime import datetime
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.cuts import plan_window
from factory_agents.protocol import Interval
pipeline, topic, start, end = sys.argv[1:]
interval = Interval(datetime.fromisoformat(start), datetime.fromisoformat(end))
plan_window(KafkaConfig.from_env(), pipeline=pipeline, topic=topic, interval=interval, prefix="promises")
"""

    def killed(self, hourly: Pipeline, interval: Interval, failpoint: str) -> None:
        arguments = [hourly.name, hourly.topic, interval.start.isoformat(), interval.end.isoformat()]
        environment = {**os.environ, **hourly.config.to_env(), "FACTORY_FAILPOINTS": f"{failpoint}=kill"}
        done = subprocess.run([sys.executable, "-c", self.CODE, *arguments], env=environment, check=False, timeout=60)
        assert done.returncode == -signal.SIGKILL

    def test_before_its_commit_leaves_nothing_and_holds_nobody_up(self, hourly: Pipeline, writer: Writer) -> None:
        writer.write(["a"], hours_ago(1.5))
        self.killed(hourly, hour(2), "plan.before-commit")
        writer.write(["b"], hours_ago(1.5))
        began = time.monotonic()
        assert hourly.values(hour(2)) == ["a", "b"]
        assert time.monotonic() - began < 10, "its transaction was waited for"

    def test_after_its_commit_leaves_its_window(self, hourly: Pipeline, writer: Writer) -> None:
        writer.write(["a"], hours_ago(1.5))
        self.killed(hourly, hour(2), "plan.after-commit")
        writer.write(["b"], hours_ago(1.5))
        assert hourly.values(hour(2)) == ["a"]


class TestAPause:
    def test_is_carried_into_the_next_scheduled_run(self, hourly: Pipeline, writer: Writer) -> None:
        for ago in (5, 4, 3, 2, 1):
            writer.write([f"{ago}"], hours_ago(ago - 0.5))
        assert hourly.values(hour(5), "carry") == ["5"]
        window = hourly.plan(hour(1), "carry")
        assert values_of(hourly.config, window) == ["1", "2", "3", "4"]
        assert (window.carried, window.gap) == (3, 0)
        assert hourly.values(hour(3)) == [], "a backfill finds nothing that was not carried"

    def test_is_left_to_a_backfill_and_its_size_is_reported(
        self, hourly: Pipeline, writer: Writer, caplog: pytest.LogCaptureFixture
    ) -> None:
        for ago in (5, 4, 3, 2, 1):
            writer.write([f"{ago}"], hours_ago(ago - 0.5))
        assert hourly.values(hour(5)) == ["5"]
        with caplog.at_level(logging.WARNING):
            window = hourly.plan(hour(1))
        assert (values_of(hourly.config, window), window.gap) == (["1"], 3)
        assert "3 offsets beside this window are in no window yet; the runs of that time, or a backfill" in caplog.text
        assert [hourly.values(hour(ago)) for ago in (4, 3, 2)] == [["4"], ["3"], ["2"]]


class TestRunsWithoutAnInterval:
    def test_tile(self, hourly: Pipeline, writer: Writer) -> None:
        writer.write("ab")
        assert hourly.values(None, run_key="run 1") == ["a", "b"]
        assert hourly.values(None, run_key="run 2") == []
        writer.write("cd", hours_ago(9))
        assert hourly.values(None, run_key="run 3") == ["c", "d"]
        assert hourly.values(None, run_key="run 1") == ["a", "b"], "the same run, the same window"

    def test_leave_an_open_transaction_to_the_next(self, hourly: Pipeline, writer: Writer, bootstrap: str) -> None:
        writer.write(["a"])
        transaction = Transaction(bootstrap, hourly.topic, "open")
        transaction.write(["b"])
        assert hourly.values(None, run_key="1") == ["a"]
        transaction.commit()
        assert hourly.values(None, run_key="2") == ["b"]

    def test_cannot_be_mixed_with_intervals(self, hourly: Pipeline) -> None:
        hourly.plan(hour(2))
        with pytest.raises(WindowError, match=r"intervals.*since last.*another pipeline name"):
            hourly.plan(None, run_key="run")


class TestAPartition:
    def test_added_between_two_plans_is_read_from_its_beginning(
        self, hourly: Pipeline, writer: Writer, admin: AdminClient, bootstrap: str
    ) -> None:
        writer.write(["a"], hours_ago(2.5))
        assert hourly.values(hour(3)) == ["a"]
        add_partitions(admin, hourly.topic, 3)
        Writer(bootstrap, hourly.topic).write(["new"], hours_ago(2.5), partition=2)
        Writer(bootstrap, hourly.topic).write(["newer"], hours_ago(0.5), partition=2)
        assert hourly.values(hour(2)) == ["new"]
        assert hourly.values(hour(1)) == ["newer"]


class TestARecreatedTopic:
    def test_is_refused_until_the_loss_is_accepted(self, hourly: Pipeline, writer: Writer, admin: AdminClient, bootstrap: str) -> None:
        writer.write(["old"], hours_ago(3.5))
        first = hourly.plan(hour(4), "carry")
        recreate(admin, hourly.topic, 1)
        Writer(bootstrap, hourly.topic).write(["new"], hours_ago(2.5))
        with pytest.raises(DataLossError, match=r"deleted and created again.*accept-loss"):
            hourly.plan(hour(2), "carry")
        assert hourly.values(hour(2), "carry", accept_loss=True) == ["new"]
        assert hourly.plan(hour(4), "carry") == first, "what was planned on the former one stays what it was"
        plans = hourly.ledger().read(deadline=_soon()).of(PlanRecord)
        assert [p.replaces for p in plans] == ["", plans[0].topic_id]


class TestRefused:
    def test_an_interval_that_overlaps_a_planned_one(self, hourly: Pipeline) -> None:
        hourly.plan(hour(3))
        with pytest.raises(WindowError, match="overlaps"):
            hourly.plan(Interval(hours_ago(2.5), hours_ago(1.5)))

    def test_an_interval_that_ends_in_the_future(self, hourly: Pipeline) -> None:
        with pytest.raises(WindowError, match="ends in the future"):
            hourly.plan(Interval(hours_ago(0), datetime.now(UTC) + HOUR))

    def test_a_backwards_and_an_empty_interval(self) -> None:
        with pytest.raises(WindowError, match="not after its start"):
            Interval(hours_ago(1), hours_ago(2))
        with pytest.raises(WindowError, match="not after its start"):
            Interval(hours_ago(1), hours_ago(1))

    def test_an_interval_without_a_zone(self) -> None:
        with pytest.raises(WindowError, match="time zone"):
            Interval(datetime(2026, 1, 1), datetime(2026, 1, 2))  # noqa: DTZ001

    def test_an_unknown_topic(self, hourly: Pipeline) -> None:
        with pytest.raises(ConfigurationError, match=r"nowhere.*unknown topic"):
            Pipeline(hourly.config, hourly.name, "nowhere").plan(hour(2))

    def test_what_is_no_topic_name(self, hourly: Pipeline) -> None:
        with pytest.raises(ConfigurationError, match="no name that a topic can have"):
            Pipeline(hourly.config, hourly.name, "no topic!").plan(hour(2))

    @pytest.mark.parametrize("settings", [{"cleanup_policy": "compact"}, {"cleanup_policy": "compact,delete", "min_compaction_lag_ms": 0}])
    def test_a_topic_that_is_compacted_within_the_replay_horizon(
        self, config: KafkaConfig, prefix: str, topic: TopicFactory, settings: dict[str, object]
    ) -> None:
        with pytest.raises(WindowError, match=r"cleanup\.policy=compact.*min\.compaction\.lag\.ms of at least"):
            Pipeline(config, prefix, topic(**settings)).plan(hour(2))

    def test_nothing_of_a_topic_compacted_after_its_retention(self, config: KafkaConfig, prefix: str, topic: TopicFactory) -> None:
        late = topic(cleanup_policy="compact,delete", min_compaction_lag_ms=3_600_000, retention_ms=3_600_000)
        assert Pipeline(config, prefix, late).plan(hour(2)).ranges == ()

    def test_nothing_but_create_time_is_warned_of(
        self, hourly: Pipeline, config: KafkaConfig, prefix: str, topic: TopicFactory, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING, "factory_agents")  # whatever a test before has set
        hourly.plan(hour(2))
        assert "LogAppendTime makes windows follow arrival" in caplog.text
        caplog.clear()
        Pipeline(config, f"{prefix}.2", topic(message_timestamp_type="LogAppendTime")).plan(hour(2))
        assert caplog.text == ""


def test_the_ledger_has_12_partitions_is_compacted_and_made_by_the_first_planner(hourly: Pipeline, admin: AdminClient, prefix: str) -> None:
    plan_window(hourly.config, pipeline="p", topic=hourly.topic, interval=hour(2), prefix=prefix)
    cluster = Cluster(hourly.config)
    assert cluster.topic(ledger_topic(prefix)).partitions == 12
    assert cluster.settings(ledger_topic(prefix))["cleanup.policy"] == "compact"
    admin.delete_topics([ledger_topic(prefix)])[ledger_topic(prefix)].result()


@pytest.mark.parametrize("seed", range(4))
def test_random_histories_put_every_record_into_exactly_one_window(seed: int, hourly: Pipeline, writer: Writer) -> None:
    """A sample, on the real broker, of what tests/agents/kafka/test_planning.py tries at length against a model."""
    chance = random.Random(seed)
    written: list[str] = []
    windows: dict[str, Window] = {}

    def plan(ago: int, policy: Policy) -> None:
        window = hourly.plan(hour(ago), policy)
        assert windows.setdefault(window.key, window) == window

    plan(7, "carry")  # before anything is there
    for n in range(10):
        written.append(f"{n}")
        writer.write(written[-1:], hours_ago(chance.choice([6.5, 5.5, 4.5, 3.5, 2.5, 1.5, 0.5, 0.5, -0.01])))
        if chance.random() < 0.5:
            plan(chance.randint(1, 6), chance.choice(["carry", "index"]))
    for ago in chance.sample(range(1, 7), 6):
        plan(ago, "index")
    rest = hourly.plan(Interval(hours_ago(0), datetime.now(UTC) + timedelta(seconds=50)))  # the -0.01 hours lie ahead when one begins
    values = [v for w in (*windows.values(), rest) for v in values_of(hourly.config, w)]
    assert sorted(values) == sorted(written)


def hourly_values(pipeline: Pipeline, interval: Interval) -> list[str]:
    return values_of(pipeline.config, pipeline.plan(interval))


def _soon() -> float:
    return time.monotonic() + 20
