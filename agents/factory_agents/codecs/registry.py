"""A schema registry of Confluent's kind: schemas by id, by GUID and by subject, remembered in memory and, if told so, on disk.

What a registry doesn't know and what can't be asked of it now are kept apart: the one is somebody's bad record, the other an outage.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import msgspec

from factory_agents.errors import ConfigurationError, FactoryError, UnavailableError
from factory_agents.kafka.config import is_secret
from factory_agents.text import printable, shortened

__all__ = ["Reference", "Registry", "RegistryConfig", "StoredSchema", "UnknownSchemaError", "ask", "is_registry_secret", "registry_of"]

log = logging.getLogger(__name__)

_UNKNOWN = {40401: "subject", 40402: "version", 40403: "schema"}
_DEFAULTS: Mapping[str, Any] = {"timeout": 10, "max.retries": 3, "retries.wait.ms": 200, "retries.max.wait.ms": 2000}
_NUMBERS = ("timeout", "max.retries", "retries.wait.ms", "retries.max.wait.ms", "cache.capacity", "cache.latest.ttl.sec")
_MOST = 1000
"""Schemas that are kept in memory."""
_MOST_BYTES = 16 * 1024 * 1024
"""Of one answer."""
_MOST_SAID = 300
_UNKNOWN_SECONDS = 60.0
"""For how long a schema that a registry doesn't know isn't asked for again: a topic may be full of them."""

_T = TypeVar("_T")


class UnknownSchemaError(FactoryError):
    """The registry answers, and has no such schema, subject or version."""


class Reference(msgspec.Struct, frozen=True):
    """Another schema that one is made of, by the name it has there."""

    name: str
    subject: str
    version: int


class StoredSchema(msgspec.Struct, frozen=True, omit_defaults=True):
    """A schema as the registry has it. ``id``, ``guid``, ``subject`` and ``version`` as far as the question was about them.

    ``rules``: it has rules of its own (checks, migrations, encryption), which are not run here.
    """

    type: str
    text: str
    references: tuple[Reference, ...] = ()
    id: int = -1
    guid: str = ""
    subject: str = ""
    version: int = -1
    rules: bool = False


@dataclass(frozen=True)
class RegistryConfig:
    """How to reach a registry. ``values`` are the keys of Confluent's client (``basic.auth.user.info``, ``ssl.ca.location``, …).

    ``cache`` is a folder in which schemas are kept for when the registry doesn't answer.
    """

    url: str
    values: Mapping[str, Any] = field(default_factory=dict)
    cache: str = ""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> RegistryConfig:
        """From ``SCHEMA_REGISTRY_URL``, ``SCHEMA_REGISTRY_CONFIG`` (a JSON object), else ``SCHEMA_REGISTRY_CONFIG_FILE`` (the same, or
        ``key=value`` lines), and ``FACTORY_SCHEMA_CACHE``.

        Raises ConfigurationError where no registry is named, or what stands there can't be read.
        """
        env = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        if path := env.get("SCHEMA_REGISTRY_CONFIG_FILE"):
            values |= _read_file(path)
        if text := env.get("SCHEMA_REGISTRY_CONFIG"):
            values |= _parse(text, "SCHEMA_REGISTRY_CONFIG")
        url = str(env.get("SCHEMA_REGISTRY_URL") or values.pop("url", ""))
        values.pop("url", None)
        if not url.strip():
            raise ConfigurationError("no schema registry is named; set SCHEMA_REGISTRY_URL, such as https://registry.example.com")
        return cls(url.strip(), values, env.get("FACTORY_SCHEMA_CACHE", ""))

    @staticmethod
    def typed(values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The keys of Confluent's client with numbers as such. Raises ConfigurationError, which begins with ``where``."""
        return _typed(values, where)

    def to_env(self) -> dict[str, str]:
        """As ``from_env`` reads it; holds secrets."""
        found = {"SCHEMA_REGISTRY_URL": self.url, "SCHEMA_REGISTRY_CONFIG": json.dumps(dict(self.values))}
        return found | ({"FACTORY_SCHEMA_CACHE": self.cache} if self.cache else {})

    @property
    def shown(self) -> str:
        """The addresses without users and passwords."""
        return ", ".join(map(_shown, self.url.split(",")))

    def __repr__(self) -> str:
        """Settings with secrets masked."""
        values = ", ".join(f"{k}={'***' if is_registry_secret(k) else v}" for k, v in sorted(self.values.items()))
        return f"RegistryConfig({self.shown}{', ' + values if values else ''})"

    def client(self) -> Any:
        """A new client; nothing is asked yet. Raises ConfigurationError for settings that it doesn't take."""
        try:
            from confluent_kafka.schema_registry import SchemaRegistryClient
        except ImportError as error:
            raise ConfigurationError(
                f"a schema registry needs the extra registry: pip install 'factory-agents[registry]' ({error.name} is not installed)"
            ) from None
        values = {**_DEFAULTS, **self.values}
        try:
            client = SchemaRegistryClient.new_client({**values, "url": self.url})
        except OSError as error:
            raise ConfigurationError(f"schema registry {self.shown}: a certificate or key: {error.strerror or error}") from None
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"schema registry {self.shown}: {self.without_secrets(error)}") from None
        session = client._rest_client.session  # it has no other way to bound an answer
        session.headers["Accept-Encoding"] = "identity"
        session.event_hooks = {"response": [partial(_bound, seconds=values["timeout"])]}
        return client

    def without_secrets(self, said: object) -> str:
        """A text of somebody else's, with nothing in it that nobody may see."""
        text = str(said)
        parts = [p for url in self.url.split(",") for p in (urlsplit(url.strip()).username, urlsplit(url.strip()).password)]
        hidden = [str(v) for k, v in self.values.items() if is_registry_secret(k)]
        for secret in filter(None, (*hidden, *(part for value in hidden for part in value.split(":")), *parts)):
            text = text.replace(secret, "***")
        return text


def _bound(response: Any, *, seconds: float) -> None:
    """Read an answer, in bounds of size and time, and go nowhere else with a user's password: a hook of Confluent's HTTP client."""
    if 300 <= response.status_code < 400:
        to = shortened(printable(_shown(response.headers.get("Location", ""))), _MOST_SAID)
        raise ConfigurationError(
            f"it sends to another address (HTTP {response.status_code}): {to or 'none'}; set SCHEMA_REGISTRY_URL to the registry's own"
        )
    if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnavailableError("its answer is compressed, which was not asked for")
    began, content = time.monotonic(), bytearray()
    for part in response.stream:
        content += part
        if len(content) > _MOST_BYTES:
            raise UnavailableError(f"its answer has more than {_MOST_BYTES:,} bytes")
        if time.monotonic() - began > seconds:
            raise UnavailableError(f"its answer isn't complete after {seconds:g} s")
    response.stream.close()
    response.stream = sys.modules[type(response).__module__.partition(".")[0]].ByteStream(bytes(content))


def is_registry_secret(key: str) -> bool:
    """Whether a key of Confluent's client holds what nobody may see."""
    return is_secret(key) or key in ("basic.auth.user.info", "bearer.auth.token", "proxy")


def _shown(url: str) -> str:
    parts = urlsplit(url.strip())
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _read_file(path: str) -> dict[str, Any]:
    where = "SCHEMA_REGISTRY_CONFIG_FILE"
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigurationError(f"{where}: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{where}: {path} is no text file") from None
    if text.lstrip().startswith("{"):
        return _parse(text, path)
    values: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not equals:
            raise ConfigurationError(f"{path}:{number}: expected key=value")
        values[key.strip()] = value.strip()
    return _typed(values, path)


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None  # the text may hold a password: it is not quoted
    if not isinstance(data, dict):
        raise ConfigurationError(f"{where}: expected a JSON object of the keys of Confluent's client, such as basic.auth.user.info")
    return _typed(data, where)


def _typed(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    typed = dict(values)
    for name in _NUMBERS:
        if name in typed:
            try:
                typed[name] = float(typed[name])
            except (TypeError, ValueError):
                raise ConfigurationError(f"{where}: {name}: expected a number, got {typed[name]!r}") from None
    return typed


class Registry:
    """Schemas of one registry. Those that have an id, a GUID or a version never change, so they are asked for once."""

    def __init__(self, config: RegistryConfig) -> None:
        self.config = config
        self._client = config.client()
        self._known: dict[str, StoredSchema] = {}
        self._unknown: dict[str, float] = {}
        self._latest: dict[str, tuple[float, StoredSchema]] = {}
        self._folder = Path(config.cache) / hashlib.sha256(config.shown.encode()).hexdigest()[:16] if config.cache else None

    def by_id(self, id_: int) -> StoredSchema:
        """The schema of an id. Raises UnknownSchemaError where the registry has none, UnavailableError where it can't be asked."""
        return self._lasting(f"id-{id_}", f"schema id {id_}", lambda: _stored(self._client.get_schema(id_), id=id_))

    def by_guid(self, guid: str) -> StoredSchema:
        """The schema of a GUID; errors as ``by_id``."""
        return self._lasting(f"guid-{guid}", f"schema {guid}", lambda: _stored(self._client.get_schema_by_guid(guid), guid=guid))

    def by_version(self, subject: str, version: int) -> StoredSchema:
        """A version of a subject; errors as ``by_id``."""
        what = f"version {version} of subject {subject!r}"
        return self._lasting(f"{_name(subject)}-{version}", what, lambda: _registered(self._client.get_version(subject, version), version))

    def compiled(self, schema: StoredSchema) -> str:
        """A Protobuf schema as the registry compiles it; errors as ``by_id``. Not every registry does: what it gives may be the source."""
        by_id = schema.id >= 0
        what = f"id {schema.id}" if by_id else schema.guid

        def question() -> StoredSchema:
            found = (
                self._client.get_schema(schema.id, fmt="serialized")
                if by_id
                else self._client.get_schema_by_guid(schema.guid, "serialized")
            )
            return _stored(found)

        return self._lasting(f"compiled-{what.replace(' ', '-')}", f"compiled schema {what}", question).text

    def latest(self, subject: str) -> StoredSchema:
        """The newest version of a subject; errors as ``by_id``.

        One that is a minute old is as good, and while the registry can't be asked, the last one that the disk cache knows (with a warning).
        """
        what, name = f"subject {subject!r}", f"{_name(subject)}-latest"
        asked, schema = self._latest.get(subject, (0.0, None))
        if schema is not None and time.monotonic() - asked < _UNKNOWN_SECONDS:
            return schema
        try:
            self._client.clear_latest_caches()
            schema = ask(self.config, what, lambda: _registered(self._client.get_latest_version(subject)))
        except UnavailableError as error:
            kept = self._read(name)
            if kept is None:
                raise
            log.warning("%s; going by what the schema cache knows: version %d of %s", error, kept.version, what)
            return kept
        self._refuse_another(schema)
        self._write(name, schema)
        self._write(f"{_name(subject)}-{schema.version}", schema)
        self._latest[subject] = (time.monotonic(), schema)
        return schema

    def _lasting(self, name: str, what: str, question: Callable[[], StoredSchema]) -> StoredSchema:
        known = self._known.get(name)
        if known is not None:
            return known
        if self._unknown.get(name, 0.0) > time.monotonic():
            raise UnknownSchemaError(f"the registry {self.config.shown} has no {what}")
        schema = self._read(name)
        if schema is None:
            try:
                schema = ask(self.config, what, question)
            except UnknownSchemaError:
                self._keep(self._unknown, name, time.monotonic() + _UNKNOWN_SECONDS)
                raise
            self._refuse_another(schema)
            self._write(name, schema)
        self._keep(self._known, name, schema)
        return schema

    def _refuse_another(self, schema: StoredSchema) -> None:
        """Raise ConfigurationError where an id means another schema than it did: records would be read by the wrong one, in silence."""
        name = f"id-{schema.id}"
        kept = self._known.get(name) or self._read(name)
        if schema.id >= 0 and kept is not None and _meaning(kept) != _meaning(schema):
            cache = f"empty the schema cache {self._folder}, and " if self._folder is not None else ""
            raise ConfigurationError(
                f"the registry {self.config.shown}: schema id {schema.id} is another schema now than it was (is it another registry?); "
                f"{cache}make sure that no record in the topics was written by the old ids"
            )

    def _keep(self, kept: dict[str, _T], name: str, value: _T) -> None:
        if len(kept) >= _MOST:
            kept.clear()
        kept[name] = value

    def _read(self, name: str) -> StoredSchema | None:
        """What the disk cache has under a name; a file that is no schema is as good as none."""
        if self._folder is None:
            return None
        try:
            return msgspec.json.decode((self._folder / f"{name}.json").read_bytes(), type=StoredSchema)
        except (OSError, msgspec.MsgspecError):
            return None

    def _write(self, name: str, schema: StoredSchema) -> None:
        """Keep a schema in the disk cache, whole or not at all; a full disk costs the cache, not the work."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=self._folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(msgspec.json.encode(schema))
                Path(partial).replace(self._folder / f"{name}.json")
            except OSError:
                with contextlib.suppress(OSError):
                    Path(partial).unlink()
                raise
        except OSError as error:
            log.warning("the schema cache %s cannot be written: %s", self._folder, error.strerror)


def ask(config: RegistryConfig, what: str, question: Callable[[], _T]) -> _T:
    """What a client answers, its errors as ours: UnknownSchemaError, UnavailableError, and ConfigurationError for what no retry mends."""
    from confluent_kafka.schema_registry.error import SchemaRegistryError

    where = f"the registry {config.shown}"
    try:
        return question()
    except SchemaRegistryError as error:
        raise _refused(config, error, where, what) from None
    except (ConfigurationError, UnavailableError) as error:
        raise type(error)(f"{where} cannot be asked for {what}: {error}") from None
    except Exception as error:  # whatever its HTTP client says of connections and answers that are no JSON
        said = _said(config, error)
        if _is_about_certificates(error):
            raise ConfigurationError(
                f"{where} cannot be asked for {what}: its certificate can't be trusted: {said}; set ssl.ca.location in "
                "SCHEMA_REGISTRY_CONFIG to the authority's certificate, or correct the address"
            ) from None
        raise UnavailableError(f"{where} cannot be asked for {what}: {type(error).__name__}: {said}") from None


def _said(config: RegistryConfig, said: object) -> str:
    """What somebody else says, in one line without secrets."""
    return shortened(printable(config.without_secrets(said)), _MOST_SAID)


def _is_about_certificates(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _refused(config: RegistryConfig, error: Any, where: str, what: str) -> FactoryError:
    status, code, said = error.http_status_code, error.error_code, _said(config, error.error_message)
    if status == 404 and code in _UNKNOWN:
        return UnknownSchemaError(f"{where} has no {what}")
    if status in (401, 403):
        return ConfigurationError(f"{where} refuses to tell {what} (HTTP {status}): set its user in SCHEMA_REGISTRY_CONFIG")
    if status in (408, 429) or status >= 500:
        return UnavailableError(f"{where} cannot tell {what} now (HTTP {status}): {said}")
    if status in (409, 422):
        return ConfigurationError(f"{where} refuses this schema for {what} (HTTP {status}): {said}")
    hint = "; is SCHEMA_REGISTRY_URL the registry's address?" if status == 404 else ""
    return ConfigurationError(f"{where} refuses to tell {what} (HTTP {status}): {said}{hint}")


def _meaning(schema: StoredSchema) -> Any:
    """A schema's text, however it is written."""
    try:
        return schema.type, msgspec.json.decode(schema.text)
    except (msgspec.DecodeError, RecursionError):
        return schema.type, schema.text


def _name(subject: str) -> str:
    """A subject as part of a file's name."""
    return f"subject-{hashlib.sha256(subject.encode()).hexdigest()[:32]}"


def _stored(schema: Any, **more: Any) -> StoredSchema:
    """A schema as Confluent's client has it. Raises UnavailableError for what is none: the record that names it is not to blame."""
    text, type_ = schema.schema_str, schema.schema_type or "AVRO"
    references = tuple(Reference(r.name, r.subject, int(r.version)) for r in schema.references or ())
    names = [name for r in references for name in (r.name, r.subject)]
    if not text or not all(isinstance(value, str) for value in (text, type_, *names)):
        raise UnavailableError("its answer holds no schema")
    rules = schema.rule_set
    found = rules is not None and any((rules.domain_rules, rules.migration_rules, rules.encoding_rules))
    return StoredSchema(type_.upper(), text, references, rules=found, **more)


def _registered(found: Any, version: int | None = None) -> StoredSchema:
    """A version of a subject. Raises UnavailableError where it isn't the one that was asked for."""
    id_, number = int(found.schema_id), int(found.version)
    if not 0 <= id_ < 1 << 31 or number != (number if version is None else version):
        raise UnavailableError(f"its answer is about schema id {id_}, version {number}")
    return _stored(found.schema, id=id_, guid=str(found.guid or ""), subject=str(found.subject), version=number)


@lru_cache(maxsize=8)
def _registry(key: str) -> Registry:
    url, values, cache = json.loads(key)
    return Registry(RegistryConfig(url, values, cache))


def registry_of(config: RegistryConfig) -> Registry:
    """The one of this process for these settings: a live ``publish`` opens its codec for every small window."""
    return _registry(json.dumps([config.url, dict(config.values), config.cache], sort_keys=True))
