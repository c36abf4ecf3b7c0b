"""What an Avro schema says in Python's types: the event that may be written, defaults as values, and schemas that can't be trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Annotated, Any, Literal, Union
from uuid import UUID

import msgspec

from factory_agents.reject import Reject

__all__ = [
    "BUILTIN",
    "defined",
    "event_type",
    "float_fields",
    "has_decimals",
    "holds_itself",
    "kind_of",
    "looked_up",
    "refuse_boundless",
    "refuse_exponents",
    "with_typed_defaults",
]

BUILTIN = (bytes, date, datetime, time, Decimal, UUID)
"""Types that fastavro takes as they are."""

_INT = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
_LONG = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_PLAIN: Mapping[str, Any] = {
    "null": None, "boolean": bool, "int": _INT, "long": _LONG, "float": float, "double": float, "bytes": bytes, "string": str,
}  # fmt: skip
_AWARE, _NAIVE = Annotated[datetime, msgspec.Meta(tz=True)], Annotated[datetime, msgspec.Meta(tz=False)]
_LOGICAL: Mapping[str, Any] = {
    "int-date": date,
    "int-time-millis": time,
    "long-time-micros": time,
    "long-timestamp-millis": _AWARE,
    "long-timestamp-micros": _AWARE,
    "long-local-timestamp-millis": _NAIVE,
    "long-local-timestamp-micros": _NAIVE,
    "bytes-decimal": Decimal,
    "fixed-decimal": Decimal,
    "string-uuid": UUID,
    "fixed-uuid": UUID,
}
_FLOATS = ("float", "double")
_NAMED = ("record", "error", "enum", "fixed")


def _logical(schema: Any) -> str:
    return f"{schema['type']}-{schema['logicalType']}" if isinstance(schema, dict) and schema.get("logicalType") else ""


def kind_of(schema: Any) -> str:
    """``union``, a primitive's name, ``record`` and so on, or the name of a type that is defined elsewhere."""
    if isinstance(schema, list):
        return "union"
    return str(schema["type"] if isinstance(schema, dict) else schema)


def _inner(schema: Any) -> Iterator[Any]:
    """The schemas in a schema."""
    kind = kind_of(schema)
    if kind == "union":
        yield from schema
    elif kind in ("record", "error"):
        yield from (field["type"] for field in schema["fields"])
    elif kind == "array":
        yield schema["items"]
    elif kind == "map":
        yield schema["values"]


def defined(schema: Any) -> dict[str, Any]:
    """The named types that a parsed schema uses, its own and those of schemas that it refers to, by name."""
    found: dict[str, Any] = {}
    left = [schema, *(schema.get("__named_schemas", {}).values() if isinstance(schema, dict) else ())]
    while left:
        part = left.pop()
        if isinstance(part, dict) and part.get("type") in _NAMED:
            if part["name"] in found:
                continue
            found[part["name"]] = part
        left += _inner(part)
    return found


def looked_up(schema: Any, named: Mapping[str, Any]) -> Any:
    """The type itself where a schema names one that is defined elsewhere."""
    return named.get(schema, schema) if isinstance(schema, str) else schema


def float_fields(schema: Any) -> tuple[str, ...] | None:
    """The fields of a record that are floats; None where there are floats deeper in it."""
    own = {field["name"]: field["type"] if isinstance(field["type"], list) else [field["type"]] for field in schema["fields"]}
    inner = [part for parts in own.values() for part in parts if kind_of(part) not in _FLOATS]
    others = [type_ for name, type_ in defined(schema).items() if name != schema["name"]]
    if any(kind_of(part) in _FLOATS for whole in (*inner, *others) for part in _all(whole)):
        return None
    return tuple(name for name, parts in own.items() if any(kind_of(part) in _FLOATS for part in parts))


def has_decimals(schema: Any) -> bool:
    """Whether a value of it may hold a decimal."""
    return any(_logical(part).endswith("-decimal") for part in _everywhere(schema))


def refuse_exponents(event: Any) -> None:
    """Raise Reject for a decimal such as 1e30: fastavro counts its digits, of which it has one, and writes more than its precision."""
    left = [event]
    while left:
        value = left.pop()
        if isinstance(value, Decimal) and (not value.is_finite() or value.as_tuple().exponent > 0):  # type: ignore[operator]
            raise Reject(f"a decimal is {value}: write out its digits", rule="encode")
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value


def _everywhere(schema: Any) -> Iterator[Any]:
    return (part for whole in (schema, *defined(schema).values()) for part in _all(whole))


def _all(schema: Any) -> Iterator[Any]:
    yield schema
    for part in _inner(schema):
        yield from _all(part)


def holds_itself(schema: Any, named: Mapping[str, Any] | None = None, inside: tuple[str, ...] = ()) -> bool:
    """Whether values of it may be nested without end."""
    named = named if named is not None else defined(schema)
    schema = looked_up(schema, named)
    if isinstance(schema, dict) and schema.get("type") in ("record", "error"):
        if schema["name"] in inside:
            return True
        inside = (*inside, schema["name"])
    return any(holds_itself(part, named, inside) for part in _inner(schema))


def refuse_boundless(schema: Any, named: Mapping[str, Any]) -> None:
    """Raise ValueError for an array of what takes no bytes: a few bytes of it may say that there are billions."""
    types = {**named, **defined(schema)}
    for part in _all(schema):
        if kind_of(part) == "array" and _is_empty(part["items"], types):
            raise ValueError("it has an array of values that take no bytes")


def _is_empty(schema: Any, named: Mapping[str, Any], inside: tuple[str, ...] = ()) -> bool:
    schema = looked_up(schema, named)
    kind = kind_of(schema)
    if kind in ("record", "error"):
        return schema["name"] not in inside and all(_is_empty(part, named, (*inside, schema["name"])) for part in _inner(schema))
    return kind == "null" or (kind == "fixed" and schema["size"] == 0)


def with_typed_defaults(schema: Any, named: Mapping[str, Any]) -> Any:
    """The same schema with its fields' defaults as values of their types: in JSON bytes are a text, and times are numbers."""
    types = {**named, **defined(schema)}
    for part in [schema, *types.values()]:
        for record in _all(part):
            if kind_of(record) in ("record", "error") and isinstance(record, dict):
                for field in record["fields"]:
                    if "default" in field and not field.get("factory-typed"):
                        field["default"] = _value(field["type"], field["default"], types)
                        field["factory-typed"] = True
    return schema


def _value(schema: Any, default: Any, named: Mapping[str, Any]) -> Any:
    schema = looked_up(schema, named)
    kind = kind_of(schema)
    if kind == "union":
        return _value(schema[0], default, named)
    if kind in ("bytes", "fixed") and isinstance(default, str):
        default = default.encode("latin-1")
    if kind == "array":
        return [_value(schema["items"], item, named) for item in default]
    if kind == "map":
        return {key: _value(schema["values"], item, named) for key, item in default.items()}
    if kind in ("record", "error"):
        types = {field["name"]: field["type"] for field in schema["fields"]}
        return {name: _value(types[name], item, named) for name, item in default.items()}
    if reader := _logical_reader(_logical(schema)):
        return reader(default, schema, None)
    return default


def _logical_reader(name: str) -> Any:
    from fastavro.read import LOGICAL_READERS

    return LOGICAL_READERS.get(name)


def event_type(schema: Any) -> Any:
    """The msgspec type of events that may be written by a parsed schema: JSON's texts as times, decimals and bytes, numbers in bounds, and
    no field that it doesn't have. What msgspec can't tell apart, as unions of several texts, is left to fastavro.
    """
    named = defined(schema)
    if kind_of(schema) not in ("record", "error"):
        raise ValueError("it is no record")
    return _type(schema, named, ())


def _type(schema: Any, named: Mapping[str, Any], inside: tuple[str, ...]) -> Any:
    schema = looked_up(schema, named)
    kind = kind_of(schema)
    if logical := _LOGICAL.get(_logical(schema)):
        return logical
    if kind == "union":
        return _union([_type(part, named, inside) for part in schema])
    if kind == "array":
        return list[_type(schema["items"], named, inside)]  # type: ignore[misc]  # it is made at run time
    if kind == "map":
        return dict[str, _type(schema["values"], named, inside)]  # type: ignore[misc]
    if kind == "enum":
        return Literal[tuple(schema["symbols"])]
    if kind == "fixed":
        return bytes
    if kind in ("record", "error"):
        return Any if schema["name"] in inside else _record(schema, named, (*inside, schema["name"]))
    return _PLAIN.get(kind, Any)


def _record(schema: Any, named: Mapping[str, Any], inside: tuple[str, ...]) -> Any:
    fields: list[Any] = []
    names: dict[str, str] = {}
    for number, field in enumerate(schema["fields"]):
        own = f"f{number}"
        names[own] = field["name"]
        type_ = _type(field["type"], named, inside)
        fields.append((own, _union([type_, msgspec.UnsetType]), msgspec.UNSET) if "default" in field else (own, type_))
    return msgspec.defstruct(
        schema["name"].rpartition(".")[2], fields, rename=names, forbid_unknown_fields=True, omit_defaults=False, kw_only=True, gc=False
    )


def _union(types: list[Any]) -> Any:
    """The union, as far as msgspec knows one alternative from another; else anything."""
    union: Any = Union[tuple(types)]  # noqa: UP007  # of types that are known at run time
    try:
        msgspec.json.Decoder(union)
    except TypeError:
        return Any
    return union
