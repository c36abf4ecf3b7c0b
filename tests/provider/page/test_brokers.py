"""The page over a broker that ends and comes back, and what it asks of one: little, and nothing for a view."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from confluent_kafka import Producer
from fastapi.testclient import TestClient

from airflow_provider_factory.page.app import create_app
from airflow_provider_factory.page.letters import Letters, look_up
from airflow_provider_factory.page.snapshot import LedgerReader, Snapshots
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.cuts import plan_window
from factory_agents.kafka.topics import Cluster
from factory_agents.sandbox import Sandbox
from tests.chaos.kafka_proxy import KafkaProxy
from tests.support.pages import PerDagManager
from tests.support.runs import Runs, events
from tests.support.waiting import wait_for

WORKERS = 4


@pytest.fixture
def proxy(bootstrap: str) -> Iterator[KafkaProxy]:
    running = KafkaProxy(bootstrap)
    yield running
    running.close()


def snapshots_of(config: KafkaConfig, prefix: str) -> Snapshots:
    return Snapshots(LedgerReader(lambda: config, lambda: prefix))


def test_while_the_broker_is_ended_pages_answer_with_their_age_and_are_right_again_soon_after(
    own_sandbox: Sandbox, users: PerDagManager, airflow_home: Any, prefix: str
) -> None:
    config = KafkaConfig(own_sandbox.info().bootstrap)
    with Cluster(config) as cluster:
        cluster.create("raw", 1)
    producer = Producer({"bootstrap.servers": config.bootstrap})
    for value in events(5):
        producer.produce("raw", value)
    assert producer.flush(30) == 0
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
        for _ in range(20):
            began = time.perf_counter()
            said = text(path)
            times.append(time.perf_counter() - began)
        assert "figures from" in said
        assert sorted(times)[5] < 0.05, (path, times)  # a quarter of them: the machine may be busy
    assert "5 events wait" in text()
    own_sandbox.start_kafka()
    began = time.monotonic()
    wait_for(lambda: "Kafka cannot be read" not in text(), "the end of the outage")
    assert time.monotonic() - began < 10
    snapshots.close()


def test_four_api_servers_ask_the_brokers_six_things_each_in_five_seconds(runs: Runs, proxy: KafkaProxy) -> None:
    topic = runs.topic("in", partitions=2)
    runs.produce(topic, events(4))
    plan_window(runs.config, pipeline="p", topic=topic, interval=None, run_key="first", prefix=runs.prefix)
    all_of = [snapshots_of(KafkaConfig(proxy.bootstrap), runs.prefix) for _ in range(WORKERS)]
    with ExitStack() as closing:
        for snapshots in all_of:
            closing.callback(snapshots.close)
        wait_for(lambda: all(s.current().taken_at for s in all_of), "the first figures")
        first = [s.current().taken_at for s in all_of]
        before, began = proxy.requests, time.monotonic()
        wait_for(lambda: all(s.current().taken_at != of for s, of in zip(all_of, first, strict=True)), "figures of all once more")
        second = [s.current().taken_at for s in all_of]
        wait_for(lambda: all(s.current().taken_at != of for s, of in zip(all_of, second, strict=True)), "and once more")
        rounds = max(1.0, (time.monotonic() - began) / 5)
        asked = proxy.requests - before
        assert asked <= WORKERS * 6 * rounds, (asked, rounds)
