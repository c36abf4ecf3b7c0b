"""Records into typed rows by a contract's columns."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pytest

from factory_agents.contracts import load_contract
from factory_agents.errors import ConfigurationError
from factory_agents.runtime.ledger_sink import RANK
from factory_agents.runtime.rows import RowReader
from tests.support.sink_bench import ALL_TYPES, W1, at, record

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def reader(columns: dict[str, str], **more: Any) -> RowReader:
    return RowReader(load_contract({"name": "n", "id": "id", "columns": {"id": "text"} | columns} | more).table(), W1)


def read(type_: str, value: Any, **more: Any) -> Any:
    """The value in a row, or the reason why there is none."""
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    batches, rejected = reader({"x": type_}, **more).read([record(b'{"id": "a", "x": ' + text + b"}", 0, 0)])
    return batches[0].rows[0][1] if batches else rejected[0].reason


@pytest.mark.parametrize(
    ("type_", "value", "expected"),
    [
        ("text", "é\0", "é\0"),
        ("bigint", 2**63 - 1, 2**63 - 1),
        ("bigint", 5.0, 5),
        ("bigint", b"9007199254740993.0", 9007199254740993),
        ("bigint[]", b"[9.007199254740993e15, 1E+2]", [9007199254740993, 100]),
        ("double", 1, 1.0),
        ("boolean", True, True),
        ("timestamptz", "2026-11-01T13:00:00+01:00", NOON),
        ("timestamptz", "2026-11-01 12:00", NOON),
        ("timestamptz", "2026-11-01T11:59:60z", datetime(2026, 11, 1, 11, 59, 59, tzinfo=UTC)),
        ("timestamp", "2026-11-01T13:00:00+01:00", NOON.replace(tzinfo=None)),
        ("date", "2026-11-01", date(2026, 11, 1)),
        ("time", "12:30:00", time(12, 30)),
        ("json", b'{"n": 1.10000000000000000000001}', '{"n": 1.10000000000000000000001}'),
        ("json", None, None),
        ("numeric", b"1.10000000000000000000001", Decimal("1.10000000000000000000001")),
        ("numeric(5,2)", "123.4500", Decimal("123.4500")),
        ("uuid", "12345678-1234-1234-1234-123456789abc", uuid.UUID("12345678-1234-1234-1234-123456789abc")),
        ("bytea", "AAEC", b"\0\1\2"),
        ("inet", "10.0.0.1", "10.0.0.1"),
        ("char(3)", "abc", "abc"),
        ("text[]", ["a", None], ["a", None]),
        ("bigint[]", [1, 2.0], [1, 2]),
        ("timestamptz[]", ["2026-11-01T12:00:00Z", "2026-11-01T12:00"], [NOON, NOON]),
        ("json[]", b'[{"a": 1}, 2]', ['{"a": 1}', "2"]),
        ("text", None, None),
    ],
)
def test_a_value_that_fits(type_: str, value: Any, expected: Any) -> None:
    found = read(type_, value)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("type_", "value", "says"),
    [
        ("bigint", 2**63, "column 'x': expected `int` <= 9223372036854775807: 9223372036854775808 (the column is bigint)"),
        ("smallint", 40000, "expected `int` <= 32767"),
        ("bigint", b"1.0000000000000000000001", "expected `int`, got `float`"),
        ("bigint", b"1e-400", "expected `int`, got `float`"),
        ("bigint", 5.5, "expected `int`, got `float`: 5.5"),
        ("text", 5, "expected `str`, got `int`: 5 (the column is text)"),
        ("double", b"1e999", ": 1e999 (the column is double)"),
        ("timestamptz", "yesterday", "Invalid isoformat string"),
        ("timestamptz", 5, "expected a time as text, got int: 5"),
        ("numeric(5,2)", "1234.5", 'the column takes 3 digits before the point and 2 after it: "1234.5"'),
        ("numeric(5,2)", b"1.005", "the column takes 3 digits before the point and 2 after it"),
        ("inet", "10.0.0.300", '"10.0.0.300" (the column is inet)'),
        ("char(3)", "abcd", "expected `str` of length <= 3"),
        ("bigint[]", [1, "a"], "expected `int`, got `str` (the column is bigint[])"),
        ("bigint[]", 1, "expected a list"),
    ],
)
def test_a_value_that_does_not_fit_is_named(type_: str, value: Any, says: str) -> None:
    assert says in read(type_, value)


@pytest.mark.parametrize(("unit", "value"), [("s", 1793534400), ("ms", 1793534400000), ("us", 1793534400000000), ("s", 1793534400.0)])
def test_a_time_that_is_a_number(unit: str, value: float) -> None:
    assert read("timestamptz", value, time="x", time_unit=unit) == NOON


def test_equal_numbers_of_a_key_are_equal_texts() -> None:
    contract = load_contract({"name": "n", "key": ["n"], "columns": {"n": "numeric"}})
    numbers = [b"1", b"1.0", b"1e0", b"100", b"1e2", b"123456789012345678901234567890.10", b"0", b"0.00"]
    (rows,), _ = RowReader(contract.table(), W1).read(at([b'{"n": %s}' % n for n in numbers]))
    texts = [str(row[0]) for row in rows.rows]
    assert texts == ["1", "1", "1", "100", "100", "123456789012345678901234567890.1", "0", "0"]


def test_columns_are_the_contracts_and_then_the_rank() -> None:
    contract = load_contract(ALL_TYPES)
    (rows,), rejected = RowReader(contract.table(), W1).read(at([{"id": "a"}]))
    assert rows.columns == (*ALL_TYPES["columns"], RANK)
    assert len(rows.rows[0]) == len(rows.columns)
    assert rejected == {}


def test_strange_names_and_fields_that_no_column_has() -> None:
    batches, rejected = reader({"a b": "text", "c0": "text", "é'": "text"}).read(
        at([{"id": "x", "a b": "1", "c0": "2", "é'": "3", "other": {"deep": [1]}}, {"id": "x", "a b": 1}])
    )
    assert batches[0].rows[0][1:4] == ("1", "2", "3")
    assert rejected[1].reason.startswith("column 'a b': expected `str`, got `int`: 1")


def test_a_name_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"the contract's columns: .*; rename the field, or leave it out of columns"):
        reader({'q"': "text"})


def test_of_what_no_column_reads_nothing_is_asked_but_that_it_is_json() -> None:
    batches, rejected = reader({"n": "numeric", "i": "bigint"}).read(
        at([b'{"id": "a", "n": 1e999, "i": 5.0, "x": 1e999}', b'{"id": "b", "x": "\xff"}', b'{"id": "c", "x": }'])
    )
    assert batches[0].rows[0][1:3] == (Decimal("1e999"), 5)
    assert [rejected[i].rule for i in (1, 2)] == ["decode", "decode"]


def test_batches_are_joined_in_order() -> None:
    one = reader({})
    batches = [one.read(at([{"id": name}]))[0][0] for name in "abc"]
    joined = one.join(batches)
    assert [row[0] for row in joined.rows] == ["a", "b", "c"]
    assert joined.nbytes == sum(batch.nbytes for batch in batches)
