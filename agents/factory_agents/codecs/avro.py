"""Avro in Confluent's framing: a schema id before the value, or in a header; read by the schema of the record and that of the reader."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from io import BytesIO
from math import isfinite
from typing import Any, NamedTuple

import msgspec

from factory_agents.codecs.avro_changes import breaking_changes
from factory_agents.codecs.avro_types import (
    BUILTIN,
    event_type,
    float_fields,
    has_decimals,
    holds_itself,
    refuse_alike,
    refuse_boundless,
    refuse_exponents,
    unwritable_field,
    with_exact_values,
    with_typed_defaults,
)
from factory_agents.codecs.base import refuse_nan, to_json
from factory_agents.codecs.framing import RegistryCodec, SchemaKey, spoken
from factory_agents.codecs.registry import Registry, StoredSchema
from factory_agents.errors import ConfigurationError
from factory_agents.kafka.messages import Headers
from factory_agents.reject import Reject

__all__ = ["AvroCodec"]

_MOST_READERS = 1000
_encode = msgspec.json.Encoder(decimal_format="number").encode


class _Reader(NamedTuple):
    """What reads the records of one schema."""

    read: Callable[..., Any]
    schema: Any
    reader_schema: Any
    floats: tuple[str, ...] | None
    """The fields that may hold what is no number; None where they are deeper."""


class AvroCodec(RegistryCodec):
    """Avro records whose schemas a registry knows. Options as for ``RegistryCodec``."""

    name = "avro"
    kind = "AVRO"

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
        if importlib.util.find_spec("fastavro") is None:
            raise ConfigurationError(f"{self}: it needs fastavro: pip install 'factory-agents[registry]'")
        from fastavro import schemaless_writer

        self._write: Callable[..., None] = schemaless_writer
        self._readers: dict[SchemaKey, _Reader] = {}
        self._own_schema: Any = None
        self._writing = writing
        self._type: Any = None
        super().__init__(topic, pinned, subject, version, framing, rules, compatibility, writing, registry)

    def _use(self, own: StoredSchema) -> None:
        self._own_schema = self._parse(own)
        if not self._writing and isinstance(self._own_schema, list):
            return  # several types of events in one topic
        try:
            if self._writing:
                refuse_alike(self._own_schema)
            self._type = msgspec.json.Decoder(event_type(self._own_schema))
        except ValueError as error:
            raise Reject(str(error)) from None
        self._has_decimals = has_decimals(self._own_schema)

    def _parse(self, schema: StoredSchema) -> Any:
        """A schema with those that it refers to, as fastavro takes it. Raises Reject for one that can't be used."""
        import fastavro
        from fastavro.schema import SchemaParseException, UnknownType

        named: dict[str, Any] = {}
        referred = self._referred(schema)
        try:
            for reference, other in referred:
                if reference.name not in named:
                    with_typed_defaults(fastavro.parse_schema(json.loads(other.text), named_schemas=named), named)
            parsed = with_typed_defaults(fastavro.parse_schema(json.loads(schema.text), named_schemas=named), named)
            refuse_boundless(parsed, named)
        except (SchemaParseException, UnknownType, ValueError, TypeError, KeyError, RecursionError) as error:
            raise Reject(f"its schema is no Avro schema: {type(error).__name__}: {error}", rule="decode") from error
        return parsed

    def _breaking(self, new: StoredSchema, old: StoredSchema, compatibility: str) -> list[str]:
        return breaking_changes(self._parse(new), self._parse(old), compatibility)

    # Reading

    def decode(self, value: bytes, headers: Headers) -> dict[str, Any]:
        """See ``Codec.decode``."""
        return self._decoded(value, headers)[0]

    def decode_json(self, value: bytes, headers: Headers) -> bytes:
        """See ``Codec.decode_json``."""
        event, floats = self._decoded(value, headers)
        try:
            text = _encode(event)
        except Exception as error:
            if type(event) is not dict:
                raise Reject(f"it cannot be written as JSON: {error}", rule="decode") from error
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
        key, start = self._framed(value, headers)
        reader = self._readers.get(key)
        if reader is None:
            reader = self._load(key)
        stream = BytesIO(value)
        stream.seek(start)
        try:
            event = reader.read(stream, reader.schema, reader.reader_schema)
        except Exception as error:
            raise Reject(f"not Avro of schema {spoken(key)}: {type(error).__name__}: {error}".rstrip(": "), rule="decode") from error
        if stream.tell() != len(value):
            raise Reject(f"not Avro of schema {spoken(key)}: {len(value) - stream.tell()} bytes are left over", rule="decode")
        if type(event) is not dict and self.records_only:
            raise Reject(f"schema {spoken(key)} is no record: expected one, got {type(event).__name__}", rule="decode")
        return event, reader.floats

    def _load(self, key: SchemaKey) -> _Reader:
        stored = self._written_by(key)
        written = self._parse(stored)
        own, mine = self._own_schema, self._own
        same = mine is not None and (stored.text, stored.references) == (mine.text, mine.references)
        read = _slow_reader() if holds_itself(written) or (own is not None and holds_itself(own)) else _fast_reader()
        seen = written if own is None else own
        floats = float_fields(seen) if isinstance(seen, dict) and "fields" in seen else None
        reader_schema = None if same or own is None else with_exact_values(own)
        reader = _Reader(read, with_exact_values(written), reader_schema, floats)
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
            raise ConfigurationError(f"{self}: it was opened for reading")
        try:
            event = msgspec.to_builtins(self._type.decode(text), builtin_types=BUILTIN)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Reject(f"not as subject {self._subject!r} says: {error}", rule="encode") from error
        stream = BytesIO()
        stream.write(self._prefix)
        try:
            if self._has_decimals:
                refuse_exponents(event)
            self._write(stream, self._own_schema, event, strict_allow_default=True)
        except Exception as error:
            at = unwritable_field(self._own_schema, event, self._try)
            where = f" - at `$.{at}`" if at else ""
            raise Reject(f"not as subject {self._subject!r} says: {error}{where}", rule="encode") from error
        return stream.getvalue()

    def _try(self, schema: Any, event: dict[str, Any]) -> None:
        refuse_exponents(event)
        self._write(BytesIO(), schema, event, strict_allow_default=True)


def _fast_reader() -> Callable[..., Any]:
    from fastavro import schemaless_reader

    read: Callable[..., Any] = schemaless_reader
    return read


def _slow_reader() -> Callable[..., Any]:
    """In Python, for schemas that hold themselves: the other one runs over the stack, and ends the process, where a value nests deeply."""
    from fastavro._read_py import schemaless_reader

    read: Callable[..., Any] = schemaless_reader
    return read
