"""How large a factory must be for so many events a second: ``python scripts/scaling.py --events 50000`` (docs/scaling.md).

What the figures are computed from is in ``MEASURED`` (docs/benchmarks.md, docs/kubernetes.md) and ``ASSUMED`` (yours to change, by flag).
``--table`` prints the tables of docs/scaling.md; ``--outage 2`` simulates how a backlog of so many hours is caught up with.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

__all__ = ["ASSUMED", "MEASURED", "Assumed", "Load", "Measured", "Plan", "caught_up", "main", "plan", "tables"]

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scaling.md"
_BEGIN, _END = "<!-- made by scripts/scaling.py --table -->", "<!-- end -->"


@dataclass(frozen=True)
class Measured:
    """What one process did on two shared virtual cores, its broker beside it. Events of 180 bytes."""

    agent: int = 249_000  # events a second of enrich, exactly once
    agent_cpu: float = 5.6e-6  # seconds of CPU an event at most, the client's threads included
    validate_cpu: float = 1.398e-6  # seconds of CPU an event: 715,000 a CPU second, beside what reading and writing cost
    publish: int = 260_000  # rows a second into PostgreSQL, keys in random order
    pod_seconds: float = 3.1  # of a pod, without its agent's own time
    shard_events: int = 500_000  # below this a shard more costs more than it saves


@dataclass(frozen=True)
class Assumed:
    """What nobody measured here: change it to what you know of your machines and prices."""

    headroom: float = 2.0  # how much more than the peak is provided for: a broker or a zone that is down, a backlog
    broker_mb: float = 50.0  # MB a second that a broker takes in, replicas included
    broker_partitions: int = 2_000  # replicas of partitions on a broker
    disk_share: float = 0.6  # how full a broker's disks may be
    broker_disk_gb: float = 2_000.0
    compression: float = 0.35  # what is left of an event after lz4
    partition_mb: float = 5.0  # MB a second of one partition
    core_month: float = 30.0  # price of a core for a month, with its memory
    disk_gb_month: float = 0.1
    between_zones_gb: float = 0.02
    between_regions_gb: float = 0.05


@dataclass(frozen=True)
class Load:
    """What is asked for. ``regions``: 1, or 2 with a copy in another region."""

    events: float
    event_bytes: int = 180
    peak: float = 3.0
    stages: int = 3
    window_hours: float = 1.0
    retention_days: float = 7.0
    replication: int = 3
    regions: int = 1


@dataclass(frozen=True)
class Plan:
    """How large each part is, and what it costs. ``landing_seconds``: from a window's end until its last row is in the table."""

    load: Load
    partitions: int
    shards: int
    live_agents: int
    brokers: int
    broker_mb: float
    disk_tb: float
    cores: float
    landing_seconds: float
    database_share: float
    cost: float

    @property
    def shape(self) -> str:
        """What such a factory is called on the page."""
        return f"{self.load.regions} regions" if self.load.regions > 1 else "single node" if self.load.replication == 1 else "cluster"


MEASURED, ASSUMED = Measured(), Assumed()
_MONTH = 30 * 86_400


def plan(load: Load, measured: Measured = MEASURED, assumed: Assumed = ASSUMED) -> Plan:
    """The smallest factory that carries the load with the headroom."""
    peak = load.events * load.peak * assumed.headroom
    speed = measured.agent * 180 / max(load.event_bytes, 180)
    live = math.ceil(peak / speed)
    through_one = assumed.partition_mb * 1e6 / load.event_bytes / assumed.compression
    partitions = 12 * math.ceil(max(live, peak / through_one) / 12)
    window = load.events * load.window_hours * 3600
    shards = max(1, min(partitions, math.ceil(window / measured.shard_events), 4 * live))
    stored = load.event_bytes * assumed.compression * load.stages  # bytes of one event in all topics, without replicas
    taken_in = peak * stored * load.replication / 1e6
    disk_gb = load.events * stored * load.replication * load.retention_days * 86_400 / 1e9 / assumed.disk_share
    brokers = max(
        load.replication,
        math.ceil(taken_in / assumed.broker_mb),
        math.ceil(disk_gb / assumed.broker_disk_gb),
        math.ceil((partitions * load.stages + 12) * load.replication / assumed.broker_partitions),
    )
    working = load.events * (measured.agent_cpu * load.stages + measured.validate_cpu) * load.event_bytes / 180
    cores = working * assumed.headroom * load.peak + 2 * brokers
    busy = min(shards, live) if shards > 1 else 1
    landing = load.stages * measured.pod_seconds + window / (speed * busy) * (load.stages - 1) + window / measured.publish
    copied = load.events * load.event_bytes * assumed.compression * _MONTH / 1e9
    cost = cores * assumed.core_month + disk_gb * assumed.disk_gb_month
    cost += copied * load.stages * (load.replication - 1) * assumed.between_zones_gb
    if load.regions > 1:  # the input and the last stage's output are copied; brokers and disks are there twice
        cost += (2 * brokers * assumed.core_month + disk_gb * assumed.disk_gb_month) * (load.regions - 1)
        cost += copied * 2 * assumed.between_regions_gb * (load.regions - 1)
    return Plan(
        load,
        partitions,
        shards,
        live,
        brokers * load.regions,
        taken_in,
        disk_gb * load.regions / 1000,
        cores + 2 * brokers * (load.regions - 1),
        landing,
        load.events / measured.publish,
        cost,
    )


def caught_up(load: Load, outage_hours: float, *, measured: Measured = MEASURED, assumed: Assumed = ASSUMED) -> tuple[float, float]:
    """Hours until live agents have caught up after an outage, and the greatest backlog in events; ``inf`` where they never do.

    A minute is a step. Events follow a day's curve with its peak at noon, where the outage begins.
    """
    agents = plan(load, measured, assumed).live_agents
    speed = agents * measured.agent * 180 / max(load.event_bytes, 180)
    backlog = most = 0.0
    for minute in range(60 * 24 * 30):
        hours = minute / 60
        backlog += 60 * (arriving(load, 12 + hours) - (speed if hours >= outage_hours else 0.0))
        backlog = max(0.0, backlog)
        most = max(most, backlog)
        if hours >= outage_hours and not backlog:
            return hours - outage_hours, most
    return math.inf, most


def arriving(load: Load, hour: float) -> float:
    """Events a second at an hour of the day: the mean over a day is the load's, the greatest its peak (as far as a cosine can: twice)."""
    swing = min(load.peak, 2.0) - 1
    return load.events * (1 + swing * math.cos((hour - 12) / 24 * 2 * math.pi))


SHOWN = (
    Load(1_000, replication=1, retention_days=3),
    Load(1_000),
    Load(10_000),
    Load(50_000),
    Load(200_000, window_hours=0.25),
    Load(50_000, regions=2),
)

_COLUMNS: tuple[tuple[str, Callable[[Plan], str]], ...] = (
    ("events/s", lambda p: f"{p.load.events:,.0f}"),
    ("shape", lambda p: p.shape),
    ("partitions", lambda p: str(p.partitions)),
    ("shards", lambda p: str(p.shards)),
    ("live agents", lambda p: str(p.live_agents)),
    ("brokers", lambda p: str(p.brokers)),
    ("MB/s written", lambda p: f"{p.broker_mb:,.1f}"),
    ("disk, TB", lambda p: f"{p.disk_tb:,.1f}"),
    ("cores", lambda p: f"{p.cores:,.0f}"),
    ("lands after, s", lambda p: f"{p.landing_seconds:,.0f}"),
    ("database busy", lambda p: f"{p.database_share:.0%}"),
    ("a month", lambda p: f"{p.cost:,.0f}"),
)


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def tables() -> str:
    """The page's tables."""
    plans = [plan(load) for load in SHOWN]
    first = _rows([name for name, _ in _COLUMNS], [[show(p) for _, show in _COLUMNS] for p in plans])
    outages = []
    for load in SHOWN[2:4]:
        for hours in (1.0, 4.0):
            after, most = caught_up(load, hours)
            outages.append([f"{load.events:,.0f}", f"{hours:.0f} h", f"{most / 1e6:,.0f} million", f"{after * 60:.0f} min"])
    second = _rows(["events/s", "live agents were down for", "greatest backlog", "caught up after"], outages)
    return "\n".join([*first, "", *second])


def _updated(page: str) -> str:
    start, rest = page.split(_BEGIN)
    return f"{start}{_BEGIN}\n\n{tables()}\n\n{_END}{rest.split(_END)[1]}"


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--table", action="store_true", help="print the page's tables")
    parser.add_argument("--write", action="store_true", help="put them into docs/scaling.md")
    parser.add_argument("--outage", type=float, default=0.0, metavar="HOURS", help="simulate how a backlog is caught up with")
    for of in (Load, Assumed):
        for field in fields(of):
            default = None if field.name == "events" else field.default
            kind = int if field.type == "int" else float
            parser.add_argument(
                f"--{field.name.replace('_', '-')}", type=_positive(kind), default=default, help=f"{of.__name__.lower()}: {default}"
            )
    return parser.parse_args(argv)


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
        return value

    return read


def main(argv: Sequence[str]) -> int:
    """Print what is asked for."""
    asked = _arguments(argv)
    if asked.table:
        print(tables())
        return 0
    if asked.write:
        PAGE.write_text(_updated(PAGE.read_text()))
        return 0
    if asked.events is None:
        print("error: --events: how many events a second?", file=sys.stderr)
        return 2
    load = Load(**{f.name: getattr(asked, f.name) for f in fields(Load)})
    assumed = replace(ASSUMED, **{f.name: getattr(asked, f.name) for f in fields(Assumed)})
    found = plan(load, assumed=assumed)
    width = max(len(name) for name, _ in _COLUMNS)
    for name, show in _COLUMNS:
        print(f"{name:<{width}}  {show(found)}")
    if asked.outage:
        after, most = caught_up(load, asked.outage, assumed=assumed)
        print(f"{'after an outage':<{width}}  {most / 1e6:,.1f} million events behind, caught up after {after * 60:,.0f} min")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
