"""Protobuf schemas and messages as tests use them: built here, since no compiler is at hand."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2, message_factory, struct_pb2, timestamp_pb2, wrappers_pb2

Field = descriptor_pb2.FieldDescriptorProto
TYPES: Mapping[str, int] = {
    name.removeprefix("TYPE_").lower(): number
    for name, number in Field.Type.items()
    if name not in ("TYPE_MESSAGE", "TYPE_ENUM", "TYPE_GROUP")
}
KNOWN = (timestamp_pb2, duration_pb2, struct_pb2, wrappers_pb2)


def field(name: str, number: int, type_: str, *, repeated: bool = False, optional: bool = False, required: bool = False) -> Field:
    """One field: its type is a scalar's name, ``enum .pkg.Kind`` or a message as ``.pkg.Message``."""
    label = Field.LABEL_REPEATED if repeated else Field.LABEL_REQUIRED if required else Field.LABEL_OPTIONAL
    made = Field(name=name, number=number, label=label)
    if type_.startswith("enum "):
        made.type, made.type_name = Field.TYPE_ENUM, type_.removeprefix("enum ")
    elif type_.startswith("."):
        made.type, made.type_name = Field.TYPE_MESSAGE, type_
    else:
        made.type = TYPES[type_]
    if optional:
        made.proto3_optional = True
    return made


def message(
    name: str, *fields: Field, nested: Sequence[descriptor_pb2.DescriptorProto] = (), **oneofs: Sequence[str]
) -> descriptor_pb2.DescriptorProto:
    """A message's type; ``oneofs`` are fields of which one is set, and optional fields get the unions that stand for them."""
    made = descriptor_pb2.DescriptorProto(name=name, field=fields, nested_type=nested)
    for index, members in enumerate(oneofs.values()):
        made.oneof_decl.add(name=list(oneofs)[index])
        for own in made.field:
            if own.name in members:
                own.oneof_index = index
    for own in made.field:
        if own.proto3_optional:
            own.oneof_index = len(made.oneof_decl)
            made.oneof_decl.add(name=f"_{own.name}")
    return made


def map_entry(name: str, key: str, value: str) -> descriptor_pb2.DescriptorProto:
    """What a field of a map is made of."""
    made = message(name, field("key", 1, key), field("value", 2, value))
    made.options.map_entry = True
    return made


def file(
    *messages: descriptor_pb2.DescriptorProto,
    package: str = "shop",
    syntax: str = "proto3",
    imports: Sequence[str] = (),
    **enums: Sequence[str],
) -> descriptor_pb2.FileDescriptorProto:
    """A file with these messages, and enums by name."""
    made = descriptor_pb2.FileDescriptorProto(name="event.proto", package=package, message_type=messages, dependency=imports)
    if syntax != "proto2":
        made.syntax = syntax
    for name, values in enums.items():
        made.enum_type.add(name=name, value=[descriptor_pb2.EnumValueDescriptorProto(name=v, number=i) for i, v in enumerate(values)])
    return made


def text(made: descriptor_pb2.FileDescriptorProto) -> str:
    """As Confluent's serialisers register it."""
    return base64.b64encode(made.SerializeToString()).decode()


def class_of(made: descriptor_pb2.FileDescriptorProto, name: str, *others: descriptor_pb2.FileDescriptorProto) -> Any:
    """The class of a message."""
    pool = descriptor_pool.DescriptorPool()
    for known in KNOWN:
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    for other in (*others, made):
        pool.Add(other)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
