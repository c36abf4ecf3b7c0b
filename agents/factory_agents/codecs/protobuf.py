"""Protobuf in Confluent's framing: a schema id and the place of the message in it, before the value or in a header."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from factory_agents.codecs.base import to_json
from factory_agents.codecs.framing import SCHEMA_HEADER, RegistryCodec, SchemaKey, key_of_header, spoken
from factory_agents.codecs.registry import Registry, StoredSchema
from factory_agents.errors import ConfigurationError
from factory_agents.kafka.messages import Headers
from factory_agents.reject import Reject

if TYPE_CHECKING:
    from factory_agents.codecs.protobuf_types import File
    from factory_agents.codecs.protobuf_writing import Parser

__all__ = ["ProtobufCodec"]

_MOST_READERS = 1000
_LONGEST_PATH = 100


class _Reader(NamedTuple):
    """What reads one kind of message."""

    parse: Callable[[bytes], Any]
    plain: Callable[[Any], dict[str, Any]]
    name: str
    requires: bool
    """Whether a message may lack what it requires."""
    floats: bool
    """Whether an event may hold what is no number."""


class ProtobufCodec(RegistryCodec):
    """Protobuf records whose schemas a registry knows. Options as for ``RegistryCodec``, and:

    :param message: the full name of the message that is read and written, such as ``shop.Order``; by default the file's first to write, and
        to read the one that the record names.
    """

    name = "protobuf"
    kind = "PROTOBUF"

    def __init__(
        self,
        topic: str,
        pinned: dict[str, Any],
        subject: str = "",
        version: int | str = "latest",
        framing: str = "id",
        rules: str = "refuse",
        compatibility: str = "",
        message: str = "",
        writing: bool = False,
        registry: Registry | None = None,
    ) -> None:
        _refuse_missing(repr(self))
        self._message = message
        self._readers: dict[tuple[SchemaKey, bytes], _Reader] = {}
        self._by_name: dict[str, _Reader] = {}
        self._own_file: tuple[File, dict[str, File]] | None = None
        self._parse: Parser | None = None
        super().__init__(topic, pinned, subject, version, framing, rules, compatibility, writing, registry)
        if message:
            self.identity = {**(self.identity or {}), "message": message}
        if self._own is not None:
            self._prefix += self._indexes if framing == "id" else b""
            self.headers = tuple((header, data + self._indexes) for header, data in self.headers)

    def _use(self, own: StoredSchema) -> None:
        from factory_agents.codecs.protobuf_types import holds, is_required, message_class, message_name, message_path
        from factory_agents.codecs.protobuf_writing import parser

        self._own_file = file, others = self._files(own)
        name = self._message or (message_name(file, [0]) if file.message_type else "")
        path = message_path(file, name) if name else None
        if path is None:
            raise Reject(f"it has no message {name!r}; it has {', '.join(m.name for m in file.message_type) or 'none'}")
        class_ = _usable(lambda: message_class(file, others, name))
        self._parse, self._requires = parser(class_), holds(class_.DESCRIPTOR, is_required)
        self._indexes = _written(path)

    def _files(self, schema: StoredSchema) -> tuple[File, dict[str, File]]:
        """A schema's compiled file, and those that it imports. Raises Reject for one that can't be used."""
        others = {reference.name: self._file(other, reference.name) for reference, other in self._referred(schema)}
        return self._file(schema, "schema.proto"), others

    def _file(self, schema: StoredSchema, name: str) -> File:
        from factory_agents.codecs.protobuf_types import compiled

        file = compiled(schema.text) or compiled(self._registry.compiled(schema))
        if file is None:
            raise Reject(
                f"{self._registry.config.shown} doesn't give it compiled (format=serialized); register it compiled, as Confluent's "
                "serialisers do: a file descriptor in base64",
                rule="decode",
            )
        file.name = name
        return file

    # Reading

    def decode(self, value: bytes, headers: Headers) -> dict[str, Any]:
        """See ``Codec.decode``."""
        return self._decoded(value, headers)[0]

    def decode_json(self, value: bytes, headers: Headers) -> bytes:
        """See ``Codec.decode_json``."""
        event, floats = self._decoded(value, headers)
        return to_json(event, floats=floats)

    def _decoded(self, value: bytes, headers: Headers) -> tuple[dict[str, Any], bool]:
        key, place, start = self._placed(value, headers)
        reader = self._readers.get((key, place))
        if reader is None:
            reader = self._load(key, place)
        try:
            message = reader.parse(value[start:])
            event = reader.plain(message)
        except Exception as error:
            raise Reject(f"not Protobuf of message {reader.name!r}: {type(error).__name__}: {error}".rstrip(": "), rule="decode") from error
        if reader.requires and not message.IsInitialized():
            missing = ", ".join(message.FindInitializationErrors())
            raise Reject(f"not Protobuf of message {reader.name!r}: without what it requires: {missing}", rule="decode")
        return event, reader.floats

    def _placed(self, value: bytes, headers: Headers) -> tuple[SchemaKey, bytes, int]:
        """How a record names its schema, where in it its message is, and where the message begins."""
        for name, data in headers:
            if name == SCHEMA_HEADER and data is not None:
                size = 17 if data[:1] == b"\1" else 5
                return key_of_header(data[:size]), data[size:], 0
        key, start = self._framed(value, headers)
        end = _end_of_path(value, start)
        return key, value[start:end], end

    def _load(self, key: SchemaKey, place: bytes) -> _Reader:
        from factory_agents.codecs.protobuf_types import message_name

        stored = self._written_by(key)
        written = self._files(stored)
        try:
            name = message_name(written[0], _path(place))
        except IndexError:
            raise Reject(
                f"schema {spoken(key)} has no message at the place that the record names ({place[:20].hex(' ')})", rule="decode"
            ) from None
        if self._message and self._own_file is None and name != self._message:
            raise Reject(f"a message {name!r}, expected {self._message!r}", rule="decode")
        reader = self._reader(name, *written) if self._own_file is None else self._own_reader(name)
        if len(self._readers) >= _MOST_READERS:
            self._readers.clear()
        self._readers[key, place] = reader
        return reader

    def _own_reader(self, name: str) -> _Reader:
        """What reads a message by the schema of this side, which must have it."""
        from factory_agents.codecs.protobuf_types import message_path

        wanted = self._message or name
        if name != wanted or self._own_file is None or message_path(self._own_file[0], name) is None:
            raise Reject(
                f"a message {name!r}, expected {repr(self._message) if self._message else f'one of subject {self._subject!r}'}",
                rule="decode",
            )
        return self._by_name.get(name) or self._by_name.setdefault(name, self._reader(name, *self._own_file))

    def _reader(self, name: str, file: File, others: dict[str, File]) -> _Reader:
        from factory_agents.codecs.protobuf_types import holds, is_float, is_required, message_class, plain

        class_ = _usable(lambda: message_class(file, others, name))
        of = class_.DESCRIPTOR
        return _Reader(class_.FromString, plain(of), name, holds(of, is_required), holds(of, is_float))

    # Writing

    def encode(self, event: dict[str, Any]) -> bytes:
        """See ``Codec.encode``."""
        return self.encode_json(to_json(event))

    def encode_json(self, text: bytes) -> bytes:
        """See ``Codec.encode_json``: a field that the message doesn't have, or a value that doesn't fit, is rejected."""
        from google.protobuf.json_format import Error

        if self._parse is None:
            raise ConfigurationError(f"{self}: it was opened for reading")
        try:
            message = self._parse(text)
        except (Error, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Reject(f"not as subject {self._subject!r} says: {' '.join(str(error).split())}", rule="encode") from error
        if self._requires and not message.IsInitialized():
            missing = ", ".join(message.FindInitializationErrors())
            raise Reject(f"not as subject {self._subject!r} says: without what it requires: {missing}", rule="encode")
        return self._prefix + bytes(message.SerializeToString())


def _refuse_missing(who: str) -> None:
    """Raise ConfigurationError where protobuf isn't installed, or an older one, whose descriptors say less."""
    try:
        from google.protobuf import __version__ as found
        from google.protobuf.descriptor import FieldDescriptor
    except ImportError:
        raise ConfigurationError(f"{who}: it needs protobuf: pip install 'factory-agents[registry]'") from None
    if not hasattr(FieldDescriptor, "is_repeated"):
        raise ConfigurationError(f"{who}: it needs protobuf 6.31 or newer, got {found}: pip install 'factory-agents[registry]'")


def _usable(make: Callable[[], Any]) -> Any:
    """What is made of a schema; Reject where it can't be."""
    try:
        return make()
    except Exception as error:  # a hostile schema: whatever Protobuf's own code says of it
        raise Reject(f"its schema is no Protobuf schema: {type(error).__name__}: {error}", rule="decode") from error


def _end_of_path(value: bytes, start: int) -> int:
    """Where the indexes end that name the message: their number and each of them, as zigzag varints; one 0 is the first message."""
    count, at = _varint(value, start)
    if not 0 <= count <= _LONGEST_PATH:
        raise Reject(f"not {ProtobufCodec.kind} with a schema id: {count} indexes of messages after it", rule="decode")
    for _ in range(count):
        _, at = _varint(value, at)
    return at


def _path(place: bytes) -> list[int]:
    """The indexes themselves. Raises IndexError for what names no message."""
    count, at = _varint(place, 0) if place else (0, 0)
    found = [] if count else [0]
    for _ in range(count):
        index, at = _varint(place, at)
        if index < 0:
            raise IndexError
        found.append(index)
    return found


def _varint(value: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint, and where the next one begins."""
    number = shift = 0
    while at < len(value) and shift < 35:
        byte = value[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at
    raise Reject("not Protobuf with a schema id: its message indexes are cut off", rule="decode")


def _written(path: list[int]) -> bytes:
    """Indexes as they are written; the first message is one byte."""
    if path == [0]:
        return b"\0"
    out = bytearray()
    for number in (len(path), *path):
        number <<= 1  # zigzag of what is not negative
        while number > 0x7F:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        out.append(number)
    return bytes(out)
