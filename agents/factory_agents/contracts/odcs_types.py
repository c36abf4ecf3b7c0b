"""A property of the Open Data Contract Standard as JSON Schema, as a column, and as rules where JSON Schema has no words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from factory_agents.contracts.documents import KeyPath, show
from factory_agents.contracts.drafts import Draft
from factory_agents.contracts.table import ColumnType
from factory_agents.contracts.times import iso_time

__all__ = ["PropertyReader", "column_type", "date_pattern", "field_name"]

_PHYSICAL = {
    **dict.fromkeys(("text", "string", "str", "clob", "tinytext", "mediumtext", "longtext", "ntext"), "text"),
    **dict.fromkeys(("varchar", "character varying", "varchar2", "nvarchar", "nvarchar2"), "varchar"),
    **dict.fromkeys(("char", "character", "nchar", "bpchar"), "char"),
    **dict.fromkeys(("smallint", "int2", "tinyint"), "smallint"),
    **dict.fromkeys(("integer", "int", "int4", "mediumint", "serial"), "integer"),
    **dict.fromkeys(("bigint", "int8", "int64", "long", "bigserial"), "bigint"),
    **dict.fromkeys(("numeric", "decimal", "number", "dec", "bignumeric"), "numeric"),
    **dict.fromkeys(("real", "float4"), "real"),
    **dict.fromkeys(("double", "double precision", "float8", "float64", "float"), "double"),
    **dict.fromkeys(("boolean", "bool"), "boolean"),
    **dict.fromkeys(("timestamptz", "timestamp with time zone", "timestamp_tz", "timestamp_ltz"), "timestamptz"),
    **dict.fromkeys(("timestamp", "timestamp without time zone", "timestamp_ntz", "datetime", "datetime2"), "timestamp"),
    **dict.fromkeys(("time", "time without time zone"), "time"),
    **dict.fromkeys(("json", "jsonb", "variant"), "json"),
    **{name: name for name in ("date", "interval", "uuid", "bytea", "inet")},
}
_FITS = {
    "string": ("text", "varchar", "char", "uuid", "inet", "bytea", "interval", "json"),
    "integer": ("smallint", "integer", "bigint", "numeric"),
    "number": ("numeric", "real", "double"),
    "boolean": ("boolean",),
    "date": ("date",),
    "timestamp": ("timestamptz", "timestamp"),
    "time": ("time",),
}
"""Which columns may hold a logical type."""
_MEANS = {name: kind for kind, names in _FITS.items() for name in names} | {"json": ""}
"""The logical type of a column, where the property names none."""
_DEFAULTS = ("text", "bigint", "double", "boolean", "date", "timestamptz")
"""Columns that follow from the schema."""
_COUNTS = ("smallint", "integer", "bigint", "numeric")
_BITS = {"i8": "smallint", "i16": "smallint", "i32": "integer", "i64": "bigint", "u8": "smallint", "u16": "integer", "u32": "bigint"}
_BITS |= {"u64": "numeric(20,0)", "i128": "numeric(39,0)", "u128": "numeric(39,0)"}
_TIMES = ("date", "timestamp", "time")
_NOT_NULL = ("string", "number", "boolean", "object", "array")
"""What a value may be that is required, where nothing tells its type."""
_ZONE = r"(?:Z|[+-][0-9]{2}(?::?[0-9]{2})?)"
_TIME_OF_DAY = rf"^[0-9]{{2}}:[0-9]{{2}}(?::[0-9]{{2}}(?:\.[0-9]+)?)?{_ZONE}?$"
_LOCAL_TIMESTAMP = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?$"
_BOUNDS = {"minimum": ">=", "maximum": "<=", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}


def field_name(prop: Mapping[str, Any]) -> str:
    """What the property is called in an event: its physical name, else its name."""
    return str(prop.get("physicalName") or prop["name"])


def column_type(physical: Any) -> ColumnType | None:
    """The column that a physical type means, None for one that we have no column for."""
    text = physical if isinstance(physical, str) and len(physical) < 80 else ""
    found = re.fullmatch(r"\s*([A-Za-z][\w ]*?)\s*(\([\d,\s]*\)|\(max\))?\s*", text, re.IGNORECASE)
    name = _PHYSICAL.get(" ".join(found[1].lower().split())) if found else None
    if found is None or name is None:
        return None
    return ColumnType.parse(name + (found[2] or "").replace(" ", "")) or ColumnType.parse(name)


def date_pattern(format_: str) -> str | None:
    """A JDK date format as a regular expression; None for one with parts that have no fixed form."""
    runs = [match[0] for match in re.finditer(r"([A-Za-z])\1*|'[^']*'|[^A-Za-z']", format_)] if len(format_) < 100 else []
    parts = [_date_part(run) for run in runs]
    return None if not parts or None in parts or "".join(runs) != format_ else f"^{''.join(map(str, parts))}$"


def _date_part(run: str) -> str | None:
    letter, count = run[0], len(run)
    if letter == "'":
        return _literal(run[1:-1] or "'")
    if letter in "yuY":
        return f"[0-9]{{{count}}}" if count in (2, 4) else None
    if letter in "MdDHhms" and count <= 2:
        return "[0-9]{2}" if count == 2 else "[0-9]{1,2}"
    if letter == "S":
        return f"[0-9]{{{count}}}"
    fixed = {"MMM": "[A-Za-z]{3}", "a": "[AaPp][Mm]", "T": "T"} | dict.fromkeys(("Z", "ZZZ", "X", "XX", "XXX", "x", "xx", "xxx"), _ZONE)
    return fixed.get(run) if letter.isalpha() else _literal(run)


def _literal(text: str) -> str:
    return re.sub(r"([.^$*+?()\[\]{}|\\/])", r"\\\1", text)


class _Form(NamedTuple):
    """How a time is written: its schema, whether ISO-8601 reads it, and whether it may have a zone."""

    schema: dict[str, Any]
    iso: bool
    zoned: bool


def _form(kind: str, options: Mapping[str, Any]) -> _Form | None:
    """The form of a date, timestamp or time; None for a format that can't be told as a pattern."""
    given = str(options.get("format") or "")
    plain = re.sub(r"['_\s-]", "", given.lower())
    iso = not given or plain.startswith("iso8601") or plain in ("datetime", "rfc3339", kind)
    if kind == "date" and (iso or given == "yyyy-MM-dd"):
        return _Form({"type": "string", "format": "date"}, True, False)
    if kind == "timestamp" and iso and options.get("timezone") is False:
        return _Form({"type": "string", "pattern": _LOCAL_TIMESTAMP}, True, False)
    if kind == "timestamp" and (iso or re.fullmatch(r"yyyymmddthh:mm:ss(\.s+)?(z+|x+)", plain)):
        return _Form({"type": "string", "format": "date-time"}, True, True)
    if iso:
        return _Form({"type": "string", "pattern": _TIME_OF_DAY}, True, True)
    pattern = date_pattern(given)
    if pattern is None:
        return None
    start = {"date": r"yyyy-MM-dd$", "timestamp": r"yyyy-MM-dd(?:'T'|T| )HH:mm", "time": r"HH:mm"}[kind]
    return _Form({"type": "string", "pattern": pattern}, re.match(start, given) is not None, _ZONE in pattern)


class PropertyReader:
    """Turns properties into JSON Schema; what came from where, and what isn't checked, goes into the ``draft``."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.document = draft.document
        self.rules: list[tuple[str, str, KeyPath]] = []

    def properties(self, properties: Any, at: KeyPath, out: KeyPath, access: str | None) -> dict[str, Any]:
        """The schema of an object with these properties, at ``at`` in the document, to stand at ``out``.

        ``access`` is how a rule writes the object: empty for the event itself, None where rules can't reach it.
        """
        fields: dict[str, Any] = {}
        required = []
        for i, prop in enumerate(properties or ()):
            name, place = field_name(prop), (*at, i)
            if prop.get("semanticType") == "measure":
                self.draft.pass_over(place, f"the measure {name}", "it is no field of an event")
                continue
            if name in fields:
                self.document.report((*place, "name"), f"two properties are called {show(name)}")
                continue
            inner = (*out, "properties", name)
            must = prop.get("required") is True or prop.get("primaryKey") is True
            within = None if access is None else f"{access}[{name!r}]" if access else name if _is_plain(name) else f"field({name!r})"
            fields[name] = self.read(prop, place, inner, must, within, name)
            if must:
                required.append(name)
        schema: dict[str, Any] = {"type": "object"}
        if required:
            schema["required"] = required
        if fields:
            schema["properties"] = fields
        return schema

    def kind(self, prop: Mapping[str, Any]) -> str:
        """The logical type, which may follow from others of the property's facts; empty where nothing tells."""
        given = prop.get("logicalType")
        if isinstance(given, str):
            return given
        if "properties" in prop:
            return "object"
        if "items" in prop:
            return "array"
        column = column_type(prop.get("physicalType"))
        return _MEANS.get(column.name, "") if column else ""

    def read(self, prop: Mapping[str, Any], at: KeyPath, out: KeyPath, required: bool, access: str | None, name: str) -> dict[str, Any]:
        """The schema of one property."""
        self.draft.origins[out] = at
        options: Mapping[str, Any] = prop.get("logicalTypeOptions") or {}
        for key in options:
            self.draft.origins[*out, key] = (*at, "logicalTypeOptions", key)
        kind = self.kind(prop)
        if not kind:
            self.draft.notes.append(f"{self.document.where(at)}: {name} has no type that is known: it takes any value")
        if kind in _TIMES:
            schema = self._time(prop, kind, options, at, access, name)
        elif kind in ("integer", "number"):
            schema = {"type": kind, **_numbers(options)}
        else:
            reader: Callable[..., dict[str, Any]] = getattr(self, f"_{kind}", self._any)
            schema = reader(prop, options, at, out, access)
        values = [entry["value"] for entry in prop.get("enum") or ()]
        if values:
            self._refuse_doubled(values, at)
            schema["enum"] = values
            self.draft.origins[*out, "enum"] = (*at, "enum")
        if isinstance(prop.get("classification"), str):
            schema["x-classification"] = prop["classification"]
        if not required:
            return _nullable(schema)
        return schema if "type" in schema or "enum" in schema else {**schema, "type": list(_NOT_NULL)}

    def _refuse_doubled(self, values: Sequence[Any], at: KeyPath) -> None:
        """Report a value that stands twice: with two labels each of them would be somebody's."""
        seen: set[str] = set()
        for i, value in enumerate(values):
            text = show(value, 1_000_000)
            if text in seen:
                self.document.report((*at, "enum", i, "value"), f"{show(value)} stands here twice")
            seen.add(text)

    def _any(self, prop: Any, options: Any, at: KeyPath, out: KeyPath, access: str | None) -> dict[str, Any]:
        return {}

    def _boolean(self, prop: Any, options: Any, at: KeyPath, out: KeyPath, access: str | None) -> dict[str, Any]:
        return {"type": "boolean"}

    def _string(self, prop: Any, options: Mapping[str, Any], at: KeyPath, out: KeyPath, access: str | None) -> dict[str, Any]:
        return {"type": "string", **_known(options, "minLength", "maxLength", "pattern", "format")}

    def _object(self, prop: Any, options: Mapping[str, Any], at: KeyPath, out: KeyPath, access: str | None) -> dict[str, Any]:
        schema = self.properties(prop.get("properties"), (*at, "properties"), out, access)
        names = {p["name"]: field_name(p) for p in prop.get("properties") or ()}
        required = [*schema.get("required", ()), *(names.get(n, n) for n in options.get("required") or ())]
        if required:
            schema["required"] = list(dict.fromkeys(required))
        return {**schema, **_known(options, "minProperties", "maxProperties")}

    def _array(self, prop: Any, options: Mapping[str, Any], at: KeyPath, out: KeyPath, access: str | None) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "array", **_known(options, "minItems", "maxItems", "uniqueItems")}
        if isinstance(prop.get("items"), Mapping):
            items = prop["items"]
            schema["items"] = self.read(items, (*at, "items"), (*out, "items"), items.get("required") is True, None, "an item")
        return schema

    def _map(self, prop: Any, options: Any, at: KeyPath, out: KeyPath, access: str | None) -> dict[str, Any]:
        parts = prop.get("map") or {}
        schema: dict[str, Any] = {"type": "object"}
        for part, key in (("key", "propertyNames"), ("value", "additionalProperties")):
            if isinstance(parts.get(part), Mapping):
                required = part == "key" or parts[part].get("required") is True
                schema[key] = self.read(parts[part], (*at, "map", part), (*out, key), required, None, f"a map's {part}")
        if schema.get("propertyNames", {}).get("type") not in (None, "string"):
            self.draft.pass_over((*at, "map", "key"), "the type of a map's keys", "in JSON they are texts")
            del schema["propertyNames"]
        return schema

    def _vector(self, prop: Any, options: Mapping[str, Any], at: KeyPath, out: KeyPath, access: str | None) -> dict[str, Any]:
        if "dimensions" not in options:
            self.document.report(at, "expected logicalTypeOptions with dimensions, the length of the vector, such as 384")
        whole = options.get("elementType") in ("int8", "uint8", "binary")
        size = {"minItems": options["dimensions"], "maxItems": options["dimensions"]} if "dimensions" in options else {}
        return {"type": "array", **size, "items": {"type": "integer" if whole else "number"}}

    def _time(
        self, prop: Mapping[str, Any], kind: str, options: Mapping[str, Any], at: KeyPath, access: str | None, name: str
    ) -> dict[str, Any]:
        counted = self._is_counted(prop)
        form = None if counted else _form(kind, options)
        if form is None and not counted:
            why = "it has parts without a fixed form"
            self.draft.pass_over((*at, "logicalTypeOptions", "format"), f"the format {show(options['format'])} of {name}", why)
        for key in _BOUNDS:
            if isinstance(options.get(key), str):
                place = (*at, "logicalTypeOptions", key)
                rule = self._bound(kind, form, access, key, options, place)
                if rule is None:
                    self.draft.pass_over(place, f"{key} of {name}", "values of this form have no order here")
                else:
                    self.rules.append((f"{name}_{key}", rule, place))
        zone = options.get("defaultTimezone", "UTC")
        if zone not in ("UTC", "Etc/UTC", "Z", "GMT") and options.get("timezone") is not True:
            self.draft.pass_over(
                (*at, "logicalTypeOptions", "defaultTimezone"), f"the default time zone of {name}", "text without a zone is UTC"
            )
        return {"type": "integer"} if counted else dict(form.schema) if form else {"type": "string"}

    @staticmethod
    def _is_counted(prop: Mapping[str, Any]) -> bool:
        """Whether a time comes as a number, as its physical type has it."""
        column = column_type(prop.get("physicalType"))
        return column is not None and column.name in _COUNTS

    def _bound(self, kind: str, form: _Form | None, access: str | None, key: str, options: Mapping[str, Any], place: KeyPath) -> str | None:
        """The rule of a date's bound; None where texts of this form have no order."""
        if access is None or form is None or not form.iso or (kind == "time" and form.zoned):
            return None
        limit = options[key]
        strict = options.get(f"exclusive{key[0].upper()}{key[1:]}") is True
        operator = _BOUNDS[key].rstrip("=") if strict else _BOUNDS[key]
        if kind == "timestamp":
            try:
                iso_time(limit)
            except ValueError as error:
                self.document.report(place, str(error))
            return f"{access} is None or time({access}) {operator} time({limit!r})"
        return f"{access} is None or {access} {operator} {limit!r}"

    def column(self, prop: Mapping[str, Any]) -> str | None:
        """The column's type, where another is meant than follows from the schema."""
        kind = self.kind(prop)
        column = column_type(prop.get("physicalType"))
        options = prop.get("logicalTypeOptions") or {}
        if column is not None and column.name in _FITS.get(kind, ()):
            return None if column.text in _DEFAULTS else column.text
        if kind == "integer":
            found = _BITS.get(options.get("format", "i64"))
            return None if found == "bigint" else found
        if kind == "number":
            return "real" if options.get("format") == "f32" else None
        form = None if self._is_counted(prop) or kind not in _TIMES else _form(kind, options)
        if form is None or "format" in form.schema or not form.iso:
            return None
        return {"date": "date", "timestamp": "timestamptz", "time": "time"}[kind]


def _is_plain(name: str) -> bool:
    """Whether a rule may write the field's name as it is."""
    import keyword

    words = ("None", "null", "nil", "undefined", "true", "false")
    return re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is not None and not keyword.iskeyword(name) and name not in words


def _known(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names if options.get(name) is not None}


def _numbers(options: Mapping[str, Any]) -> dict[str, Any]:
    """Bounds of a number; 3.0 writes exclusive ones as a word beside the bound, 3.1 as bounds of their own."""
    found = _known(options, "multipleOf")
    for bound in ("minimum", "maximum"):
        exclusive = f"exclusive{bound[0].upper()}{bound[1:]}"
        if isinstance(options.get(exclusive), bool):
            found |= {exclusive if options[exclusive] else bound: options[bound]} if bound in options else {}
        else:
            found |= _known(options, bound, exclusive)
    return found


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    if "type" in schema:
        schema["type"] = [schema["type"], "null"]
    if "enum" in schema and None not in schema["enum"]:
        schema["enum"] = [*schema["enum"], None]
    return schema
