"""Workers as processes and workflows of one test's own, on a Temporal server that all tests share."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from temporalio import activity
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import SetWorkerDeploymentCurrentVersionRequest
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError
from temporalio.worker import Worker

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.ledger import read_result, read_stage
from factory_agents.protocol import AgentResult, Shard, Work
from factory_agents.sandbox import temporal
from factory_agents.sandbox.processes import ProcessRecord, free_port, stop
from factory_agents.temporal import client as clients
from factory_agents.temporal.collector import FactoryCollector
from factory_agents.temporal.converter import data_converter
from factory_agents.temporal.protocol import (
    BackfillDone,
    PipelineDone,
    PipelineRequest,
    PipelineSpec,
    Progress,
    Slice,
    SliceOutcome,
    StageSpec,
)
from factory_agents.temporal.worker import make_worker
from factory_agents.temporal.workflow import FactoryPipeline
from tests.support.commands import ROOT, Command, Live, clean_environment
from tests.support.waiting import wait_for

_T = TypeVar("_T")


class Pipelines:
    """Pipelines of one test: their workers, their workflows, and what came of them."""

    def __init__(self, address: str, bootstrap: str, prefix: str, folder: Path) -> None:
        self.address, self.bootstrap, self.prefix = address, bootstrap, prefix
        self.config = KafkaConfig(bootstrap)
        variables = {"TEMPORAL_ADDRESS": address, "KAFKA_BOOTSTRAP": bootstrap, "PYTHONPATH": str(ROOT)}
        self.factory = Command(folder, clean_environment(**variables))
        self.workers: list[Live] = []

    def close(self) -> None:
        self.factory.close()

    # Asking the server

    def ask(self, ask: Callable[[Client], Awaitable[_T]]) -> _T:
        """Anything of the server."""

        async def asked() -> _T:
            return await ask(await Client.connect(self.address, data_converter=data_converter))

        return asyncio.run(asked())

    def start(self, request: PipelineRequest, **more: Any) -> str:
        """Start a workflow; its id."""

        async def started(client: Client) -> str:
            return (await clients.start(client, request, **more)).id

        return self.ask(started)

    def done(self, id_: str) -> PipelineDone:
        """Wait for a workflow's result."""
        return self.ask(lambda client: clients.outcome(self._handle(client, id_)))

    def run(self, request: PipelineRequest, **more: Any) -> PipelineDone:
        """Start a workflow and wait for its result."""
        return self.done(self.start(request, **more))

    def progress(self, id_: str) -> Progress | BackfillDone:
        """How far a workflow is."""
        return self.ask(lambda client: clients.progress(client, id_))

    def pause(self, id_: str, paused: bool) -> Progress:
        """Let a workflow begin nothing more, or go on."""
        return self.ask(lambda client: clients.pause(client, id_, paused))

    def retry(self, id_: str) -> Progress:
        """Try again what is held."""
        return self.ask(lambda client: clients.retry(client, id_))

    def is_over(self, id_: str) -> bool:
        """Whether a workflow has ended, in whatever way."""

        async def described(client: Client) -> bool:
            return (await client.get_workflow_handle(id_).describe()).close_time is not None

        return self.ask(described)

    def cancel_asked(self, id_: str) -> bool:
        """Whether somebody has asked for a workflow's cancellation."""
        return any(e.HasField("workflow_execution_cancel_requested_event_attributes") for e in self.history(id_))

    def exists(self, id_: str) -> bool:
        """Whether there is a workflow of this id."""
        with suppress(RPCError):
            self.is_over(id_)
            return True
        return False

    def runs_of(self, id_: str) -> int:
        """How many workflows have gone on under an id."""

        async def listed(client: Client) -> int:
            return len([w async for w in client.list_workflows(f"WorkflowId = '{id_}'")])

        return self.ask(listed)

    def history(self, id_: str) -> list[HistoryEvent]:
        """All that the server remembers of a workflow."""

        async def fetched(client: Client) -> list[HistoryEvent]:
            return list((await self._handle(client, id_).fetch_history()).events)

        return self.ask(fetched)

    def time_of(self, id_: str, kind: str) -> datetime:
        """When the server first noted an event of a kind, such as ``activity_task_canceled``, in a workflow's history."""
        return next(e.event_time.ToDatetime() for e in self.history(id_) if e.HasField(f"{kind}_event_attributes"))  # type: ignore[arg-type]

    def attempts(self, id_: str) -> list[int]:
        """The attempt that each of a workflow's activities ended on."""
        started = [
            e.activity_task_started_event_attributes for e in self.history(id_) if e.HasField("activity_task_started_event_attributes")
        ]
        return [attributes.attempt for attributes in started]

    def cancel(self, id_: str) -> None:
        """Cancel a workflow and wait until it is."""
        self.ask(lambda client: clients.cancel(client, id_))

    def _handle(self, client: Client, id_: str) -> WorkflowHandle[Any, PipelineDone]:
        return client.get_workflow_handle(id_, result_type=PipelineDone)

    # Workers

    @contextmanager
    def served(self, slots: int = 4) -> Iterator[None]:
        """A worker of this process's own, with agents in threads: it works at once."""

        def make(client: Client, pool: ThreadPoolExecutor) -> Worker:
            return make_worker(client, task_queue=self.prefix, slots=slots, runner="thread", grace=20, pool=pool)

        with self._serving(make, slots):
            yield

    @contextmanager
    def served_slowly(self, slots: int = 2) -> Iterator[Gate]:
        """A worker whose slices end well once the gate is opened, and heed no cancellation: as one that has committed its last chunk."""
        gate = Gate()

        @activity.defn(name="run_slice", no_thread_cancel_exception=True)
        def run_slice(request: Slice) -> SliceOutcome:
            gate.began.append(request.run.stage)
            while not gate.opened.wait(0.05):
                activity.heartbeat()
            return SliceOutcome(0, result=AgentResult(request.run.pipeline, request.run.stage, request.run.key))

        def make(client: Client, pool: ThreadPoolExecutor) -> Worker:
            workflows = [FactoryPipeline, FactoryCollector]
            return Worker(client, task_queue=self.prefix, workflows=workflows, activities=[run_slice], activity_executor=pool)

        with self._serving(make, slots):
            try:
                yield gate
            finally:
                gate.opened.set()

    @contextmanager
    def _serving(self, make: Callable[[Client, ThreadPoolExecutor], Worker], slots: int) -> Iterator[None]:
        ready, stop = threading.Event(), asyncio.Event()

        async def serve() -> None:
            client = await Client.connect(self.address, data_converter=data_converter)
            with ThreadPoolExecutor(slots) as pool:
                async with make(client, pool):
                    ready.set()
                    await stop.wait()

        with closing(asyncio.new_event_loop()) as loop:
            thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
            thread.start()
            try:
                wait_for(lambda: ready.is_set() or not thread.is_alive(), "the worker to work")
                assert ready.is_set()
                yield
            finally:
                loop.call_soon_threadsafe(stop.set)
                thread.join(60)

    def worker(self, *arguments: str, runner: str = "process", slots: int = 2, wait: bool = True, **variables: str) -> Live:
        """Start a worker for this test's task queue, and wait until it works."""
        options = ["--task-queue", self.prefix, "--runner", runner, "--slots", str(slots), *arguments]
        live = self.factory.start("temporal", "worker", *options, **variables)
        self.workers.append(live)
        if wait:
            self.wait_working(live)
        return live

    def wait_working(self, live: Live) -> None:
        """Until it takes tasks, or has ended, which fails the test."""
        wait_for(lambda: live.process.poll() is not None or any('"working"' in line for line in live.lines), "the worker to work", 180)
        assert live.process.poll() is None, "\n".join(live.lines)

    def make_current(self, deployment: str, build: str) -> bool:
        """Let new workflows begin on this version; False where none of its workers has come yet."""
        request = SetWorkerDeploymentCurrentVersionRequest(namespace="default", deployment_name=deployment, build_id=build)

        async def made(client: Client) -> None:
            await client.workflow_service.set_worker_deployment_current_version(request)

        with suppress(RPCError):
            self.ask(made)
            return True
        return False

    def version(self, id_: str) -> str:
        """The version that a workflow runs on."""

        async def described(client: Client) -> str:
            info = (await client.get_workflow_handle(id_).describe()).raw_description.workflow_execution_info
            return info.versioning_info.deployment_version.build_id

        return self.ask(described)

    # What to do, and what came of it

    def request(self, topic: str, *stages: StageSpec, key: str = "w", pipeline: str = "", **more: Any) -> PipelineRequest:
        """A pipeline over all that has come to a topic since its last window."""
        spec = PipelineSpec(
            pipeline=pipeline or self.prefix, stages=stages, topic=topic, task_queue=self.prefix, prefix=self.prefix, **more
        )
        return PipelineRequest(spec, key=key)

    def position(self, request: PipelineRequest, stage: str, shard: Shard | None = None) -> int:
        """How many events of a stage are committed."""
        work = Work(request.spec.pipeline, stage, request.window, shard or Shard(), request.spec.topic)
        record = read_stage(self.config, work, prefix=self.prefix)
        done = (record.progress or record.result) if record is not None else None
        return done.counts.consumed if done is not None else 0

    def result(self, request: PipelineRequest, stage: str, shard: Shard | None = None) -> AgentResult:
        """A stage's result, as the ledger has it."""
        work = Work(request.spec.pipeline, stage, request.window, shard or Shard(), request.spec.topic)
        found = read_result(self.config, work, prefix=self.prefix)
        assert found is not None, f"{stage} over {request.window} isn't finished"
        return found


@dataclass
class Gate:
    """Keeps slices from ending until it is opened; ``began`` are the stages of those that have begun."""

    began: list[str] = field(default_factory=list)
    opened: threading.Event = field(default_factory=threading.Event)


def stage(name: str, agent: str = "tests.support.agents:mark", output: str = "", **more: Any) -> StageSpec:
    """A stage."""
    return StageSpec(name=name, agent=agent, output_topic=output, **more)


def of_spec(request: PipelineRequest, **more: Any) -> PipelineRequest:
    """The same request with other words in its pipeline."""
    return msgspec.structs.replace(request, spec=msgspec.structs.replace(request.spec, **more))


@contextmanager
def own_server(folder: Path, *options: str) -> Iterator[Server]:
    """A server of the test's own, which it may kill, or run with options of its own."""
    server = Server(folder, free_port("127.0.0.1"), free_port("127.0.0.1"), options)
    try:
        server.start()
        yield server
    finally:
        temporal.end(server.process)


@dataclass
class Server:
    """A server of the test's own, on a file."""

    folder: Path
    port: int
    ui_port: int
    options: tuple[str, ...] = ()
    process: ProcessRecord | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = temporal.start(self.folder, "127.0.0.1", self.port, self.ui_port, lambda text: None, *self.options)
        temporal.wait_ready(self.folder, self.process, "127.0.0.1", self.port)

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        assert self.process is not None
        stop(self.process, (how, 10))
