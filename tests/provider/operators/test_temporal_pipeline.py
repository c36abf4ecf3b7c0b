"""A DAG that runs a window on Temporal: deferred or not, started again after a failure, with an event for its assets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, Asset
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from airflow_provider_factory.operators.temporal_pipeline import TemporalPipelineOperator
from airflow_provider_factory.triggers.temporal_pipeline import TemporalPipelineTrigger
from factory_agents.errors import ConfigurationError
from factory_agents.temporal.client import PipelineFailedError
from tests.agents.temporal.test_commands import PIPELINE
from tests.support.otlp import Collector
from tests.support.runs import Runs, events
from tests.support.temporal import Pipelines
from tests.support.waiting import wait_for

START = datetime(2026, 11, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
CHECKED = Asset("kafka://main/checked")


@pytest.fixture
def pipelines(
    temporal_address: str, bootstrap: str, prefix: str, tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pipelines]:
    monkeypatch.setenv("KAFKA_BOOTSTRAP", bootstrap)
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal_address)
    monkeypatch.setenv("FACTORY_INCLUDE", str(tmp_path))
    own = Pipelines(temporal_address, bootstrap, prefix, tmp_path)
    yield own
    own.close()


@pytest.fixture
def raw(pipelines: Pipelines, runs: Runs, tmp_path: Path) -> str:
    """A topic with an hour's events, and a pipeline over it that writes to a topic which isn't there yet."""
    raw = runs.topic("raw", retention_ms=-1)
    runs.produce(raw, events(50), timestamp=int((START + HOUR / 2).timestamp() * 1000))
    name = pipelines.prefix
    (tmp_path / "p.yaml").write_text(PIPELINE.format(pipeline=name, raw=raw, prefix=name, queue=name, marked=f"{name}.marked"))
    return raw


class Task:
    """A task's run."""

    def __init__(self, **arguments: Any) -> None:
        with DAG("mixed", schedule=None):
            self.operator = TemporalPipelineOperator(**{"task_id": "t", "pipeline": "p.yaml", "outlets": [CHECKED], **arguments})
        self.pushed: dict[str, Any] = {}
        self.events = {CHECKED: SimpleNamespace(extra=None)}
        self.context: Any = {
            "run_id": "r1",
            "data_interval_start": START,
            "data_interval_end": START + HOUR,
            "ti": SimpleNamespace(task_id="t", xcom_push=lambda key, value: self.pushed.update({key: value})),
            "outlet_events": self.events,
        }

    def deferred(self) -> TemporalPipelineTrigger:
        """The trigger that the task waits by, as the triggerer makes it from what is stored."""
        with pytest.raises(TaskDeferred) as raised:
            self.operator.execute(self.context)
        path, kwargs = raised.value.trigger.serialize()
        assert path == "airflow_provider_factory.triggers.temporal_pipeline.TemporalPipelineTrigger"
        return TemporalPipelineTrigger(**json.loads(json.dumps(kwargs)))


def fire(trigger: TemporalPipelineTrigger) -> dict[str, Any]:
    async def first() -> dict[str, Any]:
        async for event in trigger.run():
            return dict(json.loads(json.dumps(event.payload)))
        raise AssertionError("no event")

    return asyncio.run(asyncio.wait_for(first(), 90))


def id_of(pipelines: Pipelines) -> str:
    return f"{pipelines.prefix}/2026-11-01T00:00:00.000Z/2026-11-01T01:00:00.000Z"


def test_a_window_is_waited_for_deferred_and_its_assets_are_told(pipelines: Pipelines, runs: Runs, raw: str) -> None:
    runs.topic("marked")
    task = Task(deferrable=True)
    with pipelines.served():
        trigger = task.deferred()
        assert task.pushed["run_info"]["workflow"] == trigger.workflow_id == id_of(pipelines)
        event = fire(trigger)
    done = task.operator.execute_complete(task.context, event)
    assert [(s["stage"], s["counts"]["consumed"]) for s in done["stages"]] == [("mark", 50)]
    extra = task.events[CHECKED].extra
    assert (extra["workflow"], extra["stages"]["mark"]["forwarded"]) == (id_of(pipelines), 50)
    facets = task.operator.get_openlineage_facets_on_complete(None)
    assert [output.name for output in facets.outputs] == [f"{pipelines.prefix}.marked"]
    # The same again, in the worker: the first one's workflow.
    again = Task(deferrable=False)
    assert again.operator.execute(again.context) == done
    assert sorted(r.id for r in runs.everything(f"{pipelines.prefix}.marked")) == list(range(50))


def test_the_workflow_is_a_part_of_the_tasks_span(
    pipelines: Pipelines, raw: str, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__TRACES__OTEL_ON", "True")
    for name, value in collector.environment.items():
        monkeypatch.setenv(name, value)
    task = Task(deferrable=True)
    task.context["ti"].context_carrier = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
    trigger = task.deferred()  # no worker runs
    start = collector.named("StartWorkflow:FactoryPipeline")[-1]  # one more before it, where the server knows no search attributes
    assert (start.trace_id, start.parent_id, start.service) == ("ab" * 16, "cd" * 8, "airflow")
    asyncio.run(trigger.on_kill())


def test_a_failure_is_told_and_a_retry_goes_on(pipelines: Pipelines, runs: Runs, raw: str) -> None:
    task = Task(deferrable=True)
    with pipelines.served():
        event = fire(task.deferred())
        with pytest.raises(AirflowFailException, match=rf"workflow {id_of(pipelines)}: ConfigurationError: .*marked"):
            task.operator.execute_complete(task.context, event)
        assert task.events[CHECKED].extra is None
        with pytest.raises(PipelineFailedError, match="away"):
            task.operator.execute_complete(task.context, {"status": "failed", "reason": "away", "retriable": True})
        runs.topic("marked")
        cleared = Task(deferrable=False)
        assert cleared.operator.execute(cleared.context)["stages"][0]["counts"]["consumed"] == 50


def test_a_killed_wait_cancels_its_workflow_and_a_cleared_task_starts_another(pipelines: Pipelines, runs: Runs, raw: str) -> None:
    """A cleared task is there again before the one that it was is gone."""
    runs.topic("marked")
    first, cleared, waiting = Task(deferrable=True).deferred(), Task(deferrable=True), Task(deferrable=False)
    second = cleared.deferred()  # no worker runs
    asyncio.run(first.on_kill())
    with pipelines.served():
        event = fire(first)
        assert "cancelled" in event["reason"]
        with pytest.raises(AirflowFailException, match="cancelled"):
            Task().operator.execute_complete(cleared.context, event)
        with pytest.raises(TaskDeferred) as raised:
            cleared.operator.execute_complete(cleared.context, fire(second))
        asyncio.run(first.on_kill())  # of the one that is over
        done = cleared.operator.execute_complete(cleared.context, fire(raised.value.trigger))
        assert [(s["stage"], s["counts"]["consumed"]) for s in done["stages"]] == [("mark", 50)]
        assert waiting.operator.execute(waiting.context) == done


def test_a_redo_that_finds_a_workflow_waits_for_its_end_and_does_the_window_again(pipelines: Pipelines, runs: Runs, raw: str) -> None:
    """As a task that is cleared while its workflow runs, whether the clear cancels that (Airflow 3.3 and newer) or not."""
    runs.topic("marked")
    first, cleared = Task(deferrable=True, redo=True).deferred(), Task(deferrable=True, redo=True)
    second = cleared.deferred()  # no worker runs
    with pipelines.served():
        assert fire(first)["status"] == "done"
        with pytest.raises(TaskDeferred) as raised:
            cleared.operator.execute_complete(cleared.context, fire(second))
        own = raised.value.trigger
        assert own.first_run not in ("", first.first_run)
        done = cleared.operator.execute_complete(cleared.context, fire(own))
        assert done["stages"][0]["counts"]["consumed"] == 50
    assert pipelines.runs_of(id_of(pipelines)) == 2
    third, cleared = Task(deferrable=True, redo=True).deferred(), Task(deferrable=False, redo=True)

    async def waited() -> Any:
        waiting = asyncio.create_task(cleared.operator._started(cleared.operator._request(cleared.context)))
        await asyncio.to_thread(wait_for, lambda: cleared.operator._workflow_id, "the workflow to be found")
        await third.on_kill()
        with pipelines.served():
            return await waiting

    assert asyncio.run(waited()).stages[0].reused == 0
    assert len(runs.everything(f"{pipelines.prefix}.marked")) == 150, "each of three did all of it"


def test_a_task_that_waits_in_its_worker_starts_what_is_cancelled_again(pipelines: Pipelines, runs: Runs, raw: str) -> None:
    runs.topic("marked")
    first, cleared = Task(deferrable=True).deferred(), Task(deferrable=False).operator

    async def killed() -> Any:
        waiting = asyncio.create_task(cleared._started(cleared._request(Task().context)))
        await asyncio.to_thread(wait_for, lambda: cleared._workflow_id, "the workflow to be found")
        await first.on_kill()
        with pipelines.served():
            return await waiting

    assert asyncio.run(killed()).stages[0].counts.consumed == 50


def test_a_task_that_is_killed_in_its_worker_cancels_the_workflow(pipelines: Pipelines, raw: str) -> None:
    task = Task(deferrable=True)

    async def killed() -> None:
        """As a signal's handler is called, in the event loop that waits."""
        await task.operator._started(task.operator._request(task.context))
        task.operator.on_kill()

    asyncio.run(killed())
    with pipelines.served():
        wait_for(lambda: pipelines.is_over(id_of(pipelines)), "the workflow to be cancelled")


def test_a_run_without_an_interval_is_refused_or_reads_what_came(pipelines: Pipelines, runs: Runs, raw: str) -> None:
    runs.topic("marked")
    task = Task(deferrable=False)
    task.context["data_interval_end"] = START
    with pytest.raises(AirflowFailException, match="has an empty data interval"):
        task.operator.execute(task.context)
    since = Task(deferrable=False, no_interval="since_last")
    since.context["data_interval_end"] = START
    with pipelines.served():
        assert since.operator.execute(since.context)["window"] == "r1"


def test_what_is_wrong_is_one_line(pipelines: Pipelines, raw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="no_interval: expected error or since_last"):
        Task(no_interval="never")
    missing = Task(pipeline="none.yaml")
    with pytest.raises(AirflowFailException, match=r"pipeline file 'none\.yaml': no such file"):
        missing.operator.execute(missing.context)
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
    away = Task()
    with pytest.raises(Exception, match=r"Temporal at 127\.0\.0\.1:1 doesn't answer"):
        away.operator.execute(away.context)
