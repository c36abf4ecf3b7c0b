"""What a stage costs whatever its size: as a Temporal workflow, in the worker's thread and as a process, and as a task of Airflow's."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from pathlib import Path

import psutil
from harness import ROOT, Cost, arguments, run_agent, run_process, spread
from temporalio.client import Client

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.cuts import plan_window
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import AgentRef, AgentRun, Interval
from factory_agents.sandbox import Sandbox
from factory_agents.temporal import client as clients
from factory_agents.temporal.converter import data_converter
from factory_agents.temporal.protocol import PipelineDone, PipelineRequest, PipelineSpec, StageSpec

sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
from airflow_components import COMPONENTS  # noqa: E402
from airflow_env import PYTHON_BIN  # noqa: E402

from tests.support.airflow_components import RunningAirflow, running_airflow  # noqa: E402

FEW = 10
STAGES = 4
PARTITIONS = 4
WAYS = ("a workflow, agents in the worker's thread", "a workflow, agents as processes", "airflow dags test", "a run of Airflow's scheduler")
THREAD, PROCESS, TEST, SCHEDULED = WAYS
RUNNERS = {THREAD: "thread", PROCESS: "process"}
AGENT = "benchmarks.stamp:mark"
START = datetime(2025, 1, 6, tzinfo=UTC)
HOUR = timedelta(hours=1)
AS_SHIPPED = {"AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "1", "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "5"}
"""Airflow's own defaults of what the tests' Airflow does sooner."""
_TICK = 0.01  # in which the kernel counts CPU


def cpu(pids: list[int]) -> float:
    """Seconds of CPU that processes took until now, with all that they started and saw the end of."""
    taken = 0.0
    for pid in pids:
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # it ends: its parent has its seconds
                taken += sum(process.cpu_times()[:4])
    return taken


class Bench:
    """A server, a worker of each kind, an Airflow, and a topic with a few events in each hour; each run takes the next hour."""

    def __init__(self, config: KafkaConfig, client: Client) -> None:
        self.config, self.client = config, client
        self.name = f"bench-temporal-{uuid.uuid4().hex[:8]}"
        self.hours = 0
        self.pids: dict[str, int] = {}
        self.cluster = Cluster(config)
        for topic in (self.name, *(self.output(n) for n in range(STAGES))):
            self.cluster.create(topic, PARTITIONS, settings={"retention.ms": "-1"})
        self.producer = config.plain_producer()

    def output(self, stage: int) -> str:
        return f"{self.name}.s{stage}"

    def hour(self) -> Interval:
        """The next one, with its events."""
        start = START + self.hours * HOUR
        self.hours += 1
        for n in range(FEW):
            event = {"event_id": f"{self.hours}-{n}", "user": n, "payload": "x" * 90, "amount": n * 0.25, "kind": "click"}
            at = int((start + n * timedelta(minutes=1)).timestamp() * 1000)
            self.producer.produce(self.name, json.dumps(event).encode(), partition=n % PARTITIONS, timestamp=at)
        if self.producer.flush(30):
            raise SystemExit("the events could not be produced")
        return Interval(start, start + HOUR)

    async def workflow(self, runner: str, stages: int) -> Cost:
        """From the request to the result; CPU is the worker's and its agents'."""
        specs = tuple(StageSpec(name=f"s{n}", agent=AGENT, output_topic=self.output(n)) for n in range(stages))
        spec = PipelineSpec(
            pipeline=f"{self.name}-{runner}-{stages}", stages=specs, topic=self.name, task_queue=f"{self.name}-{runner}", prefix=self.name
        )
        request = PipelineRequest(spec, self.hour())
        worker = [self.pids[runner]]
        began, before = time.monotonic(), cpu(worker)
        done: PipelineDone = await clients.outcome(await clients.start(self.client, request))
        took = Cost(time.monotonic() - began, cpu(worker) - before, 0)
        if [stage.counts.consumed for stage in done.stages] != [FEW] * stages:
            raise SystemExit(f"expected {FEW} events in each stage, got {done.stages}")
        return took

    def dags_test(self, airflow: RunningAirflow, stages: int) -> Cost:
        """What the command takes."""
        until = self.hour().end.strftime("%Y-%m-%dT%H:%M")
        return run_process([PYTHON_BIN / "airflow", "dags", "test", f"tested_{stages}", until], airflow.components.environment)

    def scheduled(self, airflow: RunningAirflow, stages: int) -> Cost:
        """From the run's being queued until Airflow calls it a success, by its own clock; CPU is that of all its components meanwhile."""
        dag, components = f"stages_{stages}", [airflow.components.pid(name) for name in COMPONENTS]
        before = cpu(components)
        run_id = airflow.trigger(dag, logical_date=self.hour().end.isoformat())
        airflow.wait_run(dag, run_id)
        used = cpu(components) - before
        run = airflow.call("GET", f"/dags/{dag}/dagRuns/{run_id}")
        took = datetime.fromisoformat(run["end_date"]) - datetime.fromisoformat(run["queued_at"])
        return Cost(took.total_seconds(), used, 0)

    def alone(self) -> Cost:
        """The agent's process without any orchestrator."""
        own = f"{self.name}-{uuid.uuid4().hex[:6]}"
        window = plan_window(self.config, pipeline=own, topic=self.name, interval=self.hour(), run_key="", prefix=self.name)
        run = AgentRun(own, "s0", AgentRef(AGENT), window=window, output_topic=self.output(0), prefix=self.name)
        return run_agent(self.config, run, PYTHONPATH=str(ROOT))[1]

    @contextmanager
    def worker(self, runner: str, address: str) -> Iterator[None]:
        """A worker that has begun to work."""
        command = [sys.executable, "-m", "factory_agents.cli", "temporal", "worker", "--task-queue", f"{self.name}-{runner}"]
        own = {**os.environ, **self.config.to_env(), "TEMPORAL_ADDRESS": address, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([*command, "--runner", runner], env=own, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        self.pids[runner] = process.pid
        try:
            for line in process.stderr or ():
                if '"working"' in line:
                    break
            threading.Thread(target=lambda: [*(process.stderr or ())], daemon=True).start()  # a log that nobody reads would stop it
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


Measured = dict[str, list[Cost]]


async def measured(bench: Bench, airflow: RunningAirflow, rounds: int) -> tuple[Measured, Measured]:
    """The cost by way: of a plan and one stage, and what each further stage adds."""

    async def run(way: str, stages: int) -> Cost:
        if way in RUNNERS:
            return await bench.workflow(RUNNERS[way], stages)
        return await asyncio.to_thread(bench.dags_test if way == TEST else bench.scheduled, airflow, stages)

    first: Measured = {}
    further: Measured = {}
    for way in (THREAD, PROCESS, SCHEDULED):
        await run(way, 1)  # the first of a worker loads what the next ones have
    for n in range(rounds):
        for way in random.Random(n).sample(WAYS, len(WAYS)):
            one, many = await run(way, 1), await run(way, STAGES)
            first.setdefault(way, []).append(one)
            more = Cost((many.wall - one.wall) / (STAGES - 1), (many.cpu - one.cpu) / (STAGES - 1), 0)
            further.setdefault(way, []).append(more)
            print(f"  round {n + 1}/{rounds}  {way:<44} {told(one)}; {told(more)} for each further stage", file=sys.stderr)
        first.setdefault("the agent's process alone", []).append(await asyncio.to_thread(bench.alone))
    return first, further


def told(cost: Cost) -> str:
    """A cost in words."""
    return f"{cost.wall:.2f} s, {cost.cpu:.2f} s of CPU"


def ratios(of: Measured, by: Callable[[Cost], float]) -> dict[str, dict[str, dict[str, float]]]:
    """Airflow's seconds ÷ a workflow's, round by round."""
    return {
        theirs: {ours: spread([by(b) / max(by(a), _TICK) for a, b in zip(of[ours], of[theirs], strict=True)]) for ours in RUNNERS}
        for theirs in (TEST, SCHEDULED)
    }


def shown(what: str, of: Measured, by: Callable[[Cost], float], unit: str) -> None:
    """A table of it."""
    compared = ratios(of, by)
    print(f"\n| {what} | {unit}, median | least to greatest | ÷ in the worker's thread | ÷ as processes |\n|---|---|---|---|---|")
    for way, costs in of.items():
        seconds = [by(cost) for cost in costs]
        beside = [compared[way][ours] if way in compared else None for ours in RUNNERS]
        cells = " | ".join("" if r is None else f"{r['median']:.1f} ({r['min']:.1f} to {r['max']:.1f})" for r in beside)
        print(f"| {way} | {statistics.median(seconds):.2f} | {min(seconds):.2f} to {max(seconds):.2f} | {cells} |")


def main() -> None:
    """Measure, print, and end with one JSON line."""
    options = arguments(__doc__ or "")
    sandbox = Sandbox(ROOT / ".factory" / "bench", with_temporal=True)
    info = sandbox.up()
    address = str(info.temporal_address)

    async def run() -> tuple[Measured, Measured]:
        client = await Client.connect(address, data_converter=data_converter)
        bench = Bench(KafkaConfig(info.bootstrap), client)
        dags = [ROOT / "benchmarks" / "dags" / "stages.py"]
        settings = {**AS_SHIPPED, "PYTHONPATH": str(ROOT)}
        with (
            tempfile.TemporaryDirectory() as folder,
            bench.worker("thread", address),
            bench.worker("process", address),
            running_airflow(sandbox, Path(folder) / "airflow", dags, info.database_url, bench.name, **settings) as airflow,
        ):
            for stages in (1, STAGES):
                airflow.unpause(f"stages_{stages}")
            return await measured(bench, airflow, options.rounds)

    first, further = asyncio.run(run())
    print(f"\na stage of {FEW} events  ({options.rounds} rounds, {time.strftime('%F', time.gmtime())})")
    kinds = {"seconds": attrgetter("wall"), "CPU seconds": attrgetter("cpu")}
    for unit, by in kinds.items():
        shown("plan and one stage", first, by, unit)
        shown("each further stage", further, by, unit)
    found = {
        name: {
            unit: {"costs": {way: spread([by(cost) for cost in costs]) for way, costs in of.items()}, "ratios": ratios(of, by)}
            for unit, by in kinds.items()
        }
        for name, of in (("first", first), ("further", further))
    }
    print(json.dumps({"benchmark": "a stage as a workflow and as a task", **found}))


if __name__ == "__main__":
    main()
