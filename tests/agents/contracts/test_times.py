"""ISO-8601 times as events hold them."""

from __future__ import annotations

import pytest

from factory_agents.contracts.times import iso_time


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.000001z", 1),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T23:59:59Z", -1_000_000),
        ("1970-01-01T00:00:01", 1_000_000),
        ("1970-01-02", 86_400_000_000),
        ("2016-12-31T23:59:60Z", 1_483_228_799_000_000),
        ("1970-01-01T24:00:00.0z", 86_400_000_000),
        ("1970-01-01 24:00+01:00", 82_800_000_000),
    ],
)
def test_a_time_is_microseconds_since_1970(text: str, expected: int) -> None:
    assert iso_time(text) == expected


def test_null_has_no_time() -> None:
    assert iso_time(None) is None


@pytest.mark.parametrize(
    "value", ["", "yesterday", "2026-13-01T00:00:00Z", "2026-01-01T00:60:00Z?", "2026-01-01T24:01", "9999-12-31T24:00Z", 12, True, {}, []]
)
def test_anything_else_is_refused_with_what_came(value: object) -> None:
    with pytest.raises(ValueError, match="expected an ISO-8601 time, such as 2026-11-01T04:00:00Z, got"):
        iso_time(value)
