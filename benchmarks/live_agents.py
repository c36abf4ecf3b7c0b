"""Live agents: a plain one beside the same agent over a window, and slow calls, 64 at once, beside the least time that they can take, a
hand-written asyncio consumer, Faust, and Quix Streams. That one makes one call after the other: it is given fewer events, and its seconds
are those of as many as the others have.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
from harness import ROOT, arguments, bench_sandbox, filled_window, peers_python, report, rounds, run_agent, run_live, run_process, spread
from peers.latency import latency

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import AgentRef, AgentRun, Window

PARTITIONS, CONCURRENCY = 4, 64
PEERS = ROOT / "benchmarks" / "peers"


def ideal(events: int) -> float:
    """Seconds that all calls take where none of the 64 places is ever empty."""
    return sum(latency(f"event-{i:09d}") for i in range(events)) / CONCURRENCY


class Bench:
    """Topics of events, and what each contestant took beside its seconds."""

    def __init__(self, events: int, calls: int, fewer: int) -> None:
        self.config = KafkaConfig(bench_sandbox().info().bootstrap)
        self.cluster = Cluster(self.config)
        self.name = f"bench-live-{uuid.uuid4().hex[:8]}"
        self.plain = filled_window(self.config, self.name, events, PARTITIONS)
        self.slow = filled_window(self.config, f"{self.name}-calls", calls, PARTITIONS)
        self.few = filled_window(self.config, f"{self.name}-few", fewer, PARTITIONS)
        self.cpu: dict[str, list[float]] = {}

    def target(self, name: str, n: int) -> str:
        """A new topic to write to."""
        topic = f"{self.name}-{name.replace(' ', '-')}-{n}"
        self.cluster.create(topic, PARTITIONS, settings={"retention.ms": "-1"})
        return topic

    def live(self, name: str, agent: str, over: Window) -> Callable[[int], float]:
        """A live agent over what lies in a topic."""

        def once(n: int) -> float:
            with tempfile.TemporaryDirectory() as folder:
                environment = {**self.config.to_env(), "BENCH_STAMP": str(Path(folder) / "stamp"), "PYTHONPATH": str(ROOT)}
                seconds, cpu = run_live(self.cluster, agent, over, self.target(name, n), [], environment)
            self.cpu.setdefault(name, []).append(cpu)
            return seconds

        return once

    def windowed(self, name: str, agent: str, over: Window) -> Callable[[int], float]:
        """An agent over a window: its own seconds."""

        def once(n: int) -> float:
            target, window = self.target(name, n), msgspec.structs.replace(over, name=f"bench-{n}")
            run = AgentRun(pipeline=target, stage="stamp", agent=AgentRef(agent), window=window, output_topic=target)
            with tempfile.TemporaryDirectory() as folder:
                done, cost = run_agent(self.config, run, BENCH_STAMP=str(Path(folder) / "stamp"), PYTHONPATH=str(ROOT))
            if done.counts.produced != window.size:
                raise SystemExit(f"expected {window.size} events, {done.counts.produced} were produced")
            self.cpu.setdefault(name, []).append(cost.cpu)
            return done.seconds

        return once

    def peer(self, name: str, python: str | Path, script: str, over: Window, *more: str) -> Callable[[int], float]:
        """A peer over what lies in a topic: its own seconds, from its first event on."""

        def once(n: int) -> float:
            command = [python, PEERS / script, self.config.bootstrap, over.topic, self.target(name, n), str(over.size), *more]
            cost = run_process(command)
            self.cpu.setdefault(name, []).append(cost.cpu)
            return float(json.loads(cost.output.strip().splitlines()[-1])["seconds"])

        return once


def main() -> None:
    """Fill, race, report."""
    options = arguments(__doc__ or "", events=2_000_000, calls=10_000, fewer=200)
    events, calls, fewer = (20_000, 500, 20) if options.smoke else (options.events, options.calls, options.fewer)
    bench = Bench(events, calls, fewer)
    plain = rounds(
        options.rounds,
        {
            "live": bench.live("live", "benchmarks.stamp:stamp", bench.plain),
            "windowed": bench.windowed("windowed", "benchmarks.stamp:stamp", bench.plain),
        },
    )
    quix = bench.peer("Quix Streams", peers_python(), "quix_streams.py", bench.few, "calls")
    slow = rounds(
        options.rounds,
        {
            "live": bench.live("live calls", "benchmarks.calls:call", bench.slow),
            "windowed": bench.windowed("windowed calls", "benchmarks.calls:call", bench.slow),
            "asyncio, by hand": bench.peer("asyncio", sys.executable, "asyncio_calls.py", bench.slow),
            "Faust": bench.peer("Faust", peers_python(), "faust_calls.py", bench.slow),
            "Quix Streams": lambda n: quix(n) * ideal(calls) / ideal(fewer),
        },
    )
    cpu = spread([b / a for a, b in zip(bench.cpu["live"], bench.cpu["windowed"], strict=True)])
    print(f"CPU of the whole process, windowed ÷ live: {cpu}")
    report("a plain live agent", plain, "live", events, "events", {"cpu": cpu})
    least = ideal(calls)
    reached = {name: round(least / statistics.median(took), 3) for name, took in slow.items()}
    print(f"\n{CONCURRENCY} calls at once: at least {least:.2f} s; of that speed: {reached}")
    used = {name: round(1000 * statistics.median(each) / calls, 3) for name, each in bench.cpu.items() if name not in ("live", "windowed")}
    used["Quix Streams"] = round(used["Quix Streams"] * calls / fewer, 3)
    print(f"CPU of the whole process, start included, milliseconds a call: {used}")
    report(f"slow calls, {CONCURRENCY} at once", slow, "live", calls, "calls", {"of the ideal": reached, "cpu ms": used})


if __name__ == "__main__":
    main()
