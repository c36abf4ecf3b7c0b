"""What a codec is, how one is named, and JSON as it is inside: what every agent, contract and sink sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias
from urllib.parse import parse_qsl

import msgspec

from factory_agents.errors import ConfigurationError
from factory_agents.kafka.messages import Headers
from factory_agents.protocol import CodecRef
from factory_agents.reject import Reject

__all__ = ["JSON", "Codec", "Deleted", "Make", "codec_ref", "from_json", "to_json"]

JSON = "json"
"""The codec of every topic of which nothing is said: no code of this room runs for it."""

from_json = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(decimal_format="number").encode


Make: TypeAlias = "Callable[[CodecRef, Mapping[str, Any]], tuple[Codec, list[Any]]]"
"""Makes another codec for the same topic, with what was pinned for it; what identifies it comes with it."""


class Deleted(msgspec.Struct, frozen=True):
    """In place of an event: a row is gone. ``key`` names it as text or JSON (an object's fields are the key's columns); without one the
    record's own key does.

    :param key: the row's key; None: the record's own.

    Example::

        class Changes(Codec):  # JSON, of which {"gone": "k1"} deletes the row of k1
            def decode(self, value, headers):
                event = json.loads(value)
                return Deleted(event["gone"].encode()) if "gone" in event else event
    """

    key: bytes | None = None


class Codec:
    """How the records of a topic are written: subclass it, with ``decode`` for reading and ``encode`` for writing.

    It is called with its options as keywords, and with ``topic`` (its name), ``writing`` (True for an output), ``pinned`` and ``make``
    where its ``__init__`` takes them; ``make(ref, pinned)`` gives another codec for the same topic, and what identifies it. Events are
    dicts of JSON's types, decimals, times, UUIDs and bytes (base64 in JSON).

    ``version`` and ``identity`` enter the fingerprint of the work: by default a hash of the module's source, and the options. ``pinned`` is
    what it found out for good when it was made, such as the schema that was the latest: it is given to every later attempt at the same
    work. ``headers`` go with every record that is written; an event's own headers of these names, and of ``header_names``, are dropped.

    Example::

        class Pairs(Codec):  # name=value;name=value
            def decode(self, value, headers):
                return dict(pair.split("=", 1) for pair in value.decode().split(";"))

            def encode(self, event):
                return ";".join(f"{name}={value}" for name, value in event.items()).encode()
    """

    version: ClassVar[str] = ""
    identity: Mapping[str, Any] | None = None
    pinned: Mapping[str, Any] = {}
    headers: tuple[tuple[str, bytes], ...] = ()
    header_names: frozenset[str] = frozenset()

    def decode(self, value: bytes, headers: Headers) -> dict[str, Any] | Deleted:
        """The event in a record's value, or the row that it deletes.

        Raises Reject for what is neither, UnavailableError where that cannot be found out now.
        """
        raise ConfigurationError(f"codec {type(self).__name__}: it has no decode, so it cannot read a topic")

    def encode(self, event: dict[str, Any]) -> bytes:
        """The event as a record's value. Raises Reject where it cannot be one."""
        raise ConfigurationError(f"codec {type(self).__name__}: it has no encode, so it cannot write to a topic")

    def decode_json(self, value: bytes, headers: Headers) -> bytes | Deleted:
        """The event as JSON text, which is what goes on from here: ``decode``, unless there is a shorter way."""
        event = self.decode(value, headers)
        return event if isinstance(event, Deleted) else to_json(event)

    def decode_key(self, key: bytes, headers: Headers) -> bytes:
        """The key of a record that deletes its row (a tombstone, or ``Deleted`` without a key), as text or JSON. Errors as ``decode``."""
        return key

    def encode_json(self, text: bytes) -> bytes:
        """The record's value for an event that comes as JSON text: ``encode``, unless there is a shorter way."""
        return self.encode(from_json(text))

    def close(self) -> None:
        """Free what it holds."""


def to_json(event: dict[str, Any], *, floats: bool = True) -> bytes:
    """An event as JSON text; raises Reject for what is no event, or holds what JSON cannot say. Without ``floats`` no number is none."""
    if type(event) is not dict:
        raise Reject(f"expected an event (a dict), got {type(event).__name__}", rule="decode")
    try:
        text = _encode(event)
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise Reject(f"the event cannot be written as JSON: {error}", rule="decode") from error
    if floats and b"null" in text:
        refuse_nan(event)
    return text


def refuse_nan(event: dict[str, Any]) -> None:
    """Raise Reject where a number is none: written as JSON it would be null."""
    left: list[Any] = [event]
    while left:
        value = left.pop()
        if type(value) is float and not math.isfinite(value):
            raise Reject(f"a number is {value}, which JSON cannot say", rule="decode")
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value


def codec_ref(value: Any, where: str = "codec") -> CodecRef | None:
    """What names a codec: ``avro``, ``avro?version=3``, ``my.codecs:Xml?root=event``, or a mapping with ``name`` and options.

    None for JSON.

    Raises ConfigurationError, which begins with ``where``, for anything else.
    """
    if isinstance(value, CodecRef):
        return value
    if isinstance(value, str):
        name: Any
        name, question, query = value.strip().partition("?")
        options: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True))
        if question and not options:
            raise ConfigurationError(f"{where}: expected name?option=value&option=value, got {value!r}")
    elif isinstance(value, Mapping):
        options = {str(key): item for key, item in value.items()}
        name = options.pop("name", "")
    else:
        raise ConfigurationError(f"{where}: expected a codec's name, such as avro, or a mapping with name and options, got {value!r}")
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"{where}: the codec has no name; expected json, avro or your own as module:Class, got {value!r}")
    if name != JSON:
        return CodecRef(name, options)
    if options:
        raise ConfigurationError(f"{where}: json takes no options, got {', '.join(options)}")
    return None
