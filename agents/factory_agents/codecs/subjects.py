"""Registering schemas and asking whether they may be: what CI does before anything is written by them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from factory_agents.codecs.registry import Reference, RegistryConfig, UnknownSchemaError, ask
from factory_agents.errors import ConfigurationError, FactoryError

__all__ = ["Registered", "SchemaCheck", "Subjects", "parse_references"]

_TYPES = {".avsc": "AVRO", ".json": "JSON", ".proto": "PROTOBUF"}


class SchemaCheck(msgspec.Struct, frozen=True):
    """Whether a schema may be the subject's next version, by the subject's rule in the registry or by the one that was named.

    ``why`` names the fields that forbid it, as far as that is known: of Avro schemas without references.
    """

    subject: str
    compatible: bool
    why: tuple[str, ...] = ()


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

    def register(self, subject: str, file: str, references: Sequence[Reference] = (), *, normalize: bool = False) -> Registered:
        """Make a file's schema the subject's newest version, unless it is one already; ``normalize``: or one that means the same.

        Raises ConfigurationError for a file that is no schema, and where the registry refuses it as incompatible; UnavailableError.
        """
        schema = _schema(file, references)
        try:
            found = ask(self.config, f"subject {subject!r}", lambda: self._client.register_schema_full_response(subject, schema, normalize))
        except ConfigurationError as error:  # a registry may say which place is wrong, and not which field that is
            why = self._why_by_its_rule(subject, schema)
            if not why:
                raise
            raise ConfigurationError(f"{error}; {'; '.join(why)}") from None
        version = ask(self.config, f"subject {subject!r}", lambda: self._client.lookup_schema(subject, schema, normalize)).version
        return Registered(subject, int(found.schema_id), int(version))

    def check(self, subject: str, file: str, references: Sequence[Reference] = (), *, compatibility: str = "") -> SchemaCheck:
        """Whether a file's schema may be the subject's next version; nothing is written. A subject that isn't there takes any.

        By the subject's own rule, or by ``compatibility`` (``backward``, ``forward``, ``full``; Avro without references). Errors as
        ``register``.
        """
        schema, what = _schema(file, references), f"subject {subject!r}"
        if compatibility and (schema.schema_type != "AVRO" or references):
            raise ConfigurationError(
                f"{file}: compatibility: only Avro schemas without references are compared; leave it to the registry's rule"
            )
        try:
            if compatibility:
                why = self._why(subject, schema, compatibility)
                return SchemaCheck(subject, not why, why)
            if ask(self.config, what, lambda: self._client.test_compatibility(subject, schema)):
                return SchemaCheck(subject, compatible=True)
            if self._rule(subject) == "none":  # Apicurio judges by another rule where it has none, and takes the schema all the same
                return SchemaCheck(subject, compatible=True)
            return SchemaCheck(subject, compatible=False, why=self._why_by_its_rule(subject, schema))
        except UnknownSchemaError:
            return SchemaCheck(subject, compatible=True)

    def _why_by_its_rule(self, subject: str, schema: Any) -> tuple[str, ...]:
        """The same by the subject's own rule; nothing where that isn't known."""
        if schema.schema_type != "AVRO" or schema.references:
            return ()
        rule = self._rule(subject)
        try:
            return self._why(subject, schema, rule) if rule else ()
        except FactoryError:
            return ()

    def _rule(self, subject: str) -> str:
        """The subject's own rule (``backward``, ``forward``, ``full``, ``none``), transitive or not; "" where that isn't known."""
        try:
            rule = ask(self.config, f"subject {subject!r}", lambda: self._client.get_compatibility(subject))
        except FactoryError:
            return ""
        return str(rule).lower().partition("_")[0]

    def _why(self, subject: str, schema: Any, compatibility: str) -> tuple[str, ...]:
        """What of an Avro schema forbids that it follows the subject's newest version."""
        import fastavro

        from factory_agents.codecs.avro_changes import breaking_changes

        old = ask(self.config, f"subject {subject!r}", lambda: self._client.get_latest_version(subject)).schema
        if (old.schema_type or "AVRO").upper() != "AVRO" or old.references:
            return ()
        try:
            new_parsed, old_parsed = (fastavro.parse_schema(msgspec.json.decode(text)) for text in (schema.schema_str, old.schema_str))
        except Exception as error:  # whatever fastavro says of a schema that is none
            raise ConfigurationError(f"subject {subject!r}: it or the file is no Avro schema: {type(error).__name__}: {error}") from None
        return tuple(breaking_changes(new_parsed, old_parsed, compatibility))


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
