"""What is said of a value that breaks a schema: by the validator's errors, or without them where one plain thing is wrong.

An error of the validator's costs several times as much as its verdict, and most bad events break their schema in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from factory_agents.contracts.documents import show
from factory_agents.contracts.patterns import compile_plain

__all__ = ["REMARKS", "TOP", "Explain", "Violation", "single_fault", "wording"]


class Violation(NamedTuple):
    """One broken rule of one event: its name for counting, and one line for a person."""

    rule: str
    reason: str


_violation = tuple.__new__
"""Makes a named tuple without a call of Python's."""

Explain: TypeAlias = Callable[[Any], "Violation | None"]
"""The one thing that is wrong; None where the validator has to say."""

REMARKS = {"title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment", "$schema", "$id"}
TOP = {"type", "properties", "required", "additionalProperties", "$defs", "definitions", *REMARKS}
"""The keywords of an event's schema that says of each field for itself what it is."""

_MISSING_FIELD = "expected a value, got none (the field is missing)"


def _one_of(options: Sequence[Any]) -> str:
    listed = ", ".join(map(show, options[:10])) + (", …" if len(options) > 10 else "")
    return f"one of {listed}" if len(options) > 1 else listed


_EXPECTED: dict[str, Callable[[dict[str, Any]], str]] = {
    "type": lambda f: " or ".join(sorted(f["types"], key=lambda t: (t == "null", t))),
    "enum": lambda f: _one_of(f["options"]),
    "constant": lambda f: show(f["expected_value"]),
    "const": lambda f: show(f["expected_value"]),
    "minimum": lambda f: f"at least {f['limit']}",
    "maximum": lambda f: f"at most {f['limit']}",
    "exclusiveMinimum": lambda f: f"more than {f['limit']}",
    "exclusiveMaximum": lambda f: f"less than {f['limit']}",
    "minLength": lambda f: f"at least {f['limit']} characters",
    "maxLength": lambda f: f"at most {f['limit']} characters",
    "minItems": lambda f: f"at least {f['limit']} items",
    "maxItems": lambda f: f"at most {f['limit']} items",
    "multipleOf": lambda f: f"a multiple of {f['multiple_of']}",
    "pattern": lambda f: f"text matching {f['pattern']}",
    "format": lambda f: f"the format {f['format']}",
    "uniqueItems": lambda _: "items without repetition",
}


def wording(error: Any, of: Any = None) -> str:
    """A validator's error as what was expected and what came; ``of`` is its kind, which is slow to ask for."""
    of = of or error.kind
    kind: str = of.name
    facts: dict[str, Any] = of.as_dict()
    if kind == "required":
        return _MISSING_FIELD
    if kind in ("additionalProperties", "unevaluatedProperties"):
        return f"expected only declared fields, got also {', '.join(map(show, facts['unexpected'][:5]))}"
    if kind in ("anyOf", "oneOfNotValid", "oneOf"):
        options = [branch[0] for branch in facts.get("context", []) if branch]
        if options and all(o.kind.name == "type" and o.instance_path == error.instance_path for o in options):
            kind, facts = "type", {"types": [t for o in options for t in o.kind.as_dict()["types"]]}
        if [o.kind.name for o in options] == ["minLength", "pattern"]:  # of a large expression: see ``bounded``
            kind, facts = "pattern", options[1].kind.as_dict()
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind](facts)}, got {show(error.instance)}"
    if kind == "not" and list(facts["schema"]) == ["pattern", "type"]:
        return f"expected text not matching {facts['schema']['pattern']}, got {show(error.instance)}"
    message: str = error.message
    return message if len(message) <= 200 else message[:199] + "…"


_Test: TypeAlias = Callable[[Any], Any]
_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}
_EVERY = frozenset(kind for kinds in _KINDS.values() for kind in kinds)
_PLAIN = frozenset((str, int, float, bool, type(None)))
_TESTS: dict[str, tuple[frozenset[type], str]] = {
    "minLength": (frozenset({str}), "len(v) >= {0}"),
    "maxLength": (frozenset({str}), "len(v) <= {0}"),
    "minimum": (frozenset({int, float}), "v >= {0}"),
    "maximum": (frozenset({int, float}), "v <= {0}"),
    "exclusiveMinimum": (frozenset({int, float}), "v > {0}"),
    "exclusiveMaximum": (frozenset({int, float}), "v < {0}"),
    "pattern": (frozenset({str}), "{0}(v)"),
    "enum": (_EVERY, "(type(v) is str and v in {0})"),
}
"""What a keyword asks of a value ``v`` of some types, by what it says (``{0}``): Python's own text, in which nothing of a schema stands."""
_EXACT = 2**53
_NONE, _SEVERAL = -1, -2


class _Field(NamedTuple):
    """What a schema says of one field: its rule, and what its value, where it is plain and one thing is wrong, should have been.

    No ``expected`` where the schema says more of it.
    """

    name: str
    rule: str
    expected: Callable[[Any], str] | None


def single_fault(schema: Any, part: Callable[[Sequence[str]], _Test]) -> Explain | None:
    """What finds the one thing that is wrong with an event, by a schema as the validator has it; ``part`` checks what is at a path.

    None for a schema that isn't of each field for itself.
    """
    if not isinstance(schema, dict) or schema.get("type") != "object" or not isinstance(schema.get("additionalProperties", True), bool):
        return None
    if any(key not in TOP and not key.startswith("x-") for key in schema):
        return None
    properties: dict[str, Any] = schema.get("properties", {})
    needed, declared = frozenset(schema.get("required", ())), properties.keys()
    closed = schema.get("additionalProperties", True) is False
    finder = _Finder()
    fields = [finder.add(name, said, part, needed=name in needed) for name, said in properties.items()]
    find = finder.made(needed - declared)
    missing = [Violation(field.rule, f"{field.name}: {_MISSING_FIELD}") for field in fields]

    def explain(event: Any) -> Violation | None:
        if type(event) is not dict or (closed and not event.keys() <= declared):
            return None
        at = find(event)
        if at < 0:
            return None
        if at & 1:
            return missing[at >> 1]
        name, rule, expected = fields[at >> 1]
        value = event[name]
        if expected is None or not (what := expected(value)):
            return None
        return _violation(Violation, (rule, what + show(value)))

    return explain


class _Finder:
    """Makes one function of the tests of all fields: which of an event's is wrong (twice its place, and one more where it is missing).

    It gives ``_NONE`` or ``_SEVERAL`` for others than one.
    """

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}
        self._lines = ["def find(event):", f" wrong = {_NONE}"]
        self._count = 0

    def made(self, undeclared: Iterable[str]) -> Callable[[dict[str, Any]], int]:
        """The function; ``undeclared`` fields must be there, too."""
        for name in undeclared:
            self._lines += [f" if {self._name(name)} not in event:", f"  return {_SEVERAL}"]
        exec("\n".join([*self._lines, " return wrong"]), self._known)  # of names made here
        find: Callable[[dict[str, Any]], int] = self._known["find"]
        return find

    def add(self, name: str, schema: Any, part: Callable[[Sequence[str]], _Test], *, needed: bool) -> _Field:
        types: frozenset[type] = frozenset()
        tests: list[tuple[frozenset[type], str, str]] | None = None
        if isinstance(schema, dict):
            said = {key: value for key, value in schema.items() if key not in REMARKS and not key.startswith("x-")}
            given = said.pop("type", [])
            kinds = [given] if isinstance(given, str) else given
            types = frozenset(kind for name in kinds for kind in _KINDS[name]) or _EVERY
            tests = [] if types == _EVERY else [(_EVERY, self._of(types), _EXPECTED["type"]({"types": kinds}))]
            for key, limit in said.items():
                test = self._test(key, limit, types)
                tests = None if test is None or tests is None else [*tests, test]
        condition = f"{self._name(part(('properties', name)))}(v)" if tests is None else " and ".join(f"({test})" for _, test, _ in tests)
        key = self._name(name)
        self._lines += [f" if {key} not in event:", *(self._found("  ", 1) if needed else ["  pass"]), " else:", f"  v = event[{key}]"]
        self._lines += [f"  if not ({condition}):", *self._found("   ", 0)] if condition else []
        self._count += 1
        return _Field(name, f"schema:{name}", None if tests is None else self._expected(name, types, tests))

    def _expected(self, name: str, types: frozenset[type], tests: Sequence[tuple[frozenset[type], str, str]]) -> Callable[[Any], str]:
        """Makes a function of a field's tests: what its value should have been, empty where the validator has to say."""
        plain = _PLAIN - {float} if int in types and float not in types else _PLAIN  # some dialects call 1.0 an integer
        lines = ["def expected(v):", f" if type(v) not in {self._name(plain)}: return ''", " what = ''"]
        for of, test, what in tests:
            lines += [f" if {'' if of == _EVERY else f'{self._of(of)} and '}not ({test}):", "  if what: return ''"]
            lines += [f"  what = {self._name(f'{name}: expected {what}, got ')}"]
        exec("\n".join([*lines, " return what"]), self._known)  # of names made here
        expected: Callable[[Any], str] = self._known.pop("expected")
        return expected

    def _found(self, indent: str, how: int) -> list[str]:
        """What is done where a field is wrong."""
        return [f"{indent}if wrong != {_NONE}: return {_SEVERAL}", f"{indent}wrong = {2 * self._count + how}"]

    def _of(self, types: frozenset[type]) -> str:
        """That a value is of one of these types."""
        return f"type(v) {'is' if len(types) == 1 else 'in'} {self._name(next(iter(types)) if len(types) == 1 else types)}"

    def _name(self, value: Any) -> str:
        """What a value is called in the function."""
        name = f"x{len(self._known)}"
        self._known[name] = value
        return name

    def _test(self, key: str, limit: Any, types: frozenset[type]) -> tuple[frozenset[type], str, str] | None:
        """A keyword's test and what it expects; None for one that is left to the validator."""
        value, facts = limit, {"limit": limit, "pattern": limit, "options": limit}
        if key == "enum" and limit and all(type(option) is str for option in limit):
            value = frozenset(limit)
        elif key == "pattern" and type(limit) is str:
            value = compile_plain(limit)
        elif key not in _TESTS or type(limit) not in ((int,) if key.endswith("Length") else (int, float)) or abs(limit) >= _EXACT:
            return None
        of, test = _TESTS[key]
        others = types - of
        guard = "" if not others else "v is None or " if others == {type(None)} else f"type(v) not in {self._name(of)} or "
        return of, guard + test.format(self._name(value)), _EXPECTED[key](facts)
