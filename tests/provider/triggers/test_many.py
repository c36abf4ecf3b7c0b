"""Hundreds of triggers in one event loop, as a triggerer runs them: what they cost a broker, a process, and each other."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from airflow_provider_factory.backlog import Waiting
from airflow_provider_factory.clusters import Client
from airflow_provider_factory.conditions import Answer
from airflow_provider_factory.triggers.consumer_lag import ConsumerLagTrigger
from airflow_provider_factory.triggers.topic_ready import TopicReadyTrigger
from factory_agents.kafka.ledger import Ledger
from factory_agents.sandbox import Sandbox
from tests.support.log import Transaction
from tests.support.runs import Runs, events
from tests.support.topics import create_topic

MANY = 200
INTERVAL = 1.0


class Watched(ConsumerLagTrigger):
    """Remembers when it asked."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.asked: list[float] = []

    def ask(self, client: Client) -> Answer:
        self.asked.append(time.monotonic())
        return super().ask(client)


def triggers(count: int, topic: str, group: str, *, patience: float = 300, interval: float = INTERVAL) -> list[Watched]:
    question = {"topics": [topic], "threshold": 0, "group": group}
    deadline = time.time() + patience
    return [Watched(kafka_conn_id="kafka_default", question=question, poll_interval=interval, deadline=deadline) for _ in range(count)]


class Slow(TopicReadyTrigger):
    """Looks for as long as the test wants."""

    go_on: threading.Event
    looked = 0

    def _look(self, client: Client, **arguments: Any) -> Waiting:
        assert self.go_on.wait(120)
        waiting = super()._look(client, **arguments)
        self.looked += 1
        return waiting


async def all_asked(watched: list[Watched], times: int) -> None:
    while min(len(trigger.asked) for trigger in watched) < times:  # noqa: ASYNC110  # the client's thread counts, which knows no loop
        await asyncio.sleep(0.1)


async def first_event(trigger: Watched) -> dict[str, Any]:
    return dict((await anext(trigger.run())).payload)


def connect(monkeypatch: pytest.MonkeyPatch, bootstrap: str) -> None:
    extra = {"bootstrap.servers": bootstrap, "reconnect.backoff.max.ms": 500}
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps({"conn_type": "kafka", "extra": extra}))


def commit(bootstrap: str, group: str, topic: str, offset: int) -> None:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "log_level": 0})
    consumer.commit(offsets=[TopicPartition(topic, 0, offset)], asynchronous=False)
    consumer.close()


def connections(bootstrap: str) -> int:
    port = int(bootstrap.rpartition(":")[2])
    return sum(c.raddr != () and c.raddr.port == port for c in psutil.Process().net_connections())


@pytest.mark.soak
def test_two_hundred_share_a_client_and_few_threads_keep_their_interval_and_notice_soon(
    runs: Runs, bootstrap: str, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    connect(monkeypatch, bootstrap)
    topic = runs.topic("watched", partitions=1)
    runs.produce(topic, events(10))
    commit(bootstrap, runs.prefix, topic, 4)
    gc.collect()
    own, memory = connections(bootstrap), psutil.Process().memory_info().rss
    watched = triggers(MANY, topic, runs.prefix)

    async def watch() -> list[dict[str, Any]]:
        waiting = [asyncio.ensure_future(first_event(trigger)) for trigger in watched]
        await all_asked(watched, 3)
        # librdkafka: one connection to bootstrap, one to the broker, one to the groups' coordinator
        assert connections(bootstrap) - own <= 5
        assert sum(thread.name.startswith("factory-kafka") for thread in threading.enumerate()) <= 8
        record_property("memory_mb", round((psutil.Process().memory_info().rss - memory) / 1e6, 1))
        await asyncio.to_thread(commit, bootstrap, runs.prefix, topic, 10)
        committed = time.monotonic()
        answers = await asyncio.gather(*waiting)
        record_property("noticed_after_s", round(time.monotonic() - committed, 2))
        assert max(sum(at > committed for at in trigger.asked) for trigger in watched) <= 1, "the first question after it notices"
        return answers

    answers = asyncio.run(watch())
    assert {answer["status"] for answer in answers} == {"met"}
    gaps = [later - earlier for trigger in watched for earlier, later in itertools.pairwise(trigger.asked)]
    record_property("gap_median_s", round(statistics.median(gaps), 2))
    record_property("gap_max_s", round(max(gaps), 2))
    assert min(gaps) > 0.8 * INTERVAL, "a trigger asked more often than its interval"
    counts = [len(trigger.asked) for trigger in watched]
    assert max(counts) <= 2 * min(counts), "a trigger waits for others' turns"
    assert psutil.Process().memory_info().rss - memory < 100e6


def test_slow_ready_triggers_hold_up_no_sensor(runs: Runs, bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They count the bytes of a topic, beside a ledger in which a transaction stays open; sensors get their answers before any of them."""
    connect(monkeypatch, bootstrap)
    monkeypatch.setenv("AIRFLOW__FACTORY__PREFIX", runs.prefix)
    topic = runs.topic("watched", partitions=1)
    runs.produce(topic, events(5000, text="x" * 500))
    commit(bootstrap, runs.prefix, topic, 4)
    ledger = Ledger(runs.config, runs.cluster, prefix=runs.prefix, pipeline=runs.prefix)
    ledger.ensure()
    transaction = Transaction(bootstrap, ledger.topic, "open")
    transaction.write(["{}"], partition=ledger.partition, key="somebody|else")
    slow = [Slow(topic=topic, pipeline=runs.prefix, size=10**12, poll_interval=0.01) for _ in range(6)]
    for trigger in slow:
        trigger.go_on = threading.Event()
    watched = triggers(20, topic, runs.prefix, interval=0.1)

    async def first_start(trigger: TopicReadyTrigger) -> None:
        await anext(trigger.run())

    async def watch() -> None:
        starting = [asyncio.ensure_future(first_start(trigger)) for trigger in slow]
        waiting = [asyncio.ensure_future(first_event(trigger)) for trigger in watched]
        await all_asked(watched, 10)
        assert not any(trigger.looked for trigger in slow)
        for trigger in slow:
            trigger.go_on.set()
        while not all(trigger.looked for trigger in slow):  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.1)
        assert not any(start.done() for start in starting)
        for future in (*waiting, *starting):
            future.cancel()

    asyncio.run(watch())
    transaction.abort()


def test_a_broker_outage_is_survived_and_a_timeout_has_its_reason(
    own_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bootstrap = own_sandbox.info().bootstrap
    connect(monkeypatch, bootstrap)
    create_topic(AdminClient({"bootstrap.servers": bootstrap, "log_level": 0}), "watched", 1)
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
    for value in events(10):
        producer.produce("watched", value)
    assert producer.flush(60) == 0
    commit(bootstrap, "group", "watched", 4)
    patient, hasty = triggers(40, "watched", "group", interval=0.2), triggers(10, "watched", "group", interval=0.2)

    async def watch() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        waiting = [asyncio.ensure_future(first_event(trigger)) for trigger in patient]
        in_vain = [asyncio.ensure_future(first_event(trigger)) for trigger in hasty]
        await all_asked([*patient, *hasty], 2)
        await asyncio.to_thread(own_sandbox.stop_kafka)
        for trigger in hasty:
            trigger.deadline = time.time()
        timed_out = await asyncio.gather(*in_vain)
        await asyncio.to_thread(own_sandbox.start_kafka)
        await asyncio.to_thread(commit, bootstrap, "group", "watched", 10)
        return await asyncio.gather(*waiting), timed_out

    met, timed_out = asyncio.run(watch())
    assert {answer["status"] for answer in met} == {"met"}
    assert {answer["status"] for answer in timed_out} == {"timeout"}
    assert all("UnavailableError" in answer["reason"] and bootstrap in answer["reason"] for answer in timed_out)
    assert all(answer["facts"]["lag"] == 6 for answer in timed_out)
