"""What metrics and traces cost: the same agent over the same events with and without them, in turn; windowed, and live."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
from harness import ROOT, arguments, bench_sandbox, filled_window, report, rounds, run_agent, run_live, spread

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import AgentRef, AgentRun, Window

PARTITIONS = 4
AGENT = "benchmarks.stamp:stamp"


class Collector(BaseHTTPRequestHandler):
    """Takes whatever it is sent."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """See ``BaseHTTPRequestHandler``."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""


class Bench:
    """Windows of events of which none, few or, of a tenth as many, all carry a trace; what each contestant took beside its seconds."""

    def __init__(self, events: int, traced: int, collector: str) -> None:
        self.config = KafkaConfig(bench_sandbox().info().bootstrap)
        self.cluster = Cluster(self.config)
        self.name = f"bench-telemetry-{uuid.uuid4().hex[:8]}"
        self.on = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector}
        self.windows = {
            "none": filled_window(self.config, f"{self.name}-none", events, PARTITIONS),
            "few": filled_window(self.config, f"{self.name}-few", events, PARTITIONS, traced=traced),
            "all": filled_window(self.config, f"{self.name}-all", events // 10, PARTITIONS, traced=1),
        }
        self.cpu: dict[str, list[float]] = {}
        self.starts: dict[str, list[float]] = {}

    def target(self, name: str, n: int) -> str:
        topic = f"{self.name}-{name.replace(' ', '-').replace(',', '')}-{n}"
        self.cluster.create(topic, PARTITIONS, settings={"retention.ms": "-1"})
        return topic

    @contextmanager
    def stamped(self, name: str) -> Iterator[dict[str, str]]:
        """The environment of an agent that notes its first event; how long after the start it came is kept."""
        with tempfile.TemporaryDirectory() as folder:
            stamp, began = Path(folder) / "stamp", time.monotonic()
            yield {"BENCH_STAMP": str(stamp), "PYTHONPATH": str(ROOT)}
            self.starts.setdefault(name, []).append(float(stamp.read_text()) - began)

    def windowed(self, name: str, of: str, environment: Mapping[str, str]) -> Callable[[int], float]:
        """An agent over a window: its own seconds."""
        window = self.windows[of]

        def once(n: int) -> float:
            target = self.target(name, n)
            own: Window = msgspec.structs.replace(window, name=f"bench-{n}")
            run = AgentRun(pipeline=target, stage="stamp", agent=AgentRef(AGENT), window=own, output_topic=target)
            with self.stamped(name) as stamp:
                done, cost = run_agent(self.config, run, **environment, **stamp)
            if done.counts.produced != window.size:
                raise SystemExit(f"expected {window.size} events, {done.counts.produced} were produced")
            self.cpu.setdefault(name, []).append(cost.cpu)
            return done.seconds

        return once

    def live(self, name: str, of: str, arguments: list[str], environment: Mapping[str, str]) -> Callable[[int], float]:
        """A live agent over what lies in a topic, scraped once a second: from its first event to the last commit."""

        def once(n: int) -> float:
            with self.stamped(name) as stamp:
                seconds, cpu = run_live(
                    self.cluster, AGENT, self.windows[of], self.target(name, n), arguments, {**self.config.to_env(), **environment, **stamp}
                )
            self.cpu.setdefault(name, []).append(cpu)
            return seconds

        return once


def against(mine: Mapping[str, list[float]], off: str, on: str) -> dict[str, float]:
    """How much of the speed of ``off`` is left to ``on``, pair by pair."""
    return spread([a / b for a, b in zip(mine[off], mine[on], strict=True)])


def main() -> None:
    """Fill, race, report."""
    options = arguments(__doc__ or "", events=3_000_000, traced=200_000)
    events = 20_000 if options.smoke else options.events
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    bench = Bench(events, options.traced, f"http://127.0.0.1:{server.server_address[1]}")
    few = f"on, 1 in {options.traced} traced"
    seconds = rounds(
        options.rounds,
        {
            "off": bench.windowed("off", "none", {}),
            few: bench.windowed(few, "few", bench.on),
            "off, all carry a trace": bench.windowed("off, all carry a trace", "all", {}),
            "on, all carry a trace": bench.windowed("on, all carry a trace", "all", bench.on),
            "live, off": bench.live("live, off", "none", [], {}),
            f"live, {few}": bench.live(f"live, {few}", "few", ["--metrics-listen", "0"], bench.on),
        },
    )
    server.shutdown()
    pairs = {few: "off", "on, all carry a trace": "off, all carry a trace", f"live, {few}": "live, off"}
    kept = {on: {"speed": against(seconds, off, on), "per CPU second": against(bench.cpu, off, on)} for on, off in pairs.items()}
    starts = {name: round(statistics.median(each), 3) for name, each in bench.starts.items()}
    later = {on: spread([b - a for a, b in zip(bench.starts[off], bench.starts[on], strict=True)]) for on, off in pairs.items()}
    for on, off in pairs.items():
        print(f"{on} ÷ {off}: {kept[on]}; its first event came {later[on]} s later")
    print(f"seconds from the start of the process to its first event: {starts}")
    report("cost of telemetry", seconds, "off", events, "events", {"kept": kept, "later": later, "starts": starts})


if __name__ == "__main__":
    main()
