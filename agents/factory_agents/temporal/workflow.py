"""The workflow: plan a window, then stage after stage over it, each shard in as many slices as it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    import msgspec

    from factory_agents.contracts import merge_reports
    from factory_agents.errors import FactoryError
    from factory_agents.protocol import AgentResult, AgentRun, Counts, Shard, Window, merge_results, shard_window
    from factory_agents.stage_plan import plan_id
    from factory_agents.temporal.protocol import (
        VALIDATE,
        Carried,
        Judgement,
        PipelineDone,
        PipelineRequest,
        Planning,
        Progress,
        Slice,
        SliceOutcome,
        StageDone,
        StageSpec,
    )
    from factory_agents.temporal.search import STAGE, are_known

__all__ = ["FAILURES", "FactoryPipeline"]

FAILURES = (FactoryError, TypeError)
"""What fails a workflow; it would hang at any other error. A TypeError is what a start with too few or too many arguments raises."""

_T = TypeVar("_T")
Rerun = Literal["reuse", "redo"]

_ATTEMPTS = 3  # at what fails; the end of a slice is no failure
_SHORT = timedelta(minutes=5)
_MARGIN = 30.0  # seconds that an agent has at the end of its slice to commit, and its answer to arrive
_MOST_IDLE = 3
_MOST_AT_ONCE = 2_000_000
_MOMENT = timedelta(milliseconds=10)


@workflow.defn(name="FactoryPipeline", failure_exception_types=FAILURES)
class FactoryPipeline:
    """A pipeline over one window. Whatever becomes of workers, server or workflow: what is done is in the ledger and is done once."""

    @workflow.init
    def __init__(self, request: PipelineRequest) -> None:
        carried = request.carried
        self._request = request
        self._progress = Progress(request.window, stages=carried.stages, paused=carried.paused) if carried else Progress(request.window)
        self._held: list[str] = []
        self._retries = 0
        self._begun: list[tuple[StageSpec, Window | None]] = []
        self._slices = 0
        self._compensating = False
        self._sent_at = self._sent = 0
        interval = timedelta(seconds=request.spec.retry_interval)
        self._retry = RetryPolicy(initial_interval=interval, maximum_attempts=_ATTEMPTS)

    @workflow.query
    def progress(self) -> Progress:
        """How far it is."""
        return self._progress

    @workflow.update
    def pause(self, paused: bool) -> Progress:
        """Begin no further slice, or go on."""
        self._tell(paused=paused)
        return self._progress

    @workflow.update
    def retry(self) -> Progress:
        """Try again what failed for good and is held; refused where nothing is."""
        self._retries += 1
        self._held.clear()  # here, so that the answer says so
        self._tell(held=())
        return self._progress

    @retry.validator
    def _check_retry(self) -> None:
        if not self._held:
            raise ApplicationError("nothing waits for a retry", type="NothingHeld", non_retryable=True)

    @workflow.run
    async def run(self, request: PipelineRequest) -> PipelineDone:
        """Plan, then stage after stage; fails where a stage fails for good, after what its stages did outside was taken back."""
        carried, stages = request.carried, request.spec.stages
        try:
            if carried is not None:
                self._begun = list(zip(stages, carried.inputs[:-1], strict=False))
                window = carried.inputs[-1]
            else:
                window = await self._or_held(self._plan) if request.spec.topic else None
            for stage in stages[len(self._begun) :]:
                self._begun.append((stage, window))
                results = await self._stage(stage, window, carried=carried)
                carried = None
                if stage is not stages[-1]:
                    window = merge_results(results)
        except (Exception, asyncio.CancelledError) as error:
            await asyncio.shield(self._compensate(error))
            raise
        return PipelineDone(request.spec.pipeline, request.window, self._progress.stages)

    async def _compensate(self, error: BaseException) -> None:
        """Run the compensations of the stages that have begun, the last one's first; one that fails stops none of the others."""
        self._compensating = True
        failed: list[str] = []
        for stage, window in reversed(self._begun):
            if stage.undo is None:
                continue
            try:
                await self._stage(stage.undo, window, rerun="redo")
            except (ActivityError, ApplicationError) as problem:
                failed.append(f"{stage.undo.name}: {_words(problem)}")
        if failed:
            why = "cancelled" if isinstance(error, asyncio.CancelledError) else _words(error)
            raise ApplicationError(
                f"not everything was taken back: {'; '.join(failed)}; after: {why}", type="CompensationFailed", non_retryable=True
            ) from None  # its words are in this one

    async def _not_undone(self, stage: StageSpec, undo: StageSpec, runs: Sequence[AgentRun]) -> list[AgentRun]:
        """The stage's runs; one whose work was taken back since it was done is done again."""

        async def checked(run: AgentRun) -> AgentRun:
            did, took_back = await asyncio.gather(
                self._position(run, f"{stage.name}: how far it is"),
                self._position(msgspec.structs.replace(run, stage=undo.name), f"{undo.name}: how far it is"),
            )
            return msgspec.structs.replace(run, rerun="redo") if took_back.generation > did.generation else run

        return list(await asyncio.gather(*(checked(run) for run in runs)))

    async def _plan(self) -> Window:
        request, spec = self._request, self._request.spec
        asked = workflow.info().workflow_start_time
        planning = Planning(
            spec.pipeline, spec.topic, request.interval, request.key, spec.prefix, spec.accept_loss, spec.keep_windows, asked
        )
        window = await self._short("plan_window", planning, Window, f"window of {spec.topic}")
        return msgspec.structs.replace(window, codec=spec.codec)

    async def _stage(
        self, stage: StageSpec, window: Window | None, *, rerun: Rerun | None = None, carried: Carried | None = None
    ) -> list[AgentResult]:
        runs = self._runs(stage, window, rerun or self._request.rerun)
        if stage.undo is not None:
            runs = await self._not_undone(stage, stage.undo, runs)
        total = window.size if window is not None else -1
        self._tell(stage=stage.name, shards=len(runs), shards_done=0, done=0, total=total)
        self._slices = carried.slices if carried is not None else 0
        if are_known(workflow.info().typed_search_attributes):
            workflow.upsert_search_attributes([STAGE.value_set(stage.name)])
        known = carried.results if carried is not None else (None,) * len(runs)
        ended = await asyncio.gather(*(self._shard_or_held(stage, run, done) for run, done in zip(runs, known, strict=True)))
        results = [result for result in ended if result is not None]
        if len(results) < len(ended):
            self._go_on_afresh(ended)
        if stage.agent == VALIDATE:
            judgement = Judgement((_whole(results),), self._request.spec.prefix, runs[0].run_id, stage.fail_if, stage.warn_if)
            await self._short("judge_stage", judgement, None, stage.name)
        self._tell(stages=(*self._progress.stages, _stage_done(stage, results, self._slices)))
        return results

    async def _shard_or_held(self, stage: StageSpec, run: AgentRun, done: AgentResult | None) -> AgentResult | None:
        return done if done is not None else await self._or_held(partial(self._shard, stage, run))

    def _go_on_afresh(self, results: Sequence[AgentResult | None]) -> NoReturn:
        """In another workflow of the same id, with an empty history: the server ends one that has grown too long."""
        heed_cancellation()
        inputs = [window if stage.undo is not None else None for stage, window in self._begun[:-1]]
        carried = Carried(
            stages=self._progress.stages,
            inputs=(*inputs, self._begun[-1][1]),
            results=tuple(results),
            slices=self._slices,
            paused=self._progress.paused,
        )
        workflow.continue_as_new(msgspec.structs.replace(self._request, carried=carried))

    async def _or_held(self, step: Callable[[], Awaitable[_T]]) -> _T:
        """Do it; where it fails for good, and the pipeline says so, wait until somebody mended it. Raises its error after the wait."""
        hold = self._request.spec.hold
        while True:
            try:
                return await step()
            except (ActivityError, ApplicationError) as error:
                if not hold or is_cancelled_exception(error):
                    raise
                await self._hold(error, hold)

    async def _hold(self, error: ActivityError | ApplicationError, seconds: float) -> None:
        failure, before = _words(error), self._retries
        self._held.append(failure)
        self._tell(held=tuple(self._held))
        try:
            await workflow.wait_condition(lambda: self._retries > before, timeout=seconds)
        except TimeoutError:
            raise error from None
        finally:
            if failure in self._held:
                self._held.remove(failure)
            self._tell(held=tuple(self._held))

    def _runs(self, stage: StageSpec, window: Window | None, rerun: Rerun) -> list[AgentRun]:
        """One a shard. What names the work (pipeline, stage, window, shard, origin) is what any orchestrator of this pipeline says."""
        request, spec, info = self._request, self._request.spec, workflow.info()
        run = AgentRun(
            pipeline=spec.pipeline,
            stage=stage.name,
            agent=stage.ref,
            params=stage.params,
            output_topic=stage.output_topic,
            output_codec=stage.output_codec,
            dead_letter_topic=stage.dead_letter_topic,
            run_id=f"{info.workflow_id} {info.first_execution_run_id}",
            rerun=rerun,
            accept_loss=spec.accept_loss,
            max_rejected=stage.max_rejected,
            deadline_seconds=spec.timeout,
            chunk_records=spec.chunk_records,
            prefix=spec.prefix,
            keep_windows=spec.keep_windows,
        )
        if window is None:
            return [msgspec.structs.replace(run, interval=request.interval, name=request.key)]
        parts = shard_window(window, stage.shards)
        plan = plan_id(window, len(parts))
        return [
            msgspec.structs.replace(run, window=part, shard=Shard(i, len(parts)), plan=plan, origin=window.origin, instance=window.instance)
            for i, part in enumerate(parts)
        ]

    async def _shard(self, stage: StageSpec, run: AgentRun) -> AgentResult | None:
        """Slice after slice, until the window is done, or (None) the workflow's history is long. Raises what ended it for good."""
        position, idle, done = (0, 0), 0, 0
        while True:
            await workflow.wait_condition(lambda: not self._progress.paused)
            if not self._compensating:
                heed_cancellation()
            self._slices += 1
            try:
                outcome = await self._slice(stage, run)
            except ActivityError as error:
                outcome = await self._look(run, error)
                if outcome.position == position:
                    raise
            more = (outcome.result.counts.consumed if outcome.result is not None else outcome.done) - done
            self._tell(done=self._progress.done + more, shards_done=self._progress.shards_done + (outcome.result is not None))
            if outcome.result is not None:
                return outcome.result
            idle = idle + 1 if outcome.position == position else 0
            if idle >= _MOST_IDLE:
                raise ApplicationError(
                    f"stage {stage.name!r}, shard {run.shard.key}: {idle} slices of {self._seconds:g} s committed nothing; where one "
                    "event, or what the agent begins with, takes longer, raise the pipeline's timeout",
                    type="NoProgress",
                    non_retryable=True,
                )
            position, done = outcome.position, outcome.done
            if not self._compensating and workflow.info().is_continue_as_new_suggested() and workflow.patched("goes-on-afresh"):
                return None

    def _tell(self, **changes: Any) -> None:
        self._progress = msgspec.structs.replace(self._progress, **changes)
        workflow.set_current_details(self._progress.text)

    @property
    def _seconds(self) -> float:
        """How long an agent runs of the time that its activity has."""
        timeout = self._request.spec.timeout
        return timeout - min(_MARGIN, timeout / 2)

    async def _slice(self, stage: StageSpec, run: AgentRun) -> SliceOutcome:
        spec = self._request.spec
        await self._room(len(msgspec.json.encode(run)))
        outcome: SliceOutcome = await workflow.execute_activity(
            "run_slice",
            Slice(run, self._seconds),
            result_type=SliceOutcome,
            task_queue=stage.task_queue or None,
            start_to_close_timeout=timedelta(seconds=spec.timeout),
            heartbeat_timeout=timedelta(seconds=spec.heartbeat_timeout),
            retry_policy=self._retry,
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=f"{stage.name} {run.key} shard {run.shard.index + 1} of {run.shard.of}",
        )
        return outcome

    async def _room(self, size: int) -> None:
        """Wait until so many bytes may be told the server: it ends a workflow that tells it more than 4 MB in one answer."""
        while True:
            at = workflow.info().get_current_history_length()
            if at != self._sent_at:
                self._sent_at, self._sent = at, 0
            if not self._sent or self._sent + size <= _MOST_AT_ONCE:
                self._sent += size
                return
            await workflow.sleep(_MOMENT)

    async def _look(self, run: AgentRun, error: ActivityError) -> SliceOutcome:
        """How far the work is after its attempts failed; raises the error where no further one would help.

        Workers that die once in a while must not end a window on which each of them got a little further.
        """
        cause = error.cause
        if isinstance(cause, CancelledError) or (isinstance(cause, ApplicationError) and cause.non_retryable):
            raise error
        return await self._position(run, f"{run.stage}: how far it is")

    async def _position(self, run: AgentRun, summary: str) -> SliceOutcome:
        return await self._short("read_position", Slice(run, 0), SliceOutcome, summary)

    async def _short(self, name: str, argument: object, result_type: type[_T] | None, summary: str) -> _T:
        value: _T = await workflow.execute_activity(
            name,
            argument,
            result_type=result_type,
            start_to_close_timeout=_SHORT,
            heartbeat_timeout=timedelta(seconds=self._request.spec.heartbeat_timeout),
            retry_policy=self._retry,
            summary=summary,
        )
        return value


def heed_cancellation() -> None:
    """Raise what a cancellation raises, where one was asked for: an activity or a child that ended well meanwhile has swallowed it."""
    if workflow.cancellation_reason() is not None:
        raise asyncio.CancelledError


def _words(error: BaseException) -> str:
    cause = error.cause if isinstance(error, ActivityError) else error
    kind = f"{cause.type}: " if isinstance(cause, ApplicationError) and cause.type else ""
    return f"{kind}{getattr(cause, 'message', None) or error}"


def _whole(results: Sequence[AgentResult]) -> AgentResult:
    """The first result with the report of all shards, without what no judgement reads: payloads are bounded."""
    try:
        report = merge_reports([result.report or {} for result in results])
    except LookupError as error:
        raise ApplicationError(
            f"the reports of {results[0].stage!r} are of different releases and can't be merged ({error}); do the window again (--redo)",
            type="ContractError",
            non_retryable=True,
        ) from error
    newest = max(result.generation for result in results)
    return msgspec.structs.replace(results[0], report=report, generation=newest, manifest=None, dead_letters=None)


def _stage_done(stage: StageSpec, results: Sequence[AgentResult], slices: int) -> StageDone:
    counts = Counts()
    for result in results:
        counts.add(result.counts)
    return StageDone(
        stage.name,
        len(results),
        sum(result.reused for result in results),
        slices,
        counts,
        stage.output_topic,
        results[0].table,
        tuple(note for result in results for note in result.notes),
    )
