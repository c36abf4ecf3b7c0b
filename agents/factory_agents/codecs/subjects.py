"""Registering schemas and asking whether they may be: what CI does before anything is written by them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from factory_agents.codecs.registry import Reference, RegistryConfig, UnknownSchemaError, ask
from factory_agents.errors import ConfigurationError

__all__ = ["Registered", "SchemaCheck", "Subjects", "parse_references"]

_TYPES = {".avsc": "AVRO", ".json": "JSON", ".proto": "PROTOBUF"}


class SchemaCheck(msgspec.Struct, frozen=True):
    """Whether a schema may be the subject's next version, by the subject's rule in the registry."""

    subject: str
    compatible: bool


class Registered(msgspec.Struct, frozen=True):
    """A schema as it is in the registry now."""

    subject: str
    id: int
    version: int


class Subjects:
    """Schemas in files, and a registry's subjects for them."""

    def __init__(self, config: RegistryConfig) -> None:
        self.config = config
        self._client = config.client()

    def register(self, subject: str, file: str, references: Sequence[Reference] = ()) -> Registered:
        """Make a file's schema the subject's newest version, unless it is one already.

        Raises ConfigurationError for a file that is no schema, and where the registry refuses it as incompatible; UnavailableError.
        """
        schema = _schema(file, references)
        found = ask(self.config, f"subject {subject!r}", lambda: self._client.register_schema_full_response(subject, schema))
        version = ask(self.config, f"subject {subject!r}", lambda: self._client.lookup_schema(subject, schema)).version
        return Registered(subject, int(found.schema_id), int(version))

    def check(self, subject: str, file: str, references: Sequence[Reference] = ()) -> SchemaCheck:
        """Whether a file's schema may be the subject's next version; nothing is written. A subject that isn't there takes any.

        Errors as ``register``.
        """
        schema = _schema(file, references)
        try:
            compatible = ask(self.config, f"subject {subject!r}", lambda: self._client.test_compatibility(subject, schema))
        except UnknownSchemaError:
            compatible = True
        return SchemaCheck(subject, bool(compatible))


def parse_references(texts: Sequence[str]) -> list[Reference]:
    """References from ``NAME=SUBJECT:VERSION``. Raises ConfigurationError."""
    found = []
    for text in texts:
        name, _, rest = text.partition("=")
        subject, _, version = rest.rpartition(":")
        if not name or not subject or not version.isdecimal():
            raise ConfigurationError(f"--reference {text}: expected NAME=SUBJECT:VERSION, such as Place=place-value:1")
        found.append(Reference(name, subject, int(version)))
    return found


def _schema(file: str, references: Sequence[Reference]) -> Any:
    path = Path(file)
    type_ = _TYPES.get(path.suffix)
    if type_ is None:
        raise ConfigurationError(f"{file}: expected a schema in a file named {', '.join(f'*{suffix}' for suffix in _TYPES)}")
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{file}: it is no text file") from None
    from confluent_kafka.schema_registry import Schema, SchemaReference

    if type_ != "PROTOBUF":
        try:
            text = msgspec.json.encode(msgspec.json.decode(text)).decode()
        except (msgspec.DecodeError, RecursionError) as error:
            raise ConfigurationError(f"{file}: not JSON: {error}") from None
    return Schema(text, type_, references=[SchemaReference(r.name, r.subject, r.version) for r in references])
