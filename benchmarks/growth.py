"""What grows with the window, with the partitions and with the age of the ledger: seconds, CPU and memory of one stage's process."""

from __future__ import annotations

import argparse
import json
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import msgspec
from harness import ROOT, bench_sandbox, filled_window, run_agent, run_process

from factory_agents.errors import UnavailableError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.cuts import plan_window
from factory_agents.kafka.ledger import (
    LEDGER_PARTITIONS,
    CutRecord,
    Ledger,
    LedgerRecord,
    PipelineRecord,
    PlanRecord,
    StageRecord,
    StoredResult,
)
from factory_agents.kafka.topics import Cluster, TopicInfo
from factory_agents.kafka.view import Follower
from factory_agents.protocol import AgentRef, AgentResult, AgentRun, Counts, Interval, Manifest, PartitionRange, Shard, Window

PARTITIONS = 4
IMAGE = ROOT / "docs" / "images" / "growth.svg"


@dataclass(frozen=True)
class Point:
    """One measurement: of a stage's process, or of a read of the ledger."""

    size: int
    seconds: float
    cpu: float
    peak: float


class Growth:
    """One sandbox; every measurement in topics and a pipeline of its own."""

    def __init__(self) -> None:
        self.config = KafkaConfig(bench_sandbox().info().bootstrap)
        self.cluster = Cluster(self.config)
        self.name = f"bench-grow-{uuid.uuid4().hex[:8]}"
        self.made: list[str] = []

    def topic(self, partitions: int) -> str:
        topic = f"{self.name}-{uuid.uuid4().hex[:6]}"
        self.cluster.create(topic, partitions, settings={"retention.ms": "-1"})
        self.made.append(topic)
        self.wait_led(topic, partitions)
        return topic

    def wait_led(self, topic: str, partitions: int) -> None:
        """A busy broker takes some moments to lead hundreds of new partitions."""
        until = time.monotonic() + 60
        while True:
            try:
                self.cluster.high_watermark(topic, range(partitions))
                return
            except UnavailableError:
                if time.monotonic() > until:
                    raise

    def stage(self, agent: str, window: Window, partitions: int, size: int, **params: object) -> Point:
        """``agent`` over a window, as an orchestrator runs it."""
        out = self.topic(partitions)
        run = AgentRun(window.pipeline, agent, AgentRef(agent), window=window, output_topic=out, params=params)
        done, cost = run_agent(self.config, run)
        print(f"  {agent:<9} {size:>10,} {done.seconds:8.2f} s {cost.cpu:7.2f} s of CPU {cost.peak:6.0f} MB", file=sys.stderr)
        return Point(size, done.seconds, round(cost.cpu, 3), round(cost.peak, 1))

    def filled(self, events: int, partitions: int) -> Window:
        name = f"{self.name}-in-{uuid.uuid4().hex[:6]}"
        self.made.append(name)
        window = filled_window(self.config, name, events, partitions)
        self.wait_led(name, partitions)
        return msgspec.structs.replace(window, pipeline=name)

    def windows(self, sizes: Sequence[int]) -> dict[str, list[Point]]:
        """Seconds and memory by the events in the window: enrich, and validate, which keeps a report."""
        contract = {"name": "bench", "id": "event_id", "schema": _SCHEMA}
        found: dict[str, list[Point]] = {"enrich": [], "validate": []}
        for size in sizes:
            window = self.filled(size, PARTITIONS)
            found["enrich"].append(self.stage("enrich", window, PARTITIONS, size))
            found["validate"].append(self.stage("validate", window, PARTITIONS, size, contract=contract))
            self.delete()
        return found

    def partitions(self, counts: Sequence[int], events: int) -> list[Point]:
        """The same events spread over more and more partitions."""
        points = []
        for count in counts:
            points.append(self.stage("enrich", self.filled(events, count), count, count))
            self.delete()
        return points

    def ledger(self, sizes: Sequence[int]) -> dict[str, list[Point]]:
        """What a pipeline's age costs: planning its next window, and the stages over it, with so many results in its ledger."""
        found: dict[str, list[Point]] = {"plan": [], "enrich": [], "read it all": []}
        pipeline = f"{self.name}-aged"
        ledger = Ledger(self.config, self.cluster, prefix="factory", pipeline=pipeline)
        ledger.ensure()
        topic = self.topic(PARTITIONS)
        hour, have = datetime(2020, 1, 1, tzinfo=UTC), 0
        for size in sizes:
            self._age(ledger, have, size)
            have = size
            interval = Interval(hour, hour := hour + timedelta(hours=1))
            began, cpu = time.monotonic(), time.process_time()
            window = plan_window(self.config, pipeline=pipeline, topic=topic, interval=interval)
            found["plan"].append(Point(size, round(time.monotonic() - began, 3), round(time.process_time() - cpu, 3), 0))
            began, cpu = time.monotonic(), time.process_time()
            ledger.read(deadline=began + 600)
            found["read it all"].append(Point(size, round(time.monotonic() - began, 3), round(time.process_time() - cpu, 3), 0))
            print(
                f"  plan      {size:>10,} {found['plan'][-1].seconds:8.2f} s; all read {found['read it all'][-1].seconds:.2f} s",
                file=sys.stderr,
            )
            found["enrich"].append(self.stage("enrich", window, PARTITIONS, size))
        return found

    def year(self, windows: int, live_windows: int) -> dict[str, list[Point]]:
        """A plan and a lag look-up in a pipeline of so many hours, which shares its part of the ledger with so many live windows.

        Each of them in a process of its own that looks twice: the first time it reads all of it, the second time what came since. Then
        both pipelines are pruned, the hours to 15 days (topics of 7 days) and the live windows to one day, and it is measured again, with
        the deletions still in the log, and once the broker has compacted it.
        """
        pipeline, topic = f"{self.name}-year", self.topic(PARTITIONS)
        ledger = Ledger(self.config, self.cluster, prefix=self.name, pipeline=pipeline)
        names = (Ledger(self.config, self.cluster, prefix=self.name, pipeline=f"{self.name}-live-{n}") for n in range(10_000))
        live = next(other for other in names if other.partition == ledger.partition)
        ledger.ensure()
        self.made.append(ledger.topic)
        self.cluster.alter(ledger.topic, {"delete.retention.ms": "1000"})
        now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        facts = self.cluster.topic(topic)
        found: dict[str, list[Point]] = {}

        def look(when: str) -> None:
            for what in ("plan", "lag"):
                interval = f"{(now - timedelta(hours=1)).isoformat()}/{now.isoformat()}"
                cost = run_process([sys.executable, "-c", _LOOK, what, self.config.bootstrap, self.name, pipeline, topic, interval])
                looks = json.loads(cost.output.splitlines()[-1])
                for which, (seconds, cpu) in zip(("at first", "then"), looks, strict=True):
                    point = Point(windows, round(seconds, 3), round(cpu, 3), round(cost.peak, 1))
                    found.setdefault(f"{what}, {which}, {when}", []).append(point)
                    print(f"  {what} {which} {when}: {seconds:.3f} s, {cpu:.3f} s of CPU, {cost.peak:.0f} MB", file=sys.stderr)

        self._write(ledger, (r for n in range(windows, 0, -1) for r in _hour(pipeline, facts, now - timedelta(hours=n + 1))))
        look("alone, all kept")
        self._write(live, (r for n in range(live_windows, 0, -1) for r in _arrivals(live.pipeline, facts, now - n * timedelta(seconds=5))))
        look("beside live publish, all kept")
        gone = 0
        for name, keep in ((pipeline, "15 d"), (live.pipeline, "1 d")):
            command = [sys.executable, "-m", "factory_agents.cli", "windows", "prune", "--pipeline", name, "--keep-windows", keep, "--json"]
            cost = run_process([*command, "--prefix", self.name, "--bootstrap", self.config.bootstrap])
            (pruned,) = json.loads(cost.output.splitlines()[-1])
            gone += pruned["records"]
            found.setdefault("the first prune", []).append(Point(pruned["windows"], cost.wall, cost.cpu, cost.peak))
            print(
                f"  pruned {pruned['records']:,} records: {cost.wall:.1f} s, {cost.cpu:.1f} s of CPU, {cost.peak:.0f} MB", file=sys.stderr
            )
        look("just pruned")
        self._wait_compacted(ledger, gone)
        look("pruned and compacted")
        return found

    def _wait_compacted(self, ledger: Ledger, gone: int) -> None:
        """Until the broker's cleaner has been over it, as it is a day later: then another segment is written to."""
        self.cluster.alter(ledger.topic, {"segment.ms": "1000", "min.cleanable.dirty.ratio": "0.01"})
        written = before = self._count(ledger)
        until = time.monotonic() + (300 if gone > 100_000 else 0)
        while time.monotonic() < until:
            count = self._count(ledger)
            print(f"  {count:,} records in the ledger", file=sys.stderr)
            self._write(ledger, [PipelineRecord(ledger.pipeline, "intervals")])
            if abs(count - before) < 10 and count < written - gone / 2:
                return
            before = count
            time.sleep(15)

    @staticmethod
    def _count(ledger: Ledger) -> int:
        counter = _Counter()
        ledger.follow(counter, deadline=time.monotonic() + 120)
        return counter.records

    def _write(self, ledger: Ledger, records: Iterable[LedgerRecord]) -> None:
        producer = self.config.producer(f"{self.name}-fill")
        producer.init_transactions()
        pending = iter(records)
        while batch := list(islice(pending, 20_000)):
            producer.begin_transaction()
            for record in batch:
                while True:
                    try:
                        ledger.produce(producer, [record])
                        break
                    except BufferError:
                        producer.poll(0.1)
            producer.commit_transaction()

    def _age(self, ledger: Ledger, have: int, size: int) -> None:
        """Results of stages over windows long past, as the ledger would hold them after years."""
        producer = self.config.producer(f"{self.name}-age")
        producer.init_transactions()
        for first in range(have, size, 50_000):
            producer.begin_transaction()
            for n in range(first, min(size, first + 50_000)):
                while True:
                    try:
                        ledger.produce(producer, [_result(ledger.pipeline, n)])
                        break
                    except BufferError:
                        producer.poll(0.1)
            producer.commit_transaction()

    def delete(self) -> None:
        """Free the broker's disk of what was measured."""
        for future in self.config.admin().delete_topics(self.made).values():
            future.exception()
        self.made.clear()


class _Counter(Follower):
    """How many records there are to read."""

    def __init__(self) -> None:
        super().__init__()
        self.records = 0

    def take(self, offset: int, key: bytes, value: bytes | None) -> None:
        self.records += 1

    def forget(self) -> None:
        self.records = 0


_LOOK = """
import json, sys, time
from datetime import datetime
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.cuts import plan_window
from factory_agents.kafka.lag import Lags
from factory_agents.kafka.plan_view import PlanView
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import Interval
what, bootstrap, prefix, pipeline, topic, interval = sys.argv[1:]
config, view = KafkaConfig(bootstrap), PlanView(pipeline)
cluster = Cluster(config)
lags, interval = Lags(config, cluster), Interval(*map(datetime.fromisoformat, interval.split("/")))
looks = []
for _ in range(2):
    began, cpu = time.monotonic(), time.process_time()
    if what == "plan":
        plan_window(config, pipeline=pipeline, topic=topic, interval=interval, prefix=prefix, view=view, keep="forever")
    else:
        lags.of_pipeline(pipeline, [topic], prefix=prefix)
    looks.append((time.monotonic() - began, time.process_time() - cpu))
print(json.dumps(looks))
"""
STAGES, SHARDS = ("ingest", "enrich", "validate", "publish"), 12


def _hour(pipeline: str, topic: TopicInfo, start: datetime) -> Iterator[LedgerRecord]:
    """What the ledger holds of one hourly window: its cut, its plan, and what each shard of each stage came to."""
    interval = Interval(start, start + timedelta(hours=1))
    at, ranges = interval.end_ms, tuple(PartitionRange(p, 0, 0) for p in range(topic.partitions))
    yield PipelineRecord(pipeline, "intervals")
    yield CutRecord(pipeline, topic.name, topic.id, at, (0,) * topic.partitions, scheduled=True)
    yield PlanRecord(pipeline, topic.name, topic.id, interval.key, ranges, interval=interval, planned_at=at)
    for stage in STAGES:
        for shard in range(SHARDS):
            result = msgspec.structs.replace(_result(pipeline, shard), stage=stage, window=interval.key, shard=Shard(shard, SHARDS))
            yield msgspec.structs.replace(result, scope=topic.name, updated_at=at)


def _arrivals(pipeline: str, topic: TopicInfo, moment: datetime) -> Iterator[LedgerRecord]:
    """What the ledger holds of one window of a live publish."""
    at, name = int(moment.timestamp() * 1000), f"live-{int(moment.timestamp() * 1e9)}-0123456789abcdef"
    ranges = tuple(PartitionRange(p, at, at + 1) for p in range(topic.partitions))
    yield PipelineRecord(pipeline, "since_last")
    yield CutRecord(pipeline, topic.name, topic.id, at, (at,) * topic.partitions, run_key=name)
    yield PlanRecord(pipeline, topic.name, topic.id, name, ranges, planned_at=at)
    yield msgspec.structs.replace(_result(pipeline, 0), window=name, scope=topic.name, updated_at=at)


_SCHEMA = {
    "type": "object",
    "required": ["event_id", "user", "amount"],
    "properties": {"event_id": {"type": "string"}, "user": {"type": "integer"}, "amount": {"type": "number"}, "kind": {"type": "string"}},
}


def _result(pipeline: str, n: int) -> StageRecord:
    window, manifest = (
        f"window-{n:08d}",
        Manifest("t" * 20, "i" * 22, "stage/0123456789abcdef/1", tuple(PartitionRange(p, n, n + 9, 9) for p in range(4))),
    )
    counts = Counts(consumed=36, forwarded=36, produced=36)
    result = AgentResult(
        pipeline, "stage", window, agent="enrich", version="1", fingerprint="0123456789abcdef", manifest=manifest, counts=counts
    )
    return StageRecord(pipeline, "stage", window, Shard(), "0123456789abcdef", n, result=StoredResult.of(result))


def svg(charts: Sequence[tuple[str, str, dict[str, list[tuple[float, float]]]]]) -> str:
    """Small line charts side by side, both axes logarithmic: title, what y is, and named lines."""
    import math

    width, height, left, colours = 300, 190, 46, ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700")
    box = f"0 0 {width * len(charts)} {height + 40}"
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" font-family="sans-serif" font-size="10">']
    out.append(f'<rect width="{width * len(charts)}" height="{height + 40}" fill="white"/>')
    for n, (title, unit, lines) in enumerate(charts):
        points = [p for line in lines.values() for p in line]
        x0, x1 = (math.log10(max(1, f(p[0] for p in points))) for f in (min, max))
        low, high = (f(max(1e-3, p[1]) for p in points) for f in (min, max))
        y0, y1 = math.floor(math.log10(low)), max(math.ceil(math.log10(high)), math.floor(math.log10(low)) + 1)

        def place(x: float, y: float, n: int = n, x0: float = x0, x1: float = x1, y0: float = y0, y1: float = y1) -> tuple[float, float]:
            across = (math.log10(max(1, x)) - x0) / ((x1 - x0) or 1)
            up = (math.log10(max(1e-3, y)) - y0) / (y1 - y0)
            return n * width + left + across * (width - left - 20), 30 + (1 - up) * (height - 40)

        out.append(f'<text x="{n * width + left}" y="16" font-size="11" font-weight="bold">{title}, {unit}</text>')
        for power in range(int(y0), int(y1) + 1):
            (x, y), (end, _) = place(10**x0, 10**power), place(10**x1, 10**power)
            out.append(f'<path d="M{x:.0f} {y:.1f}H{end:.0f}" stroke="#ddd"/>')
            out.append(f'<text x="{x - 4:.0f}" y="{y + 3:.1f}" text-anchor="end">{10.0**power:g}</text>')
        for x in sorted({p[0] for p in points}):
            at, y = place(x, 10**y0)
            out.append(f'<text x="{at:.0f}" y="{y + 14:.0f}" text-anchor="middle">{_short(x)}</text>')
        for i, (name, line) in enumerate(lines.items()):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in line))
            out.append(f'<polyline points="{path}" fill="none" stroke="{colours[i]}" stroke-width="1.5"/>')
            out.append(f'<text x="{n * width + left + i * 64}" y="{height + 26}" fill="{colours[i]}">{name}</text>')
    return "\n".join([*out, "</svg>\n"])


def _short(x: float) -> str:
    return f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k" if x >= 1e3 else f"{x:g}"


def table(title: str, lines: dict[str, list[Point]]) -> None:
    """Print one table."""
    print(f"\n{title}\n\n| what | size | seconds | CPU seconds | peak MB |\n|---|---|---|---|---|")
    for name, points in lines.items():
        for p in points:
            print(f"| {name} | {p.size:,} | {p.seconds:.2f} | {p.cpu:.2f} | {f'{p.peak:.0f}' if p.peak else ''} |")


def main() -> None:
    """Measure the three, print tables, draw them, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small sizes: shows that it runs, measures nothing")
    parser.add_argument("--full", action="store_true", help="a window of ten million events too, and 90 days of live publish")
    parser.add_argument("--only", choices=["windows", "partitions", "ledger", "year"], help="one of them")
    parser.add_argument("--rounds", type=int, default=1, help="taken for the sake of make bench: sizes are what varies here")
    options = parser.parse_args()
    small = options.smoke
    growth = Growth()
    windows: dict[str, list[Point]] = {}
    partitions: dict[str, list[Point]] = {}
    aged: dict[str, list[Point]] = {}
    if options.only in (None, "windows"):
        windows = growth.windows([1_000, 10_000] if small else [10_000, 100_000, 1_000_000, *([10_000_000] if options.full else [])])
        table("By the events in the window", windows)
    if options.only in (None, "partitions"):
        partitions = {"enrich": growth.partitions([1, 10] if small else [1, 4, 20, 100, 500], 1_000 if small else 100_000)}
        table("By the partitions that the same events lie in", partitions)
    if options.only in (None, "ledger"):
        aged = growth.ledger([1, 1_000] if small else [1, 1_000, 10_000, 100_000, 1_000_000])
        table(f"By the results in the pipeline's ledger (one of {LEDGER_PARTITIONS} partitions)", aged)
    year: dict[str, list[Point]] = {}
    if options.only in (None, "year"):
        year = growth.year(*((48, 500) if small else (8_760, 90 * 17_280 if options.full else 7 * 17_280)))
        table("A pipeline of a year: 4 stages of 12 shards each hour", year)
    growth.delete()
    if not small and options.only is None:
        draw(IMAGE, windows, partitions, aged)
    ratios = {name: {"memory": round(p[-1].peak / p[0].peak, 2), "events": p[-1].size / p[0].size} for name, p in windows.items()}
    figures = {"windows": windows, "partitions": partitions, "ledger": aged, "year": year}
    print(json.dumps({"benchmark": "growth", "ratios": ratios, **msgspec.to_builtins(figures)}))


def draw(path: Path, windows: dict[str, list[Point]], partitions: dict[str, list[Point]], aged: dict[str, list[Point]]) -> None:
    """Write the plot of the documentation."""

    def lines(of: dict[str, list[Point]], figure: str) -> dict[str, list[tuple[float, float]]]:
        return {name: [(p.size, getattr(p, figure)) for p in points] for name, points in of.items()}

    charts = [
        ("CPU by events", "s", lines(windows, "cpu")),
        ("Memory by events", "MB", lines(windows, "peak")),
        ("CPU by partitions", "s", lines(partitions, "cpu")),
        ("CPU by results in the ledger", "s", lines(aged, "cpu")),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(svg(charts))


if __name__ == "__main__":
    main()
