"""What a consumed record offers: confluent-kafka's ``Message``, typed as it is once it came from a consumer."""

from __future__ import annotations

from typing import Protocol

from confluent_kafka import KafkaError

__all__ = ["Message"]


class Message(Protocol):
    """A record read from a topic (or, where ``error`` is not None, an event about its partition)."""

    def topic(self) -> str:
        """The topic's name."""
        ...

    def partition(self) -> int:
        """The partition's number."""
        ...

    def offset(self) -> int:
        """The record's offset."""
        ...

    def key(self) -> bytes | None:
        """The record's key."""
        ...

    def value(self) -> bytes | None:
        """The record's value; None is a tombstone."""
        ...

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        """The record's headers, or None for none."""
        ...

    def timestamp(self) -> tuple[int, int]:
        """The timestamp's type, and milliseconds since 1970 UTC."""
        ...

    def error(self) -> KafkaError | None:
        """What happened instead of a record."""
        ...
