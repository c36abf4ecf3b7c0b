"""A schema that is part of itself: what is wrong with a nested event is told at once, or that it is."""

from __future__ import annotations

from typing import Any

import pytest

from factory_agents.contracts import load_contract

INNER = {"$ref": "#/$defs/node"}


@pytest.mark.parametrize(
    "node",
    [
        {"anyOf": [{"type": "object", "required": [name], "properties": {"inner": INNER}} for name in ("a", "b")]},
        {"allOf": [{"type": "object", "properties": {"inner": INNER}} for _ in range(2)]},
        {"type": "object", "patternProperties": {"^inner": INNER, "ner$": INNER}},
    ],
)
def test_an_event_that_is_nested_in_a_schema_that_is_part_of_itself_is_told_at_once(node: dict[str, Any]) -> None:
    contract = load_contract({"name": "e", "id": None, "schema": {"$defs": {"node": node}, "properties": {"inner": INNER}}})

    def violations(levels: int) -> list[str]:
        event: dict[str, Any] = {"inner": 1}
        for _ in range(levels):
            event = {"inner": event, "a": 1}
        return [violation.reason for violation in contract.violations(event)]

    assert all(reason.startswith("inner") for reason in violations(3))
    assert ["over 61 levels" in reason for reason in violations(60)] == [True]


def test_an_event_that_is_nested_in_a_plain_tree_is_told_what_is_wrong() -> None:
    node = {"type": "object", "properties": {"left": INNER, "right": INNER, "size": {"type": "integer"}}}
    contract = load_contract({"name": "e", "id": None, "schema": {"$defs": {"node": node}, "properties": {"tree": INNER}}})
    event: dict[str, Any] = {"size": "1"}
    for _ in range(30):
        event = {"left": event, "right": {"size": 1}}
    (violation,) = contract.violations({"tree": event})
    assert violation.reason.endswith('.size: expected integer, got "1"')
