"""What a stage costs as a Temporal workflow, whatever its size: in the worker's thread, and as a process, beside the agent alone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from harness import ROOT, arguments, filled_window, run_agent, spread
from temporalio.client import Client

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import AgentRef, AgentRun, Window
from factory_agents.sandbox import Sandbox
from factory_agents.temporal import client as clients
from factory_agents.temporal.converter import data_converter
from factory_agents.temporal.protocol import PipelineDone, PipelineRequest, PipelineSpec, StageSpec

FEW = 10
STAGES = 4
RUNNERS = ("thread", "process")
AGENT = "benchmarks.stamp:mark"


class Bench:
    """A server, a worker of each kind, and a topic with a few events."""

    def __init__(self, config: KafkaConfig, client: Client) -> None:
        self.config, self.client = config, client
        self.cluster = Cluster(config)
        self.name = f"bench-temporal-{uuid.uuid4().hex[:8]}"
        self.few: Window = filled_window(config, f"{self.name}-in", FEW, 4)

    def topic(self) -> str:
        topic = f"{self.name}-{uuid.uuid4().hex[:6]}"
        self.cluster.create(topic, 4, settings={"retention.ms": "-1"})
        return topic

    async def workflow(self, runner: str, stages: int) -> float:
        """Seconds from the request to the result, of a pipeline of its own over all events."""
        specs = tuple(StageSpec(name=f"s{n}", agent=AGENT, output_topic=self.topic()) for n in range(stages))
        own = f"{self.name}-{uuid.uuid4().hex[:6]}"
        spec = PipelineSpec(pipeline=own, stages=specs, topic=self.few.topic, task_queue=f"{self.name}-{runner}")
        began = time.monotonic()
        done: PipelineDone = await clients.outcome(await clients.start(self.client, PipelineRequest(spec, key="w")))
        took = time.monotonic() - began
        if [stage.counts.consumed for stage in done.stages] != [FEW] * stages:
            raise SystemExit(f"expected {FEW} events in each stage, got {done.stages}")
        return took

    def alone(self) -> float:
        """Seconds of the agent's process without any orchestrator."""
        out = self.topic()
        run = AgentRun(out, "s", AgentRef(AGENT), window=self.few, output_topic=out)
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


async def measured(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """Seconds of each: a workflow of one stage, what each further stage adds, and the agent alone."""
    found: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        found.setdefault(name, []).append(seconds)
        print(f"  {name:<36} {seconds:6.2f} s", file=sys.stderr)

    for runner in RUNNERS:
        await bench.workflow(runner, 1)  # the first of a worker loads what the next ones have
    for _ in range(rounds):
        for runner in RUNNERS:
            one, many = await bench.workflow(runner, 1), await bench.workflow(runner, STAGES)
            note(f"plan and one stage, {runner}", one)
            note(f"each further stage, {runner}", (many - one) / (STAGES - 1))
        note("the agent's process alone", await asyncio.to_thread(bench.alone))
    return found


def main() -> None:
    """Measure, print, and end with one JSON line."""
    options = arguments(__doc__ or "")
    sandbox = Sandbox(ROOT / ".factory" / "bench", with_temporal=True)
    info = sandbox.up()
    address = str(info.temporal_address)

    async def run() -> dict[str, list[float]]:
        client = await Client.connect(address, data_converter=data_converter)
        bench = Bench(KafkaConfig(info.bootstrap), client)
        with bench.worker("thread", address), bench.worker("process", address):
            return await measured(bench, options.rounds)

    found = asyncio.run(run())
    print(f"\na stage of {FEW} events as a workflow  ({options.rounds} rounds, {time.strftime('%F', time.gmtime())})\n")
    print("| what | seconds, median | least to greatest |\n|---|---|---|")
    for name, seconds in found.items():
        print(f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} to {max(seconds):.2f} |")
    print(json.dumps({"benchmark": "a stage as a workflow", "seconds": {name: spread(seconds) for name, seconds in found.items()}}))


if __name__ == "__main__":
    main()
