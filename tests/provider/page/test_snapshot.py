"""The page's background reader: figures at once, an outage said with its age, rest while nobody looks."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from confluent_kafka.admin import AdminClient

from airflow_provider_factory.page import snapshot
from airflow_provider_factory.page.snapshot import Figures, LedgerReader, Snapshot, Snapshots
from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.control import Control
from factory_agents.kafka.cuts import plan_window
from factory_agents.kafka.routes import first_route
from factory_agents.kafka.topics import Cluster
from factory_agents.kafka.windows import WindowStatus
from factory_agents.rollouts import LiveGroups
from tests.support.runs import Runs, events
from tests.support.waiting import wait_for

WINDOW = WindowStatus("p", "2026-11-01T04:00:00.000Z/2026-11-01T05:00:00.000Z", "planned", records=7)


def test_the_first_look_does_not_wait_for_kafka() -> None:
    go = threading.Event()

    def read() -> Figures:
        go.wait(30)
        return Figures((WINDOW,))

    figures = Snapshots(read, every=0.01)
    assert figures.current() == Snapshot()
    go.set()
    wait_for(lambda: figures.current().figures.windows == (WINDOW,), "the first figures")
    figures.close()


def test_an_outage_keeps_the_last_figures_and_says_since_when() -> None:
    answers: list[Figures | Exception] = [Figures((WINDOW,))]

    def read() -> Figures:
        answer = answers[-1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    figures = Snapshots(read, every=0.01)
    wait_for(lambda: figures.current().taken_at, "figures")
    answers.append(UnavailableError("no broker answered"))
    wait_for(lambda: figures.current().error, "the outage")
    down = figures.current()
    assert (down.figures.windows, down.error) == ((WINDOW,), "no broker answered")
    assert down.down_since is not None
    answers.append(ValueError("secret://user:password@host"))
    wait_for(lambda: "unexpected error" in figures.current().error, "the next error")
    assert "password" not in figures.current().error
    assert figures.current().down_since == down.down_since
    answers.append(Figures())
    wait_for(lambda: not figures.current().error, "the end of the outage")
    figures.close()


def test_it_rests_while_nobody_looks_and_wakes_with_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[datetime] = []

    def read() -> Figures:
        reads.append(datetime.now(UTC))
        return Figures()

    monkeypatch.setattr(snapshot, "_IDLE_SECONDS", 0.05)
    figures = Snapshots(read, every=0.01)
    figures.current()
    wait_for(lambda: figures._thread is None, "the reader to rest")
    before = len(reads)
    figures.current()
    wait_for(lambda: len(reads) > before, "another read")
    figures.close()


def test_its_age_is_never_negative() -> None:
    now = datetime.now(UTC)
    assert Snapshot(taken_at=now).age_seconds(now - timedelta(seconds=5)) == 0
    assert Snapshot(taken_at=now).age_seconds(now + timedelta(seconds=5)) == 5


def test_the_ledger_is_followed_with_figures_details_and_lag(runs: Runs) -> None:
    topic = runs.topic("in", partitions=2)
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
    runs.produce(topic, events(10))
    window = plan_window(runs.config, pipeline=runs.prefix, topic=topic, interval=None, run_key="first", prefix=runs.prefix)
    reader = LedgerReader(lambda: runs.config, lambda: runs.prefix)
    found = reader()
    assert [(w.pipeline, w.state, w.records) for w in found.windows] == [(runs.prefix, "planned", 10)]
    runs.produce(topic, events(4))
    runs.transform(runs.run(window, runs.topic("out", partitions=2)))
    wait_for(lambda: reader().windows[0].stages, "the result: markers of a commit may come after it")
    reader._lag_at = 0.0
    found = reader()
    assert [(w.state, w.stages[0].counts.consumed) for w in found.windows] == [("finished", 10)]
    details = found.details[runs.prefix, window.key]
    assert [p.topic for p in details.plans] == [topic]
    assert [r.stage for r in details.stages] == ["stage"]
    assert [(total.reader, total.lag) for total in found.lags] == [(runs.prefix, 4)]
    assert [lag for _, lag in found.trend(runs.prefix, topic)][-1:] == [4]
    reader._lag_at = 0.0
    runs.produce(topic, events(2))
    assert [lag for _, lag in reader().trend(runs.prefix, topic)][-2:] == [4, 6]
    assert start < (found.windows[0].updated or start)
    reader.close()


def test_live_agents_are_seen_without_a_ledger_and_what_hides_them_hides_nothing_else(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = runs.topic("in", partitions=2)
    with Cluster(runs.config) as cluster:
        control = Control(runs.config, cluster, prefix=runs.prefix, group=f"{runs.prefix}.group")
        control.order(lambda _: first_route(control.group, topic, 2, "v1", {}))
        control.close()
    reader = LedgerReader(lambda: runs.config, lambda: runs.prefix)

    def looked() -> Figures:
        reader._lag_at = -60.0
        return reader()

    wait_for(lambda: looked().live.groups, "the order")
    (group,) = looked().live.groups
    assert (group.name, group.status.base, [p.holder for p in group.status.partitions]) == (control.group, "v1", ["v1", "v1"])
    plan_window(runs.config, pipeline=runs.prefix, topic=topic, interval=None, run_key="first", prefix=runs.prefix)

    def refused(*_: object, **__: object) -> None:
        raise ConfigurationError("expected READ on topic 'x.control'")

    monkeypatch.setattr(LiveGroups, "look", refused)
    found = looked()
    assert (found.live.groups, found.live.error) == ((group,), "expected READ on topic 'x.control'")
    assert len(found.windows) == 1
    reader.close()


def test_without_a_ledger_there_is_nothing(runs: Runs) -> None:
    assert LedgerReader(lambda: runs.config, lambda: runs.prefix)() == Figures()


def test_after_an_outage_it_reads_on_with_another_connection_and_with_a_ledger_that_was_replaced(
    runs: Runs, admin: AdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = runs.topic("in", partitions=1)
    runs.produce(topic, events(3))
    plan_window(runs.config, pipeline=runs.prefix, topic=topic, interval=None, run_key="first", prefix=runs.prefix)
    configs = [runs.config]
    reader = LedgerReader(lambda: configs[-1], lambda: runs.prefix)
    assert len(reader().windows) == 1
    reader.close()
    configs.append(KafkaConfig("127.0.0.1:9"))
    with monkeypatch.context() as patience:
        patience.setattr(snapshot, "_ASK_SECONDS", 1.0)
        with pytest.raises(UnavailableError):
            reader()
    configs.append(runs.config)
    assert len(reader().windows) == 1
    (done,) = admin.delete_topics([f"{runs.prefix}.ledger"]).values()
    done.result(30)
    wait_for(lambda: not reader().windows, "the ledger to be gone")
    plan_window(runs.config, pipeline=runs.prefix, topic=topic, interval=None, run_key="second", prefix=runs.prefix)
    wait_for(lambda: reader().windows, "what a ledger of the same length holds", 10)
    assert [w.window for w in reader().windows] == ["second"]
    reader.close()
