"""Codecs at work: records into JSON before an agent or a sink sees them, its JSON into records after; JSON topics pass all of this by."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from factory_agents.codecs import Codec, Deleted
from factory_agents.errors import ConfigurationError, FactoryError
from factory_agents.kafka.messages import UNREADABLE_HEADERS, Headers, Message, drop_headers, headers_of
from factory_agents.protocol import CodecRef
from factory_agents.reject import Reject
from factory_agents.runtime.agents import Undecoded, bind_params, source_version
from factory_agents.runtime.loading import describe
from factory_agents.runtime.plugins import PluginKind, find_plugin

__all__ = ["CODECS", "DecodedMessage", "OpenCodec", "codec_class", "open_codec", "same_choice"]

CODECS = PluginKind("codec", "factory_agents.codecs", ("json", "avro", "json-schema", "protobuf", "debezium"))
_BUILT_IN = {
    "avro": ("factory_agents.codecs.avro", "AvroCodec"),
    "json-schema": ("factory_agents.codecs.json_schema", "JsonSchemaCodec"),
    "protobuf": ("factory_agents.codecs.protobuf", "ProtobufCodec"),
    "debezium": ("factory_agents.codecs.debezium", "DebeziumCodec"),
}
_BY_ITS_KEY = Deleted()
_GIVEN = ("topic", "writing", "pinned", "make", "registry")


class DecodedMessage:
    """A record whose value is its event as JSON; everything else is the record's own (see ``Message``)."""

    __slots__ = ("_record", "_value")

    def __init__(self, record: Message, value: bytes | None) -> None:
        self._record = record
        self._value = value

    def __len__(self) -> int:
        """The value's bytes."""
        return len(self._value or b"")

    def topic(self) -> str:
        """See ``Message``."""
        return self._record.topic()

    def partition(self) -> int:
        """See ``Message``."""
        return self._record.partition()

    def offset(self) -> int:
        """See ``Message``."""
        return self._record.offset()

    def key(self) -> bytes | None:
        """See ``Message``."""
        return self._record.key()

    def value(self) -> bytes | None:
        """The event as JSON, ``Undecoded``, or None for a tombstone."""
        return self._value

    def headers(self) -> Headers | None:
        """See ``Message``."""
        return headers_of(self._record)

    def set_headers(self, value: Headers) -> None:
        """See ``Message``."""
        self._record.set_headers(value)

    def timestamp(self) -> tuple[int, int]:
        """See ``Message``."""
        return self._record.timestamp()

    def error(self) -> None:
        """See ``Message``."""


class DeletedMessage(DecodedMessage):
    """A record that deletes a row: it has no value, and the key that its codec found."""

    __slots__ = ("_key",)

    def __init__(self, record: Message, key: bytes | None) -> None:
        super().__init__(record, None)
        self._key = key

    def key(self) -> bytes | None:
        """What names the row: text or JSON."""
        return self._key


class OpenCodec:
    """A codec that was made for one topic, with its name, and its ``ref`` as it is in results: pinned."""

    def __init__(self, ref: CodecRef, codec: Codec, identity: list[Any]) -> None:
        self.ref = msgspec.structs.replace(ref, pinned=dict(codec.pinned))
        self.identity = identity
        self.headers = codec.headers
        self.header_names = codec.header_names | {name for name, _ in codec.headers}
        self._codec = codec

    def read(self, messages: Sequence[Message]) -> list[Message]:
        """The records with their events as JSON; what is none says why (``Undecoded``)."""
        return list(map(self._read, messages))

    def _read(self, message: Message) -> Message:
        try:
            headers = headers_of(message) or []
        except UNREADABLE_HEADERS:
            drop_headers(message)
            return _undecoded(message, Reject("the name of a header is no UTF-8: the event can't be read with its headers", rule="headers"))
        try:
            value = message.value()
            found = self._codec.decode_json(value, headers) if value is not None else _BY_ITS_KEY
            if type(found) is not Deleted:
                return DecodedMessage(message, cast("bytes", found))
            own = message.key()
            return DeletedMessage(message, self._codec.decode_key(own, headers) if found.key is None and own is not None else found.key)
        except Reject as reject:
            return _undecoded(message, reject)
        except (FactoryError, MemoryError):
            raise
        except Exception as error:
            return _undecoded(message, Reject(f"codec {self.ref.name!r} raised {describe(error)}", rule="decode"))

    def readable(self, messages: Sequence[Message]) -> tuple[list[Message], list[int], dict[int, Reject]]:
        """The same without what is no event: the records, the index of each, and why the others are none."""
        read = self.read(messages)
        rejected = {i: m.value().reject for i, m in enumerate(read) if type(m.value()) is Undecoded}  # type: ignore[union-attr]
        places = [i for i in range(len(read)) if i not in rejected]
        return [read[i] for i in places], places, rejected

    def write(self, text: bytes) -> bytes:
        """A record's value for an event; raises Reject."""
        try:
            return self._codec.encode_json(text)
        except (Reject, FactoryError, MemoryError):
            raise
        except Exception as error:
            raise Reject(f"codec {self.ref.name!r} raised {describe(error)}", rule="encode") from error

    def close(self) -> None:
        """See ``Codec.close``."""
        self._codec.close()


def _undecoded(message: Message, reject: Reject) -> DecodedMessage:
    reject.forget_frames()
    value = Undecoded()
    value.reject = reject
    return DecodedMessage(message, value)


def open_codec(ref: CodecRef | None, topic: str, *, writing: bool) -> OpenCodec | None:
    """Make a codec for a topic; None for JSON, which needs none.

    Raises ConfigurationError for one that there is not, and for options that it doesn't take; UnavailableError where it asks somebody who
    doesn't answer.
    """
    if ref is None:
        return None
    return OpenCodec(ref, *_make(ref, topic, writing=writing))


def codec_class(ref: CodecRef) -> tuple[type[Codec], str]:
    """The class that a reference names, and how to speak of it in messages. Raises ConfigurationError where there is none."""
    if ref.name in _BUILT_IN:
        module, name = _BUILT_IN[ref.name]
        return getattr(importlib.import_module(module), name), f"codec {ref.name!r}"
    plugin = find_plugin(CODECS, ref.name)
    if not (inspect.isclass(plugin.class_) and issubclass(plugin.class_, Codec)):
        raise ConfigurationError(f"{plugin.where}: expected a subclass of factory_agents.Codec")
    return plugin.class_, plugin.where


def _make(ref: CodecRef, topic: str, *, writing: bool) -> tuple[Codec, list[Any]]:
    """A codec, and what identifies it in fingerprints."""
    class_, where = codec_class(ref)

    def another(other: CodecRef, pinned: Mapping[str, Any]) -> tuple[Codec, list[Any]]:
        return _make(msgspec.structs.replace(other, pinned=dict(pinned)), topic, writing=writing)

    given = {"topic": topic, "writing": writing, "pinned": ref.pinned, "make": another}
    taken = inspect.signature(class_).parameters
    for name in _GIVEN:
        if name in ref.options:
            raise ConfigurationError(f"{where}: unknown option {name!r}; leave it out")
    arguments = bind_params(class_, {**ref.options, **{k: v for k, v in given.items() if k in taken}}, where)
    try:
        codec = class_(**arguments)
    except FactoryError:
        raise
    except Exception as error:
        raise ConfigurationError(f"{where}: making it raised {describe(error)}") from error
    options = dict(codec.identity) if codec.identity is not None else ref.options
    return codec, [ref.name, class_.version or source_version(class_), options]


def same_choice(ref: CodecRef | None, remembered: CodecRef | None) -> CodecRef | None:
    """``ref`` with what an earlier attempt had pinned, if that was told the same."""
    if ref is None or remembered is None or ref.pinned or (ref.name, ref.options) != (remembered.name, remembered.options):
        return ref
    return remembered
