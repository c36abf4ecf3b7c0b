"""An agent over a model that takes 50 ms a call, beside a hand-written asyncio consumer and Airflow's common.ai; what a kill in the middle
and a second run cost each of them; and answers from the log, beside enrich. common.ai's agent takes some 15 ms of CPU for a call: it is
given fewer events, and its seconds are those of as many as the others have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from harness import ROOT, arguments, bench_sandbox, filled_window, report, rounds, run_agent, run_process, spread

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import AgentRef, AgentResult, AgentRun, Window, encode

PARTITIONS, CONCURRENCY, MODEL_MS = 4, 64, 50
PEERS = ROOT / "benchmarks" / "peers"
SCHEMA = {"type": "object", "properties": {"label": {"enum": ["even", "odd"]}}, "required": ["label"]}


@cache
def common_ai() -> dict[str, str]:
    """The environment in which common.ai is found beside what is installed."""
    locked, home = ROOT / "requirements" / "common-ai.txt", ROOT / ".factory" / "common-ai"
    if not (home / "airflow").is_dir():
        uv = Path(sys.executable).with_name("uv")
        subprocess.run(
            [uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--target", home, "--requirement", locked], check=True
        )
    settings = {"AIRFLOW_HOME": str(home / "airflow-home"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "DO_NOT_TRACK": "1"}
    return {**os.environ, **settings, "PYTHONPATH": str(home)}


def calls(url: str) -> int:
    """How many answers the model has begun so far."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/calls") as response:
        return int(response.read())


def killed(command: Sequence[str | Path], url: str, after: int, environment: dict[str, str]) -> None:
    """Start a process, and kill it once the model has begun so many more answers."""
    until = calls(url) + after
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while calls(url) < until:
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(map(str, command))} ended before it could be killed")
            time.sleep(0.005)
        process.kill()


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
    events, logged, fewer = (300, 1_000, 20) if options.smoke else (options.events, options.logged, 200)
    config = KafkaConfig(bench_sandbox().info().bootstrap)
    cluster = Cluster(config)
    source = f"bench-infer-{uuid.uuid4().hex[:8]}"
    window = filled_window(config, source, events, PARTITIONS)
    known = filled_window(config, f"{source}-known", logged, PARTITIONS)
    few = filled_window(config, f"{source}-few", fewer, PARTITIONS)
    cpu: dict[str, list[float]] = {"factory": [], "asyncio": [], "task": [], "operator": []}

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

        def airflows(how: str, n: int) -> list[str | Path]:
            target = f"{source}-{how}-{n}"
            cluster.create(target, PARTITIONS, settings={"retention.ms": "-1"})
            return [sys.executable, PEERS / "common_ai.py", config.bootstrap, f"{source}-few", target, str(fewer), url, how]

        def airflow(how: str, n: int) -> float:
            cost = run_process(airflows(how, n), common_ai())
            cpu[how].append(cost.cpu)
            return float(json.loads(cost.output.strip().splitlines()[-1])["seconds"])

        def alone(n: int) -> float:
            given = params(url, f"{source}, one at a time, round {n}: what is") | {"concurrency": 1}
            return ran(config, run_of("alone", n, few, "infer", given), asked=fewer)[0].seconds

        at_once = {"factory": factory, "asyncio and aiohttp": peer, "common.ai": lambda n: airflow("task", n) * events / fewer}
        asked = rounds(options.rounds, at_once)
        singly = rounds(options.rounds, {"factory": alone, "common.ai": lambda n: airflow("operator", n)})
        paid: dict[str, list[float]] = {"factory": [], "common.ai": []}
        again: dict[str, list[float]] = {"factory": [], "common.ai": []}
        for n in range(options.rounds):
            run, before = run_of("killed", n, window, "infer", params(url, f"{source}, killed {n}: what is")), calls(url)
            with tempfile.TemporaryDirectory() as folder:
                given = Path(folder) / "run.json"
                given.write_bytes(encode(run))
                result = Path(folder) / "result.json"
                mine: list[str | Path] = [sys.executable, "-m", "factory_agents.run", "--run", given, "--result", result]
                killed(mine, url, events // 2, {**os.environ, **config.to_env()})
            run_agent(config, run)
            paid["factory"].append((calls(url) - before) / events)
            before = calls(url)
            run_agent(config, msgspec.structs.replace(run, rerun="redo", run_id="again"))
            again["factory"].append((calls(url) - before) / events)
            before, theirs = calls(url), airflows("task", 1000 + n)
            killed(theirs, url, fewer // 2, common_ai())
            run_process(theirs, common_ai())
            paid["common.ai"].append((calls(url) - before) / fewer)
            before = calls(url)
            run_process(airflows("task", 2000 + n), common_ai())
            again["common.ai"].append((calls(url) - before) / fewer)
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
    print(f"CPU of the whole process, milliseconds an event: {[round(1000 * used / events, 2) for used in cpu['factory']]} of ours")
    ratios = {
        name: spread([other / own for own, other in zip(cpu["factory"], cpu[peer], strict=True)])
        for name, peer in (("asyncio and aiohttp", "asyncio"),)
    }
    report(f"a model of {MODEL_MS} ms, {CONCURRENCY} at once", asked, "factory", events, "events", {"cpu_ratios": ratios})
    report(f"a model of {MODEL_MS} ms, one at a time", singly, "factory", fewer, "events")
    for what, shares in (("killed in the middle and run again", paid), ("the finished window run again", again)):
        print(f"calls paid for an event, {what}: " + ", ".join(f"{name} {spread(figures)}" for name, figures in shares.items()))
    report("answers from the log", from_log, "answers from the log", logged, "events")


if __name__ == "__main__":
    main()
