"""Events into typed batches: what fits, what is refused and how the reason reads. Needs no BigQuery."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from confluent_kafka import Message

from factory_agents.sinks.bigquery.rows import Field, RowReader

ALL = (
    Field("id", "STRING", required=True),
    Field("i", "INT64"),
    Field("f", "FLOAT64"),
    Field("b", "BOOL"),
    Field("t", "TIMESTAMP"),
    Field("d", "DATE"),
    Field("n", "NUMERIC"),
    Field("big", "BIGNUMERIC"),
    Field("j", "JSON"),
    Field("tags", "STRING", repeated=True),
    Field("r", "STRUCT", fields=(Field("x", "INT64"), Field("when", "TIMESTAMP"), Field("notes", "STRING", repeated=True))),
    Field("rs", "STRUCT", repeated=True, fields=(Field("n", "NUMERIC", required=True), Field("j", "JSON"))),
)


def records(*values: Any) -> list[Message]:
    return [
        Message(value=v if isinstance(v, bytes) or v is None else json.dumps(v).encode(), partition=1, offset=i, timestamp=(1, 1000 + i))
        for i, v in enumerate(values)
    ]


def read(fields: tuple[Field, ...], *values: Any) -> tuple[list[dict[str, Any]], dict[int, str]]:
    batches, rejected = RowReader(fields).read(records(*values))
    return [row for batch in batches for row in batch.to_pylist()], {i: r.reason for i, r in rejected.items()}


def one(field: Field, value: Any) -> Any:
    """A value by the fast way and by the slow one (beside a record that is none): what both give, or the reason."""
    event = b'{"%b": %b}' % (field.name.encode(), value if isinstance(value, bytes) else json.dumps(value).encode())
    rows, rejected = read((field,), event)
    slow, also = read((field,), event, b"{")
    assert slow == rows
    assert also.pop(1).startswith("not JSON")
    assert also == rejected
    return rejected[0] if rejected else rows[0][field.name]


def test_every_type_arrives_as_it_is() -> None:
    event = {
        "id": "ü\0🎉",
        "i": 2**63 - 1,
        "f": 1.5,
        "b": False,
        "t": "2026-11-01T04:00:00.123456+02:00",
        "d": "2026-02-28",
        "n": "12345678901234567890123456789.123456789",
        "big": "1e-38",
        "j": {"a": [1, 2.5, None, "\0"]},
        "tags": ["x", "y"],
        "r": {"x": 1, "when": "2026-11-01T04:00:00Z", "notes": ["a"]},
        "rs": [{"n": 1, "j": [1]}, {"n": 0.5}],
        "passed over": {"deep": [[]]},
    }
    rows, rejected = read(ALL, event, {"id": "only"})
    assert rejected == {}
    assert rows[0] == {
        "id": "ü\0🎉",
        "i": 2**63 - 1,
        "f": 1.5,
        "b": False,
        "t": datetime(2026, 11, 1, 2, 0, 0, 123456, tzinfo=UTC),
        "d": date(2026, 2, 28),
        "n": Decimal("12345678901234567890123456789.123456789"),
        "big": Decimal("1e-38"),
        "j": '{"a":[1,2.5,null,"\\u0000"]}',
        "tags": ["x", "y"],
        "r": {"x": 1, "when": datetime(2026, 11, 1, 4, tzinfo=UTC), "notes": ["a"]},
        "rs": [{"n": Decimal("1.000000000"), "j": "[1]"}, {"n": Decimal("0.500000000"), "j": None}],
        "_factory_partition": 1,
        "_factory_offset": 0,
        "_factory_timestamp": 1000,
    }
    empty = {f.name: [] if f.repeated else None for f in ALL[1:]}
    assert rows[1] == {"id": "only", **empty, "_factory_partition": 1, "_factory_offset": 1, "_factory_timestamp": 1001}


@pytest.mark.parametrize(
    ("type_", "value", "reason"),
    [
        ("INT64", 2**63, "expected `int` <= 9223372036854775807: 9223372036854775808 (the column is INT64)"),
        ("INT64", 1.5, "expected `int`, got `float`: 1.5 (the column is INT64)"),
        ("INT64", "1", "expected `int`, got `str`: '1' (the column is INT64)"),
        ("INT64", True, "expected `int`, got `bool` (the column is INT64)"),
        ("STRING", 1, "expected `str`, got `int`: 1 (the column is STRING)"),
        ("BOOL", 0, "expected `bool`, got `int`: 0 (the column is BOOL)"),
        ("FLOAT64", "x", "expected `float`, got `str`: 'x' (the column is FLOAT64)"),
        ("DATE", "2026-02-30", "expected a date such as 2026-11-01: '2026-02-30' (the column is DATE)"),
        ("TIMESTAMP", "yesterday", "expected a time such as 2026-11-01T04:00:00Z: 'yesterday' (the column is TIMESTAMP)"),
        ("TIMESTAMP", "0001-01-01T00:00:00+01:00", "not a time between the years 1 and 9999: '0001-01-01T00:00:00+01:00'"),
        ("TIMESTAMP", 5, "expected a time as text, got a number: 5 (the column is TIMESTAMP)"),
        ("NUMERIC", "1e29", "29 digits fit before the point: '1e29' (the column is NUMERIC)"),
        ("NUMERIC", "0.1234567891", "9 digits fit after the point: '0.1234567891' (the column is NUMERIC)"),
        ("NUMERIC", 0.1 + 0.2, "9 digits fit after the point: 0.30000000000000004 (the column is NUMERIC)"),
        ("NUMERIC", "NaN", "not a number: 'NaN' (the column is NUMERIC)"),
        ("NUMERIC", "x", "expected a number or its text: 'x' (the column is NUMERIC)"),
        ("NUMERIC", [1], "expected a number or its text, got a list (the column is NUMERIC)"),
        ("BIGNUMERIC", "1e-39", "38 digits fit after the point: '1e-39' (the column is BIGNUMERIC)"),
        ("JSON", {"a": [2**64]}, "holds a number of more digits than BigQuery's JSON keeps"),
    ],
)
def test_what_does_not_fit_is_refused_with_column_and_reason(type_: str, value: Any, reason: str) -> None:
    assert one(Field("c", type_), value).startswith(f"column 'c': {reason}")


@pytest.mark.parametrize(
    ("type_", "value", "kept"),
    [
        ("INT64", 4.0, 4),
        ("FLOAT64", 4, 4.0),
        ("TIMESTAMP", "2026-11-01T04:00:00", datetime(2026, 11, 1, 4, tzinfo=UTC)),
        ("TIMESTAMP", "2016-12-31T23:59:60z", datetime(2016, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("TIMESTAMP", "2026-11-01T04:00:00.1234567", datetime(2026, 11, 1, 4, 0, 0, 123457, tzinfo=UTC)),
        ("TIMESTAMP", "2026-10-31T23:59:59.9999999", datetime(2026, 11, 1, tzinfo=UTC)),
        ("TIMESTAMP", "2026-10-31T24:00:00Z", datetime(2026, 11, 1, tzinfo=UTC)),
        ("TIMESTAMP", "9999-12-31T23:59:59.999999Z", datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
        ("TIMESTAMP", "0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("NUMERIC", "-0.000000001000", Decimal("-0.000000001")),
        ("NUMERIC", 0, Decimal("0E-9")),
        ("NUMERIC", "99999999999999999999999999999.999999999", Decimal("99999999999999999999999999999.999999999")),
        ("JSON", [18446744073709551615, -(2**63)], "[18446744073709551615,-9223372036854775808]"),
        ("JSON", "1234567890123456789012", '"1234567890123456789012"'),
        ("JSON", False, "false"),
    ],
)
def test_what_fits_is_kept_exactly(type_: str, value: Any, kept: Any) -> None:
    assert one(Field("c", type_), value) == kept


@pytest.mark.parametrize("innermost", [b"", b"1"])
def test_deep_json_is_refused_where_bigquery_would(innermost: bytes) -> None:
    for deep, fits in ((500, True), (501, False)):
        value = b'{"c":[[],' + b"[" * (deep - 1) + innermost + b"]" * (deep - 1) + b"]}"
        rows, rejected = read((Field("c", "JSON"),), value)
        assert bool(rows) == fits
        assert list(rejected.values()) == ([] if fits else [rejected[0]])
    assert rejected[0] == "column 'c': nested more than 500 deep, which BigQuery's JSON cannot be (the column is JSON)"


def test_narrower_columns_refuse_what_bigquery_would() -> None:
    assert one(Field("c", "STRING", max_length=2), "äöü").startswith("column 'c': expected `str` of length <= 2: 'äöü'")
    assert one(Field("c", "STRING", max_length=3), "äöü") == "äöü"
    assert one(Field("c", "NUMERIC", digits=(5, 2)), "1234.5").startswith("column 'c': 3 digits fit before the point")
    assert one(Field("c", "NUMERIC", digits=(5, 2)), "1.234").startswith("column 'c': 2 digits fit after the point")


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_a_time_as_a_number_is_read_in_its_unit(unit: str) -> None:
    factor = {"s": 1, "ms": 1000, "us": 1_000_000}[unit]
    field = Field("c", "TIMESTAMP", unit=unit)
    assert one(field, 1762000000 * factor) == datetime.fromtimestamp(1762000000, UTC)
    assert one(field, 10**18 * factor).startswith("column 'c': not a time between the years 1 and 9999")
    assert one(field, "2026-11-01T04:00:00Z").startswith("column 'c': expected a number, got text")


def test_a_time_as_a_number_keeps_its_microseconds() -> None:
    assert one(Field("c", "TIMESTAMP", unit="us"), 253402300799999999) == datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    assert one(Field("c", "TIMESTAMP", unit="ms"), 1762000000123.456) == datetime(2025, 11, 1, 12, 26, 40, 123456, tzinfo=UTC)
    assert one(Field("c", "TIMESTAMP", unit="s"), b"253402300799.123456") == datetime(9999, 12, 31, 23, 59, 59, 123456, tzinfo=UTC)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (ALL[9], "x", "column 'tags': expected a list, got text: 'x' (the column is ARRAY<STRING>)"),
        (ALL[9], ["x", None], "column 'tags': a list holds a null, which BigQuery's arrays cannot (the column is ARRAY<STRING>)"),
        (ALL[9], [1], "column 'tags': expected `str`, got `int` (the column is ARRAY<STRING>)"),
        (ALL[10], {"x": "1"}, "column 'r': x: expected `int`, got `str`: '1' (the column is STRUCT<`x` INT64"),
        (ALL[10], {"y": 1, "x": 2}, "column 'r': the object has 'y', for which there is no field"),
        (ALL[10], [], "column 'r': expected an object, got a list"),
        (ALL[11], [{"n": 1}, {}], "column 'rs': n: missing or null"),
    ],
)
def test_nested_and_repeated_values_are_checked_all_the_way_down(field: Field, value: Any, reason: str) -> None:
    assert one(field, value).startswith(reason)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "the record has no value (a tombstone), expected a JSON object"),
        (b"{broken", "not JSON: "),
        (b"[1]", "not an event: Expected `object`, got `array`"),
        (b'{"id":"\xff"}', "not JSON: "),
        (b'{"id":null}', "column 'id': missing or null, expected STRING"),
        (b"{}", "column 'id': missing or null, expected STRING"),
        (b'{"id":1e999}', "column 'id': expected `str`, got `float`: 1E+999"),
        (b'{"id":"a","passed over":"\xff"}', "not JSON: "),
    ],
)
def test_what_is_no_event_is_rejected_alone(value: bytes | None, reason: str) -> None:
    rows, rejected = read(ALL, {"id": "before"}, value, {"id": "after"})
    assert [row["id"] for row in rows] == ["before", "after"]
    assert rejected[1].startswith(reason)


def test_records_of_many_chunks_keep_their_order_and_their_places() -> None:
    values: list[Any] = [{"id": str(n)} for n in range(4500)]
    values[2500] = b"{"
    rows, rejected = read((ALL[0],), *values)
    assert list(rejected) == [2500]
    assert [row["_factory_offset"] for row in rows] == [n for n in range(4500) if n != 2500]


DIGITS = b'{"n": 12345678901234567.89, "big": 100000000000000000000000.5, "i": 9007199254740993.0, "rs": [{"n": 1234567890123456.125}]}'


def test_no_digit_passes_through_a_float() -> None:
    for values in ([DIGITS], [DIGITS, b"{"]):
        rows, _ = read(ALL[1:], *values)
        assert rows[0]["n"] == Decimal("12345678901234567.89")
        assert rows[0]["big"] == Decimal("100000000000000000000000.5")
        assert rows[0]["i"] == 9007199254740993
        assert rows[0]["rs"][0]["n"] == Decimal("1234567890123456.125")


@pytest.mark.parametrize("number", [b"12345678901234567.89", b"100000000000000000000000.5", b"1e400", b"1e-400", b"1" * 30])
def test_a_number_that_json_would_round_is_refused(number: bytes) -> None:
    rows, rejected = read((Field("j", "JSON"),), b'{"j": [{"a": %b}]}' % number, b'{"j": [0.30000000000000004, 1.50, 1e22, 1E+2, -0.0]}')
    assert "more digits" in rejected[0]
    assert json.loads(rows[0]["j"]) == [0.30000000000000004, 1.5, 1e22, 100.0, -0.0]


def test_fractions_within_structs_are_numbers_of_their_columns() -> None:
    field = Field("r", "STRUCT", fields=(Field("f", "FLOAT64"), Field("i", "INT64"), Field("fs", "FLOAT64", repeated=True)))
    assert one(field, {"f": 1.5, "i": 2.0, "fs": [0.5, 1]}) == {"f": 1.5, "i": 2, "fs": [0.5, 1.0]}
    assert "expected `int`" in one(field, {"f": 1.5, "i": 2.5, "fs": []})
