"""How a record without a value names the row that it deletes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from factory_agents.reject import Reject
from factory_agents.runtime.record_key import KeyColumn, KeyReader


def _column(name: str, type_: type[Any]) -> KeyColumn:
    return KeyColumn(name, "text" if type_ is str else "bigint", type_ is str, lambda raw: msgspec.json.decode(raw, type=type_))


@pytest.mark.parametrize(
    ("key", "type_", "value"),
    [
        (b"a", str, "a"),
        (b"5", str, "5"),
        (b"5", int, 5),
        (b'{"id": 5}', int, 5),
        (b'{"schema": {}, "payload": {"id": 5}}', int, 5),
        (b'{"schema": {"type": "string"}, "payload": "a"}', str, "a"),
        (b'{"schema": {"type": "int64"}, "payload": 5}', int, 5),
        (b'{"id": "a", "more": 1}', str, "a"),
        ("ünï".encode(), str, "ünï"),
        (b"", str, ""),
    ],
)
def test_one_column(key: bytes, type_: type[Any], value: Any) -> None:
    assert KeyReader([_column("id", type_)]).read(key) == [value]


@pytest.mark.parametrize("key", [b'{"b": 2, "a": "x"}', b'["x", 2]', b'{"payload": {"a": "x", "b": 2}}'])
def test_several_columns_come_in_the_order_of_the_key(key: bytes) -> None:
    assert KeyReader([_column("a", str), _column("b", int)]).read(key) == ["x", 2]


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (None, "without a value and without a key"),
        (b"x", "expected bigint, got b'x'"),
        (b"\xff", "utf-8"),
        (b'{"payload": 1}', "expected bigint"),
        (b"[" * 100_000, "expected bigint"),
    ],
)
def test_a_key_that_names_no_row_is_rejected(key: bytes | None, says: str) -> None:
    with pytest.raises(Reject) as raised:
        KeyReader([_column("id", int)]).read(key)
    assert raised.value.rule == "key"
    assert says in raised.value.reason
    assert "\n" not in raised.value.reason


def test_a_payload_that_names_no_row_is_not_taken_for_a_text() -> None:
    with pytest.raises(Reject, match="expected text"):
        KeyReader([_column("id", str)]).read(b'{"schema": {}, "payload": {"other": "a"}}')


def test_of_several_columns_a_part_is_no_key() -> None:
    with pytest.raises(Reject, match="expected a JSON object or list of a, b"):
        KeyReader([_column("a", str), _column("b", int)]).read(b'{"a": "x"}')
