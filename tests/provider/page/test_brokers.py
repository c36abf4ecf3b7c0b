"""The page over a broker that ends and comes back, and what it asks of one: little, and nothing for a view."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from confluent_kafka import Producer
from fastapi.testclient import TestClient

from airflow_provider_factory.page import snapshot
from airflow_provider_factory.page.app import create_app
from airflow_provider_factory.page.letters import Letters, look_up
from airflow_provider_factory.page.snapshot import Figures, LedgerReader, Snapshots
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.control import Control
from factory_agents.kafka.cuts import plan_window
from factory_agents.kafka.ledger import Ledger
from factory_agents.kafka.records import StageRecord
from factory_agents.kafka.routes import Route, first_route
from factory_agents.kafka.topics import Cluster
from factory_agents.runtime.outputs import DeadLetter
from factory_agents.sandbox import Sandbox
from tests.chaos.kafka_proxy import KafkaProxy
from tests.provider.page.test_app import counted_statements
from tests.support.pages import HOUR, START, PerDagManager, dead, hour, plan
from tests.support.runs import Runs, events
from tests.support.waiting import wait_for

WORKERS = 4


@pytest.fixture
def proxy(bootstrap: str) -> Iterator[KafkaProxy]:
    running = KafkaProxy(bootstrap)
    yield running
    running.close()


def snapshots_of(config: KafkaConfig, prefix: str, every: float = 5.0) -> Snapshots:
    return Snapshots(LedgerReader(lambda: config, lambda: prefix), every=every)


def _into(record: StageRecord, topic: str, topic_id: str) -> StageRecord:
    """A stage's record whose letters lie in another topic."""
    assert record.result is not None
    assert record.result.dead_letters is not None
    manifest = msgspec.structs.replace(record.result.dead_letters, topic=topic, topic_id=topic_id)
    return msgspec.structs.replace(record, result=msgspec.structs.replace(record.result, dead_letters=manifest))


def test_while_the_broker_is_ended_pages_answer_with_their_age_and_are_right_again_soon_after(
    own_sandbox: Sandbox, users: PerDagManager, airflow_home: Any, prefix: str
) -> None:
    config = KafkaConfig(own_sandbox.info().bootstrap)
    with Cluster(config) as cluster:
        cluster.create("raw", 1)
    producer = Producer({"bootstrap.servers": config.bootstrap})
    for value in events(5):
        producer.produce("raw", value)
    assert producer.flush(60) == 0
    plan_window(config, pipeline="p", topic="raw", interval=None, run_key="first", prefix=prefix)
    snapshots = snapshots_of(config, prefix)
    client = TestClient(create_app(snapshots, Letters(lambda q, s: look_up(config, q, s, prefix=prefix))))
    client.headers["Authorization"] = f"Bearer {users.token('viewer-of-p')}"

    def text(path: str = "/") -> str:
        return client.get(path).text

    wait_for(lambda: "5 events wait" in text(), "the first figures")
    own_sandbox.stop_kafka()
    wait_for(lambda: "Kafka cannot be read since" in text(), "the outage to be noticed")
    for path in ("/", "/pipelines/p", "/live"):
        times = []
        for _ in range(5):
            began = time.process_time()  # the machine may be busy with other things
            said = text(path)
            times.append(time.process_time() - began)
        assert "figures from" in said
        assert min(times) < 0.05, (path, times)
    assert "5 events wait" in text()
    own_sandbox.start_kafka()
    wait_for(lambda: "Kafka cannot be read" not in text(), "the end of the outage")
    snapshots.close()


def test_four_api_servers_ask_the_brokers_six_things_each_in_five_seconds(
    runs: Runs, proxy: KafkaProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = 1.0  # and the lag every third time, as with five seconds
    monkeypatch.setattr(snapshot, "_LAG_SECONDS", 3 * every)
    topic = runs.topic("in", partitions=2)
    runs.produce(topic, events(4))
    plan_window(runs.config, pipeline="p", topic=topic, interval=None, run_key="first", prefix=runs.prefix)
    begun: list[int] = []
    ended: list[int] = []
    look = LedgerReader.__call__

    def counted(of: LedgerReader) -> Figures:
        begun.append(1)
        found = look(of)
        ended.append(1)
        return found

    monkeypatch.setattr(LedgerReader, "__call__", counted)
    all_of = [snapshots_of(KafkaConfig(proxy.bootstrap), runs.prefix, every) for _ in range(WORKERS)]
    with ExitStack() as closing:
        for snapshots in all_of:
            closing.callback(snapshots.close)
        wait_for(lambda: all(s.current().taken_at for s in all_of), "the first figures")
        first = [s.current().taken_at for s in all_of]
        over, before = len(ended), proxy.requests
        wait_for(lambda: all(s.current().taken_at != of for s, of in zip(all_of, first, strict=True)), "figures of all once more")
        second = [s.current().taken_at for s in all_of]
        wait_for(lambda: all(s.current().taken_at != of for s, of in zip(all_of, second, strict=True)), "and once more")
        asked = proxy.requests - before
        assert asked <= 6 * (len(begun) - over), (asked, len(begun), over)


LETTERS, GROUPS, TOPICS, PARTITIONS, WINDOWS = 1_000_000, 10, 5, 100, 1000


def _ordered(group: str, topic: str, _: object) -> Route:
    return first_route(group, topic, PARTITIONS, "v1", {})


def _is_read(client: TestClient, path: str) -> bool:
    return "data-pending" not in client.get(path).text


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_million_letters_and_ten_groups_over_five_hundred_partitions_leave_pages_small_and_fast(
    runs: Runs, proxy: KafkaProxy, users: PerDagManager, hourly: str
) -> None:
    config = KafkaConfig(proxy.bootstrap)
    topics = [runs.topic(f"in{n}", partitions=PARTITIONS) for n in range(TOPICS)]
    letters = runs.topic("out.dead", partitions=12)
    why = DeadLetter("price < 0", "price", hourly, "enrich", "mark", "1", window=hour(1).key)
    headers = [("factory-dead-letter", msgspec.json.encode(why)), ("factory-writer", b"enrich/f/1")]
    runs.produce(letters, (b'{"event_id": %d, "price": -5}' % i for i in range(LETTERS)), headers=headers)
    end = (datetime.now(UTC) - START) // HOUR
    with Cluster(runs.config) as cluster:
        for n in range(GROUPS):
            control = Control(runs.config, cluster, prefix=runs.prefix, group=f"{runs.prefix}.group{n}")
            control.order(partial(_ordered, control.group, topics[n % TOPICS]))
            control.close()
        ledger = Ledger(runs.config, cluster, prefix=runs.prefix, pipeline=hourly)
        ledger.ensure()
        producer = Producer({"bootstrap.servers": runs.bootstrap})
        for n in range(end - WINDOWS, end):
            record = dead(hourly, n)
            ledger.produce(producer, [plan(hourly, n), _into(record, letters, runs.cluster.topic(letters).id)])
        assert producer.flush(60) == 0
    snapshots = snapshots_of(config, runs.prefix)
    read = Letters(lambda query, shot: look_up(config, query, shot, prefix=runs.prefix))
    client = TestClient(create_app(snapshots, read))
    client.headers["Authorization"] = f"Bearer {users.token(f'editor-of-{hourly}')}"
    base, key = f"/pipelines/{hourly}", quote(hour(end - 5).key, safe="")
    wait_for(lambda: len(snapshots.current().figures.live.groups) == GROUPS, "the groups", 120)
    paths = ["/", "/live", f"/live/group?name={runs.prefix}.group3", base, f"{base}?page=3", f"{base}/window?key={key}"]
    paths += [f"{base}/letters?topic={letters}", f"{base}/letters/0/1?topic={letters}"]
    for path in paths:
        wait_for(partial(_is_read, client, path), path, 120)
    assert "the topic holds at most 1,000,000" in client.get(f"{base}/letters?topic={letters}").text
    snapshots.close()
    read.close()
    wait_for(lambda: snapshots._thread is None or not snapshots._thread.is_alive(), "the reader's end", 60)
    for path in paths:
        before, times = proxy.requests, []
        with counted_statements() as statements:
            for _ in range(5):
                began = time.process_time()  # the machine may be busy with other things
                answer = client.get(path)
                times.append(time.process_time() - began)
        assert len(statements) / 5 <= 8, (path, statements)
        assert (answer.status_code, len(answer.content) < 200 * 1024) == (200, True), path
        assert min(times) < 0.3, (path, times)
        assert proxy.requests == before, path
