"""One agent process over a topic: decode, set a field, encode, headers, exactly once; beside its peers in one run."""

from __future__ import annotations

import json
import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
from harness import ROOT, arguments, bench_sandbox, filled_window, peers_python, report, run_agent, run_process, timed

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import AgentRef, AgentRun, Window

PARTITIONS = 4
PEERS = ROOT / "benchmarks" / "peers"


CONTRACT = {
    "name": "bench",
    "schema": {
        "type": "object",
        "required": ["event_id", "user", "payload", "amount", "kind"],
        "properties": {
            "event_id": {"type": "string", "minLength": 1},
            "user": {"type": "integer", "minimum": 0},
            "payload": {"type": "string"},
            "amount": {"type": "number", "minimum": 0},
            "kind": {"enum": ["click", "view"]},
        },
    },
    "rules": {
        "named": 'event_id.startswith("event-")',
        "paid": 'kind == "click" or amount == 0',
        "short": "len(payload) < 1000",
    },
}


def ours(config: KafkaConfig, window: Window, target: str, agent: str, **params: object) -> tuple[float, float]:
    """A built-in agent, run as an orchestrator runs it.

    Returns the seconds that its result says, start order and ledger included, and those of CPU that the process took in all.
    """
    run = AgentRun(pipeline=target, stage=agent, agent=AgentRef(agent), window=window, output_topic=target, params=params)
    done, cost = run_agent(config, run)
    if done.counts.produced != window.size:
        raise SystemExit(f"expected {window.size} events, {done.counts.produced} were produced")
    return done.seconds, cost.cpu


def peer(python: Path, script: str, config: KafkaConfig, source: str, target: str, events: int) -> tuple[float, float]:
    """A peer's script in its environment; the seconds that it says, and those of CPU that the process took in all."""
    cost = run_process([python, PEERS / script, config.bootstrap, source, target, str(events)])
    return float(json.loads(cost.output.strip().splitlines()[-1])["seconds"]), cost.cpu


def main() -> None:
    """Fill, race, report."""
    options = arguments(__doc__ or "", events=1_000_000)
    events = 20_000 if options.smoke else options.events
    config = KafkaConfig(bench_sandbox().info().bootstrap)
    cluster = Cluster(config)
    source = f"bench-in-{uuid.uuid4().hex[:8]}"
    window = filled_window(config, source, events, PARTITIONS)
    peers = peers_python()

    def target(name: str, n: int) -> str:
        topic = f"{source}-{name}-{n}"
        cluster.create(topic, PARTITIONS, settings={"retention.ms": "-1"})
        return topic

    here = Path(sys.executable)

    def built_in(name: str, agent: str, **params: object) -> Callable[[int], tuple[float, float]]:
        """``enrich`` without a function passes events through."""
        return lambda n: ours(config, msgspec.structs.replace(window, name=f"{name}-{n}"), target(name, n), agent, **params)

    def scripted(name: str, python: Path, script: str) -> Callable[[int], tuple[float, float]]:
        return lambda n: peer(python, script, config, source, target(name, n), events)

    contestants: dict[str, Callable[[int], tuple[float, float]]] = {
        "factory": built_in("factory", "enrich"),
        "factory, validate": built_in("validate", "validate", contract=CONTRACT),
        "bare confluent": scripted("bare", here, "bare_confluent.py"),
        "quix streams": scripted("quix", peers, "quix_streams.py"),
        "kafka-python": scripted("seed", peers, "kafka_python_loop.py"),
        "official operators": scripted("official", here, "official_operators.py"),
    }
    if shutil.which("cc"):
        contestants["batches in C (experiment)"] = scripted("native", here, "native_batch.py")
    seconds, ratios = timed(options.rounds, contestants, "factory")
    report("agent throughput", seconds, "factory", events, "events", {"cpu_ratios": ratios})


if __name__ == "__main__":
    main()
