"""Reads contracts of the Open Data Contract Standard (3.0 to 3.2): as the short form, with the places of the original.

What the standard can't say is in a custom property ``factory`` of the schema: a mapping with keys of the short form (``time``,
``time_unit``, ``version_field``, ``deletes``, …).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple

import msgspec

from factory_agents.contracts.documents import Document, KeyPath, did_you_mean, show
from factory_agents.contracts.drafts import Draft, Translation, contract_name
from factory_agents.contracts.odcs_types import PropertyReader, field_name
from factory_agents.contracts.wording import wording
from factory_agents.errors import ContractError

__all__ = ["NEWEST", "OPERATORS", "Finding", "is_odcs", "read_odcs", "standard_errors"]

NEWEST = "v3.2.0"
_VERSIONS = {"v3.0": "3.0.2", "v3.1": "3.1.0", "v3.2": "3.2.0"}
_WARNINGS = ("info", "information", "notice", "low", "minor", "warn", "warning", "medium")
OPERATORS = {
    "mustBe": "!=",
    "mustNotBe": "==",
    "mustBeGreaterThan": "<=",
    "mustBeGreaterOrEqualTo": "<",
    "mustBeLessThan": ">=",
    "mustBeLessOrEqualTo": ">",
    "mustBeBetween": "not between",
    "mustNotBeBetween": "between",
}
"""When a check of the standard is broken, as our conditions write it."""
_OLD_METRICS = {"duplicateCount": "duplicateValues", "nullCount": "nullValues", "missingCount": "missingValues"}
_OLD_METRICS |= {"invalidCount": "invalidValues", "validValues": "invalidValues", "unique": "duplicateValues"}
_MOST_ERRORS, _MOST_KEYS = 200, 20
"""Findings of a document, and of unknown keys in one place, that are told."""
_OLD_KEYS = {"isNullable": "required", "isUnique": "unique", "isPrimary": "primaryKey", "isPrimaryKey": "primaryKey"}
_UNITS = {"rows": "", "row": "", "count": "", "percent": " %", "percentage": " %", "%": " %"}
_SLA_UNITS = {"s": "s", "second": "s", "min": "min", "minute": "min", "h": "h", "hr": "h", "hour": "h", "d": "d", "day": "d"}


class Finding(NamedTuple):
    """What the standard's schema has against a document, and where."""

    path: KeyPath
    error: ContractError

    @property
    def of_events(self) -> bool:
        """Whether it is in what says what events must be; elsewhere (servers, team, …) it stops nobody."""
        return self.path[0] in ("apiVersion", "kind", "name", "schema", "slaProperties", "customProperties")


def is_odcs(data: Any) -> bool:
    """Whether a document is a contract of the standard."""
    return isinstance(data, Mapping) and (
        "apiVersion" in data or data.get("kind") == "DataContract" or isinstance(data.get("schema"), list)
    )


def standard_errors(document: Document) -> list[Finding]:
    """What the standard's own schema says against a document: nothing for a good one.

    A document that says an older version than it is written in is judged by the one that fits it best.
    """
    data = document.mapping((), document.data, "a data contract")
    given = data.get("apiVersion")
    version = next((v for v in _VERSIONS if isinstance(given, str) and (given + ".").startswith(v + ".")), None)
    if version is None:
        what = "no apiVersion" if given is None else f"apiVersion {show(given)}"
        known = ", ".join(f"v{v}" for v in _VERSIONS.values())
        error = document.error(("apiVersion",), f"expected a version of the standard, one of {known}, got {what}")
        return [Finding(("apiVersion",), error)]
    newer = list(_VERSIONS)[list(_VERSIONS).index(version) :]
    found: list[list[Finding]] = []
    for name in newer:
        found.append(_judge(document, _VERSIONS[name], given))
        if not found[-1]:
            break
    return min(found, key=len)


@lru_cache(maxsize=4)
def _validator(version: str) -> Any:
    import jsonschema_rs

    return jsonschema_rs.validator_for(_schema(version))


def _schema(version: str) -> Any:
    schema = msgspec.json.decode((resources.files("factory_agents.contracts.standard") / f"odcs-{version}.json").read_bytes())
    del schema["properties"]["apiVersion"]["enum"]  # a newer schema judges older documents too
    for branch in schema["$defs"]["SchemaBaseProperty"]["allOf"]:
        if "if" in branch and not {"items", "properties"} & set(branch["then"]["properties"]):
            branch["if"]["required"] = ["logicalType"]  # as it stands, a property without a type would have to be a map and a vector
    return schema


def _judge(document: Document, version: str, given: Any) -> list[Finding]:
    try:
        errors = list(_validator(version).iter_errors(document.data))
    except (ValueError, RecursionError) as problem:
        return [Finding(("schema",), document.error((), f"cannot be checked: {str(problem)[:200]}"))]
    known = _names(version)
    paths = [tuple(e.instance_path) for e in errors if e.kind.name != "unevaluatedProperties"]
    broken = {path[:length] for path in paths for length in range(len(path) + 1)}
    found: dict[str, Finding] = {}
    for error in errors:
        path = tuple(error.instance_path)
        for one in _errors_at(document, path, error, known, path in broken, given):
            found.setdefault(str(one), Finding(path or _root_path(error), one))
        if len(found) >= _MOST_ERRORS:  # what is not told may be in what events are checked against
            return [*found.values(), Finding(("schema",), document.error((), "there is more that is wrong: mend this first"))]
    return list(found.values())


def _root_path(error: Any) -> KeyPath:
    """Of which key of the root an error at the root is; an unknown key may be meant as the schema."""
    facts = error.kind.as_dict()
    names = [facts["property"]] if error.kind.name == "required" else facts.get("unexpected") or ["schema"]
    return ("schema",) if any(did_you_mean(name, ["schema", "schemas"]) for name in names) else (names[0],)


def _errors_at(document: Document, path: KeyPath, error: Any, known: frozenset[str], broken: bool, given: Any) -> Iterator[ContractError]:
    """What one finding of the standard's schema comes to. Where a part is ``broken``, keys that are known elsewhere are no finding."""
    kind, facts = error.kind.name, error.kind.as_dict()
    if kind in ("additionalProperties", "unevaluatedProperties"):
        for name in facts["unexpected"][:_MOST_KEYS]:
            if kind == "additionalProperties" or name not in known or not broken:
                near = ", only for other types or parts" if name in known else did_you_mean(name, known, 0.75)
                near = f"; did you mean {_OLD_KEYS[name]!r}?" if name in _OLD_KEYS else near
                yield document.error((*path, name), f"{given} has no such key here{near}", key=True)
    elif error.instance is None and path and isinstance(path[-1], str) and path[-1] not in ("name", "value"):
        return  # a key without a value says nothing, as in the standard's own examples
    elif kind == "required":
        yield document.error(path, f"expected {facts['property']}, got none")
    elif "oneOf" in kind and "quality" in path and isinstance(error.instance, dict):
        given = [name for name in OPERATORS if name in error.instance]
        if not given:
            yield document.error(path, f"expected one of {', '.join(OPERATORS)}, got none")
        elif len(given) == 1:  # of several operators all must hold
            yield document.error((*path, given[0]), f"expected a number, or two for between, got {show(error.instance[given[0]])}")
    elif "oneOf" in kind and "relationships" in path:
        what = "a property, as orders.customer_id or schema/orders/properties/customer_id, or a list of them"
        what = f"to, and from in a schema's own, each {what}" if isinstance(error.instance, dict) else what
        yield document.error(path, f"expected {what}, got {show(error.instance)}")
    else:
        yield document.error(path, wording(error))


def _names(version: str) -> frozenset[str]:
    """Every key that the standard knows anywhere."""
    found: set[str] = set()
    todo = [_schema(version)]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            found |= set(part.get("properties", ())) if isinstance(part.get("properties"), dict) else set()
            todo += part.values()
        elif isinstance(part, list):
            todo += part
    return frozenset(found)


def read_odcs(document: Document, wanted: str = "") -> Translation:
    """The contract that a document of the standard is, in the short form.

    ``wanted`` is the name of one of its schemas, where it has several. Raises ContractError for a schema that isn't as the standard has it;
    what is wrong in parts that say nothing of events (servers, team, …) is noted.
    """
    findings = standard_errors(document)
    for finding in findings:
        if finding.of_events:
            raise finding.error
    return _Translator(document, wanted, [str(finding.error) for finding in findings]).translate()


class _Translator:
    """Builds the short form part by part."""

    def __init__(self, document: Document, wanted: str, notes: Sequence[str]) -> None:
        self._document = document
        self._data: dict[str, Any] = document.data
        self._at, self._object = self._choose(wanted)
        self._draft = Draft(document)
        self._draft.notes += notes
        self._reader = PropertyReader(self._draft)
        self._figures: dict[tuple[str, str, str], str] = {}
        self._properties = [p for p in self._object.get("properties") or () if p.get("semanticType") != "measure"]
        self._names = {p["name"]: field_name(p) for p in self._properties}

    def _choose(self, wanted: str) -> tuple[KeyPath, Mapping[str, Any]]:
        """The schema that is meant, and where it stands."""
        schemas = self._data.get("schema") or []
        names = [str(s["name"]) for s in schemas]
        fitting = [i for i, s in enumerate(schemas) if wanted in ("", s.get("name"), s.get("physicalName"), s.get("id"))]
        if not schemas and not wanted:
            return (), {}
        if len(fitting) == 1:
            return ("schema", fitting[0]), schemas[fitting[0]]
        listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
        if wanted:
            what = f"{len(fitting)} schemas are called" if fitting else "there is no schema"
            raise self._document.error(("schema",), f"{what} {wanted!r}; it holds {listed or 'none'}")
        what = f"it holds {len(names)} schemas: name one of them, such as {self._document.name}#{names[0]}"
        raise self._document.error(("schema",), f"{what} (of {listed})")

    def translate(self) -> Translation:
        """All of it."""
        data, reader = self._data, self._reader
        self._draft.put(("name",), self._name(), (*self._at, "name") if self._at else ("name",))
        self._draft.put(("version",), data.get("version") or "1", ("version",))
        described = data.get("description")
        purpose = self._object.get("description") or (described.get("purpose") if isinstance(described, Mapping) else None)
        team = data.get("team")
        owner = team.get("name") if isinstance(team, Mapping) else None
        for key, text in (("description", purpose), ("owner", owner)):
            if isinstance(text, str) and text:
                self._draft.put((key,), text, self._at)
        self._draft.put(("id",), None, self._at)
        schema = reader.properties(self._object.get("properties"), (*self._at, "properties"), ("schema",), "")
        self._draft.put(("schema",), schema, self._at)
        if not self._properties:
            self._draft.notes.append(f"{self._document.where(self._at)}: it declares no properties: any JSON object is valid")
        self._keys()
        self._columns()
        for name, text, at in reader.rules:
            self._draft.rule(name, text, at)
        for i, prop in enumerate(self._object.get("properties") or ()):
            self._of_property(prop, (*self._at, "properties", i), top=True)
        for i, check in enumerate(self._object.get("quality") or ()):
            with self._document.attempt():
                self._quality(check, (*self._at, "quality", i), "")
        self._relationships(self._object, self._at, "")
        with self._document.attempt():
            self._extra()
        for i, promise in enumerate(self._data.get("slaProperties") or ()):
            self._promise(promise, ("slaProperties", i))
        return self._draft.translation()

    def _name(self) -> str:
        """The schema's name (else the contract's), as our names are."""
        given = str(self._object.get("name") or self._data.get("name") or self._data.get("id") or "")
        return contract_name(given)

    def _keys(self) -> None:
        """The key: of one field, which is then the id too, or of several."""
        keys = [(p.get("primaryKeyPosition", 0), i, p) for i, p in enumerate(self._properties) if p.get("primaryKey") is True]
        names = [field_name(p) for _, _, p in sorted(keys, key=lambda k: k[:2])]
        place = (*self._at, "properties", self._object["properties"].index(keys[0][2])) if keys else self._at
        if len(names) == 1:
            self._draft.put(("id",), names[0], place)
        elif names:
            self._draft.put(("key",), names, place)

    def _columns(self) -> None:
        types = {field_name(p): self._reader.column(p) for p in self._properties}
        if any(types.values()):
            self._draft.put(("columns",), types, self._at)

    def _of_property(self, prop: Mapping[str, Any], at: KeyPath, *, top: bool) -> None:
        """The checks of a property and of those in it; only top ones are counted."""
        if prop.get("semanticType") == "measure":
            return
        name = field_name(prop) if "name" in prop else "an item"
        if prop.get("unique") is True:
            if top and self._can_name(name):
                self._draft.condition("fail_if", f"duplicates({name}) > 0", (*at, "unique"))
            else:
                self._draft.pass_over((*at, "unique"), f"unique of {name}", _INNER)
        for i, check in enumerate(prop.get("quality") or ()):
            with self._document.attempt():
                self._quality(check, (*at, "quality", i), name if top else None)
        self._relationships(prop, at, name if top else None)
        for i, inner in enumerate(prop.get("properties") or ()):
            self._of_property(inner, (*at, "properties", i), top=False)
        for key, inner in (("items", prop.get("items")), *((("map", k), v) for k, v in (prop.get("map") or {}).items())):
            if isinstance(inner, Mapping):
                self._of_property(inner, (*at, *((key,) if isinstance(key, str) else key)), top=False)

    def _can_name(self, *names: str) -> bool:
        return not any(set(name) & set("(),") or name != name.strip() for name in names)

    def _relationships(self, element: Mapping[str, Any], at: KeyPath, field: str | None) -> None:
        """Foreign keys of the whole schema (``field`` empty), of a field, or of one further in (None): run if they say where data is."""
        for i, relation in enumerate(element.get("relationships") or ()):
            place = (*at, "relationships", i)
            if not isinstance(relation, Mapping):
                self._draft.pass_over(place, f"the relationship {show(relation)}", "it names no data")
                continue
            of = field if field != "" else self._names.get(re.split(r"[./]", str(relation.get("from")))[-1])
            customs = list(enumerate(relation.get("customProperties") or ()))
            told = next(((j, c["value"]) for j, c in customs if c.get("property") == "factory" and "value" in c), None)
            if of and told is not None:
                at_value = (*place, "customProperties", told[0], "value")
                column = re.split(r"[./]", str(relation.get("to")))[-1]
                given = self._document.mapping(at_value, told[1], "a mapping with a file or a table")
                self._draft.put(("references", of), {"column": column, **given}, at_value)
            else:
                why = "its custom property factory says no file or table" if of else "only a single top-level field is checked"
                self._draft.pass_over(place, f"the relationship to {show(relation.get('to'))}", why)

    def _quality(self, check: Mapping[str, Any], at: KeyPath, field: str | None) -> None:
        """One check: of the whole schema (``field`` empty), of a field, or of one further in (None)."""
        kind = check.get("type") or ("library" if "metric" in check or "rule" in check else "sql" if "query" in check else "text")
        label = f"{kind} check {show(check.get('name') or check.get('id') or check.get('description') or check.get('metric') or '')}"
        if kind == "custom" and str(check.get("engine", "")).lower() == "factory":
            self._own(check, at)
        elif kind == "custom":
            self._draft.pass_over(at, label, f"it is for the engine {show(check.get('engine'))}")
        elif kind == "sql":
            problem = self._sql(check, at, field)
            if problem:
                self._draft.pass_over(at, label, problem)
        elif kind == "text":
            self._draft.pass_over(at, label, "it is for people to read")
        else:
            problem = _INNER if field is None else self._library(check, at, field)
            if problem:
                self._draft.pass_over(at, label, problem)

    def _own(self, check: Mapping[str, Any], at: KeyPath) -> None:
        """A check in our own words: a rule, or ``rule``, ``fail_if`` or ``warn_if`` of a mapping."""
        given = check.get("implementation")
        at = (*at, "implementation")
        parts = given if isinstance(given, Mapping) else {"rule": given}
        self._document.check_keys(at, parts, ("rule", "fail_if", "warn_if"))
        for key, text in ((k, v) for k, v in parts.items() if k in ("rule", "fail_if", "warn_if")):
            place = (*at, key) if isinstance(given, Mapping) else at
            if not isinstance(text, str):
                self._document.fail(place, f"expected the text of a rule or a condition, got {show(text)}")
            if key == "rule":
                self._draft.rule(str(check.get("name") or check.get("id") or "rule"), text, place)
            else:
                self._draft.condition(key, text, place)

    def _library(self, check: Mapping[str, Any], at: KeyPath, field: str) -> str:
        """A metric of the standard's library as conditions; why it can't be one, else nothing."""
        metric = str(check.get("metric") or _OLD_METRICS.get(str(check.get("rule")), check.get("rule")))
        arguments = check.get("arguments") or {}
        unit = _UNITS.get(str(check.get("unit", "rows")).lower())
        if unit is None:
            return f"its unit is {show(check.get('unit'))}; rows and percent are known"
        conditions = [(key, check[key]) for key in OPERATORS if key in check]
        if not conditions and check.get("rule"):  # 3.0 had rules that say all by their name
            conditions = [("mustBe", 0)]
        figure, problem = self._figure(metric, {**check, **arguments}, at, field)
        if unit and figure == "rows":
            problem = "a count of rows has no per cent"
        texts = [_condition(figure, key, limit, unit) for key, limit in conditions]
        if problem or None in texts:
            return problem or "what it is compared with is no number"
        for (key, _), text in zip(conditions, texts, strict=True):
            self._draft.condition(_level(check), str(text), (*at, key) if key in check else at)
        return "" if texts else "it says nothing to compare with"

    def _sql(self, check: Mapping[str, Any], at: KeyPath, field: str | None) -> str:
        """A query as conditions on what it gives; why it can't be one, else nothing. DuckDB may not know its dialect, or other tables."""
        text = check.get("query")
        if not isinstance(text, str) or not text.strip():
            return "it has no query"
        if field is None and _PROPERTY.search(text):
            return _INNER
        text = _OBJECT.sub("events", _PROPERTY.sub(lambda _: '"' + (field or "").replace('"', '""') + '"', text))
        own = str(self._object.get("physicalName") or self._object.get("name") or "events")
        name = re.sub(r"[^\w .-]+", "_", str(check.get("name") or check.get("id") or field or "sql")).strip() or "sql"
        texts = {key: _condition("sql({})", key, check[key], "") for key in OPERATORS if key in check}
        if not texts or None in texts.values():
            return "what it is compared with is no number" if texts else "it says nothing to compare with"
        known = self._draft.data.get("window", {}).get("sql", {})
        query = {"query": text, "table": own, "required": False}
        while known.get(name, query) != query:
            name += "_"
        self._draft.put(("window", "sql", name), query, at)
        for key, condition in texts.items():
            self._draft.condition(_level(check), str(condition).format(name), (*at, key))
        return ""

    def _figure(self, metric: str, arguments: Mapping[str, Any], at: KeyPath, field: str) -> tuple[str, str]:
        """The figure of our conditions that a metric is, or why there is none."""
        if metric == "rowCount":
            return "rows", ""
        if metric == "duplicateValues":
            listed = arguments.get("properties")
            names = [self._names.get(str(n), str(n)) for n in listed] if isinstance(listed, list) and listed else [field]
            if "" in names:
                return "", "expected arguments.properties, the names of properties"
            unknown = next((n for n in names if n not in self._names.values()), None)
            if unknown is not None:
                self._document.fail(
                    (*at, "arguments", "properties"), f"there is no property {unknown!r}{did_you_mean(unknown, self._names)}"
                )
            return (f"duplicates({', '.join(names)})", "") if self._can_name(*names) else ("", _UNNAMED)
        if not field:
            return "", f"{metric} is a metric of a property"
        if not self._can_name(field):
            return "", _UNNAMED
        return self._figure_of_field(metric, arguments, at, field)

    def _figure_of_field(self, metric: str, arguments: Mapping[str, Any], at: KeyPath, field: str) -> tuple[str, str]:
        if metric == "nullValues":
            return f"nulls({field})", ""
        if metric == "missingValues":
            values = arguments.get("missingValues", [None, ""])
            return self._counted("missing", field, {"values": values}, (*at, "arguments"))
        if metric == "invalidValues":
            spec = {"values": arguments.get("validValues"), "pattern": arguments.get("pattern")}
            spec = {key: value for key, value in spec.items() if value is not None}
            return self._counted("invalid", field, spec, (*at, "arguments")) if spec else (f"rejected(schema:{field})", "")
        return "", f"the metric {show(metric)} is unknown"

    def _counted(self, figure: str, field: str, spec: dict[str, Any], at: KeyPath) -> tuple[str, str]:
        """A figure whose values the contract lists, under the field's name or, where another list has that, one beside it."""
        meaning = (figure, field, repr(spec))
        if meaning not in self._figures:
            n = sum(known[:2] == meaning[:2] for known in self._figures) if len(self._figures) < _MOST_ERRORS else len(self._figures)
            self._figures[meaning] = f"{field}_{n + 1}" if n else field
        name = self._figures[meaning]
        self._draft.put(("window", figure, name), spec if name == field else {"field": field, **spec}, at)
        return f"{figure}({name})", ""

    def _extra(self) -> None:
        """What the standard has no words for: our own custom property."""
        for holder, path in ((self._data, ()), (self._object, self._at)):
            for i, custom in enumerate(holder.get("customProperties") or () if holder else ()):
                if custom.get("property") == "factory":
                    at = (*path, "customProperties", i, "value")
                    self._draft.merge(custom.get("value"), at)
            if holder is self._data and not self._at:
                return

    def _promise(self, promise: Mapping[str, Any], at: KeyPath) -> None:
        """A service level: of latency one can be held to by a window, if it names a field of time."""
        name = str(promise.get("property"))
        problem = self._latency(promise, at) if name in ("latency", "freshness", "ly") else "it says nothing of the events of a window"
        if problem:
            self._draft.pass_over(at, f"the service level {name}", problem)

    def _latency(self, promise: Mapping[str, Any], at: KeyPath) -> str:
        element = str(promise.get("element") or self._data.get("slaDefaultElement") or "")
        own = (self._object.get("name"), self._object.get("physicalName"))
        fields = [e.strip().rpartition(".") for e in element.split(",")]
        found = next((self._names[field] for of, _, field in fields if of in ("", *own) and field in self._names), None)
        value, unit = promise.get("value"), str(promise.get("unit", "")).lower()
        time = _SLA_UNITS.get(unit) or _SLA_UNITS.get(unit.removesuffix("s"))
        number = _number(value)
        if number is None or time is None:
            return f"expected a number and a unit such as h or d, got {show(value)} and {show(promise.get('unit'))}"
        known = self._draft.data.get("time")
        if (found or known) is None or (known is not None and found is not None and found != known):
            return f"{element or 'it'} names no field of this schema that is its time"
        if known is None:
            types = self._draft.data["schema"]["properties"][found].get("type", "")
            if "string" not in types:
                return f"{found} is no text: expected time and time_unit in the custom property factory"
            self._draft.put(("time",), found, (*at, "element"))
        self._draft.condition("fail_if", f"freshness > {number} {time}", at)
        return ""


_OBJECT = re.compile(r"\$?\{(?:table|object|schema|model)\}")
_PROPERTY = re.compile(r"\$?\{(?:column|property|field)\}")
_INNER = "only top-level fields are counted"
_UNNAMED = "a condition cannot write the field's name"


def _level(check: Mapping[str, Any]) -> str:
    return "warn_if" if str(check.get("severity", "")).lower() in _WARNINGS else "fail_if"


def _number(value: Any) -> str | None:
    """A number as conditions write it."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return None
    return f"{Decimal(str(value)):f}"


def _condition(figure: str, operator: str, limit: Any, unit: str) -> str | None:
    """When a check is broken; None where what it compares with is no number."""
    if not operator.endswith("Between"):
        number = _number(limit)
        return None if number is None else f"{figure} {OPERATORS[operator]} {number}{unit}"
    lower, upper = (_number(value) for value in limit) if isinstance(limit, list) and len(limit) == 2 else (None, None)
    return None if lower is None or upper is None else f"{figure} {OPERATORS[operator]} {lower} and {upper}{unit}"
