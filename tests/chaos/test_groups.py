"""Members of one group come, go, die and freeze, with calls under way: nothing is lost, doubled or late; and a long outage of a service."""

from __future__ import annotations

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
from tests.support.runs import Runs
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
        self._thread = threading.Thread(target=self._read)
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
            old.terminate()
            old.wait(30)
            fleet.start("", program=program)
            wait_for_members(fleet, 4)
            fleet.wait_for_more(400)
        fleet.wait_for_more(400)
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
