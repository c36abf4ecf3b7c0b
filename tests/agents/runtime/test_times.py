"""Times at their edges: exact to the microsecond, or refused."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from factory_agents.contracts import load_contract
from factory_agents.runtime.rows import RowReader
from factory_agents.testing.records import record


def read(type_: str, value: Any, unit: str = "") -> Any:
    """What a sink's reader makes of one value, or why it doesn't."""
    contract = {"name": "n", "id": "id", "columns": {"id": "text", "at": type_}} | ({"time": "at", "time_unit": unit} if unit else {})
    rows, rejected = RowReader(load_contract(contract).table(), "w").read([record({"id": "a", "at": value}, 0, 0)])
    return rejected[0].reason if rejected else rows[0].rows[0][1]


@pytest.mark.parametrize("zone", ["", "Z", "z", "+00:00"])
@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-10-31T24:00:00", "2026-11-01T00:00:00"),
        ("2026-10-31T23:59:60", "2026-10-31T23:59:59"),
        ("2026-10-31T23:59:59.9999999", "2026-11-01T00:00:00"),
        ("2026-11-01T04:00:00.1234567", "2026-11-01T04:00:00.123457"),
        ("9999-12-31T23:59:59.999999", "9999-12-31T23:59:59.999999"),
    ],
)
def test_texts(text: str, zone: str, moment: str) -> None:
    assert read("timestamptz", text + zone).isoformat() == f"{moment}+00:00"
    assert read("timestamp", text + zone).isoformat() == moment


@pytest.mark.parametrize(
    ("value", "unit", "moment"),
    [
        (1762000000, "s", datetime(2025, 11, 1, 12, 26, 40, tzinfo=UTC)),
        (1762000000123.456, "ms", datetime(2025, 11, 1, 12, 26, 40, 123456, tzinfo=UTC)),
        (253402300799999999, "us", datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
    ],
)
def test_numbers(value: float, unit: str, moment: datetime) -> None:
    assert read("timestamptz", value, unit) == moment


def test_a_number_in_a_column_of_numbers_stays_one() -> None:
    assert read("bigint", 1762000000, "s") == 1762000000
    assert read("numeric", 1762000000.5, "s") == Decimal("1762000000.5")


@pytest.mark.parametrize(
    ("value", "unit", "says"),
    [
        ("9999-12-31T24:00:00Z", "", "not a time between the years 1 and 9999"),
        ("2026-10-31T24:00:01Z", "", "hour must be in 0..23"),
        *((f"2026-11-01{clock}", "", "expected a time of day such as") for clock in ("T04.5", " 04:05.5Z", "T20261101", "T04:0506")),
        (253402300799.123456, "s", "a float of this size keeps no microseconds"),
        (10**20, "us", "not a time between the years 1 and 9999"),
    ],
)
def test_refused(value: Any, unit: str, says: str) -> None:
    assert says in read("timestamptz", value, unit)
