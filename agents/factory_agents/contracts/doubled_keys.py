"""Finds a key that stands twice in an object of a JSON text, which decoders pass over: the last value wins."""

from __future__ import annotations

import json
from typing import Any

import msgspec

__all__ = ["doubled_key"]

_SPACE = b" \t\n\r"
_decode = msgspec.json.Decoder().decode


class _DoubledError(Exception):
    """The key that stands twice."""


def doubled_key(text: bytes) -> str | None:
    """A key that stands twice in one object of the text, at any depth; None where there is none, or the text is no JSON.

    Texts with as many ``":`` as the decoded value has keys have none, which tells most of them quickly.
    """
    try:
        value = _decode(text)
    except (ValueError, RecursionError):
        return None
    colons = text.translate(None, _SPACE).count(b'":')  # no fewer than there are keys
    if type(value) is dict and (colons == len(value) or colons == _keys(value)):
        return None
    try:
        _slow_decode(text.decode())
    except _DoubledError as error:
        return str(error)
    except RecursionError:  # a level or two deeper than this reader goes
        return "…"
    return None


def _keys(value: dict[str, Any]) -> int:
    """The keys of an object and of all in it."""
    found, todo = 0, [value]
    while todo:
        part: Any = todo.pop()
        if type(part) is dict:
            found += len(part)
            part = part.values()
        todo += [inner for inner in part if type(inner) in (dict, list)]
    return found


def _object(pairs: list[tuple[str, Any]]) -> None:
    names = {name for name, _ in pairs}
    if len(names) < len(pairs):
        for name, _ in pairs:
            if name not in names:
                raise _DoubledError(name)
            names.remove(name)


_slow_decode = json.JSONDecoder(object_pairs_hook=_object, parse_int=len, parse_float=len).decode
