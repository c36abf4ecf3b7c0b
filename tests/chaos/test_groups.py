"""Members of one group come, go, die and freeze, with calls under way: nothing is lost, doubled or late; and a long outage of a service."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import TopicPartition

from tests.chaos.test_rollouts import PARTITIONS, Fleet, check_exact
from tests.support import warm
from tests.support.brokers import three_brokers
from tests.support.runs import Runs, own_runs
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.soak]


@pytest.fixture
def fleet(runs: Runs, tmp_path: Path) -> Iterator[Fleet]:
    own = Fleet(runs, runs.topic("in", partitions=PARTITIONS), runs.topic("out", partitions=PARTITIONS), log=tmp_path / "log")
    yield own
    own.end()


class Watch:
    """Notes when each number could be read for the first time, by a consumer of its own."""

    def __init__(self, fleet: Fleet) -> None:
        self.seen: dict[int, float] = {}
        self._fleet, self._ended = fleet, threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        consumer = self._fleet.runs.config.consumer(auto_offset_reset="earliest")
        consumer.assign([TopicPartition(self._fleet.out, p, 0) for p in range(PARTITIONS)])
        while not self._ended.is_set():
            found: list[Any] = [m for m in consumer.consume(1000, 0.02) if m.error() is None]
            now = time.monotonic()
            for message in found:
                self.seen.setdefault(msgspec.json.decode(message.value())["event_id"], now)
        consumer.close()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def worst(self, since: float) -> tuple[float, float]:
        """The longest that an event took that was written since then, and when that was written, in seconds after it."""
        delays = [(seen - at, at - since) for n, seen in self.seen.items() if (at := self._fleet.sent_at[n]) >= since]
        return max(delays)


def wait_for_members(fleet: Fleet, count: int) -> None:
    """As many members as that, which have all partitions."""

    def are_there() -> bool:
        facts = fleet.runs.cluster.group(fleet.group)
        return facts is not None and facts.members == count and len(facts.assigned) == PARTITIONS

    wait_for(are_there, f"{count} members", 60)


def start(fleet: Fleet, count: int, **how: Any) -> list[warm.Process]:
    members = [fleet.start("", **how) for _ in range(count)]
    wait_for_members(fleet, count)
    return members


@pytest.mark.parametrize("program", ["enrich", "calls"])
def test_a_rolling_update_of_four_delays_no_event_for_longer_than_two_seconds(fleet: Fleet, program: str) -> None:
    members = start(fleet, 4, program=program)
    with fleet.feeding(0.02):
        wait_for(lambda: fleet.count() > 0, "the first record")
        watch, since = Watch(fleet), time.monotonic()
        for old in members:
            fleet.wait_for_more(1200)  # three seconds, as the Deployments' minReadySeconds have it
            old.terminate()
            old.wait(30)
            fleet.start("", program=program)
            wait_for_members(fleet, 4)
        fleet.wait_for_more(1200)
    check_exact(fleet)
    wait_for(lambda: len(watch.seen) == fleet.sent, "all to be read")
    watch.end()
    worst, at = watch.worst(since)
    print(f"{program}: {worst:.2f} s at {at:.1f} s; {fleet.sent} events")
    assert worst <= 2


@pytest.mark.parametrize("program", ["enrich", "calls"])
def test_a_member_that_is_killed_delays_nothing_for_longer_than_its_session_and_two_seconds(fleet: Fleet, program: str) -> None:
    """Nor does what it leaves open, whatever its timeout."""
    fleet.transaction_ms = 60_000
    members = start(fleet, 4, program=program)
    with fleet.feeding(0.02):
        wait_for(lambda: fleet.count() > 0, "the first record")
        watch, since = Watch(fleet), time.monotonic()
        members[0].kill()
        wait_for_members(fleet, 3)
        fleet.wait_for_more(1600)
    check_exact(fleet)
    wait_for(lambda: len(watch.seen) == fleet.sent, "all to be read")
    watch.end()
    worst, at = watch.worst(since)
    print(f"{program}: {worst:.2f} s at {at:.1f} s; {fleet.sent} events")
    assert worst <= 6 + 2


def test_a_member_that_joins_while_another_is_at_a_call_of_a_minute_is_served_within_five_seconds(fleet: Fleet, tmp_path: Path) -> None:
    """A minute is longer than a consumer may go without asking for records."""
    called, slow = tmp_path / "called", 400
    config = '{"max.poll.interval.ms": "20000", "session.timeout.ms": "6000"}'
    start(fleet, 1, program="minute", CALLED=str(called), KAFKA_CONFIG=config)
    with fleet.feeding(0.02, lambda number: b'{"event_id": %d%s}' % (number, b', "slow": true' if number == slow else b"")):
        watch = Watch(fleet)
        wait_for(called.exists, "the call", 60)
        sent, began = fleet.sent, time.monotonic()
        fleet.start("", program="minute", CALLED=str(called), KAFKA_CONFIG=config)
        wait_for(lambda: max(list(watch.seen), default=0) > sent, "it to be served", 60)
        took = time.monotonic() - began
        wait_for(lambda: time.monotonic() > began + 62, "the call to end", 90)
    check_exact(fleet)
    watch.end()
    print(f"served after {took:.2f} s; {fleet.sent} events; {[p.poll() for p in fleet.started]}")
    assert took <= 5
    assert [p.poll() for p in fleet.started] == [None, None]


@pytest.mark.timeout(600)
def test_one_of_three_brokers_that_dies_delays_nothing_for_longer_than_its_session_and_ten_seconds(tmp_path: Path) -> None:
    """The one that coordinates the group, and leads a third of the partitions; its own session is 9 s."""
    with three_brokers(tmp_path / "brokers", "127.0.0.1") as brokers, own_runs(brokers.bootstrap, "three") as runs:
        fleet = Fleet(runs, runs.topic("in", partitions=PARTITIONS), runs.topic("out", partitions=PARTITIONS), log=tmp_path / "log")
        fleet.transaction_ms = 60_000
        try:
            start(fleet, 4)
            with fleet.feeding(0.02):
                wait_for(lambda: fleet.count() > 0, "the first record")
                watch, since = Watch(fleet), time.monotonic()
                coordinator = brokers.admin.describe_consumer_groups([fleet.group])[fleet.group].result().coordinator.id
                brokers.kill(coordinator)
                for _ in range(4):
                    fleet.wait_for_more(4000)
                brokers.launch(coordinator)
                brokers.wait_ready()
                fleet.wait_for_more(1200)
            wait_for(lambda: len(watch.seen) == fleet.sent, "all to be read", 120)
            watch.end()
            worst, at = watch.worst(since)
            print(f"{worst:.2f} s at {at:.1f} s; {fleet.sent} events")
            check_exact(fleet)
        finally:
            fleet.end()
    assert worst <= 9 + 10


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("how", ["come and go", "die, freeze and go"])
def test_a_member_that_joins_or_leaves_each_second_for_three_minutes_costs_less_than_half_the_throughput(fleet: Fleet, how: str) -> None:
    seconds, rnd = 180, random.Random(how)
    for _ in range(4):
        fleet.start("", program="slow")
    wait_for_members(fleet, 4)
    fill(fleet, 300_000)
    wait_for(lambda: fleet.count() > 0, "the first record")
    steady = rate(fleet, 20)
    before, began = written(fleet), time.monotonic()
    for n in range(seconds):
        if n % 2 == 0:  # four members, or five
            fleet.start("", program="slow")
        else:
            _, member = fleet.members.pop(rnd.randrange(len(fleet.members)))
            leave(member, rnd.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP]) if how != "come and go" else signal.SIGTERM)
        wait_for(lambda n=n: time.monotonic() >= began + n + 1, "a second")  # type: ignore[misc]
    disturbed = (written(fleet) - before) / (time.monotonic() - began)
    print(f"{how}: {disturbed:.0f} a second, {steady:.0f} before: {disturbed / steady:.2f}; {len(fleet.started)} members in all")
    for _ in range(2):
        fleet.start("", program="slow")
    wait_for(lambda: written(fleet) >= fleet.sent, "all to be handled", 600)
    check_exact(fleet)
    print("exact")
    if how == "come and go":
        assert disturbed >= steady / 2


def leave(member: warm.Process, how: int) -> None:
    member.send_signal(how)
    if how == signal.SIGSTOP:  # it comes back as a zombie
        threading.Timer(8.0, lambda: member.send_signal(signal.SIGCONT)).start()


def fill(fleet: Fleet, events: int) -> None:
    with fleet.feeding(0):
        wait_for(lambda: fleet.sent >= events, "the events", 120)


def written(fleet: Fleet) -> int:
    """How many records the output has, the ends of transactions among them."""
    return sum(fleet.runs.cluster.stable_offset(fleet.out, range(PARTITIONS)).values())


def rate(fleet: Fleet, seconds: float) -> float:
    before, began = written(fleet), time.monotonic()
    wait_for(lambda: time.monotonic() > began + seconds, "a while", seconds + 30)
    return (written(fleet) - before) / (time.monotonic() - began)


@pytest.mark.timeout(900)
def test_a_service_that_is_down_for_five_minutes_costs_no_event_no_rebalance_and_no_memory(fleet: Fleet, tmp_path: Path) -> None:
    service, poison, down = tmp_path / "service", 60_000, 300.0
    service.touch()
    members = start(fleet, 2, program="depends", SERVICE=str(service))
    dead = fleet.runs.topic("out.dead", partitions=1)

    def value(number: int) -> bytes:
        return b'{"event_id": %d%s}' % (number, b', "poison": true' if number == poison else b"")

    with fleet.feeding(0.008, value):  # a thousand a second
        fleet.wait_for_more(5000)
        wait_for(lambda: fleet.count() > 0, "the first record")
        memory, assigned = resident(members), fleet.log.read_text().count("partitions assigned")
        service.unlink()
        began = time.monotonic()
        wait_for(lambda: time.monotonic() > began + down, "the outage", down + 30)
        grown = [after - before for before, after in zip(memory, resident(members), strict=True)]
        stood, back = written(fleet), time.monotonic()
        calls = service.with_suffix(".refused").stat().st_size
        assert fleet.sent > poison
        service.touch()
        wait_for(lambda: written(fleet) > stood + 1000, "it to flow", 60)
        flowing = time.monotonic() - back
    wait_for(lambda: written(fleet) >= fleet.sent - 1, "all to be handled", 120)
    assert fleet.log.read_text().count("partitions assigned") == assigned
    numbers = [w.number for records in fleet.written().values() for w in records]
    print(f"{fleet.sent} events; flowing after {flowing:.1f} s; {calls} calls refused; grown by {[g >> 20 for g in grown]} MB")
    assert sorted(numbers) == [n for n in range(fleet.sent) if n != poison]
    assert [r.id for r in fleet.runs.everything(dead)] == [poison]
    assert flowing <= 30 + 2
    assert max(grown) <= 20 * 1024 * 1024
    assert calls < 2000


def resident(members: list[warm.Process]) -> list[int]:
    """Bytes of memory that each has."""
    return [int(Path(f"/proc/{m.pid}/statm").read_text().split()[1]) * 4096 for m in members]
