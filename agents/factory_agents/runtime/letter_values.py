"""A dead letter's value and key as a person reads them: by the schema that they name, as text, or as their bytes."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from factory_agents.codecs.framing import KEY_SCHEMA_HEADER, SCHEMA_HEADER, SchemaKey, key_of_header, spoken
from factory_agents.errors import FactoryError, UnavailableError
from factory_agents.protocol import CodecRef
from factory_agents.reject import Reject
from factory_agents.runtime.codecs import codec_class
from factory_agents.runtime.loading import describe

if TYPE_CHECKING:
    from factory_agents.codecs import Codec
    from factory_agents.codecs.registry import Registry, RegistryConfig
    from factory_agents.runtime.dead_letters import Letter

__all__ = ["LetterReader", "Shown", "plain"]

BYTES = "bytes, with escapes"
_CODECS = {"AVRO": "avro", "PROTOBUF": "protobuf", "JSON": "json-schema"}
_MOST_UNKNOWN = 20
"""So many schemas of one reader that a registry doesn't know: it isn't asked for others, since the records are of another kind."""


@dataclass(frozen=True)
class Shown:
    """Bytes as text. ``form`` is empty for what was text already; ``why`` says why they were not decoded, if they name a schema."""

    text: str
    form: str = ""
    why: str = ""

    @property
    def said(self) -> str:
        """The form, and why it is no better."""
        return f"{self.form or 'text'}: {self.why}" if self.why else self.form


def plain(data: bytes, *, whole: bool = True, why: str = "") -> Shown:
    r"""Bytes as the text that they are, else with escapes (``\x00``): never one for another. Not ``whole``: the last character may lack."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=whole)
    except UnicodeDecodeError:
        text = None
    if text is not None and "\0" not in text:
        return Shown(text, "", why)
    return Shown(data.decode("latin-1").encode("unicode_escape").decode("ascii"), BYTES, why)


def _key(data: bytes, named: list[bytes | None]) -> SchemaKey | None:
    """The schema that a record names, in its header or its first bytes; None where it names none. Raises Reject."""
    if named:
        header = named[0] or b""
        return key_of_header(header[: 17 if header[:1] == b"\1" else 5])  # a place in the schema may stand behind it
    return int.from_bytes(data[1:5], "big") if data[:1] == b"\0" and len(data) >= 5 else None


class LetterReader:
    """Reads values and keys by the schemas of a registry, each by the one that it was written with. No code of a user's own runs for it.

    :param registry: the registry's settings, asked for with the first record that names a schema.
    :param most: bytes of the largest value that is decoded; 0 for any.
    """

    def __init__(self, registry: Callable[[], RegistryConfig], *, most: int = 0) -> None:
        self._settings, self._most = registry, most
        self._registry: Registry | None = None
        self._codecs: dict[str, Codec] = {}
        self._unknown: set[SchemaKey] = set()
        self._down = ""

    def value(self, letter: Letter) -> Shown | None:
        """The event; None for a letter that has no value."""
        return self._read(letter.value, [data for name, data in letter.headers if name == SCHEMA_HEADER])

    def key(self, letter: Letter) -> Shown | None:
        """The same for its key."""
        return self._read(letter.key, [data for name, data in letter.headers if name == KEY_SCHEMA_HEADER])

    def _read(self, data: bytes | None, named: list[bytes | None]) -> Shown | None:
        if data is None:
            return None
        try:
            key = _key(data, named)
        except Reject as reject:
            return plain(data, why=reject.reason)
        if key is None:
            return plain(data)
        try:
            return self._decoded(key, data, named)
        except Reject as reject:
            why = reject.reason
        except FactoryError as error:
            why = str(error)
            if isinstance(error, UnavailableError):  # of what its schema refers to, too: it is not asked again for each record
                self._down = why
        except Exception as error:  # whatever a hostile schema or value brings about
            why = describe(error)
        return plain(data, why=why if spoken(key) in why else f"schema {spoken(key)}: {why}")

    def _decoded(self, key: SchemaKey, data: bytes, named: list[bytes | None]) -> Shown:
        if self._most and len(data) > self._most:
            raise Reject(f"{len(data):,} bytes, and no more than {self._most:,} are decoded here")
        if self._down:
            raise UnavailableError(self._down)
        codec = self._codec(key)
        text = codec.decode_json(data, [(SCHEMA_HEADER, name) for name in named])
        if not isinstance(text, bytes):
            raise Reject("it deletes a row")
        return Shown(text.decode(), f"{codec.kind}, schema {spoken(key)}")  # type: ignore[attr-defined]

    def _codec(self, key: SchemaKey) -> Codec:
        """What reads the records of a schema."""
        from factory_agents.codecs.registry import UnknownSchemaError, registry_of

        if key not in self._unknown and len(self._unknown) >= _MOST_UNKNOWN:
            raise Reject(f"the registry was not asked, since it has none of {_MOST_UNKNOWN} others that such records name")
        try:
            if self._registry is None:
                self._registry = registry_of(self._settings())
            stored = self._registry.by_id(key) if isinstance(key, int) else self._registry.by_guid(str(key))
        except UnknownSchemaError:
            self._unknown.add(key)
            raise
        except FactoryError as error:
            self._down = str(error)
            raise
        name = _CODECS.get(stored.type)
        if name is None:
            raise Reject(f"it is of type {stored.type}, which is not read here")
        if name not in self._codecs:
            class_, _ = codec_class(CodecRef(name))
            codec = class_(topic="", pinned={}, version="writer", rules="ignore", registry=self._registry)  # type: ignore[call-arg]
            codec.records_only = False  # type: ignore[attr-defined]
            self._codecs[name] = codec
        return self._codecs[name]
