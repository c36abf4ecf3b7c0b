"""How long the first unread record has waited, asked of a real broker."""

from __future__ import annotations

import time

from factory_agents.kafka.ages import FirstUnread, Place
from tests.support.runs import Runs

NOW = int(time.time() * 1000) - 60_000


def test_each_place_has_its_records_time_and_an_end_has_none(runs: Runs) -> None:
    topic = runs.topic("read", 2)
    for n in range(3):
        runs.produce(topic, [b"%d" % n], partition=0, timestamp=NOW + n)
    places = [Place(topic, 0, 0), Place(topic, 0, 2), Place(topic, 0, 3), Place(topic, 1, 0)]
    assert FirstUnread(runs.config).times(places) == {places[0]: NOW, places[1]: NOW + 2}


def test_a_reader_that_went_on_is_asked_for_again_and_what_was_deleted_is_passed_over(runs: Runs) -> None:
    topic = runs.topic("read", 1)
    for n in range(4):
        runs.produce(topic, [b"%d" % n], timestamp=NOW + n)
    first = FirstUnread(runs.config)
    assert first.times([Place(topic, 0, 0)]) == {Place(topic, 0, 0): NOW}
    runs.delete_before(topic, 0, 3)
    assert first.times([Place(topic, 0, 0), Place(topic, 0, 1)]) == {Place(topic, 0, 0): NOW, Place(topic, 0, 1): NOW + 3}
    assert first.times([]) == {}
