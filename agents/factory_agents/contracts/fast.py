"""The fast path of a contract's checks: events decoded straight into a msgspec type that takes nothing which the schema refuses.

What the type takes is valid; what it doesn't take is decided, and worded, by the JSON Schema's own validator as before. So it may be
narrower than the schema (a field that isn't declared, ``1.0`` for an integer), never wider.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import msgspec

from factory_agents.contracts.expressions import Expression, compile_batch
from factory_agents.contracts.schema import Schema
from factory_agents.contracts.wording import REMARKS, TOP
from factory_agents.digits import only_same

__all__ = ["EventTime", "FastPath", "NotFast", "compile_fast"]

Validator: TypeAlias = Callable[[Any], bool]


class NotFast(Exception):  # noqa: N818  # a reason, not an error
    """Why a schema has no fast path."""


class EventTime(NamedTuple):
    """The field of an event's time: ``read`` gives its microseconds since 1970, which where the time is a number are ``factor`` times
    the number, from ``first`` to ``last``."""

    field: str
    read: Callable[[Any], int | None]
    factor: int = 0
    first: int = 0
    last: int = 0


@dataclass(frozen=True)
class FastPath:
    """``decode``: the event as a struct, or ValidationError where the validator has to decide; ``failing``: the places of the events for
    which rules (or what of the schema the type cannot say, or the time) don't hold or can't be decided; the times of the others are added
    to its second argument; ``names``: the struct's attribute of each field."""

    decode: Callable[[bytes], Any]
    failing: Callable[[Sequence[Any], list[int | None]], list[int]]
    names: Mapping[str, str]


_OBJECT = {"type", "properties", "required", "additionalProperties", *REMARKS}
_MOST_DEPTH = 20
_INT64 = 1 << 63


def compile_fast(
    schema: Schema,
    expressions: Sequence[Expression],
    values: Sequence[str],
    used: Sequence[str],
    members: Mapping[str, Validator],
    time: EventTime | None = None,
) -> FastPath:
    """The fast path of a schema and the rules on top; ``values`` are fields whose values are looked at besides, of ``used`` ones only
    whether they are null. ``members`` are tests of fields (among ``values``) that come on top, too.

    Raises NotFast with the reason where there is none.
    """
    whole = schema.plain
    if not isinstance(whole, dict) or whole.get("type") != "object":
        raise NotFast("the schema isn't of type object alone")
    if unknown := sorted(k for k in whole if k not in TOP and not k.startswith("x-")):
        raise NotFast(f"the schema has {unknown[0]}")
    plain = {name for e in expressions for name, _, _ in e.fields} | set(values)
    known = [*whole.get("required", ()), *sorted(plain), *used, *([] if time is None else [time.field])]
    properties = _with_undeclared(known, whole)
    types = _Types(schema.part)
    checks: list[tuple[str, Validator]] = []
    fields = []
    names = {name: f"f{i}" for i, name in enumerate(properties)}
    read: Callable[[Any], int | None] | int = 0 if time is None else time.read
    for name, part in properties.items():
        type_, check = types.of_field(part, ("properties", name), plain=name in plain)
        if time is not None and name == time.field and (within := _within(part, time)) is not None:
            type_, check, read = within, None, time.factor
        if check is not None:
            checks.append((names[name], check))
        fields.append((names[name], type_) if name in whole.get("required", ()) else (names[name], type_, None))
    checks += [(names[name], contains) for name, contains in members.items()]
    event = types.struct(fields, names)
    try:
        decode = msgspec.json.Decoder(event, float_hook=only_same if types.exact else None, dec_hook=_as_it_is).decode
    except (TypeError, ValueError) as error:
        raise NotFast(str(error).splitlines()[0]) from error
    texts = [name for name in whole.get("required", ()) if _kinds(properties[name]) == frozenset({"string"})]
    timed = None if time is None else (names[time.field], read)
    return FastPath(decode, compile_batch(expressions, names, texts=texts, checks=checks, time=timed), names)


def _within(part: Any, time: EventTime) -> Any:
    """The type of whole numbers that are times, too; None for a field of others."""
    kinds = _kinds(part)
    if kinds is None or kinds - {"null"} != {"integer"} or not part.keys() <= {"type", "minimum", "maximum", *REMARKS} or not time.factor:
        return None
    try:
        bounds = _bounds({key: part[key] for key in ("minimum", "maximum") if key in part})
    except NotFast:
        return None
    least, most = max(time.first, math.ceil(bounds.get("ge", time.first))), min(time.last, math.floor(bounds.get("le", time.last)))
    type_: Any = Annotated[int, msgspec.Meta(ge=least, le=most)]
    return type_ | None if "null" in kinds else type_


class _NoNull(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return value is not None


class _Given(metaclass=_NoNull):
    """Any value but null, with the numbers as the decoder's hook makes them: a type of floats would make them itself."""


def _as_it_is(_: type, value: Any) -> Any:
    return value


class _Types:
    """Types for subschemas; ``part`` gives the validator of what stands at a path of the schema."""

    def __init__(self, part: Callable[[Sequence[str]], Validator]) -> None:
        self._part = part
        self.exact = False
        """Whether numbers of fields of any type must be the same as floats: what checks them would see others."""

    def struct(self, fields: Sequence[Any], names: Mapping[str, str]) -> Any:
        rename = {attribute: name for name, attribute in names.items()}
        ordered = sorted(fields, key=len)  # those without a default first
        try:
            return msgspec.defstruct("Event", ordered, rename=rename, forbid_unknown_fields=True, gc=False, kw_only=True)
        except ValueError as error:  # a name with a quote, a backslash or a control character
            raise NotFast(str(error)) from error

    def of_field(self, part: Any, path: Sequence[str], *, plain: bool) -> tuple[Any, Validator | None]:
        """The type of a field, and what checks its values besides (None itself it doesn't see)."""
        try:
            return self._whole(part, plain, 0), None
        except NotFast:
            check = self._part(path)
        kinds = _kinds(part)
        takes_null = check(None)
        if kinds is None and not takes_null:
            raise NotFast(f"the field {path[-1]!r} takes anything but null")
        if kinds is not None and takes_null != ("null" in kinds):
            raise NotFast(f"the field {path[-1]!r} names null among its types and doesn't take it")
        if kinds is None or kinds & {"number", "array", "object"}:
            self.exact = True
        if kinds is None or "number" not in kinds:
            return (Any if kinds is None else _union(kinds)), check
        return (Any if takes_null else _Given), check

    def _whole(self, part: Any, plain: bool, depth: int) -> Any:
        """A type that says all that a subschema says; NotFast where none does."""
        if part is True:
            return Any
        if not isinstance(part, dict) or depth > _MOST_DEPTH:
            raise NotFast
        said = {key: value for key, value in part.items() if key not in REMARKS and not key.startswith("x-")}
        if not said:
            return Any
        if "enum" in said or "const" in said:
            return _literal(said)
        kinds = _kinds(said)
        if kinds is None:
            raise NotFast
        del said["type"]
        if not said:
            return _union(kinds)
        optional = "null" in kinds
        kind = "".join(kinds - {"null"})
        makers = {"string": _string, "integer": _integer, "number": _number}
        if kind in makers:
            type_ = makers[kind](said)
        elif kind == "array":
            type_ = self._array(said, plain, depth)
        elif kind == "object" and not plain:
            type_ = self._object(said, depth)
        else:
            raise NotFast
        return type_ | None if optional else type_

    def _array(self, said: dict[str, Any], plain: bool, depth: int) -> Any:
        if not said.keys() <= {"items", "minItems", "maxItems"}:
            raise NotFast
        many: Any = list
        items = many[self._whole(said.get("items", True), plain, depth + 1)]
        least, most = _length(said.get("minItems")), _length(said.get("maxItems"))
        return items if least is most is None else Annotated[items, msgspec.Meta(min_length=least, max_length=most)]

    def _object(self, said: dict[str, Any], depth: int) -> Any:
        if not said.keys() <= _OBJECT or not isinstance(said.get("additionalProperties", True), bool):
            raise NotFast
        required = said.get("required", ())
        properties = _with_undeclared(required, said)
        names = {name: f"f{i}" for i, name in enumerate(properties)}
        fields = []
        for name, part in properties.items():
            type_ = self._whole(part, False, depth + 1)
            fields.append((names[name], type_) if name in required else (names[name], type_, None))
        return self.struct(fields, names)


def _with_undeclared(names: Sequence[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """The properties of a schema, and those that it only names elsewhere: any value, unless it forbids what it doesn't declare."""
    declared = schema.get("properties", {})
    if schema.get("additionalProperties", True) is False and not declared.keys() >= set(names):
        raise NotFast("the schema names a field that it forbids")
    return {**dict.fromkeys(names, True), **declared}


_KINDS: dict[str, Any] = {
    "string": str, "integer": int, "number": int | float, "boolean": bool, "null": None, "array": list[Any], "object": dict[str, Any]
}  # fmt: skip


def _kinds(part: Any) -> frozenset[str] | None:
    given = part.get("type") if isinstance(part, dict) else None
    names = [given] if isinstance(given, str) else given
    return frozenset(names) if isinstance(names, list) and names and set(names) <= _KINDS.keys() else None


def _union(kinds: frozenset[str]) -> Any:
    union: Any = None
    for i, kind in enumerate(sorted(kinds, key=list(_KINDS).index)):
        union = _KINDS[kind] if i == 0 else union | _KINDS[kind]
    return union


def _literal(said: dict[str, Any]) -> Any:
    values = said["enum"] if "enum" in said else [said["const"]]
    kinds = _kinds(said)
    if said.keys() - {"enum", "const", "type"} or ("enum" in said and "const" in said) or ("type" in said and kinds is None):
        raise NotFast
    taken = [v for v in values if kinds is None or _json_kind(v) in kinds]
    if not taken or any(type(v) not in (str, int, type(None)) for v in taken) or any(type(v) is int and abs(v) >= _INT64 for v in taken):
        raise NotFast
    return Literal[tuple(taken)]


def _json_kind(value: Any) -> str:
    return {str: "string", int: "integer", type(None): "null"}.get(type(value), "")


def _string(said: dict[str, Any]) -> Any:
    if not said.keys() <= {"minLength", "maxLength"}:
        raise NotFast
    return Annotated[str, msgspec.Meta(min_length=_length(said.get("minLength")), max_length=_length(said.get("maxLength")))]


def _length(value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < _INT64:
        raise NotFast
    return value


_BOUNDS = {"minimum": "ge", "exclusiveMinimum": "gt", "maximum": "le", "exclusiveMaximum": "lt"}


def _bounds(said: dict[str, Any]) -> dict[str, Any]:
    if not said.keys() <= _BOUNDS.keys() or any(type(v) not in (int, float) or abs(v) >= 2**53 for v in said.values()):
        raise NotFast
    if {"minimum", "exclusiveMinimum"} <= said.keys() or {"maximum", "exclusiveMaximum"} <= said.keys():
        raise NotFast
    return {_BOUNDS[name]: value for name, value in said.items()}


def _integer(said: dict[str, Any]) -> Any:
    whole = {"ge": math.ceil, "gt": math.floor, "le": math.floor, "lt": math.ceil}
    bounds: dict[str, Any] = {name: whole[name](value) for name, value in _bounds(said).items()}
    return Annotated[int, msgspec.Meta(**bounds)]


_INSIDE = {"ge": "gt", "le": "lt"}


def _number(said: dict[str, Any]) -> Any:
    """Of a number whose float is the bound itself, the validator knows on which side of it the digits are."""
    bounds = {name if value == 0 else _INSIDE.get(name, name): value for name, value in _bounds(said).items()}
    return _integer(said) | Annotated[float, msgspec.Meta(**bounds)]
