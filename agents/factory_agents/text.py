"""Text from elsewhere as a terminal, a log or a report may show it."""

from __future__ import annotations

__all__ = ["printable", "shortened"]

_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_ESCAPES = {n: f"\\u{n:04x}" for n in [*_CONTROLS, *range(0xD800, 0xE000)]} | {9: "\\t", 10: "\\n", 13: "\\r"}
_ESCAPES_IN_LINES = {n: escape for n, escape in _ESCAPES.items() if n != ord("\n")}


def printable(text: str, *, lines: bool = False) -> str:
    r"""A text without what ends a line, moves a cursor or turns the direction of writing: those characters are shown (``\n``, ``\u001b``).

    With ``lines`` the ends of lines stay.
    """
    return text if text.isprintable() else text.translate(_ESCAPES_IN_LINES if lines else _ESCAPES)


def shortened(text: str, length: int) -> str:
    """A text of at most so many characters; one that was cut ends with ``…``."""
    return text if len(text) <= length else text[: length - 1] + "…"
