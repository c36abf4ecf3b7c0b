"""Debezium's change events over any other codec: a row as it is after the change, or that it is gone."""

from __future__ import annotations

import base64
import re
from typing import Any

import msgspec

from factory_agents.codecs.base import Codec, Deleted, Make, codec_ref, from_json, to_json
from factory_agents.codecs.framing import KEY_SCHEMA_HEADER, SCHEMA_HEADER, RegistryCodec
from factory_agents.kafka.messages import Headers
from factory_agents.protocol import CodecRef
from factory_agents.reject import Reject

__all__ = ["DebeziumCodec"]

_NULL = msgspec.Raw(b"null")
_PLACEHOLDER = "__debezium_unavailable_value"
_PLACEHOLDERS = {
    _PLACEHOLDER,
    base64.b64encode(_PLACEHOLDER.encode()).decode(),
    base64.b64encode(_PLACEHOLDER.encode()).decode().rstrip("="),
    _PLACEHOLDER.encode().hex(),
    "b68a35a7-17ad-35b3-af2a-ae46edb4545a",
}
"""What stands for a value that the log doesn't hold: a text, bytes in base64 or hex, a UUID; also as the one element of a list."""
_LISTS: list[list[Any]] = [list(_PLACEHOLDER.encode()), [str(byte) for byte in _PLACEHOLDER.encode()]]
"""Lists of numbers have its bytes."""
_MARKS = re.compile("|".join(map(re.escape, (*sorted(_PLACEHOLDERS), "[95,", "[95.0,", '["95",'))).encode())
"""One of these is in each row with a placeholder, and in few others."""
_ROWS = ("c", "u", "r")
_NO_ROWS = {"t": "it empties the table (a truncate)", "m": "it is a message that the application wrote into the log"}
_HINT = "if the connector unwraps its events (ExtractNewRecordState), leave debezium out"


class _Envelope(msgspec.Struct):
    """``payload`` is the envelope itself where Kafka Connect's JSON converter writes the schema beside it."""

    op: str = ""
    before: msgspec.Raw = _NULL
    after: msgspec.Raw = _NULL
    payload: msgspec.Raw = _NULL


_envelope = msgspec.json.Decoder(_Envelope).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class DebeziumCodec(Codec):
    """Reads change events as rows: ``after`` is the event, and a delete or a tombstone deletes. What is written must be such an envelope.

    :param over: the codec of the envelopes: ``json``, ``avro``, ``avro?version=writer``, your own.
    :param add: fields of the envelope that the event gets beside its own, named as Debezium's: ``op,lsn,source.ts_ms`` are added as
        ``__op``, ``__lsn`` (of the source) and ``__source_ts_ms``. A contract's ``version_field`` may name one.
    """

    version = "1"

    def __init__(
        self, topic: str, pinned: dict[str, Any], make: Make, writing: bool = False, over: str | dict[str, Any] = "json", add: str = ""
    ) -> None:
        ref = codec_ref(over, "codec 'debezium': over")
        self._over: Codec | None = None
        identity: list[Any] = ["json"]
        if ref is not None:
            self._over, identity = make(ref, pinned)
        self._make = make
        self._keys: Codec | None = None
        self._added = tuple((f"__{name.replace('.', '_')}", name) for name in map(str.strip, add.split(",")) if name)
        self.identity = {"over": identity, "add": [name for _, name in self._added]}
        if self._over is not None:
            self.pinned, self.headers, self.header_names = self._over.pinned, self._over.headers, self._over.header_names

    def __repr__(self) -> str:
        """How messages speak of it."""
        return "codec 'debezium'"

    def decode(self, value: bytes, headers: Headers) -> dict[str, Any] | Deleted:
        """See ``Codec.decode``."""
        found = self.decode_json(value, headers)
        if isinstance(found, Deleted):
            return found
        event: dict[str, Any] = from_json(found)
        return event

    def decode_json(self, value: bytes, headers: Headers) -> bytes | Deleted:
        """See ``Codec.decode_json``."""
        found = value if self._over is None else self._over.decode_json(value, headers)
        if isinstance(found, Deleted):
            return found
        envelope, text = _open(found)
        if envelope.op in _ROWS:
            row = bytes(envelope.after)
            if row[:1] != b"{":
                raise Reject(f"a change of type {envelope.op!r} without the row in 'after', got {row[:60]!r}", rule="decode")
            if _MARKS.search(row):
                _refuse_unavailable(row)
            return row if not self._added else self._with_added(row, text)
        if envelope.op == "d":
            before = bytes(envelope.before)  # it names its columns, whatever the record's key is
            return Deleted(before) if before[:1] == b"{" else Deleted()
        if envelope.op in _NO_ROWS:
            raise Reject(f"no row: {_NO_ROWS[envelope.op]}", rule="operation")
        raise Reject(
            f"no change event of Debezium's: expected 'op' (c, u, d, r) and 'after', got op {envelope.op!r}; {_HINT}", rule="decode"
        )

    def decode_key(self, key: bytes, headers: Headers) -> bytes:
        """See ``Codec.decode_key``: as the values are, where a registry knows its schema too."""
        if not isinstance(self._over, RegistryCodec):
            return key if self._over is None else self._over.decode_key(key, headers)
        if self._keys is None:
            self._keys, _ = self._make(CodecRef(self._over.name, {"version": "writer", "rules": self._over.rules}), {})
        found = self._keys.decode_json(key, [(SCHEMA_HEADER, data) for name, data in headers if name == KEY_SCHEMA_HEADER])
        return found if isinstance(found, bytes) else key

    def _with_added(self, row: bytes, envelope: bytes) -> bytes:
        fields = _fields(envelope)
        source = fields.get("source", _NULL)
        inner = {"source": _fields(source) if bytes(source)[:1] == b"{" else {}}
        added = {}
        for name, path in self._added:
            where, _, field = path.rpartition(".")
            if where:
                added[name] = inner.get(where, {}).get(field, _NULL)
            else:
                added[name] = fields.get(path) or inner["source"].get(path, _NULL)
        return msgspec.json.encode(_fields(row) | added)

    def encode(self, event: dict[str, Any]) -> bytes:
        """See ``Codec.encode``."""
        return self.encode_json(to_json(event))

    def encode_json(self, text: bytes) -> bytes:
        """See ``Codec.encode_json``: an envelope, as the other codec writes it."""
        try:
            op = _envelope(text).op
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Reject(f"no change event: {error}", rule="encode") from None
        if op not in (*_ROWS, "d", *_NO_ROWS):
            raise Reject(f"no change event: expected 'op' (c, u, d, r), 'before' and 'after', got op {op!r}", rule="encode")
        return text if self._over is None else self._over.encode_json(text)

    def close(self) -> None:
        """See ``Codec.close``."""
        for codec in filter(None, (self._over, self._keys)):
            codec.close()


def _open(text: bytes) -> tuple[_Envelope, bytes]:
    """An envelope, and its own text: what Kafka Connect writes beside its schema is the payload."""
    try:
        envelope = _envelope(text)
        if not envelope.op and bytes(envelope.payload)[:1] == b"{":
            text = bytes(envelope.payload)
            envelope = _envelope(text)
        if not text.isascii():
            text.decode()  # the decoder doesn't look into what it passes over
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Reject(f"no change event of Debezium's: {error}; {_HINT}", rule="decode") from error
    return envelope, text


def _is_placeholder(value: Any) -> bool:
    if isinstance(value, dict):
        return list(value) == [_PLACEHOLDER]
    if isinstance(value, list):
        return value in _LISTS or (len(value) == 1 and isinstance(value[0], str) and value[0] in _PLACEHOLDERS)
    return isinstance(value, str) and value in _PLACEHOLDERS


def _refuse_unavailable(row: bytes) -> None:
    """Raise Reject where a value that didn't change was too large to be in the log: written as it is, it would replace the true one."""
    names = [name for name, value in _fields(row).items() if _is_placeholder(from_json(bytes(value)))]
    if names:
        raise Reject(
            f"the log doesn't hold the unchanged value of {', '.join(names)}: ALTER TABLE … REPLICA IDENTITY FULL makes it",
            rule="unavailable-value",
        )
