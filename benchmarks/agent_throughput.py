"""One agent process over a topic: decode, set a field, encode, headers, exactly once; beside its peers in one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
from harness import ROOT, arguments, bench_sandbox, fill, peers_python, report, rounds

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import AgentRef, AgentRun, PartitionRange, Window, decode_result, encode

PARTITIONS = 4
PEERS = ROOT / "benchmarks" / "peers"


def ours(config: KafkaConfig, window: Window, target: str) -> float:
    """The built-in ``enrich`` without a function, run as an orchestrator runs it.

    Returns the seconds that its result says, start order and ledger included.
    """
    run = AgentRun(pipeline=target, stage="enrich", agent=AgentRef("enrich"), window=window, output_topic=target)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        given = Path(folder) / "run.json"
        given.write_bytes(encode(run))
        subprocess.run(
            [sys.executable, "-m", "factory_agents.run", "--run", given, "--result", result],
            env={**os.environ, **config.to_env(), "FACTORY_LOG_LEVEL": "ERROR"},
            check=True,
        )
        done = decode_result(result.read_bytes())
    if done.counts.produced != window.size:
        raise SystemExit(f"expected {window.size} events, {done.counts.produced} were produced")
    return done.seconds


def peer(python: Path, script: str, config: KafkaConfig, source: str, target: str, events: int) -> float:
    """A peer's script in its environment; the seconds that it says."""
    done = subprocess.run(
        [python, PEERS / script, config.bootstrap, source, target, str(events)],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise SystemExit(f"{script} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


def main() -> None:
    """Fill, race, report."""
    options = arguments(__doc__ or "", events=1_000_000)
    events = 20_000 if options.smoke else options.events
    config = KafkaConfig(bench_sandbox().info().bootstrap)
    cluster = Cluster(config)
    source = f"bench-in-{uuid.uuid4().hex[:8]}"
    fill(config, source, events, PARTITIONS)
    ends = cluster.stable_offset(source, range(PARTITIONS))
    each = [events // PARTITIONS + (p < events % PARTITIONS) for p in range(PARTITIONS)]
    ranges = tuple(PartitionRange(p, 0, ends[p], each[p]) for p in range(PARTITIONS))
    window = Window("bench", source, cluster.topic(source).id, ranges, name="bench", writers=("bench/fill/0",))
    peers = peers_python()

    def target(name: str, n: int) -> str:
        topic = f"{source}-{name}-{n}"
        cluster.create(topic, PARTITIONS, settings={"retention.ms": "-1"})
        return topic

    def scripted(name: str, python: Path, script: str) -> Callable[[int], float]:
        return lambda n: peer(python, script, config, source, target(name, n), events)

    here = Path(sys.executable)
    seconds = rounds(
        options.rounds,
        {
            "factory": lambda n: ours(config, msgspec.structs.replace(window, name=f"bench-{n}"), target("factory", n)),
            "bare confluent": scripted("bare", here, "bare_confluent.py"),
            "quix streams": scripted("quix", peers, "quix_streams.py"),
            "kafka-python": scripted("seed", peers, "kafka_python_loop.py"),
            "official operators": scripted("official", here, "official_operators.py"),
        },
    )
    report("agent throughput", seconds, "factory", events, "events")


if __name__ == "__main__":
    main()
