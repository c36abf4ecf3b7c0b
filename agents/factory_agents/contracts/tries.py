"""Against how many subschemas one value of an event may be tried, by how deep the event is nested.

Where a schema is part of itself, each level may double that: twenty levels are a million tries, of an event of two hundred bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

from factory_agents.contracts.documents import KeyPath
from factory_agents.contracts.references import Place, References

__all__ = ["Tries", "alternatives"]

_At: TypeAlias = "tuple[str, KeyPath]"

_DEEPEST = 64
"""Levels that are counted one by one: from there on what doesn't double with each grows evenly."""
_OF_ITEMS = ("items", "additionalItems", "unevaluatedItems")
_OF_FIELDS = ("additionalProperties", "unevaluatedProperties")
_BESIDE = ("contains", "propertyNames")


class _Parts(NamedTuple):
    """The subschemas that a value is tried against too; of each of ``one_of`` one for a value in it, and all those ``beside`` them."""

    same: tuple[_At, ...]
    one_of: tuple[_At, ...]
    beside: tuple[_At, ...]


class Tries:
    """Counts, for a compiled schema, when it is asked: few events are so bad that it matters."""

    def __init__(self, references: References) -> None:
        self._references = references
        self._parts: dict[_At, _Parts] = {}
        self._of_level: list[dict[_At, int]] = []

    def of(self, depth: int, most: int) -> int:
        """Against how many subschemas each value of an event of so many levels may be tried, at most; past ``most`` it isn't counted on.

        1 for a schema that is no part of itself: how many those are is bounded already.
        """
        top = _at(self._references.top)
        if not self._parts:
            self._find(self._references.top)
        level = 0
        for level in range(min(depth, _DEEPEST) + 1):
            if level == len(self._of_level):
                self._count_level()
            if level and self._of_level[level] == self._of_level[level - 1]:
                return 1
            if self._of_level[level][top] > most:
                break
        return self._of_level[level][top] * max(1, depth) // max(1, level)

    def _find(self, top: Place) -> None:
        todo = [top]
        while todo:
            place = todo.pop()
            if _at(place) in self._parts:
                continue
            same = list(self._same(place))
            one_of, beside = list(_one_of(place)), list(_beside(place))
            self._parts[_at(place)] = _Parts(*(tuple(map(_at, places)) for places in (same, one_of, beside)))
            todo += [*same, *one_of, *beside]

    def _same(self, place: Place) -> Iterator[Place]:
        yield from alternatives(place)
        if isinstance(place.data, dict):
            if (target := self._references.target(place)) is not None:
                yield target
            if place.data.keys() & {"$dynamicRef", "$recursiveRef"}:
                yield self._references.top  # wherever that leads

    def _count_level(self) -> None:
        below = self._of_level[-1] if self._of_level else dict.fromkeys(self._parts, 0)
        found: dict[_At, int] = {}
        for at in self._parts:
            self._count(at, below, found)
        self._of_level.append(found)

    def _count(self, at: _At, below: dict[_At, int], found: dict[_At, int]) -> int:
        if at not in found:
            found[at] = 1  # for what leads back here by a dynamic reference
            parts = self._parts[at]
            inner = max((below[part] for part in parts.one_of), default=0) + sum(below[part] for part in parts.beside)
            found[at] = 1 + inner + sum(self._count(part, below, found) for part in parts.same)
        return found[at]


def _at(place: Place) -> _At:
    return place.uri, place.path


def alternatives(place: Place) -> Iterator[Place]:
    """The subschemas of one against which the same value is tried."""
    if not isinstance(place.data, dict):
        return
    for key in ("allOf", "anyOf", "oneOf"):
        yield from _listed(place, key)
    yield from _single(place, ("not", "if", "then", "else"))
    yield from _named(place, "dependentSchemas")


def _one_of(place: Place) -> Iterator[Place]:
    """Those of which a value within is tried against one."""
    yield from _named(place, "properties")
    yield from _listed(place, "prefixItems")
    yield from _listed(place, "items")
    yield from _single(place, (*_OF_ITEMS, *_OF_FIELDS))


def _beside(place: Place) -> Iterator[Place]:
    yield from _named(place, "patternProperties")
    yield from _single(place, _BESIDE)


def _named(place: Place, key: str) -> Iterator[Place]:
    inner = place.data.get(key) if isinstance(place.data, dict) else None
    if isinstance(inner, dict):
        yield from (place.inner(key, name) for name in inner)


def _listed(place: Place, key: str) -> Iterator[Place]:
    inner = place.data.get(key) if isinstance(place.data, dict) else None
    if isinstance(inner, list):
        yield from (place.inner(key, i) for i in range(len(inner)))


def _single(place: Place, keys: Iterable[str]) -> Iterator[Place]:
    if isinstance(place.data, dict):
        yield from (place.inner(key) for key in keys if key in place.data and not isinstance(place.data[key], list))
