"""Which JSON a VARIANT holds as it is."""

from __future__ import annotations

import pytest

from factory_agents.sinks.snowflake.rows import json_loss


@pytest.mark.parametrize(
    "text",
    ["{}", "[1, null, true]", '"text"', '{"a": {"a": 1}}', "0.1", "-1.5e300", "12345678901234567890123456789012345678", '"\\ud83d\\ude00"'],
)
def test_held(text: str) -> None:
    assert json_loss(text) == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice in one object"),
        ("123456789012345678901234567890123456789", "has more digits than a VARIANT holds"),
        ('{"a": [1.12345678901234567890e10]}', "the number 1.12345678901234567890e10 has more digits than a VARIANT holds"),
        ("1e400", "has more digits than a VARIANT holds"),
        ('["\\ud83d"]', "half of a surrogate pair"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
    ],
)
def test_not_held(text: str, why: str) -> None:
    assert why in json_loss(text)
