"""Which change breaks whom."""

# ruff: noqa: E501  (tables of cases)

from __future__ import annotations

from typing import Any

import pytest

from factory_agents.contracts import load_contract
from factory_agents.contracts.diff import diff_contracts

BASE: dict[str, Any] = {
    "name": "c",
    "id": "a",
    "schema": {
        "type": "object",
        "required": ["a"],
        "properties": {
            "a": {"type": "string"},
            "n": {"type": ["integer", "null"], "minimum": 0},
            "e": {"type": ["string", "null"], "enum": ["x", "y", None]},
            "o": {"type": "object", "properties": {"p": {"type": "integer"}}},
            "l": {"type": "array", "items": {"type": "string", "maxLength": 5}},
        },
    },
    "rules": {"r": "n is None or n < 9"},
    "window": {"fail_if": ["rejected > 1 %"], "warn_if": ["rows < 1"], "invalid": {"e": {"values": ["x"]}}},
}


def edited(path: str, value: Any) -> dict[str, Any]:
    """The base with one value set, or taken away (None)."""
    copy: Any = load_contract(BASE).text
    import json

    copy = json.loads(copy)
    *keys, last = path.split("/")
    into = copy
    for key in keys:
        into = into.setdefault(key, {})
    if value is None:
        del into[last]
    else:
        into[last] = value
    return copy


P = "schema/properties"


@pytest.mark.parametrize(
    ("path", "value", "what", "text", "breaks"),
    [
        (f"{P}/z", {"type": "integer"}, "field z", "added", []),
        ("schema/required", ["a", "n"], "field n", "required now", ["producers"]),
        ("schema/required", ["a", "q"], None, None, None),
        (f"{P}/l", None, "field l", "removed", ["consumers"]),
        (f"{P}/n", {"type": "integer", "minimum": 0}, "field n", "type integer or null → integer", ["producers"]),
        (f"{P}/n", {"type": ["number", "null"], "minimum": 0}, "field n", "type integer or null → number or null", ["consumers"]),
        (f"{P}/n", {"type": ["string", "null"], "minimum": 0}, "field n", "type integer or null → string or null", ["producers", "consumers"]),
        (f"{P}/n/minimum", 1, "field n", "minimum 0 → 1", ["producers"]),
        (f"{P}/n/minimum", -1, "field n", "minimum 0 → -1", ["consumers"]),
        (f"{P}/n/minimum", None, "field n", "minimum 0 → none", ["consumers"]),
        (f"{P}/n/maximum", 7, "field n", "maximum none → 7", ["producers"]),
        (f"{P}/e/enum", ["x", None], "field e", 'enum: no longer ["y"]', ["producers"]),
        (f"{P}/e/enum", ["x", "y", "z", None], "field e", 'enum: also ["z"]', ["consumers"]),
        (f"{P}/e/enum", ["y", "x", None], "field e", "enum: in another order", []),
        (f"{P}/a/pattern", "^x", "field a", 'pattern none → "^x"', ["producers"]),
        (f"{P}/o/properties/p", {"type": "string"}, "field o.p", "type integer → string", ["producers", "consumers"]),
        (f"{P}/l/items/maxLength", 6, "field l[]", "maxLength 5 → 6", ["consumers"]),
        ("schema/additionalProperties", False, "the event", "additionalProperties none → false", ["producers"]),
        ("schema/additionalProperties", True, "the event", "additionalProperties none → true", []),
        (f"{P}/a/description", "An id", None, None, None),
        ("rules/s", "n != 3", "rule s", "added: n != 3", ["producers"]),
        ("rules/r", "n is None or n < 8", "rule r", "n is None or n < 9 → n is None or n < 8", ["producers", "consumers"]),
        ("rules/r", None, "rule r", "removed: n is None or n < 9", ["consumers"]),
        ("window/fail_if", [], "fail_if", "removed: rejected > 1 %", ["consumers"]),
        ("window/warn_if", ["rows < 2"], "warn_if", "added: rows < 2", []),
        ("window/invalid", {"e": {"values": ["y"]}}, "values of invalid(e)", '[["x"],null] → [["y"],null]', ["producers", "consumers"]),
        ("id", "a", None, None, None),
        ("key", ["a"], None, None, None),
        ("deletes", True, "deletes", "False → True", ["table"]),
        ("time", "e", "time", "none → e", ["consumers"]),
        ("version", 2, "version", "1 → 2", []),
        ("columns", {"a": None, "n": "numeric"}, "column n", "bigint → numeric", ["table"]),
    ],
)  # fmt: skip
def test_each_change_is_named_with_those_whom_it_breaks(
    path: str, value: Any, what: str | None, text: str | None, breaks: list[str] | None
) -> None:
    changes = diff_contracts(load_contract(BASE), load_contract(edited(path, value)))
    if what is None:
        assert [c for c in changes if c.breaks and not c.what.startswith("column")] in ([], [c for c in changes if c.what == "field q"])
        return
    found = {(c.what, c.text): list(c.breaks) for c in changes}
    assert found.get((what, text)) == breaks, found


def test_equal_contracts_do_not_differ_and_breaking_changes_come_first() -> None:
    assert diff_contracts(load_contract(BASE), load_contract(BASE)) == []
    changes = diff_contracts(load_contract(BASE), load_contract(edited(f"{P}/z", {"type": "integer"})))
    assert [(c.what, c.breaks) for c in changes] == [("column z", ("table",)), ("field z", ())]


def test_the_table_is_told_of_columns_that_come_go_or_may_be_null() -> None:
    changes = diff_contracts(load_contract(BASE), load_contract(edited("schema/required", ["a", "n", "o"])))
    assert {c.text for c in changes if c.what == "column o"} == {"may not be null any more"}
