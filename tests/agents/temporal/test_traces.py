"""Traces of pipelines as workflows: from who asked, over HTTP or by an event, to the agent's process and the table."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import psycopg
import pytest

from factory_agents.temporal.protocol import PipelineRequest, PipelineSpec, StageSpec
from tests.agents.temporal.test_commands import written
from tests.agents.temporal.test_http import TOKEN, Server
from tests.support.jaeger import NO_PROGRAM, PROGRAM, Landing, four_stages, jaeger
from tests.support.otlp import Collector, SeenSpan
from tests.support.runs import Runs, events
from tests.support.temporal import Pipelines
from tests.support.waiting import wait_for

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


def soon(collector: Collector) -> dict[str, Any]:
    return {**collector.environment, "OTEL_BSP_SCHEDULE_DELAY": "50"}


def ancestors(collector: Collector, span: SeenSpan) -> list[str]:
    """The names of the spans that it is a part of, the nearest first, as far as they were sent."""
    by_id = {one.span_id: one for one in collector.spans}
    names = []
    while (parent := by_id.get(span.parent_id)) is not None:
        names.append(parent.name)
        span = parent
    return names


def test_a_run_asked_for_over_http_is_one_trace_down_to_the_agents_process(pipelines: Pipelines, runs: Runs, collector: Collector) -> None:
    raw, marked = runs.topic("raw"), runs.topic("marked")
    runs.produce(raw, events(100))
    written(pipelines, raw, marked)
    pipelines.worker(**soon(collector))
    server = Server(pipelines, **soon(collector))
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/runs",
        json.dumps({"pipeline": pipelines.prefix, "key": "w"}).encode(),
        {"Authorization": f"Bearer {TOKEN}", "traceparent": TRACEPARENT},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        pipelines.done(json.loads(answer.read())["id"])
    wanted = ("StartWorkflow:FactoryPipeline", "RunActivity:run_slice", "mark")
    wait_for(lambda: all(map(collector.named, wanted)), "the spans")
    start = collector.one("StartWorkflow:FactoryPipeline")
    assert (start.trace_id, start.parent_id) == (TRACE, SPAN)
    (run,) = [span for span in collector.spans if span.name == "mark"]
    assert (run.trace_id, run.service) == (TRACE, "factory-agent")
    assert ancestors(collector, run) == ["RunActivity:run_slice", "StartActivity:run_slice", "StartWorkflow:FactoryPipeline"]
    assert {span.trace_id for span in collector.spans} == {TRACE}


def test_an_event_that_starts_a_workflow_is_the_beginning_of_its_trace(pipelines: Pipelines, runs: Runs, collector: Collector) -> None:
    raw, marked, asked = runs.topic("raw"), runs.topic("marked"), runs.topic("asked", partitions=1)
    runs.produce(raw, events(10))
    written(pipelines, raw, marked)
    runs.produce(asked, [b'{"event_id": "hostile"}'], headers={"traceparent": b"\xff" * 100})
    runs.produce(asked, [b'{"event_id": "w"}'], headers={"traceparent": TRACEPARENT})
    pipelines.factory.start("temporal", "listen", "p.yaml", "--topic", asked, **soon(collector))
    wait_for(lambda: len(collector.named("StartWorkflow:FactoryPipeline")) == 2, "two starts")
    hostile, start = sorted(collector.named("StartWorkflow:FactoryPipeline"), key=lambda span: span.trace_id == TRACE)
    assert (start.trace_id, start.parent_id) == (TRACE, SPAN)
    assert hostile.parent_id == ""


@pytest.mark.parametrize("runner", ["process", "thread"])
def test_an_event_is_one_trace_through_the_four_stages_of_a_workflow(
    pipelines: Pipelines, runs: Runs, collector: Collector, database_url: str, tmp_path: Path, runner: str
) -> None:
    source = tmp_path / "events.jsonl"
    source.write_bytes(b"\n".join(events(200)))
    raw, enriched, valid = (runs.topic(name, partitions=2) for name in ("raw", "enriched", "valid"))
    table = f"t_{pipelines.prefix.replace('-', '_')}"
    contract: dict[str, Any] = {"name": "events", "id": "event_id", "columns": {"event_id": "bigint", "text": "text"}}
    stages = (
        StageSpec(name="ingest", agent="ingest", params={"source": str(source)}, output_topic=raw),
        StageSpec(name="enrich", agent="enrich", params={"function": "tests.support.agents:mark"}, output_topic=enriched),
        StageSpec(name="validate", agent="validate", params={"contract": contract}, output_topic=valid),
        StageSpec(name="publish", agent="publish", params={"contract": contract, "table": table}),
    )
    spec = PipelineSpec(pipeline=pipelines.prefix, stages=stages, task_queue=pipelines.prefix, prefix=pipelines.prefix)
    pipelines.worker(runner=runner, DATABASE_URL=database_url, **soon(collector))
    pipelines.run(PipelineRequest(spec, key="all"))
    with psycopg.connect(database_url) as connection:
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (200,)
    wait_for(lambda: collector.named("publish") and len(collector.named("RunActivity:run_slice")) == 4, "the last stage's spans")
    root = collector.named("ingest event")[0]
    spans = {str(span.attributes["factory.stage"]): span for span in collector.spans if span.trace_id == root.trace_id}
    names = [stage.name for stage in stages]
    assert sorted(spans) == sorted(names)
    assert [spans[after].parent_id for after in names[1:]] == [spans[before].span_id for before in names[:-1]]
    of_runs = [collector.one(name) for name in names]
    assert [span.links for span in of_runs[1:]] == [((before.trace_id, before.span_id),) for before in of_runs[:-1]]
    assert all(ancestors(collector, span) == ["RunActivity:run_slice"] for span in of_runs), "nobody asked with a span"


@pytest.mark.skipif(PROGRAM is None, reason=NO_PROGRAM)
def test_jaeger_shows_an_event_through_a_workflow_as_one_trace_and_nothing_of_what_was_killed(
    pipelines: Pipelines, runs: Runs, database_url: str, tmp_path: Path
) -> None:
    landing = Landing(database_url, f"t_{pipelines.prefix.replace('-', '_')}")
    stages = tuple(four_stages(runs, tmp_path / "events.jsonl", landing.table))
    spec = PipelineSpec(pipeline=pipelines.prefix, stages=stages, task_queue=pipelines.prefix, prefix=pipelines.prefix, retry_interval=0.2)
    with jaeger(tmp_path) as seen:
        environment: dict[str, Any] = {"OTEL_EXPORTER_OTLP_ENDPOINT": seen.otlp_url, "DATABASE_URL": database_url}
        killing = pipelines.worker(FACTORY_FAILPOINTS="chunk.before-commit=kill", **environment)
        id_ = pipelines.start(PipelineRequest(spec, key="all"))
        wait_for(lambda: any("was killed" in line for line in killing.lines), "an agent to be killed")
        killing.stop()
        pipelines.worker(**environment)
        pipelines.done(id_)
        (produced,) = runs.everything(stages[0].output_topic)
        seen.check_the_way(produced.timestamp / 1000, landing.at())
