"""The trigger that starts runs of a since_last pipeline, on a real broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from airflow.triggers.base import TriggerEvent

from airflow_provider_factory.triggers.topic_ready import TopicReadyTrigger
from factory_agents.errors import ConfigurationError
from factory_agents.kafka.cuts import plan_window
from tests.support.runs import Runs, events


@pytest.fixture(autouse=True)
def connection(monkeypatch: pytest.MonkeyPatch, bootstrap: str, prefix: str) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps({"conn_type": "kafka", "extra": {"bootstrap.servers": bootstrap}}))
    monkeypatch.setenv("AIRFLOW__FACTORY__PREFIX", prefix)


async def next_reason(fired: AsyncIterator[TriggerEvent]) -> str:
    event = await asyncio.wait_for(anext(fired), 30)
    return str(event.payload["reason"])


def test_it_fires_each_time_that_enough_waits_and_once_more_when_no_run_came_of_it(runs: Runs) -> None:
    topic = runs.topic("in", partitions=2)
    trigger = TopicReadyTrigger(topic=topic, pipeline=runs.prefix, records=10, again=2, poll_interval=0.05)
    path, arguments = trigger.serialize()
    assert path == "airflow_provider_factory.triggers.topic_ready.TopicReadyTrigger"
    json.dumps(arguments)

    async def watch() -> None:
        fired = TopicReadyTrigger(**arguments).run()
        runs.produce(topic, events(12))
        assert await next_reason(fired) == "12 records wait, 10 are enough"
        runs.produce(topic, events(11))
        assert await next_reason(fired) == "11 records wait, 10 are enough"
        assert await next_reason(fired) == "23 records wait, 10 are enough"  # nobody planned a window
        plan_window(runs.config, pipeline=runs.prefix, topic=topic, interval=None, run_key="r", prefix=runs.prefix)
        runs.produce(topic, events(10))
        assert await next_reason(fired) == "10 records wait, 10 are enough"

    asyncio.run(watch())


def test_a_topic_that_is_not_there_yet_is_waited_for(runs: Runs, bootstrap: str) -> None:
    trigger = TopicReadyTrigger(topic=f"{runs.prefix}.late", pipeline=runs.prefix, age=0, poll_interval=0.05)

    async def watch() -> None:
        fired = trigger.run()
        first = asyncio.ensure_future(next_reason(fired))
        await asyncio.sleep(0)
        topic = await asyncio.to_thread(runs.topic, "late")
        await asyncio.to_thread(runs.produce, topic, events(1))
        assert await first == "the oldest of 1 records has waited 0 s"

    asyncio.run(watch())


def test_it_has_to_know_what_is_enough() -> None:
    with pytest.raises(ConfigurationError, match="expected records, size or age"):
        TopicReadyTrigger(topic="t", pipeline="p")
