"""Debezium's envelopes over JSON, Kafka Connect's JSON with a schema, and Avro: rows, deletes, what is neither."""

from __future__ import annotations

import json
from typing import Any

import pytest
from confluent_kafka import Message

from factory_agents.codecs import Codec, Deleted
from factory_agents.errors import ConfigurationError
from factory_agents.protocol import CodecRef
from factory_agents.reject import Reject
from factory_agents.runtime.codecs import open_codec
from tests.support.debezium import change

ROW = {"event_id": 1, "price": 1.5}


def debezium(topic: str = "t", *, writing: bool = False, pinned: dict[str, Any] | None = None, **options: Any) -> Any:
    found = open_codec(CodecRef("debezium", options, pinned or {}), topic, writing=writing)
    assert found is not None
    return found


def codec(**options: Any) -> Codec:
    made: Codec = debezium(**options)._codec
    return made


@pytest.mark.parametrize("op", ["c", "u", "r"])
def test_a_change_is_the_row_after_it_with_all_its_digits(op: str) -> None:
    text = json.dumps(change(op, after=ROW)).replace("1.5", "123456789012345678.90").encode()
    assert codec().decode_json(text, []) == b'{"event_id": 1, "price": 123456789012345678.90}'
    assert (
        codec().decode_json(json.dumps({"schema": {"type": "struct"}, "payload": change(op, after=ROW)}).encode(), [])
        == json.dumps(ROW).encode()
    )


def test_a_delete_names_its_row_by_what_was_before_else_by_the_records_key() -> None:
    assert codec().decode_json(json.dumps(change("d", before=ROW)).encode(), []) == Deleted(json.dumps(ROW).encode())
    assert codec().decode_json(json.dumps(change("d")).encode(), []) == Deleted()
    read = debezium().read([Message(value=json.dumps(change("d")).encode(), key=b'{"event_id":1}'), Message(key=b"k"), Message()])
    assert [(m.value(), m.key()) for m in read] == [(None, b'{"event_id":1}'), (None, b"k"), (None, None)]


def test_fields_of_the_envelope_are_added_by_debeziums_names() -> None:
    text = json.dumps(change("u", after=ROW, lsn=77)).encode()
    event = json.loads(codec(add="op, lsn,source.ts_ms,nothing,source.none").decode_json(text, []))
    assert event == {**ROW, "__op": "u", "__lsn": 77, "__source_ts_ms": 5, "__nothing": None, "__source_none": None}


@pytest.mark.parametrize(
    ("value", "rule", "says"),
    [
        (b"{", "decode", "no change event of Debezium's: "),
        (b"[" * 100_000, "decode", "no change event of Debezium's: "),
        (b"7", "decode", "Expected `object`, got `int`"),
        (b'{"event_id": 1}', "decode", r"expected 'op' \(c, u, d, r\) and 'after', got op ''; if the connector unwraps its events"),
        (b'{"op": "x"}', "decode", "got op 'x'"),
        (b'{"op": 7}', "decode", "Expected `str`, got `int`"),
        (b'{"op": "c", "after": null}', "decode", "a change of type 'c' without the row in 'after', got b'null'"),
        (b'{"op": "u", "after": "{}"}', "decode", "without the row in 'after'"),
        (b'{"op": "c", "after": {"a": "\xff"}}', "decode", "no change event of Debezium's: 'utf-8' codec"),
        (b'{"payload": {"payload": {}}}', "decode", "got op ''"),
        (b'{"op": "t"}', "operation", "no row: it empties the table"),
        (b'{"op": "m"}', "operation", "no row: it is a message"),
        (
            json.dumps(change("u", after={"a": 1, "text": "__debezium_unavailable_value"})).encode(),
            "unavailable-value",
            "the log doesn't hold the unchanged value of text: ALTER TABLE … REPLICA IDENTITY FULL",
        ),
    ],
)
def test_what_is_no_row_is_rejected(value: bytes, rule: str, says: str) -> None:
    with pytest.raises(Reject, match=says) as rejected:
        codec().decode_json(value, [])
    assert rejected.value.rule == rule


@pytest.mark.parametrize(
    "placeholder",
    [
        ["__debezium_unavailable_value"],  # text[], json[]
        {"__debezium_unavailable_value": "__debezium_unavailable_value"},  # hstore
        "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==",  # bytea
        "5f5f646562657a69756d5f756e617661696c61626c655f76616c7565",  # bytea, binary.handling.mode=hex
        "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ",  # base64-url-safe, without its end
        list(b"__debezium_unavailable_value"),  # integer[], bigint[]
        [float(byte) for byte in b"__debezium_unavailable_value"],
        [str(byte) for byte in b"__debezium_unavailable_value"],  # numeric[], decimal.handling.mode=string
        ["b68a35a7-17ad-35b3-af2a-ae46edb4545a"],  # uuid[]
    ],
)
def test_a_placeholder_of_any_type_is_told_from_a_value(placeholder: Any) -> None:
    """Debezium writes it as each column's type has it; landed, it would replace the value that didn't change."""
    for text in (
        json.dumps(change("u", after={"a": 1, "large": placeholder}), separators=(",", ":")),
        json.dumps(change("u", after={"large": placeholder})),
    ):
        with pytest.raises(Reject, match="the log doesn't hold the unchanged value of large: ALTER TABLE") as rejected:
            codec().decode_json(text.encode(), [])
        assert rejected.value.rule == "unavailable-value"


@pytest.mark.parametrize(
    "value", ["see __debezium_unavailable_value", [95, 95, 100], ["a", "__debezium_unavailable_value"], {"a": [95, 95]}]
)
def test_a_value_that_only_holds_a_placeholder_is_a_value(value: Any) -> None:
    row = {"a": 1, "text": value}
    assert json.loads(codec().decode_json(json.dumps(change("u", after=row)).encode(), [])) == row


def test_what_is_written_is_an_envelope() -> None:
    text = json.dumps(change("d", before=ROW)).encode()
    assert codec(writing=True).encode_json(text) == text
    with pytest.raises(Reject, match=r"no change event: expected 'op'"):
        codec(writing=True).encode({"event_id": 1})


def test_what_is_beneath_is_part_of_what_identifies_it() -> None:
    identities = [
        debezium(**options).identity for options in ({}, {"add": "op"}, {"over": "tests.support.codecs:Pinned"}, {"over": "json"})
    ]
    assert identities[0] == identities[3]
    assert len({json.dumps(i) for i in identities}) == 3
    first = debezium(over="tests.support.codecs:Pinned")
    again = debezium(over="tests.support.codecs:Pinned", pinned=first.ref.pinned)
    assert (again.ref.pinned, again.identity) == (first.ref.pinned, first.identity)


def test_an_unknown_codec_beneath_is_one_line() -> None:
    with pytest.raises(ConfigurationError, match="codec 'pears': there is no such codec"):
        debezium(over="pears")
    with pytest.raises(ConfigurationError, match="codec 'debezium': over: json takes no options"):
        debezium(over="json?a=1")
