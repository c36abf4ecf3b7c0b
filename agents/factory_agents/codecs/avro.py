"""Avro in Confluent's framing: a schema id before the value, or in a header; read by the schema of the record and that of the reader."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import uuid
from collections.abc import Callable
from io import BytesIO
from math import isfinite
from typing import Any, NamedTuple

import msgspec

from factory_agents.codecs.avro_types import (
    BUILTIN,
    event_type,
    float_fields,
    has_decimals,
    holds_itself,
    refuse_boundless,
    refuse_exponents,
    with_typed_defaults,
)
from factory_agents.codecs.base import Codec, refuse_nan, to_json
from factory_agents.codecs.registry import RegistryConfig, StoredSchema, UnknownSchemaError, registry_of
from factory_agents.errors import ConfigurationError
from factory_agents.kafka.messages import Headers
from factory_agents.reject import Reject

__all__ = ["SCHEMA_HEADER", "AvroCodec"]

SCHEMA_HEADER = "__value_schema_id"
"""The header that Confluent's newer serialisers put the schema's GUID into, with a value that has no framing of its own."""

_BY_ID, _BY_GUID = 0, 1
_MOST_READERS = 1000
_encode = msgspec.json.Encoder(decimal_format="number").encode


class _Reader(NamedTuple):
    """What reads the records of one schema."""

    read: Callable[..., Any]
    schema: Any
    reader_schema: Any
    floats: tuple[str, ...] | None
    """The fields that may hold what is no number; None where they are deeper."""


class AvroCodec(Codec):
    """Avro records whose schemas a registry knows.

    :param subject: the subject in the registry; by default ``<topic>-value``.
    :param version: the version by which events are read and written: a number, or ``latest``, which is found out once for a piece of work.
        ``writer``, for reading alone: each record by the schema that it was written with.
    :param framing: where what is written says its schema: ``id`` (five bytes before the value) or ``guid`` (a header). Both are read.
    :param rules: a subject with rules (checks, migrations, encrypted fields) is refused; ``ignore`` goes on without running them.
    """

    version = "1"
    header_names = frozenset((SCHEMA_HEADER,))

    def __init__(
        self,
        topic: str,
        pinned: dict[str, Any],
        subject: str = "",
        version: int | str = "latest",
        framing: str = "id",
        rules: str = "refuse",
        writing: bool = False,
    ) -> None:
        _one_of("framing", framing, ("id", "guid"))
        _one_of("rules", rules, ("refuse", "ignore"))
        _need_fastavro()
        from fastavro import schemaless_writer

        self._write: Callable[..., None] = schemaless_writer
        self._registry = registry_of(RegistryConfig.from_env())
        self._rules = rules
        self._readers: dict[Any, _Reader] = {}
        self._own: StoredSchema | None = None
        self._own_schema: Any = None
        self._type: Any = None
        self.identity = {"schema": "writer"}
        if version == "writer":
            if writing:
                raise ConfigurationError("codec 'avro': version: writer is for reading; to write, name a number, or latest")
            return
        self._subject = subject or f"{topic}-value"
        self._own = own = self._pinned(pinned) if pinned else self._resolve(version)
        self._check(own, f"subject {self._subject!r}")
        try:
            self._own_schema = self._parse(own)
            self._type = msgspec.json.Decoder(event_type(self._own_schema))
            self._has_decimals = has_decimals(self._own_schema)
        except Reject as reject:
            raise ConfigurationError(f"codec 'avro': subject {self._subject!r}, version {own.version}: {reject.reason}") from None
        except ValueError as error:
            raise ConfigurationError(f"codec 'avro': subject {self._subject!r}, version {own.version}: {error}, expected one") from None
        self.pinned = {"id": own.id, "version": own.version, "digest": self._digest(own)} | ({"guid": own.guid} if own.guid else {})
        self.identity = {"id": own.id, "digest": self.pinned["digest"]} | ({"framing": framing} if writing else {})
        if framing == "guid":
            if not own.guid:
                raise ConfigurationError(f"codec 'avro': framing: the registry {self._registry.config.shown} knows no GUIDs; use id")
            self.headers = ((SCHEMA_HEADER, bytes((_BY_GUID,)) + uuid.UUID(own.guid).bytes),)
        self._prefix = b"" if framing == "guid" else bytes((_BY_ID,)) + own.id.to_bytes(4, "big")

    # The schema of this side

    def _resolve(self, version: int | str) -> StoredSchema:
        try:
            number = None if version == "latest" else int(version)
        except ValueError:
            raise ConfigurationError(f"codec 'avro': version: expected a number, latest or writer, got {version!r}") from None
        try:
            return self._registry.latest(self._subject) if number is None else self._registry.by_version(self._subject, number)
        except UnknownSchemaError as error:
            raise ConfigurationError(
                f"codec 'avro': {error}; register the schema, or name its subject: avro?subject=… (to read each record by its own schema: "
                "avro?version=writer)"
            ) from None

    def _pinned(self, pinned: dict[str, Any]) -> StoredSchema:
        """The schema that this work was begun with."""
        try:
            found = self._registry.by_id(pinned["id"])
        except UnknownSchemaError as error:
            raise ConfigurationError(f"codec 'avro': {error} any more, which this work was begun with; run it again with redo") from None
        found = msgspec.structs.replace(
            found, id=pinned["id"], version=pinned["version"], guid=pinned.get("guid", ""), subject=self._subject
        )
        if self._digest(found) != pinned["digest"]:
            raise ConfigurationError(
                f"codec 'avro': schema id {pinned['id']} is another schema now than when this work was begun (another registry?); "
                "run it again with redo"
            )
        return found

    def _digest(self, schema: StoredSchema) -> str:
        """Names a schema with all that it refers to."""
        texts = [schema.text, *(self._digest(self._registry.by_version(r.subject, r.version)) for r in schema.references)]
        return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]

    def _check(self, schema: StoredSchema, what: str) -> None:
        if schema.rules and self._rules == "refuse":
            raise ConfigurationError(
                f"codec 'avro': {what} has rules (checks, migrations or encryption), which are not run here; avro?rules=ignore goes on "
                "without them"
            )
        if schema.type != "AVRO":
            raise ConfigurationError(f"codec 'avro': {what} is of type {schema.type}, expected AVRO")

    def _parse(self, schema: StoredSchema) -> Any:
        """A schema with those that it refers to, as fastavro takes it. Raises Reject for one that can't be used."""
        import fastavro
        from fastavro.schema import SchemaParseException, UnknownType

        named: dict[str, Any] = {}
        try:
            self._name_references(schema, named)
            parsed = with_typed_defaults(fastavro.parse_schema(json.loads(schema.text), named_schemas=named), named)
            refuse_boundless(parsed, named)
        except (SchemaParseException, UnknownType, ValueError, TypeError, KeyError, RecursionError) as error:
            raise Reject(f"its schema is no Avro schema: {type(error).__name__}: {error}", rule="decode") from error
        return parsed

    def _name_references(self, schema: StoredSchema, named: dict[str, Any]) -> None:
        import fastavro

        for reference in schema.references:
            other = self._registry.by_version(reference.subject, reference.version)
            self._name_references(other, named)
            if reference.name not in named:
                with_typed_defaults(fastavro.parse_schema(json.loads(other.text), named_schemas=named), named)

    # Reading

    def decode(self, value: bytes, headers: Headers) -> dict[str, Any]:
        """See ``Codec.decode``."""
        return self._decoded(value, headers)[0]

    def decode_json(self, value: bytes, headers: Headers) -> bytes:
        """See ``Codec.decode_json``."""
        event, floats = self._decoded(value, headers)
        try:
            text = _encode(event)
        except Exception:
            return to_json(event)  # says what it is
        if floats is None:
            if b"null" in text:
                refuse_nan(event)
        else:
            for name in floats:
                if event[name] is not None and not isfinite(event[name]):
                    refuse_nan(event)
        return text

    def _decoded(self, value: bytes, headers: Headers) -> tuple[dict[str, Any], tuple[str, ...] | None]:
        key: Any = None
        start = 0
        for name, data in headers:
            if name == SCHEMA_HEADER:
                key = _key_of_header(data)
        if key is None:
            if value[:1] != b"\0" or len(value) < 5:
                raise Reject(
                    "not Avro with a schema id: expected a byte 0 and four of the id before the value, "
                    f"got {value[:5].hex(' ') or 'nothing'}{' …' if len(value) > 5 else ''}",
                    rule="decode",
                )
            key, start = int.from_bytes(value[1:5], "big"), 5
        reader = self._readers.get(key)
        if reader is None:
            reader = self._load(key)
        stream = BytesIO(value)
        stream.seek(start)
        try:
            event = reader.read(stream, reader.schema, reader.reader_schema)
        except Exception as error:
            raise Reject(f"not Avro of schema {_spoken(key)}: {type(error).__name__}: {error}".rstrip(": "), rule="decode") from error
        if stream.tell() != len(value):
            raise Reject(f"not Avro of schema {_spoken(key)}: {len(value) - stream.tell()} bytes are left over", rule="decode")
        if type(event) is not dict:
            raise Reject(f"schema {_spoken(key)} is no record: expected one, got {type(event).__name__}", rule="decode")
        return event, reader.floats

    def _load(self, key: Any) -> _Reader:
        try:
            stored = self._registry.by_id(key) if isinstance(key, int) else self._registry.by_guid(str(key))
        except UnknownSchemaError as error:
            raise Reject(str(error), rule="schema-id") from None
        if stored.type != "AVRO":
            raise Reject(f"schema {_spoken(key)} is of type {stored.type}, expected AVRO", rule="schema-id")
        self._check(stored, f"schema {_spoken(key)}")
        written = self._parse(stored)
        own, mine = self._own_schema, self._own
        same = mine is not None and (stored.text, stored.references) == (mine.text, mine.references)
        read = _slow_reader() if holds_itself(written) or (own is not None and holds_itself(own)) else _fast_reader()
        seen = written if own is None else own
        floats = float_fields(seen) if isinstance(seen, dict) and "fields" in seen else None
        reader = _Reader(read, written, None if same else own, floats)
        if len(self._readers) >= _MOST_READERS:
            self._readers.clear()
        self._readers[key] = reader
        return reader

    # Writing

    def encode(self, event: dict[str, Any]) -> bytes:
        """See ``Codec.encode``."""
        return self.encode_json(to_json(event))

    def encode_json(self, text: bytes) -> bytes:
        """See ``Codec.encode_json``: JSON's texts become times, decimals and bytes as the schema says, and numbers must fit."""
        if self._type is None:
            raise ConfigurationError("codec 'avro': it was opened for reading")
        try:
            event = msgspec.to_builtins(self._type.decode(text), builtin_types=BUILTIN)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Reject(f"not as subject {self._subject!r} says: {error}", rule="encode") from error
        stream = BytesIO()
        stream.write(self._prefix)
        if self._has_decimals:
            refuse_exponents(event)
        try:
            self._write(stream, self._own_schema, event, strict_allow_default=True)
        except Exception as error:
            raise Reject(f"not as subject {self._subject!r} says: {error}", rule="encode") from error
        return stream.getvalue()


def _key_of_header(data: bytes | None) -> int | uuid.UUID:
    if data is not None and len(data) == 17 and data[0] == _BY_GUID:
        return uuid.UUID(bytes=data[1:])
    if data is not None and len(data) == 5 and data[0] == _BY_ID:
        return int.from_bytes(data[1:], "big")
    raise Reject(f"header {SCHEMA_HEADER}: expected a byte 1 and a GUID, got {(data or b'')[:17].hex(' ') or 'nothing'}", rule="decode")


def _spoken(key: int | uuid.UUID) -> str:
    return f"id {key}" if isinstance(key, int) else str(key)


def _fast_reader() -> Callable[..., Any]:
    from fastavro import schemaless_reader

    read: Callable[..., Any] = schemaless_reader
    return read


def _slow_reader() -> Callable[..., Any]:
    """In Python, for schemas that hold themselves: the other one runs over the stack, and ends the process, where a value nests deeply."""
    from fastavro._read_py import schemaless_reader

    read: Callable[..., Any] = schemaless_reader
    return read


def _need_fastavro() -> None:
    if importlib.util.find_spec("fastavro") is None:
        raise ConfigurationError("codec 'avro' needs fastavro: pip install 'factory-agents[registry]'")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigurationError(f"codec 'avro': {name}: expected {' or '.join(allowed)}, got {value!r}")
