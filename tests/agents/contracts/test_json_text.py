"""JSON text is read as the standard library reads it, and every key and value knows where it stands."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_agents.contracts.json_text import JsonError, JsonReader

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.sampled_from([None, 0, 2]))
def test_a_value_is_read_as_it_was_written(value: Any, indent: int | None) -> None:
    assert JsonReader(json.dumps(value, indent=indent)).read() == value


def test_keys_and_values_know_their_line_and_column() -> None:
    reader = JsonReader('{"a": 1,\n  "b": [true,\n null]}')
    reader.read()
    assert reader.keys == {("a",): (1, 2), ("b",): (2, 3)}
    assert reader.values == {(): (1, 1), ("a",): (1, 7), ("b",): (2, 8), ("b", 0): (2, 9), ("b", 1): (3, 2)}


@pytest.mark.parametrize(
    ("text", "at", "why"),
    [
        ("", (1, 1), "expected a value"),
        ('{"a": 1,\n "a": 2}', (2, 2), "stands here twice"),
        ('{"a" 1}', (1, 6), "expected a colon"),
        ("[1,]", (1, 4), "after the comma"),
        ("[1 2]", (1, 4), "expected a comma or ]"),
        ("[1] x", (1, 5), "something follows"),
        ("{a: 1}", (1, 2), "double quotes"),
        (r'{"a": "x\ud800"}', (1, 7), "half a character"),
        (r'{"\udfff": 1}', (1, 2), "half a character"),
        ("[1e999]", (1, 2), "too large"),
        ("[" * 300, (1, 202), "nested too deeply"),
        ('["a', (1, 2), "Unterminated"),
        ('// a\n{"a": 1}', (1, 1), "expected a value; JSON has no comments"),
        ('{\n\t/* a */ "a": 1}', (2, 2), "double quotes; JSON has no comments"),
    ],
)
def test_what_is_no_json_is_refused_where_it_stands(text: str, at: tuple[int, int], why: str) -> None:
    with pytest.raises(JsonError, match=why) as refused:
        JsonReader(text).read()
    assert refused.value.at == at
