"""Events that start workflows: each one, once, whatever dies between the server's answer and the position's commit."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime
from typing import Any

import pytest
from temporalio.client import Client

from factory_agents.errors import ConfigurationError
from factory_agents.kafka.messages import Message
from factory_agents.protocol import Interval
from factory_agents.temporal.protocol import PipelineRequest, PipelineSpec
from factory_agents.temporal.starter import request_of
from tests.agents.temporal.test_commands import PIPELINE
from tests.support.runs import Runs
from tests.support.temporal import Pipelines, stage
from tests.support.waiting import wait_for

SPEC = PipelineSpec(pipeline="p", topic="t", stages=(stage("mark"),))


class Event:
    """A record as a consumer gives it."""

    def __init__(self, value: bytes | None) -> None:
        self._value = value

    def topic(self) -> str:
        return "orders"

    def partition(self) -> int:
        return 2

    def offset(self) -> int:
        return 7

    def value(self) -> bytes | None:
        return self._value


def asked(value: bytes | None) -> PipelineRequest:
    message: Any = Event(value)
    typed: Message = message
    return request_of(SPEC, typed)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b'{"event_id": "a-1", "more": 1}', "a-1"),
        (b'{"event_id": 17}', "17"),
        (b"{}", "orders-2-7"),
        (None, "orders-2-7"),
        (b"no json", "orders-2-7"),
        (b"[" * 100_000, "orders-2-7"),
        (b'{"event_id": "a|b"}', "orders-2-7"),
        (b'{"event_id": "a\\nb"}', "orders-2-7"),
        (b'{"event_id": ""}', "orders-2-7"),
        (json.dumps({"event_id": "x" * 201}).encode(), "orders-2-7"),
    ],
)
def test_an_events_id_names_its_window_else_its_place_does(value: bytes | None, key: str) -> None:
    assert asked(value) == PipelineRequest(SPEC, key=key)


def test_an_event_may_ask_for_a_window_of_time() -> None:
    value = b'{"event_id": 1, "window": {"start": "2026-11-01T04:00:00Z", "end": "2026-11-01T05:00:00Z"}}'
    hour = Interval(datetime(2026, 11, 1, 4, tzinfo=UTC), datetime(2026, 11, 1, 5, tzinfo=UTC))
    assert asked(value) == PipelineRequest(SPEC, hour)
    for broken in (b'{"window": "now"}', b'{"window": {"start": "2026-11-01T04:00:00Z", "end": "2026-11-01T04:00:00Z"}}'):
        with pytest.raises(ConfigurationError, match="window: expected its start and end"):
            asked(broken)


def committed(runs: Runs, group: str, topic: str) -> dict[int, int]:
    """Where a group stands."""
    return {partition: offset for (_, partition), offset in runs.cluster.committed(group, [topic]).items()}


def test_each_event_starts_one_workflow_though_the_starter_dies_before_it_commits(pipelines: Pipelines, runs: Runs) -> None:
    requests = runs.topic("requests")
    ids = [f"e{i}" for i in range(60)]
    values = [json.dumps({"event_id": id_}).encode() for id_ in ids]
    runs.produce(requests, [*values, *values[::5], b'{"window": "none"}'])
    name = pipelines.prefix
    (pipelines.factory.cwd / "p.yaml").write_text(PIPELINE.format(pipeline=name, raw="r", prefix=name, queue=name, marked="m"))
    listen = ("temporal", "listen", "p.yaml", "--topic", requests)
    soon = {"KAFKA_CONFIG": json.dumps({"session.timeout.ms": 6000})}  # the group lets a dead member go
    for _ in range(2):
        dying = pipelines.factory.start(*listen, FACTORY_FAILPOINTS="starter.before-commit=kill@1", **soon)
        assert dying.wait(90).code == -signal.SIGKILL, dying.lines
    living = pipelines.factory.start(*listen, **soon)
    group = f"factory.start.{name}"
    ends = runs.cluster.high_watermark(requests, range(4))
    wait_for(lambda: committed(runs, group, requests) == ends, "all events to be taken", 60)
    assert living.stop().code == 0

    async def found(client: Client) -> list[str]:
        return [w.id async for w in client.list_workflows(f'WorkflowId STARTS_WITH "{name}/"')]

    wait_for(lambda: len(pipelines.ask(found)) >= 60, "the server to list them")
    assert sorted(pipelines.ask(found)) == sorted(f"{name}/{id_}" for id_ in ids)
    assert sum('"no workflow can be started' in line for line in living.lines) <= 1
