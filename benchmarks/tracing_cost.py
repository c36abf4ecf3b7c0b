"""What traces cost: the same agent process over the same events with tracing off and on, in turn."""

from __future__ import annotations

import statistics
import threading
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
from harness import arguments, bench_sandbox, filled_window, report, rounds, run_agent

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import AgentRef, AgentRun, Window

PARTITIONS = 4


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


def main() -> None:
    """Fill, race, report."""
    options = arguments(__doc__ or "", events=1_000_000, traced=100_000)
    events = 20_000 if options.smoke else options.events
    config = KafkaConfig(bench_sandbox().info().bootstrap)
    cluster = Cluster(config)
    source = f"bench-traces-{uuid.uuid4().hex[:8]}"
    windows = {
        "plain": filled_window(config, f"{source}-plain", events, PARTITIONS),
        "few": filled_window(config, f"{source}-few", events, PARTITIONS, traced=options.traced),
        "all": filled_window(config, f"{source}-all", events, PARTITIONS, traced=1),
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    on = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}"}
    around: dict[str, list[float]] = {}

    def contestant(name: str, window: Window, environment: dict[str, str]) -> Callable[[int], float]:
        def once(n: int) -> float:
            target = f"{source}-{name.replace(' ', '-').replace(',', '')}-{n}"
            cluster.create(target, PARTITIONS, settings={"retention.ms": "-1"})
            own = msgspec.structs.replace(window, name=f"bench-{n}")
            run = AgentRun(pipeline=target, stage="enrich", agent=AgentRef("enrich"), window=own, output_topic=target)
            done, cost = run_agent(config, run, **environment)
            if done.counts.produced != window.size:
                raise SystemExit(f"expected {window.size} events, {done.counts.produced} were produced")
            around.setdefault(name, []).append(cost.wall - done.seconds)
            return done.seconds

        return once

    seconds = rounds(
        options.rounds,
        {
            "off": contestant("off", windows["plain"], {}),
            "on": contestant("on", windows["plain"], on),
            f"on, 1 in {options.traced} traced": contestant("few", windows["few"], on),
            "off, all carry a trace": contestant("all off", windows["all"], {}),
            "on, all carry a trace": contestant("all on", windows["all"], on),
        },
    )
    server.shutdown()
    starts = {name: round(statistics.median(each), 3) for name, each in around.items()}
    print(f"start and end of the process, seconds beside the run: {starts}")
    report("cost of traces", seconds, "off", events, "events", {"around": starts})


if __name__ == "__main__":
    main()
