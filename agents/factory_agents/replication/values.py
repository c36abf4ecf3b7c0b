"""PostgreSQL's values as text into what JSON says them with."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring as quoted  # a text as JSON, without ASCII's detours; four times as fast as through an encoder
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

if TYPE_CHECKING:
    import psycopg

__all__ = ["SETTINGS", "Convert", "converters", "json_writer", "known", "quoted"]

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


def known(type_: int) -> bool:
    """Whether a type is one of the server's own, of which nothing has to be asked."""
    return type_ < _FIRST_OWN


def converters(types: Mapping[int, tuple[str, str, int, int]], wanted: list[int]) -> list[Convert | None]:
    """What each type's texts go through; None for those that stay text.

    ``types`` tells of a database's own types: typtype, typcategory, base type and element type.
    """
    return [_converter(types, type_) for type_ in wanted]


def _converter(types: Mapping[int, tuple[str, str, int, int]], type_: int) -> Convert | None:
    if type_ in _KNOWN:
        return _KNOWN[type_]
    if type_ in _ARRAYS:
        return _array(_KNOWN.get(_ARRAYS[type_]))
    kind, category, base, element = types.get(type_, ("", "", 0, 0))
    if kind == _DOMAIN:
        return _converter(types, base)
    if category == _ARRAY and element:
        return _array(_converter(types, element))
    return None


def own_types(connection: psycopg.Connection[Any], wanted: set[int]) -> dict[int, tuple[str, str, int, int]]:
    """What ``converters`` has to know of types that a database's users made, and of those that they are made of."""
    found: dict[int, tuple[str, str, int, int]] = {}
    while wanted:
        rows = connection.execute(
            "SELECT oid::bigint, typtype::text, typcategory::text, typbasetype::bigint, typelem::bigint FROM pg_catalog.pg_type"
            " WHERE oid = ANY (%s::oid[])",
            [list(wanted)],
        ).fetchall()
        found.update((oid, (kind, category, base, element)) for oid, kind, category, base, element in rows)
        wanted = {part for *_, base, element in rows for part in (base, element) if part and not known(part) and part not in found}
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
