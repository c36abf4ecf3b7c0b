"""JSON in Confluent's framing: a schema id before the text, or in a header; what is written is checked by its JSON Schema."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import msgspec

from factory_agents.codecs.base import from_json, to_json
from factory_agents.codecs.framing import RegistryCodec, SchemaKey
from factory_agents.codecs.registry import Registry, StoredSchema
from factory_agents.digits import exact_number
from factory_agents.kafka.messages import Headers
from factory_agents.reject import Reject

__all__ = ["JsonSchemaCodec"]

_MOST_KNOWN = 10_000


class JsonSchemaCodec(RegistryCodec):
    """JSON records whose schemas a registry knows. Options as for ``RegistryCodec``; ``version`` is for writing alone."""

    name = "json-schema"
    kind = "JSON"

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
        self._known: set[SchemaKey] = set()
        super().__init__(
            topic, pinned if writing else {}, subject, version if writing else "writer", framing, rules, compatibility, writing, registry
        )

    def _use(self, own: StoredSchema) -> None:
        from jsonschema_rs import Registry, ValidationError, validator_for

        try:
            others = {reference.name: json.loads(other.text) for reference, other in self._referred(own)}
            self._validator = validator_for(
                json.loads(own.text), registry=Registry(resources=list(others.items()), retriever=_no_other), retriever=_no_other
            )
        except (ValidationError, ValueError, RecursionError) as error:
            raise Reject(f"it is no JSON Schema: {error}") from None

    def decode(self, value: bytes, headers: Headers) -> dict[str, Any]:
        """See ``Codec.decode``."""
        event: dict[str, Any] = from_json(self.decode_json(value, headers))
        return event

    def decode_json(self, value: bytes, headers: Headers) -> bytes:
        """See ``Codec.decode_json``: the text goes on as it is. What it must look like is the contract's business."""
        key, start = self._framed(value, headers)
        if key not in self._known:
            self._written_by(key)
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known.add(key)
        return value[start:]

    def encode(self, event: dict[str, Any]) -> bytes:
        """See ``Codec.encode``."""
        return self.encode_json(to_json(event))

    def encode_json(self, text: bytes) -> bytes:
        """See ``Codec.encode_json``."""
        try:
            event = _exact_json(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as unreadable:
            raise Reject(f"not as subject {self._subject!r} says: {unreadable}", rule="encode") from None
        if not self._validator.is_valid(event):
            error = next(iter(self._validator.iter_errors(event)))
            place = "".join(f"[{part!r}]" if isinstance(part, int) else f".{part}" for part in error.instance_path).lstrip(".")
            raise Reject(f"not as subject {self._subject!r} says: {place + ': ' if place else ''}{error.message}", rule="encode")
        return self._prefix + text


def _number(text: str) -> float | Decimal:
    number = exact_number(text)
    if abs(number) == float("inf"):
        raise msgspec.ValidationError("Number out of range")
    return number


_exact_json = msgspec.json.Decoder(float_hook=_number).decode
"""A schema sees every digit of a number."""


def _no_other(uri: str) -> Any:
    raise ValueError(f"{uri} is none of the schemas that the registry names as its references")
