"""What codecs share whose schemas a registry of Confluent's kind knows: the framing, and the one schema of a piece of work."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any, ClassVar

import msgspec

from factory_agents.codecs.base import Codec
from factory_agents.codecs.registry import Reference, Registry, RegistryConfig, StoredSchema, UnknownSchemaError, registry_of
from factory_agents.errors import ConfigurationError
from factory_agents.kafka.messages import Headers
from factory_agents.reject import Reject

__all__ = ["KEY_SCHEMA_HEADER", "SCHEMA_HEADER", "RegistryCodec", "SchemaKey", "key_of_header", "spoken"]

SCHEMA_HEADER = "__value_schema_id"
"""The header that Confluent's newer serialisers put the schema's GUID into, with a value that has no framing of its own."""

KEY_SCHEMA_HEADER = "__key_schema_id"
"""The same for the record's key."""

SchemaKey = int | uuid.UUID
"""How a record names its schema."""

_BY_ID, _BY_GUID = 0, 1
_MOST_TEXT, _MOST_REFERENCES = 1 << 20, 200


class RegistryCodec(Codec):
    """Reads and writes the framing, finds the schema of this side and keeps it; a subclass says what is between.

    :param subject: the subject in the registry; by default ``<topic>-value``.
    :param version: the version by which events are read and written: a number, or ``latest``, which is found out once for a piece of work.
        ``writer``, for reading alone: each record by the schema that it was written with.
    :param framing: where what is written says its schema: ``id`` (five bytes before the value) or ``guid`` (a header). Both are read.
    :param compatibility: for writing: ``backward``, ``forward`` or ``full``. Work that begins to write by a version that breaks the one
        before it is refused, whatever the registry's own rule is.
    :param rules: a subject with rules (checks, migrations, encrypted fields) is refused; ``ignore`` goes on without running them.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    """The type of its schemas, as the registry calls it."""
    version = "1"
    header_names = frozenset((SCHEMA_HEADER,))
    records_only = True
    """Whether what is no record is refused: an event is one, a key that is only looked at may be anything."""

    def __init__(
        self,
        topic: str,
        pinned: dict[str, Any],
        subject: str = "",
        version: int | str = "latest",
        framing: str = "id",
        rules: str = "refuse",
        compatibility: str = "",
        writing: bool = False,
        registry: Registry | None = None,
    ) -> None:
        self._one_of("compatibility", compatibility, ("", "backward", "forward", "full"))
        self._one_of("framing", framing, ("id", "guid"))
        self._one_of("rules", rules, ("refuse", "ignore"))
        self._registry = registry or registry_of(RegistryConfig.from_env())
        self.rules = rules
        self._own: StoredSchema | None = None
        self.identity = {"schema": "writer"}
        if version == "writer":
            if writing:
                raise ConfigurationError(f"{self}: version: writer is for reading; to write, name a number, or latest")
            return
        self._subject = subject or f"{topic}-value"
        self._own = own = self._pinned(pinned) if pinned else self._resolve(version)
        self._check(own, f"subject {self._subject!r}")
        try:
            _refuse_large(own, "it")
            digest = self._digest(own)
            self._use(own)
        except Reject as reject:
            raise ConfigurationError(f"{self}: subject {self._subject!r}, version {own.version}: {reject.reason}") from None
        if pinned and digest != pinned["digest"]:
            raise ConfigurationError(
                f"{self}: schema id {pinned['id']} is another schema now than when this work was begun (another registry?); "
                "run it again with redo"
            )
        if compatibility and writing and not pinned:
            self._refuse_breaking(own, compatibility)
        self.pinned = {"id": own.id, "version": own.version, "digest": digest} | ({"guid": own.guid} if own.guid else {})
        self.identity = {"id": own.id, "digest": digest} | ({"framing": framing} if writing else {})
        if framing == "guid":
            if not own.guid:
                raise ConfigurationError(f"{self}: framing: the registry {self._registry.config.shown} knows no GUIDs; use id")
            self.headers = ((SCHEMA_HEADER, bytes((_BY_GUID,)) + uuid.UUID(own.guid).bytes),)
        self._prefix = b"" if framing == "guid" else bytes((_BY_ID,)) + own.id.to_bytes(4, "big")

    def __repr__(self) -> str:
        """How messages speak of it."""
        return f"codec {self.name!r}"

    def _use(self, own: StoredSchema) -> None:
        """Prepare to read and write by the schema of this side. Raises Reject for one that can't be used."""
        raise NotImplementedError

    def _breaking(self, new: StoredSchema, old: StoredSchema, compatibility: str) -> list[str]:
        """What forbids that a version follows another. Raises Reject for a schema that can't be used."""
        raise ConfigurationError(f"{self}: compatibility: versions are compared for avro only; leave it to the registry's own rule")

    def _refuse_breaking(self, own: StoredSchema, compatibility: str) -> None:
        """Raise ConfigurationError where this version breaks the one before it."""
        for number in range(own.version - 1, 0, -1):
            try:
                old = self._registry.by_version(self._subject, number)
            except UnknownSchemaError:
                continue  # it was deleted
            broken = self._breaking(own, old, compatibility)
            if broken:
                raise ConfigurationError(
                    f"{self}: version {own.version} of subject {self._subject!r} isn't {compatibility} compatible with version {number}: "
                    f"{'; '.join(broken[:5])}; name version={number} until it is mended"
                )
            return

    def _one_of(self, name: str, value: str, allowed: tuple[str, ...]) -> None:
        if value not in allowed:
            raise ConfigurationError(f"{self}: {name}: expected {' or '.join(filter(None, allowed))}, got {value!r}")

    def _resolve(self, version: int | str) -> StoredSchema:
        try:
            number = None if version == "latest" else int(version)
        except ValueError:
            raise ConfigurationError(f"{self}: version: expected a number, latest or writer, got {version!r}") from None
        try:
            return self._registry.latest(self._subject) if number is None else self._registry.by_version(self._subject, number)
        except UnknownSchemaError as error:
            raise ConfigurationError(
                f"{self}: {error}; register the schema, or name its subject: {self.name}?subject=… (to read each record by its own schema: "
                f"{self.name}?version=writer)"
            ) from None

    def _pinned(self, pinned: dict[str, Any]) -> StoredSchema:
        """The schema that this work was begun with."""
        try:
            found = self._registry.by_id(pinned["id"])
        except UnknownSchemaError as error:
            raise ConfigurationError(f"{self}: {error} any more, which this work was begun with; run it again with redo") from None
        return msgspec.structs.replace(
            found, id=pinned["id"], version=pinned["version"], guid=pinned.get("guid", ""), subject=self._subject
        )

    def _digest(self, schema: StoredSchema) -> str:
        """Names a schema with all that it refers to. Errors as ``_referred``."""
        known: dict[tuple[str, int], str] = {}

        def digest(of: StoredSchema) -> str:
            texts = [of.text, *(known[r.subject, r.version] for r in of.references)]
            return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]

        for reference, other in self._referred(schema):
            known[reference.subject, reference.version] = digest(other)
        return digest(schema)

    def _referred(self, schema: StoredSchema) -> list[tuple[Reference, StoredSchema]]:
        """The schemas that one refers to, and theirs: each once, after those that it refers to itself.

        Raises Reject where the registry lacks one, where there are too many, and where they refer to each other in a circle.
        """
        found: dict[Reference, StoredSchema] = {}

        def visit(of: StoredSchema, within: tuple[tuple[str, int], ...]) -> None:
            for reference in of.references:
                place = (reference.subject, reference.version)
                what = f"version {reference.version} of subject {reference.subject!r}"
                if place in within:
                    raise Reject(f"its references lead in a circle: {what}", rule="decode")
                if reference in found:
                    continue
                if len(found) + len(within) >= _MOST_REFERENCES:
                    raise Reject(f"it refers to more than {_MOST_REFERENCES} schemas", rule="decode")
                try:
                    other = self._registry.by_version(*place)
                except UnknownSchemaError as error:
                    raise Reject(f"it refers to a schema that isn't there: {error}", rule="schema-id") from None
                _refuse_large(other, what)
                visit(other, (*within, place))
                found[reference] = other

        visit(schema, ())
        return list(found.items())

    def _check(self, schema: StoredSchema, what: str) -> None:
        if schema.rules and self.rules == "refuse":
            raise ConfigurationError(
                f"{self}: {what} has rules (checks, migrations or encryption), which are not run here; {self.name}?rules=ignore goes on "
                "without them"
            )
        if schema.type != self.kind:
            raise ConfigurationError(f"{self}: {what} is of type {schema.type}, expected {self.kind}")

    def _framed(self, value: bytes, headers: Headers) -> tuple[SchemaKey, int]:
        """How a record names its schema, and where its value begins."""
        for name, data in headers:
            if name == SCHEMA_HEADER:
                return key_of_header(data), 0
        if value[:1] != b"\0" or len(value) < 5:
            raise Reject(
                f"not {self.kind} with a schema id: expected a byte 0 and four of the id before the value, "
                f"got {value[:5].hex(' ') or 'nothing'}{' …' if len(value) > 5 else ''}",
                rule="decode",
            )
        return int.from_bytes(value[1:5], "big"), 5

    def _written_by(self, key: SchemaKey) -> StoredSchema:
        """The schema that a record names. Raises Reject where the registry has none, or one of another type."""
        try:
            stored = self._registry.by_id(key) if isinstance(key, int) else self._registry.by_guid(str(key))
        except UnknownSchemaError as error:
            raise Reject(str(error), rule="schema-id") from None
        if stored.type != self.kind:
            raise Reject(f"schema {spoken(key)} is of type {stored.type}, expected {self.kind}", rule="schema-id")
        self._check(stored, f"schema {spoken(key)}")
        _refuse_large(stored, f"schema {spoken(key)}")
        return stored


def _refuse_large(schema: StoredSchema, what: str) -> None:
    """Raise Reject for a schema that no registry of Confluent's kind takes by default, and that would be prepared for minutes."""
    if len(schema.text) > _MOST_TEXT:
        raise Reject(f"{what} has {len(schema.text):,} characters, more than {_MOST_TEXT:,}", rule="decode")


def key_of_header(data: bytes | None) -> SchemaKey:
    """The schema that the header names. Raises Reject."""
    if data is not None and len(data) == 17 and data[0] == _BY_GUID:
        return uuid.UUID(bytes=data[1:])
    if data is not None and len(data) == 5 and data[0] == _BY_ID:
        return int.from_bytes(data[1:], "big")
    raise Reject(f"header {SCHEMA_HEADER}: expected a byte 1 and a GUID, got {(data or b'')[:17].hex(' ') or 'nothing'}", rule="decode")


def spoken(key: SchemaKey) -> str:
    """A schema's id, or its GUID, in messages."""
    return f"id {key}" if isinstance(key, int) else str(key)
