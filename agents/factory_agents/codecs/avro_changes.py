"""Whether records of one Avro schema can be read by another, and if not, by which fields: the specification's schema resolution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from factory_agents.codecs.avro_types import defined, kind_of, looked_up

__all__ = ["breaking_changes", "unreadable"]

_WIDENED = {
    "int": ("long", "float", "double"),
    "long": ("float", "double"),
    "float": ("double",),
    "string": ("bytes",),
    "bytes": ("string",),
}
_RECORDS = ("record", "error")


def breaking_changes(new: Any, old: Any, compatibility: str) -> list[str]:
    """What forbids that a schema follows another, field by field: ``backward`` (the new one reads old records), ``forward`` (the old one
    reads new records) or ``full`` (both). Both are parsed schemas.
    """
    found = []
    if compatibility in ("backward", "full"):
        found += [f"the new version can't read old records: {why}" for why in unreadable(new, old)]
    if compatibility in ("forward", "full"):
        found += [f"the old version can't read new records: {why}" for why in unreadable(old, new)]
    return found


def unreadable(reader: Any, writer: Any) -> list[str]:
    """Why records of the one schema can't be read by the other, by field; empty where all can be."""
    return list(_Resolution(defined(reader), defined(writer)).differences(reader, writer, ""))


class _Resolution:
    """One comparison of two schemas; a pair of records that is under way, or done, is not compared again."""

    def __init__(self, reading: Mapping[str, Any], written: Mapping[str, Any]) -> None:
        self._reading, self._written = reading, written
        self._seen: set[tuple[str, str]] = set()

    def differences(self, reader: Any, writer: Any, path: str) -> Iterator[str]:
        reader, writer = looked_up(reader, self._reading), looked_up(writer, self._written)
        if kind_of(writer) == "union":
            for branch in writer:
                yield from self.differences(reader, branch, path)
        elif kind_of(reader) == "union":
            found = [list(self.differences(branch, writer, path)) for branch in reader]
            if all(found):
                same = [why for branch, why in zip(reader, found, strict=True) if self._kind(branch) == kind_of(writer)]
                yield from same[0] if same else [f"{_at(path)}: {kind_of(writer)} is none of {', '.join(map(self._kind, reader))}"]
        else:
            yield from self._of_one(reader, writer, path)

    def _kind(self, schema: Any) -> str:
        return kind_of(looked_up(schema, self._reading))

    def _of_one(self, reader: Any, writer: Any, path: str) -> Iterator[str]:
        mine, theirs = kind_of(reader), kind_of(writer)
        if mine in _RECORDS and theirs in _RECORDS:
            yield from self._of_records(reader, writer, path)
        elif mine != theirs:
            if mine not in _WIDENED.get(theirs, ()):
                yield f"{_at(path)}: {theirs} can't be read as {mine}"
        elif mine == "array":
            yield from self.differences(reader["items"], writer["items"], f"{path}[]")
        elif mine == "map":
            yield from self.differences(reader["values"], writer["values"], f"{path}{{}}")
        elif mine == "enum":
            missing = [symbol for symbol in writer["symbols"] if symbol not in reader["symbols"]]
            if missing and "default" not in reader:
                yield f"{_at(path)}: the enum has no {', '.join(missing)} and no default"
        elif mine == "fixed" and reader["size"] != writer["size"]:
            yield f"{_at(path)}: {writer['size']} bytes can't be read as {reader['size']}"
        elif (wrong := _decimals(reader, writer)) is not None:
            yield f"{_at(path)}: {wrong}"

    def _of_records(self, reader: Any, writer: Any, path: str) -> Iterator[str]:
        if not _names(reader) & {writer["name"], _short(writer["name"])}:
            yield f"{_at(path)}: the record is called {reader['name']}, not {writer['name']}, and has no alias of that name"
        pair = (reader["name"], writer["name"])
        if pair in self._seen:
            return
        self._seen.add(pair)
        written = {field["name"]: field for field in writer["fields"]}
        for field in reader["fields"]:
            inner = f"{path}.{field['name']}" if path else field["name"]
            own = next((written[name] for name in (field["name"], *field.get("aliases", ())) if name in written), None)
            if own is not None:
                yield from self.differences(field["type"], own["type"], inner)
            elif "default" not in field:
                yield f"field {inner!r} has no default, and isn't in the records"


def _decimals(reader: Any, writer: Any) -> str | None:
    """What differs of two decimals; their digits would be read as another number."""
    kinds = [schema.get("logicalType") if isinstance(schema, dict) else None for schema in (reader, writer)]
    if kinds != ["decimal", "decimal"]:
        return None
    scales = [schema.get("scale", 0) for schema in (reader, writer)]
    return None if scales[0] == scales[1] else f"a decimal of scale {scales[1]} can't be read with scale {scales[0]}"


def _names(schema: Any) -> set[str]:
    return {schema["name"], _short(schema["name"]), *schema.get("aliases", ())}


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _at(path: str) -> str:
    return f"field {path!r}" if path else "the event"
