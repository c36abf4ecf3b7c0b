"""Words of messages: text from elsewhere as a terminal or a log may show it, the name that was likely meant, times such as ``45 d``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = ["count", "did_you_mean", "not_json", "one_of", "printable", "seconds_of", "shortened", "unknown"]

_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_ESCAPES = {n: f"\\u{n:04x}" for n in [*_CONTROLS, *range(0xD800, 0xE000)]} | {9: "\\t", 10: "\\n", 13: "\\r"}
_ESCAPES_IN_LINES = {n: escape for n, escape in _ESCAPES.items() if n != ord("\n")}


def printable(text: str, *, lines: bool = False) -> str:
    r"""A text without what ends a line, moves a cursor or turns the direction of writing: those characters are shown (``\n``, ``\u001b``).

    With ``lines`` the ends of lines stay.
    """
    return text if text.isprintable() else text.translate(_ESCAPES_IN_LINES if lines else _ESCAPES)


_ESCAPE = re.compile(rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL)


def not_json(value: object, error: Exception) -> str:
    """Why bytes are no JSON, by what their decoder raised: of half a character, it says something else each time."""
    if isinstance(value, bytes):
        for found in _ESCAPE.finditer(value):
            if half := found[1]:
                return f"half a character (\\{half.decode()}), which no text can hold"
    return str(error)


def count(n: int, noun: str, one: str = "", more: str = "") -> str:
    """``1 window``, ``1,234 windows``; with a verb for one and for more: ``1 event waits``."""
    verb = one if n == 1 else more
    return f"{n:,} {noun}{'' if n == 1 else 's'}{verb and f' {verb}'}"


def shortened(text: str, length: int) -> str:
    """A text of at most so many characters; one that was cut ends with ``…``."""
    return text if len(text) <= length else text[: length - 1] + "…"


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``"; did you mean 'x'?"`` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def one_of(word: str, known: Iterable[str]) -> str:
    """The nearest known word, or else all of them, as the end of a message."""
    known = list(known)
    return did_you_mean(word, known) or f"; expected one of: {', '.join(known) or '(there are none)'}"


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """``unknown parameter 'tabel'; did you mean 'table'?``: the one wording for a key that nothing declares."""
    return f"unknown {what} {name!r}{one_of(name, known)}"


def seconds_of(text: str) -> float | None:
    """A length of time above zero, such as ``45 d``, ``36 h`` or ``90 s``; None for any other text."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|d|w)\s*", text)
    return (float(found[1]) * _UNITS[found[2]] or None) if found is not None else None
