"""The JSON Schema of a contract: compiled once, checked at Rust's speed, never fetched; what it says of an event's fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urldefrag

from factory_agents.contracts.documents import Document, KeyPath, did_you_mean, one_of, show
from factory_agents.contracts.patterns import PatternError, bounded, check_pattern, engine
from factory_agents.contracts.references import Place, References
from factory_agents.contracts.tries import Tries, alternatives
from factory_agents.contracts.wording import Explain, Violation, single_fault, wording
from factory_agents.digits import whole_bound

__all__ = ["FieldType", "Schema", "Violation", "compile_schema"]


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
    """A compiled schema: ``is_valid`` for the many, ``violations`` for the few, ``fields`` in the order of their declaration.

    ``texts`` are the files that it refers to, by their names relative to its folder; ``notes`` what it says that is not checked.
    ``plain`` is what the validator was given, ``part`` the validator of what stands at a path of it. ``weighs_numbers``: it may say of
    some number more than that it is one.
    """

    is_valid: Callable[[Any], bool]
    fields: Mapping[str, FieldType]
    content: Any
    texts: Mapping[str, str]
    notes: tuple[str, ...]
    plain: Any = field(repr=False)
    part: Callable[[Sequence[str]], Callable[[Any], bool]] = field(repr=False)
    _errors: Callable[[Any], Iterator[Any]] = field(repr=False)
    _tries: Tries = field(repr=False)
    _single_fault: Explain | None = field(repr=False, default=None)
    weighs_numbers: bool = True

    def violations(self, event: Any) -> list[Violation]:
        """Everything that breaks the schema: path, what was expected, what came. Of an event of very many values, only whether it does."""
        try:
            if self._single_fault is not None and (found := self._single_fault(event)) is not None:
                return [found]
            if why := _too_large(event, self._tries):
                return [] if self.is_valid(event) else [Violation("schema", f"the event: breaks the schema; {why}")]
            return [self._violation(error) for error in self._errors(event)]
        except (ValueError, RecursionError) as error:
            return [Violation("schema", f"the event: cannot be checked: {str(error)[:200]}")]

    def _violation(self, error: Any) -> Violation:
        path, kind = list(error.instance_path), error.kind
        if kind.name == "required":
            path.append(kind.property)
        name = path[0] if path and path[0] in self.fields else ""
        where = name if len(path) == 1 and name else _dotted(path) or "the event"
        return Violation(f"schema:{name}" if name else "schema", f"{where}: {wording(error, kind)}")


_NESTED = (dict, list)
_MOST_VALUES, _MOST_TRIES = 2_000, 20_000
"""Each value may be an error or several, and one costs some 60 µs: a list of a million wrong items would take a minute, and gigabytes.
An error of a schema that is part of itself may hold those of all levels below it.
"""


def _too_large(event: Any, tries: Tries) -> str:
    """Why it isn't said of each value of an event what is wrong with it; empty for most events."""
    count, depth, level = 0, 0, [event] if type(event) in _NESTED else []
    while level:
        parts: list[Any] = []
        for value in level:
            inner = value.values() if type(value) is dict else value
            count += len(inner)
            if count > _MOST_VALUES:
                return f"it holds more than {_MOST_VALUES:,} values, too many to say of each what is wrong"
            parts += [part for part in inner if type(part) in _NESTED]
        level = parts
        depth += 1
    if depth > 1 and count * tries.of(depth, _MOST_TRIES) > _MOST_TRIES:
        return f"the schema is part of itself, and over {depth} levels there are too many ways to try it to say what is wrong"
    return ""


def _dotted(path: list[str | int]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


_IN_MAPPINGS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_MOST_TIMES = 10_000
"""Against how many subschemas one value may be tried: each is work for every event, and its error is told."""
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


_FOREIGN = {
    "nullable": ("OpenAPI 3.0", "null among the types"),
    "divisibleBy": ("its draft 3", "multipleOf"),
    "disallow": ("its draft 3", "not"),
    "extends": ("its draft 3", "allOf"),
}
"""What other notations call what they would restrict: whose word it is, and what stands in its place."""


def compile_schema(document: Document, path: KeyPath, folder: Path, texts: Mapping[str, str] | None = None) -> Schema:
    """Compile the schema that stands at ``path`` of a contract whose relative references start at ``folder``.

    With ``texts`` it refers to these, by their names relative to the folder, and no file is read. Raises ContractError with file, line and
    column: a broken schema, a near miss of a keyword, a reference that leads nowhere or to the network.
    """
    return _Compiler(References(document, path, folder, texts)).compile()


class _Compiler:
    """Checks every subschema that can apply, and makes of them what the validator is given.

    That is a copy in which references are addresses of places (whatever ``$id`` says), patterns have a bound and formats that nobody checks
    are left out.
    """

    def __init__(self, references: References) -> None:
        self._references = references
        self._top = references.top
        self._plain: dict[str, Any] = {}
        self._notes: dict[str, None] = {}

    def compile(self) -> Schema:
        top = self._top
        errors = [] if top.document.errors is None else top.document.errors
        before = len(errors)
        with top.document.attempt():
            top.document.mapping(top.path, top.data, "a JSON Schema")
            self._check_meta(top)
        sound = len(errors) == before
        with top.document.attempt():
            try:
                self._walk(top, set(), {})
            except RecursionError:
                sound = False
                top.document.fail(top.path, "its references lead too deep")
        if len(errors) > before:  # collected: the fields are what others are checked against
            return Schema(
                lambda _: False,
                self._fields() if sound else {},
                None,
                {},
                (),
                None,
                lambda _: lambda _: False,
                lambda _: iter(()),
                Tries(self._references),
            )
        try:
            validator = self._validator(self._plain[top.uri])
        except ValueError as error:
            top.document.fail((*top.path, *getattr(error, "instance_path", ())), _short(error))
        files = {self._references.relative(uri): document for uri, document in self._references.files.items()}
        content = [top.data, {name: document.data for name, document in files.items()}]
        texts = {name: document.text for name, document in files.items()}
        plain = self._copy(top)
        return Schema(
            validator.is_valid,
            self._fields(),
            content,
            texts,
            tuple(self._notes),
            plain,
            self._part,
            validator.iter_errors,
            Tries(self._references),
            single_fault(plain, self._part),
            any(map(_weighs_numbers, self._plain.values())),
        )

    def _validator(self, schema: Any, uri: str = "") -> Any:
        import jsonschema_rs

        return jsonschema_rs.validator_for(
            schema,
            validate_formats=True,
            ignore_unknown_formats=False,
            retriever=self._retrieve,
            base_uri=uri or self._top.uri,
            pattern_options=engine(),
        )

    def _part(self, path: Sequence[str]) -> Callable[[Any], bool]:
        """The validator of a part, which may refer to the others."""
        top = self._copy(self._top)
        dialect = {"$schema": top["$schema"]} if "$schema" in top else {}
        schema = {**dialect, "$ref": self._references.canonical(self._top.inner(*path))}
        is_valid: Callable[[Any], bool] = self._validator(schema, f"{self._top.uri}.part").is_valid
        return is_valid

    def _retrieve(self, uri: str) -> Any:
        base = urldefrag(uri).url
        if base not in self._plain:
            raise ValueError(f"{uri}: only files beside the contract are read")
        return self._plain[base]

    def _check_meta(self, place: Place) -> None:
        """Is it a schema at all? The schema of schemas knows, and where not."""
        import jsonschema_rs

        given = place.data.get("$schema", _DIALECTS[0]) if isinstance(place.data, dict) else _DIALECTS[0]
        dialect = _dialect(given)
        if dialect is None:
            place.document.fail((*place.path, "$schema"), f"unknown dialect {show(given)}{one_of('', _DIALECTS)}")
        data = {**place.data, "$schema": dialect} if isinstance(place.data, dict) else place.data
        try:
            jsonschema_rs.meta.validate(data)
        except ValueError as error:
            errors = [error]
            if place.document.errors is not None and isinstance(error, jsonschema_rs.ValidationError):
                errors = list(jsonschema_rs.validator_for({"$ref": dialect}).iter_errors(data))
            for one in errors:
                self._report_meta(place, one)

    def _report_meta(self, place: Place, error: Any) -> None:
        path = (*place.path, *getattr(error, "instance_path", ()))
        value = getattr(error, "instance", None)
        if path[-1:] == ("type",) and isinstance(value, str):
            message = f"unknown type {value!r}{one_of(value, _TYPES)}"
        else:
            message = f"not JSON Schema: {wording(error) if hasattr(error, 'kind') else _short(error)}"
        place.document.report(path, message)

    def _walk(self, place: Place, seen: set[tuple[str, KeyPath]], times: dict[tuple[str, KeyPath], int]) -> None:
        """Visit every subschema that can apply, across files, once."""
        if not isinstance(place.data, dict):
            self._copy(place)
            return
        if (place.uri, place.path) in seen:
            return
        seen.add((place.uri, place.path))
        self._check_keywords(place)
        target = self._references.target(place)
        self._simplify(place, target)
        for child in _children(place):
            self._walk(child, seen, times)
        if target is not None:
            if target.uri != place.uri:
                self._check_meta(target)
            self._walk(target, seen, times)
        self._count(place, times)

    def _count(self, place: Place, times: dict[tuple[str, KeyPath], int]) -> int:
        """Against how many subschemas a value at a place is tried, each as often as it is referred to."""
        at = (place.uri, place.path)
        if at not in times:
            times[at] = 0
            target = self._references.target(place) if isinstance(place.data, dict) else None
            parts = [*alternatives(place), *([] if target is None else [target])]
            times[at] = 1 + sum(self._count(part, times) for part in parts)
        if times[at] == 0:
            place.document.fail(place.path, "it is part of itself, for the same value: that checks nothing")
        if times[at] > _MOST_TIMES:
            times[at] = 1
            place.document.fail(place.path, f"one value would be tried against more than {_MOST_TIMES:,} schemas: refer to each part once")
        return times[at]

    def _check_keywords(self, place: Place) -> None:
        data, report = place.data, place.document.report
        if "$schema" in data:
            self._check_meta(place)
        for key in data:
            if key in _FOREIGN:
                whose, instead = _FOREIGN[key]
                report((*place.path, key), f"no keyword of JSON Schema (but of {whose}): expected {instead}", key=True)
            if key == "x-nullable":
                where = place.document.where((*place.path, key), key=True)
                self._notes[f"{where}: 'x-nullable' checks nothing: JSON Schema expects null among the types"] = None
            near = "" if key in _KEYWORDS or key in _FOREIGN or key.startswith("x-") else did_you_mean(key, _KEYWORDS, 0.75)
            if near:
                report((*place.path, key), f"not a keyword of JSON Schema{near} (own annotations begin with x-)", key=True)
        patterns = data.get("patternProperties")
        for path, pattern in (
            (("pattern",), data.get("pattern")),
            *((("patternProperties", name), name) for name in (patterns if isinstance(patterns, dict) else ())),
        ):
            try:
                if isinstance(pattern, str):
                    check_pattern(pattern, whole=path == ("pattern",))
            except PatternError as error:
                report((*place.path, *path), str(error), key=path != ("pattern",))
        self._check_format(place)

    def _check_format(self, place: Place) -> None:
        name = place.data.get("format")
        if not isinstance(name, str) or self._is_checked(place, name):
            return
        near = "" if name in (*_UNCHECKED, *_FORMATS) else did_you_mean(name, _FORMATS, 0.8)
        if near:
            place.document.report((*place.path, "format"), f"unknown format {name!r}{near} (it would check nothing)")
        where = place.document.where((*place.path, "format"))
        self._notes[f"{where}: the format {name!r} checks nothing"] = None

    def _is_checked(self, place: Place, format_: str) -> bool:
        """Whether the dialect of the file, each of which knows more formats than the one before, checks this one."""
        import jsonschema_rs

        top = place._replace(path=self._references.start(place.uri)).data
        dialect = _dialect(top["$schema"]) if isinstance(top, dict) and "$schema" in top else _DIALECTS[0]
        try:
            schema = {"$schema": dialect, "format": format_}
            jsonschema_rs.validator_for(schema, validate_formats=True, ignore_unknown_formats=False)
        except ValueError:
            return False
        return True

    def _copy(self, place: Place) -> Any:
        """The copy of what stands at a place."""
        start = self._references.start(place.uri)
        if place.uri not in self._plain:
            self._plain[place.uri] = deepcopy(place._replace(path=start).data)
        value = self._plain[place.uri]
        for key in place.path[len(start) :]:
            value = value[key]
        return value

    def _simplify(self, place: Place, target: Place | None) -> None:
        """What the validator is given in the place of this subschema."""
        data, copy = place.data, self._copy(place)
        for key in (place.id_key, "$anchor", "$schema"):
            if isinstance(data.get(key), str):
                copy.pop(key, None)
        if "$schema" in data and place.path == self._references.start(place.uri):
            copy["$schema"] = _dialect(data["$schema"])
        if target is not None:
            copy["$ref"] = self._references.canonical(target)
        for key in _BOUNDS:
            if key in copy:
                copy[key] = whole_bound(copy[key])
        if isinstance(data.get("format"), str) and not self._is_checked(place, data["format"]):
            copy.pop("format", None)
        parts = bounded(data["pattern"]) if isinstance(data.get("pattern"), str) else {}
        if "allOf" in parts:
            copy.pop("pattern", None)
            copy["allOf"] = [*copy.get("allOf", ()), *parts["allOf"]]

    def _fields(self) -> dict[str, FieldType]:
        """Top-level fields in the order of their declaration."""
        places: dict[str, Place] = {}
        required: set[str] = set()
        for place, always in self._parts(self._top):
            for name in place.data.get("properties", {}):
                places.setdefault(name, place.inner("properties", name))
            if always:
                required.update(place.data.get("required", ()))
        return {name: FieldType(*self._types(place), name in required) for name, place in places.items()}

    def _parts(self, place: Place, always: bool = True, seen: set[tuple[str, KeyPath, bool]] | None = None) -> Iterator[tuple[Place, bool]]:
        """The subschemas that speak of the same value, each with whether it always applies."""
        seen = set() if seen is None else seen
        if not isinstance(place.data, dict) or (place.uri, place.path, always) in seen:
            return
        seen.add((place.uri, place.path, always))
        yield place, always
        target = self._references.target(place)
        if target is not None:
            yield from self._parts(target, always, seen)
        for key in ("allOf", "anyOf", "oneOf"):
            for i in range(len(place.data.get(key, ()))):
                yield from self._parts(place.inner(key, i), always and key == "allOf", seen)
        for key in ("then", "else"):
            if key in place.data:
                yield from self._parts(place.inner(key), False, seen)

    def _types(self, place: Place) -> tuple[frozenset[str], str]:
        types: set[str] = set()
        format_ = ""
        for part, _ in self._parts(place):
            types |= _own_types(part.data)
            format_ = format_ or part.data.get("format", "")
        return frozenset(types), format_


_FORMATS = (
    *("date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6", "uri", "uri-reference"),
    *("iri", "iri-reference", "uri-template", "json-pointer", "relative-json-pointer", "uuid", "regex"),
)
_UNCHECKED = (
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float", "double", "double-int", "decimal", "decimal128"),
    *("byte", "binary", "base64url", "char", "password", "html", "commonmark", "media-range", "http-date"),
)
"""Formats that tools write (OpenAPI's registry has them) and that no validator checks."""

_TYPES = ("string", "integer", "number", "boolean", "object", "array", "null")
_DIALECTS = (
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
    "http://json-schema.org/draft-06/schema",
    "http://json-schema.org/draft-04/schema",
)


def _dialect(given: Any) -> str | None:
    """A dialect by its address, however it is written: http or https, with or without a final ``#``."""
    name = given.removesuffix("#").partition("://")[2] if isinstance(given, str) else ""
    if name == "json-schema.org/schema":  # the newest, whichever that is
        return _DIALECTS[0]
    if name.startswith("iglucentral.com/schemas/com.snowplowanalytics.self-desc/"):  # draft 4, with a name and a version
        return _DIALECTS[-1]
    return next((known for known in _DIALECTS if name and known.endswith(f"://{name}")), None)


def _short(error: Exception) -> str:
    message: str = getattr(error, "message", str(error))
    return message.splitlines()[0]


def _children(place: Place) -> Iterator[Place]:
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


_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_WEIGHING = frozenset({*_BOUNDS, "multipleOf", "divisibleBy", "uniqueItems", "const", "enum"})


def _weighs_numbers(said: Any) -> bool:
    if isinstance(said, list):
        return any(map(_weighs_numbers, said))
    if not isinstance(said, dict):
        return False
    of_texts = all(type(value) in (str, bool, type(None)) for value in (*said.get("enum", ()), said.get("const")))
    weighing = _WEIGHING - {"enum", "const"} if of_texts else _WEIGHING
    return not weighing.isdisjoint(said) or "integer" in said.get("type", ()) or any(map(_weighs_numbers, said.values()))


def _json_type(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", Decimal: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")
