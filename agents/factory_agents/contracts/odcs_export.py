"""Writes a contract as one of the Open Data Contract Standard, and as the short form: whatever it says is read back the same."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from factory_agents.contracts.conditions import Condition
from factory_agents.contracts.contract import Contract, folder_of, read_contract
from factory_agents.contracts.documents import inline_document, parse_document
from factory_agents.contracts.notations import translated
from factory_agents.contracts.odcs import NEWEST, OPERATORS
from factory_agents.contracts.sql import Query
from factory_agents.errors import ContractError

__all__ = ["export_odcs", "short_form"]

_OPTIONS = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "object": ("minProperties", "maxProperties"),
    "array": ("minItems", "maxItems", "uniqueItems"),
}
_OPTIONS["number"] = _OPTIONS["integer"]
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWN = ("time", "time_unit", "version_field", "deletes", "masked", "duplicate_keys")
_METRICS = {
    "nulls": "nullValues",
    "missing": "missingValues",
    "invalid": "invalidValues",
    "duplicates": "duplicateValues",
    "rows": "rowCount",
}


def short_form(contract: Contract) -> dict[str, Any]:
    """A contract's data in the short form, whichever notation it was written in."""
    document = parse_document(contract.text, contract.source.partition("#")[0])
    data: dict[str, Any] = translated(document, contract.source.partition("#")[2]).document.data
    return data


def export_odcs(contract: Contract, folder: Path | None = None) -> dict[str, Any]:
    """The contract as a document of the standard's newest version.

    What the standard can't say is in its custom property ``factory``. Read back it is equal (``Contract.digest``). Raises ContractError
    where it isn't, which no contract is known for.
    """
    data = short_form(contract)
    texts = contract.texts or None
    for whole_schema, columns, whole_window in product((False, True), repeat=3):
        exported = _Exporter(contract, data, whole_schema, columns, whole_window).document()
        try:
            again = read_contract(inline_document(exported), "", folder or folder_of(contract.texts), None if folder else texts)
        except ContractError:
            continue
        if again.digest == contract.digest:
            return exported
    raise ContractError(f"{contract.source}:1:1: it cannot be said in the Open Data Contract Standard: please report it")


class _Exporter:
    """One attempt: with the JSON Schema, the columns and the window's part said in the standard's words, or kept whole."""

    def __init__(self, contract: Contract, data: Mapping[str, Any], whole_schema: bool, columns: bool, whole_window: bool) -> None:
        self._contract = contract
        self._data = data
        self._whole_schema, self._columns, self._whole_window = whole_schema, columns, whole_window
        schema = data.get("schema")
        self._schema: Mapping[str, Any] = schema if isinstance(schema, Mapping) else {}
        self._types = {column.name: column.type for column in contract.columns()}

    def document(self) -> dict[str, Any]:
        """The whole document."""
        contract, data = self._contract, self._data
        body: dict[str, Any] = {"name": contract.name, "logicalType": "object"}
        properties = self._properties(self._schema, top=True)
        quality = [
            {"name": rule.name, "type": "custom", "engine": "factory", "implementation": rule.text.strip()} for rule in contract.rules
        ]
        if not self._whole_window:
            for level, conditions in (("fail_if", contract.fail_if), ("warn_if", contract.warn_if)):
                for condition in conditions:
                    self._place(condition, level, properties, quality)
        extra = self._extra({p["name"] for p in properties if p.get("primaryKey")})
        references = self._references(properties)
        extra |= {"references": references} if references else {}
        body |= {"properties": properties} if properties else {}
        body |= {"quality": quality} if quality else {}
        body |= {"customProperties": [{"property": "factory", "value": extra}]} if extra else {}
        described = {"description": {"purpose": data["description"]}} if data.get("description") else {}
        owned = {"team": {"name": data["owner"]}} if data.get("owner") else {}
        head = {"apiVersion": NEWEST, "kind": "DataContract", "id": contract.name, "name": contract.name, "version": contract.version}
        return {**head, "status": "active", **described, **owned, "schema": [body]}

    def _extra(self, keys: set[str]) -> dict[str, Any]:
        contract, data = self._contract, self._data
        extra: dict[str, Any] = {key: data[key] for key in _OWN if data.get(key)}
        read_id = next(iter(keys)) if len(keys) == 1 else None
        if contract.id != read_id:
            extra["id"] = contract.id
        if contract.key != ((contract.id,) if contract.id else ()) and (len(keys) < 2 or set(contract.key) != keys):
            extra["key"] = list(contract.key)
        if self._whole_schema and "schema" in data:
            extra["schema"] = data["schema"]
        if self._columns and data.get("columns"):
            extra["columns"] = data["columns"]
        window = data.get("window") or {}
        if self._whole_window:
            extra |= {"window": window} if window else {}
        else:
            queries = {query.name: window["sql"][query.name] for query in contract.queries if not self._foreign(query)}
            kept = {key: window[key] for key in ("nulls",) if key in window} | ({"sql": queries} if queries else {})
            extra |= {"window": kept} if kept else {}
        return extra

    def _references(self, properties: list[dict[str, Any]]) -> dict[str, Any]:
        """Say foreign keys as relationships of their properties; what can't be said so."""
        rest: dict[str, Any] = {}
        for key in self._contract.foreign_keys:
            given = self._data["references"][key.field]
            holder = next((p for p in properties if p["name"] == key.field), None)
            if holder is None or not (_NAME.fullmatch(key.table) and _NAME.fullmatch(key.column)):
                rest[key.field] = given
                continue
            value = {name: text for name, text in given.items() if name != "column"}
            relation = {"to": f"{key.table}.{key.column}", "customProperties": [{"property": "factory", "value": value}]}
            holder["relationships"] = [relation]
        return rest

    def _foreign(self, query: Query) -> bool:
        """Whether a query is as the standard has them: one that another engine may have to run."""
        return not query.required and query.table == self._contract.name

    def _properties(self, schema: Mapping[str, Any], *, top: bool = False) -> list[dict[str, Any]]:
        given = schema.get("properties")
        required = schema.get("required") or ()
        found = []
        for name, part in given.items() if isinstance(given, Mapping) else ():
            prop = {"name": name, **self._property(part if isinstance(part, Mapping) else {})}
            if name in required:
                prop["required"] = True
            if top and name in self._types:
                prop["physicalType"] = self._types[name]
            if top and name in self._contract.key:
                prop["primaryKey"] = True
                if len(self._contract.key) > 1:
                    prop["primaryKeyPosition"] = self._contract.key.index(name) + 1
            found.append(prop)
        return found

    def _property(self, part: Mapping[str, Any]) -> dict[str, Any]:
        types = [part["type"]] if isinstance(part.get("type"), str) else list(part.get("type") or ())
        kinds = [t for t in types if t != "null"]
        kind = kinds[0] if len(kinds) == 1 else ""
        if not types and part.get("enum") and all(isinstance(value, str) for value in part["enum"]):
            kind = "string"
        logical = {"date-time": "timestamp", "date": "date"}.get(str(part.get("format")), kind) if kind == "string" else kind
        prop: dict[str, Any] = {"logicalType": logical} if logical else {}
        options = {key: part[key] for key in _OPTIONS.get(logical, ()) if key in part}
        prop |= {"logicalTypeOptions": options} if options else {}
        values = [value for value in part.get("enum") or () if value is not None and not isinstance(value, (list, dict))]
        prop |= {"enum": [{"value": value} for value in values]} if values else {}
        if logical == "object" and part.get("properties"):
            prop["properties"] = self._properties(part)
        if logical == "array" and isinstance(part.get("items"), Mapping):
            prop["items"] = self._property(part["items"])
            if "null" not in (part["items"].get("type") or ()):
                prop["items"]["required"] = True
        return prop

    def _place(self, condition: Condition, level: str, properties: list[dict[str, Any]], quality: list[dict[str, Any]]) -> None:
        """A condition as a check of the field that it is about, or of the whole."""
        check = self._library(condition)
        severity = {"severity": "warning" if level == "warn_if" else "error"}
        holder = next((p for p in properties if condition.fields == (p["name"],)), None)
        if check is None or (condition.fields and holder is None and "arguments" not in check):
            quality.append({"type": "custom", "engine": "factory", "implementation": {level: condition.text}})
        elif holder is not None and condition.figure != "rows":
            holder.setdefault("quality", []).append({**check, **severity})
        else:
            quality.append({**check, **severity})

    def _library(self, c: Condition) -> dict[str, Any] | None:
        """The check of the standard's library that is broken just then, if there is one that is read back with the same text."""
        metric = _METRICS.get(c.figure)
        query = next((q for q in self._contract.queries if c.figure == "sql" and q.name == c.argument and self._foreign(q)), None)
        operator = next((name for name, comparison in OPERATORS.items() if comparison == c.comparison), None)
        if (metric is None and query is None) or operator is None or (c.figure == "duplicates" and not c.fields):
            return None
        limits = [float(text) if "." in text else int(text) for text in (c.threshold, c.upper) if text]
        what = {"metric": metric} if query is None else {"type": "sql", "name": query.name, "query": query.text}
        check: dict[str, Any] = {**what, operator: limits if c.upper else limits[0]}
        check |= {"unit": "percent"} if c.unit == "%" else {}
        figure = next((f for f in self._contract.figures if f.name == c.argument and f.missing is (c.figure == "missing")), None)
        if c.figure in ("missing", "invalid"):
            if figure is None or figure.name != figure.field:
                return None
            check["arguments"] = dict(_arguments(figure.missing, figure.values, figure.pattern))
        if len(c.fields) > 1:
            check["arguments"] = {"properties": list(c.fields)}
        return check


def _arguments(missing: bool, values: tuple[Any, ...] | None, pattern: str | None) -> Iterator[tuple[str, Any]]:
    if values is not None:
        yield ("missingValues" if missing else "validValues"), list(values)
    if pattern is not None:
        yield "pattern", pattern
