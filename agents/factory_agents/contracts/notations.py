"""Which notation a contract's document is in, and it in the short form: the standard's, a plain JSON Schema's or an Avro schema's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from factory_agents.contracts.avro import is_avro, read_avro
from factory_agents.contracts.documents import Document
from factory_agents.contracts.drafts import Draft, Translation, contract_name
from factory_agents.contracts.odcs import is_odcs, read_odcs

__all__ = ["is_json_schema", "schema_names", "translated"]


def translated(document: Document, wanted: str = "") -> Translation:
    """The document in the short form; of several schemas the ``wanted`` one. Raises ContractError with the place in the original."""
    if is_odcs(document.data):
        return read_odcs(document, wanted)
    if is_avro(document.data):
        return read_avro(document, wanted)
    if wanted:
        document.fail((), f"expected a schema called {wanted!r}, but it holds only one, without a name")
    if is_json_schema(document.data):
        return _read_json_schema(document)
    if isinstance(document.data, Mapping) and "dataContractSpecification" in document.data:
        what = "the Data Contract Specification, which has given way to the Open Data Contract Standard"
        document.fail(("dataContractSpecification",), f"it is of {what}: 'datacontract export odcs' converts it", key=True)
    return Translation(document)


def schema_names(document: Document) -> list[str]:
    """The names of the schemas that a document holds, where it may hold several."""
    data = document.data
    if is_odcs(data):
        return [str(schema.get("name")) for schema in data.get("schema") or ()]
    parts = data if is_avro(data) and isinstance(data, list) else ()
    return [str(part.get("name")) for part in parts if "fields" in part]


def is_json_schema(data: Any) -> bool:
    """Whether a document is a schema of events, and says nothing beside it."""
    if not isinstance(data, Mapping) or "schema" in data:
        return False
    return "$schema" in data or "properties" in data or data.get("type") == "object"


def _read_json_schema(document: Document) -> Translation:
    """The contract that a schema is: named as it says (its title, or Iglu's ``self``), else as its file."""
    data: Mapping[str, Any] = document.data
    own = data.get("self")
    about: Mapping[str, Any] = own if isinstance(own, Mapping) else {}
    stem = document.name.replace("\\", "/").rpartition("/")[2].partition(".")[0]
    name = next(t for t in (about.get("name"), data.get("title"), stem, "events") if isinstance(t, str) and t)
    version = next((v for v in (about.get("version"), data.get("version")) if isinstance(v, str) and v), "1")
    draft = Draft(document)
    draft.put(("name",), contract_name(name), ())
    draft.put(("version",), version, ())
    if isinstance(data.get("description"), str):
        draft.put(("description",), data["description"], ("description",))
    draft.put(("id",), None, ())
    draft.put(("schema",), data, ())
    if "x-factory" in data:
        draft.put(("schema",), {key: value for key, value in data.items() if key != "x-factory"}, ())
        draft.merge(data["x-factory"], ("x-factory",))
    return draft.translation()
