"""Many windows: backfills and schedules, whose windows are the same workflows that anybody would start."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from temporalio.client import Client, ScheduleBackfill, ScheduleOverlapPolicy

from factory_agents.errors import ConfigurationError
from factory_agents.protocol import Interval
from factory_agents.temporal import client as clients
from factory_agents.temporal.client import PipelineFailedError
from factory_agents.temporal.protocol import BackfillDone, BackfillRequest, PipelineRequest, ScheduledRequest
from tests.support.runs import Runs, events
from tests.support.temporal import Pipelines, of_spec, stage
from tests.support.waiting import wait_for

START = datetime(2026, 11, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def hours(pipelines: Pipelines, runs: Runs, count: int, **more: object) -> tuple[PipelineRequest, str]:
    """A topic with ten events in each of so many hours, and a pipeline over it."""
    raw, marked = runs.topic("raw", partitions=2, retention_ms=-1), runs.topic("marked", partitions=2)
    for hour in range(count):
        at = int((START + hour * HOUR + HOUR / 2).timestamp() * 1000)
        runs.produce(raw, events(10, hour * 10), timestamp=at)
    return pipelines.request(raw, stage("mark", output=marked, **more)), marked


def backfill(pipelines: Pipelines, request: PipelineRequest, count: int, **more: int) -> BackfillDone:
    """Start a backfill of so many hours, and wait for its end."""
    span = Interval(START, START + count * HOUR)
    wanted = BackfillRequest(request.spec, span, 3600, BackfillDone(request.spec.pipeline), **more)

    async def ran(client: Client) -> BackfillDone:
        return await clients.outcome(await clients.start_backfill(client, wanted))

    return pipelines.ask(ran)


def test_a_backfill_does_each_window_once_and_knows_what_was_done(pipelines: Pipelines, runs: Runs) -> None:
    request, marked = hours(pipelines, runs, 5)
    second = PipelineRequest(request.spec, Interval(START + HOUR, START + 2 * HOUR))
    with pipelines.served(slots=8):
        pipelines.run(second)
        done = backfill(pipelines, request, 5, at_once=2, per_workflow=2)  # so that it goes on in further workflows
        assert done == BackfillDone(request.spec.pipeline, windows=5, known=1)
        assert sorted(r.id for r in runs.everything(marked)) == list(range(50))
        for hour in range(5):
            window = PipelineRequest(request.spec, Interval(START + hour * HOUR, START + (hour + 1) * HOUR))
            assert pipelines.done(window.workflow_id).stages[0].counts.consumed == 10
        assert backfill(pipelines, request, 5).known == 5


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_week_of_hours_is_done_by_one_backfill(pipelines: Pipelines, runs: Runs) -> None:
    hours_ = 7 * 24
    request, marked = hours(pipelines, runs, hours_)
    with pipelines.served(slots=8):
        done = backfill(pipelines, request, hours_, at_once=8, per_workflow=50)
        assert done == BackfillDone(request.spec.pipeline, windows=hours_)
        assert backfill(pipelines, request, hours_).known == hours_
    assert sorted(r.id for r in runs.everything(marked)) == list(range(10 * hours_))


def test_windows_that_failed_are_named_and_tried_again(pipelines: Pipelines, runs: Runs) -> None:
    judge = "tests.support.agents:judge"
    request, marked = hours(pipelines, runs, 2)
    strict = of_spec(request, stages=(stage("mark", judge, output=marked, max_rejected="0"),))
    with pipelines.served(slots=8):
        with pytest.raises(PipelineFailedError, match=r"BackfillFailed: 2 of 2 windows failed: 2026-11-01T00:00:00.000Z/2026"):
            backfill(pipelines, strict, 2)
        assert backfill(pipelines, request, 2) == BackfillDone(request.spec.pipeline, windows=2)
    assert sorted(r.id for r in runs.everything(marked) if "seen" in r.event) == list(range(20))


def test_a_schedule_does_the_window_that_ended_however_late_it_comes(pipelines: Pipelines, runs: Runs) -> None:
    request, marked = hours(pipelines, runs, 3)
    wanted = ScheduledRequest(request.spec, every=3600, delay=120)

    async def applied(client: Client) -> None:
        name = await clients.apply_schedule(client, wanted, catch_up=3600)
        assert await clients.apply_schedule(client, wanted, catch_up=7200) == name
        span = ScheduleBackfill(START + HOUR, START + 3 * HOUR + HOUR / 2, overlap=ScheduleOverlapPolicy.ALLOW_ALL)
        await client.get_schedule_handle(name).backfill(span)

    with pipelines.served(slots=8):
        pipelines.ask(applied)
        try:
            windows = [PipelineRequest(request.spec, Interval(START + h * HOUR, START + (h + 1) * HOUR)) for h in range(3)]
            for window in windows:
                wait_for(lambda window=window: pipelines.exists(window.workflow_id), "the schedule to start the window")
                assert pipelines.done(window.workflow_id).stages[0].counts.consumed == 10
        finally:
            pipelines.ask(lambda client: clients.delete_schedule(client, request.spec.pipeline))
    assert sorted(r.id for r in runs.everything(marked)) == list(range(30))


def test_a_schedule_that_is_triggered_by_hand_does_the_last_whole_window(pipelines: Pipelines, runs: Runs) -> None:
    request, _ = hours(pipelines, runs, 1)
    name = request.spec.pipeline

    async def triggered(client: Client) -> None:
        await clients.apply_schedule(client, ScheduledRequest(request.spec, every=3600, delay=120), catch_up=3600)
        await client.get_schedule_handle(name).trigger()

    async def listed(client: Client) -> list[str]:
        return [w.id async for w in client.list_workflows(f"WorkflowId STARTS_WITH '{name}/2' AND ExecutionStatus = 'Completed'")]

    with pipelines.served():
        pipelines.ask(triggered)
        try:
            wait_for(lambda: pipelines.ask(listed), "its window to be done")
            (id_,) = pipelines.ask(listed)
        finally:
            pipelines.ask(lambda client: clients.delete_schedule(client, name))
    assert re.fullmatch(rf"{name}/[-0-9]+T\d\d:00:00.000Z/[-0-9]+T\d\d:00:00.000Z", id_)


def test_a_cancelled_backfill_cancels_its_windows(pipelines: Pipelines, runs: Runs) -> None:
    raw, marked = runs.topic("raw", partitions=1, retention_ms=-1), runs.topic("marked")
    runs.produce(raw, events(100, seconds=1), timestamp=int((START + HOUR / 2).timestamp() * 1000))
    request = pipelines.request(raw, stage("mark", "tests.support.agents:dawdle", output=marked))
    wanted = BackfillRequest(request.spec, Interval(START, START + HOUR), 3600, BackfillDone(request.spec.pipeline))
    window = PipelineRequest(request.spec, wanted.interval)

    async def started(client: Client) -> str:
        return (await clients.start_backfill(client, wanted)).id

    with pipelines.served():
        id_ = pipelines.ask(started)
        wait_for(lambda: pipelines.exists(window.workflow_id), "the window to begin")
        pipelines.cancel(id_)
        with pytest.raises(PipelineFailedError, match="cancelled"):
            pipelines.done(window.workflow_id)


def test_a_schedule_that_would_forget_windows_is_refused(pipelines: Pipelines) -> None:
    wanted = ScheduledRequest(pipelines.request("raw", stage("mark")).spec, every=60)
    with pytest.raises(ConfigurationError, match=r"catch up with at most 1,000 windows, or 60,000 s, got 604,800 s"):
        pipelines.ask(lambda client: clients.apply_schedule(client, wanted, catch_up=7 * 24 * 3600))


def test_a_span_that_holds_no_whole_number_of_windows_is_refused(pipelines: Pipelines) -> None:
    spec = pipelines.request("raw", stage("mark")).spec
    with pytest.raises(ValueError, match="a span of a whole number of windows of 2400 s"):
        BackfillRequest(spec, Interval(START, START + HOUR), 2400, BackfillDone(spec.pipeline))
