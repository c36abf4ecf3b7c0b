"""The schemas of the codecs' benchmark, for whoever takes part: Avro, and a Protobuf message that is built here."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FIELDS = {"event_id": "string", "user": "long", "payload": "string", "amount": "double", "kind": "string"}
AVRO = {
    "type": "record",
    "name": "Event",
    "fields": [{"name": name, "type": type_} for name, type_ in FIELDS.items()]
    + [{"name": "enriched", "type": "boolean", "default": False}],
}
_TYPES = {"string": 9, "long": 3, "double": 1, "boolean": 8}


def protobuf_file() -> descriptor_pb2.FileDescriptorProto:
    """The compiled schema."""
    message = descriptor_pb2.DescriptorProto(name="Event")
    for number, (name, type_) in enumerate((FIELDS | {"enriched": "boolean"}).items(), 1):
        message.field.add(name=name, number=number, type=_TYPES[type_], label=1)
    return descriptor_pb2.FileDescriptorProto(name="event.proto", package="bench", message_type=[message], syntax="proto3")


def protobuf_class() -> Any:
    """The class of its messages."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(protobuf_file())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("bench.Event"))


def texts() -> dict[str, str]:
    """Each schema as a registry takes it."""
    return {"avro": json.dumps(AVRO), "protobuf": base64.b64encode(protobuf_file().SerializeToString()).decode()}


def prefix(kind: str, schema_id: int) -> bytes:
    """What stands before a value: the schema's id, and for Protobuf that it is the first message."""
    return struct.pack(">bI", 0, schema_id) + (b"\0" if kind == "protobuf" else b"")
