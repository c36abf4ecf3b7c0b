"""Workflows that start pipelines: over each window of a span of time (a backfill), or over the one that a schedule's time ends."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from temporalio import workflow
from temporalio.common import SearchAttributeKey, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, ChildWorkflowError, WorkflowAlreadyStartedError

with workflow.unsafe.imports_passed_through():
    import msgspec

    from factory_agents.protocol import Interval
    from factory_agents.temporal.protocol import (
        BackfillDone,
        BackfillRequest,
        PipelineDone,
        PipelineRequest,
        ScheduledRequest,
    )
    from factory_agents.temporal.search import are_known, attributes_of
    from factory_agents.temporal.workflow import FAILURES, FactoryPipeline

__all__ = ["FactoryBackfill", "FactorySchedule", "run_window"]

_SCHEDULED = SearchAttributeKey.for_datetime("TemporalScheduledStartTime")
_MOST_FAILED = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


async def run_window(request: PipelineRequest) -> PipelineDone | None:
    """A window's own workflow, the same that anybody would start; None where that runs or has succeeded already."""
    spec = request.spec
    try:
        return await workflow.execute_child_workflow(
            FactoryPipeline.run,
            request,
            id=request.workflow_id,
            task_queue=spec.task_queue,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
            parent_close_policy=workflow.ParentClosePolicy.REQUEST_CANCEL,
            static_summary=f"{spec.pipeline} {request.window}",
            search_attributes=attributes_of(spec, request.interval) if are_known(workflow.info().typed_search_attributes) else None,
        )
    except WorkflowAlreadyStartedError:
        return None


@workflow.defn(name="FactorySchedule", failure_exception_types=FAILURES)
class FactorySchedule:
    """What a schedule starts: the pipeline over the last window that had ended ``delay`` before the scheduled time, late or not.

    So one that is triggered by hand, or a few seconds late by a jitter, does a whole window and reads nothing twice.
    """

    @workflow.run
    async def run(self, request: ScheduledRequest) -> PipelineDone | None:
        """Run it to its end."""
        scheduled: datetime = workflow.info().typed_search_attributes.get(_SCHEDULED) or workflow.info().start_time
        end, every = scheduled - timedelta(seconds=request.delay), timedelta(seconds=request.every)
        if workflow.patched("whole-windows"):
            end -= (end - _EPOCH) % every
        return await run_window(PipelineRequest(request.spec, Interval(end - every, end)))


@workflow.defn(name="FactoryBackfill", failure_exception_types=FAILURES)
class FactoryBackfill:
    """Each window of a span of time, so many at once. What was done before costs nothing; windows that failed are named at the end."""

    @workflow.init
    def __init__(self, request: BackfillRequest) -> None:
        self._done = request.done
        self._next = request.interval.start

    @workflow.query
    def progress(self) -> BackfillDone:
        """How far it is."""
        return self._done

    @workflow.run
    async def run(self, request: BackfillRequest) -> BackfillDone:
        """Run all of them; fails at the end where one of them did."""
        running: set[asyncio.Task[None]] = set()
        started = 0
        try:
            while self._next < request.interval.end and started < request.per_workflow and len(self._done.failed) < _MOST_FAILED:
                if len(running) >= request.at_once:
                    ended, rest = await workflow.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    await asyncio.gather(*ended)
                    running = set(rest)
                running.add(asyncio.create_task(self._window(request, self._take(request))))
                started += 1
            await asyncio.gather(*running)
        except asyncio.CancelledError:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            raise
        return self._conclude(request)

    def _take(self, request: BackfillRequest) -> Interval:
        start, end = self._next, self._next + timedelta(seconds=request.every)
        self._next = end
        return Interval(start, end)

    async def _window(self, request: BackfillRequest, interval: Interval) -> None:
        try:
            ran = await run_window(PipelineRequest(request.spec, interval))
        except ChildWorkflowError:
            self._done = msgspec.structs.replace(self._done, windows=self._done.windows + 1, failed=(*self._done.failed, interval.key))
            return
        known = self._done.known + (ran is None)
        self._done = msgspec.structs.replace(self._done, windows=self._done.windows + 1, known=known)

    def _conclude(self, request: BackfillRequest) -> BackfillDone:
        failed = sorted(self._done.failed)  # they end in any order
        if self._next < request.interval.end and len(failed) < _MOST_FAILED:
            rest = Interval(self._next, request.interval.end)
            workflow.continue_as_new(msgspec.structs.replace(request, interval=rest, done=self._done))
        if failed:
            shown = ", ".join(failed[:5]) + (f" and {len(failed) - 5} more" if len(failed) > 5 else "")
            stopped = f"; stopped before {self._next.isoformat()}" if self._next < request.interval.end else ""
            raise ApplicationError(
                f"{len(failed)} of {self._done.windows} windows failed: {shown}{stopped}; start the backfill again once they can succeed",
                type="BackfillFailed",
                non_retryable=True,
            )
        return self._done
