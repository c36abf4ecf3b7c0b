"""Events that start workflows: each one, once, whatever dies between the server's answer and the position's commit."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import msgspec
import pytest
from temporalio.client import Client

from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.messages import Message
from factory_agents.protocol import Interval
from factory_agents.temporal.client import RefusedError
from factory_agents.temporal.converter import data_converter
from factory_agents.temporal.protocol import PipelineRequest, PipelineSpec
from factory_agents.temporal.starter import request_of, run_starter
from tests.agents.temporal.test_commands import PIPELINE
from tests.chaos.kafka_proxy import KafkaProxy
from tests.support.grpc_front import in_front_of
from tests.support.runs import Runs, events
from tests.support.temporal import Pipelines, own_server, stage
from tests.support.topics import recreate
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


def asked(value: bytes | None, topic_id: str = "") -> PipelineRequest:
    message: Any = Event(value)
    typed: Message = message
    return request_of(SPEC, typed, topic_id)


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
        (b'{"event_id": 1.5}', "orders-2-7"),
        (b'{"event_id": true}', "orders-2-7"),
        (b'{"event_id": "collector"}', "orders-2-7"),  # names of other workflows
        (b'{"event_id": "schedule-2026-11-28T09:00:53Z"}', "orders-2-7"),
        (b'{"event_id": "2026-11-01T00:00:00.000Z/2026-11-01T01:00:00.000Z"}', "orders-2-7"),
        (b'{"event_id": "backfill/2026-11-01T00:00:00.000Z/2026-11-01T01:00:00.000Z"}', "orders-2-7"),
        (b'{"event_id": "schedule-a/b"}', "schedule-a/b"),
    ],
)
def test_an_events_id_names_its_window_else_its_place_does(value: bytes | None, key: str) -> None:
    assert asked(value) == PipelineRequest(SPEC, key=key)
    assert asked(value, "tid") == PipelineRequest(SPEC, key=f"{key}-tid" if key == "orders-2-7" else key), "another topic of that name"


def test_an_event_may_ask_for_a_window_of_time() -> None:
    value = b'{"event_id": 1, "window": {"start": "2026-11-01T04:00:00Z", "end": "2026-11-01T05:00:00Z"}}'
    hour = Interval(datetime(2026, 11, 1, 4, tzinfo=UTC), datetime(2026, 11, 1, 5, tzinfo=UTC))
    assert asked(value) == PipelineRequest(SPEC, hour)
    assert asked(value.replace(b'"event_id": 1,', b'"event_id": {"odd": 1.5},')) == PipelineRequest(SPEC, hour)
    for broken in (b'{"window": "now"}', b'{"window": {"start": "2026-11-01T04:00:00Z", "end": "2026-11-01T04:00:00Z"}}'):
        with pytest.raises(ConfigurationError, match="window: expected its start and end"):
            asked(broken)


def committed(runs: Runs, group: str, topic: str) -> dict[int, int]:
    """Where a group stands."""
    return {partition: offset for (_, partition), offset in runs.cluster.committed(group, [topic]).items()}


@pytest.mark.parametrize("number", [300, pytest.param(5000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_each_event_starts_one_workflow_whatever_dies(pipelines: Pipelines, runs: Runs, tmp_path: Path, number: int) -> None:
    """The starter before its second commit, and the server, which goes on from its file; every fifth event comes twice."""
    requests = runs.topic("requests")
    ids = [f"e{i}" for i in range(number)]
    values = [json.dumps({"event_id": id_}).encode() for id_ in ids]
    runs.produce(requests, [*values, *values[::5], b'{"window": "none"}'])
    name = pipelines.prefix
    with own_server(tmp_path / "server") as server:
        own = Pipelines(server.address, pipelines.bootstrap, name, tmp_path)
        (own.factory.cwd / "p.yaml").write_text(PIPELINE.format(pipeline=name, raw="r", prefix=name, queue=name, marked="m"))
        listen = ("temporal", "listen", "p.yaml", "--topic", requests)
        soon = {"KAFKA_CONFIG": json.dumps({"session.timeout.ms": 6000})}  # the group lets a dead member go
        dying = own.factory.start(*listen, FACTORY_FAILPOINTS="starter.before-commit=kill@2", **soon)
        assert dying.wait(90).code == -signal.SIGKILL, dying.lines
        living = own.factory.start(*listen, **soon)
        group = f"factory.start.{name}"
        ends = runs.cluster.high_watermark(requests, range(4))
        wait_for(lambda: living.process.poll() is not None or any('"started"' in line for line in living.lines), "it to start one", 60)
        server.kill()
        server.start()
        wait_for(lambda: committed(runs, group, requests) == ends, "all events to be taken", max(200, number / 3))
        assert living.stop().code == 0

        async def found(client: Client) -> list[str]:
            return [w.id async for w in client.list_workflows(f'WorkflowId STARTS_WITH "{name}/"')]

        wait_for(lambda: len(own.ask(found)) >= number, "the server to list them", 120)
        assert sorted(own.ask(found)) == sorted(f"{name}/{id_}" for id_ in ids)
        assert sum('"no workflow can be started' in line for line in living.lines) <= 1
        own.close()


def test_an_event_comes_out_enriched_and_its_workflow_completes(pipelines: Pipelines, runs: Runs) -> None:
    """The smoke test: one event into the first topic, one out of the last, and one workflow that is done."""
    raw, enriched, name = runs.topic("raw_events"), runs.topic("enriched_events"), pipelines.prefix
    (pipelines.factory.cwd / "p.yaml").write_text(PIPELINE.format(pipeline=name, raw=raw, prefix=name, queue=name, marked=enriched))
    with pipelines.served():
        starter = pipelines.factory.start("temporal", "listen", "p.yaml", "--topic", raw)
        runs.produce(raw, events(1, 17))
        wait_for(lambda: pipelines.exists(f"{name}/17") or starter.process.poll() is not None, "its workflow")
        assert pipelines.done(f"{name}/17").stages[0].counts.forwarded == 1
    assert [(r.id, r.event["seen"]) for r in runs.everything(enriched)] == [(17, True)]


def test_a_server_that_refuses_all_starts_ends_the_starter_which_takes_no_event_as_read(pipelines: Pipelines, runs: Runs) -> None:
    """As with a mistyped namespace, or a key that is no longer good: nothing is wrong with the events."""
    requests, name = runs.topic("requests", partitions=1), pipelines.prefix
    runs.produce(requests, [b'{"event_id": "e"}'])
    (pipelines.factory.cwd / "p.yaml").write_text(PIPELINE.format(pipeline=name, raw="r", prefix=name, queue=name, marked="m"))
    listen = ("temporal", "listen", "p.yaml", "--topic", requests)
    refused = pipelines.factory(*listen, TEMPORAL_NAMESPACE="defualt")
    assert refused.code == 1
    last = json.loads(refused.err.splitlines()[-1])
    assert (last["level"], last["message"]) == ("error", f"starting {name}/e: Temporal: Namespace defualt is not found.")
    assert committed(runs, f"factory.start.{name}", requests) in ({}, {0: 0})


@pytest.fixture
def proxy(bootstrap: str) -> Iterator[KafkaProxy]:
    own = KafkaProxy(bootstrap)
    yield own
    own.close()


def test_a_starter_waits_for_kafka_and_takes_no_other_topic_for_its_own(
    pipelines: Pipelines, runs: Runs, proxy: KafkaProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Kafka is away while it waits for events, and again once it has started one: then the topic is created again meanwhile."""
    monkeypatch.setattr("factory_agents.temporal.starter._ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("factory_agents.kafka.topics._DEAF_SECONDS", 0.5)
    requests, name = runs.topic("requests", partitions=1), pipelines.prefix
    spec = msgspec.structs.replace(SPEC, pipeline=name)
    config = KafkaConfig(proxy.bootstrap, {"reconnect.backoff.max.ms": "200"})

    def told(text: str) -> int:
        return sum(record.message.startswith(text) for record in caplog.records)

    def outage(nth: int, meanwhile: Callable[[], object]) -> None:
        wait_for(lambda: told("Kafka does not answer") == nth, "the outage to be noticed")
        meanwhile()
        proxy.mend()

    def cut(method: str, context: object) -> None:
        if method.endswith("/StartWorkflowExecution"):
            proxy.cut()

    def create_again() -> None:
        recreate(runs.admin, requests, 1)
        runs.produce(requests, [b'{"event_id": "b"}', b"{}"])

    async def follow(port: int) -> None:
        client = await Client.connect(f"127.0.0.1:{port}", data_converter=data_converter)
        listening = asyncio.create_task(run_starter(client, spec, config, topic=requests, group=name, stop=asyncio.Event()))

        def disturb() -> None:
            wait_for(lambda: told("listening"), "it to listen")
            proxy.cut()
            outage(1, lambda: runs.produce(requests, [b'{"event_id": "a"}']))
            wait_for(lambda: pipelines.exists(f"{name}/a") or listening.done(), "the event's workflow")
            outage(2, create_again)

        await asyncio.to_thread(disturb)
        await listening

    created_again = pytest.raises(UnavailableError, match="was deleted and created again while it was followed")
    with caplog.at_level("INFO"), in_front_of(pipelines.address, cut) as port, created_again:
        asyncio.run(asyncio.wait_for(follow(port), 90))
    assert (told("Kafka does not answer"), told("Kafka answers again")) == (2, 1)
    assert committed(runs, name, requests) == {}, "nothing of the new topic is taken as read"
    assert not pipelines.exists(f"{name}/b")
    followed(pipelines, spec, requests, runs, until=f"{name}/{requests}-0-1-{runs.cluster.topic(requests).id}")
    assert pipelines.exists(f"{name}/b")


def followed(pipelines: Pipelines, spec: PipelineSpec, topic: str, runs: Runs, *, until: str, port: int = 0) -> None:
    """Follow a topic, through the front at a port if there is one, until a workflow is there."""

    async def follow() -> None:
        client = await Client.connect(f"127.0.0.1:{port}" if port else pipelines.address, data_converter=data_converter)
        stop = asyncio.Event()
        listening = asyncio.create_task(run_starter(client, spec, runs.config, topic=topic, group=spec.pipeline, stop=stop))
        await asyncio.to_thread(wait_for, lambda: pipelines.exists(until) or listening.done(), "its workflow", 60)
        stop.set()
        await listening

    asyncio.run(follow())


def test_an_answer_that_is_not_about_the_event_skips_none(pipelines: Pipelines, runs: Runs) -> None:
    """A server that dies while it answers cancels calls; one that wants another key refuses all of them."""
    requests, name = runs.topic("requests", partitions=1), pipelines.prefix
    runs.produce(requests, [b'{"event_id": "e"}'])
    spec, answers = msgspec.structs.replace(SPEC, pipeline=name), ["PERMISSION_DENIED", "UNAUTHENTICATED", "CANCELLED"]

    def refuse(method: str, context: object) -> tuple[grpc.StatusCode, str] | None:
        if not answers or not method.endswith("/StartWorkflowExecution"):
            return None
        return getattr(grpc.StatusCode, answers.pop(0)), "by hand"

    with in_front_of(pipelines.address, refuse) as port:
        for _ in range(2):
            with pytest.raises(RefusedError, match=f"starting {name}/e: Temporal: by hand"):
                followed(pipelines, spec, requests, runs, until=f"{name}/e", port=port)
            assert not pipelines.exists(f"{name}/e")
            assert committed(runs, name, requests) == {}
        followed(pipelines, spec, requests, runs, until=f"{name}/e", port=port)
    assert not answers
