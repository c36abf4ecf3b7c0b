"""Events per key: counted in bounded memory, judged by conditions, exact or not known."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory_agents.contracts import judge, load_contract, merge_reports
from factory_agents.contracts.volumes import VolumeCounter, Volumes
from factory_agents.errors import ConfigurationError, ContractError
from factory_agents.validate import ValidateTransform
from tests.agents.test_validate import RUN, message

SCHEMA = {"type": "object", "properties": {"tenant": {"type": ["string", "null"]}, "kind": {}}}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 300).map(str), max_size=60), max_size=12), st.sampled_from([1, 3, 10, 100]))
def test_spilling_counts_what_a_counter_counts(batches: list[list[str]], limit: int) -> None:
    counter = VolumeCounter(limit)
    for batch in batches:
        counter.add(batch)
    everything = Counter(value for batch in batches for value in batch)
    expected = Volumes(len(everything), max(everything.values(), default=0), min(everything.values(), default=0))
    assert counter.volumes() == expected
    assert counter.volumes() == expected
    counter.close()


def test_many_keys_stay_within_the_memory_they_are_given() -> None:
    counter = VolumeCounter(1000)
    for start in range(0, 100_000, 2_000):
        counter.add(str(i // 2) for i in range(start, start + 2_000))
        assert len(counter._counts) <= 2_000
    assert counter.volumes() == Volumes(50_000, 2, 2)
    counter.close()


def report(*conditions: str, events: list[dict[str, Any]]) -> dict[str, Any]:
    contract = load_contract({"name": "e", "id": None, "schema": SCHEMA, "window": {"fail_if": list(conditions)}})
    agent = ValidateTransform(contract, RUN)
    try:
        agent.process([message(msgspec.json.encode(event), i) for i, event in enumerate(events)])
        return agent.report()
    finally:
        agent.close()


EVENTS: list[dict[str, Any]] = [{"tenant": "a", "kind": 1}] * 3 + [{"tenant": "b", "kind": "1"}, {"tenant": None}, {}]


@pytest.mark.parametrize(
    ("condition", "observed", "outcome"),
    [
        ("keys(tenant) < 3", 2, "fail"),
        ("most_per(tenant) > 3", 3, "pass"),
        ("most_per(tenant) > 2", 3, "fail"),
        ("fewest_per(tenant) < 2", 1, "fail"),
        ("fewest_per( tenant , kind ) not between 1 and 3", 1, "pass"),
        ("keys(kind) == 2", 2, "fail"),
    ],
)
def test_conditions_on_the_events_per_key(condition: str, observed: int, outcome: str) -> None:
    (check,) = judge(report(condition, events=EVENTS)).checks
    assert (check["observed"], check["outcome"]) == (observed, outcome)


def test_over_several_shards_it_is_not_known_and_of_one_it_is_kept() -> None:
    one = report("most_per(tenant) > 2", events=EVENTS)
    assert merge_reports([one]) == one
    (check,) = judge(merge_reports([one, one])).checks
    assert (check["outcome"], check["note"]) == ("warn", "not known: it needs the whole window in one shard: plan it with shards=1")


def test_without_a_value_there_is_no_fewest() -> None:
    conditions = ("fewest_per(tenant) < 2", "most_per(tenant) < 1", "keys(tenant) < 1")
    checks = judge(report(*conditions, events=[{}])).checks
    assert [c["outcome"] for c in checks] == ["warn", "fail", "fail"]
    assert checks[0]["note"] == "not known: no event has a value of tenant"
    assert [c["outcome"] for c in judge(report(conditions[0], events=[])).checks] == ["pass"]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("most_per > 2", "expected the key's fields in brackets, such as most_per(tenant)"),
        ("most_per(tenants) > 2", "the schema declares no field 'tenants'; did you mean 'tenant'?"),
        ("most_per(tenant,) > 2", "expected fields with commas between them"),
        ("most_per(tenant) > 2 %", "most_per is a count, which has no per cent"),
    ],
)
def test_what_cannot_be_counted_is_refused(condition: str, message: str) -> None:
    with pytest.raises((ContractError, ConfigurationError)) as raised:
        report(condition, events=[])
    assert message in str(raised.value)


def test_a_condition_of_the_operator_is_about_what_was_counted() -> None:
    with pytest.raises(ConfigurationError, match="the report counts no events per 'kind'"):
        judge(report("most_per(tenant) > 9", events=EVENTS), "most_per(kind) > 1")
