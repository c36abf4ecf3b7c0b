"""Compiled Protobuf schemas: the messages in them, and what makes plain events of messages and messages of events."""

from __future__ import annotations

import base64
import binascii
import importlib
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, TypeAlias

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError

__all__ = ["File", "compiled", "message_class", "message_name", "message_path", "plain"]

File: TypeAlias = "descriptor_pb2.FileDescriptorProto"
_Plain: TypeAlias = Callable[[Any], Any]

_KNOWN = ("google/", "confluent/")
"""Where the files lie that every registry knows without a reference; confluent's are in its client."""
_AS_JSON = ("google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue", "google.protobuf.Any")
_AS_TEXT = ("google.protobuf.Timestamp", "google.protobuf.Duration", "google.protobuf.FieldMask")
_WRAPPERS = frozenset(
    f"google.protobuf.{kind}Value" for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
_DECIMAL = "confluent.type.Decimal"


def compiled(text: str) -> File | None:
    """The file that a registry gives compiled, as base64 of its descriptor; None for other texts, such as the source."""
    try:
        file = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, DecodeError):
        return None
    return file if file.message_type or file.dependency else None


def message_class(file: File, others: Mapping[str, File], name: str) -> type[Any]:
    """The class of a message in a file; ``others`` are the files that it imports, by the name it does so. Raises TypeError or KeyError."""
    pool = descriptor_pool.DescriptorPool()
    _add(pool, file, others, set())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def _add(pool: descriptor_pool.DescriptorPool, file: File, others: Mapping[str, File], added: set[str]) -> None:
    added.add(file.name)
    for name in file.dependency:
        if name not in added:
            _add(pool, others.get(name) or _known(name), others, added)
    pool.Add(file)


def _known(name: str) -> File:
    file = descriptor_pb2.FileDescriptorProto()
    if not name.startswith(_KNOWN):
        raise KeyError(f"it imports {name!r}, which it has no reference to")
    module = name.removesuffix(".proto").replace("/", ".") + "_pb2"
    place = f"confluent_kafka.schema_registry.{module}" if name.startswith("confluent/") else module
    try:
        importlib.import_module(place).DESCRIPTOR.CopyToProto(file)
    except ImportError:
        raise KeyError(f"it imports {name!r}, which is not known here") from None
    file.name = name
    return file


def message_name(file: File, path: list[int]) -> str:
    """The full name of the message at a path of indexes. Raises IndexError."""
    message = file.message_type[path[0]]
    names = [file.package, message.name] if file.package else [message.name]
    for index in path[1:]:
        message = message.nested_type[index]
        names.append(message.name)
    return ".".join(names)


def message_path(file: File, name: str) -> list[int] | None:
    """The indexes that lead to a message, by its full name; None where the file has none of that name."""
    names = name.removeprefix(f"{file.package}.").split(".") if file.package else name.split(".")
    found: list[int] = []
    messages = file.message_type
    for part in names:
        index = next((i for i, message in enumerate(messages) if message.name == part), None)
        if index is None:
            return None
        found.append(index)
        messages = messages[index].nested_type
    return found


def plain(descriptor: Descriptor, seen: dict[str, _Plain] | None = None) -> _Plain:
    """What makes plain data of messages of this type.

    Fields have the names that they have in the schema. One that is not set is its type's default, or null where the schema tells the two
    apart. Enums are names (numbers, where the schema has no name for one), times as RFC 3339 says, maps have texts as keys.
    """
    seen = {} if seen is None else seen
    if (found := seen.get(descriptor.full_name)) is not None:
        return found
    fields: list[tuple[str, bool, _Plain | None]] = []

    def convert(message: Any) -> dict[str, Any]:
        event: dict[str, Any] = {}
        for name, told_apart, of in fields:
            if told_apart and not message.HasField(name):
                event[name] = None
            else:
                value = getattr(message, name)
                event[name] = value if of is None else of(value)
        return event

    own = _of_known(descriptor)
    seen[descriptor.full_name] = own or convert
    if own is None:
        fields += [(field.name, field.has_presence, _of_field(field, seen)) for field in descriptor.fields]
    return own or convert


def _of_known(descriptor: Descriptor) -> _Plain | None:
    name = descriptor.full_name
    if name in _AS_TEXT:
        return lambda message: message.ToJsonString()
    if name in _WRAPPERS:
        return lambda message: message.value
    if name in _AS_JSON:
        return lambda message: MessageToDict(message, preserving_proto_field_name=True)
    if name == _DECIMAL:
        return lambda message: Decimal(int.from_bytes(message.value, "big", signed=True)).scaleb(-message.scale)
    return None


def _of_field(field: FieldDescriptor, seen: dict[str, _Plain]) -> _Plain | None:
    """What makes plain data of a field's values; None where they are plain."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        of = _of_one(field.message_type.fields_by_name["value"], seen)
        key: _Plain = _bool_key if field.message_type.fields_by_name["key"].type == FieldDescriptor.TYPE_BOOL else str
        return (
            (lambda values: {key(k): v for k, v in values.items()})
            if of is None
            else lambda values: {key(k): of(v) for k, v in values.items()}
        )
    of_one = _of_one(field, seen)
    if field.is_repeated:
        return list if of_one is None else lambda values: list(map(of_one, values))
    return of_one


def _bool_key(key: bool) -> str:
    return "true" if key else "false"


def _of_one(field: FieldDescriptor, seen: dict[str, _Plain]) -> _Plain | None:
    if field.enum_type is not None:
        names = {number: value.name for number, value in field.enum_type.values_by_number.items()}
        return lambda number: names.get(number, number)
    return plain(field.message_type, seen) if field.message_type is not None else None
