"""JSON in Confluent's framing, beside a real registry and Confluent's own serialisers."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka.schema_registry import Schema
from confluent_kafka.schema_registry.json_schema import JSONDeserializer, JSONSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from factory_agents.codecs.framing import SCHEMA_HEADER
from factory_agents.codecs.json_schema import JsonSchemaCodec
from factory_agents.errors import ConfigurationError
from factory_agents.reject import Reject
from tests.support.registries import Subjects, answering, record

SCHEMA = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "Event",
    "type": "object",
    "required": ["event_id"],
    "additionalProperties": False,
    "properties": {"event_id": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}}},
}
EVENT = b'{"event_id":1,"tags":["a"]}'


@pytest.fixture
def subjects(registry_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Subjects]:
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", registry_url)
    own = Subjects(registry_url)
    yield own
    own.client.close()


def reading(topic: str, **options: Any) -> JsonSchemaCodec:
    return JsonSchemaCodec(topic, {}, **options)


def writing(topic: str, **options: Any) -> JsonSchemaCodec:
    return JsonSchemaCodec(topic, {}, writing=True, **options)


def test_what_is_written_is_read_by_confluents_and_theirs_by_us(subjects: Subjects, prefix: str) -> None:
    context = SerializationContext(prefix, MessageField.VALUE)
    theirs = JSONSerializer(json.dumps(SCHEMA), subjects.client)(json.loads(EVENT), context)
    ours = writing(prefix).encode_json(EVENT)
    assert json.loads(reading(prefix).decode_json(theirs or b"", [])) == json.loads(EVENT)
    assert reading(prefix).decode_json(ours, []) == EVENT
    assert JSONDeserializer(json.dumps(SCHEMA), schema_registry_client=subjects.client)(ours, context) == json.loads(EVENT)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"event_id":"1"}', 'event_id: "1" is not of type "integer"'),
        (b'{"event_id":1,"tags":["a",2]}', 'tags[1]: 2 is not of type "string"'),
        (b'{"event_id":9007199254740993.5}', 'event_id: 9007199254740993.5 is not of type "integer"'),
        (b'{"event_id":1e400}', "Number out of range"),
        (b'{"event_id":1,"more":1}', "Additional properties are not allowed"),
        (b"{}", '"event_id" is a required property'),
    ],
)
def test_an_event_that_its_schema_forbids_is_not_written(subjects: Subjects, prefix: str, text: bytes, says: str) -> None:
    subjects.client.register_schema(f"{prefix}-value", Schema(json.dumps(SCHEMA), "JSON"))
    with pytest.raises(Reject) as rejected:
        writing(prefix).encode_json(text)
    assert says in rejected.value.reason


def test_records_of_unknown_ids_and_other_kinds_are_rejected(subjects: Subjects, prefix: str) -> None:
    id_ = subjects.register(f"{prefix}-value", record(event_id="int"))
    with pytest.raises(Reject, match=f"schema id {id_} is of type AVRO, expected JSON"):
        reading(prefix).decode_json(b"\0" + id_.to_bytes(4, "big") + EVENT, [])
    with pytest.raises(Reject, match="has no schema id 99999"):
        reading(prefix).decode_json(b"\0\0\1\x86\x9f" + EVENT, [])
    with pytest.raises(Reject, match="not JSON with a schema id: expected a byte 0"):
        reading(prefix).decode_json(EVENT, [])
    with pytest.raises(ConfigurationError, match=r"codec 'json-schema': subject .* is of type AVRO, expected JSON"):
        writing(prefix)


def test_a_guid_in_a_header_leaves_the_json_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    guid = uuid.UUID(int=5)
    schema = {"schema": json.dumps(SCHEMA), "schemaType": "JSON"}
    latest = {**schema, "subject": "t-value", "version": 1, "id": 1, "guid": str(guid)}
    with answering({"/subjects/t-value/versions/latest": latest, f"/schemas/guids/{guid}": schema}) as (url, _):
        monkeypatch.setenv("SCHEMA_REGISTRY_URL", url)
        codec = writing("t", framing="guid")
        assert codec.headers == ((SCHEMA_HEADER, b"\1" + guid.bytes),)
        assert codec.encode_json(EVENT) == EVENT
        assert reading("t").decode_json(EVENT, list(codec.headers)) == EVENT


def test_a_schema_is_used_with_those_that_it_refers_to_and_with_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched from an address that a schema names."""
    references = [{"name": "place.json", "subject": "a", "version": 1}]
    place = {"subject": "a", "version": 1, "id": 2, "schema": '{"type": "object", "required": ["city"]}', "schemaType": "JSON"}
    answers: dict[str, Any] = {"/subjects/a/versions/1": place}
    with answering(answers) as (url, asked):
        monkeypatch.setenv("SCHEMA_REGISTRY_URL", url)
        for topic, ref in (("t", "place.json"), ("u", f"{url}/place.json")):
            schema = json.dumps({"properties": {"at": {"$ref": ref}}})
            latest = {"subject": f"{topic}-value", "version": 1, "id": 1, "schema": schema, "schemaType": "JSON", "references": references}
            answers[f"/subjects/{topic}-value/versions/latest"] = latest
        codec = writing("t")
        assert codec.encode_json(b'{"at":{"city":"Oslo"}}')
        with pytest.raises(Reject, match='at: "city" is a required property'):
            codec.encode_json(b'{"at":{}}')
        with pytest.raises(ConfigurationError, match=r"place\.json is none of the schemas that the registry names as its references"):
            writing("u")
        assert not any(path.endswith("place.json") for path, _ in asked)
