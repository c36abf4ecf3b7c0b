"""Quix Streams, exactly once, with its own (de)serialisers for Avro or Protobuf and the registry: read, set a field, write."""

from __future__ import annotations

import json
import sys
import time

import schemas
from quixstreams import Application
from quixstreams.models.serializers.avro import AvroDeserializer, AvroSerializer
from quixstreams.models.serializers.protobuf import ProtobufDeserializer, ProtobufSerializer
from quixstreams.models.serializers.schema_registry import SchemaRegistryClientConfig, SchemaRegistrySerializationConfig

bootstrap, source, target, total, kind, url = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5], sys.argv[6]
app = Application(
    broker_address=bootstrap,
    consumer_group=f"bench-{target}",
    auto_offset_reset="earliest",
    processing_guarantee="exactly-once",
    commit_interval=5.0,
    loglevel="ERROR",
    use_changelog_topics=False,
    producer_extra_config={"compression.type": "lz4", "linger.ms": 5},
)
registry = SchemaRegistryClientConfig(url=url)
registered = SchemaRegistrySerializationConfig(auto_register_schemas=kind == "protobuf", use_latest_version=kind == "avro")
if kind == "avro":
    reader = AvroDeserializer(schema_registry_client_config=registry)
    writer = AvroSerializer(schemas.AVRO, schema_registry_client_config=registry, schema_registry_serialization_config=registered)
else:
    reader = ProtobufDeserializer(schemas.protobuf_class(), schema_registry_client_config=registry)
    writer = ProtobufSerializer(
        schemas.protobuf_class(), schema_registry_client_config=registry, schema_registry_serialization_config=registered
    )
began = 0.0


def enrich(event: dict) -> dict:
    global began
    began = began or time.monotonic()
    event["enriched"] = True
    return event


frame = app.dataframe(app.topic(source, value_deserializer=reader))
frame = frame.apply(enrich)
frame = frame.to_topic(app.topic(target, value_serializer=writer))
app.run(count=total)  # commits what is open before it returns
print(json.dumps({"seconds": time.monotonic() - began}))
