"""The sensors on a real broker: at once, in the worker, in the triggerer, and at their timeout."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, AirflowSkipException, TaskDeferred
from confluent_kafka import Consumer, Producer, TopicPartition

from airflow_provider_factory.sensors.base import KafkaSensor
from airflow_provider_factory.sensors.consumer_lag import ConsumerLagSensor
from airflow_provider_factory.sensors.window_closed import WindowClosedSensor
from airflow_provider_factory.triggers.base import KafkaTrigger
from factory_agents.errors import ConfigurationError
from tests.conftest import TopicFactory

END = datetime.now(UTC) - timedelta(seconds=30)


@pytest.fixture(autouse=True)
def connection(monkeypatch: pytest.MonkeyPatch, bootstrap: str) -> None:
    extra = {"bootstrap.servers": bootstrap, "group.id": "airflow"}
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps({"conn_type": "kafka", "extra": extra}))
    down = {"bootstrap.servers": "127.0.0.1:1", "socket.connection.setup.timeout.ms": 1000}
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DOWN", json.dumps({"conn_type": "kafka", "extra": down}))


def produce(bootstrap: str, topic: str, count: int, partition: int, at: datetime | None = None) -> None:
    producer = Producer({"bootstrap.servers": bootstrap})
    for _ in range(count):
        producer.produce(topic, b"{}", partition=partition, timestamp=int((at or datetime.now(UTC)).timestamp() * 1000))
    assert producer.flush(60) == 0


def commit(bootstrap: str, group: str, topic: str, offsets: dict[int, int]) -> None:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "enable.auto.commit": False})
    consumer.commit(offsets=[TopicPartition(topic, p, o) for p, o in offsets.items()], asynchronous=False)
    consumer.close()


def context() -> Any:
    return {
        "run_id": "r",
        "data_interval_start": END - timedelta(hours=1),
        "data_interval_end": END,
        "ti": SimpleNamespace(task_id="s"),
    }


def sensor(kind: type[KafkaSensor], **arguments: Any) -> KafkaSensor:
    with DAG("watching", schedule=None):
        return kind(**{"task_id": "s", "poke_interval": 0.2, "timeout": 30, **arguments})


def deferred(task: KafkaSensor) -> KafkaTrigger:
    """The trigger that the task waits by, as the triggerer makes it from what is stored."""
    with pytest.raises(TaskDeferred) as raised:
        task.execute(context())
    path, kwargs = raised.value.trigger.serialize()
    kwargs = json.loads(json.dumps(kwargs))
    assert path == f"{type(raised.value.trigger).__module__}.{type(raised.value.trigger).__name__}"
    return type(raised.value.trigger)(**kwargs)


def fire(trigger: KafkaTrigger) -> dict[str, Any]:
    async def first() -> dict[str, Any]:
        async for event in trigger.run():
            payload: dict[str, Any] = event.payload
            return payload
        raise AssertionError("no event")

    return asyncio.run(asyncio.wait_for(first(), 60))


@pytest.fixture
def later() -> Iterator[Any]:
    """Does something from another thread, after the sensor has begun to wait."""
    threads: list[threading.Thread] = []

    def do(what: Any) -> None:
        thread = threading.Timer(1.0, what)
        thread.start()
        threads.append(thread)

    yield do
    for thread in threads:
        thread.join()


@pytest.fixture
def lagging(topic: TopicFactory, bootstrap: str, prefix: str) -> tuple[str, str]:
    """A topic of two partitions with 30 records, and a group 25 behind."""
    name = topic("lag", partitions=2)
    produce(bootstrap, name, 10, 0)
    produce(bootstrap, name, 20, 1)
    commit(bootstrap, f"{prefix}-g", name, {0: 5})
    return name, f"{prefix}-g"


@pytest.mark.parametrize(
    ("threshold", "condition", "measure", "met"),
    [
        (25, "below", "total", True),
        (24, "below", "total", False),
        (24, "above", "total", True),
        (19, "above", "worst", True),
        (20, "above", "worst", False),
    ],
)
def test_a_groups_lag_is_compared_with_the_threshold(
    lagging: tuple[str, str], threshold: int, condition: str, measure: str, met: bool
) -> None:
    task = sensor(ConsumerLagSensor, topics=lagging[0], group=lagging[1], threshold=str(threshold), condition=condition, measure=measure)
    assert task.poke(context()) is met


def test_asking_commits_nothing_and_joins_nothing(lagging: tuple[str, str], bootstrap: str) -> None:
    task = sensor(ConsumerLagSensor, topics=[lagging[0]], group=lagging[1])
    for _ in range(3):
        assert task.poke(context()) is False
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": lagging[1]})
    committed = consumer.committed([TopicPartition(lagging[0], p) for p in (0, 1)], timeout=10)
    consumer.close()
    assert [p.offset for p in committed] == [5, -1001]


def test_without_a_group_it_is_the_pipelines_own_lag(lagging: tuple[str, str]) -> None:
    assert sensor(ConsumerLagSensor, topics=lagging[0], threshold=29).poke(context()) is False
    assert sensor(ConsumerLagSensor, topics=lagging[0], threshold=30).poke(context()) is True


def test_a_met_condition_never_defers(lagging: tuple[str, str]) -> None:
    task = sensor(ConsumerLagSensor, topics=lagging[0], group=lagging[1], threshold=100, deferrable=True)
    assert task.execute(context())["lag"] == 25


def test_the_trigger_fires_once_the_group_has_caught_up(lagging: tuple[str, str], bootstrap: str, later: Any) -> None:
    task = sensor(ConsumerLagSensor, topics=lagging[0], group=lagging[1], deferrable=True)
    trigger = deferred(task)
    later(lambda: commit(bootstrap, lagging[1], lagging[0], {0: 10, 1: 20}))
    event = fire(trigger)
    assert event["status"] == "met"
    assert task.execute_complete(context(), event)["lag"] == 0


def test_a_timeout_says_what_was_seen_last(lagging: tuple[str, str]) -> None:
    task = sensor(ConsumerLagSensor, topics=lagging[0], group=lagging[1], timeout=0.5, deferrable=True)
    event = fire(deferred(task))
    with pytest.raises(AirflowSensorTimeout, match=r"after 0.5 s: group .* total lag 25, most on .*\[1\] \(20\); wanted ≤ 0"):
        task.execute_complete(context(), event)
    task.soft_fail = True
    with pytest.raises(AirflowSkipException, match="total lag 25"):
        task.execute_complete(context(), event)


def test_a_broker_that_does_not_answer_is_waited_for_and_named(impatient: None) -> None:
    task = sensor(ConsumerLagSensor, topics="t", group="g", kafka_conn_id="kafka_down", timeout=1, deferrable=True)
    event = fire(deferred(task))
    assert event["status"] == "timeout"
    assert "127.0.0.1:1" in event["reason"]


def test_what_waiting_cannot_mend_fails_at_once(lagging: tuple[str, str]) -> None:
    task = sensor(ConsumerLagSensor, topics="no-such-topic", group=lagging[1])
    with pytest.raises(AirflowFailException, match="no-such-topic"):
        task.execute(context())
    with pytest.raises(ConfigurationError, match="threshold"):
        sensor(ConsumerLagSensor, topics="t", group="g", threshold="many").question(context())


def test_a_window_is_closed_when_every_partition_has_passed_its_end(topic: TopicFactory, bootstrap: str, later: Any) -> None:
    name = topic("closing", partitions=2)
    produce(bootstrap, name, 1, 0)
    produce(bootstrap, name, 1, 1, END - timedelta(seconds=5))
    task = sensor(WindowClosedSensor, topic=name, grace=timedelta(days=1), deferrable=True)
    later(lambda: produce(bootstrap, name, 1, 1))
    event = fire(deferred(task))
    assert (event["status"], event["facts"]) == ("met", {"by": "records"})


def test_a_window_is_closed_when_its_grace_is_over_and_no_broker_is_asked() -> None:
    assert sensor(WindowClosedSensor, topic="t", grace=10, kafka_conn_id="kafka_down").poke(context()) is True


def test_the_grace_ends_the_wait_of_the_trigger(topic: TopicFactory) -> None:
    grace = (datetime.now(UTC) - END).total_seconds() + 1.5
    task = sensor(WindowClosedSensor, topic=topic("quiet", partitions=1), grace=grace, poke_interval=20, deferrable=True)
    start = time.monotonic()
    assert fire(deferred(task))["facts"] == {"by": "grace"}
    assert time.monotonic() - start < 10


def test_waiting_holds_no_thread_that_others_share(impatient: None) -> None:
    """While the broker doesn't answer, the event loop goes on and its default threads are free."""

    async def watch() -> int:
        task = sensor(ConsumerLagSensor, topics="t", group="g", kafka_conn_id="kafka_down", timeout=3, deferrable=True)
        waiting = asyncio.create_task(anext(aiter(deferred(task).run())))  # type: ignore[arg-type]
        ticks = 0
        while not waiting.done():
            await asyncio.sleep(0.05)
            await asyncio.get_running_loop().run_in_executor(None, time.monotonic)
            ticks += 1
        return ticks

    assert asyncio.run(watch()) >= 10


def test_a_wait_that_no_triggerer_took_up_again_says_so() -> None:
    waiting = sensor(ConsumerLagSensor, topics="t", group="g", timeout=5, deferrable=True)
    with pytest.raises(AirflowSensorTimeout, match="after 605 s: no triggerer answered"):
        waiting.resume_execution("__fail__", {"error": "Trigger timeout"}, context())
