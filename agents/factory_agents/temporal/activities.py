"""The activities: plan a window, run a slice of an agent, look how far it is, judge a validation. None keeps anything of its own."""

from __future__ import annotations

import contextvars
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from temporalio import activity
from temporalio.exceptions import ApplicationError, CancelledError

from factory_agents import failpoints
from factory_agents.contracts import judge, merge_reports
from factory_agents.errors import AgentCrashedError, DeadlineError, FactoryError, StoppedError, ValidationFailedError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.cuts import plan_window
from factory_agents.kafka.failures import forget_failure, leave_failure, leave_verdict
from factory_agents.kafka.ledger import read_stage
from factory_agents.kafka.records import VerdictRecord
from factory_agents.protocol import AgentResult, AgentRun, Window, Work, scope_of
from factory_agents.run import LONGEST_MESSAGE, execute, failed_result
from factory_agents.runners.process import COMMAND, AgentProcess, child_environment
from factory_agents.runners.results import agent_error, check_result
from factory_agents.runtime.session import RunContext
from factory_agents.telemetry.tracing import OF_ITS_PROCESS
from factory_agents.temporal.lineage import Lineage
from factory_agents.temporal.protocol import Judgement, Planning, Slice, SliceOutcome

if TYPE_CHECKING:
    from factory_agents.telemetry.spans import Traces

__all__ = ["Activities", "Runner"]

log = logging.getLogger(__name__)

Runner = Literal["process", "thread"]

_BEAT_SECONDS = 1.0
_LOOK_SECONDS = 0.1
_CANCEL_SECONDS = 3.0  # that an agent has to commit and go once a beat's answer says that its workflow is cancelled: gone within 5
_PRIVATE = ("TEMPORAL_", *OF_ITS_PROCESS)  # the worker's own: an agent has no business with the server

_LEVELS = {"pass": logging.INFO, "warn": logging.WARNING, "fail": logging.ERROR}


class Activities:
    """What a worker offers.

    Args:
        runner: ``process`` runs each slice in a process of its own, which can be killed; ``thread`` in the worker's, half a second faster.
        grace: seconds that an agent's process has to commit and go when its slice is over or the worker stops.
        traces: what writes the worker's spans, if anything does: a run's is a part of its activity's.
        lineage: who is told what stages read and wrote, if anybody is.
    """

    def __init__(
        self, *, runner: Runner = "process", grace: float = 20.0, traces: Traces | None = None, lineage: Lineage | None = None
    ) -> None:
        self._run = partial(_run_process, grace=grace) if runner == "process" else partial(_run_thread, traces=traces)
        self._traces = traces
        self._lineage = lineage

    @property
    def all(self) -> Sequence[Callable[..., Any]]:
        """For a Worker."""
        return [self.plan_window, self.run_slice, self.read_position, self.judge_stage]

    @activity.defn(name="plan_window", no_thread_cancel_exception=True)
    def plan_window(self, planning: Planning) -> Window:
        """The window that the pipeline reads: planned now if nobody has planned it before."""
        with _failures(), _Pulse():
            return plan_window(
                KafkaConfig.from_env(),
                pipeline=planning.pipeline,
                topic=planning.topic,
                interval=planning.interval,
                run_key=planning.key,
                prefix=planning.prefix,
                accept_loss=planning.accept_loss,
                keep=planning.keep_windows,
                asked=planning.asked,
            )

    @activity.defn(name="run_slice", no_thread_cancel_exception=True)
    def run_slice(self, request: Slice) -> SliceOutcome:
        """Run the agent until its window is done, its time is over, or it is to go; whatever is committed stays, and is gone on with."""
        with _failures(request.run), _Pulse(request.seconds) as pulse:
            try:
                if self._lineage is not None:
                    self._lineage.began(request.run)
                result = self._run(self._as_part(request.run), pulse)
                if self._lineage is not None:
                    self._lineage.done(request.run, result)
                return SliceOutcome(result.counts.consumed, result.generation, _slim(result))
            except FactoryError as error:
                if activity.is_cancelled():
                    raise CancelledError(str(error)) from error
                if not _is_pause(error, pulse):
                    if self._lineage is not None:
                        self._lineage.failed(request.run)
                    raise
                log.info("slice over: %s", error)
                return _position(request.run)

    def _as_part(self, run: AgentRun) -> AgentRun:
        """The run as a part of the activity's span."""
        return run if self._traces is None else msgspec.structs.replace(run, traceparent=self._traces.current)

    @activity.defn(name="read_position", no_thread_cancel_exception=True)
    def read_position(self, request: Slice) -> SliceOutcome:
        """How far the ledger says the work is."""
        with _failures(request.run), _Pulse():
            return _position(request.run)

    @activity.defn(name="judge_stage", no_thread_cancel_exception=True)
    def judge_stage(self, judgement: Judgement) -> None:
        """Judge the merged report of a validate stage; bad data fails for good, and the ledger says so."""
        with _failures(), _Pulse():
            _judge(judgement)


class _Pulse:
    """Beats while an activity runs, so that one whose worker dies is soon tried again by another.

    It learns when a slice is to go: cancelled, the worker stopping, or its time over.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.leaving = threading.Event()
        self._left = self._cancelled = math.inf
        self._ends = time.monotonic() + seconds
        self._over = threading.Event()
        context = contextvars.copy_context()  # in which the SDK knows the activity
        self._thread = threading.Thread(target=lambda: context.run(self._beat), name="pulse", daemon=True)

    def __enter__(self) -> _Pulse:
        self._thread.start()
        failpoints.hit("activity.begun")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        last = 0.0
        while not self._over.wait(_LOOK_SECONDS):
            now = time.monotonic()
            if now - last >= _BEAT_SECONDS:
                last = now
                with suppress(Exception):  # a worker that was busy or asleep for ten seconds takes none: the next one may arrive
                    activity.heartbeat()
            if activity.is_cancelled():
                self._cancelled = min(self._cancelled, now)
            if now >= min(self._ends, self._cancelled) or activity.is_worker_shutdown():
                self._left = min(self._left, now)
                self.leaving.set()

    def is_late(self, grace: float) -> bool:
        """Whether the agent, asked to go, should be gone: ``grace`` seconds after that, or earlier where its workflow is cancelled."""
        return time.monotonic() > min(self._left + grace, self._cancelled + _CANCEL_SECONDS)


def _run_thread(run: AgentRun, pulse: _Pulse, *, traces: Traces | None) -> AgentResult:
    return execute(RunContext(KafkaConfig.from_env(), stop=pulse.leaving.is_set, sliced=True, traces=traces), run)


def _run_process(run: AgentRun, pulse: _Pulse, *, grace: float) -> AgentResult:
    config, began = KafkaConfig.from_env(), time.time()
    own = {name: os.environ[name] for name in ("DATABASE_URL",) if name in os.environ}
    environment = child_environment(os.environ, private=_PRIVATE, secrets=config.to_env() | own, extra={}, python_path=[Path.cwd()])
    process = AgentProcess(run, environment, grace=grace, command=(*COMMAND, "--slice"))
    with _ended_in_time(process, pulse, grace):
        try:
            result = process.run()
        except AgentCrashedError as error:
            if not pulse.leaving.is_set():
                name = run.agent.name.rpartition(":")[2]
                leave_failure(config, run.work, error=error, began=began, agent=name, run_id=run.run_id, prefix=run.prefix)
            raise
    check_result(result, run)
    if result.status != "success":
        raise agent_error(result)
    return result


@contextmanager
def _ended_in_time(process: AgentProcess, pulse: _Pulse, grace: float) -> Iterator[None]:
    """Tell the process to go once the slice is to: another thread does, as this one reads what the process says."""
    over = threading.Event()

    def watch() -> None:
        asked = False
        while not over.wait(_LOOK_SECONDS):
            if pulse.is_late(grace):
                process.stop(0)
                return
            if pulse.leaving.is_set() and not asked:
                asked = True
                process.ask_to_stop()

    watcher = threading.Thread(target=watch, name="watcher", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _is_pause(error: FactoryError, pulse: _Pulse) -> bool:
    """Whether a run ended because its slice did: it said so, or it was killed as it would not go."""
    return isinstance(error, StoppedError | DeadlineError) or (isinstance(error, AgentCrashedError) and pulse.leaving.is_set())


def _position(run: AgentRun) -> SliceOutcome:
    window = run.window
    start = window.ledger_offset if window is not None and window.pipeline == run.pipeline else 0
    record = read_stage(KafkaConfig.from_env(), run.work, prefix=run.prefix, start=start)
    if record is None:
        return SliceOutcome(0)
    done = record.progress or record.result
    return SliceOutcome(done.counts.consumed if done is not None else 0, record.generation)


def _slim(result: AgentResult) -> AgentResult:
    """Without what nobody downstream reads: a workflow's history is kept, and its payloads are bounded."""
    return msgspec.structs.replace(result, input=None, reasons=())


@contextmanager
def _failures(run: AgentRun | None = None) -> Iterator[None]:
    """What is raised as the server takes it: by its class, and not tried again where that can't help."""
    try:
        yield
    except (ApplicationError, CancelledError):
        raise
    except Exception as error:
        info = failed_result(run, error).error
        if not isinstance(error, FactoryError):
            log.exception("unexpected error; please report it")
        if info is None:
            raise
        # The words of a FactoryError are all there is to say: of those of its cause, which would come last, a server takes no more either.
        cause = None if isinstance(error, FactoryError) or len(str(error)) > LONGEST_MESSAGE else error
        raise ApplicationError(info.message, type=info.type, non_retryable=not info.retriable) from cause


def _judge(judgement: Judgement) -> None:
    first, began = judgement.results[0], time.time()
    report = merge_reports([r.report or {} for r in judgement.results])
    verdict = judge(report, judgement.fail_if, judgement.warn_if)
    for line in verdict.lines:
        log.log(_LEVELS[line.outcome], "%s", line.text)
    work = Work(first.pipeline, first.stage, first.key, scope=scope_of(first.origin, first.instance))
    config = KafkaConfig.from_env()
    own = verdict.checks[len(report["checks"]) :]
    if own or first.reused:
        of = (first.pipeline, first.stage, first.key, first.stage, first.generation, int(began * 1000), work.scope)
        leave_verdict(config, VerdictRecord(*of, own), prefix=judgement.prefix)
    if not verdict.failure:
        if first.reused or report["shards"] > 1:  # else the agent's own record took back what was said before
            forget_failure(config, work, start=first.ledger_offset, prefix=judgement.prefix)
        return
    error = ValidationFailedError(verdict.failure)
    leave_failure(config, work, error=error, began=began, agent=first.agent, run_id=judgement.run_id, prefix=judgement.prefix)
    raise error
