"""Protobuf messages of events: by a plan that is made once for a type, and by Protobuf's own reader where the plan has no answer.

The plan reads JSON straight into what the message's class takes, and takes less than Protobuf's reader (no text for a number, no other
names of fields), never more. The reader, for its part, would guess: of an enum's 1.7 it makes 1, of text that is no base64 other bytes.
That is refused here before it sees them.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, TypeAlias

import msgspec
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError

from factory_agents.codecs.base import from_json
from factory_agents.codecs.protobuf_types import DECIMAL, WRAPPERS, holds, map_parts

__all__ = ["Parser", "parser"]

Parser: TypeAlias = Callable[[bytes], Any]
_Convert: TypeAlias = Callable[[Any], Any]

_MOST_DEPTH = 20
_FLOAT_MAX = float.fromhex("0x1.fffffep+127")
_TYPES: dict[int, Any] = {
    FieldDescriptor.CPPTYPE_INT32: int,
    FieldDescriptor.CPPTYPE_INT64: int,
    FieldDescriptor.CPPTYPE_UINT32: int,
    FieldDescriptor.CPPTYPE_UINT64: int,
    FieldDescriptor.CPPTYPE_DOUBLE: float,
    FieldDescriptor.CPPTYPE_FLOAT: Annotated[float, msgspec.Meta(ge=-_FLOAT_MAX, le=_FLOAT_MAX)],
    FieldDescriptor.CPPTYPE_BOOL: bool,
    FieldDescriptor.CPPTYPE_STRING: str,
    FieldDescriptor.CPPTYPE_ENUM: str | int,
}
"""What JSON holds for a field; whether a number is in range, and a name an enum's, the message itself knows."""
_NUMBERS = list(_TYPES)[:6]
_NUMBER_TEXT = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?|NaN|-?Infinity", re.ASCII)
_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BYTES = (bytes,)


class _NoPlanError(Exception):
    """The plan has no answer for this type, or for this event."""


def parser(class_: type[Any]) -> Parser:
    """What makes messages of events in JSON; it raises ParseError for what none can be made of, and RecursionError."""
    descriptor: Descriptor = class_.DESCRIPTOR
    own, convert, left = _plan(descriptor)
    decode = msgspec.json.Decoder(own).decode
    read = msgspec.json.Decoder(float_hook=_Number).decode if holds(descriptor, _is_decimal) else from_json

    def parse(text: bytes) -> Any:
        try:
            values = msgspec.to_builtins(decode(text), builtin_types=_BYTES)
            if convert is not None:
                values = convert(values)
            if not left:
                return class_(**values)
            rest = {name: values.pop(name) for name in left if name in values}
            message = class_(**values)
            return _read(descriptor, rest, message) if rest else message
        except MemoryError:
            raise
        except Exception:  # whatever it is, Protobuf's reader takes it, or words it
            return _read(descriptor, read(text), class_())

    return parse


# The plan


def _plan(descriptor: Descriptor) -> tuple[Any, _Convert | None, Sequence[str]]:
    """The type of an event, what is still to be converted of its values, and the fields that are left to Protobuf's reader."""
    seen: dict[str, tuple[Any, _Convert | None]] = {}
    found: list[tuple[FieldDescriptor, Any, _Convert | None]] = []
    left: list[str] = []
    for field in descriptor.fields:
        try:
            found.append((field, *_of_field(field, seen, (descriptor.full_name,))))
        except _NoPlanError:
            left.append(field.name)
    return (*_of_fields(descriptor, found, left), left)


def _of_fields(
    descriptor: Descriptor, fields: Sequence[tuple[FieldDescriptor, Any, _Convert | None]], left: Sequence[str] = ()
) -> tuple[Any, _Convert | None]:
    """A type with these fields (null is as good as none) and those that are ``left`` (null may mean something)."""
    given: list[tuple[str, Any, Any]] = [(field.name, type_ | None, None) for field, type_, _ in fields]
    given += [(name, Any, msgspec.UNSET) for name in left]
    attributes = [(f"f{i}", type_, default) for i, (_, type_, default) in enumerate(given)]
    rename = {f"f{i}": name for i, (name, _, _) in enumerate(given)}
    own = msgspec.defstruct("Message", attributes, rename=rename, omit_defaults=True, forbid_unknown_fields=True, gc=False)
    converts = [(field.name, of) for field, _, of in fields if of is not None]
    unions = [frozenset(f.name for f in union.fields) for union in descriptor.oneofs if len(union.fields) > 1]
    if not converts and not unions:
        return own, None

    def convert(values: dict[str, Any]) -> dict[str, Any]:
        for union in unions:
            if len(union & values.keys()) > 1:
                raise _NoPlanError
        for name, of in converts:
            if name in values:
                values[name] = of(values[name])
        return values

    return own, convert


def _of_field(field: FieldDescriptor, seen: dict[str, tuple[Any, _Convert | None]], within: tuple[str, ...]) -> tuple[Any, _Convert | None]:
    many: Any = dict
    if parts := map_parts(field):
        key, value = parts
        if key.type == FieldDescriptor.TYPE_BOOL:
            raise _NoPlanError
        type_, of = _of_one(value, seen, within)
        return many[_TYPES[key.cpp_type], type_], None if of is None else _of_values(of)
    type_, of = _of_one(field, seen, within)
    if field.is_repeated:
        many = list
        return many[type_], None if of is None else lambda values: list(map(of, values))
    return type_, of


def _of_one(field: FieldDescriptor, seen: dict[str, tuple[Any, _Convert | None]], within: tuple[str, ...]) -> tuple[Any, _Convert | None]:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return bytes, None
    if field.enum_type is not None and field.enum_type.full_name == "google.protobuf.NullValue":
        raise _NoPlanError
    if field.message_type is None:
        return _TYPES[field.cpp_type], None
    name = field.message_type.full_name
    if name == "google.protobuf.Timestamp":
        return str, _timestamp
    if name == DECIMAL:
        return Decimal, lambda text: _unscaled(Decimal(text))
    if name in WRAPPERS:
        return _of_one(field.message_type.fields_by_name["value"], seen, within)[0], _wrapped
    if name.startswith("google.protobuf.") or name in within or len(within) > _MOST_DEPTH or field.type == FieldDescriptor.TYPE_GROUP:
        raise _NoPlanError
    if name not in seen:
        inner = (*within, name)
        seen[name] = _of_fields(field.message_type, [(f, *_of_field(f, seen, inner)) for f in field.message_type.fields])
    return seen[name]


def _of_values(of: _Convert) -> _Convert:
    return lambda values: {key: of(value) for key, value in values.items()}


def _wrapped(value: Any) -> dict[str, Any]:
    return {"value": value}


def _timestamp(text: str) -> dict[str, int]:
    found = _TIMESTAMP.fullmatch(text)
    if found is None:
        raise _NoPlanError
    since = datetime.fromisoformat(found[1] + "+00:00") - _EPOCH
    return {"seconds": since.days * 86_400 + since.seconds, "nanos": int((found[2] or "").ljust(9, "0"))}


# Decimals


class _Number(float):
    """A float that knows the digits that it was written with."""

    def __init__(self, text: str) -> None:
        if math.isinf(self):
            raise ValueError("a number is too large")
        self.text = text


def _is_decimal(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.full_name == DECIMAL


def _unscaled(number: Decimal) -> dict[str, Any]:
    """The fields of the message that a decimal is. Raises ValueError for what is no number."""
    sign, digits, exponent = number.as_tuple()
    if not isinstance(exponent, int):
        raise ValueError
    unscaled = int("".join(map(str, digits))) * (-1 if sign else 1)
    size = (unscaled if unscaled >= 0 else ~unscaled).bit_length() // 8 + 1
    return {"value": unscaled.to_bytes(size, "big", signed=True), "precision": len(digits), "scale": -exponent}


# Before Protobuf's own reader


def _read(descriptor: Descriptor, event: Any, message: Any) -> Any:
    _prepare(descriptor, event)
    return ParseDict(event, message)


def _prepare(descriptor: Descriptor, event: Any) -> None:
    """Make an event one for the reader: messages of its decimals. Raises ParseError for values that the reader would make others of."""
    if not isinstance(event, dict):
        raise ParseError(f"expected an object, got {str(event)[:60]!r}")
    known = {field.json_name: field for field in descriptor.fields} | dict(descriptor.fields_by_name)
    given: dict[str, str] = {}
    for name, value in event.items():
        field = known.get(name)
        if field is None or value is None:
            continue
        if field.name in given:
            raise ParseError(f"Failed to parse {name} field: it is given twice, as {given[field.name]} and as {name}")
        given[field.name] = name
        holder, places = event, [name]
        if parts := map_parts(field):
            field, holder, places = parts[1], value, list(value) if isinstance(value, dict) else []
        elif field.is_repeated:
            holder, places = value, list(range(len(value))) if isinstance(value, list) else []
        for place in places:
            if _is_decimal(field) and not isinstance(holder[place], dict):
                holder[place] = _decimal(name, holder[place])
            elif why := _guessed(field, holder[place]):
                raise ParseError(f"Failed to parse {name} field: {why}")


def _decimal(name: str, value: Any) -> Any:
    """The message, as JSON has it, that a number or its text is; what is neither goes on to the reader."""
    if type(value) not in (int, str, _Number):
        return value
    text = value.text if type(value) is _Number else str(value)
    try:
        fields = _unscaled(Decimal(text))
    except (InvalidOperation, ValueError):
        raise ParseError(f"Failed to parse {name} field: expected a number, got {text[:60]!r}") from None
    return fields | {"value": base64.b64encode(fields["value"]).decode()}


def _guessed(field: FieldDescriptor, value: Any) -> str:
    """What is wrong with a value that the reader would take for another, if anything is."""
    if field.message_type is not None and field.message_type.full_name in WRAPPERS:
        field = field.message_type.fields_by_name["value"]
    if field.message_type is not None:
        if not field.message_type.full_name.startswith("google.protobuf."):
            if not isinstance(value, dict):  # of an empty list, or text, the reader makes an empty message
                return f"expected an object, got {str(value)[:60]!r}"
            _prepare(field.message_type, value)
    elif field.type == FieldDescriptor.TYPE_BYTES:
        return "" if not isinstance(value, str) or _is_base64(value) else f"expected base64, got {value[:60]!r}"
    elif field.enum_type is not None:
        if not ((type(value) is str and (value in field.enum_type.values_by_name or _NUMBER_TEXT.fullmatch(value))) or type(value) is int):
            return f"Invalid enum value {str(value)[:60]} for enum type {field.enum_type.full_name}"
    elif field.cpp_type in _NUMBERS and isinstance(value, str) and not _NUMBER_TEXT.fullmatch(value):
        return f"expected a number, got {value[:60]!r}"
    return ""


def _is_base64(text: str) -> bool:
    """In either alphabet, with or without what fills up the last four characters."""
    digits = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except ValueError:
        return False
    return True
