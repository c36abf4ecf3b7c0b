"""Avro in Confluent's framing, beside a real registry and Confluent's serialisers: every type, both framings, evolution, hostile bytes."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from decimal import Decimal
from io import BytesIO
from typing import Any

import pytest
from confluent_kafka.schema_registry import SchemaReference
from fastavro import parse_schema, schemaless_writer

from factory_agents.codecs.avro import AvroCodec
from factory_agents.codecs.avro_types import event_type
from factory_agents.codecs.framing import SCHEMA_HEADER
from factory_agents.codecs.registry import registry_of
from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.reject import Reject
from tests.support.registries import Subjects, answering, record

EVERY_TYPE = record(
    event_id="int",
    count="long",
    rate="double",
    text="string",
    on="boolean",
    raw="bytes",
    maybe={"type": ["null", "string"], "default": None},
    kind={"type": "enum", "name": "Kind", "symbols": ["A", "B"]},
    fixed={"type": "fixed", "name": "Four", "size": 4},
    price={"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 2},
    day={"type": "int", "logicalType": "date"},
    clock={"type": "long", "logicalType": "time-micros"},
    at={"type": "long", "logicalType": "timestamp-millis"},
    local={"type": "long", "logicalType": "local-timestamp-micros"},
    id={"type": "string", "logicalType": "uuid"},
    tags={"type": "array", "items": "string"},
    map={"type": "map", "values": ["null", "double"]},
    inner=record("Inner", a="int", b={"type": ["null", "Kind"], "default": None}),
    either=["null", "int", "string"],
)
EVENT = {
    "event_id": -1,
    "count": 2**62,
    "rate": 0.1,
    "text": "tëxt",
    "on": True,
    "raw": "AP8=",
    "maybe": None,
    "kind": "B",
    "fixed": "AAECAw==",
    "price": 123456789012345678.90,
    "day": "2026-11-01",
    "clock": "04:05:06.000007",
    "at": "2026-11-01T04:00:00.123000Z",
    "local": "2026-11-01T04:00:00.123456",
    "id": "00000000-0000-0000-0000-000000000001",
    "tags": ["a", "b"],
    "map": {"x": None, "y": 1.5},
    "inner": {"a": 1, "b": "A"},
    "either": "both",
}
TEXT = json.dumps(EVENT).replace("1.2345678901234568e+17", "123456789012345678.90").encode()


@pytest.fixture
def subjects(registry_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Subjects]:
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", registry_url)
    own = Subjects(registry_url)
    yield own
    own.client.close()


def reading(topic: str, **options: Any) -> AvroCodec:
    return AvroCodec(topic, {}, **options)


def writing(topic: str, **options: Any) -> AvroCodec:
    return AvroCodec(topic, {}, writing=True, **options)


def test_every_type_goes_through_with_all_its_digits(subjects: Subjects, prefix: str) -> None:
    subjects.register(f"{prefix}-value", EVERY_TYPE)
    value = writing(prefix).encode_json(TEXT)
    (theirs,) = subjects.read(prefix, value)
    assert (theirs["price"], theirs["raw"], theirs["at"].year) == (Decimal("123456789012345678.90"), b"\0\xff", 2026)
    text = reading(prefix).decode_json(value, [])
    assert b'"price":123456789012345678.90' in text
    assert json.loads(text) == EVENT
    (again,) = subjects.written(prefix, EVERY_TYPE, theirs)
    assert reading(prefix).decode_json(again, []) == text


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("event_id", 2**31, "Expected `int` <= 2147483647 - at `$.event_id`"),
        ("event_id", True, "Expected `int`, got `bool` - at `$.event_id`"),
        ("event_id", 1.5, "Expected `int`, got `float` - at `$.event_id`"),
        ("count", 2**63, "Expected `int` <= "),
        ("text", 1, "Expected `str`, got `int` - at `$.text`"),
        ("kind", "Z", "Invalid enum value 'Z' - at `$.kind`"),
        ("price", 1.005, "Scale provided in schema does not match the decimal - at `$.price`"),
        ("price", 1e30, "a decimal is 1E+30: write out its digits - at `$.price`"),
        ("price", 10**20, "The decimal precision is bigger than allowed by schema - at `$.price`"),
        ("at", "yesterday", "Invalid RFC3339 encoded datetime - at `$.at`"),
        ("at", 1700000000000, "Expected `datetime`, got `int` - at `$.at`"),
        ("raw", "not base64", "Invalid base64 encoded string - at `$.raw`"),
        ("fixed", "AAE=", " - at `$.fixed`"),
        ("unheard_of", 1, "Object contains unknown field `unheard_of`"),
        ("text", None, "Expected `str`, got `null` - at `$.text`"),
        ("inner", {"a": 1, "c": 2}, "Object contains unknown field `c` - at `$.inner`"),
    ],
)
def test_what_the_schema_cannot_say_is_rejected_and_never_cut_to_fit(subjects: Subjects, field: str, value: Any, says: str) -> None:
    subjects.register("every-type-value", EVERY_TYPE)
    with pytest.raises(Reject) as rejected:
        writing("every-type").encode_json(json.dumps({**EVENT, "price": 1, field: value}).encode())
    assert says in rejected.value.reason
    assert rejected.value.rule == "encode"


@pytest.mark.parametrize(
    ("inner", "at"), [({"amount": 1.005, "of": None}, "inner.amount"), ({"amount": 1, "of": [{"amount": 1e30}]}, "inner.of")]
)
def test_a_decimal_that_does_not_fit_is_named_by_its_field(inner: dict[str, Any], at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """fastavro says what is wrong with it, and not where; a record may be defined in one field and used in another."""
    money = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
    part = record("Part", amount=money)
    schema = record(first=part, inner=record("Inner", amount=money, of=["null", {"type": "array", "items": "Part"}]), last="Part")
    event = {"first": {"amount": 1}, "last": {"amount": 2}, "inner": inner}
    answers = {"/subjects/t-value/versions/latest": {"subject": "t-value", "version": 1, "id": 1, "schema": json.dumps(schema)}}
    with answering(answers) as (url, _):
        monkeypatch.setenv("SCHEMA_REGISTRY_URL", url)
        with pytest.raises(Reject, match=re.escape(f" - at `$.{at}`")):
            writing("t").encode(event)


def test_a_field_that_is_left_out_gets_its_default_of_its_type(subjects: Subjects, prefix: str) -> None:
    decimal = {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}
    subjects.register(
        f"{prefix}-value",
        record(
            event_id="int",
            price={"type": decimal, "default": "\u00ff"},
            at={"type": {"type": "long", "logicalType": "timestamp-millis"}, "default": 0},
            raw={"type": "bytes", "default": "\u0000\u00ff"},
            inner={"type": record("In", a={"type": "int", "default": 3}), "default": {}},
        ),
    )
    value = writing(prefix).encode_json(b'{"event_id":1}')
    read = json.loads(reading(prefix).decode_json(value, []))
    assert read == {"event_id": 1, "price": -0.01, "at": "1970-01-01T00:00:00Z", "raw": "AP8=", "inner": {"a": 3}}


V1 = record(event_id="int", text="string")
MONEY = {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}
ADDED = record(event_id="int", text="string", price={"type": MONEY, "default": "\u0000"})
DROPPED = record(event_id="int")
RENAMED = record(event_id="int", words={"type": "string", "aliases": ["text"]})
WIDENED = record(event_id="long", text="string")


@pytest.mark.parametrize(
    ("writer", "reader", "sees"),
    [
        (V1, ADDED, {"event_id": 1, "text": "a", "price": 0.0}),
        (ADDED, V1, {"event_id": 1, "text": "a"}),
        (V1, DROPPED, {"event_id": 1}),
        (V1, RENAMED, {"event_id": 1, "words": "a"}),
        (V1, WIDENED, {"event_id": 1, "text": "a"}),
        (V1, V1, {"event_id": 1, "text": "a"}),
    ],
    ids=["add: old records", "add: old reader", "drop", "rename by alias", "widen", "same"],
)
def test_a_schema_that_evolves_is_read_by_its_readers_version(
    subjects: Subjects, prefix: str, writer: dict[str, Any], reader: dict[str, Any], sees: dict[str, Any]
) -> None:
    event = {"event_id": 1, "text": "a"} | ({"price": Decimal("1.25")} if writer is ADDED else {})
    (value,) = subjects.written(prefix, writer, event)
    subjects.register(f"{prefix}-value", reader)
    latest = subjects.client.get_latest_version(f"{prefix}-value")
    assert json.loads(reading(prefix).decode_json(value, [])) == sees
    assert json.loads(reading(prefix, version=str(latest.version)).decode_json(value, [])) == sees
    as_written = json.loads(reading(prefix, version="writer").decode_json(value, []))
    assert as_written == event | ({"price": 1.25} if writer is ADDED else {})


@pytest.mark.parametrize("reader", [record(event_id="int", more="string"), record(event_id="string", text="string")])
def test_a_record_that_this_readers_version_cannot_read_is_rejected(subjects: Subjects, prefix: str, reader: dict[str, Any]) -> None:
    (value,) = subjects.written(prefix, V1, {"event_id": 1, "text": "a"})
    subjects.register(f"{prefix}-value", reader)
    with pytest.raises(Reject, match=r"not Avro of schema id .*SchemaResolutionError"):
        reading(prefix).decode_json(value, [])


@pytest.mark.parametrize(
    ("compatibility", "new", "says"),
    [
        (
            "backward",
            record(event_id="int", text="string", amount="int"),
            "the new version can't read old records: field 'amount' has no default",
        ),
        ("forward", DROPPED, "the old version can't read new records: field 'text' has no default"),
        ("full", WIDENED, "the old version can't read new records: field 'event_id': long can't be read as int"),
        ("full", ADDED, ""),
    ],
)
def test_a_version_that_breaks_the_one_before_is_refused_before_anything_is_written(
    subjects: Subjects, prefix: str, compatibility: str, new: dict[str, Any], says: str
) -> None:
    subjects.register(f"{prefix}-value", V1)
    before = writing(prefix, compatibility=compatibility)
    subjects.register(f"{prefix}-value", new)
    registry_of.__globals__["_registry"].cache_clear()
    if says:
        with pytest.raises(
            ConfigurationError, match=rf"version 2 of subject '{prefix}-value' isn't {compatibility} compatible with version 1: {says}"
        ):
            writing(prefix, compatibility=compatibility)
    else:
        assert writing(prefix, compatibility=compatibility).pinned["version"] == 2
    assert AvroCodec(prefix, dict(before.pinned), compatibility=compatibility, writing=True).pinned == before.pinned
    reading(prefix, compatibility=compatibility)


def test_latest_is_found_out_once_and_kept(subjects: Subjects, prefix: str) -> None:
    (value,) = subjects.written(prefix, V1, {"event_id": 1, "text": "a"})
    first = reading(prefix)
    subjects.register(f"{prefix}-value", ADDED)
    again = AvroCodec(prefix, dict(first.pinned))
    assert (again.pinned, again.identity) == (first.pinned, first.identity)
    assert json.loads(again.decode_json(value, [])) == {"event_id": 1, "text": "a"}
    newest = reading(prefix, version=2)
    assert newest.identity != first.identity
    with pytest.raises(ConfigurationError, match="is another schema now than when this work was begun"):
        AvroCodec(prefix, {**first.pinned, "digest": "x"})
    with pytest.raises(ConfigurationError, match="has no schema id 99999 any more, which this work was begun with"):
        AvroCodec(prefix, {**first.pinned, "id": 99999})


def test_schemas_that_refer_to_others_are_put_together(subjects: Subjects, prefix: str) -> None:
    subjects.register(f"{prefix}.place", record("Place", x="int", y={"type": "int", "default": 7}))
    subjects.register(f"{prefix}-value", record(event_id="int", at="Place"), SchemaReference("Place", f"{prefix}.place", 1))
    value = writing(prefix).encode_json(b'{"event_id":1,"at":{"x":2}}')
    assert json.loads(reading(prefix).decode_json(value, [])) == {"event_id": 1, "at": {"x": 2, "y": 7}}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"", "expected a byte 0 and four of the id before the value, got nothing"),
        (b'{"event_id":1}', "expected a byte 0 and four of the id before the value, got 7b 22 65 76 65 …"),
        (b"\0\0\0", "got 00 00 00"),
        (b"\0\0\1\x86\x9f\2", "has no schema id 99999"),
        (b"cut", "not Avro of schema id"),
        (b"longer", "1 bytes are left over"),
        (b"nan", "a number is nan, which JSON cannot say"),
    ],
)
def test_what_is_no_event_is_rejected(subjects: Subjects, prefix: str, value: bytes, says: str) -> None:
    schema = record(event_id="int", text="string", rate="double")
    whole, nan = subjects.written(
        prefix, schema, {"event_id": 1, "text": "abc", "rate": 1.0}, {"event_id": 1, "text": "", "rate": float("nan")}
    )
    made = {b"cut": whole[:-1], b"longer": whole + b"x", b"nan": nan}
    with pytest.raises(Reject) as rejected:
        reading(prefix).decode_json(made.get(value, value), [])
    assert says in rejected.value.reason


@pytest.mark.parametrize(
    ("type_", "past"),
    [({"type": "int", "logicalType": "time-millis"}, 86_400_000), ({"type": "long", "logicalType": "time-micros"}, 86_400_000_000)],
)
def test_a_time_that_is_of_no_day_is_rejected(type_: dict[str, Any], past: int, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = record(at=type_)
    answers = {
        "/schemas/ids/1": {"schema": json.dumps(schema)},
        "/subjects/t-value/versions/latest": {"subject": "t-value", "version": 1, "id": 1, "schema": json.dumps(schema)},
    }
    with answering(answers) as (url, _):
        monkeypatch.setenv("SCHEMA_REGISTRY_URL", url)
        for number in (-1, -past // 24, past, 0, past - 1):
            value = BytesIO(b"\0\0\0\0\1")
            value.seek(5)
            schemaless_writer(value, record(at=type_["type"]), {"at": number})
            if 0 <= number < past:
                assert reading("t").decode_json(value.getvalue(), []).startswith(b'{"at":"23:59:59.999' if number else b'{"at":"00:00:00"')
            else:
                with pytest.raises(Reject, match="not Avro of schema id 1: ValueError: "):
                    reading("t").decode_json(value.getvalue(), [])


def test_hostile_schemas_end_nothing(subjects: Subjects, prefix: str) -> None:
    """A value that nests a million times ran over the stack of fastavro's fast reader; an array of nulls had no bound."""
    id_ = subjects.register(f"{prefix}-value", record("List", event_id="int", next=["null", "List"]))
    codec = reading(prefix)
    short = b"\0" + id_.to_bytes(4, "big") + b"\2\2" * 3 + b"\2\0"
    assert json.loads(codec.decode_json(short, []))["next"]["next"]["next"]["next"] is None
    with pytest.raises(Reject, match="RecursionError"):
        codec.decode_json(b"\0" + id_.to_bytes(4, "big") + b"\2\2" * 1_000_000 + b"\2\0", [])
    id_ = subjects.register(f"{prefix}.nulls-value", record(event_id="int", nothing={"type": "array", "items": "null"}))
    with pytest.raises(Reject, match="it has an array of values that take no bytes"):
        codec.decode_json(b"\0" + id_.to_bytes(4, "big") + b"\2\x80\x80\x80\x80\x20\0", [])
    with pytest.raises(ConfigurationError, match=r"subject .* version 1: .*an array of values that take no bytes"):
        reading(f"{prefix}.nulls")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, r"has no subject '.*-value'; register the schema, or name its subject: avro\?subject=….*: avro\?version=writer\)"),
        ({"subject": "nobodys"}, "has no subject 'nobodys'"),
        ({"version": "newest"}, "version: expected a number, latest or writer, got 'newest'"),
        ({"framing": "magic"}, "framing: expected id or guid, got 'magic'"),
        ({"compatibility": "some"}, "compatibility: expected backward or forward or full, got 'some'"),
        ({"rules": "run"}, "rules: expected refuse or ignore, got 'run'"),
        ({"version": "writer", "writing": True}, "version: writer is for reading"),
        ({"framing": "guid", "subject": "every-type-value", "writing": True}, "knows no GUIDs; use id"),
    ],
)
def test_options_that_fit_nothing_are_one_line(subjects: Subjects, prefix: str, options: dict[str, Any], says: str) -> None:
    subjects.register("every-type-value", EVERY_TYPE)
    with pytest.raises(ConfigurationError, match=says):
        reading(prefix, **options)


def test_without_a_registry_named_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCHEMA_REGISTRY_URL", raising=False)
    with pytest.raises(ConfigurationError, match="no schema registry is named; set SCHEMA_REGISTRY_URL"):
        reading("t")


GUID = uuid.UUID(int=5)
ANSWERS = {
    "/subjects/t-value/versions/latest": {"subject": "t-value", "version": 1, "id": 1, "guid": str(GUID), "schema": json.dumps(V1)},
    "/schemas/ids/1": {"schema": json.dumps(V1), "guid": str(GUID)},
    f"/schemas/guids/{GUID}": {"schema": json.dumps(V1)},
}


def test_a_schemas_guid_may_be_in_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(ANSWERS) as (url, _):
        monkeypatch.setenv("SCHEMA_REGISTRY_URL", url)
        codec = writing("t", framing="guid")
        value = codec.encode_json(b'{"event_id":1,"text":"a"}')
        assert (value, codec.headers) == (b"\2\2a", ((SCHEMA_HEADER, b"\1" + GUID.bytes),))
        assert codec.decode_json(value, list(codec.headers)) == b'{"event_id":1,"text":"a"}'
        assert codec.decode_json(value, [("other", None), (SCHEMA_HEADER, b"\0\0\0\0\1")]) == b'{"event_id":1,"text":"a"}'
        with pytest.raises(Reject, match="has no schema 00000000-0000-0000-0000-000000000006"):
            codec.decode_json(value, [(SCHEMA_HEADER, b"\1" + uuid.UUID(int=6).bytes)])
        with pytest.raises(Reject, match="header __value_schema_id: expected a byte 1 and a GUID, got 07"):
            codec.decode_json(value, [(SCHEMA_HEADER, b"\7")])


def test_a_subject_with_rules_is_refused_unless_they_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {"domainRules": [{"name": "pii", "kind": "TRANSFORM", "type": "ENCRYPT", "mode": "WRITEREAD", "tags": ["PII"]}]}
    answers = {
        **ANSWERS,
        "/subjects/t-value/versions/latest": {**ANSWERS["/subjects/t-value/versions/latest"], "ruleSet": rules},
        "/schemas/ids/1": {"schema": json.dumps(V1), "ruleSet": rules},
    }
    with answering(answers) as (url, _):
        monkeypatch.setenv("SCHEMA_REGISTRY_URL", url)
        with pytest.raises(ConfigurationError, match=r"subject 't-value' has rules .* avro\?rules=ignore goes on without them"):
            reading("t")
        with pytest.raises(ConfigurationError, match="schema id 1 has rules"):
            reading("t", version="writer").decode_json(b"\0\0\0\0\1\2\2a", [])
        assert reading("t", rules="ignore").decode_json(b"\0\0\0\0\1\2\2a", []) == b'{"event_id":1,"text":"a"}'


def test_a_schema_of_another_kind_is_no_avro(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {**ANSWERS, "/schemas/ids/2": {"schema": "{}", "schemaType": "JSON"}}
    with answering(answers) as (url, _):
        monkeypatch.setenv("SCHEMA_REGISTRY_URL", url)
        with pytest.raises(Reject, match="schema id 2 is of type JSON, expected AVRO"):
            reading("t").decode_json(b"\0\0\0\0\2\2\2a", [])


def test_a_registry_that_is_away_is_no_bad_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEMA_REGISTRY_CONFIG", '{"max.retries": 0}')
    with answering(ANSWERS) as (url, _):
        monkeypatch.setenv("SCHEMA_REGISTRY_URL", url)
        codec = reading("t")
        assert codec.decode_json(b"\0\0\0\0\1\2\2a", [])
    assert codec.decode_json(b"\0\0\0\0\1\2\2a", []) == b'{"event_id":1,"text":"a"}'
    with pytest.raises(UnavailableError, match="cannot be asked for schema id 2"):
        codec.decode_json(b"\0\0\0\0\2\2\2a", [])


@pytest.mark.parametrize(
    ("type_", "default", "seen"),
    [
        (["null", "int"], 0, b"0"),
        (["null", {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2}], "\u0001\u00f4", b"5.00"),
        (["null", {"type": "int", "logicalType": "date"}], 20000, b'"2024-10-04"'),
        ([{"type": "int", "logicalType": "date"}, "null"], None, b"null"),
        (["null", {"type": "enum", "name": "K", "symbols": ["A"]}, "string"], "B", b'"B"'),
    ],
)
def test_a_default_may_be_of_any_alternative_of_its_union(type_: Any, default: Any, seen: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    new = json.dumps(record(event_id="int", more={"type": type_, "default": default}))
    answers = {
        "/schemas/ids/1": {"schema": json.dumps(record(event_id="int"))},
        "/subjects/t-value/versions/latest": {"subject": "t-value", "version": 2, "id": 2, "schema": new},
    }
    with answering(answers) as (url, _):
        monkeypatch.setenv("SCHEMA_REGISTRY_URL", url)
        assert reading("t").decode_json(b"\0\0\0\0\1\2", []) == b'{"event_id":1,"more":' + seen + b"}"
        assert writing("t").encode_json(b'{"event_id":1}')[:6] == b"\0\0\0\0\2\2"


def test_several_types_of_events_in_one_topic_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    union = json.dumps([record("A", a="int"), record("B", b="string")])
    answers = {
        "/schemas/ids/1": {"schema": union},
        "/subjects/t-value/versions/latest": {"subject": "t-value", "version": 1, "id": 1, "schema": union},
    }
    with answering(answers) as (url, _):
        monkeypatch.setenv("SCHEMA_REGISTRY_URL", url)
        for codec in (reading("t"), reading("t", version="writer")):
            assert codec.decode_json(b"\0\0\0\0\1\0\2", []) == b'{"a":1}'
            assert codec.decode_json(b"\0\0\0\0\1\2\2x", []) == b'{"b":"x"}'
        with pytest.raises(ConfigurationError, match="it is no record, expected one"):
            writing("t")


ALIKE = "a union holds {} and {}, which are the same in an event: it cannot say which of them is meant"


@pytest.mark.parametrize(
    ("union", "says"),
    [
        ([record("Created", id="int"), record("Deleted", id="int")], ALIKE.format("Created", "Deleted")),
        (["null", "bytes", "string"], ALIKE.format("bytes", "string")),
        ({"type": "array", "items": ["string", {"type": "fixed", "name": "Four", "size": 4}]}, ALIKE.format("string", "Four")),
        ([record("Created", id="int"), record("Deleted", id="int", why="string")], ""),
        (["null", "string", {"type": "enum", "name": "K", "symbols": ["A"]}, {"type": "string", "logicalType": "uuid"}], ""),
    ],
)
def test_what_an_event_cannot_tell_apart_is_read_and_never_guessed_at_in_writing(
    union: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fastavro takes the first that fits (its issue 401): an event that was read as one would be written as another."""
    schema = json.dumps(record(event_id="int", of=union))
    answers = {
        "/schemas/ids/1": {"schema": schema},
        "/subjects/t-value/versions/latest": {"subject": "t-value", "version": 1, "id": 1, "schema": schema},
    }
    with answering(answers) as (url, _):
        monkeypatch.setenv("SCHEMA_REGISTRY_URL", url)
        reading("t")
        if not says:
            writing("t")
            return
        with pytest.raises(ConfigurationError, match=re.escape(says)):
            writing("t")


def test_a_record_that_other_schemas_define_elsewhere_is_the_same_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is written out and where it is only named may change (fastavro's issue 780, confluent-kafka-python's 2173)."""
    place = {**record("Place", x="int"), "namespace": "shop"}
    old = {**record(at=place, to="shop.Place"), "namespace": "shop"}
    new = {**record(near={"type": ["null", place], "default": None}, at="shop.Place", to="shop.Place"), "namespace": "shop"}
    referring = {**record(at="shop.Place", to="shop.Place"), "namespace": "shop"}
    refers = {"references": [{"name": "shop.Place", "subject": "place", "version": 1}]}
    answers: dict[str, Any] = {
        "/subjects/place/versions/1": {"subject": "place", "version": 1, "id": 9, "schema": json.dumps(place)},
        "/schemas/ids/1": {"schema": json.dumps(old)},
        "/schemas/ids/3": {"schema": json.dumps(referring), **refers},
    }
    for own in ({"schema": json.dumps(new)}, {"schema": json.dumps(referring), **refers}):
        answers["/subjects/t-value/versions/latest"] = {"subject": "t-value", "version": 2, "id": 2, **own}
        with answering(answers) as (url, _):
            monkeypatch.setenv("SCHEMA_REGISTRY_URL", url)
            for id_ in (1, 3):
                event = json.loads(reading("t").decode_json(bytes([0, 0, 0, 0, id_, 2, 4]), []))
                assert (event["at"], event["to"]) == ({"x": 1}, {"x": 2})


def test_types_that_msgspec_cannot_tell_apart_are_left_to_fastavro() -> None:
    assert event_type(parse_schema(record(event_id="int", either=["string", "bytes"])))
    with pytest.raises(ValueError, match="it is no record"):
        event_type(parse_schema("int"))
