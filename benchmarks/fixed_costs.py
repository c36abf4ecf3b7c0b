"""What is paid once, whatever the size: the start of an agent, an empty window, ten records, and a whole DAG run of 10,000 events."""

from __future__ import annotations

import json
import random
import statistics
import sys
import sysconfig
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
from harness import ROOT, Cost, arguments, bench_sandbox, filled_window, peers_python, run_agent, run_process, spread

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import AgentRef, AgentRun, Window
from factory_agents.sandbox import Sandbox

sys.path.insert(0, str(ROOT / "scripts"))
from airflow_env import PYTHON_BIN, airflow_environment, prepare

PEERS = ROOT / "benchmarks" / "peers"
FEW = 10
HOUR = datetime(2018, 7, 1, tzinfo=UTC)

Measured = dict[str, list[float]]


class Bench:
    """One sandbox, topics with names of their own, and the contestants' costs."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.config = KafkaConfig(sandbox.info().bootstrap)
        self.cluster = Cluster(self.config)
        self.name = f"bench-fixed-{uuid.uuid4().hex[:8]}"
        self.peers = peers_python()
        self.few = filled_window(self.config, f"{self.name}-in", FEW, 4)
        self.costs: dict[str, dict[str, list[Cost]]] = {}
        self.firsts: Measured = {}

    def topic(self, name: str) -> str:
        topic = f"{self.name}-{name}-{uuid.uuid4().hex[:6]}"
        self.cluster.create(topic, 4, settings={"retention.ms": "-1"})
        return topic

    def note(self, what: str, who: str, cost: Cost) -> None:
        self.costs.setdefault(what, {}).setdefault(who, []).append(cost)
        print(f"  {what:<24} {who:<16} {cost.wall:7.2f} s, {cost.cpu:6.2f} s of CPU, {cost.peak:5.0f} MB", file=sys.stderr)

    def ours(self, window: Window, name: str) -> Cost:
        """One stage in a process, from its start to its end; ``firsts`` takes note of when the agent saw its first event."""
        out = self.topic("out")
        run = AgentRun(out, "enrich", AgentRef(name), window=window, output_topic=out)
        with tempfile.TemporaryDirectory() as folder:
            stamp = Path(folder) / "stamp"
            began = time.monotonic()
            _, cost = run_agent(self.config, run, BENCH_STAMP=str(stamp), PYTHONPATH=str(ROOT))
            if stamp.exists():
                self.firsts.setdefault("factory", []).append(float(stamp.read_text()) - began)
        return cost

    def peer(self, who: str, python: Path, script: str) -> Cost:
        began = time.monotonic()
        cost = run_process([python, PEERS / script, self.config.bootstrap, self.few.topic, self.topic("out"), str(FEW)])
        self.firsts.setdefault(who, []).append(json.loads(cost.output.splitlines()[-1])["first"] - began)
        return cost

    def stages(self) -> None:
        """An empty window, and ten records beside the peers."""
        empty = Window("bench", self.few.topic, self.few.topic_id, (), name="empty")
        self.note("an empty window", "factory", self.ours(empty, "benchmarks.stamp:stamp"))
        self.note("ten records", "factory", self.ours(self.few, "benchmarks.stamp:stamp"))
        self.note("ten records", "bare confluent", self.peer("bare confluent", Path(sys.executable), "bare_confluent.py"))
        self.note("ten records", "kafka-python", self.peer("kafka-python", self.peers, "kafka_python_loop.py"))

    def dags(self, events: int, n: int) -> None:
        """The hourly pipeline and the seed's DAG by ``airflow dags test``, over the same events, in a topic and a table each."""
        environment = {**airflow_environment(self.sandbox), "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "300"}
        prepare(environment)
        with tempfile.TemporaryDirectory() as folder:
            hour = HOUR + timedelta(hours=random.randrange(8000))
            source = Path(folder) / "events.jsonl"
            write_events(source, events, hour)
            table = f"bench_{uuid.uuid4().hex[:8]}"
            test = [PYTHON_BIN / "airflow", "dags", "test"]
            until = (hour + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M")
            environment["FACTORY_FILES"] = folder  # a run's parameters may name its files
            conf = json.dumps({"source": str(source), "table": table})
            self.note(
                f"a DAG run, {events:,} events",
                "factory",
                run_process([*test, "software_factory_pipeline", until, "-c", conf], environment),
            )
            self.check(table, events)
            name = f"{self.name}-{n}"
            for part in ("raw", "enriched", "valid"):
                self.cluster.create(f"{name}-{part}", 4, settings={"retention.ms": "-1"})
            seed = {
                "SEED_PYTHON": str(self.peers),
                "SEED_AGENT": str(PEERS / "seed_agent.py"),
                "SEED_NAME": name,
                "SEED_FILE": str(source),
                "SEED_EVENTS": str(events),
                "PYTHONPATH": sysconfig.get_path("purelib"),
                "AIRFLOW__CORE__DAGS_FOLDER": str(PEERS / "dags"),
            }
            self.note(f"a DAG run, {events:,} events", "seed's DAG", run_process([*test, "seed_pipeline"], environment | seed))
            self.check(name.replace("-", "_"), events)

    def check(self, table: str, events: int) -> None:
        """All events have to have landed; the table is dropped then."""
        with psycopg.connect(self.sandbox.info().database_url, autocommit=True) as database:
            found = database.execute(f'SELECT count(*) FROM "{table}"').fetchone()  # type: ignore[arg-type]  # psycopg wants literals
            if found != (events,):
                raise SystemExit(f"expected {events} rows in {table}, found {found}")
            database.execute(f'DROP TABLE "{table}"')  # type: ignore[arg-type]


def write_events(path: Path, events: int, hour: datetime) -> None:
    """Events that keep the repository's contract, all within an hour."""
    start = int(hour.timestamp())
    with path.open("w") as out:
        for n in range(events):
            commit, file = f"{start + n:040x}", f"src/module_{n % 97}.py"
            event = {"event_id": f"repo:{commit}:{file}", "repo": "repo", "commit": commit, "path": file}
            out.write(json.dumps(event | {"added": n % 7, "deleted": n % 3, "occurred_at": start + n % 3600}) + "\n")


def ratio(of: Callable[[Cost], float], ours: list[Cost], theirs: list[Cost]) -> dict[str, float]:
    """Theirs ÷ ours, pair by pair."""
    return spread([of(b) / of(a) for a, b in zip(ours, theirs, strict=True)])


def main() -> None:
    """Measure, print, and end with one JSON line."""
    options = arguments(__doc__ or "", events=10_000)
    bench = Bench(bench_sandbox())
    for n in range(options.rounds):
        bench.stages()
        bench.dags(200 if options.smoke else options.events, n)
    print(f"\nfixed costs  ({options.rounds} rounds, {time.strftime('%F', time.gmtime())})\n")
    print("| what | who | seconds, median | CPU seconds | peak MB | theirs ÷ ours: seconds | CPU |\n|---|---|---|---|---|---|---|")
    ratios: dict[str, dict[str, object]] = {}
    seconds: dict[str, dict[str, float]] = {}
    for what, of in bench.costs.items():
        for who, costs in of.items():
            wall, cpu = (ratio(key, of["factory"], costs) for key in (lambda c: c.wall, lambda c: c.cpu))
            wall_s, cpu_s, peak = (statistics.median(getattr(c, key) for c in costs) for key in ("wall", "cpu", "peak"))
            seconds.setdefault(what, {})[who] = round(wall_s, 2)
            if who != "factory":
                ratios.setdefault(what, {})[who] = {"wall": wall, "cpu": cpu}
            shown = " | ".join(f"{r['median']} ({r['min']} to {r['max']})" for r in (wall, cpu))
            print(f"| {what} | {who} | {wall_s:.2f} | {cpu_s:.2f} | {peak:.0f} | {shown} |")
    for who, firsts in bench.firsts.items():
        print(f"from process start to the first record, {who}: {statistics.median(firsts):.2f} s ({min(firsts):.2f} to {max(firsts):.2f})")
    firsts = {who: spread(times) for who, times in bench.firsts.items()}
    print(json.dumps({"benchmark": "fixed costs", "ratios": ratios, "seconds": seconds, "first_record": firsts}))


if __name__ == "__main__":
    main()
