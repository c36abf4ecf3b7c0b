"""Protobuf in Confluent's framing, beside a real registry and Confluent's serialisers: types, both framings, evolution, hostile bytes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka.schema_registry import Schema, SchemaReference
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer, ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf.json_format import ParseDict

from factory_agents.codecs.framing import SCHEMA_HEADER
from factory_agents.codecs.protobuf import ProtobufCodec
from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.reject import Reject
from tests.support.protobuf import class_of, field, file, map_entry, message, text
from tests.support.registries import Subjects, answering

IMPORTS = [f"google/protobuf/{name}.proto" for name in ("timestamp", "duration", "struct", "wrappers")]
EVERY_TYPE = file(
    message(
        "Event",
        field("event_id", 1, "int64"),
        field("text", 2, "string"),
        field("rate", 3, "double"),
        field("small", 4, "uint32"),
        field("on", 5, "bool"),
        field("raw", 6, "bytes"),
        field("maybe", 7, "string", optional=True),
        field("kind", 8, "enum .shop.Kind"),
        field("tags", 9, "string", repeated=True),
        field("kinds", 10, "enum .shop.Kind", repeated=True),
        field("inner", 11, ".shop.Event.Inner"),
        field("inners", 12, ".shop.Event.Inner", repeated=True),
        field("counts", 13, ".shop.Event.CountsEntry", repeated=True),
        field("by_flag", 14, ".shop.Event.ByFlagEntry", repeated=True),
        field("at", 15, ".google.protobuf.Timestamp"),
        field("took", 16, ".google.protobuf.Duration"),
        field("more", 17, ".google.protobuf.Struct"),
        field("note", 18, ".google.protobuf.StringValue"),
        field("next", 19, ".shop.Event"),
        nested=[
            message("Inner", field("a", 1, "sint32")),
            map_entry("CountsEntry", "string", "int64"),
            map_entry("ByFlagEntry", "bool", ".shop.Event.Inner"),
        ],
    ),
    message("Other", field("x", 1, "int32")),
    imports=IMPORTS,
    Kind=["A", "B"],
)
EVENT: dict[str, Any] = {
    "event_id": 2**62 + 1,
    "text": "tëxt",
    "rate": 0.1,
    "small": 2**32 - 1,
    "on": True,
    "raw": "AP8=",
    "maybe": "",
    "kind": "B",
    "tags": ["a", "b"],
    "kinds": ["A", "B"],
    "inner": {"a": -1},
    "inners": [{"a": 1}, {"a": 0}],
    "counts": {"x": 2**40},
    "by_flag": {"true": {"a": 7}},
    "at": "2026-11-01T04:00:00.123456789Z",
    "took": "1.500s",
    "more": {"a": [1.0, None, "x"]},
    "note": "n",
    "next": None,
}


@pytest.fixture
def subjects(registry_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Subjects]:
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", registry_url)
    own = Subjects(registry_url)
    yield own
    own.client.close()


def register(subjects: Subjects, subject: str, schema: Any, *references: SchemaReference) -> int:
    return subjects.client.register_schema(subject, Schema(text(schema), "PROTOBUF", references=list(references)))


def reading(topic: str, **options: Any) -> ProtobufCodec:
    return ProtobufCodec(topic, {}, **options)


def writing(topic: str, **options: Any) -> ProtobufCodec:
    return ProtobufCodec(topic, {}, writing=True, **options)


def test_every_type_goes_through_and_confluents_own_read_and_write_the_same(subjects: Subjects, prefix: str) -> None:
    register(subjects, f"{prefix}-value", EVERY_TYPE)
    value = writing(prefix).encode_json(json.dumps(EVENT).encode())
    assert json.loads(reading(prefix).decode_json(value, [])) == EVENT
    class_ = class_of(EVERY_TYPE, "shop.Event")
    where = SerializationContext(prefix, MessageField.VALUE)
    theirs = ProtobufDeserializer(class_, {"use.deprecated.format": False}, subjects.client)(value, where)
    assert (theirs.event_id, theirs.raw, theirs.at.nanos) == (EVENT["event_id"], b"\0\xff", 123456789)
    conf = {"auto.register.schemas": False, "use.deprecated.format": False}
    again = ProtobufSerializer(class_, subjects.client, conf)(theirs, where)
    assert json.loads(reading(prefix).decode_json(again or b"", [])) == EVENT


def test_a_field_that_is_not_set_is_its_default_or_null_where_that_is_another_thing(subjects: Subjects, prefix: str) -> None:
    register(subjects, f"{prefix}-value", EVERY_TYPE)
    codec = reading(prefix)
    event = codec.decode(writing(prefix).encode({"event_id": 1, "kind": 7}), [])
    defaults = (event["text"], event["tags"], event["counts"], event["maybe"], event["at"], event["inner"], event["kind"])
    assert defaults == ("", [], {}, None, None, None, 7)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("event_id", 2**63, "event_id"),
        ("event_id", 1.5, "event_id"),
        ("event_id", True, "event_id"),
        ("small", -1, "small"),
        ("text", 1, "text"),
        ("kind", "Z", "Invalid enum value Z for enum type shop.Kind"),
        ("at", "yesterday", "at field"),
        ("raw", 1, "raw"),
        ("unheard_of", 1, 'has no field named "unheard_of"'),
        ("inner", {"b": 1}, 'has no field named "b"'),
        ("inner", 3, "inner"),
    ],
)
def test_what_the_schema_cannot_say_is_rejected_and_never_cut_to_fit(subjects: Subjects, name: str, value: Any, says: str) -> None:
    register(subjects, "proto-types-value", EVERY_TYPE)
    with pytest.raises(Reject) as rejected:
        writing("proto-types").encode({**EVENT, name: value})
    assert says in rejected.value.reason
    assert rejected.value.rule == "encode"


def test_a_message_is_found_by_its_place_in_the_schema(subjects: Subjects, prefix: str) -> None:
    id_ = register(subjects, f"{prefix}-value", EVERY_TYPE)
    frame = b"\0" + id_.to_bytes(4, "big")
    inner = writing(prefix, message="shop.Event.Inner").encode({"a": 5})
    assert inner == frame + bytes([4, 0, 0]) + b"\x08\x0a"
    assert reading(prefix).decode(inner, []) == {"a": 5}
    assert writing(prefix, message="shop.Event.CountsEntry").encode({"key": "x"})[5:8] == bytes([4, 0, 2])  # from the outermost on
    assert reading(prefix).decode(frame + b"\2\2\x08\x05", []) == {"x": 5}
    assert reading(prefix, version="writer").decode(frame + b"\2\2\x08\x05", []) == {"x": 5}
    for options in ({}, {"version": "writer"}):
        with pytest.raises(Reject, match=r"a message 'shop.Other', expected 'shop.Event'"):
            reading(prefix, message="shop.Event", **options).decode(frame + b"\2\2\x08\x05", [])
    with pytest.raises(ConfigurationError, match=r"it has no message 'shop.Nobody'; it has Event, Other"):
        writing(prefix, message="shop.Nobody")


V1 = file(message("Event", field("event_id", 1, "int32"), field("text", 2, "string")))
ADDED = file(message("Event", field("event_id", 1, "int32"), field("text", 2, "string"), field("price", 3, "double", optional=True)))
DROPPED = file(message("Event", field("event_id", 1, "int32")))
RENAMED = file(message("Event", field("event_id", 1, "int32"), field("words", 2, "string")))
WIDENED = file(message("Event", field("event_id", 1, "int64"), field("text", 2, "string")))


@pytest.mark.parametrize(
    ("writer", "reader", "sees"),
    [
        (V1, ADDED, {"event_id": 1, "text": "a", "price": None}),
        (ADDED, V1, {"event_id": 1, "text": "a"}),
        (V1, DROPPED, {"event_id": 1}),
        (V1, RENAMED, {"event_id": 1, "words": "a"}),
        (V1, WIDENED, {"event_id": 1, "text": "a"}),
    ],
    ids=["add: old records", "add: old reader", "drop", "rename", "widen"],
)
def test_a_schema_that_evolves_is_read_by_its_readers_version(
    subjects: Subjects, prefix: str, writer: Any, reader: Any, sees: dict[str, Any]
) -> None:
    register(subjects, f"{prefix}-value", writer)
    value = writing(prefix, version=1).encode({"event_id": 1, "text": "a"})
    register(subjects, f"{prefix}-value", reader)
    assert reading(prefix).decode(value, []) == sees
    as_written = reading(prefix, version="writer").decode(value, [])
    assert as_written == {"event_id": 1, "text": "a"} | ({"price": None} if writer is ADDED else {})


def test_a_schema_is_read_with_those_that_it_imports(subjects: Subjects, prefix: str) -> None:
    place = file(message("Place", field("city", 1, "string")), package="geo")
    place.name = "geo/place.proto"
    register(subjects, f"{prefix}.place", place)
    event = file(message("Event", field("event_id", 1, "int32"), field("at", 2, ".geo.Place")), imports=["geo/place.proto"])
    register(subjects, f"{prefix}-value", event, SchemaReference("geo/place.proto", f"{prefix}.place", 1))
    value = writing(prefix).encode({"event_id": 1, "at": {"city": "Oslo"}})
    assert reading(prefix).decode(value, []) == {"event_id": 1, "at": {"city": "Oslo"}}
    assert reading(prefix, version="writer").decode(value, []) == {"event_id": 1, "at": {"city": "Oslo"}}


def test_what_is_no_event_is_rejected(subjects: Subjects, prefix: str) -> None:
    schema = file(
        message("Event", field("event_id", 1, "int32", required=True), field("rate", 2, "double"), field("next", 3, ".shop.Event")),
        syntax="proto2",
    )
    id_ = register(subjects, f"{prefix}-value", schema)
    frame = b"\0" + id_.to_bytes(4, "big")
    codec = reading(prefix)
    deep = b""
    for _ in range(200):
        deep = b"\x1a" + _length(len(deep)) + deep
    for value, says in [
        (b"", "expected a byte 0 and four of the id"),
        (b'{"event_id": 1}', "expected a byte 0 and four of the id"),
        (frame, "its message indexes are cut off"),
        (frame + b"\x80", "its message indexes are cut off"),
        (frame + b"\xff\xff\xff\xff\xff\xff", "its message indexes are cut off"),
        (frame + b"\xfe\xff\x03", "32767 indexes of messages"),
        (frame + b"\2\x10", "has no message at the place"),
        (frame + b"\2\1", "has no message at the place"),
        (frame + b"\0\x08", "DecodeError"),
        (frame + b"\0\xff\xff", "DecodeError"),
        (frame + b"\0\x11" + b"\0" * 8, "without what it requires: event_id"),
        (frame + b"\0\x08\1" + deep, "DecodeError"),
        (frame + b"\0\x08\1\x11\0\0\0\0\0\0\xf8\x7f", "a number is nan"),
        (b"\0\0\1\x86\x9f\0", "has no schema id 99999"),
    ]:
        with pytest.raises(Reject) as rejected:
            codec.decode_json(value, [])
        assert says in rejected.value.reason, (value[:20], rejected.value.reason)
    with pytest.raises(Reject, match="without what it requires: event_id"):
        writing(prefix).encode({"rate": 1.0})


def _length(n: int) -> bytes:
    return bytes([n]) if n < 128 else bytes([n & 0x7F | 0x80, n >> 7])


GUID = uuid.UUID(int=5)
SOURCE = 'syntax = "proto3"; message Event { int32 event_id = 1; string text = 2; }'
ANSWERS: dict[str, Any] = {
    "/subjects/t-value/versions/latest": {
        "subject": "t-value", "version": 1, "id": 1, "guid": str(GUID), "schema": SOURCE, "schemaType": "PROTOBUF"
    },
    "/schemas/ids/1": {"schema": SOURCE, "guid": str(GUID), "schemaType": "PROTOBUF"},
    "/schemas/ids/1?format=serialized": {"schema": text(V1), "guid": str(GUID), "schemaType": "PROTOBUF"},
    f"/schemas/guids/{GUID}": {"schema": SOURCE, "schemaType": "PROTOBUF"},
    f"/schemas/guids/{GUID}?format=serialized": {"schema": text(V1), "schemaType": "PROTOBUF"},
}  # fmt: skip


def test_a_registry_that_keeps_the_source_is_asked_for_the_compiled_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(ANSWERS) as (url, _):
        monkeypatch.setenv("SCHEMA_REGISTRY_URL", url)
        value = writing("t").encode({"event_id": 1, "text": "a"})
        assert value == b"\0\0\0\0\1\0\x08\1\x12\1a"
        assert reading("t").decode(value, []) == {"event_id": 1, "text": "a"}
    source_only = {key: answer for key, answer in ANSWERS.items() if "?" not in key}
    with answering(source_only) as (url, _):
        monkeypatch.setenv("SCHEMA_REGISTRY_URL", url)
        with pytest.raises(ConfigurationError, match=r"version 1: http\S+ doesn't give it compiled \(format=serialized\)"):
            reading("t")


def test_a_schemas_guid_and_the_messages_place_may_be_in_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(ANSWERS) as (url, _):
        monkeypatch.setenv("SCHEMA_REGISTRY_URL", url)
        codec = writing("t", framing="guid")
        value = codec.encode({"event_id": 1, "text": "a"})
        assert (value, codec.headers) == (b"\x08\1\x12\1a", ((SCHEMA_HEADER, b"\1" + GUID.bytes + b"\0"),))
        assert reading("t").decode(value, list(codec.headers)) == {"event_id": 1, "text": "a"}
        with pytest.raises(Reject, match="has no message at the place"):
            reading("t").decode(value, [(SCHEMA_HEADER, b"\1" + GUID.bytes + b"\2\2")])
        with pytest.raises(Reject, match="has no schema 00000000-0000-0000-0000-000000000006"):
            reading("t").decode(value, [(SCHEMA_HEADER, b"\1" + uuid.UUID(int=6).bytes + b"\0")])


def test_a_protobuf_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("google.protobuf.descriptor.FieldDescriptor", object)  # as it is before 6.31: without is_repeated
    with pytest.raises(ConfigurationError, match=r"needs protobuf 6\.31 or newer, got \d"):
        reading("t")


def test_a_registry_that_is_away_is_no_bad_record_and_what_is_cached_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from factory_agents.codecs.registry import registry_of

    monkeypatch.setenv("SCHEMA_REGISTRY_CONFIG", '{"max.retries": 0, "timeout": 2}')
    monkeypatch.setenv("FACTORY_SCHEMA_CACHE", str(tmp_path))
    value = b"\0\0\0\0\1\0\x08\1\x12\1a"
    with answering(ANSWERS) as (url, _):
        monkeypatch.setenv("SCHEMA_REGISTRY_URL", url)
        assert reading("t").decode(value, []) == {"event_id": 1, "text": "a"}
    registry_of.__globals__["_registry"].cache_clear()  # another process
    codec = reading("t")
    assert codec.decode(value, []) == {"event_id": 1, "text": "a"}
    with pytest.raises(UnavailableError, match="cannot be asked for schema id 2"):
        codec.decode(b"\0\0\0\0\2\0", [])
    monkeypatch.setenv("FACTORY_SCHEMA_CACHE", str(tmp_path / "cold"))
    with pytest.raises(UnavailableError, match="cannot be asked for subject 't-value'"):
        reading("t")


def test_events_are_what_protobufs_own_json_says_but_for_names_numbers_and_what_is_not_set(subjects: Subjects, prefix: str) -> None:
    register(subjects, f"{prefix}-value", EVERY_TYPE)
    class_ = class_of(EVERY_TYPE, "shop.Event")
    written = ParseDict({k: v for k, v in EVENT.items() if v is not None}, class_())
    value = writing(prefix).encode(EVENT)
    assert value[6:] == written.SerializeToString(deterministic=True) or class_.FromString(value[6:]) == written
