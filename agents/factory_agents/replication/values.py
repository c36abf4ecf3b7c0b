"""PostgreSQL's values as text into what JSON says them with."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from json.encoder import encode_basestring as quoted  # a text as JSON, without ASCII's detours; four times as fast as through an encoder
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec

from factory_agents.replication.pgoutput import Column

if TYPE_CHECKING:
    import psycopg

__all__ = ["SETTINGS", "Convert", "OwnType", "converters", "json_writer", "known", "own_types", "quoted"]

Convert: TypeAlias = "Callable[[str], Any]"
"""From a value's text to a value that msgspec encodes."""

SETTINGS: Mapping[str, str] = {
    "datestyle": "ISO",
    "intervalstyle": "iso_8601",
    "timezone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "client_encoding": "UTF8",
}
"""What a session must say for its texts to be read here."""

_DOMAIN, _ARRAY = "d", "A"


def _number(text: str) -> Any:
    number = float(text)
    return number if math.isfinite(number) else text


def _boolean(text: str) -> bool:
    return text == "t"


def _bytes(text: str) -> str:
    return base64.b64encode(bytes.fromhex(text[2:])).decode()


def _moment(text: str) -> str:
    """``2026-11-01 04:00:00.5+00`` as ``2026-11-01T04:00:00.5Z``; what JSON's readers don't know (infinity, BC) stays as it is."""
    if text[10:11] != " " or text.endswith("BC"):
        return text
    return f"{text[:10]}T{text[11:].removesuffix('+00')}Z"


def _json(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode())


_encode = msgspec.json.Encoder().encode


def json_writer(convert: Convert | None) -> Callable[[str], str] | None:
    """What makes JSON of a text that this converts; None where the text is JSON already."""
    if convert is None:
        return quoted
    if convert in (int, _json):
        return None
    return lambda text: _encode(convert(text)).decode()


_KNOWN: dict[int, Convert] = {
    16: _boolean,
    17: _bytes,
    20: int,
    21: int,
    23: int,
    26: int,
    700: _number,
    701: _number,
    114: _json,
    3802: _json,
    1114: _moment,
    1184: _moment,
}
_ARRAYS = {
    1000: 16, 1001: 17, 1016: 20, 1005: 21, 1007: 23, 1028: 26, 1021: 700, 1022: 701, 199: 114, 3807: 3802, 1115: 1114, 1185: 1184,
    1009: 25, 1015: 1043, 1014: 1042, 1002: 18, 1003: 19, 1231: 1700, 1182: 1082, 1183: 1083, 1270: 1266, 1187: 1186, 2951: 2950,
}  # fmt: skip
_FIRST_OWN = 16384
"""Types that a database's users made have numbers from here on."""


class OwnType(NamedTuple):
    """A type that a database's users made, as ``pg_type`` has it: typtype, typcategory, typbasetype, typelem and typtypmod."""

    kind: str
    category: str
    base: int
    element: int
    modifier: int


def known(type_: int) -> bool:
    """Whether a type is one of the server's own, of which nothing has to be asked."""
    return type_ < _FIRST_OWN


def converters(types: Mapping[int, OwnType], columns: Sequence[Column], key: Collection[str]) -> list[Convert | None]:
    """What each column's texts go through; None for those that stay text. Equal values of the key's columns become the same.

    ``types`` tells of a database's own types.
    """
    return [_in_key(types, c.type, c.modifier) if c.name in key else _converter(types, c.type) for c in columns]


def _converter(types: Mapping[int, OwnType], type_: int) -> Convert | None:
    if type_ in _KNOWN:
        return _KNOWN[type_]
    if type_ in _ARRAYS:
        return _array(_KNOWN.get(_ARRAYS[type_]))
    own = types.get(type_)
    if own is not None and own.kind == _DOMAIN:
        return _converter(types, own.base)
    if own is not None and own.category == _ARRAY and own.element:
        return _array(_converter(types, own.element))
    return None


def _in_key(types: Mapping[int, OwnType], type_: int, modifier: int) -> Convert | None:
    own = types.get(type_)
    if own is not None and own.kind == _DOMAIN:
        return _in_key(types, own.base, modifier if modifier >= 0 else own.modifier)
    return _ONE_FORM.get((type_, modifier)) or _converter(types, type_)


def _without_zeros(text: str) -> str:
    """1.50 as 1.5, and 1.00 as 1."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def _without_sign(text: str) -> Any:
    number = _number(text)
    return number or 0.0


_ONE_FORM: Mapping[tuple[int, int], Convert] = {
    (1700, -1): _without_zeros,
    (1042, -1): lambda text: text.rstrip(" "),
    (700, -1): _without_sign,
    (701, -1): _without_sign,
}
"""What writes equal values in several ways: numeric without a scale, bpchar without a length, zero with a sign."""


def own_types(connection: psycopg.Connection[Any], wanted: set[int]) -> dict[int, OwnType]:
    """What ``converters`` has to know of types that a database's users made, and of those that they are made of."""
    found: dict[int, OwnType] = {}
    while wanted:
        rows = connection.execute(
            "SELECT oid::bigint, typtype::text, typcategory::text, typbasetype::bigint, typelem::bigint, typtypmod FROM pg_catalog.pg_type"
            " WHERE oid = ANY (%s::oid[])",
            [list(wanted)],
        ).fetchall()
        made = {oid: OwnType(*of) for oid, *of in rows}
        found.update(made)
        wanted = {part for own in made.values() for part in (own.base, own.element) if part and not known(part) and part not in found}
    return found


def _array(convert: Convert | None) -> Convert:
    """``{1,NULL,"a b",{…}}`` as a list of lists."""

    def read(text: str) -> Any:
        if text.startswith("["):  # its bounds, where they don't begin at 1
            text = text[text.index("=") + 1 :]
        return _items(text, convert)

    return read


def _items(text: str, convert: Convert | None) -> list[Any]:
    stack: list[list[Any]] = [[]]
    at, end = 0, len(text)
    while at < end:
        char = text[at]
        if char == "{":
            stack.append([])
            at += 1
        elif char == "}":
            done = stack.pop()
            stack[-1].append(done)
            at += 1
        elif char == ",":
            at += 1
        else:
            item, quoted, at = _quoted(text, at + 1) if char == '"' else _bare(text, at)
            null = item == "NULL" and not quoted
            stack[-1].append(None if null else convert(item) if convert is not None else item)
    items: list[Any] = stack[0][0]
    return items


def _quoted(text: str, at: int) -> tuple[str, bool, int]:
    parts = []
    while (char := text[at]) != '"':
        if char == "\\":
            at += 1
            char = text[at]
        parts.append(char)
        at += 1
    return "".join(parts), True, at + 1


def _bare(text: str, at: int) -> tuple[str, bool, int]:
    start = at
    while text[at] not in ",}":
        at += 1
    return text[start:at], False, at
