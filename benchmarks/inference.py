"""An agent over a model: calls of 50 ms side by side, beside a hand-written asyncio consumer; and answers from the log, beside enrich."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from harness import ROOT, arguments, bench_sandbox, filled_window, report, rounds, run_agent, run_process, spread

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import AgentRef, AgentResult, AgentRun, Window

PARTITIONS, CONCURRENCY, MODEL_MS = 4, 64, 50
PEERS = ROOT / "benchmarks" / "peers"
SCHEMA = {"type": "object", "properties": {"label": {"enum": ["even", "odd"]}}, "required": ["label"]}


@contextmanager
def model(milliseconds: int) -> Iterator[str]:
    """A model's address; it is a process of its own."""
    command = [sys.executable, PEERS / "slow_model.py", str(milliseconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = process.stdout.readline().strip() if process.stdout is not None else ""
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


def params(url: str, question: str) -> dict[str, Any]:
    """Of ``infer``; another ``question`` is another key of the log."""
    prompt = {"name": "kind@1.md", "text": question + " {{ event_id }}"}
    return {"prompt": prompt, "output": SCHEMA, "model": "m", "endpoint": url, "concurrency": CONCURRENCY}


def ran(config: KafkaConfig, run: AgentRun, *, asked: int) -> tuple[AgentResult, float]:
    """The result of a run, which has written all and asked so often, and the CPU that its process took."""
    done, cost = run_agent(config, run)
    if (done.counts.produced, done.counts.asked) != (run.window.size if run.window else 0, asked):
        raise SystemExit(f"expected {asked} calls and all events, got {done.counts}")
    return done, cost.cpu


def main() -> None:
    """Fill, race, report."""
    options = arguments(__doc__ or "", events=5_000, logged=50_000)
    events, logged = (300, 1_000) if options.smoke else (options.events, options.logged)
    config = KafkaConfig(bench_sandbox().info().bootstrap)
    cluster = Cluster(config)
    source = f"bench-infer-{uuid.uuid4().hex[:8]}"
    window = filled_window(config, source, events, PARTITIONS)
    known = filled_window(config, f"{source}-known", logged, PARTITIONS)
    cpu: dict[str, list[float]] = {"factory": [], "asyncio": []}

    def run_of(name: str, n: int, over: Window, agent: str, given: dict[str, Any]) -> AgentRun:
        target = f"{source}-{name}-{n}"
        cluster.create(target, PARTITIONS, settings={"retention.ms": "-1"})
        named = msgspec.structs.replace(over, name=f"{name}-{n}")
        return AgentRun(pipeline=target, stage=agent, agent=AgentRef(agent), params=given, window=named, output_topic=target)

    with model(MODEL_MS) as url:

        def factory(n: int) -> float:
            done, used = ran(config, run_of("factory", n, window, "infer", params(url, f"{source}, round {n}: what is")), asked=events)
            cpu["factory"].append(used)
            return done.seconds

        def peer(n: int) -> float:
            target = f"{source}-asyncio-{n}"
            cluster.create(target, PARTITIONS, settings={"retention.ms": "-1"})
            cost = run_process([sys.executable, PEERS / "asyncio_model.py", config.bootstrap, source, target, str(events), url])
            cpu["asyncio"].append(cost.cpu)
            return float(json.loads(cost.output.strip().splitlines()[-1])["seconds"])

        asked = rounds(options.rounds, {"factory": factory, "asyncio and aiohttp": peer})
    with model(0) as url:
        question = params(url, f"Log {source}: what is")
        ran(config, run_of("filling", 0, known, "infer", question), asked=logged)
        from_log = rounds(
            options.rounds,
            {
                "answers from the log": lambda n: ran(config, run_of("log", n, known, "infer", question), asked=0)[0].seconds,
                "enrich": lambda n: ran(config, run_of("enrich", n, known, "enrich", {}), asked=0)[0].seconds,
            },
        )
    mine, theirs = cpu["factory"], cpu["asyncio"]
    print(f"CPU of the whole process, milliseconds an event: {[round(1000 * used / events, 2) for used in mine]} of ours")
    ratios = {"asyncio and aiohttp": spread([other / own for own, other in zip(mine, theirs, strict=True)])}
    report(f"a model of {MODEL_MS} ms, {CONCURRENCY} at once", asked, "factory", events, "events", {"cpu_ratios": ratios})
    report("answers from the log", from_log, "answers from the log", logged, "events")


if __name__ == "__main__":
    main()
