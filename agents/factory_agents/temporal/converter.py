"""msgspec structs as Temporal payloads: ``json/plain``, which Temporal's UI, its CLI and every SDK read."""

from __future__ import annotations

from typing import Any

import msgspec
from temporalio.api.common.v1 import Payload
from temporalio.converter import (
    BinaryNullPayloadConverter,
    CompositePayloadConverter,
    DataConverter,
    DefaultPayloadConverter,
    EncodingPayloadConverter,
    JSONPlainPayloadConverter,
)
from temporalio.exceptions import ApplicationError

__all__ = ["FactoryPayloadConverter", "data_converter"]


class _MsgspecConverter(EncodingPayloadConverter):
    """In place of the SDK's own JSON converter, which drops fields that it doesn't know."""

    @property
    def encoding(self) -> str:
        return "json/plain"

    def to_payload(self, value: Any) -> Payload | None:
        return Payload(metadata={"encoding": self.encoding.encode()}, data=msgspec.json.encode(value))

    def from_payload(self, payload: Payload, type_hint: type | None = None) -> Any:
        try:
            return msgspec.json.decode(payload.data, type=Any if type_hint is None else type_hint)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise _unreadable(type_hint, error) from error


class _NullConverter(BinaryNullPayloadConverter):
    """In place of the SDK's own, which gives None whatever type is expected."""

    def from_payload(self, payload: Payload, type_hint: type | None = None) -> None:
        if type_hint is None:
            return
        try:
            msgspec.convert(None, type_hint)
        except msgspec.MsgspecError as error:
            raise _unreadable(type_hint, error) from error


def _unreadable(type_hint: type | None, error: Exception) -> ApplicationError:
    """As a failure: any other error is taken for a passing one, and the workflow would hang."""
    name = getattr(type_hint, "__name__", str(type_hint))
    return ApplicationError(
        f"expected a payload of the type {name}: {error}; do client and workers run the same release?",
        type="UnreadablePayload",
        non_retryable=True,
    )


_OURS: dict[type[EncodingPayloadConverter], type[EncodingPayloadConverter]] = {
    JSONPlainPayloadConverter: _MsgspecConverter,
    BinaryNullPayloadConverter: _NullConverter,
}


class FactoryPayloadConverter(CompositePayloadConverter):
    """The SDK's converters, with msgspec for JSON, and no null where something is expected."""

    def __init__(self) -> None:
        known = DefaultPayloadConverter.default_encoding_payload_converters
        super().__init__(*(_OURS[type(one)]() if type(one) in _OURS else one for one in known))


data_converter = DataConverter(payload_converter_class=FactoryPayloadConverter)
