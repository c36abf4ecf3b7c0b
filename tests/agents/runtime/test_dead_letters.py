"""Dead letters are counted by what was broken, and shown whole."""

from __future__ import annotations

import pytest

from factory_agents.codecs.registry import RegistryConfig
from factory_agents.errors import ConfigurationError
from factory_agents.runtime.dead_letters import LetterTopic, Selection, group_letters
from factory_agents.runtime.letter_values import LetterReader
from tests.support.letters import fill, letter, select
from tests.support.runs import Runs


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
    groups = group_letters(select(runs, topic))
    assert [(g.stage, g.rule, g.count) for g in groups] == [("s", "schema", 2), ("other", "schema", 1), ("s", "key", 1)]
    assert groups[0].error == "'bc' is shorter than 12"
    assert groups[0].example == "1@0"


def test_letters_are_chosen_by_rule_stage_and_time(runs: Runs) -> None:
    topic = fill(runs, [(letter(rule="a,b"), b"1"), (letter(rule="b"), b"2"), (letter(stage="other"), b"3")])
    every = list(select(runs, topic))
    assert {x.value for x in select(runs, topic, Selection(rule="b"))} == {b"1", b"2"}
    assert {x.value for x in select(runs, topic, Selection(stage="other"))} == {b"3"}
    last = max(x.written for x in every)
    assert {x.value for x in select(runs, topic, Selection(since=last))} == {b"3"}
    assert {x.value for x in select(runs, topic, Selection(until=last))} == {b"1", b"2"}
    assert len(list(select(runs, topic, Selection(limit=2)))) == 2


def test_one_letter_is_shown_whole(runs: Runs) -> None:
    topic = fill(runs, [(letter("broken", "r", topic="in", partition=3, offset=17), b'{"a":1}')])
    shown = LetterTopic(runs.config, topic, prefix=runs.prefix).at("0@0").to_data(LetterReader(RegistryConfig.from_env))
    assert shown["why"] == {
        "error": "broken",
        "rule": "r",
        "pipeline": "p",
        "stage": "s",
        "agent": "agent",
        "version": "1",
        "window": "w",
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
        LetterTopic(runs.config, topic, prefix=runs.prefix).at(position)


def test_a_topic_of_other_records_is_refused(runs: Runs) -> None:
    topic = runs.topic(partitions=1)
    runs.produce(topic, [b"{}"])
    with pytest.raises(ConfigurationError, match=r"none of its 1 records is a dead letter.* is it a dead-letter topic"):
        list(select(runs, topic))
