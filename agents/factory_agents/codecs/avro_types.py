"""What an Avro schema says in Python's types: the event that may be written, defaults as values, and schemas that can't be trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from datetime import date, datetime, time
from decimal import Decimal
from functools import partial
from typing import Annotated, Any, Literal, Union
from uuid import UUID

import msgspec

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
    "unwritable_field",
    "with_exact_values",
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
_RECORDS = ("record", "error")
_NAMED = (*_RECORDS, "enum", "fixed")
_MOST_OF_NOTHING = 100
_MOST_AGAIN = 1000
"""Types that are made more than once, since they hold themselves."""


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
    elif kind in _RECORDS:
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
    """Raise ValueError for a decimal such as 1e30: fastavro counts its digits, of which it has one, and writes more than its precision."""
    left = [event]
    while left:
        value = left.pop()
        if isinstance(value, Decimal) and (not value.is_finite() or value.as_tuple().exponent > 0):  # type: ignore[operator]
            raise ValueError(f"a decimal is {value}: write out its digits")
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value


def unwritable_field(schema: Any, event: Mapping[str, Any], write: Callable[[Any, dict[str, Any]], None]) -> str:
    """The path of the first field of a record that can't be written alone, such as ``price`` or ``place.at``; "" if each can."""
    named = defined(schema)
    for field in schema["fields"]:
        name, type_ = field["name"], looked_up(field["type"], named)
        if name not in event:
            continue
        try:
            write({**schema, "fields": [field]}, {name: event[name]})
        except Exception:  # whatever a writer says of a value
            inner = kind_of(type_) in _RECORDS and isinstance(event[name], dict)
            within = unwritable_field({"__named_schemas": named, **type_}, event[name], write) if inner else ""
            return f"{name}.{within}" if within else str(name)
    return ""


_TIMES = ("int-time-millis", "long-time-micros")


def with_exact_values(schema: Any) -> Any:
    """A parsed schema to read by, whose decimals have all their digits, and whose times of day are of a day.

    fastavro rounds a decimal of more digits than the schema's precision, without a word, and takes hours for one of megabytes; a negative
    number it reads as another time.
    """
    from fastavro.read import LOGICAL_READERS

    if not any(_logical(part).endswith("-decimal") or _logical(part) in _TIMES for part in _everywhere(schema)):
        return schema
    LOGICAL_READERS["bytes-factory-decimal"] = LOGICAL_READERS["fixed-factory-decimal"] = _exact_decimal
    for name in _TIMES:
        kind, _, logical = name.partition("-")
        LOGICAL_READERS[f"{kind}-factory-{logical}"] = partial(_time_of_day, LOGICAL_READERS[name])
    copy = deepcopy(schema)
    for part in _everywhere(copy):
        if _logical(part).endswith("-decimal"):
            part["logicalType"] = "factory-decimal"
        elif _logical(part) in _TIMES:
            part["logicalType"] = f"factory-{part['logicalType']}"
    return copy


def _exact_decimal(data: bytes, schema: Any, _: Any = None) -> Decimal:
    return Decimal(f"{int.from_bytes(data, 'big', signed=True)}E-{schema.get('scale', 0)}")


def _time_of_day(read: Callable[..., time], data: int, schema: Any, reader_schema: Any = None) -> time:
    if data < 0:
        raise ValueError(f"a time of day of {data}")
    return read(data, schema, reader_schema)


def _everywhere(schema: Any) -> Iterator[Any]:
    return (part for whole in (schema, *defined(schema).values()) for part in _all(whole))


def _all(schema: Any) -> Iterator[Any]:
    yield schema
    for part in _inner(schema):
        yield from _all(part)


def holds_itself(schema: Any) -> bool:
    """Whether values of it may be nested without end."""
    named = defined(schema)
    seen: set[str] = set()

    def visit(part: Any, inside: tuple[str, ...]) -> bool:
        part = looked_up(part, named)
        if kind_of(part) in _RECORDS:
            if part["name"] in inside:
                return True
            if part["name"] in seen:
                return False
            seen.add(part["name"])
            inside = (*inside, part["name"])
        return any(visit(inner, inside) for inner in _inner(part))

    return visit(schema, ())


def refuse_boundless(schema: Any, named: Mapping[str, Any]) -> None:
    """Raise ValueError where few bytes may be billions of values: in arrays, or records in records, of what takes none."""
    types = {**named, **defined(schema)}
    known: dict[str, int] = {}
    for part in (part for whole in (schema, *types.values()) for part in _all(whole)):
        if kind_of(part) == "array" and _values_of_nothing(part["items"], types, known):
            raise ValueError("it has an array of values that take no bytes")
        if kind_of(part) in _RECORDS and sum(_values_of_nothing(inner, types, known) for inner in _inner(part)) > _MOST_OF_NOTHING:
            raise ValueError(f"it has a record of more than {_MOST_OF_NOTHING} values that take no bytes")


def _values_of_nothing(schema: Any, named: Mapping[str, Any], known: dict[str, int]) -> int:
    """How many values one of no bytes is made of; 0 where it takes some. ``known`` are those of records."""
    schema = looked_up(schema, named)
    kind = kind_of(schema)
    if kind not in _RECORDS:
        return int(kind == "null" or (kind == "fixed" and schema["size"] == 0))
    name = schema["name"]
    if name not in known:
        known[name] = 0  # what is within itself takes bytes: something says how deep it goes
        inner = [_values_of_nothing(part, named, known) for part in _inner(schema)]
        known[name] = 1 + sum(inner) if all(inner) else 0
    return known[name]


def with_typed_defaults(schema: Any, named: Mapping[str, Any]) -> Any:
    """The same schema with its fields' defaults as values of their types: in JSON bytes are a text, and times are numbers."""
    types = {**named, **defined(schema)}
    for part in [schema, *types.values()]:
        for record in _all(part):
            if kind_of(record) in _RECORDS and isinstance(record, dict):
                for field in record["fields"]:
                    if "default" in field and not field.get("factory-typed"):
                        field["default"] = _value(field["type"], field["default"], types)
                        field["factory-typed"] = True
    return schema


def _value(schema: Any, default: Any, named: Mapping[str, Any]) -> Any:
    schema = looked_up(schema, named)
    kind = kind_of(schema)
    if kind == "union":
        fitting = [part for part in schema if _fits(looked_up(part, named), default)]
        return _value(fitting[0] if fitting else schema[0], default, named)
    if kind in ("bytes", "fixed") and isinstance(default, str):
        default = default.encode("latin-1")
    if kind == "array":
        return [_value(schema["items"], item, named) for item in default]
    if kind == "map":
        return {key: _value(schema["values"], item, named) for key, item in default.items()}
    if kind in _RECORDS:
        types = {field["name"]: field["type"] for field in schema["fields"]}
        return {name: _value(types[name], item, named) for name, item in default.items()}
    if reader := _logical_reader(_logical(schema)):
        return reader(default, schema, None)
    return default


_JSON_TYPES: Mapping[str, tuple[type, ...]] = {
    "null": (type(None),), "boolean": (bool,), "int": (int,), "long": (int,), "float": (int, float), "double": (int, float),
    "array": (list,), "map": (dict,), "record": (dict,), "error": (dict,),
}  # fmt: skip


def _fits(schema: Any, default: Any) -> bool:
    """Whether a default is of this alternative of a union: since Avro 1.12 it need not be of the first one."""
    kind = kind_of(schema)
    return type(default) in _JSON_TYPES.get(kind, (str,)) and (kind != "enum" or default in schema["symbols"])


def _logical_reader(name: str) -> Any:
    from fastavro.read import LOGICAL_READERS

    return LOGICAL_READERS.get(name)


def refuse_alike(schema: Any) -> None:
    """Raise ValueError for a union of what is the same in an event: what was read as one of them would be written as another."""
    named = defined(schema)
    left = [schema, *named.values()]
    while left:
        part = left.pop()
        left += [inner for inner in _inner(part) if kind_of(inner) in ("union", "array", "map")]
        seen: dict[Any, str] = {}
        for option in (looked_up(option, named) for option in (part if kind_of(part) == "union" else ())):
            looks, name = _looks(option), option["name"] if kind_of(option) in _NAMED else kind_of(option)
            if looks in seen:
                what = f"a union holds {seen[looks]} and {name}, which are the same in an event"
                raise ValueError(f"{what}: it cannot say which of them is meant")
            seen |= {looks: name} if looks is not None else {}


def _looks(schema: Any) -> Any:
    """What tells a value of this schema from others in an event, where that is known: texts are alike, and records of the same fields."""
    kind = kind_of(schema)
    if kind in _RECORDS:
        return frozenset(field["name"] for field in schema["fields"])
    return "text" if kind in ("string", "bytes", "fixed") and not _logical(schema) else None


def event_type(schema: Any) -> Any:
    """The msgspec type of events that may be written by a parsed schema: JSON's texts as times, decimals and bytes, numbers in bounds, and
    no field that it doesn't have. What msgspec can't tell apart, as unions of several texts, is left to fastavro.
    """
    if kind_of(schema) not in _RECORDS:
        raise ValueError("it is no record, expected one")
    return _EventTypes(defined(schema)).of(schema, ())


class _EventTypes:
    """The types of a schema's parts; one that doesn't hold itself is made once, however often it stands there."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        self._named = named
        self._made: dict[str, Any] = {}
        self._turns = 0
        self._left = len(named) + _MOST_AGAIN

    def of(self, schema: Any, inside: tuple[str, ...]) -> Any:
        schema = looked_up(schema, self._named)
        kind = kind_of(schema)
        if logical := _LOGICAL.get(_logical(schema)):
            return logical
        if kind == "union":
            return _union([self.of(part, inside) for part in schema])
        if kind == "array":
            return list[self.of(schema["items"], inside)]  # type: ignore[misc]  # it is made at run time
        if kind == "map":
            return dict[str, self.of(schema["values"], inside)]  # type: ignore[misc]
        if kind == "enum":
            return Literal[tuple(schema["symbols"])]
        if kind == "fixed":
            return bytes
        return self._record(schema, inside) if kind in _RECORDS else _PLAIN.get(kind, Any)

    def _record(self, schema: Any, inside: tuple[str, ...]) -> Any:
        name = schema["name"]
        if name in inside:
            self._turns += 1
            return Any
        if name in self._made:
            return self._made[name]
        self._left -= 1
        if not self._left:
            raise ValueError("its records hold each other in more ways than can be followed")
        turns = self._turns
        made = self._struct(schema, (*inside, name))
        if turns == self._turns:
            self._made[name] = made
        return made

    def _struct(self, schema: Any, inside: tuple[str, ...]) -> Any:
        fields: list[Any] = []
        names: dict[str, str] = {}
        for number, field in enumerate(schema["fields"]):
            own = f"f{number}"
            names[own] = field["name"]
            type_ = self.of(field["type"], inside)
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
