"""Events, records and windows that the tests of sinks are made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import confluent_kafka

from factory_agents.kafka.messages import Message

__all__ = ["CONTRACT", "W1", "W2", "W3", "at", "event", "gone", "record"]

CONTRACT: dict[str, Any] = {
    "name": "events",
    "id": "id",
    "time": "at",
    "version_field": "version",
    "schema": {
        "type": "object",
        "required": ["id"],
        "properties": {
            "id": {"type": "string"},
            "version": {"type": ["integer", "null"]},
            "at": {"type": ["string", "null"], "format": "date-time"},
            "value": {"type": ["string", "null"]},
        },
    },
}
"""A contract with a text key, an integer version and a time."""

W1, W2, W3 = (f"2026-11-01T0{hour}:00:00.000Z/2026-11-01T0{hour + 1}:00:00.000Z p" for hour in range(3))
"""Three hours of a pipeline, as claims name them."""


def event(id_: str, value: str | None = "x", version: int | None = None, at: str | None = None) -> dict[str, Any]:
    """An event of ``CONTRACT``."""
    return {"id": id_, "value": value, "version": version, "at": at}


def record(e: Any, partition: int, offset: int, timestamp: int = 0) -> Message:
    """A record of an event, or of a value as it is."""
    value = e if e is None or isinstance(e, bytes) else json.dumps(e).encode()
    return _message(value=value, partition=partition, offset=offset, timestamp=(1, timestamp))


def gone(key: str | bytes | None, offset: int = 0, partition: int = 0, timestamp: int = 0) -> Message:
    """A record that deletes: a key without a value."""
    own = key.encode() if isinstance(key, str) else key
    return _message(key=own, value=None, partition=partition, offset=offset, timestamp=(1, timestamp))


def at(events: Sequence[Any], partition: int = 0) -> list[Message]:
    """Events one after the other in a partition."""
    return [record(e, partition, offset) for offset, e in enumerate(events)]


def _message(**parts: Any) -> Message:
    """A record as it comes from a consumer, where it has a topic and no error."""
    return cast("Message", confluent_kafka.Message(**parts))
