"""Partitions go between versions while their members are killed, stopped and ended: nothing is lost, nothing doubled, order is kept."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer, TopicPartition

from factory_agents.kafka.control import Control
from factory_agents.kafka.routes import Route
from factory_agents.rollouts import Rollouts
from tests.chaos.agents import halves
from tests.support import warm
from tests.support.runs import ROOT, Runs
from tests.support.waiting import wait_for

PARTITIONS = 8
_KEYS = 8 * PARTITIONS
_AGENT = ["factory_agents.cli", "agent", "run"]
PROGRAMS = {
    "enrich": ["factory_agents.enrich"],
    "split": [*_AGENT, "tests.chaos.agents:halves"],
    "calls": [*_AGENT, "tests.chaos.agents:asks"],
    "slow": [*_AGENT, "tests.chaos.agents:slow"],
    "minute": [*_AGENT, "tests.chaos.agents:minute"],
    "depends": [*_AGENT, "tests.chaos.agents:depends"],
}


@dataclass(frozen=True)
class Written:
    """A record of the output: when it was written, the number in its event, and by which version."""

    at: float
    number: int
    version: str


def _value(number: int) -> bytes:
    return b'{"event_id": %d}' % number


@dataclass
class Fleet:
    """Members of versions in processes of their own, and a producer that goes on."""

    runs: Runs
    source: str
    out: str
    members: list[tuple[str, warm.Process]] = field(default_factory=list)
    started: list[warm.Process] = field(default_factory=list)
    sent: int = 0
    sent_at: list[float] = field(default_factory=list)
    """When, by number."""
    transaction_ms: int = 6000
    programs: dict[str, str] = field(default_factory=dict)
    """By version, where they are not ``enrich``."""
    log: Path = Path(os.devnull)
    """What they all say."""

    @property
    def group(self) -> str:
        return f"{self.runs.prefix}.group"

    def start(self, version: str, agent: str = "", failpoints: str = "", program: str = "", **variables: str) -> warm.Process:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("KAFKA_", "FACTORY_"))}
        environment |= self.runs.configured(session_timeout_ms=6000, transaction_timeout_ms=self.transaction_ms).to_env()
        environment |= {"FACTORY_FAILPOINTS": failpoints, **variables}
        program = program or self.programs.get(version, "enrich")
        command = [sys.executable, "-m", *PROGRAMS[program], "--in-topic", self.source, "--out-topic", self.out]
        command += ["--group", self.group, "--prefix", self.runs.prefix]
        command += ["--live-version", version] if version else []
        command += ["--function", agent] if agent else []
        with self.log.open("ab") as log:
            process = warm.start(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=log)
        self.members.append((version, process))
        self.started.append(process)
        return process

    def disturb(self, rnd: random.Random) -> None:
        """Kill, end or stop one, and start another in its place."""
        n = rnd.randrange(len(self.members))
        version, process = self.members.pop(n)
        how = rnd.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
        process.send_signal(how)
        if how == signal.SIGSTOP:  # it comes back as a zombie
            threading.Timer(8.0, lambda: process.send_signal(signal.SIGCONT)).start()
        self.start(version)

    def end(self) -> None:
        for process in self.started:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.started:
            process.wait(30)

    @contextmanager
    def feeding(self, pause: float, value: Callable[[int], bytes] = _value) -> Iterator[None]:
        """Events with growing numbers to every partition, all the time."""
        ended = threading.Event()
        producer = Producer({"bootstrap.servers": self.runs.bootstrap, "linger.ms": 5, "enable.idempotence": True, "log_level": 0})

        def feed() -> None:
            while not ended.is_set():
                while len(producer) > 10_000 and not ended.is_set():  # a broker that is busy sets the pace
                    producer.poll(0.1)
                for p in range(PARTITIONS):
                    producer.produce(self.source, value(self.sent), b"%d" % (self.sent % _KEYS), partition=p)
                    self.sent_at.append(time.monotonic())
                    self.sent += 1
                producer.poll(0)
                ended.wait(pause)
            producer.flush(60)

        thread = threading.Thread(target=feed)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def written(self) -> dict[int, list[Written]]:
        """What each partition of the output holds."""
        found: dict[int, list[Written]] = {p: [] for p in range(PARTITIONS)}
        ends = self.runs.cluster.stable_offset(self.out, range(PARTITIONS))
        consumer = self.runs.config.consumer(auto_offset_reset="earliest")
        try:
            consumer.assign([TopicPartition(self.out, p, 0) for p in range(PARTITIONS)])
            left = {p for p, end in ends.items() if end > 0}
            while left:
                for message in consumer.consume(5_000, 0.2):
                    p, offset = message.partition() or 0, message.offset() or 0
                    if message.error() is None:
                        number = msgspec.json.decode(message.value() or b"")["event_id"]
                        headers: Any = message.headers()
                        version = dict(headers)["factory-writer"].decode().rpartition("/")[2]
                        found[p].append(Written(message.timestamp()[1] / 1000, number, version))
                    if offset >= ends[p] - 1:
                        left.discard(p)
        finally:
            consumer.close()
        return found

    def wait_for_more(self, count: int) -> None:
        until = self.sent + count
        wait_for(lambda: self.sent > until, "more events")

    def count(self) -> int:
        return sum(map(len, self.written().values()))


def flip(control: Control, rnd: random.Random) -> tuple[float, Route, Route]:
    """Give an order at random: all to one, or each to either; some of them drop what isn't committed."""
    before: list[Route] = []

    def change(route: Route | None) -> Route:
        assert route is not None
        before[:] = [route]
        everyone = rnd.choice([(), ("v1",), ("v2",)])
        owners = tuple(rnd.choice(everyone or ("v1", "v2")) for _ in range(PARTITIONS))
        return msgspec.structs.replace(route, epoch=route.epoch + 1, owners=owners, back=rnd.random() < 0.3)

    after = control.order(change)
    assert after is not None
    return time.time(), before[0], after


@pytest.mark.slow
@pytest.mark.parametrize(
    ("events", "flips", "kills", "members", "pause"),
    [
        pytest.param(0, 12, 4, 2, 0.05, id="short"),
        pytest.param(1_000_000, 200, 100, 4, 0.002, id="whole", marks=[pytest.mark.soak, pytest.mark.timeout(3000)]),
    ],
)
def test_versions_that_are_flipped_and_killed_lose_double_and_reorder_nothing(
    runs: Runs, tmp_path: Path, events: int, flips: int, kills: int, members: int, pause: float
) -> None:
    """At least a second passes between two flips, and as many events as make ``events`` of all flips."""
    rnd = random.Random(f"{flips}")
    source = runs.topic("in", partitions=PARTITIONS)
    out = runs.topic("out", partitions=PARTITIONS, message_timestamp_type="LogAppendTime")
    fleet = Fleet(runs, source, out, programs={"v2": "calls"}, log=tmp_path / "log")  # with calls in flight at each flip, kill and commit
    orders: list[tuple[float, Route, Route]] = []
    control = Control(runs.config, runs.cluster, prefix=runs.prefix, group=fleet.group)
    try:
        for _ in range(members):
            fleet.start("v1")
            fleet.start("v2")
        with fleet.feeding(pause):
            wait_for(lambda: fleet.count() > 0, "the first record", 120)
            for n in range(flips):
                began, until = time.monotonic(), max(fleet.sent + 1, (n + 1) * events // flips)
                orders.append(flip(control, rnd))
                if n * kills // flips != (n + 1) * kills // flips:
                    fleet.disturb(rnd)
                wait_for(lambda began=began, until=until: time.monotonic() > began + 1.0 and fleet.sent >= until, "a flip's events", 120)
        wait_for(lambda: fleet.count() >= fleet.sent, f"all of {fleet.sent} events", 300)
        assert not [(version, process.pid) for version, process in fleet.members if process.poll() is not None], "ended by themselves"
        written = fleet.written()
    finally:
        control.close()
        fleet.end()
    numbers = Counter(w.number for records in written.values() for w in records)
    lost = sorted(set(range(fleet.sent)) - numbers.keys())
    doubled = [(p, w) for p, records in written.items() for w in records if numbers[w.number] > 1]
    assert not lost, f"{len(lost)}: {lost[:20]}"
    assert not doubled, f"{len(doubled)}: {doubled[:20]}"
    assert all([w.number for w in records] == sorted(w.number for w in records) for records in written.values())
    print(f"{fleet.sent} events, {flips} flips, {kills} disturbances; ms {delays(orders, written)}")


def delays(orders: list[tuple[float, Route, Route]], written: dict[int, list[Written]]) -> dict[str, list[int]]:
    """From each order to the new version's first record, and to the old one's last: the half, nine tenths and the greatest."""
    first, last = [], []
    for n, (at, before, after) in enumerate(orders):
        until = orders[n + 1][0] if n + 1 < len(orders) else float("inf")
        for p in range(PARTITIONS):
            if before.owner(p) != after.owner(p):
                came = [w.at - at for w in written[p] if at <= w.at < until and w.version == after.owner(p)]
                went = [w.at - at for w in written[p] if at <= w.at < until and w.version == before.owner(p)]
                first += came[:1]
                last.append(max(went[-1:], default=0.0))

    def of(found: list[float]) -> list[int]:
        found = sorted(found) or [0.0]
        return [round(1000 * found[min(len(found) - 1, int(len(found) * q))]) for q in (0.5, 0.9, 0.99, 1)]

    return {"first": of(first), "last": of(last)}


def is_stopped(process: warm.Process) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.fixture
def fleet(runs: Runs) -> Iterator[Fleet]:
    own = Fleet(runs, runs.topic("in", partitions=PARTITIONS), runs.topic("out", partitions=PARTITIONS))
    yield own
    own.end()


def check_exact(fleet: Fleet) -> None:
    wait_for(lambda: fleet.count() >= fleet.sent, f"all of {fleet.sent} events", 60)
    written = fleet.written()
    assert sorted(w.number for records in written.values() for w in records) == list(range(fleet.sent))
    assert all([w.number for w in records] == sorted(w.number for w in records) for records in written.values())


@pytest.mark.slow
@pytest.mark.parametrize("point", ["live.before-fence", pytest.param("chunk.before-commit", marks=pytest.mark.soak)])
def test_a_member_that_wakes_in_the_middle_of_its_commit_doubles_nothing(fleet: Fleet, point: str) -> None:
    """Its positions of the official group are taken from anybody: only the fence, sent last, is what Kafka refuses."""
    fleet.transaction_ms = 60_000  # nobody but the fence ends it
    group = f"{fleet.group}~v1"
    fleet.start("v1")
    with fleet.feeding(0.05):
        wait_for(lambda: fleet.count() > 0, "the first record")
        zombie = fleet.start("v1", failpoints=f"{point}=stop@3")
        wait_for(lambda: is_stopped(zombie), "the member to stop in its commit", 60)
        wait_for(
            lambda: (found := fleet.runs.cluster.group(group)) and found.members == 1 and len(found.assigned) == PARTITIONS,
            "the other member to have all partitions",
            60,
        )
        fleet.wait_for_more(200)  # which the other one would handle, if it could see where to begin
        zombie.send_signal(signal.SIGCONT)
        fleet.wait_for_more(200)
    check_exact(fleet)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", pytest.param("stop", marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    ("victim", "point"),
    [
        ("v1", "give.begun"),
        pytest.param("v1", "give.before-fence", marks=pytest.mark.soak),
        pytest.param("v1", "give.before-commit", marks=pytest.mark.soak),
        pytest.param("v1", "give.committed", marks=pytest.mark.soak),
        pytest.param("v2", "take.before-read", marks=pytest.mark.soak),
        ("v2", "live.before-fence"),
        pytest.param("v2", "chunk.before-commit", marks=pytest.mark.soak),
        pytest.param("v2", "chunk.after-commit", marks=pytest.mark.soak),
    ],
)
def test_a_flip_is_exact_whoever_dies_or_freezes_at_whichever_of_its_steps(fleet: Fleet, victim: str, point: str, how: str) -> None:
    """The old version gives (token written, fence taken, committed), the new one takes (barrier read, first commit)."""
    rollouts = Rollouts(fleet.runs.config, fleet.group, prefix=fleet.runs.prefix)
    survivor = "v2" if victim == "v1" else "v1"
    armed = {victim: f"{point}={how}"}
    old = fleet.start("v1", failpoints=armed.get("v1", ""))
    with fleet.feeding(0.05):
        wait_for(lambda: fleet.count() > 0, "the first record")
        new = fleet.start("v2", failpoints=armed.get("v2", ""))
        wait_for(lambda: (found := fleet.runs.cluster.group(f"{fleet.group}~v2")) is not None and found.members == 1, "the new version", 60)
        rollouts.start("v2")
        hit = old if victim == "v1" else new
        wait_for(lambda: hit.poll() is not None or is_stopped(hit), f"{victim} to reach {point}", 60)
        rollouts.wait(60, until=lambda s: {p.holder for p in s.partitions} == {survivor})
        if how == "stop":
            hit.send_signal(signal.SIGCONT)
        fleet.wait_for_more(200)
    check_exact(fleet)


@pytest.mark.slow
def test_a_split_is_exact_and_each_key_stays_with_its_part_whoever_is_killed(fleet: Fleet) -> None:
    with fleet.feeding(0.05):
        for point in ("live.before-offsets", "chunk.before-commit", "chunk.after-commit"):
            killed = fleet.start("v1", failpoints=f"{point}=kill@3", program="split")
            wait_for(lambda killed=killed: killed.poll() is not None, f"the kill at {point}", 60)
        fleet.start("v1", program="split")
        fleet.wait_for_more(100)
    check_exact(fleet)
    records = fleet.runs.everything(fleet.out)
    assert {r.event["part"] for r in records} == {"left", "right"}
    assert all(r.event["part"] == halves.part_of(r.key) for r in records)


@pytest.mark.slow
def test_a_version_whose_members_all_hang_gives_its_partitions_back_all_the_same(fleet: Fleet) -> None:
    rollouts = Rollouts(fleet.runs.config, fleet.group, prefix=fleet.runs.prefix)
    fleet.start("v1")
    with fleet.feeding(0.05):
        wait_for(lambda: fleet.count() > 0, "the first record")
        hung = [fleet.start("v2"), fleet.start("v2")]
        wait_for(lambda: (found := fleet.runs.cluster.group(f"{fleet.group}~v2")) is not None and found.members == 2, "the new version", 60)
        rollouts.start("v2")
        # a member that hangs in the middle of a rebalance is missed a session later
        rollouts.wait(30, until=lambda s: [len(m.held) for m in s.members if m.version == "v2"] == [PARTITIONS // 2] * 2)
        for process in hung:
            process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        status = rollouts.wait(60, until=lambda s: s.verdict == "rolled back" and s.is_settled)
        took = time.monotonic() - began
        for process in hung:
            process.send_signal(signal.SIGCONT)
        fleet.wait_for_more(100)
    assert "nothing was heard of it" in status.reason
    assert took < 15  # the session's six seconds and two more, on a machine that has them
    print(f"taken back after {took:.1f} s")
    check_exact(fleet)


@pytest.mark.slow
@pytest.mark.soak
def test_a_version_that_crashes_and_is_started_again_and_again_is_rolled_back(fleet: Fleet) -> None:
    rollouts = Rollouts(fleet.runs.config, fleet.group, prefix=fleet.runs.prefix)
    fleet.start("v1")
    with fleet.feeding(0.05):
        wait_for(lambda: fleet.count() > 0, "the first record")
        crashing = fleet.start("v2", "tests.chaos.agents:dies")
        wait_for(lambda: (found := fleet.runs.cluster.group(f"{fleet.group}~v2")) is not None and found.members == 1, "the new version", 60)
        rollouts.start("v2")
        began = time.monotonic()

        def is_rolled_back() -> bool:
            nonlocal crashing
            if crashing.poll() is not None:
                crashing = fleet.start("v2", "tests.chaos.agents:dies")
            status = rollouts.status()
            return status.verdict == "rolled back" and status.is_settled

        wait_for(is_rolled_back, "the version to be taken back", 60)
        print(f"taken back after {time.monotonic() - began:.1f} s, and {len(fleet.started) - 2} starts")
        reason = rollouts.status().reason
        fleet.wait_for_more(100)
    assert "of its members died without a word" in reason or "nothing was heard of it" in reason
    check_exact(fleet)
