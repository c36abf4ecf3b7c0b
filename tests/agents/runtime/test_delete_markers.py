"""Events that a contract marks as deletes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from confluent_kafka import Message

from factory_agents.contracts import DeleteMarker, TableSpec
from factory_agents.runtime.delete_markers import DeletesReader
from factory_agents.testing.records import record

MARKED = TableSpec(key=("id",), deletes=True, delete_marker=DeleteMarker("op", ("d", 1, True)))


def _keys(table: TableSpec, *events: Any) -> list[bytes | str | None]:
    """Of each record that is a delete its key, of every other "event"."""
    messages: list[Any] = [record(e, 0, i) for i, e in enumerate(events)]
    read = DeletesReader(table).read(messages)
    assert [m.offset() for m in read] == list(range(len(events)))
    return [m.key() if m.value() is None else "event" for m in read]


@pytest.mark.parametrize("mark", ["d", 1, 1.0, True])
def test_an_event_with_one_of_the_values_deletes_the_row_of_its_key(mark: Any) -> None:
    assert _keys(MARKED, {"id": "a", "op": mark, "other": [1]}) == [b'{"id":"a"}']


@pytest.mark.parametrize("mark", ["D", "dd", "", None, 2, False, [1], {"d": 1}])
def test_an_event_with_another_value_is_an_event(mark: Any) -> None:
    assert _keys(MARKED, {"id": "a", "op": mark}, {"id": "a"}) == ["event", "event"]


def test_the_mark_and_the_key_are_read_however_they_are_written() -> None:
    assert _keys(MARKED, b'{ "\\u006fp" : "\\u0064" , "id":"\\u0061" }') == [b'{"id":"\\u0061"}']
    strange = TableSpec(key=('a"b\\', "n"), deletes=True, delete_marker=DeleteMarker("é\n", ("d",)))
    (key,) = _keys(strange, {'a"b\\': 1.50, "n": None, "é\n": "d"})
    assert json.loads(key or b"") == {'a"b\\': 1.5, "n": None}


def test_numbers_keep_their_digits() -> None:
    assert _keys(MARKED, b'{"op":"d","id":0.1000000000000000000001}') == [b'{"id":0.1000000000000000000001}']


@pytest.mark.parametrize("value", [b"{", b"", b"[1]", b'{"op":"d"', b'{"id":1,"op":"d\xff"}', b"null", b"[" * 5000])
def test_what_is_no_event_is_left_to_the_sink(value: bytes) -> None:
    assert _keys(MARKED, value) == ["event"]


def test_records_without_a_value_stay_as_they_are_and_without_deletes_nothing_is_read() -> None:
    gone: list[Any] = [Message(key=b"k", value=None, partition=0, offset=0)]
    assert DeletesReader(MARKED).read(gone) == gone
    messages: list[Any] = [record({"id": "a", "op": "d"}, 0, 0)]
    assert DeletesReader(TableSpec(key=("id",), delete_marker=MARKED.delete_marker)).read(messages) is messages
