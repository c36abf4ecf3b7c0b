"""An Avro schema as a contract: of the events that its records are when they are decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from factory_agents.contracts.documents import Document, KeyPath, did_you_mean, show
from factory_agents.contracts.drafts import Draft, Translation, contract_name

__all__ = ["is_avro", "read_avro"]

_PLAIN: Mapping[str, dict[str, Any]] = {
    "null": {"type": "null"},
    "boolean": {"type": "boolean"},
    "int": {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    "long": {"type": "integer"},
    "float": {"type": "number"},
    "double": {"type": "number"},
    "bytes": {"type": "string"},
    "string": {"type": "string"},
}
_LOGICAL: Mapping[tuple[str, str], dict[str, Any]] = {
    ("int", "date"): {"type": "string", "format": "date"},
    ("int", "time-millis"): {"type": "string"},
    ("long", "time-micros"): {"type": "string"},
    **{("long", f"timestamp-{unit}"): {"type": "string", "format": "date-time"} for unit in ("millis", "micros", "nanos")},
    **{("long", f"local-timestamp-{unit}"): {"type": "string"} for unit in ("millis", "micros", "nanos")},
    ("bytes", "decimal"): {"type": "number"},
    ("fixed", "decimal"): {"type": "number"},
    ("string", "uuid"): {"type": "string", "format": "uuid"},
    ("fixed", "uuid"): {"type": "string", "format": "uuid"},
}
"""As decoded values are written in JSON."""
_COLUMNS = {
    "int": "integer",
    "float": "real",
    "bytes": "bytea",
    "fixed": "bytea",
    "time-millis": "time",
    "time-micros": "time",
    "uuid": "uuid",
}
_COLUMNS |= {f"local-timestamp-{unit}": "timestamp" for unit in ("millis", "micros", "nanos")}
_NAMED = ("record", "error", "enum", "fixed")
_DEPTH = 60


def is_avro(data: Any) -> bool:
    """Whether a document is an Avro schema: a record, or a list of named types with a record among them."""
    parts = data if isinstance(data, list) else [data]
    return all(isinstance(part, Mapping) and part.get("type") in _NAMED for part in parts) and any(map(_is_record, parts))


def _is_record(part: Mapping[str, Any]) -> bool:
    return part.get("type") in ("record", "error") and "fields" in part


def read_avro(document: Document, wanted: str = "") -> Translation:
    """The contract that a record is; of several in a file the ``wanted`` one, by its name. Our own words may stand in its ``factory``."""
    parts: list[tuple[KeyPath, Mapping[str, Any]]] = [((), document.data)]
    if isinstance(document.data, list):
        parts = [((i,), part) for i, part in enumerate(document.data)]
    records = [i for i, (_, part) in enumerate(parts) if _is_record(part)]
    names = [str(parts[i][1].get("name")) for i in records]
    if wanted and wanted not in names:
        document.fail((), f"there is no record {wanted!r}; it holds {', '.join(names)}")
    if not wanted and len(records) > 1:
        document.fail((), f"it holds {len(records)} records: name one of {', '.join(names)}, such as {document.name}#{names[0]}")
    reader = _Reader(document)
    schemas = [reader.convert(part, at, "", 0) for at, part in parts]
    chosen = records[names.index(wanted) if wanted else 0]
    return reader.contract(parts[chosen][1], parts[chosen][0], schemas[chosen])


class _Reader:
    """Converts types, and knows those that have names."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._draft = Draft(document)
        self._named: dict[str, dict[str, Any]] = {}
        self._used: dict[str, None] = {}

    def contract(self, record: Mapping[str, Any], place: KeyPath, converted: Mapping[str, Any]) -> Translation:
        """The contract of a record."""
        draft, schema = self._draft, dict(converted)
        if self._used:
            schema["$defs"] = {name: self._named[name] for name in self._used}
        draft.put(("name",), contract_name(str(record["name"])), (*place, "name"))
        draft.put(("id",), None, place)
        if isinstance(record.get("doc"), str) and record["doc"]:
            draft.put(("description",), record["doc"], (*place, "doc"))
        draft.put(("schema",), schema, place)
        columns = {str(f["name"]): _column(f["type"]) for f in record["fields"]}
        if any(columns.values()):
            draft.put(("columns",), columns, place)
        for i, field in enumerate(record["fields"]):
            draft.origins["schema", "properties", str(field["name"])] = (*place, "fields", i)
        if "factory" in record:
            draft.merge(record["factory"], (*place, "factory"))
        return draft.translation()

    def convert(self, schema: Any, at: KeyPath, space: str, depth: int) -> dict[str, Any]:
        """The JSON Schema of an Avro type in the namespace ``space``."""
        if depth > _DEPTH:
            self._document.fail(at, "nested too deeply")
        if isinstance(schema, list):
            return self._union(schema, at, space, depth)
        if isinstance(schema, str):
            return dict(_PLAIN[schema]) if schema in _PLAIN else self._reference(schema, at, space)
        if not isinstance(schema, Mapping) or "type" not in schema:
            self._document.fail(at, f"expected an Avro type, got {show(schema)}")
        kind = schema["type"]
        if isinstance(kind, (list, Mapping)) or (isinstance(kind, str) and kind not in (*_PLAIN, *_COMPLEX)):
            return self.convert(kind, (*at, "type"), space, depth + 1)
        logical = _LOGICAL.get((kind, str(schema.get("logicalType")))) if isinstance(kind, str) else None
        if isinstance(kind, str) and kind in _PLAIN:
            return dict(logical or _PLAIN[kind])
        maker: Callable[..., dict[str, Any]] | None = _COMPLEX.get(kind) if isinstance(kind, str) else None
        if maker is None:
            self._document.fail((*at, "type"), f"expected an Avro type, got {show(kind)}")
        made = maker(self, schema, at, space, depth)
        return dict(logical) if logical else made

    def _reference(self, name: str, at: KeyPath, space: str) -> dict[str, Any]:
        full = name if "." in name or not space else f"{space}.{name}"
        known = full if full in self._named else name
        if known not in self._named:
            what = f"unknown type {name!r}{did_you_mean(name, [*_PLAIN, *_COMPLEX, *self._named])}"
            self._document.fail(at, f"{what}; a type of another file has to stand in this one")
        self._used[known] = None
        return {"$ref": f"#/$defs/{known}"}

    def _union(self, schema: list[Any], at: KeyPath, space: str, depth: int) -> dict[str, Any]:
        parts = [self.convert(part, (*at, i), space, depth + 1) for i, part in enumerate(schema)]
        if not parts:
            self._document.fail(at, "expected types, got an empty union")
        others = [part for part in parts if part != {"type": "null"}]
        if len(others) == 1 and len(parts) > 1 and isinstance(others[0].get("type"), str):
            one = dict(others[0])
            one["type"] = [one["type"], "null"]
            return one | ({"enum": [*one["enum"], None]} if "enum" in one else {})
        if all(part.keys() == {"type"} for part in parts):
            return {"type": [part["type"] for part in parts]} if len(parts) > 1 else parts[0]
        return {"anyOf": parts} if len(parts) > 1 else parts[0]

    def _define(self, schema: Mapping[str, Any], at: KeyPath, space: str) -> tuple[str, str]:
        """The full name of a type that has one, and its namespace."""
        name = schema.get("name")
        if not isinstance(name, str) or not name:
            self._document.fail(at, f"expected a name, got {show(name)}")
        given = schema.get("namespace")
        own = name.rpartition(".")[0] if "." in name else given if isinstance(given, str) else space
        full = name if "." in name or not own else f"{own}.{name}"
        if full in self._named or full in _PLAIN:
            self._document.fail((*at, "name"), f"the type {full!r} is defined twice" if full in self._named else f"{full!r} is Avro's own")
        return full, own

    def _record(self, schema: Mapping[str, Any], at: KeyPath, space: str, depth: int) -> dict[str, Any]:
        full, own = self._define(schema, at, space)
        made: dict[str, Any] = {"type": "object"}
        self._named[full] = made  # fields may be of this very type
        fields = schema.get("fields")
        if not isinstance(fields, list):
            self._document.fail((*at, "fields"), f"expected a list of fields, got {show(fields)}")
        properties: dict[str, Any] = {}
        required = []
        for i, field in enumerate(fields):
            place = (*at, "fields", i)
            if not isinstance(field, Mapping) or not isinstance(field.get("name"), str) or "type" not in field:
                self._document.fail(place, f"expected a field with a name and a type, got {show(field)}")
            name = field["name"]
            if name in properties:
                self._document.fail((*place, "name"), f"two fields are called {name!r}")
            properties[name] = self.convert(field["type"], (*place, "type"), own, depth + 1)
            if "default" not in field:
                required.append(name)
        made |= ({"required": required} if required else {}) | ({"properties": properties} if properties else {})
        return made

    def _enum(self, schema: Mapping[str, Any], at: KeyPath, space: str, depth: int) -> dict[str, Any]:
        full, _ = self._define(schema, at, space)
        symbols = schema.get("symbols")
        if not isinstance(symbols, list) or not symbols or not all(isinstance(s, str) for s in symbols):
            self._document.fail((*at, "symbols"), f"expected a list of names, got {show(symbols)}")
        self._named[full] = {"type": "string", "enum": symbols}
        return self._named[full]

    def _fixed(self, schema: Mapping[str, Any], at: KeyPath, space: str, depth: int) -> dict[str, Any]:
        full, _ = self._define(schema, at, space)
        self._named[full] = dict(_LOGICAL.get(("fixed", str(schema.get("logicalType"))), {"type": "string"}))
        return self._named[full]

    def _array(self, schema: Mapping[str, Any], at: KeyPath, space: str, depth: int) -> dict[str, Any]:
        return {"type": "array", "items": self.convert(schema.get("items"), (*at, "items"), space, depth + 1)}

    def _map(self, schema: Mapping[str, Any], at: KeyPath, space: str, depth: int) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": self.convert(schema.get("values"), (*at, "values"), space, depth + 1)}


_COMPLEX: dict[str, Callable[..., dict[str, Any]]] = {
    "record": _Reader._record, "error": _Reader._record, "enum": _Reader._enum, "fixed": _Reader._fixed,
    "array": _Reader._array, "map": _Reader._map,
}  # fmt: skip


def _column(schema: Any) -> str | None:
    """The column's type, where another is meant than follows from the JSON Schema."""
    if isinstance(schema, list):
        others = [part for part in schema if part != "null"]
        return _column(others[0]) if len(others) == 1 else None
    if isinstance(schema, str):
        return _COLUMNS.get(schema)
    if not isinstance(schema, Mapping):
        return None
    kind, logical = schema.get("type"), schema.get("logicalType")
    if logical == "decimal" and kind in ("bytes", "fixed"):
        precision, scale = schema.get("precision"), schema.get("scale", 0)
        whole = isinstance(precision, int) and isinstance(scale, int) and 0 < precision < 10_000 and 0 <= scale <= precision
        return f"numeric({precision},{scale})" if whole else "numeric"
    if isinstance(logical, str) and (kind, logical) in _LOGICAL:
        return _COLUMNS.get(logical)
    return _column(kind)
