"""Every part with just the ACLs that docs/least-rights.md gives it, on a broker with an authorizer; each one missing is named."""

from __future__ import annotations

import contextlib
import itertools
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from follow_docs import blocks

from airflow_provider_factory.page.snapshot import LedgerReader
from factory_agents.errors import ConfigurationError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.control import Control
from factory_agents.kafka.cuts import plan_window
from factory_agents.kafka.lag import group_lag, pipeline_lag
from factory_agents.kafka.ledger import LEDGER_PARTITIONS
from factory_agents.kafka.routes import Route
from factory_agents.kafka.topics import Cluster
from factory_agents.kafka.windows import read_windows
from factory_agents.metrics.lags import LagChoice
from factory_agents.metrics.server import MetricsServer
from factory_agents.protocol import AgentRef, AgentRun, Counts, Window
from factory_agents.rollouts import Rollouts
from factory_agents.run import execute
from factory_agents.runtime.agents import agent
from factory_agents.runtime.dead_letters import LetterTopic, Selection
from factory_agents.runtime.live import LiveSettings, run_live
from factory_agents.runtime.live_sink import run_sink_live
from factory_agents.runtime.replays import replay_letters
from factory_agents.runtime.session import RunContext
from factory_agents.runtime.sink import run_sink
from factory_agents.runtime.versions import run_version
from factory_agents.runtime.window import run_transform
from factory_agents.topics_file import WantedTopic, apply_topics
from tests.agents.inference.conftest import infer_params
from tests.support.guarded_broker import Acl, GuardedBroker, guarded_broker, parse_acls
from tests.support.model_server import ModelServer
from tests.support.runs import events, read_ranges
from tests.support.scrapes import scrape
from tests.support.scrapes import value as figure
from tests.support.sqlite_sink import SqliteSink
from tests.support.topics import create_topic
from tests.support.waiting import wait_for

pytestmark = pytest.mark.parts

PAGE = Path(__file__).resolve().parents[2] / "docs" / "least-rights.md"
SAID = {b.words: parse_acls(b.text) for b in blocks(PAGE.read_text()) if b.language == "acls"}
_counter = itertools.count()  # of all tests: what a job does is done for the first time, whichever tests ran before
RAW, ENRICHED, DEAD, LEDGER = "raw_events", "enriched_events", "enriched_events.dead", "factory.ledger"
ROLLED, CONTROL, ANSWERS = "factory.enrich.raw_events", "factory.control", "factory.answers"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedBroker]:
    """With the topics that an administrator made, and a group that has read."""
    with guarded_broker(tmp_path_factory.mktemp("guarded") / "kafka") as broker:
        administrator = _prepared(broker, tmp_path_factory.mktemp("before"))
        administrator.live()
        administrator.infer()
        yield broker


def _prepared(broker: GuardedBroker, folder: Path) -> Factory:
    """An administrator's: there are topics and something in each, whatever a test before this one took away."""
    there = broker.admin.list_topics(timeout=10).topics
    for name in {RAW, ENRICHED, DEAD} - there.keys():
        create_topic(broker.admin, name, 2)
    for name in {LEDGER, CONTROL, ANSWERS} - there.keys():
        create_topic(broker.admin, name, 12, cleanup_policy="compact")
    administrator = Factory(broker, folder, KafkaConfig(broker.bootstrap))
    administrator.agent()
    return administrator


class Factory:
    """The jobs, each done as the user with the rights, on new records each time; ``administrator`` prepares what a job finds."""

    def __init__(self, broker: GuardedBroker, folder: Path, config: KafkaConfig) -> None:
        self.broker = broker
        self.config = config
        self.administrator = KafkaConfig(broker.bootstrap)
        self.database = folder / "rows.db"

    def produce(self, topic: str) -> None:
        producer = Producer({"bootstrap.servers": self.broker.bootstrap, "log_level": 0})
        for i, value in enumerate([*events(4, start=4 * next(_counter)), b"{broken"]):
            producer.produce(topic, value, partition=i % 2)
        assert producer.flush(60) == 0

    def forget(self, topics: set[str]) -> None:
        for future in self.broker.admin.delete_topics(sorted(topics)).values():
            future.exception()  # there may be none: the job failed before
        wait_for(lambda: not topics & self.broker.admin.list_topics(timeout=10).topics.keys(), "the topics to be gone")

    def window(self, config: KafkaConfig, topic: str = RAW) -> Window:
        self.produce(topic)
        return plan_window(config, pipeline=f"orders-{topic}", topic=topic, interval=None, run_key=f"run-{next(_counter)}", timeout=20)

    def plan(self) -> None:
        assert sum(r.end - r.start for r in self.window(self.config).ranges) >= 5

    def agent(self) -> None:
        run = AgentRun("orders", "enrich", AgentRef("enrich"), window=self.window(self.administrator), output_topic=ENRICHED)
        counts = run_transform(RunContext(self.config), run, lambda: agent(version="1")(same).bind({})).counts
        assert counts.forwarded >= 4  # all that came since the last window
        assert counts.rejected >= 1

    def _publish(self, window: Window) -> AgentRun:
        return AgentRun("orders", "publish", AgentRef("publish"), window=window)

    def publish(self) -> None:
        run = self._publish(self.window(self.administrator, ENRICHED))
        counts = run_sink(RunContext(self.config), run, lambda: SqliteSink(self.database)).counts
        assert counts.rejected >= 1

    def _until(self, done: Callable[[], bool], work: Callable[[RunContext], Counts], then: Callable[[], None] | None = None) -> None:
        """Live work until it has done what was to be done, or failed; with ``then``, until it fails for that."""
        stop = threading.Event()
        failed: list[BaseException] = []

        def run() -> None:
            try:
                work(RunContext(self.config, stop=stop.is_set))
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        wait_for(lambda: failed or done(), "the live part to do its work")
        if then is not None and not failed:
            then()
            wait_for(lambda: failed, "the live part to end")
        stop.set()
        thread.join(30)
        if failed:
            raise failed[0]

    def _writes(self, topic: str) -> Callable[[], bool]:
        """Whether it has new records: an earlier transaction that is rolled back late leaves a marker in it, no record."""
        cluster = Cluster(self.administrator)
        before = cluster.stable_offset(topic, range(2))

        def written() -> bool:
            ranges = {p: (before[p], end) for p, end in cluster.stable_offset(topic, range(2)).items()}
            return bool(read_ranges(self.broker.bootstrap, topic, ranges))

        return written

    def live(self, then: Callable[[], None] | None = None) -> None:
        self.produce(RAW)
        written = self._writes(ENRICHED)

        def work(context: RunContext) -> Counts:
            return run_live(context, agent(version="1")(same).bind({}), LiveSettings(RAW, ENRICHED, "live-enrich"))

        self._until(written, work, then)

    def infer(self) -> None:
        window = self.window(self.administrator)
        with ModelServer() as server:
            run = AgentRun("orders", "classify", AgentRef("infer"), window=window, output_topic=ENRICHED, params=infer_params(server))
            counts = execute(RunContext(self.config), run).counts
        assert counts.asked >= 4
        assert counts.rejected >= 1

    def live_version(self, then: Callable[[], None] | None = None) -> None:
        """Where there is no order of its group's versions, unless something is to be done then."""
        if then is None:
            self.forget({CONTROL})
            create_topic(self.broker.admin, CONTROL, LEDGER_PARTITIONS, cleanup_policy="compact")
        self.produce(RAW)
        written = self._writes(ENRICHED)

        def work(context: RunContext) -> Counts:
            return run_version(context, agent(version="1")(same).bind({}), "v1", LiveSettings(RAW, ENRICHED, ROLLED))

        self._until(written, work, then)

    def rollout(self) -> None:
        Factory(self.broker, self.database.parent, self.administrator).live_version()
        rollouts, version = Rollouts(self.config, ROLLED), f"v{next(_counter) + 2}"
        with pytest.raises(ConfigurationError) as refused:
            rollouts.start(version)
        if f"version '{version}' has no members" not in str(refused.value):
            raise refused.value
        assert rollouts.start(version, force=True).verdict == "rolling"
        assert rollouts.roll_back("for a trial").verdict == "rolled back"

    def live_publish(self) -> None:
        self.produce(ENRICHED)
        self.database.unlink(missing_ok=True)

        def work(context: RunContext) -> Counts:
            make = lambda: SqliteSink(self.database)  # noqa: E731
            return run_sink_live(context, self._publish, make, pipeline="orders", in_topic=ENRICHED, every=0.1)

        self._until(lambda: self._rows() > 0, work)

    def _rows(self) -> int:
        with contextlib.closing(sqlite3.connect(self.database)) as database:
            try:
                return int(database.execute("SELECT count(*) FROM events").fetchone()[0])
            except sqlite3.OperationalError:
                return 0

    def lag_of_a_group(self) -> None:
        self.produce(RAW)
        assert group_lag(self.config, "live-enrich")

    def lag_of_a_pipeline(self) -> None:
        self.produce(RAW)
        assert pipeline_lag(self.config, f"orders-{RAW}", [RAW])

    def metrics(self) -> None:
        server = MetricsServer(self.config, listen="0", lag=LagChoice(groups="none", topics="none"))
        server.start()
        try:
            wait_for(lambda: self._is_kept(server, scrape(server.address)) or self._failing(server), "the metrics server")
            if failing := self._failing(server):
                raise ConfigurationError(failing)
        finally:
            server.close()

    @staticmethod
    def _is_kept(server: MetricsServer, scraped: dict[Any, float]) -> bool:
        """Whether all of it works, and what was scraped was kept, which is tried after a scrape."""
        return figure(scraped, "factory_metrics_up") == 3 and server._positions._kept.number > 0

    @staticmethod
    def _failing(server: MetricsServer) -> str:
        return "".join(part.said for part in server._parts)

    def windows(self) -> None:
        assert read_windows(self.config)

    def dead_letters_list(self) -> None:
        assert list(LetterTopic(self.config, DEAD).select(Selection(attempt="all")))

    def dead_letters_replay(self) -> None:
        assert replay_letters(self.config, DEAD, RAW, Selection(attempt="all", limit=1), again=True).replayed == 1

    def topics(self) -> None:
        self.forget({RAW, LEDGER, CONTROL, ANSWERS})
        for state in ("created", "as declared"):
            report = apply_topics(self.config, [WantedTopic(RAW, 2, 1, {})], prefix="factory", change=True, fix=False)
            assert {t.state for t in report.topics} == {state}


def same(event: dict[str, Any]) -> dict[str, Any]:
    return event


@pytest.fixture
def factory(broker: GuardedBroker, tmp_path: Path) -> Factory:
    _prepared(broker, tmp_path)
    return Factory(broker, tmp_path, broker.config)


BESIDES = {"infer": "agent"}
"""Jobs that need the rights of another one, too."""
WITH_LEDGER = ("plan", "agent", "infer", "publish", "live-publish", "dead-letters-replay")
JOBS = (
    "plan",
    "agent",
    "publish",
    "live",
    "infer",
    "live-version",
    "rollout",
    "live-publish",
    "lag-of-a-group",
    "lag-of-a-pipeline",
    "metrics",
    "windows",
    "dead-letters-list",
    "dead-letters-replay",
)


def needed(job: str) -> list[Acl]:
    return [*SAID[job], *(SAID[BESIDES[job]] if job in BESIDES else ()), *(SAID["ledger"] if job in WITH_LEDGER else ())]


def weaker(acl: Acl, all_: list[Acl]) -> Iterator[list[Acl]]:
    """The rights without one; where others see what it is about, or are let see it, the very right is what is missing."""
    others = [other for other in all_ if other != acl]
    yield others
    if acl.operation in ("Read", "Write"):
        yield [*others, acl._replace(operation="Describe")]


def named(acl: Acl, have: list[Acl]) -> str:
    """What an error has to say about a right that is missing: the first one that is, where the thing may not even be looked at."""
    right = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", acl.operation).upper()
    looks = {(other.type, other.name) for other in have if other.operation in ("Read", "Write", "Describe")}
    seen = acl.type == "transactional-id" or (acl.type, acl.name) in looks
    right = right if seen or acl.operation not in ("Read", "Write") else "(DESCRIBE|READ|WRITE)"
    return rf"needs {right} on {acl.type.replace('-', ' ')} '{re.escape(acl.name)}"


@pytest.mark.parametrize("job", [*JOBS, "topics"])
def test_each_job_runs_with_just_the_rights_of_the_page_and_names_the_one_that_is_missing(
    factory: Factory, broker: GuardedBroker, job: str
) -> None:
    do: Callable[[], None] = getattr(factory, job.replace("-", "_"))
    broker.allow_only(needed(job))
    do()
    for acl in SAID[job] if job in BESIDES else needed(job):
        for have in weaker(acl, needed(job)):
            broker.allow_only(have)
            began = time.monotonic()
            with pytest.raises(ConfigurationError) as raised:
                do()
            said = str(raised.value)
            assert re.search(f"{named(acl, have)}|needs READ on its topics", said), f"without {acl}: {said}"
            assert "\n" not in said
            assert time.monotonic() - began < 15


def test_who_may_not_read_an_empty_control_topic_is_told_at_once(broker: GuardedBroker) -> None:
    """Nothing is in it before the first version: who only looks at its end learns nothing of rights."""
    control = "empty.control"
    create_topic(broker.admin, control, LEDGER_PARTITIONS)
    broker.allow_only([Acl("Describe", "topic", control)])

    def look() -> Route | None:
        with contextlib.closing(Control(broker.config, Cluster(broker.config), prefix="empty", group="g")) as following:
            return following.catch_up(time.monotonic() + 60)

    with pytest.raises(ConfigurationError, match=f"needs READ on topic '{control}'"):
        look()
    broker.allow_only([Acl("Read", "topic", control)])
    assert look() is None


def lag_told(broker: GuardedBroker, choice: LagChoice) -> tuple[str, Any]:
    """What the metrics server logs of a lag that it can't know, and what it tells all the same."""
    server = MetricsServer(broker.config, listen="0", lag=choice)
    server.start()
    try:
        wait_for(lambda: server._lag.said, "the lag")
        return server._lag.said, scrape(server.address)
    finally:
        server.close()


def test_a_group_that_may_not_be_seen_hides_no_other_ones_lag(factory: Factory, broker: GuardedBroker) -> None:
    for group in ("lagging-seen", "lagging-hidden"):
        reader = factory.administrator.consumer(group_id=group)
        reader.commit(offsets=[TopicPartition(RAW, 0, 0)], asynchronous=False)
        reader.close()
    factory.produce(RAW)
    sees = [Acl("Describe", "cluster", "kafka-cluster"), Acl("Describe", "topic", RAW), Acl("Read", "topic", RAW)]
    broker.allow_only([*sees, Acl("Describe", "group", "lagging-seen")])
    said, scraped = lag_told(broker, LagChoice(groups="lagging-.*", topics=RAW))
    assert "lagging-hidden" in said
    assert figure(scraped, "kafka_consumer_lag", topic=RAW, group="lagging-seen", partition="0") > 0
    assert not [series for series in scraped if "lagging-hidden" in str(series)]


@pytest.mark.parametrize("reader", ["a group", "a pipeline"])
def test_a_topic_that_may_not_be_read_hides_no_other_ones_lag(factory: Factory, broker: GuardedBroker, reader: str) -> None:
    for topic in (RAW, ENRICHED):
        factory.produce(topic)
        if reader == "a group":
            onlooker = factory.administrator.consumer(group_id="lagging")
            onlooker.commit(offsets=[TopicPartition(topic, 0, 0)], asynchronous=False)
            onlooker.close()
        else:
            factory.window(factory.administrator, topic)
        factory.produce(topic)
    sees = [Acl("Describe", "cluster", "kafka-cluster"), Acl("Describe", "group", "lagging"), *SAID["metrics"]]
    broker.allow_only([*sees, Acl("Read", "topic", RAW), Acl("Describe", "topic", ENRICHED)])
    said, scraped = lag_told(broker, LagChoice("lagging" if reader == "a group" else "none", f"{RAW}|{ENRICHED}"))
    assert f"READ on topic {ENRICHED!r}" in said
    metric = "kafka_consumer_lag" if reader == "a group" else "factory_pipeline_lag"
    assert figure(scraped, metric, topic=RAW) > 0
    assert figure(scraped, metric, topic=ENRICHED) is None


def test_a_topic_that_may_not_be_read_takes_no_windows_from_the_page_and_no_other_ones_lag(factory: Factory, broker: GuardedBroker) -> None:
    for topic in (RAW, ENRICHED):
        factory.window(factory.administrator, topic)
        factory.produce(topic)
    broker.allow_only([Acl("Read", "topic", LEDGER), Acl("Read", "topic", RAW), Acl("Describe", "topic", ENRICHED)])
    read = LedgerReader(lambda: broker.config, lambda: "factory")
    try:
        figures = read()
    finally:
        read.close()
    assert {f"orders-{RAW}", f"orders-{ENRICHED}"} <= {window.pipeline for window in figures.windows}
    lags = {total.topic: total.lag for total in figures.lags if total.reader in (f"orders-{RAW}", f"orders-{ENRICHED}")}
    assert lags.keys() == {RAW}
    assert lags[RAW] > 0


def test_a_topic_that_is_not_there_and_may_not_be_created_is_no_topic_that_is_unknown(factory: Factory, broker: GuardedBroker) -> None:
    broker.admin.delete_topics([DEAD])[DEAD].result()
    wait_for(lambda: DEAD not in broker.admin.list_topics(timeout=10).topics, "the topic to be gone")
    broker.allow_only(needed("agent"))
    with pytest.raises(ConfigurationError, match=rf"needs CREATE on topic '{DEAD}' \(or on the cluster\)"):
        factory.agent()
    broker.allow_only([*needed("agent"), Acl("Create", "topic", DEAD)])
    factory.agent()


@pytest.mark.parametrize(
    "acl",
    [Acl("Write", "topic", ENRICHED), Acl("Read", "topic", RAW), Acl("Read", "group", "live-enrich")],
    ids=lambda a: f"{a.operation}-{a.type}",
)
def test_a_right_that_is_taken_away_ends_a_live_agent(factory: Factory, broker: GuardedBroker, acl: Acl) -> None:
    have = [other for other in needed("live") if other != acl]
    have += [acl._replace(operation="Describe")] if acl.type == "topic" else []

    def take_away() -> None:
        broker.allow_only(have)
        factory.produce(RAW)

    broker.allow_only(needed("live"))
    with pytest.raises(ConfigurationError, match=named(acl, [acl])):
        factory.live(then=take_away)


def test_a_version_ends_that_may_not_say_that_it_lives(factory: Factory, broker: GuardedBroker) -> None:
    Factory(broker, factory.database.parent, factory.administrator).live_version()
    acl = Acl("Write", "topic", CONTROL)
    broker.allow_only([other for other in needed("live-version") if other != acl])
    with pytest.raises(ConfigurationError, match=named(acl, [acl])):
        factory.live_version(then=lambda: None)
