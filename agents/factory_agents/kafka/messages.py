"""What a consumed record offers: confluent-kafka's ``Message``, typed as it is once it came from a consumer."""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller
from typing import Protocol, TypeAlias

from confluent_kafka import KafkaError

__all__ = ["UNREADABLE_HEADERS", "Headers", "Message", "drop_headers", "headers_of", "readable_headers"]

Headers: TypeAlias = "list[tuple[str, bytes | None]]"


class Message(Protocol):
    """A record read from a topic (or, where ``error`` is not None, an event about its partition)."""

    def __len__(self) -> int:
        """The value's bytes."""
        ...

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

    def headers(self) -> Headers | None:
        """The record's headers, or None for none: call ``headers_of``, which bears hostile ones."""
        ...

    def set_headers(self, value: Headers) -> None:
        """Put others in their place."""
        ...

    def timestamp(self) -> tuple[int, int]:
        """The timestamp's type, and milliseconds since 1970 UTC."""
        ...

    def error(self) -> KafkaError | None:
        """What happened instead of a record."""
        ...


headers_of: Callable[[Message], Headers | None] = methodcaller("headers")
"""A record's headers, or None for none. Raises one of UNREADABLE_HEADERS where a name is no UTF-8; ``drop_headers`` comes next.

Never call the method itself: the client returns a list that holds null pointers, with an exception set. A called function's result is
checked for that, but not where the interpreter has specialized the call, after some dozens of records: that crashes.
"""

UNREADABLE_HEADERS = (SystemError, UnicodeDecodeError)


def drop_headers(message: Message) -> None:
    """Leave a record without headers, so that nobody looks at unreadable ones again."""
    message.set_headers([])


def readable_headers(message: Message) -> Headers:
    """A record's headers; none where a name is no UTF-8."""
    try:
        return headers_of(message) or []
    except UNREADABLE_HEADERS:
        drop_headers(message)
        return []
