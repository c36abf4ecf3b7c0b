"""Which values of a field a contract counts as missing or invalid, beside those that it rejects."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from factory_agents.contracts.documents import Document, KeyPath, show
from factory_agents.contracts.patterns import PatternError, compile_search

__all__ = ["Figure", "finder", "read_figures"]

_KEYS = ("field", "values", "pattern")


@dataclasses.dataclass(frozen=True)
class Figure:
    """What is counted under a ``name`` (usually the field's): ``missing`` values are the listed ones; ``invalid`` are those that are not
    listed, or that the pattern isn't found in. Null is never invalid: it is missing, where that says so.
    """

    name: str
    field: str
    values: tuple[Any, ...] | None
    pattern: str | None
    missing: bool
    _test: Callable[[Any], bool] = dataclasses.field(repr=False, compare=False)

    def count(self, values: Iterable[Any]) -> int:
        """How many of these values of the field count."""
        return sum(map(self._test, values))

    @property
    def meaning(self) -> list[Any]:
        """What enters the contract's digest."""
        return [self.name, self.field, None if self.values is None else list(self.values), self.pattern]


def read_figures(document: Document, path: KeyPath, data: Any, declared: Callable[[Any, KeyPath], str]) -> tuple[Figure, ...]:
    """The figures that stand at ``path``, whose last part is ``missing`` or ``invalid``: a mapping of fields to lists or mappings."""
    missing = path[-1] == "missing"
    example = "{email: [null, '', 'N/A']}" if missing else "{unit: {values: [kg, lb]}, iban: {pattern: '^[A-Z]{2}'}}"
    given = document.mapping(path, data or {}, f"a mapping of fields to what counts, such as {example}")
    figures = []
    for name, value in given.items():
        with document.attempt():
            figures.append(_read(document, (*path, name), name, value, missing, declared))
    return tuple(figures)


def _read(document: Document, path: KeyPath, name: str, value: Any, missing: bool, declared: Callable[[Any, KeyPath], str]) -> Figure:
    whole = {"values": value} if isinstance(value, list) else document.mapping(path, value, "a list of values, or a mapping")
    document.check_keys(path, whole, _KEYS)
    at = (*path, "field") if "field" in whole else path
    if not name or set(name) & set("(),"):
        document.fail(path, f"expected a name without brackets and commas, got {show(name)}", key=True)
    of = declared(whole.get("field", name), at)
    values, pattern = whole.get("values"), whole.get("pattern")
    if values is not None and not isinstance(values, list):
        document.fail((*path, "values"), f"expected a list of values, got {show(values)}")
    if pattern is not None and (missing or not isinstance(pattern, str)):
        document.fail((*path, "pattern"), "missing takes values only" if missing else f"expected a regular expression, got {show(pattern)}")
    if values is None and pattern is None:
        document.fail(path, f"expected values{'' if missing else ' or a pattern'}, got {show(value)}")
    listed = None if values is None else tuple(values)
    return Figure(name, of, listed, pattern, missing, _test(document, path, listed, pattern, missing))


def _test(document: Document, path: KeyPath, values: tuple[Any, ...] | None, pattern: str | None, missing: bool) -> Callable[[Any], bool]:
    listed = finder(values) if values is not None else None
    if missing and listed is not None:
        return listed
    search: Callable[[Any], bool] | None = None
    if pattern is not None:
        try:
            search = compile_search(pattern)
        except PatternError as error:
            document.fail((*path, "pattern"), str(error))

    def invalid(value: Any) -> bool:
        if value is None:
            return False
        if listed is not None and not listed(value):
            return True
        try:
            return search is not None and not search(value)
        except TypeError:  # no text, or one that is too long for so large an expression
            return True

    return invalid


def finder(values: tuple[Any, ...]) -> Callable[[Any], bool]:
    """Whether a value is among these; true isn't 1, as JSON has it."""
    plain = {(type(v) is bool, v) for v in values if not isinstance(v, (list, dict))}
    others = [v for v in values if isinstance(v, (list, dict))]

    def find(value: Any) -> bool:
        if isinstance(value, (list, dict)):
            return value in others
        return (type(value) is bool, value) in plain

    return find
