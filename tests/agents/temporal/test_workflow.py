"""A pipeline as a workflow: what its stages write, what is done again and what is not."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import msgspec
import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest, ResetWorkflowExecutionRequest
from temporalio.client import Client

from factory_agents.errors import ConfigurationError
from factory_agents.kafka.cuts import plan_window
from factory_agents.kafka.pruner import prune_pipeline
from factory_agents.kafka.windows import read_windows
from factory_agents.protocol import Counts, Interval
from factory_agents.reports import read_reports
from factory_agents.run import EXIT_RETRY
from factory_agents.temporal import client as clients
from factory_agents.temporal.client import PipelineFailedError
from factory_agents.temporal.protocol import PipelineDone, PipelineRequest, PipelineSpec, Progress, StageDone
from tests.support.runs import Runs, events
from tests.support.temporal import Pipelines, of_spec, stage
from tests.support.waiting import wait_for


def test_stages_read_what_the_one_before_wrote_each_event_once(pipelines: Pipelines, runs: Runs) -> None:
    raw, marked, judged = runs.topic("raw"), runs.topic("marked"), runs.topic("judged")
    runs.produce(raw, events(1000))
    request = pipelines.request(raw, stage("mark", output=marked), stage("judge", "tests.support.agents:judge", judged, shards=3))
    with pipelines.served():
        done = pipelines.run(request)
        assert [(s.stage, s.shards, s.counts.consumed, s.counts.rejected) for s in done.stages] == [
            ("mark", 1, 1000, 0),
            ("judge", 3, 1000, 200),
        ]
        assert sorted(r.id for r in runs.everything(marked)) == list(range(1000))
        assert all(r.event["seen"] for r in runs.everything(marked))
        assert len(runs.everything(judged)) == 800  # of ten events one is filtered, two are rejected, one is doubled


def test_a_window_is_done_once_whoever_starts_it(pipelines: Pipelines, runs: Runs) -> None:
    raw, marked = runs.topic("raw"), runs.topic("marked")
    runs.produce(raw, events(100))
    request = pipelines.request(raw, stage("mark", output=marked))
    with pipelines.served():
        first, second = pipelines.start(request), pipelines.start(request)
        done = pipelines.done(first)
        assert first == second == f"{pipelines.prefix}/w"
        assert pipelines.run(request) == done
    assert sorted(r.id for r in runs.everything(marked)) == list(range(100))


@pytest.mark.soak
def test_a_start_that_comes_when_the_server_has_forgotten_the_workflow_finds_the_finished_window(pipelines: Pipelines, runs: Runs) -> None:
    """As a duplicate does that is later than the namespace's retention."""
    raw, marked = runs.topic("raw"), runs.topic("marked")
    runs.produce(raw, events(100))
    request = pipelines.request(raw, stage("mark", output=marked))

    async def forgotten(client: Client) -> None:
        execution = WorkflowExecution(workflow_id=request.workflow_id)
        await client.workflow_service.delete_workflow_execution(
            DeleteWorkflowExecutionRequest(namespace="default", workflow_execution=execution)
        )

    with pipelines.served():
        assert pipelines.run(request).stages[0].reused == 0
        pipelines.ask(forgotten)
        wait_for(lambda: not pipelines.exists(request.workflow_id), "the server to forget it", 120)
        runs.produce(raw, events(100, 100))  # nothing of the window
        assert pipelines.run(request).stages[0].reused == 1
    assert sorted(r.id for r in runs.everything(marked)) == list(range(100))


def test_a_window_below_the_ledgers_mark_is_refused_and_not_tried_again(pipelines: Pipelines, runs: Runs) -> None:
    """As a duplicate is that is later than the ledger remembers."""
    spec = pipelines.request(runs.topic("raw"), stage("mark", output=runs.topic("marked"))).spec
    first, second = (Interval(datetime(2026, 11, 1, h, tzinfo=UTC), datetime(2026, 11, 1, h + 1, tzinfo=UTC)) for h in (0, 1))
    with pipelines.served():
        pipelines.run(PipelineRequest(spec, second))
        assert prune_pipeline(runs.config, spec.pipeline, prefix=spec.prefix, before=datetime(2026, 11, 2, tzinfo=UTC)).windows == 1
        id_ = pipelines.start(PipelineRequest(spec, first))
        with pytest.raises(PipelineFailedError, match=r"WindowError: .*was pruned from the ledger"):
            pipelines.done(id_)
        assert set(pipelines.attempts(id_)) == {1}


def test_a_window_that_others_did_is_returned_as_it_is(pipelines: Pipelines, runs: Runs) -> None:
    """Another orchestrator's window: its name, stage and agent are the same, so its result is."""
    raw, marked = runs.topic("raw"), runs.topic("marked")
    runs.produce(raw, events(100))
    window = plan_window(runs.config, pipeline=pipelines.prefix, topic=raw, interval=None, run_key="w", prefix=pipelines.prefix)
    theirs = runs.transform(runs.run(window, marked, stage="mark", origin=raw, run_id="another's"))
    with pipelines.served():
        request = pipelines.request(raw, stage("mark", output=marked))
        done = pipelines.run(request)
        assert done.stages[0].reused == 1
        assert pipelines.result(request, "mark").manifest == theirs.manifest
        assert sorted(r.id for r in runs.everything(marked)) == list(range(100))


def test_a_window_that_another_does_at_the_same_time_is_done_once(pipelines: Pipelines, runs: Runs) -> None:
    """Each fences the other and is tried again; whoever ends first, its result is the window's."""
    raw, marked = runs.topic("raw"), runs.topic("marked")
    runs.produce(raw, events(400, seconds=0.005))
    window = plan_window(runs.config, pipeline=pipelines.prefix, topic=raw, interval=None, run_key="w", prefix=pipelines.prefix)
    theirs = runs.run(window, marked, "tests.support.agents:dawdle", stage="mark", origin=raw, chunk_records=20)
    dawdle = stage("mark", "tests.support.agents:dawdle", output=marked)
    request = pipelines.request(raw, dawdle, chunk_records=20, retry_interval=0.2)
    with pipelines.served():
        id_ = pipelines.start(request)
        wait_for(lambda: pipelines.position(request, "mark"), "the workflow's first commit")
        status = runs.attempt(theirs).wait()
        done = pipelines.done(id_).stages[0]
    assert status in (0, EXIT_RETRY)
    assert done.counts.consumed == 400
    result = pipelines.result(request, "mark")
    assert sorted(r.id for r in runs.manifest(result.manifest)) == list(range(400))
    assert runs.finished(theirs).manifest == result.manifest


def test_what_no_retry_mends_fails_at_once_in_one_line(pipelines: Pipelines, runs: Runs) -> None:
    raw = runs.topic("raw")
    runs.produce(raw, events(10))
    with pipelines.served():
        id_ = pipelines.start(pipelines.request(raw, stage("mark", output="no-such-topic")))
        with pytest.raises(PipelineFailedError, match=rf"workflow {id_}: \w+Error: .*'no-such-topic'"):
            pipelines.done(id_)
        assert pipelines.attempts(id_) == [1, 1]


def test_an_error_whose_words_have_no_end_is_told_all_the_same(pipelines: Pipelines, runs: Runs) -> None:
    """A server that takes no more than so much of a failure would take the worker for dead: an attempt after the other."""
    source = "raise RuntimeError('x' * 9_000_000)\ndef shout(event):\n    return event"
    with pipelines.served():
        id_ = pipelines.start(pipelines.request(runs.topic("raw"), stage("mark", "shout", runs.topic("marked"), source=source)))
        with pytest.raises(PipelineFailedError, match=r": AgentError: agent 'shout': its source raised RuntimeError: x{100}") as raised:
            pipelines.done(id_)
        assert len(str(raised.value)) < 11_000
        assert pipelines.attempts(id_) == [1, 1]


def test_a_failed_window_is_started_again_only_when_asked_to(pipelines: Pipelines, runs: Runs) -> None:
    raw, marked = runs.topic("raw"), runs.topic("marked")
    runs.produce(raw, events(100))
    with pipelines.served():
        strict = pipelines.request(raw, stage("judge", "tests.support.agents:judge", marked, max_rejected="5 %"))
        with pytest.raises(PipelineFailedError, match=r"TooManyRejectedError: .*20 of 100 events rejected"):
            pipelines.run(strict)
        lenient = pipelines.request(raw, stage("judge", "tests.support.agents:judge", marked))
        with pytest.raises(PipelineFailedError, match="TooManyRejectedError"):
            pipelines.run(lenient)
        assert pipelines.run(lenient, again=True).stages[0].counts.consumed == 100


def test_a_window_is_redone_when_told_to_and_replaced(pipelines: Pipelines, runs: Runs) -> None:
    raw, marked = runs.topic("raw"), runs.topic("marked")
    runs.produce(raw, events(100))
    with pipelines.served():
        request = pipelines.request(raw, stage("mark", output=marked))
        pipelines.run(request)
        before = pipelines.result(request, "mark")
        again = pipelines.run(msgspec.structs.replace(request, rerun="redo"))
        after = pipelines.result(request, "mark")
        assert again.stages[0].reused == 0
        assert after.generation > before.generation
        assert sorted(r.id for r in runs.manifest(after.manifest)) == list(range(100))


def test_a_window_longer_than_an_activity_is_done_slice_after_slice(pipelines: Pipelines, runs: Runs) -> None:
    raw, marked = runs.topic("raw"), runs.topic("marked")
    runs.produce(raw, events(300, seconds=0.01))
    request = pipelines.request(raw, stage("mark", "tests.support.agents:dawdle", output=marked), timeout=3)
    with pipelines.served():
        id_ = pipelines.start(request)
        done = pipelines.done(id_).stages[0]
    assert done.slices >= 3
    assert sorted(r.id for r in runs.everything(marked)) == list(range(300))
    assert set(pipelines.attempts(id_)) == {1}, "the end of a slice is no failure"
    assert len(pipelines.history(id_)) <= 20 + 10 * done.slices
    assert {window.state for window in read_windows(runs.config, prefix=pipelines.prefix)} == {"finished"}


def test_slices_that_commit_nothing_end_the_window(pipelines: Pipelines, runs: Runs) -> None:
    raw, marked = runs.topic("raw"), runs.topic("marked")
    runs.produce(raw, events(4, seconds=30))
    request = pipelines.request(raw, stage("mark", "tests.support.agents:dawdle", output=marked), timeout=2)
    with pipelines.served():
        id_ = pipelines.start(request)
        with pytest.raises(PipelineFailedError, match=r"NoProgress: stage 'mark', shard 0of1: 3 slices of 1 s committed nothing"):
            pipelines.done(id_)
    assert set(pipelines.attempts(id_)) == {1}


def test_a_paused_workflow_begins_nothing_and_then_goes_on(pipelines: Pipelines, runs: Runs) -> None:
    raw, marked = runs.topic("raw"), runs.topic("marked")
    runs.produce(raw, events(300, seconds=0.01))
    request = pipelines.request(raw, stage("mark", "tests.support.agents:dawdle", output=marked), timeout=3)
    with pipelines.served():
        id_ = pipelines.start(request)
        wait_for(lambda: pipelines.progress(id_).stage, "the stage to begin")
        assert pipelines.pause(id_, True).paused
        wait_for(lambda: 0 < pipelines.progress(id_).done < 300, "the slice to end")
        slices = len(pipelines.attempts(id_))
        assert pipelines.progress(id_).paused
        assert len(pipelines.attempts(id_)) == slices
        assert not pipelines.pause(id_, False).paused
        assert pipelines.done(id_).stages[0].counts.consumed == 300


@pytest.mark.parametrize("arguments", [[{"spec": {}, "key": "w", "more": 1}], [{}], ["text"], [None], [], [{}, {}]])
def test_a_request_of_another_release_fails_and_does_not_hang(pipelines: Pipelines, arguments: list[object]) -> None:
    async def started(client: Client) -> str:
        id_ = f"{pipelines.prefix}/odd"
        return (await client.start_workflow("FactoryPipeline", args=arguments, id=id_, task_queue=pipelines.prefix)).id

    with pipelines.served():
        id_ = pipelines.ask(started)
        with pytest.raises(PipelineFailedError, match=r"missing required field|Expected `object`|positional argument"):
            pipelines.done(id_)


def test_an_empty_topic_is_a_window_like_any_other(pipelines: Pipelines, runs: Runs) -> None:
    raw, marked, judged = runs.topic("raw"), runs.topic("marked"), runs.topic("judged")
    request = pipelines.request(raw, stage("mark", output=marked, shards=3), stage("judge", "tests.support.agents:judge", judged, shards=3))
    with pipelines.served():
        assert [(s.shards, s.counts.consumed) for s in pipelines.run(request).stages] == [(1, 0), (1, 0)]


def test_a_name_that_no_ledger_takes_is_refused_at_once(pipelines: Pipelines, runs: Runs) -> None:
    request = pipelines.request(runs.topic("raw"), stage("mark", output=runs.topic("marked")))
    for key in ("a|b", "a\nb", "\udcff", "collector", "schedule"):
        with pytest.raises(ConfigurationError, match="key: "):
            PipelineRequest(request.spec, key=key)
    with pipelines.served():
        id_ = pipelines.start(of_spec(request, prefix="a|b"))
        with pytest.raises(PipelineFailedError, match=r"ConfigurationError: prefix: expected a printable name without '\|', got 'a\|b'"):
            pipelines.done(id_)


def test_what_is_more_than_the_server_takes_at_once_is_told_it_bit_by_bit(pipelines: Pipelines, runs: Runs) -> None:
    """A contract's text goes to each shard: four with 1.2 MB are more than one answer to the server may hold."""
    raw, valid = runs.topic("raw"), runs.topic("valid")
    runs.produce(raw, events(40))
    contract = {"name": "c", "description": "x" * 1_200_000, "id": "event_id", "schema": {"type": "object", "required": ["event_id"]}}
    check = stage("check", "validate", valid, shards=4, params={"contract": contract}, warn_if=("rows > 39",))
    with pipelines.served():
        done = pipelines.run(pipelines.request(raw, check)).stages[0]
    assert (done.shards, done.counts.consumed, done.counts.forwarded) == (4, 40, 40)
    (report,) = read_reports(runs.config, runs.prefix, prefix=runs.prefix)
    assert report.verdict == "WARN", "by the conditions of the stage"


def test_what_failed_for_good_may_be_mended_and_tried_again(pipelines: Pipelines, runs: Runs) -> None:
    raw, marked, kept = runs.topic("raw"), runs.topic("marked"), f"{runs.prefix}.kept"
    runs.produce(raw, events(100))
    request = pipelines.request(raw, stage("mark", output=marked), stage("keep", output=kept, shards=2), hold=600)
    with pipelines.served():
        id_ = pipelines.start(request)
        with pytest.raises(ConfigurationError, match="nothing waits for a retry"):
            pipelines.retry(id_)
        wait_for(lambda: len(pipelines.progress(id_).held) == 2, "both shards to fail")
        assert all(kept in error and "Error: " in error for error in pipelines.progress(id_).held)
        pipelines.retry(id_)  # nobody mended it
        wait_for(lambda: len(pipelines.progress(id_).held) == 2, "both shards to fail again")
        assert runs.topic("kept") == kept
        assert pipelines.retry(id_).held == ()
        done = pipelines.done(id_)
        assert pipelines.progress(id_).held == ()
    assert [(s.stage, s.reused, s.counts.consumed) for s in done.stages] == [("mark", 0, 100), ("keep", 0, 100)]
    assert sorted(r.id for r in runs.everything(kept)) == list(range(100))


def test_a_hold_ends_with_the_error_or_with_a_cancellation(pipelines: Pipelines, runs: Runs) -> None:
    raw = runs.topic("raw")
    runs.produce(raw, events(10))
    with pipelines.served():
        short = pipelines.start(pipelines.request(raw, stage("mark", output="no-such-topic"), hold=0.1))
        with pytest.raises(PipelineFailedError, match="'no-such-topic'"):
            pipelines.done(short)
        held = pipelines.start(pipelines.request(raw, stage("mark", output="no-such-topic"), key="held", hold=600))
        wait_for(lambda: pipelines.progress(held).held, "the stage to fail")
        pipelines.cancel(held)
        assert pipelines.is_over(held)


def test_a_cancellation_that_comes_as_a_stage_ends_well_begins_no_other_stage(pipelines: Pipelines) -> None:
    spec = PipelineSpec(pipeline=pipelines.prefix, task_queue=pipelines.prefix, stages=(stage("first", "ingest", "a"), stage("second")))
    with pipelines.served_slowly() as gate:
        id_ = pipelines.start(PipelineRequest(spec, key="w"))
        wait_for(lambda: gate.began, "the first stage")
        pipelines.ask(lambda client: clients.cancel(client, id_, wait=False))
        wait_for(lambda: pipelines.cancel_asked(id_), "the server to know")
        gate.opened.set()
        with pytest.raises(PipelineFailedError, match="cancelled"):
            pipelines.done(id_)
    assert gate.began == ["first"]


def test_who_waits_for_a_workflow_that_is_reset_gets_what_comes_of_it(pipelines: Pipelines) -> None:
    """To the server the one that it replaces was terminated. It can be cancelled as the one that was started."""
    spec = PipelineSpec(pipeline=pipelines.prefix, task_queue=pipelines.prefix, stages=(stage("first", "ingest", "a"),))
    first, second = (PipelineRequest(spec, key=key) for key in ("w", "x"))

    async def reset(client: Client, id_: str) -> None:
        execution = WorkflowExecution(workflow_id=id_, run_id=(await client.get_workflow_handle(id_).describe()).run_id)
        await client.workflow_service.reset_workflow_execution(
            ResetWorkflowExecutionRequest(
                namespace="default", workflow_execution=execution, reason="by hand", workflow_task_finish_event_id=4, request_id=id_
            )
        )

    async def waited(client: Client) -> tuple[PipelineDone, bool]:
        handles = [await clients.start(client, request) for request in (first, second)]
        waiting = asyncio.ensure_future(clients.outcome(handles[0]))
        await asyncio.to_thread(wait_for, lambda: len(gate.began) == 2, "both to begin")
        for handle in handles:
            await reset(client, handle.id)
        await asyncio.to_thread(wait_for, lambda: len(gate.began) == 4, "both to begin again")
        await clients.cancel(client, second.workflow_id, first_run=handles[1].first_execution_run_id or "", wait=False)
        await asyncio.to_thread(wait_for, lambda: pipelines.cancel_asked(second.workflow_id), "the server to know")
        gate.opened.set()
        with pytest.raises(PipelineFailedError) as raised:
            await clients.outcome(handles[1])
        return await waiting, raised.value.cancelled

    with pipelines.served_slowly(slots=4) as gate:
        done, cancelled = pipelines.ask(waited)
    assert done.stages[0].stage == "first"
    assert cancelled


def test_progress_is_told_in_lines_for_the_ui() -> None:
    done = StageDone("mark", 2, 2, 1, Counts(consumed=1000, forwarded=990, rejected=10))
    told = Progress("w", "keep", shards=4, shards_done=1, done=500, total=990, paused=True, stages=(done,), held=("AgentError: no",))
    assert told.text == (
        "- **mark**: 1,000 events, 990 forwarded, 10 rejected (done before)\n"
        "- **keep**: 500 of up to 990 events, 1 of 4 shards\n"
        "- paused\n"
        "- waits for a retry: AgentError: no"
    )
