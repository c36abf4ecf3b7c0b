"""What is said of a bad event is the same whether the schema's validator words it or the shorter way does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory_agents.contracts import load_contract
from factory_agents.errors import ContractError
from tests.agents.contracts.test_fast import NAMES, contract_of, events, leaves, numbers, schemas, strings
from tests.support.soak import examples

plain = st.one_of(strings, numbers, leaves, st.builds(lambda a, b: a | b, strings, numbers))
flat = st.fixed_dictionaries(
    {"type": st.just("object"), "properties": st.dictionaries(st.sampled_from(NAMES), plain, min_size=1)},
    optional={
        "required": st.lists(st.sampled_from([*NAMES, "other"]), unique=True, max_size=2),
        "additionalProperties": st.booleans(),
        "$schema": st.sampled_from(["http://json-schema.org/draft-04/schema", "http://json-schema.org/draft-07/schema"]),
        "allOf": st.just([{"minProperties": 1}]),
    },
)


@settings(max_examples=examples(30, 3_000))
@given(st.one_of(flat, flat, schemas), st.lists(events, min_size=10, max_size=20))
def test_both_ways_say_the_same(schema: dict[str, Any], batch: list[bytes]) -> None:
    try:
        ours = load_contract({"name": "c", "id": None, "schema": schema})._schema
    except ContractError:  # what an older dialect doesn't know
        return
    theirs = replace(ours, _single_fault=None)
    for text in batch:
        try:
            event = msgspec.json.decode(text)
        except ValueError:
            continue
        assert ours.violations(event) == theirs.violations(event), event


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"id": ""}, 'id: expected at least 1 characters, got ""'),
        ({"id": 7}, "id: expected string, got 7"),
        ({"commit": "xyz"}, 'commit: expected text matching ^[0-9a-f]+$, got "xyz"'),
        ({"price": -0.5}, "price: expected at least 0.5, got -0.5"),
        ({"price": True}, "price: expected number or null, got true"),
        ({"kind": "c"}, 'kind: expected one of "a", "b", got "c"'),
        ({"kind": None}, 'kind: expected one of "a", "b", got null'),
        ({"at": "yesterday"}, 'at: expected the format date-time, got "yesterday"'),
    ],
)
def test_the_usual_faults_need_no_error_of_the_validators(wrong: dict[str, Any], why: str) -> None:
    """A change that sends them all the slow way would be seen by nobody else."""
    properties = {
        "id": {"type": "string", "minLength": 1},
        "commit": {"type": "string", "pattern": "^[0-9a-f]+$"},
        "price": {"type": ["number", "null"], "minimum": 0.5},
        "kind": {"enum": ["a", "b"]},
        "at": {"type": "string", "format": "date-time"},
    }
    schema = load_contract(contract_of(properties, required=["id"]))._schema
    event = {"id": "x", "at": "2026-11-01T04:00:00Z"}
    assert schema._single_fault is not None
    assert [v.reason for v in schema.violations(event | wrong)] == [why]
    assert (schema._single_fault(event | wrong) is None) == ("at" in wrong)
    assert schema._single_fault({"at": event["at"]}) == (
        "schema:id",
        "id: expected a value, got none (the field is missing)",
    )
    assert schema._single_fault(event) is schema._single_fault({"id": 1, "kind": 1}) is None
