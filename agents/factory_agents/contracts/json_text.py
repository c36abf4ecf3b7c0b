"""Reads JSON text so that every key and value knows its line and column."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from typing import Any, TypeAlias

from factory_agents.digits import exact_number

__all__ = ["MOST_DEPTH", "JsonError", "JsonReader"]

_Path: TypeAlias = "tuple[str | int, ...]"
_Position: TypeAlias = "tuple[int, int]"

_scan_string = json.JSONDecoder().parse_string  # type: ignore[attr-defined]  # typeshed leaves it out
_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")
_WORDS = {"true": True, "false": False, "null": None}
MOST_DEPTH = 200
"""How deep values may be nested, here and in YAML."""
_HALF = re.compile("[\ud800-\udfff]")
"""One of the pair that JSON writes for a character beyond the first 65,536, without the other."""
_VALUES = 500_000
"""How many values a text may hold: each takes some 200 bytes with its place."""


class JsonError(ValueError):
    """The text is no JSON; ``at`` is its line and column, from 1."""

    def __init__(self, message: str, at: _Position) -> None:
        super().__init__(message)
        self.at = at


class JsonReader:
    """One text: ``read`` gives its value; ``values`` and ``keys`` then say where each stands, by its path."""

    def __init__(self, text: str) -> None:
        self.values: dict[_Path, _Position] = {}
        self.keys: dict[_Path, _Position] = {}
        self._text = text
        self._lines = [0, *(match.end() for match in re.finditer("\n", text))]

    def read(self) -> Any:
        """The value; raises JsonError for what is not JSON (a key that stands twice included)."""
        value, end = self._value(self._skip(0), ())
        end = self._skip(end)
        if end < len(self._text):
            self._fail("something follows the value", end)
        return value

    def _fail(self, message: str, index: int) -> Any:
        comment = "; JSON has no comments" if self._text.startswith(("//", "/*", "#"), index) else ""
        raise JsonError(message + comment, self._place(index))

    def _place(self, index: int) -> _Position:
        line = bisect_right(self._lines, index)
        return line, index - self._lines[line - 1] + 1

    def _skip(self, index: int) -> int:
        match = _SPACE.match(self._text, index)
        return match.end() if match else index

    def _value(self, index: int, path: _Path) -> tuple[Any, int]:
        self.values[path] = self._place(index)
        if len(path) > MOST_DEPTH:
            self._fail("nested too deeply", index)
        if len(self.values) > _VALUES:
            self._fail(f"more than {_VALUES:,} values", index)
        first = self._text[index : index + 1]
        if first == "{":
            return self._object(index + 1, path)
        if first == "[":
            return self._array(index + 1, path)
        return self._string(index) if first == '"' else self._word(index)

    def _string(self, index: int) -> tuple[str, int]:
        try:
            text, end = _scan_string(self._text, index + 1, True)
        except json.JSONDecodeError as error:
            self._fail(error.msg, error.pos)
        if not text.isascii() and (half := _HALF.search(text)):
            self._fail(f"half a character ({half[0]!r}), which no text can hold", index)
        return text, end

    def _word(self, index: int) -> tuple[Any, int]:
        for word, value in _WORDS.items():
            if self._text.startswith(word, index):
                return value, index + len(word)
        match = _NUMBER.match(self._text, index)
        if match is None:
            return self._fail("expected a value", index), index
        try:
            number = exact_number(match[0]) if match[1] or match[2] else int(match[0])
        except ValueError:
            return self._fail("a number of too many digits", index), index
        if abs(number) == float("inf"):
            self._fail("a number that is too large", index)
        return number, match.end()

    def _array(self, index: int, path: _Path) -> tuple[list[Any], int]:
        items: list[Any] = []
        index = self._skip(index)
        while not self._text.startswith("]", index):
            item, index = self._value(index, (*path, len(items)))
            items.append(item)
            index = self._next(index, "]")
        return items, index + 1

    def _object(self, index: int, path: _Path) -> tuple[dict[str, Any], int]:
        items: dict[str, Any] = {}
        index = self._skip(index)
        while not self._text.startswith("}", index):
            if not self._text.startswith('"', index):
                self._fail("expected a name in double quotes", index)
            name, end = self._string(index)
            if name in items:
                self._fail(f"the key {name!r} stands here twice", index)
            self.keys[*path, name] = self._place(index)
            index = self._skip(end)
            if not self._text.startswith(":", index):
                self._fail("expected a colon", index)
            items[name], index = self._value(self._skip(index + 1), (*path, name))
            index = self._next(index, "}")
        return items, index + 1

    def _next(self, index: int, end: str) -> int:
        """Past a comma to what follows it, or to the ``end``."""
        index = self._skip(index)
        if self._text.startswith(",", index):
            index = self._skip(index + 1)
            if self._text.startswith(end, index):
                self._fail("expected something after the comma", index)
        elif not self._text.startswith(end, index):
            self._fail(f"expected a comma or {end}", index)
        return index
