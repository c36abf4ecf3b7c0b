"""Starts pipelines on a Temporal server and asks after them; where it is, the ``TEMPORAL_*`` variables and its profiles say."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from temporalio import exceptions
from temporalio.api.enums.v1 import IndexedValueType, PendingActivityState, PendingWorkflowTaskState, TaskQueueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, DescribeTaskQueueRequest
from temporalio.client import (
    Client,
    RPCTimeoutOrCancelledError,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
)
from temporalio.common import SearchAttributeIndexedValueType, TypedSearchAttributes, WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.envconfig import ClientConfig
from temporalio.exceptions import ApplicationError, CancelledError, TerminatedError, WorkflowAlreadyStartedError
from temporalio.runtime import LogForwardingConfig, LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RPCError, RPCStatusCode

from factory_agents.errors import ConfigurationError, FactoryError, UnavailableError
from factory_agents.telemetry import logs_json
from factory_agents.temporal.converter import data_converter
from factory_agents.temporal.protocol import (
    Arrived,
    BackfillDone,
    BackfillRequest,
    Collected,
    CollectRequest,
    PipelineDone,
    PipelineRequest,
    PipelineSpec,
    Progress,
    RunStatus,
    ScheduledRequest,
)
from factory_agents.temporal.search import ATTRIBUTES, attributes_of
from factory_agents.temporal.traces import interceptors

if TYPE_CHECKING:
    from factory_agents.telemetry.spans import Traces

__all__ = [
    "MOST_MISSED",
    "NotFoundError",
    "PipelineFailedError",
    "RefusedError",
    "RunningError",
    "announce",
    "apply_schedule",
    "cancel",
    "check_namespace",
    "connect",
    "delete_schedule",
    "handle_of",
    "look",
    "outcome",
    "pause",
    "progress",
    "register_attributes",
    "retry",
    "start",
    "start_backfill",
    "unserved",
    "waited_for",
]

WORKFLOW, BACKFILL, SCHEDULE, COLLECTOR = "FactoryPipeline", "FactoryBackfill", "FactorySchedule", "FactoryCollector"

MOST_MISSED = 1000
"""Windows that a server starts when it comes back: its own limit."""

_T = TypeVar("_T")

_QUERY_PATIENCE = timedelta(seconds=3)
_ANSWER = timedelta(seconds=10)
_LATE = (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED)
_WRONG = (
    RPCStatusCode.INVALID_ARGUMENT,
    RPCStatusCode.NOT_FOUND,
    RPCStatusCode.ALREADY_EXISTS,
    RPCStatusCode.FAILED_PRECONDITION,
    RPCStatusCode.UNIMPLEMENTED,
)
"""Answers about what was asked. All others may pass: a server that dies in the middle of an answer makes an INTERNAL or UNKNOWN of it."""
_KINDS = {
    SearchAttributeIndexedValueType.KEYWORD: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
    SearchAttributeIndexedValueType.DATETIME: IndexedValueType.INDEXED_VALUE_TYPE_DATETIME,
}
_WANTED = {key.name: _KINDS[key.indexed_value_type] for key in ATTRIBUTES}
_TOLD_ENOUGH = "limit for signal"  # 10,000 for one workflow, by default
_REFUSED = (RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED)


class PipelineFailedError(FactoryError):
    """A workflow ended without its pipeline's result; the message begins with the error's class in the agent.

    ``retriable``: whether another workflow over the window may succeed with nothing changed; ``cancelled``: whether somebody ended it.
    """

    def __init__(self, message: str, *, retriable: bool = False, cancelled: bool = False) -> None:
        super().__init__(message)
        self.retriable = retriable
        self.cancelled = cancelled


class NotFoundError(ConfigurationError):
    """There is no workflow of this id."""


class RunningError(ConfigurationError):
    """The window is to be done again, and a workflow of it still runs."""


class RefusedError(ConfigurationError):
    """The server takes nothing from this client: a right or the namespace is missing, or its key is no longer good."""


async def connect(profile: str = "", *, traces: Traces | None = None) -> Client:
    """A client of the server that ``TEMPORAL_ADDRESS`` and its like name, else of the one on this machine at port 7233.

    ``TEMPORAL_NAMESPACE``, ``TEMPORAL_API_KEY`` and ``TEMPORAL_TLS…`` are Temporal's own; so is the file that ``TEMPORAL_CONFIG_FILE``
    names, with its profiles. ``profile`` chooses one of them, ``traces`` writes the spans of what is asked. Raises UnavailableError where
    it doesn't answer, ConfigurationError for settings that can't be used.
    """
    try:
        settings = ClientConfig.load_client_connect_config(profile=profile or None)
    except Exception as error:  # the SDK's own, RuntimeError for most
        raise ConfigurationError(f"Temporal's settings (TEMPORAL_…) can't be used: {error}") from error
    where = settings.setdefault("target_host", "localhost:7233")
    if "://" in where:
        raise ConfigurationError(f"Temporal's address: expected host:port in TEMPORAL_ADDRESS, without a scheme, got {where!r}")
    try:
        return await Client.connect(**settings, data_converter=data_converter, interceptors=interceptors(traces), runtime=_runtime())
    except ValueError as error:
        raise ConfigurationError(f"Temporal's address: expected host:port in TEMPORAL_ADDRESS, got {where!r}: {error}") from error
    except (RPCError, RuntimeError) as error:
        raise UnavailableError(
            f"Temporal at {where} doesn't answer: {error}; set TEMPORAL_ADDRESS, or run `factory sandbox up --with temporal`"
        ) from error


@cache
def _forwarding() -> Runtime:
    to = LogForwardingConfig(logging.getLogger("temporalio.core"))
    level = TelemetryFilter(core_level="WARN", other_level="ERROR")
    return Runtime(telemetry=TelemetryConfig(logging=LoggingConfig(level, forwarding=to)))


def _runtime() -> Runtime | None:
    """The SDK's core, which has a log of its own: where this process's log is JSON lines, that is a part of it."""
    return _forwarding() if logs_json() else None


async def check_namespace(client: Client) -> None:
    """Raise RefusedError where the namespace isn't there or isn't this client's, UnavailableError where nobody answers."""
    with _rpc_errors(f"namespace {client.namespace!r}", missing=RefusedError):
        await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))


async def start(client: Client, request: PipelineRequest, *, again: bool = False) -> WorkflowHandle[Any, PipelineDone]:
    """Start a pipeline over a window, or give the workflow that runs it or has run it; raises ConfigurationError where that one failed.

    ``again``: start another after one that failed, which goes on where that ended; the handle of one that was there before has no
    ``first_execution_run_id`` then. A request to redo the work always starts another.
    """
    reuse = WorkflowIDReusePolicy.REJECT_DUPLICATE
    if again:
        reuse = WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY
    if request.rerun == "redo":
        reuse = WorkflowIDReusePolicy.ALLOW_DUPLICATE
    told = again or request.rerun == "redo"
    conflict = WorkflowIDConflictPolicy.FAIL if told else WorkflowIDConflictPolicy.USE_EXISTING
    spec, id_ = request.spec, request.workflow_id
    with _rpc_errors(f"starting {id_}", missing=RefusedError):  # its namespace
        try:
            started = await _with_attributes(
                attributes_of(spec, request.interval),
                lambda attributes: client.start_workflow(
                    WORKFLOW,
                    request,
                    id=id_,
                    task_queue=spec.task_queue,
                    id_reuse_policy=reuse,
                    id_conflict_policy=conflict,
                    result_type=PipelineDone,
                    static_summary=f"{spec.pipeline} {request.window}",
                    search_attributes=attributes,
                ),
            )
        except WorkflowAlreadyStartedError:
            if request.rerun == "redo":
                raise RunningError(f"workflow {id_} is running: wait for its end, or cancel it, before the work is redone") from None
            return handle_of(client, id_)
    return handle_of(client, id_, started.first_execution_run_id or "")


async def _with_attributes(attributes: TypedSearchAttributes, start: Callable[[TypedSearchAttributes | None], Awaitable[_T]]) -> _T:
    """Start with the attributes, or without any where the server doesn't know them."""
    try:
        return await start(attributes)
    except RPCError as error:
        if error.status != RPCStatusCode.INVALID_ARGUMENT or "search attribute" not in error.message.lower():
            raise
    return await start(None)


async def register_attributes(client: Client) -> None:
    """Let the server know the attributes that pipelines are found by, if it doesn't; raises a FactoryError where it won't have them."""
    with _rpc_errors("registering search attributes"):
        known = await _registered(client)
        others = sorted(name for name, kind in _WANTED.items() if known.get(name, kind) != kind)
        if others:
            raise ConfigurationError(f"the server has search attributes of these names with other types: {', '.join(others)}")
        lacking = _WANTED.keys() - known
        if not lacking:
            return
        request = AddSearchAttributesRequest(namespace=client.namespace)
        request.search_attributes.update({name: _WANTED[name] for name in lacking})
        try:
            await client.operator_service.add_search_attributes(request)
        except RPCError as error:
            if error.status != RPCStatusCode.ALREADY_EXISTS:  # another worker was first
                raise


async def _registered(client: Client) -> dict[str, IndexedValueType.ValueType]:
    found = await client.operator_service.list_search_attributes(ListSearchAttributesRequest(namespace=client.namespace))
    return dict(found.custom_attributes)


async def outcome(handle: WorkflowHandle[Any, _T]) -> _T:
    """Wait for the end; raises PipelineFailedError where that isn't success.

    A workflow that is terminated while another goes on under its id isn't over: whoever resets one does that.
    """
    with _rpc_errors(f"waiting for {handle.id}"):
        while True:
            try:
                return await handle.result()
            except WorkflowFailureError as error:
                if isinstance(error.cause, TerminatedError) and (await handle.describe()).close_time is None:
                    continue
                cancelled = isinstance(_causes(error)[-1], CancelledError)
                raise PipelineFailedError(
                    f"workflow {handle.id}: {_root(error)}", retriable=_may_pass(error), cancelled=cancelled
                ) from error


async def unserved(client: Client, queues: Iterable[str]) -> list[str]:
    """Those of the task queues that no worker has asked for tasks in the last minutes; none where the server won't say."""
    found = []
    for queue in sorted(set(queues)):
        request = DescribeTaskQueueRequest(
            namespace=client.namespace, task_queue=TaskQueue(name=queue), task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY
        )
        with suppress(RPCError):
            if not (await client.workflow_service.describe_task_queue(request)).pollers:
                found.append(queue)
    return found


async def waited_for(client: Client, id_: str) -> set[str]:
    """The task queues in which tasks of a workflow, its own or an activity's, wait for a worker."""
    with _rpc_errors(f"asking {id_}"):
        found = await client.get_workflow_handle(id_).describe()
    pending, waiting = found.raw_description.pending_activities, PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
    queues = {each.activity_options.task_queue.name for each in pending if each.state == waiting}
    if found.raw_description.pending_workflow_task.state == PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_SCHEDULED:
        queues.add(found.task_queue)
    return queues - {""}


def handle_of(client: Client, id_: str, first_run: str = "") -> WorkflowHandle[Any, PipelineDone]:
    """A pipeline's workflow by its id; with ``first_run`` only the one that began with that run is cancelled by it."""
    return client.get_workflow_handle(id_, result_type=PipelineDone, first_execution_run_id=first_run or None)


async def start_backfill(client: Client, request: BackfillRequest) -> WorkflowHandle[Any, BackfillDone]:
    """Start a backfill, or give the one of this span that runs."""
    id_ = f"{request.spec.pipeline}/backfill/{request.interval.key}"
    with _rpc_errors(f"starting {id_}", missing=RefusedError):
        return await _with_attributes(
            attributes_of(request.spec, request.interval),
            lambda attributes: client.start_workflow(
                BACKFILL,
                request,
                id=id_,
                task_queue=request.spec.task_queue,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                result_type=BackfillDone,
                static_summary=f"{request.spec.pipeline}: backfill of {request.interval.key}",
                search_attributes=attributes,
            ),
        )


async def announce(client: Client, request: CollectRequest, word: Arrived) -> str:
    """Tell the pipeline's collector that events have come, and start it where none runs; its id.

    Raises UnavailableError where the server doesn't answer, or lets the collector be told no more before its window has ended.
    """
    id_ = f"{request.spec.pipeline}/collector"
    with _rpc_errors(f"signalling {id_}", missing=RefusedError, passing=_TOLD_ENOUGH):
        handle = await _with_attributes(
            attributes_of(request.spec),
            lambda attributes: client.start_workflow(
                COLLECTOR,
                request,
                id=id_,
                task_queue=request.spec.task_queue,
                start_signal="arrived",
                start_signal_args=[word],
                static_summary=f"{request.spec.pipeline}: a window for {request.count:,} events or {request.age:g} s",
                search_attributes=attributes,
            ),
        )
        return handle.id


async def apply_schedule(client: Client, request: ScheduledRequest, *, catch_up: float) -> str:
    """Create the pipeline's schedule, or change it; its name. Windows missed for up to ``catch_up`` seconds are done later.

    Raises ConfigurationError for more of them than the server starts at once: it forgets the others.
    """
    name = request.spec.pipeline
    if catch_up > MOST_MISSED * request.every:
        raise ConfigurationError(
            f"schedule {name}: expected to catch up with at most {MOST_MISSED:,} windows, or {MOST_MISSED * request.every:,.0f} s, "
            f"got {catch_up:,.0f} s; do more by a backfill"
        )
    action = ScheduleActionStartWorkflow(
        SCHEDULE,
        request,
        id=f"{name}/schedule",
        task_queue=request.spec.task_queue,
        static_summary=f"{name}: every {request.every:g} s",
        typed_search_attributes=await _known_attributes(client, request.spec),
    )
    interval = ScheduleIntervalSpec(timedelta(seconds=request.every), timedelta(seconds=request.delay))
    policy = SchedulePolicy(overlap=ScheduleOverlapPolicy.ALLOW_ALL, catchup_window=timedelta(seconds=catch_up))
    schedule = Schedule(action, ScheduleSpec(intervals=[interval]), policy)
    with _rpc_errors(f"schedule {name}"):
        try:
            await client.create_schedule(name, schedule)
        except ScheduleAlreadyRunningError:
            await client.get_schedule_handle(name).update(lambda found: _changed(found, schedule))
    return name


async def _known_attributes(client: Client, spec: PipelineSpec) -> TypedSearchAttributes:
    """A schedule's attributes, none where the server doesn't know them: it says so only when a start is due."""
    try:
        known = await _registered(client)
    except RPCError:
        known = {}
    return attributes_of(spec) if known.items() >= _WANTED.items() else TypedSearchAttributes.empty


def _changed(found: ScheduleUpdateInput, schedule: Schedule) -> ScheduleUpdate:
    schedule.state = found.description.schedule.state  # whether it is paused
    return ScheduleUpdate(schedule)


async def delete_schedule(client: Client, name: str) -> None:
    """Delete a schedule; what it has started goes on."""
    with _rpc_errors(f"schedule {name}"):
        await client.get_schedule_handle(name).delete()


async def progress(client: Client, id_: str) -> Progress | BackfillDone | Collected:
    """How far a workflow is; raises ConfigurationError where there is none of this id."""
    with _rpc_errors(f"asking {id_}"):
        handle = client.get_workflow_handle(id_)
        known = await handle.describe()
        kinds: dict[str, type[Progress | BackfillDone | Collected]] = {BACKFILL: BackfillDone, COLLECTOR: Collected}
        result_type = kinds.get(known.workflow_type, Progress)
        found: Progress | BackfillDone | Collected = await _of_a_worker(
            id_, known.task_queue, handle.query("progress", result_type=result_type, rpc_timeout=_ANSWER)
        )
        return found


async def look(client: Client, id_: str) -> RunStatus:
    """What became of a pipeline's workflow until now, whether a worker runs or not; raises NotFoundError where there is none of this id."""
    handle = handle_of(client, id_)
    with _rpc_errors(f"asking {id_}"):
        found = await handle.describe()
        name = found.status.name.lower() if found.status is not None else "unknown"
        status = RunStatus(id=id_, status=name, started=found.start_time, ended=found.close_time)
        if found.close_time is None:
            return msgspec.structs.replace(status, progress=await _progress_now(handle))
        try:
            return msgspec.structs.replace(status, result=await outcome(handle))
        except PipelineFailedError as error:
            return msgspec.structs.replace(status, error=str(error))


async def _progress_now(handle: WorkflowHandle[Any, PipelineDone]) -> Progress | None:
    """How far it is; None where no worker answers within moments."""
    try:
        found: Progress = await handle.query("progress", result_type=Progress, rpc_timeout=_QUERY_PATIENCE)
    except (RPCError, WorkflowQueryFailedError):
        return None
    return found


async def _of_a_worker(id_: str, task_queue: str, answer: Awaitable[_T]) -> _T:
    """What a workflow answers; raises UnavailableError where no worker is there to let it."""
    try:
        return await answer
    except (RPCError, RPCTimeoutOrCancelledError) as error:
        if isinstance(error, RPCError) and error.status not in _LATE:
            raise
        raise UnavailableError(
            f"workflow {id_} did not answer within {_ANSWER.total_seconds():g} s: does a worker of the task queue {task_queue!r} run? "
            "what was asked of it may still be done"
        ) from error


async def _update(client: Client, id_: str, *update: Any) -> Progress:
    handle = client.get_workflow_handle(id_)
    task_queue = (await handle.describe()).task_queue
    found: Progress = await _of_a_worker(id_, task_queue, handle.execute_update(*update, result_type=Progress, rpc_timeout=_ANSWER))
    return found


async def pause(client: Client, id_: str, paused: bool) -> Progress:
    """Begin no further slice, or go on; answers with the progress."""
    with _rpc_errors(f"asking {id_}"):
        return await _update(client, id_, "pause", paused)


async def retry(client: Client, id_: str) -> Progress:
    """Try again what failed for good and is held; raises ConfigurationError where nothing is."""
    with _rpc_errors(f"asking {id_}"):
        try:
            return await _update(client, id_, "retry")
        except WorkflowUpdateFailedError as error:
            raise ConfigurationError(f"workflow {id_}: {_root(error)}") from error


async def cancel(client: Client, id_: str, *, first_run: str = "", wait: bool = True) -> None:
    """Cancel a workflow: its agents commit what they have in hand and end; by default wait until they have.

    ``first_run``: only the one that began with that run, and none that was started over the same window after it.
    """
    handle = handle_of(client, id_, first_run)
    with _rpc_errors(f"cancelling {id_}"):
        await handle.cancel()
        if not wait:
            return
        try:
            await handle.result()
        except WorkflowFailureError as error:
            if isinstance(error.cause, CancelledError):
                return
            raise PipelineFailedError(f"workflow {id_} had ended before: {_root(error)}") from error
    raise PipelineFailedError(f"workflow {id_} had finished before: nothing was cancelled")


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what caused it, innermost last."""
    found = [error]
    while (cause := getattr(found[-1], "cause", None)) is not None:
        found.append(cause)
    return found


def _root(error: BaseException) -> str:
    """What ended a workflow, in one line: the innermost cause."""
    inner = _causes(error)[-1]
    if isinstance(inner, CancelledError):
        return "cancelled"
    kind = inner.type if isinstance(inner, ApplicationError) else type(inner).__name__
    return f"{kind}: {getattr(inner, 'message', None) or inner}"


def _may_pass(error: BaseException) -> bool:
    """Whether another workflow may succeed with nothing changed: attempts failed, and none of them for good."""
    causes = _causes(error)
    failed = isinstance(causes[-1], exceptions.TimeoutError | ApplicationError)
    return failed and not any(getattr(cause, "non_retryable", False) for cause in causes)


@contextmanager
def _rpc_errors(doing: str, *, missing: type[ConfigurationError] = NotFoundError, passing: str = "") -> Iterator[None]:
    try:
        yield
    except RPCError as error:
        kind: type[FactoryError] = UnavailableError
        if error.status in _REFUSED:
            kind = RefusedError
        elif error.status in _WRONG and not (passing and passing in error.message):
            kind = missing if error.status == RPCStatusCode.NOT_FOUND else ConfigurationError
        raise kind(f"{doing}: Temporal: {error.message}") from error
