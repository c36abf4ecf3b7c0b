"""Dead letters are counted by what was broken, shown whole, and replayed exactly once, as the events were."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer

from factory_agents.errors import ConfigurationError, StoppedError
from factory_agents.runtime import dead_letters
from factory_agents.runtime.dead_letters import Selection, group_letters, read_letter, read_letters, replay_letters
from factory_agents.runtime.outputs import DEAD_LETTER_HEADER, DeadLetter
from tests.support.commands import Command
from tests.support.observers import Recorder
from tests.support.runs import Rec, Runs

EVERY = Selection()


def letter(error: str = "broken", rule: str = "r", stage: str = "s", topic: str = "", partition: int = -1, offset: int = -1) -> DeadLetter:
    return DeadLetter(error, rule, "p", stage, "agent", "1", topic=topic, partition=partition, offset=offset)


def fill(runs: Runs, letters: Sequence[tuple[DeadLetter, bytes]], partitions: int = 2) -> str:
    """A dead-letter topic with these letters, one after another round its partitions."""
    topic = runs.topic("out.dead", partitions=partitions)
    producer = Producer({"bootstrap.servers": runs.bootstrap})
    now = time.time_ns() // 1_000_000 - len(letters)
    for i, (why, value) in enumerate(letters):
        headers: list[tuple[str, Any]] = [("own", b"kept"), ("factory-writer", b"s/f/1"), (DEAD_LETTER_HEADER, msgspec.json.encode(why))]
        producer.produce(topic, value, key=f"k{i}", partition=i % partitions, headers=headers, timestamp=now + i)
    assert producer.flush(30) == 0
    return topic


def replayed(runs: Runs, topic: str) -> list[Rec]:
    return sorted(runs.everything(topic), key=lambda r: r.value or b"")


def test_letters_are_counted_by_stage_rule_and_kind_of_error(runs: Runs) -> None:
    topic = fill(
        runs,
        [
            (letter("'a' is shorter than 3", "schema"), b"1"),
            (letter("'bc' is shorter than 12", "schema"), b"2"),
            (letter("the key field 'id' is missing", "key"), b"3"),
            (letter("'a' is shorter than 3", "schema", stage="other"), b"4"),
        ],
    )
    groups = group_letters(read_letters(runs.config, topic, EVERY))
    assert [(g.stage, g.rule, g.count) for g in groups] == [("s", "schema", 2), ("other", "schema", 1), ("s", "key", 1)]
    assert groups[0].error == "'bc' is shorter than 12"
    assert groups[0].example == "1@0"


def test_letters_are_chosen_by_rule_stage_and_time(runs: Runs) -> None:
    topic = fill(runs, [(letter(rule="a,b"), b"1"), (letter(rule="b"), b"2"), (letter(stage="other"), b"3")])
    every = list(read_letters(runs.config, topic, EVERY))
    assert {x.value for x in read_letters(runs.config, topic, Selection(rule="b"))} == {b"1", b"2"}
    assert {x.value for x in read_letters(runs.config, topic, Selection(stage="other"))} == {b"3"}
    last = max(x.written for x in every)
    assert {x.value for x in read_letters(runs.config, topic, Selection(since=last))} == {b"3"}
    assert {x.value for x in read_letters(runs.config, topic, Selection(until=last))} == {b"1", b"2"}
    assert len(list(read_letters(runs.config, topic, Selection(limit=2)))) == 2


def test_one_letter_is_shown_whole(runs: Runs) -> None:
    topic = fill(runs, [(letter("broken", "r", topic="in", partition=3, offset=17), b'{"a":1}')])
    shown = read_letter(runs.config, topic, "0@0").to_data()
    assert shown["why"] == {
        "error": "broken",
        "rule": "r",
        "pipeline": "p",
        "stage": "s",
        "agent": "agent",
        "version": "1",
        "topic": "in",
        "partition": 3,
        "offset": 17,
    }
    assert (shown["key"], shown["value"], shown["headers"]) == ("k0", {"a": 1}, {"own": "kept"})


@pytest.mark.parametrize(
    ("position", "message"), [("3", "expected partition@offset"), ("9@0", "has the partitions 0 to 1"), ("0@7", "has no letter there")]
)
def test_a_letter_that_is_not_there_is_one_clear_line(runs: Runs, position: str, message: str) -> None:
    topic = fill(runs, [(letter(), b"1")])
    with pytest.raises(ConfigurationError, match=message):
        read_letter(runs.config, topic, position)


def test_a_topic_of_other_records_is_refused(runs: Runs) -> None:
    topic = runs.topic(partitions=1)
    runs.produce(topic, [b"{}"])
    with pytest.raises(ConfigurationError, match="a dead-letter topic"):
        list(read_letters(runs.config, topic, EVERY))


def test_a_replay_restores_key_value_headers_and_partition(runs: Runs) -> None:
    target = runs.topic("in", partitions=4)
    topic = fill(runs, [(letter(topic=target, partition=3, offset=17), b'{"event_id":"a"}')])
    result = replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix)
    assert (result.replayed, result.before, result.superseded) == (1, 0, 0)
    (record,) = runs.everything(target)
    assert (record.partition, record.key, record.value) == (3, b"k0", b'{"event_id":"a"}')
    assert record.headers == {"own": b"kept", "factory-writer": f"replay/{topic}-0@0/0".encode()}


def test_a_second_replay_of_the_same_letters_is_refused_unless_again(runs: Runs) -> None:
    target = runs.topic("in", partitions=2)
    topic = fill(runs, [(letter(rule="a"), b"1"), (letter(rule="b"), b"2")])
    assert replay_letters(runs.config, topic, target, Selection(rule="a"), prefix=runs.prefix).replayed == 1
    with pytest.raises(ConfigurationError, match=r"all letters meant \(1\) were replayed before; --again"):
        replay_letters(runs.config, topic, target, Selection(rule="a"), prefix=runs.prefix)
    rest = replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix)
    assert (rest.replayed, rest.before) == (1, 1)
    assert [r.value for r in replayed(runs, target)] == [b"1", b"2"]
    replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix, again=True)
    assert [r.value for r in replayed(runs, target)] == [b"1", b"1", b"2", b"2"]


def test_nothing_to_replay_is_told(runs: Runs) -> None:
    target = runs.topic("in", partitions=2)
    topic = fill(runs, [(letter(), b"1")])
    with pytest.raises(ConfigurationError, match="no dead letter such as is meant"):
        replay_letters(runs.config, topic, target, Selection(rule="none"), prefix=runs.prefix)


def test_of_two_letters_about_one_event_the_last_is_replayed(runs: Runs) -> None:
    target = runs.topic("in", partitions=2)
    topic = fill(
        runs, [(letter("first", topic="x", partition=0, offset=5), b"old"), (letter("again", topic="x", partition=0, offset=5), b"new")]
    )
    result = replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix)
    assert (result.replayed, result.superseded) == (1, 1)
    assert [r.value for r in replayed(runs, target)] == [b"new"]
    with pytest.raises(ConfigurationError, match="were replayed before"):
        replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix)


def test_a_dry_run_writes_nothing(runs: Runs) -> None:
    target = runs.topic("in", partitions=2)
    topic = fill(runs, [(letter(), b"1")])
    assert replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix, dry_run=True).replayed == 1
    assert runs.everything(target) == []
    assert replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix).replayed == 1


def test_a_limit_takes_the_oldest(runs: Runs) -> None:
    target = runs.topic("in", partitions=2)
    topic = fill(runs, [(letter(), str(i).encode()) for i in range(5)])
    replay_letters(runs.config, topic, target, Selection(limit=2), prefix=runs.prefix)
    assert [r.value for r in replayed(runs, target)] == [b"0", b"1"]
    replay_letters(runs.config, topic, target, Selection(limit=2), prefix=runs.prefix)
    assert [r.value for r in replayed(runs, target)] == [b"0", b"1", b"2", b"3"]


def test_a_replay_that_was_stopped_goes_on_without_doubling(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "_CHUNK", 2)
    target = runs.topic("in", partitions=2)
    topic = fill(runs, [(letter(), str(i).encode()) for i in range(5)])
    observed = Recorder()
    with pytest.raises(StoppedError):
        replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix, observer=observed, stop=lambda: bool(observed.commits))
    assert len(runs.everything(target)) == 2
    assert replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix).replayed == 3
    assert [r.value for r in replayed(runs, target)] == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("failpoint", ["chunk.before-commit", "chunk.after-commit"])
def test_a_replay_that_was_killed_at_its_commit_is_complete_after_the_next(runs: Runs, factory: Command, failpoint: str) -> None:
    target = runs.topic("in", partitions=2)
    topic = fill(runs, [(letter(), str(i).encode()) for i in range(5)])
    assert factory("dead-letters", "replay", topic, "--to", target, FACTORY_FAILPOINTS=f"{failpoint}=kill").code == -9
    again = factory("dead-letters", "replay", topic, "--to", target)
    assert again.code == (1 if failpoint == "chunk.after-commit" else 0)
    assert [r.value for r in replayed(runs, target)] == [b"0", b"1", b"2", b"3", b"4"]


def test_an_event_that_the_target_refuses_is_told_and_all_others_are_replayed(runs: Runs) -> None:
    target = runs.topic("in", partitions=2, max_message_bytes=1000)
    topic = fill(runs, [(letter(), b"1"), (letter(), os.urandom(2000)), (letter(), b"3"), (letter(), b"4")])
    result = replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix)
    assert (result.replayed, len(result.refused)) == (3, 1)
    assert f"{topic} 1@0: " in result.refused[0]
    assert [r.value for r in replayed(runs, target)] == [b"1", b"3", b"4"]
