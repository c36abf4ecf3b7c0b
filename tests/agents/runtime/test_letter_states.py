"""Dead letters are counted by what became of them, and purged without taking along what waits."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from factory_agents.kafka.ledger import Progress, StageRecord
from factory_agents.protocol import Shard
from factory_agents.runtime.dead_letters import LetterTopic, Selection
from factory_agents.runtime.letter_states import letter_stats, purge_letters
from factory_agents.runtime.replays import replay_letters
from tests.support.letters import EVERY, fill, letter, put, vouch, write_ledger
from tests.support.runs import Runs


def left(runs: Runs, topic: str) -> list[bytes | None]:
    return sorted(r.value or b"" for r in runs.everything(topic))


def test_letters_are_counted_by_what_became_of_them(runs: Runs) -> None:
    target = runs.topic("in", partitions=2)
    topic = fill(
        runs,
        [
            (letter(rule="a", topic="x", partition=0, offset=1), b"old"),
            (letter(rule="a", topic="x", partition=0, offset=1), b"new"),
            (letter(rule="b"), b"12"),
            (letter(rule="b"), b"34"),
        ],
        partitions=1,
    )
    put(runs, topic, [(letter(rule="b"), b"nobody's")], "s/f/0", partitions=1)
    runs.produce(topic, [b"no letter"])
    letters = LetterTopic(runs.config, topic, prefix=runs.prefix)
    stats = letter_stats(letters)
    counts = (stats.letters, stats.waiting, stats.replayed, stats.superseded, stats.others, stats.foreign)
    assert counts == (5, 3, 0, 1, 1, 1)
    assert [(r.rule, r.letters, r.waiting, r.others) for r in stats.rules] == [("b", 3, 2, 1), ("a", 2, 1, 0)]
    replay_letters(runs.config, topic, target, Selection(rule="a"), prefix=runs.prefix)
    stats = letter_stats(LetterTopic(runs.config, topic, prefix=runs.prefix))
    assert (stats.waiting, stats.replayed, stats.superseded) == (2, 2, 0)
    retention = int(runs.cluster.settings(topic)["retention.ms"])
    first = min(x.written for x in LetterTopic(runs.config, topic, prefix=runs.prefix).select(Selection(rule="b", attempt="all")))
    assert datetime.fromisoformat(stats.expires) == (first + timedelta(milliseconds=retention)).replace(microsecond=0)


def test_an_empty_topic_has_none(runs: Runs) -> None:
    stats = letter_stats(LetterTopic(runs.config, runs.topic("out.dead", partitions=1), prefix=runs.prefix))
    assert (stats.letters, stats.first, stats.expires, stats.rules) == (0, "", "", ())


def test_a_purge_goes_up_to_the_first_letter_that_waits(runs: Runs) -> None:
    target = runs.topic("in", partitions=1)
    topic = fill(runs, [(letter(rule=rule), str(n).encode()) for n, rule in enumerate("aabaab")], partitions=2)
    letters = LetterTopic(runs.config, topic, prefix=runs.prefix)
    assert purge_letters(letters).deleted == 0
    replay_letters(runs.config, topic, target, Selection(rule="a"), prefix=runs.prefix)
    would = purge_letters(letters, dry_run=True)
    assert (would.deleted, would.kept, would.waiting, would.dry_run) == (3, 3, 2, True)
    assert len(left(runs, topic)) == 6
    assert purge_letters(letters).deleted == 3  # partition 0: 0, 2 waits; partition 1: 1, 3, 5 waits
    assert left(runs, topic) == [b"2", b"4", b"5"]
    assert purge_letters(letters).deleted == 0
    assert replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix).replayed == 2
    assert purge_letters(letters).deleted == 3
    assert left(runs, topic) == []


def test_letters_of_unfinished_and_unknown_work_stay_unless_all_go(runs: Runs) -> None:
    topic = runs.topic("out.dead", partitions=2)
    put(runs, topic, [(letter(stage="t"), b"unfinished"), (letter(), b"unknown")], partitions=2)
    progress = Progress(dead={0: (0, 1, 1)})
    write_ledger(runs, StageRecord(pipeline="p", stage="t", window="w", shard=Shard(), fingerprint="f", generation=1, progress=progress))
    letters = LetterTopic(runs.config, topic, prefix=runs.prefix)
    assert (purge_letters(letters).deleted, purge_letters(letters).waiting) == (0, 2)
    assert purge_letters(letters, waiting=True).deleted == 2
    assert left(runs, topic) == []


@pytest.mark.parametrize("waiting", [False, True])
def test_a_purge_before_a_time_leaves_the_younger_ones(runs: Runs, waiting: bool) -> None:
    target = runs.topic("in", partitions=1)
    topic = fill(runs, [(letter(), str(n).encode()) for n in range(4)], partitions=1)
    letters = LetterTopic(runs.config, topic, prefix=runs.prefix)
    third = list(letters.select(EVERY))[2].written
    if not waiting:
        replay_letters(runs.config, topic, target, Selection(limit=3), prefix=runs.prefix)
    assert purge_letters(letters, before=third, waiting=waiting).deleted == 2
    assert left(runs, topic) == [b"2", b"3"]
    vouch(runs, topic)
