"""What a change becomes: JSON that any reader takes, whatever names and values are in it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from factory_agents.replication.envelope import Envelopes, Pair, Place, Table
from factory_agents.replication.pgoutput import Begin, Change, Column, Described, Value
from factory_agents.replication.values import converters

INT, TEXT, JSON, FLOAT, BOOLEAN, TEXTS = 20, 25, 114, 701, 16, 1009


def a_table(columns: dict[str, int], *key: str) -> Table:
    described = Described(7, "public", "orders", "d", tuple(Column(name, type_, name in key) for name, type_ in columns.items()))
    return Table(described, converters({}, described.columns, key), key)


def records(table: Table, op: str, old: list[Value] | None, new: list[Value] | None, kind: str = "") -> list[tuple[Any, Any]]:
    envelopes = Envelopes(Place("shop", "db", "1"))
    envelopes.begin(Begin(100, 1_790_000_000_000_000, 5), table)
    return [_read(pair) for pair in envelopes.made(table, Change(op, 7, kind, old, new), 99)]


def _read(pair: Pair) -> tuple[Any, Any]:
    key, value = (None if part is None else msgspec.json.decode(part) for part in pair)
    return key, value


@pytest.mark.parametrize("name", ["100%", "%s", "%(id)s", 'a "b"', "{x}", "back\\slash", "größe", "日本", " "])
def test_a_column_may_have_any_name(name: str) -> None:
    ((key, value),) = records(a_table({name: INT, "b": TEXT}, name), "c", None, ["1", "%s {}"])
    assert key == {name: 1}
    assert value["after"] == {name: 1, "b": "%s {}"}


@pytest.mark.parametrize("text", ["", '"', "\\", "\n\r\t\b\f", "\x01\x1f\x7f", "ü 日 🙂", "\u2028\u2029", "null", "%d", "a" * 100_000])
def test_a_text_is_what_it_was(text: str) -> None:
    ((_, value),) = records(a_table({"id": INT, "b": TEXT}, "id"), "c", None, ["1", text])
    assert value["after"]["b"] == text


def test_values_have_the_types_of_json() -> None:
    table = a_table({"id": INT, "f": FLOAT, "n": FLOAT, "t": BOOLEAN, "j": JSON, "l": TEXTS, "z": TEXT}, "id")
    values: list[Value] = ["-5", "1e-07", "NaN", "t", '{ "a": [1, null] }', '{a,NULL,"b c"}', None]
    ((_, value),) = records(table, "c", None, values)
    assert value["after"] == {"id": -5, "f": 1e-07, "n": "NaN", "t": True, "j": {"a": [1, None]}, "l": ["a", None, "b c"], "z": None}
    assert (value["op"], value["before"], value["source"]["lsn"], value["source"]["sequence"]) == ("c", None, 99, '["0","99"]')


def test_a_key_of_several_columns_is_in_its_own_order() -> None:
    table = a_table({"a": INT, "b": TEXT, "c": TEXT}, "c", "a")
    envelopes = Envelopes(Place("shop", "db", "1"))
    envelopes.begin(Begin(100, 0, 5), table)
    assert envelopes.row(table, ["1", None, "x"], 99)[0] == b'{"c":"x","a":1}'


def test_a_delete_tells_the_key_and_leaves_a_tombstone() -> None:
    told, tombstone = records(a_table({"id": INT, "b": TEXT}, "id"), "d", ["1", None], None, "K")
    assert (told[0], told[1]["before"], told[1]["after"], told[1]["op"]) == ({"id": 1}, {"id": 1}, None, "d")
    assert tombstone == ({"id": 1}, None)


def test_a_change_of_the_key_is_a_delete_and_an_insert() -> None:
    found = records(a_table({"id": INT, "b": TEXT}, "id"), "u", ["1", None], ["2", "x"], "K")
    assert [(key, value and value["op"]) for key, value in found] == [({"id": 1}, "d"), ({"id": 1}, None), ({"id": 2}, "c")]


def test_an_update_tells_what_was_logged_of_the_row_before() -> None:
    ((key, value),) = records(a_table({"id": INT, "b": TEXT}, "id"), "u", ["1", "old"], ["1", "new"], "O")
    assert (key, value["op"], value["before"], value["after"]) == ({"id": 1}, "u", {"id": 1, "b": "old"}, {"id": 1, "b": "new"})
