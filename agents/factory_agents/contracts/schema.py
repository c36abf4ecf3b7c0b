"""The JSON Schema of a contract: compiled once, checked at Rust's speed, never fetched; what it says of an event's fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from urllib.request import url2pathname

from factory_agents.contracts.documents import Document, KeyPath, did_you_mean, one_of, read_document, show

__all__ = ["FieldType", "Schema", "Violation", "compile_schema"]


class Violation(NamedTuple):
    """One broken rule of one event: its name for counting, and one line for a person."""

    rule: str
    reason: str


class FieldType(NamedTuple):
    """What a schema says of one top-level field: JSON types (none: anything), its format, and whether it is always there."""

    types: frozenset[str]
    format: str
    required: bool

    @property
    def nullable(self) -> bool:
        """Whether a valid event may lack it or hold null."""
        return not self.required or not self.types or "null" in self.types


@dataclass(frozen=True)
class Schema:
    """A compiled schema: ``is_valid`` for the many, ``violations`` for the few, ``fields`` in the order of their declaration."""

    is_valid: Callable[[Any], bool]
    fields: Mapping[str, FieldType]
    content: Any
    _errors: Callable[[Any], Iterator[Any]] = field(repr=False)

    def violations(self, event: Any) -> list[Violation]:
        """Everything that breaks the schema: path, what was expected, what came."""
        return [self._violation(error) for error in self._errors(event)]

    def _violation(self, error: Any) -> Violation:
        path = list(error.instance_path)
        if error.kind.name == "required":
            path.append(error.kind.property)
        name = path[0] if path and path[0] in self.fields else ""
        where = _dotted(path) or "the event"
        return Violation(f"schema:{name}" if name else "schema", f"{where}: {_wording(error)}")


def _dotted(path: list[str | int]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


_EXPECTED: dict[str, Callable[[dict[str, Any]], str]] = {
    "type": lambda f: " or ".join(sorted(f["types"], key=lambda t: (t == "null", t))),
    "enum": lambda f: "one of " + ", ".join(map(show, f["options"][:10])) + (", …" if len(f["options"]) > 10 else ""),
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


def _wording(error: Any) -> str:
    kind: str = error.kind.name
    facts: dict[str, Any] = error.kind.as_dict()
    if kind == "required":
        return "expected a value, got none (the field is missing)"
    if kind in ("additionalProperties", "unevaluatedProperties"):
        return f"expected only declared fields, got also {', '.join(map(show, facts['unexpected'][:5]))}"
    if kind in ("anyOf", "oneOfNotValid", "oneOf"):
        options = [branch[0] for branch in facts.get("context", []) if branch]
        if options and all(o.kind.name == "type" and o.instance_path == error.instance_path for o in options):
            kind, facts = "type", {"types": [t for o in options for t in o.kind.as_dict()["types"]]}
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind](facts)}, got {show(error.instance)}"
    message: str = error.message
    return message if len(message) <= 200 else message[:199] + "…"


class _Place(NamedTuple):
    """A subschema: in which document, under which root (``#`` of its references), at which path."""

    document: Document
    uri: str
    root: KeyPath
    path: KeyPath

    @property
    def data(self) -> Any:
        value: Any = self.document.data
        for key in self.path:
            value = value[key]
        return value

    def inner(self, *keys: str | int) -> _Place:
        return self._replace(path=(*self.path, *keys))


_IN_MAPPINGS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_IN_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = (
    "items",
    "additionalProperties",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
    "additionalItems",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
)
_KEYWORDS = (
    *_IN_MAPPINGS,
    *_IN_LISTS,
    *_SINGLE,
    *("type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("minLength", "maxLength", "pattern", "format", "minItems", "maxItems", "uniqueItems", "minContains", "maxContains"),
    *("minProperties", "maxProperties", "required", "dependentRequired", "dependencies", "$ref", "$dynamicRef"),
    *("$recursiveRef", "$id", "id", "$schema", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "$comment"),
    *("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"),
    *("contentEncoding", "contentMediaType"),
)


def compile_schema(document: Document, path: KeyPath, folder: Path) -> Schema:
    """Compile the schema that stands at ``path`` of a contract whose relative references start at ``folder``.

    Raises ContractError with file, line and column: a broken schema, a near miss of a keyword, a reference that leads nowhere
    or to the network.
    """
    return _Compiler(document, path, folder).compile()


class _Compiler:
    def __init__(self, document: Document, path: KeyPath, folder: Path) -> None:
        self._folder = folder
        self._uri = (folder / "contract").as_uri()
        self._top = _Place(document, self._uri, path, path)
        self._files: dict[str, Document] = {}

    def compile(self) -> Schema:
        import jsonschema_rs

        top = self._top
        top.document.mapping(top.path, top.data, "a JSON Schema")
        self._check_meta(top)
        self._walk(top, set())
        try:
            validator = jsonschema_rs.validator_for(
                _without_id(top.data),
                validate_formats=True,
                ignore_unknown_formats=False,
                retriever=self._retrieve,
                base_uri=self._uri,
            )
        except ValueError as error:
            top.document.fail((*top.path, *getattr(error, "instance_path", ())), _short(error))
        content = [top.data, {self._relative(uri): d.data for uri, d in self._files.items()}]
        return Schema(validator.is_valid, self._fields(), content, validator.iter_errors)

    def _retrieve(self, uri: str) -> Any:
        base = urldefrag(uri).url
        if base not in self._files:
            raise ValueError(f"{uri}: only files beside the contract are read")
        return _without_id(self._files[base].data)

    def _relative(self, uri: str) -> str:
        """A reference's name in the digest: the same on every machine."""
        import os.path

        return Path(os.path.relpath(url2pathname(urlsplit(uri).path), self._folder)).as_posix()

    def _check_meta(self, place: _Place) -> None:
        """Is it a schema at all? The schema of schemas knows, and where not."""
        import jsonschema_rs

        dialect = place.data.get("$schema", _DIALECTS[0]) if isinstance(place.data, dict) else _DIALECTS[0]
        if not isinstance(dialect, str) or dialect.rstrip("#") not in _DIALECTS:
            place.document.fail((*place.path, "$schema"), f"unknown dialect {show(dialect)}{one_of('', _DIALECTS)}")
        try:
            jsonschema_rs.meta.validate(_without_id(place.data))
        except ValueError as error:
            path = (*place.path, *getattr(error, "instance_path", ()))
            value = getattr(error, "instance", None)
            if path[-1:] == ("type",) and isinstance(value, str):
                place.document.fail(path, f"unknown type {value!r}{one_of(value, _TYPES)}")
            message = _wording(error) if isinstance(error, jsonschema_rs.ValidationError) else _short(error)
            place.document.fail(path, f"not JSON Schema: {message}")

    def _walk(self, place: _Place, seen: set[tuple[str, KeyPath]]) -> None:
        """Visit every subschema that can apply, across files, once."""
        if not isinstance(place.data, dict) or (place.uri, place.path) in seen:
            return
        seen.add((place.uri, place.path))
        self._check_keywords(place)
        for child in _children(place):
            self._walk(child, seen)
        target = self._target(place)
        if target is not None:
            if target.uri != place.uri:
                self._check_meta(target)
            self._walk(target, seen)

    def _check_keywords(self, place: _Place) -> None:
        import jsonschema_rs

        data = place.data
        if "$schema" in data:
            self._check_meta(place)
        for key in data:
            near = "" if key in _KEYWORDS or key.startswith("x-") else did_you_mean(key, _KEYWORDS, 0.75)
            if near:
                message = f"not a keyword of JSON Schema{near} (own annotations begin with x-)"
                place.document.fail((*place.path, key), message, key=True)
        if isinstance(data.get("format"), str):
            try:
                jsonschema_rs.validator_for({"format": data["format"]}, validate_formats=True, ignore_unknown_formats=False)
            except ValueError:
                message = f"unknown format {data['format']!r}{did_you_mean(data['format'], _FORMATS)}"
                place.document.fail((*place.path, "format"), f"{message} (it would check nothing)")

    def _target(self, place: _Place) -> _Place | None:
        """Where ``$ref`` leads, None without one (or where it names an anchor, which is left to the validator)."""
        reference = place.data.get("$ref")
        if not isinstance(reference, str):
            return None
        uri, fragment = urldefrag(urljoin(place.uri, reference))
        at = place.inner("$ref")
        target = place._replace(path=place.root)
        if uri != place.uri:
            target = _Place(self._load(uri, reference, at), uri, (), ())
        if fragment and not fragment.startswith("/"):
            return None
        for part in unquote(fragment).split("/")[1:]:
            data = target.data
            names: dict[str, str | int] = {str(i): i for i in range(len(data))} if isinstance(data, list) else {}
            names = {k: k for k in data} if isinstance(data, dict) else names
            name = part.replace("~1", "/").replace("~0", "~")
            if name not in names:
                where = f"{name!r} in {target.document.name}{did_you_mean(name, names)}"
                at.document.fail(at.path, f"{reference!r} leads nowhere: there is no {where}")
            target = target.inner(names[name])
        return target

    def _load(self, uri: str, reference: str, at: _Place) -> Document:
        if uri not in self._files:
            parts = urlsplit(uri)
            if parts.scheme != "file":
                message = f"expected a reference to a local file, got {reference!r}; nothing is fetched from the network"
                at.document.fail(at.path, message)
            file = Path(url2pathname(parts.path))
            if not file.is_file():
                at.document.fail(at.path, f"expected a file, got {reference!r}, but there is no {file}")
            self._files[uri] = read_document(file, self._relative(uri))
        return self._files[uri]

    def _fields(self) -> dict[str, FieldType]:
        """Top-level fields in the order of their declaration."""
        places: dict[str, _Place] = {}
        required: set[str] = set()
        for place, always in self._parts(self._top):
            for name in place.data.get("properties", {}):
                places.setdefault(name, place.inner("properties", name))
            if always:
                required.update(place.data.get("required", ()))
        return {name: FieldType(*self._types(place), name in required) for name, place in places.items()}

    def _parts(self, place: _Place, always: bool = True, depth: int = 0) -> Iterator[tuple[_Place, bool]]:
        """The subschemas that speak of the same value, each with whether it always applies."""
        if not isinstance(place.data, dict) or depth > 50:
            return
        yield place, always
        target = self._target(place)
        if target is not None:
            yield from self._parts(target, always, depth + 1)
        for key in ("allOf", "anyOf", "oneOf"):
            for i in range(len(place.data.get(key, ()))):
                yield from self._parts(place.inner(key, i), always and key == "allOf", depth + 1)
        for key in ("then", "else"):
            if key in place.data:
                yield from self._parts(place.inner(key), False, depth + 1)

    def _types(self, place: _Place) -> tuple[frozenset[str], str]:
        types: set[str] = set()
        format_ = ""
        for part, _ in self._parts(place):
            types |= _own_types(part.data)
            format_ = format_ or part.data.get("format", "")
        return frozenset(types), format_


_FORMATS = ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uri-reference", "uuid", "regex")

_TYPES = ("string", "integer", "number", "boolean", "object", "array", "null")
_DIALECTS = (
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
    "http://json-schema.org/draft-06/schema",
    "http://json-schema.org/draft-04/schema",
)


def _without_id(schema: Any) -> Any:
    """References are relative to the file they stand in, not to the address that a schema claims to have."""
    return {k: v for k, v in schema.items() if k != "$id"} if isinstance(schema, dict) else schema


def _short(error: Exception) -> str:
    message: str = getattr(error, "message", str(error))
    return message.splitlines()[0]


def _children(place: _Place) -> Iterator[_Place]:
    data = place.data
    for key in _IN_MAPPINGS:
        if isinstance(data.get(key), dict):
            yield from (place.inner(key, name) for name in data[key])
    for key in (*_IN_LISTS, *_SINGLE):
        if isinstance(data.get(key), list):
            yield from (place.inner(key, i) for i in range(len(data[key])))
        elif key in data:
            yield place.inner(key)


def _own_types(schema: Mapping[str, Any]) -> set[str]:
    types = schema.get("type", ())
    if types:
        return {types} if isinstance(types, str) else set(types)
    values = [schema["const"]] if "const" in schema else schema.get("enum", ())
    return {_json_type(v) for v in values}


def _json_type(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")
