"""What a dead letter holds is read by the schema that it names, else shown as it is: never as other text than its bytes are."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import fastavro
from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st

from factory_agents.codecs.framing import KEY_SCHEMA_HEADER, SCHEMA_HEADER
from factory_agents.codecs.registry import RegistryConfig
from factory_agents.errors import ConfigurationError
from factory_agents.runtime.dead_letters import Letter
from factory_agents.runtime.letter_values import LetterReader, Shown, plain
from factory_agents.runtime.outputs import DeadLetter
from tests.support.protobuf import field, message
from tests.support.registries import answering, record

AVRO = record(name="Order", id="long", city="string")
PROTO = descriptor_pb2.FileDescriptorProto(
    name="order.proto", syntax="proto3", message_type=[message("Order", field("id", 1, "int64"), field("city", 2, "string"))]
)
ANSWERS: dict[str, Any] = {
    "/schemas/ids/1": {"schema": json.dumps(AVRO)},
    "/schemas/ids/2": {"schema": base64.b64encode(PROTO.SerializeToString()).decode(), "schemaType": "PROTOBUF"},
    "/schemas/ids/3": {"schema": "{}", "schemaType": "JSON"},
    "/schemas/ids/4": {"schema": "{}", "schemaType": "XML"},
    "/schemas/ids/5": {"schema": '"long"'},
    "/schemas/ids/6": {"schema": '{"type": "bytes"}'},
    "/schemas/ids/7": {"schema": '["null", "double"]'},
}


def avro(event: dict[str, Any]) -> bytes:
    out = BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(AVRO), event)
    return out.getvalue()


def framed(id_: int, data: bytes) -> bytes:
    return b"\0" + id_.to_bytes(4, "big") + data


def letter(value: bytes | None, key: bytes | None = None, *headers: tuple[str, bytes | None]) -> Letter:
    return Letter(0, 1, datetime(2026, 11, 2, tzinfo=UTC), DeadLetter("e", "r", "p", "s", "a", "1"), key, value, headers)


def test_each_value_and_key_is_read_by_the_schema_that_it_names() -> None:
    order = avro({"id": 7, "city": "Zürich"})
    with answering(ANSWERS) as (url, asked):
        reader = LetterReader(lambda: RegistryConfig(url, {"max.retries": 0}))
        for value, headers, shown in (
            (framed(1, order), (), Shown('{"id":7,"city":"Zürich"}', "AVRO, schema id 1")),
            (framed(2, b"\0\x08\x07\x12\x04Bern"), (), Shown('{"id":"7","city":"Bern"}', "PROTOBUF, schema id 2")),
            (framed(3, b'{"id": 7}'), (), Shown('{"id": 7}', "JSON, schema id 3")),
            (order, ((SCHEMA_HEADER, b"\0\0\0\0\1"),), Shown('{"id":7,"city":"Zürich"}', "AVRO, schema id 1")),
            (b'{"id": 7}', (), Shown('{"id": 7}')),
        ):
            found = reader.value(letter(value, None, *headers))
            assert found is not None
            same = (found.text.replace('"7"', "7"), found.form, found.why)
            assert same == (shown.text.replace('"7"', "7"), shown.form, shown.why)
        assert reader.key(letter(None, order, (KEY_SCHEMA_HEADER, b"\0\0\0\0\1"))) == Shown('{"id":7,"city":"Zürich"}', "AVRO, schema id 1")
        for key, text in (
            (framed(5, b"\x0e"), "7"),
            (framed(6, b"\x04\xff\0"), '"/wA="'),
            (framed(7, b"\0"), "null"),
            (framed(7, b"\2\0\0\0\0\0\0\xf8\x7f"), None),  # no number
        ):
            found = reader.key(letter(None, key))
            assert found is not None
            assert (found.form.startswith("AVRO, schema id"), found.text) == (True, text) if text else "a number is nan" in found.why, key
        assert len([path for path, _ in asked if path == "/schemas/ids/1"]) == 1
        data = letter(framed(1, order), b"\xff\0").to_data(reader)
    assert (data["value"], data["value_as"]) == ({"id": 7, "city": "Zürich"}, "AVRO, schema id 1")
    assert (data["key"], data["key_as"]) == (r"\xff\x00", "bytes, with escapes")


def test_what_cannot_be_read_is_its_bytes_and_says_the_schema_and_why() -> None:
    with answering(ANSWERS) as (url, asked):
        reader = LetterReader(lambda: RegistryConfig(url, {"max.retries": 0}), most=100)
        for value, headers, why in (
            (framed(9, b"a"), (), "has no schema id 9"),
            (framed(1, b"\xff"), (), "not Avro of schema id 1"),
            (framed(4, b"a"), (), "schema id 4: it is of type XML"),
            (framed(1, b"a" * 100), (), "schema id 1: 105 bytes, and no more than 100"),
            (b"\xfe", ((SCHEMA_HEADER, b"\7"),), "expected a byte 1 and a GUID"),
        ):
            shown = reader.value(letter(value, None, *headers))
            assert shown is not None
            assert shown.text.encode().decode("unicode_escape").encode("latin-1") == value
            assert why in shown.why
        text = reader.value(letter(b"text", None, (SCHEMA_HEADER, b"\0\0\0\0\x09")))
        assert text is not None
        assert (text.text, text.said.partition(": ")[0]) == ("text", "text")
        for n in range(100, 200):
            reader.value(letter(framed(n, b"")))
    assert len(asked) <= 25  # records of another kind do not become as many questions


def test_a_registry_that_does_not_answer_is_asked_once() -> None:
    with answering({"/schemas/ids/1": {"schema": "{}"}}, status=503) as (url, asked):
        reader = LetterReader(lambda: RegistryConfig(url, {"max.retries": 0}))
        shown = [reader.value(letter(framed(n, b""))) for n in (1, 2, 3)]
    assert len(asked) == 1
    assert all(x is not None and "503" in x.why and f"schema id {n}" in x.why for n, x in enumerate(shown, 1))


def test_a_registry_that_fails_for_what_a_schema_refers_to_is_not_asked_again_for_each_record() -> None:
    schema = {"schema": json.dumps(record(x="other.X")), "references": [{"name": "other.X", "subject": "x", "version": 1}]}
    with answering({"/schemas/ids/7": schema, "/subjects/x/versions/1": (503, {"error_code": 50301, "message": "later"})}) as (url, asked):
        reader = LetterReader(lambda: RegistryConfig(url, {"max.retries": 0}))
        shown = [reader.value(letter(framed(7, b""))) for _ in range(9)]
    assert all(x is not None and "HTTP 503" in x.why for x in shown)
    assert len(asked) == 2


def test_without_a_registry_what_needs_none_is_shown() -> None:
    asked = []

    def none() -> RegistryConfig:
        asked.append(1)
        raise ConfigurationError("no schema registry is named")

    reader = LetterReader(none)
    assert reader.value(letter(None)) is None
    assert reader.value(letter(b"text")) == Shown("text")
    assert not asked
    first, second = reader.value(letter(framed(1, b""))), reader.value(letter(framed(2, b"")))
    assert (first, second) == tuple(
        Shown(rf"\x00\x00\x00\x00\x0{n}", "bytes, with escapes", f"schema id {n}: no schema registry is named") for n in (1, 2)
    )
    assert len(asked) == 1


def test_text_that_was_cut_within_a_character_is_still_text() -> None:
    assert plain("Zürich".encode()[:2], whole=False) == Shown("Z")
    assert plain("Zürich".encode()[:2]).form == "bytes, with escapes"


@given(st.binary(max_size=50))
def test_whatever_the_bytes_are_they_can_be_told_from_what_is_shown(data: bytes) -> None:
    shown = plain(data)
    assert (shown.text.encode().decode("unicode_escape").encode("latin-1") if shown.form else shown.text.encode()) == data
