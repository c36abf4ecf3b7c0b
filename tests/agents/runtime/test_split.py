"""Agents side by side, each for a share of the keys: stable, in order, once."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_agents import Reject, agent, split
from factory_agents.enrich import build
from factory_agents.errors import ConfigurationError
from factory_agents.runtime.dependencies import Dependency, InterruptedBatchError
from factory_agents.runtime.split import SplitAgent
from tests.agents.runtime.test_live import live, wait_written
from tests.support.runs import Runs, events


@agent(version="1")
def old(event: dict[str, Any]) -> Any:
    return event | {"by": "old"}


@agent(version="1", concurrency=4)
def new(event: dict[str, Any]) -> Any:
    if event["event_id"] % 7 == 0:
        raise Reject("unlucky")
    return [event | {"by": "new"}, event | {"by": "new again"}] if event["event_id"] % 5 == 0 else event | {"by": "new"}


both = split("prices", {"a": (old, 80), "b": (new, 20)}, field="variant")


def parts(made: SplitAgent, keys: int = 20_000) -> list[str]:
    return [made.part_of(b"%d" % n) for n in range(keys)]


def test_shares_are_kept_and_a_key_always_has_the_same_part() -> None:
    counts = Counter(parts(both))
    assert 0.19 < counts["b"] / 20_000 < 0.21
    assert parts(both) == parts(split("prices", {"a": (new, 80), "b": (old, 20)}))
    assert parts(both) != parts(split("another", {"a": (old, 80), "b": (new, 20)})), "tests are independent of each other"


def test_where_a_share_grows_only_those_keys_change() -> None:
    more = parts(split("prices", {"a": (old, 70), "b": (new, 30)}))
    changed = [(was, now) for was, now in zip(parts(both), more, strict=True) if was != now]
    assert set(changed) == {("a", "b")}
    assert 0.09 < len(changed) / 20_000 < 0.11


@pytest.mark.parametrize("shares", [(80, 10), (80, 30), (-10, 110)])
def test_shares_that_are_not_whole_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        split("prices", {"a": (old, shares[0]), "b": (new, shares[1])})


def test_what_it_is_enters_the_fingerprint() -> None:
    versions = {
        both.version,
        split("prices", {"a": (old, 70), "b": (new, 30)}, field="variant").version,
        split("prices", {"a": (old, 80), "b": (new, 20)}).version,
        split("prices", {"a": (old, 80), "b": (old, 20)}, field="variant").version,
    }
    assert len(versions) == 4


def test_enrich_takes_none_as_its_function() -> None:
    with pytest.raises(ConfigurationError, match="is a split: run it as the agent itself"):
        build({"function": f"{__name__}:both"}, None)


def test_over_a_window_and_live_each_event_comes_out_of_its_part_once(runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    runs.topic("out.dead")
    for key in range(50):
        runs.produce(source, events(300)[key::50], key=b"%d" % key)
    of_b = [n for n in range(300) if both.part_of(b"%d" % (n % 50)) == "b"]
    windowed = runs.transform(runs.run(runs.window(source), out, f"{__name__}:both"), both.bind({}))
    live_out = runs.topic("live")
    runs.topic("live.dead")
    with live(runs, source, live_out, both) as running:
        wait_written(runs, live_out, windowed.counts.produced)
        running.end()
    for topic in (out, live_out):
        made = Counter((r.event["variant"], r.event["by"]) for r in runs.everything(topic))
        fives = [n for n in of_b if n % 5 == 0 and n % 7 != 0]
        assert made["b", "new again"] == len(fives) > 0
        assert made["b", "new"] == len([n for n in of_b if n % 7 != 0])
        assert made["a", "old"] == 300 - len(of_b)
    assert windowed.counts.rejected == len([n for n in of_b if n % 7 == 0])


class Record(NamedTuple):
    """As much of a message as a transform looks at."""

    data: bytes
    name: bytes
    number: int

    def value(self) -> bytes:
        return self.data

    def key(self) -> bytes:
        return self.name

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.number


@given(down=st.integers(0, 30), size=st.integers(1, 30))
def test_in_an_outage_of_one_part_what_stands_before_it_is_kept(down: int, size: int) -> None:
    crm = Dependency("crm", retries=0)

    @agent(version="1")
    def calls(event: dict[str, Any]) -> dict[str, Any]:
        with crm:
            if event["event_id"] >= down:
                raise ConnectionError("refused")
        return event

    mixed = split("mixed", {"a": (old, 50), "b": (calls, 50)})
    messages: Any = [Record(value, b"%d" % n, n) for n, value in enumerate(events(size))]
    failing = [n for n in range(size) if n >= down and mixed.part_of(b"%d" % n) == "b"]
    transform = mixed.bind({})
    if not failing:
        assert None not in transform.process(messages)
        return
    with pytest.raises(InterruptedBatchError) as interrupted:
        transform.process(messages)
    assert len(interrupted.value.outputs) == failing[0]
    assert None not in interrupted.value.outputs
