"""The worker: takes workflows and activities from a task queue until it is told to stop, and then loses nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from temporalio import activity
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker, WorkerDeploymentConfig

from factory_agents.errors import ConfigurationError, FactoryError, UnavailableError
from factory_agents.telemetry import fields
from factory_agents.temporal.activities import Activities, Runner
from factory_agents.temporal.client import RefusedError, check_namespace, register_attributes
from factory_agents.temporal.collector import FactoryCollector
from factory_agents.temporal.lineage import Lineage, telling_lineage
from factory_agents.temporal.traces import traces_of
from factory_agents.temporal.windows import FactoryBackfill, FactorySchedule
from factory_agents.temporal.workflow import FactoryPipeline

__all__ = ["make_worker", "run_worker"]

log = logging.getLogger(__name__)

_HEARTBEATS = timedelta(seconds=1)  # a cancellation comes with the answer to one; by default the SDK sends few
_SPARE = 2.0
_LOOK_SECONDS = _ANSWER_SECONDS = 10.0
_MOST_REFUSALS = 3


def make_worker(
    client: Client,
    *,
    task_queue: str,
    slots: int,
    runner: Runner,
    grace: float,
    pool: ThreadPoolExecutor,
    lineage: Lineage | None = None,
) -> Worker:
    """A worker that runs up to ``slots`` activities at once, each in a thread of ``pool``, and its agent where ``runner`` says.

    ``lineage`` is told what stages read and wrote.
    """
    return Worker(
        client,
        task_queue=task_queue,
        workflows=[FactoryPipeline, FactoryBackfill, FactorySchedule, FactoryCollector],
        activities=Activities(runner=runner, grace=grace, traces=traces_of(client), lineage=lineage).all,
        activity_executor=pool,
        max_concurrent_activities=slots,
        max_heartbeat_throttle_interval=_HEARTBEATS,
        default_heartbeat_throttle_interval=_HEARTBEATS,
        graceful_shutdown_timeout=timedelta(seconds=grace + _SPARE),
        deployment_config=_deployment(os.environ),
    )


def _deployment(environ: Mapping[str, str]) -> WorkerDeploymentConfig | None:
    """Which version of which deployment this worker is, where it is told: what began on a version then ends on it."""
    name, build = environ.get("TEMPORAL_DEPLOYMENT_NAME", ""), environ.get("TEMPORAL_WORKER_BUILD_ID", "")
    if bool(name) != bool(build):
        raise ConfigurationError("TEMPORAL_DEPLOYMENT_NAME and TEMPORAL_WORKER_BUILD_ID go together: set both, or neither")
    if not name:
        return None
    return WorkerDeploymentConfig(WorkerDeploymentVersion(name, build), True, default_versioning_behavior=VersioningBehavior.PINNED)


class _InOneLine(logging.Filter):
    """The SDK's word of an activity that failed, without a traceback of what is a message: of an unexpected error another line has it."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ApplicationError):
            record.exc_info = None
            record.msg = f"{record.msg}: {error.type}: {error.message}"
        return True


async def run_worker(client: Client, *, task_queue: str, slots: int, runner: Runner, grace: float) -> None:
    """Work until SIGTERM or SIGINT: agents then commit what they have in hand and go, and other workers go on with their windows.

    Raises RefusedError, after the same, where the server takes this client no more; a server that doesn't answer is waited for.
    """
    await check_namespace(client)
    try:
        await register_attributes(client)
    except FactoryError as error:
        log.info("workflows can't be listed by pipeline, stage and window: %s", error)
    activity.logger.base_logger.addFilter(_InOneLine())
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with telling_lineage() as lineage, ThreadPoolExecutor(slots, thread_name_prefix="activity") as pool:
        try:
            async with make_worker(client, task_queue=task_queue, slots=slots, runner=runner, grace=grace, pool=pool, lineage=lineage):
                facts = fields(task_queue=task_queue, slots=slots, runner=runner, server=client.service_client.config.target_host)
                log.info("working", extra=facts)
                refused = await _refusal(client, stop)
                log.info("stopping")
        except asyncio.CancelledError:  # by the SDK, which could not tell a server that is away of the end; the agents have ended
            if not stop.is_set():
                raise
            log.warning("the server does not answer, and was not told that this worker ends")
            return
        except RuntimeError as error:
            raise _no_tasks(error, task_queue) or error from error
        if refused is not None:
            raise refused


def _no_tasks(error: RuntimeError, task_queue: str) -> FactoryError | None:
    """Why the SDK gave up asking for tasks, which a server refused for a minute; None where that isn't what ended the worker."""
    found = re.search(r'grpc error when polling: Status \{ code: (\w+), message: "(.*?)"', str(error.__cause__))
    if found is None:
        return None
    code, message = found.groups()
    kind = RefusedError if code in ("PermissionDenied", "Unauthenticated") else UnavailableError
    return kind(f"asking for tasks of queue {task_queue!r}: Temporal: {message} ({code})")


async def _refusal(client: Client, stop: asyncio.Event, every: float = _LOOK_SECONDS) -> RefusedError | None:
    """Why the server takes this client no more, or None where it is time to go: of a namespace that is gone the SDK tells nobody.

    A namespace that was deleted, a key that was revoked: said three times in a row, as one server of several may be late to know.
    """
    refusals, outage = 0, False
    while True:
        try:
            async with asyncio.timeout(every):
                await stop.wait()
            return None
        except TimeoutError:
            pass
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await check_namespace(client)
            if outage:
                log.info("the server answers again")
            refusals, outage = 0, False
        except RefusedError as error:
            refusals += 1
            if refusals == _MOST_REFUSALS:
                return error
        except (FactoryError, TimeoutError) as error:
            if not outage:
                log.warning("the server does not answer; trying again: %s", str(error) or f"nothing within {_ANSWER_SECONDS:g} s")
            refusals, outage = 0, True
