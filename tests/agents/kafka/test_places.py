"""Offsets are found again in a copy of a topic by what lies there; where that doesn't tell, none is named."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import pytest
from confluent_kafka import Consumer

from factory_agents.kafka.places import Place, Places
from tests.support.runs import Runs

NOW = int(time.time() * 1000) - 3_600_000


@dataclass(frozen=True)
class Written:
    """A record: value, time, and the transaction that it is in (0: none)."""

    value: bytes
    at: int
    aborted: bool = False


class Copied:
    """A partition, and another one with its committed records behind so many of somebody else's."""

    def __init__(self, runs: Runs, records: list[Written], *, before: int = 0) -> None:
        self.runs, self.records = runs, records
        self.there, self.here = runs.topic("there", 1), runs.topic("here", 1)
        producer = runs.config.producer(f"{runs.prefix}-copied")
        producer.init_transactions()
        for record in records:  # each in a transaction of its own, whose end takes an offset
            producer.begin_transaction()
            producer.produce(self.there, record.value, partition=0, timestamp=record.at)
            producer.flush(60)
            producer.abort_transaction() if record.aborted else producer.commit_transaction()
        self.end = 2 * len(records)
        self.committed = [(2 * n, r) for n, r in enumerate(records) if not r.aborted]
        self.before = before
        runs.produce(self.here, [b"else"] * before, timestamp=NOW - 60_000)
        for _, record in self.committed:
            runs.produce(self.here, [record.value], timestamp=record.at)

    def noted(self) -> list[Place]:
        with Places(self.runs.config, self.runs.cluster, self.there) as places:
            return list(places.note(0, range(self.end + 1)))

    def found(self, noted: list[Place], topic: str = "") -> dict[int, int | None]:
        with Places(self.runs.config, self.runs.cluster, topic or self.here) as places:
            return {place.offset: places.find(0, place) for place in noted}

    def expected(self) -> dict[int, int]:
        """Past as many of the committed records as lie before each offset."""
        return {at: self.before + sum(offset < at for offset, _ in self.committed) for at in range(self.end + 1)}


def some_records(seed: int) -> list[Written]:
    """Few values, and times that often stay and sometimes go back: as hard to tell apart as can be."""
    dice, at, records = random.Random(seed), NOW, []
    for _ in range(12):
        at += dice.choice((0, 0, 0, 1, 5, -3))
        records.append(Written(dice.choice((b"a", b"b")), at, dice.random() < 0.25))
    return records


@pytest.mark.parametrize("seed", range(6))
def test_every_offset_is_found_in_a_whole_copy(runs: Runs, seed: int) -> None:
    copied = Copied(runs, some_records(seed), before=seed % 3)
    noted = copied.noted()
    assert [place.offset for place in noted] == list(range(copied.end + 1))
    assert copied.found(noted) == copied.expected()
    assert copied.found(noted, copied.there) == {
        at: next((offset for offset, _ in copied.committed if offset >= at), copied.committed[-1][0] + 1) for at in range(copied.end + 1)
    }


def test_none_is_named_where_a_record_is_missing(runs: Runs) -> None:
    """Those of its time and later in it are found nowhere, others where they lie."""
    copied = Copied(runs, [Written(b"%d" % n, NOW + n // 3) for n in range(9)])
    noted = copied.noted()
    damaged = runs.topic("damaged", 1)
    for n, (_, record) in enumerate(copied.committed):
        if n != 4:
            runs.produce(damaged, [record.value], timestamp=record.at)
    found = copied.found(noted, damaged)
    assert {at: found[at] for at in (0, 4, 6)} == {0: 0, 4: 2, 6: 3}
    assert {found[at] for at in (8, 10)} == {None}
    assert {at: found[at] for at in (12, 16, 18)} == {12: 5, 16: 7, 18: 8}


def test_what_retention_deleted_has_no_place(runs: Runs) -> None:
    copied = Copied(runs, [Written(b"%d" % n, NOW) for n in range(4)])
    runs.delete_before(copied.there, 0, 4)
    assert [place.offset for place in copied.noted()] == [4, 5, 6, 7, 8]


def test_a_log_that_holds_nothing_begins_where_its_copy_does(runs: Runs) -> None:
    topic, copy = runs.topic("empty", 1), runs.topic("copy", 1)
    runs.produce(topic, [b"a", b"b"], timestamp=NOW)
    runs.delete_before(topic, 0, 2)
    runs.produce(copy, [b"written later"], timestamp=NOW)
    with Places(runs.config, runs.cluster, topic) as places:
        noted = list(places.note(0, [0, 1, 2]))
    assert noted == [Place(2)]
    with Places(runs.config, runs.cluster, copy) as places:
        assert places.find(0, noted[0]) == 0


def test_a_consumer_is_closed(runs: Runs) -> None:
    with Places(runs.config, runs.cluster, runs.topic("closed", 1)) as places:
        consumer: Consumer = places._consumer
    with pytest.raises(RuntimeError, match="closed"):
        consumer.poll(0)
