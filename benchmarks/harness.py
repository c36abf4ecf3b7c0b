"""What the benchmarks share: a sandbox, a filled topic, paired rounds, ratios with their spread, one JSON line at the end."""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory_agents.errors import UnavailableError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.reader import WRITER_HEADER
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import AgentResult, AgentRun, PartitionRange, Window, decode_result, encode
from factory_agents.sandbox import Sandbox

__all__ = [
    "ROOT",
    "Cost",
    "arguments",
    "bench_sandbox",
    "fill",
    "filled_window",
    "peers_python",
    "report",
    "rounds",
    "run_agent",
    "run_live",
    "run_process",
    "spread",
    "timed",
]

ROOT = Path(__file__).resolve().parent.parent
_SCRAPE_SECONDS = 1.0  # Prometheus asks every 15


@dataclass(frozen=True)
class Cost:
    """What a process took from its start to its end: seconds on the wall, seconds of CPU, MB of memory at its most."""

    wall: float
    cpu: float
    peak: float
    output: str = ""


def run_process(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Cost:
    """Run a command that must succeed, and say what it cost. Its output is kept, and shown where it fails."""
    with tempfile.TemporaryFile() as output:
        began, peak = time.monotonic(), 0.0
        process = subprocess.Popen(command, env=environment and dict(environment), cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        with os.fdopen(os.pidfd_open(process.pid)) as ended:
            while not select.select([ended], [], [], 0.05)[0]:  # what wait4 says of memory begins with the parent's own size
                peak = max(peak, _peak(process.pid))
        wall = time.monotonic() - began
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{text[-3000:]}")
    return Cost(wall, used.ru_utime + used.ru_stime, peak, text)


def _peak(pid: int) -> float:
    """MB of a running process at its most so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def run_agent(config: KafkaConfig, run: AgentRun, **environment: str) -> tuple[AgentResult, Cost]:
    """An agent run as an orchestrator runs it: a process that is given its run, and gives its result."""
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "run.json", Path(folder) / "result.json"
        given.write_bytes(encode(run))
        command = [sys.executable, "-m", "factory_agents.run", "--run", given, "--result", result]
        cost = run_process(command, {**os.environ, **config.to_env(), "FACTORY_LOG_LEVEL": "ERROR", **environment})
        return decode_result(result.read_bytes()), cost


def run_live(
    cluster: Cluster, agent: str, window: Window, target: str, options: Sequence[str], environment: Mapping[str, str]
) -> tuple[float, float]:
    """A live agent over what lies in a window's topic: seconds from its first event to the commit of the last one; CPU of the process.

    The agent notes its first event in the file ``BENCH_STAMP`` of the environment (see ``stamp.py``).
    """
    command = [sys.executable, "-m", "factory_agents.cli", "agent", "run", agent, "--in-topic", window.topic, "--out-topic", target]
    own = {**os.environ, **environment}
    process = subprocess.Popen(
        [*command, "--group", target, *options], env=own, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    with _scraped(process):
        while not _is_handled(cluster, window, target):
            time.sleep(0.02)
            if process.poll() is not None:
                raise SystemExit(f"the live agent ended with {process.returncode}")
        ended = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return ended - float(Path(environment["BENCH_STAMP"]).read_text()), used.ru_utime + used.ru_stime


def _is_handled(cluster: Cluster, window: Window, target: str) -> bool:
    """Whether the group, which is named as its output is, stands behind the window's last records; their markers don't count."""
    with suppress(UnavailableError):  # a broker that this load keeps busy says so at the next look
        if sum(cluster.stable_offset(target, range(cluster.topic(target).partitions)).values()) < window.size:
            return False  # asked first: it is the cheaper question
        at = cluster.positions(target, {window.topic: cluster.topic(window.topic).partitions})
        return all(at.get((window.topic, r.partition), 0) >= r.end - 1 for r in window.ranges)
    return False


@contextmanager
def _scraped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ask a live agent for its metrics as Prometheus does, from when its log says where they are; without any, only read its log."""
    over = threading.Event()
    threads: list[threading.Thread] = []

    def ask(address: str) -> None:
        while not over.wait(_SCRAPE_SECONDS):
            with suppress(OSError), urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
                answer.read()

    def read() -> None:
        for line in process.stderr or ():
            if b"serving metrics" in line:
                threads.append(threading.Thread(target=ask, args=(json.loads(line)["address"],), daemon=True))
                threads[-1].start()

    threads.append(threading.Thread(target=read, daemon=True))
    threads[0].start()
    try:
        yield
    finally:
        over.set()
        if process.poll() is None:
            process.kill()
        for thread in threads:
            thread.join()


def arguments(doc: str, **defaults: int) -> argparse.Namespace:
    """``--smoke``, ``--rounds`` and one integer option for each default."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--smoke", action="store_true", help="small sizes, one round: shows that it runs, measures nothing")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, each with every contestant once (default: 3)")
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"(default: {value:,})")
    options = parser.parse_args()
    if options.smoke:
        options.rounds = 1
    return options


def bench_sandbox(*, with_registry: bool = False, with_warehouses: bool = False) -> Sandbox:
    """A sandbox of the benchmarks' own, in ``.factory/bench``; ``with_warehouses``: the emulators of BigQuery and Snowflake, too."""
    home = ROOT / ".factory" / "bench"
    sandbox = Sandbox(home, with_registry=with_registry, with_bigquery=with_warehouses, with_snowflake=with_warehouses)
    sandbox.up()
    return sandbox


def peers_python() -> Path:
    """The Python of the environment that holds the peers, made on first use: their pins don't go with ours."""
    home = ROOT / ".factory" / "peers"
    python = home / "bin" / "python"
    locked = ROOT / "requirements" / "benchmarks.txt"
    if not (home / ".ready").exists() or (home / ".ready").stat().st_mtime < locked.stat().st_mtime:
        print("installing the peers …", file=sys.stderr)
        uv = Path(sys.executable).with_name("uv")
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, home], check=True)
        subprocess.run([uv, "pip", "sync", "--quiet", "--python", python, "--require-hashes", locked], check=True)
        (home / ".ready").touch()
    return python


def _as_json(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode()


def fill(
    config: KafkaConfig,
    topic: str,
    events: int,
    partitions: int,
    *,
    traced: int = 0,
    encode: Callable[[dict[str, Any]], bytes] = _as_json,
) -> None:
    """Create a topic with this many events of about 180 bytes, each with a header, and one of ``traced`` with a trace."""
    Cluster(config).create(topic, partitions, settings={"retention.ms": "-1"})
    producer = config.producer(f"fill-{topic}")
    producer.init_transactions()
    producer.begin_transaction()
    padding = "x" * 90
    plain: list[tuple[str, Any]] = [(WRITER_HEADER, b"bench/fill/0")]
    for i in range(events):
        headers = [*plain, ("traceparent", f"00-{i + 1:032x}-{i + 1:016x}-01".encode())] if traced and i % traced == 0 else plain
        value = encode({"event_id": f"event-{i:09d}", "user": i % 9973, "payload": padding, "amount": i * 0.25, "kind": "click"})
        while True:
            try:
                producer.produce(topic, value, f"event-{i:09d}".encode(), partition=i % partitions, headers=headers)
                break
            except BufferError:
                producer.poll(0.1)
        if i % 100_000 == 99_999:  # a transaction has a minute
            producer.commit_transaction()
            producer.begin_transaction()
    producer.commit_transaction()


def filled_window(
    config: KafkaConfig,
    topic: str,
    events: int,
    partitions: int,
    *,
    traced: int = 0,
    encode: Callable[[dict[str, Any]], bytes] = _as_json,
) -> Window:
    """A new topic with so many events, as the window that a stage before would have left."""
    fill(config, topic, events, partitions, traced=traced, encode=encode)
    cluster = Cluster(config)
    ends = cluster.high_watermark(topic, range(partitions))
    while cluster.stable_offset(topic, range(partitions)) != ends:  # a commit is answered before its markers stand in the log
        time.sleep(0.01)
        ends = cluster.high_watermark(topic, range(partitions))
    each = [events // partitions + (p < events % partitions) for p in range(partitions)]
    ranges = tuple(PartitionRange(p, 0, ends[p], each[p]) for p in range(partitions) if each[p])
    return Window("bench", topic, cluster.topic(topic).id, ranges, name="bench", writers=("bench/fill/0",))


def rounds(count: int, contestants: Mapping[str, Callable[[int], float]]) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, the contestants taking turns so that a machine's moods fall on all."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for n in range(count):
        for name, run in contestants.items():
            took = run(n)
            seconds[name].append(took)
            print(f"  round {n + 1}/{count}  {name:<18} {took:8.2f} s", file=sys.stderr)
    return seconds


def timed(
    count: int, contestants: Mapping[str, Callable[[int], tuple[float, float]]], ours: str
) -> tuple[dict[str, list[float]], dict[str, dict[str, float]]]:
    """Rounds of contestants that say their seconds, and those of CPU that the whole process took; prints ``other / ours`` of the latter."""
    cpu: dict[str, list[float]] = {name: [] for name in contestants}

    def contestant(name: str) -> Callable[[int], float]:
        def once(n: int) -> float:
            seconds, used = contestants[name](n)
            cpu[name].append(used)
            return seconds

        return once

    seconds = rounds(count, {name: contestant(name) for name in contestants})
    ratios = {
        name: spread([theirs / mine for theirs, mine in zip(used, cpu[ours], strict=True)]) for name, used in cpu.items() if name != ours
    }
    print("CPU of the whole process, start included: its ÷ ours, median (min to max)")
    for name, r in ratios.items():
        print(f"  {name:<24} {r['median']} ({r['min']} to {r['max']})")
    return seconds, ratios


def spread(ratios: list[float]) -> dict[str, float]:
    """Least, median and greatest."""
    return {"min": round(min(ratios), 3), "median": round(statistics.median(ratios), 3), "max": round(max(ratios), 3)}


def report(
    title: str, seconds: Mapping[str, list[float]], ours: str, work: int, unit: str, more: Mapping[str, object] | None = None
) -> None:
    """Print rates and ``ours / other`` speed ratios, pair by pair, then all of it as one JSON line."""
    print(f"\n{title}  ({work:,} {unit}, {len(seconds[ours])} rounds, {time.strftime('%F', time.gmtime())})\n")
    print(f"| contestant | {unit}/s, median | ours ÷ it: median (min to max) |\n|---|---|---|")
    ratios = {}
    for name, took in seconds.items():
        ratios[name] = spread([other / mine for other, mine in zip(took, seconds[ours], strict=True)])
        r = ratios[name]
        print(f"| {name} | {work / statistics.median(took):,.0f} | {r['median']} ({r['min']} to {r['max']}) |")
    ratios.pop(ours)
    print(json.dumps({"benchmark": title, "ratios": ratios, **(more or {})}))
