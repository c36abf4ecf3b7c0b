"""Reads YAML and JSON so that every value knows its line and column: errors in a contract point at their place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import msgspec
import yaml

from factory_agents.contracts.json_text import MOST_DEPTH, JsonError, JsonReader
from factory_agents.digits import exact_number, to_json
from factory_agents.errors import ContractError
from factory_agents.text import did_you_mean, one_of

__all__ = ["Document", "KeyPath", "did_you_mean", "dump_yaml", "inline_document", "one_of", "parse_document", "read_document", "show"]

KeyPath: TypeAlias = "tuple[str | int, ...]"
"""Where a value is in a document: keys and indexes from the root."""

_Position: TypeAlias = "tuple[int, int]"

_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""In C, where PyYAML was built with it: six times as fast, and it says the same."""
_TAG = "tag:yaml.org,2002:"
_PLAIN = re.compile(r"""(?:[&!]\S*\s+)*([^\s,\]}#"'|>]+)""")
"""A scalar in no quotes, after its anchor and tag."""

_MOST_YAML = 256 << 10
_MOST_JSON = 16 << 20
"""Characters: reading YAML takes up to a minute a mebibyte, JSON some seconds."""
_MOST_BYTES = 4 * _MOST_JSON + 4
_COPIES = 10_000
"""How many values aliases may repeat: a text of some hundred bytes can mean more than any memory holds."""


def show(value: Any, limit: int = 60) -> str:
    """A value as JSON for a message, cut to ``limit`` characters."""
    try:
        text = to_json(value).decode()
    except (TypeError, ValueError, msgspec.MsgspecError):
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


@dataclass(frozen=True)
class Document:
    """A parsed file (or text, or a mapping from elsewhere): its data, and the place of every key and value in it.

    Where the data were made from what the text says (a contract in another notation), ``origins`` tells from which of its values. With
    ``errors`` what ``attempt`` and ``report`` find is collected there, and reading goes on.
    """

    name: str
    data: Any
    text: str = ""
    values: Mapping[KeyPath, _Position] = field(default_factory=dict)
    keys: Mapping[KeyPath, _Position] = field(default_factory=dict)
    origins: Mapping[KeyPath, KeyPath] = field(default_factory=dict)
    errors: list[ContractError] | None = None

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Collect a ContractError of the block, where errors are collected."""
        try:
            yield
        except ContractError as error:
            self.collect(error)

    def collect(self, error: ContractError) -> None:
        """Keep an error, where errors are collected, else raise it."""
        if self.errors is None:
            raise error
        self.errors.append(error)

    def report(self, path: KeyPath, message: str, *, key: bool = False) -> None:
        """``fail``, or collect the error and go on."""
        self.collect(self.error(path, message, key=key))

    def origin(self, path: KeyPath) -> KeyPath:
        """The path in the text that a path in the data came from: as much of it as there is."""
        if not self.origins:
            return path
        known = path
        while known not in self.origins and known:
            known = known[:-1]
        found = (*self.origins.get(known, ()), *path[len(known) :])
        while found not in self.values and found:
            found = found[:-1]
        return found

    def where(self, path: KeyPath, *, key: bool = False) -> str:
        """``file:line:column`` (from 1) of a value, or of its key; the nearest enclosing value's where it has none itself."""
        path = self.origin(path)
        position = self.keys.get(path) if key else None
        while position is None and (path in self.values or path):
            position = self.values.get(path)
            path = path[:-1]
        if position is None:
            position = self.values.get(())
        return self.name if position is None else f"{self.name}:{position[0]}:{position[1]}"

    def fail(self, path: KeyPath, message: str, *, key: bool = False) -> NoReturn:
        """Raise ContractError at a place, naming the path to it."""
        raise self.error(path, message, key=key)

    def error(self, path: KeyPath, message: str, *, key: bool = False) -> ContractError:
        """What ``fail`` raises."""
        dotted = ".".join(map(str, self.origin(path)))
        return ContractError(f"{self.where(path, key=key)}: {dotted + ': ' if dotted else ''}{message}")

    def fail_inside(self, path: KeyPath, line: int, column: int, message: str) -> NoReturn:
        """Raise ContractError at a line and column (from 1) within a text value, as exactly as its notation allows."""
        path = self.origin(path)
        position = self.values.get(path)
        if position is not None:
            first, start = self._text_start(position)
            if start >= 0:
                position = (first + line - 1, start + column)
        where = self.name if position is None else f"{self.name}:{position[0]}:{position[1]}"
        raise ContractError(f"{where}: {'.'.join(map(str, path))}: {message}")

    def written(self, path: KeyPath) -> str | None:
        """A plain scalar's characters as they stand in the text (1.10, which as a number is 1.1); None where there is no text of it."""
        position = self.values.get(self.origin(path))
        if position is None:
            return None
        line, column = position
        found = _PLAIN.match(self.text.split("\n")[line - 1], column - 1)
        return found[1] if found else None

    def _text_start(self, position: _Position) -> _Position:
        """The line (from 1) and column (from 0) where the characters of a scalar begin; column -1 where lines are folded."""
        lines = self.text.split("\n")
        line, column = position
        head = lines[line - 1][column - 1 :]
        if head.startswith("|"):
            body = lines[line] if line < len(lines) else ""
            return (line + 1, len(body) - len(body.lstrip()))
        if head.startswith(">"):
            return (line, -1)
        return (line, column if head.startswith(("'", '"')) else column - 1)

    def mapping(self, path: KeyPath, value: Any, what: str) -> dict[str, Any]:
        """The value, which must be a mapping."""
        if not isinstance(value, dict):
            self.fail(path, f"expected {what}, got {show(value)}")
        return value

    def check_keys(self, path: KeyPath, value: Mapping[str, Any], known: Iterable[str]) -> None:
        """Refuse a key that is not among the known ones."""
        known = list(known)
        for name in value:
            if name not in known:
                self.report((*path, name), f"unknown key{one_of(name, known)}", key=True)


class _Dumper(yaml.SafeDumper):
    """Writes texts so that neither YAML 1.1 nor 1.2 reads them as anything else."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, Any]]] = {  # noqa: RUF012
        first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        """Values that occur twice are written twice."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    quoted = set(text) & set("\x85\u2028\u2029\ufeff")  # line breaks to some readers: written as escapes
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if quoted else None)


def _decimal(dumper: yaml.SafeDumper, number: Decimal) -> yaml.ScalarNode:
    return dumper.represent_scalar(f"{_TAG}float", str(number))


_Dumper.add_representer(str, _text)
_Dumper.add_representer(Decimal, _decimal)


def dump_yaml(data: Any) -> str:
    """Data as YAML that ``parse_document`` reads back."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


_PLAIN_SCALARS = [
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")),
    ("float", re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"), list("-+.0123456789")),
]
"""YAML 1.2's plain scalars that are no texts, with the characters they begin with: ``no``, ``on`` and ``2026-01-01`` are texts, as in
JSON Schema's own files."""
_KINDS: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
for _kind, _pattern, _firsts in _PLAIN_SCALARS:
    _Dumper.add_implicit_resolver(f"{_TAG}{_kind}", _pattern, _firsts)
    for _first in _firsts:
        _KINDS.setdefault(_first, []).append((_kind, _pattern))


def read_document(path: Path, name: str = "") -> Document:
    """Read a YAML or JSON file; raises ContractError naming the place of what is wrong."""
    name = name or str(path)
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise ContractError(f"{name}:1:1: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ContractError(f"{name}:{line}:1: expected UTF-8 text, got the byte 0x{error.object[error.start]:02x}") from error
    return parse_document(text, name)


def inline_document(data: Mapping[str, Any], name: str = "inline contract") -> Document:
    """A mapping that came as data, not as text: it has paths but no lines."""
    return Document(name, msgspec.to_builtins(dict(data), builtin_types=(Decimal,)))


def parse_document(text: str, name: str) -> Document:
    """Parse YAML or JSON text; raises ContractError naming the place of what is wrong."""
    first = text.lstrip()[:1]
    like_json = first in ("{", "[") or (name.endswith(".json") and first in ("/", "#"))
    if len(text) > (_MOST_JSON if like_json else _MOST_YAML):
        most = f"{_MOST_JSON >> 20} MiB of JSON, {_MOST_YAML >> 10} KiB of YAML"
        raise ContractError(f"{name}:1:1: {len(text):,} characters are too many; expected at most {most}")
    if not like_json:
        return _parse_yaml(text, name)
    try:
        reader = JsonReader(text)
        return Document(name, reader.read(), text, reader.values, reader.keys)
    except JsonError as error:
        if len(text) > _MOST_YAML or "\t" in text or name.endswith(".json"):  # YAML would complain of the tabs
            line, column = error.at
            raise ContractError(f"{name}:{line}:{column}: not JSON: {error}") from None
    return _parse_yaml(text, name)


def _parse_yaml(text: str, name: str) -> Document:
    if found := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line, column = text.count("\n", 0, found.start()) + 1, found.start() - text.rfind("\n", 0, found.start())
        raise ContractError(f"{name}:{line}:{column}: not YAML: special characters are not allowed (character {found[0]!r})")
    parser = _Parser(text)
    reader = _YamlReader(name, parser.get_event)
    try:
        data = reader.read()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
        raise ContractError(f"{name}:{where}: not YAML: {error.problem or error.context}") from error
    finally:
        parser.dispose()
    return Document(name, data, text, reader.values, reader.keys)


class _YamlReader:
    """Turns YAML's events into plain data and keeps their places."""

    def __init__(self, name: str, event: Callable[[], Any]) -> None:
        self._name = name
        self._event = event
        self.values: dict[KeyPath, _Position] = {}
        self.keys: dict[KeyPath, _Position] = {}
        self._anchors: dict[str, tuple[KeyPath, Any] | None] = {}
        """Where what an anchor names stands, and the value; None while it is being read."""
        self._copies = 0

    def read(self) -> Any:
        """The value of the one document in the text. Raises ContractError, and MarkedYAMLError for what is no YAML."""
        self._event()  # the stream begins
        if not isinstance(self._event(), yaml.DocumentStartEvent):
            raise ContractError(f"{self._name}:1:1: expected a contract, got an empty file")
        value = self._value(self._event(), ())
        self._event()  # the document ends
        if isinstance(after := self._event(), yaml.DocumentStartEvent):
            self._fail(after, "not YAML: expected one document, got another one")
        return value

    def _value(self, event: Any, path: KeyPath) -> Any:
        if isinstance(event, yaml.AliasEvent):
            return self._named(event, path)
        self.values[path] = _position(event)
        if len(path) > MOST_DEPTH:
            self._fail(event, "nested too deeply")
        if event.anchor:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event)
        elif event.tag not in (None, "!", f"{_TAG}map", f"{_TAG}seq"):
            self._fail(event, f"expected plain YAML, got the tag {event.tag[:80]!r}")
        else:
            value = self._mapping(path) if isinstance(event, yaml.MappingStartEvent) else self._sequence(path)
        if event.anchor:
            self._anchors[event.anchor] = path, value
        return value

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: Any = None
        while not isinstance(event := self._event(), yaml.MappingEndEvent):
            key = self._scalar(event) if isinstance(event, yaml.ScalarEvent) else None
            if not isinstance(key, str):
                self._fail(event, f"expected a name as key, got {show(key)}; quote it")
            if key in result:
                self._fail(event, f"the key {key[:80]!r} stands here twice")
            self.keys[(*path, key)] = _position(event)
            if event.anchor:
                self._anchors[event.anchor] = (*path, key), key
            result[key] = self._value(self._event(), (*path, key))
            if key == "<<" and event.implicit[0]:
                merged = event
        if merged is not None:
            self._merge(merged, result, path)
        return result

    def _merge(self, event: Any, result: dict[str, Any], path: KeyPath) -> None:
        """Put what the mappings under the key ``<<`` have, and this one hasn't, in its place."""
        value = result.pop("<<")
        many = value if isinstance(value, list) else [value]
        for i, one in enumerate(many):
            if not isinstance(one, dict):
                self._fail(event, f"<<: expected a mapping to merge, or a list of them, got {show(one)}")
            origin = (*path, "<<", i) if isinstance(value, list) else (*path, "<<")
            for key in one:
                if key not in result:
                    self.keys[*path, key] = self.keys[*origin, key]
                    result[key] = self._again(event, one[key], (*origin, key), (*path, key))

    def _sequence(self, path: KeyPath) -> list[Any]:
        result: list[Any] = []
        while not isinstance(event := self._event(), yaml.SequenceEndEvent):
            result.append(self._value(event, (*path, len(result))))
        return result

    def _named(self, event: Any, path: KeyPath) -> Any:
        """The value that an alias stands for, again."""
        if event.anchor not in self._anchors:
            self._fail(event, f"not YAML: found undefined alias {event.anchor[:80]!r}")
        found = self._anchors[event.anchor]
        if found is None:
            self._fail(event, "an alias that holds itself")
        return self._again(event, found[1], found[0], path)

    def _again(self, event: Any, value: Any, origin: KeyPath, path: KeyPath) -> Any:
        self._copies += 1
        if self._copies > _COPIES:
            self._fail(event, f"aliases repeat more than {_COPIES:,} values")
        if len(path) > MOST_DEPTH:
            self._fail(event, "nested too deeply")
        self.values[path] = self.values.get(origin) or _position(event)
        if isinstance(value, dict):
            self.keys.update({(*path, key): self.keys[*origin, key] for key in value})
            return {key: self._again(event, one, (*origin, key), (*path, key)) for key, one in value.items()}
        if isinstance(value, list):
            return [self._again(event, one, (*origin, i), (*path, i)) for i, one in enumerate(value)]
        return value

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        if event.tag not in (None, "!"):
            kind = event.tag.removeprefix(_TAG)
        else:
            kinds = _KINDS.get(text[:1], ()) if event.implicit[0] else ()
            kind = next((kind for kind, pattern in kinds if pattern.match(text)), "str")
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return text.lower() == "true"
            if kind in ("int", "float"):
                number: Any = int(text) if kind == "int" else exact_number(text)
                if abs(number) < float("inf"):
                    return number
                raise ValueError
        except ValueError:
            self._fail(event, f"expected a value of type {kind}, got {show(text)}")
        if kind != "str":
            self._fail(event, f"expected plain YAML, got the tag {event.tag[:80]!r}")
        return text

    def _fail(self, event: Any, message: str) -> NoReturn:
        line, column = _position(event)
        raise ContractError(f"{self._name}:{line}:{column}: {message}")


def _position(event: Any) -> _Position:
    return event.start_mark.line + 1, event.start_mark.column + 1
