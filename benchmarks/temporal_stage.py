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
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from harness import ROOT, arguments, run_agent, run_process, spread
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


class Bench:
    """A server, a worker of each kind, an Airflow, and a topic with a few events in each hour; each run takes the next hour."""

    def __init__(self, config: KafkaConfig, client: Client) -> None:
        self.config, self.client = config, client
        self.name = f"bench-temporal-{uuid.uuid4().hex[:8]}"
        self.hours = 0
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

    async def workflow(self, runner: str, stages: int) -> float:
        """Seconds from the request to the result."""
        specs = tuple(StageSpec(name=f"s{n}", agent=AGENT, output_topic=self.output(n)) for n in range(stages))
        spec = PipelineSpec(
            pipeline=f"{self.name}-{runner}-{stages}", stages=specs, topic=self.name, task_queue=f"{self.name}-{runner}", prefix=self.name
        )
        request = PipelineRequest(spec, self.hour())
        began = time.monotonic()
        done: PipelineDone = await clients.outcome(await clients.start(self.client, request))
        took = time.monotonic() - began
        if [stage.counts.consumed for stage in done.stages] != [FEW] * stages:
            raise SystemExit(f"expected {FEW} events in each stage, got {done.stages}")
        return took

    def dags_test(self, airflow: RunningAirflow, stages: int) -> float:
        """Seconds of the command."""
        until = self.hour().end.strftime("%Y-%m-%dT%H:%M")
        return run_process([PYTHON_BIN / "airflow", "dags", "test", f"tested_{stages}", until], airflow.components.environment).wall

    def scheduled(self, airflow: RunningAirflow, stages: int) -> float:
        """Seconds from the run's being queued until Airflow calls it a success, by its own clock."""
        dag = f"stages_{stages}"
        run_id = airflow.trigger(dag, logical_date=self.hour().end.isoformat())
        airflow.wait_run(dag, run_id)
        run = airflow.call("GET", f"/dags/{dag}/dagRuns/{run_id}")
        return (datetime.fromisoformat(run["end_date"]) - datetime.fromisoformat(run["queued_at"])).total_seconds()

    def alone(self) -> float:
        """Seconds of the agent's process without any orchestrator."""
        own = f"{self.name}-{uuid.uuid4().hex[:6]}"
        window = plan_window(self.config, pipeline=own, topic=self.name, interval=self.hour(), run_key="", prefix=self.name)
        run = AgentRun(own, "s0", AgentRef(AGENT), window=window, output_topic=self.output(0), prefix=self.name)
        return run_agent(self.config, run, PYTHONPATH=str(ROOT))[1].wall

    @contextmanager
    def worker(self, runner: str, address: str) -> Iterator[None]:
        """A worker that has begun to work."""
        command = [sys.executable, "-m", "factory_agents.cli", "temporal", "worker", "--task-queue", f"{self.name}-{runner}"]
        own = {**os.environ, **self.config.to_env(), "TEMPORAL_ADDRESS": address, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([*command, "--runner", runner], env=own, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        try:
            for line in process.stderr or ():
                if '"working"' in line:
                    break
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


Measured = dict[str, list[float]]


async def measured(bench: Bench, airflow: RunningAirflow, rounds: int) -> tuple[Measured, Measured]:
    """Seconds by way: of a plan and one stage, and what each further stage adds."""

    async def run(way: str, stages: int) -> float:
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
            further.setdefault(way, []).append((many - one) / (STAGES - 1))
            print(f"  round {n + 1}/{rounds}  {way:<44} {one:6.2f} s, {further[way][-1]:6.2f} s for each further stage", file=sys.stderr)
        first.setdefault("the agent's process alone", []).append(await asyncio.to_thread(bench.alone))
    return first, further


def ratios(of: Measured) -> dict[str, dict[str, dict[str, float]]]:
    """Airflow's seconds ÷ a workflow's, round by round."""
    return {
        theirs: {ours: spread([b / a for a, b in zip(of[ours], of[theirs], strict=True)]) for ours in RUNNERS}
        for theirs in (TEST, SCHEDULED)
    }


def shown(what: str, of: Measured) -> None:
    """A table of it."""
    compared = ratios(of)
    print(f"\n| {what} | seconds, median | least to greatest | ÷ in the worker's thread | ÷ as processes |\n|---|---|---|---|---|")
    for way, seconds in of.items():
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
    shown("plan and one stage", first)
    shown("each further stage", further)
    found = {
        name: {"seconds": {way: spread(s) for way, s in of.items()}, "ratios": ratios(of)}
        for name, of in (("first", first), ("further", further))
    }
    print(json.dumps({"benchmark": "a stage as a workflow and as a task", **found}))


if __name__ == "__main__":
    main()
