"""Compiled Protobuf schemas: the messages in them, and what makes plain events of messages and messages of events."""

from __future__ import annotations

import ast
import base64
import binascii
import importlib
import keyword
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, TypeAlias

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError

__all__ = [
    "DECIMAL",
    "WRAPPERS",
    "File",
    "compiled",
    "holds",
    "is_float",
    "is_required",
    "map_parts",
    "message_class",
    "message_name",
    "message_path",
    "plain",
]

File: TypeAlias = "descriptor_pb2.FileDescriptorProto"
_Plain: TypeAlias = Callable[[Any], Any]

_KNOWN = ("google/", "confluent/")
"""Where the files lie that every registry knows without a reference; confluent's are in its client."""
_AS_JSON = ("google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue", "google.protobuf.Any")
_AS_TEXT = ("google.protobuf.Duration", "google.protobuf.FieldMask")
WRAPPERS = frozenset(
    f"google.protobuf.{kind}Value" for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
DECIMAL = "confluent.type.Decimal"
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # it is written without a zone


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
    own = _of_known(descriptor)
    if own is not None:
        seen[descriptor.full_name] = own
        return own
    converts: list[_Plain] = []

    def until_made(message: Any) -> Any:  # for a message that holds itself
        return converts[0](message)

    seen[descriptor.full_name] = until_made
    converts.append(_reader([(field.name, field.has_presence, _of_field(field, seen)) for field in descriptor.fields]))
    seen[descriptor.full_name] = converts[0]
    return converts[0]


def _reader(fields: Sequence[tuple[str, bool, _Plain | None]]) -> _Plain:
    """What makes a dict of a message: one expression, compiled, which names each field. ``fields``: name, may be unset, converted by."""
    given: dict[str, Any] = {}
    message, null = ast.Name("message", ast.Load()), ast.Constant(None)
    values: list[ast.expr] = []
    for i, (name, told_apart, of) in enumerate(fields):
        value: ast.expr
        if name.isidentifier() and not keyword.iskeyword(name):
            value = ast.Attribute(message, name, ast.Load())
        else:
            value = ast.Call(ast.Name("getattr", ast.Load()), [message, ast.Constant(name)], [])
        if of is not None:
            given[f"of_{i}"] = of
            value = ast.Call(ast.Name(f"of_{i}", ast.Load()), [value], [])
        if told_apart:
            is_set = ast.Call(ast.Attribute(message, "HasField", ast.Load()), [ast.Constant(name)], [])
            value = ast.IfExp(is_set, value, null)
        values.append(value)
    event = ast.Dict([ast.Constant(name) for name, _, _ in fields], values)
    arguments = ast.arguments(posonlyargs=[], args=[ast.arg("message")], kwonlyargs=[], kw_defaults=[], defaults=[])
    tree = ast.fix_missing_locations(ast.Expression(ast.Lambda(arguments, event)))
    read: _Plain = eval(compile(tree, "<message>", "eval"), given)  # of names that Protobuf has checked, never of text
    return read


def _of_known(descriptor: Descriptor) -> _Plain | None:
    name = descriptor.full_name
    if name == "google.protobuf.Timestamp":
        return _time
    if name in _AS_TEXT:
        return lambda message: message.ToJsonString()
    if name in WRAPPERS:
        return lambda message: message.value
    if name in _AS_JSON:
        return lambda message: MessageToDict(message, preserving_proto_field_name=True)
    return _decimal if name == DECIMAL else None


def _decimal(message: Any) -> Decimal:
    """The number with all its digits; arithmetic would round it to those of a context."""
    return Decimal(f"{int.from_bytes(message.value, 'big', signed=True)}E{-message.scale}")


def _time(message: Any) -> str:
    """As its own ``ToJsonString``, which takes some times as long."""
    seconds, nanos = message.seconds, message.nanos
    try:
        text = (_EPOCH + timedelta(seconds=seconds)).isoformat()
    except OverflowError:
        seconds = None
    if seconds is None or not 0 <= nanos < 1_000_000_000:
        return str(message.ToJsonString())  # which says what is wrong
    if nanos == 0:
        return text + "Z"
    digits = f"{nanos:09}"
    return f"{text}.{digits[:3] if nanos % 1_000_000 == 0 else digits[:6] if nanos % 1_000 == 0 else digits}Z"


def _of_field(field: FieldDescriptor, seen: dict[str, _Plain]) -> _Plain | None:
    """What makes plain data of a field's values; None where they are plain."""
    if parts := map_parts(field):
        of = _of_one(parts[1], seen)
        key: _Plain = _bool_key if parts[0].type == FieldDescriptor.TYPE_BOOL else str
        return (
            (lambda values: {key(k): v for k, v in values.items()})
            if of is None
            else lambda values: {key(k): of(v) for k, v in values.items()}
        )
    of_one = _of_one(field, seen)
    if field.is_repeated:
        return list if of_one is None else lambda values: list(map(of_one, values))
    return of_one


def map_parts(field: FieldDescriptor) -> tuple[FieldDescriptor, FieldDescriptor] | None:
    """The key and the value of a field that is a map."""
    entry = field.message_type
    if entry is None or not entry.GetOptions().map_entry:
        return None
    return entry.fields_by_name["key"], entry.fields_by_name["value"]


def holds(descriptor: Descriptor, what: Callable[[FieldDescriptor], bool]) -> bool:
    """Whether a field of such a message, or of one within it, is ``what``."""
    seen, left = {descriptor.full_name}, [descriptor]
    while left:
        for field in left.pop().fields:
            if what(field):
                return True
            if field.message_type is not None and field.message_type.full_name not in seen:
                seen.add(field.message_type.full_name)
                left.append(field.message_type)
    return False


def is_required(field: FieldDescriptor) -> bool:
    """Whether a message without it is none."""
    return field.is_required


def is_float(field: FieldDescriptor) -> bool:
    """Whether its values may be no number, or infinite."""
    return field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)


def _bool_key(key: bool) -> str:
    return "true" if key else "false"


def _of_one(field: FieldDescriptor, seen: dict[str, _Plain]) -> _Plain | None:
    if field.enum_type is not None:
        names = {number: value.name for number, value in field.enum_type.values_by_number.items()}
        return lambda number: names.get(number, number)
    return plain(field.message_type, seen) if field.message_type is not None else None
