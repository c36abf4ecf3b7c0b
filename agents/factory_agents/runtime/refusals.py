"""Which events' records the broker refuses, so that they are rejected when their turn comes again."""

from __future__ import annotations

from typing import TypeAlias

from factory_agents.kafka.messages import Message
from factory_agents.kafka.writer import ChunkAbortedError

__all__ = ["NOWHERE", "Place", "Refusals", "place_of"]

Place: TypeAlias = "tuple[int, int]"
"""Where an event came from: partition and offset of the record that was read, or -1 and the row's number in a source."""

_PIECE = 1 << 16

NOWHERE: Place = (-1, -1)


def place_of(message: Message) -> Place:
    """Where a record was read."""
    return message.partition(), message.offset()


class Refusals:
    """What is known of refused records.

    They are remembered by where their event came from: an agent may write other bytes each time. Which event that was is known only where
    it was noted of each record that was sent (``careful``), which costs memory: so only after a refusal, and for few records. Once a record
    was refused for its size, those that are larger beyond doubt are known without being sent. ``active`` says whether anything has to be
    noted, or looked up.
    """

    def __init__(self) -> None:
        self.active = False
        self._origins: dict[tuple[str, bytes | None, bytes | None], list[Place]] | None = None
        self._reasons: dict[tuple[str, Place], str] = {}
        self._met: list[tuple[str, Place]] = []
        self._limits: dict[str, int] = {}
        self._is_new = False

    @property
    def careful(self) -> bool:
        """Whether it is noted of each record which event it came from."""
        return self._origins is not None

    @careful.setter
    def careful(self, value: bool) -> None:
        self._origins = {} if value else None
        self._update()

    def _update(self) -> None:
        self.active = self.careful or bool(self._reasons) or bool(self._limits)

    def sent(self, topic: str, key: bytes | None, value: bytes | None, place: Place) -> None:
        """Take note of a record that was put into the transaction."""
        if self._origins is not None:
            self._origins.setdefault((topic, key, value), []).append(place)

    def known(self, topic: str, key: bytes | None, value: bytes | None, place: Place) -> str:
        """Why a record of an event would be refused, as far as that is known; empty where it isn't."""
        reason = self._reasons.get((topic, place), "")
        if reason:
            self._met.append((topic, place))
        elif topic in self._limits and _exceeds(key, value, self._limits[topic]):
            size = len(key or b"") + len(value or b"")
            return f"refused by the broker: Message size too large ({size:,} bytes, max.message.bytes is {self._limits[topic]:,})"
        return reason

    def add(self, topic: str, place: Place, reason: str) -> None:
        """An event's record is refused for this reason."""
        self._reasons[topic, place] = reason
        self._is_new = True
        self._update()

    def learn(self, aborted: ChunkAbortedError, *, alone: bool, limits: dict[str, int]) -> bool:
        """Take note of the events whose records were refused; whether any were found, or added, since the last time.

        Of several records in one batch nobody knows which it was, unless one event was ``alone`` in its chunk. ``limits`` are the topics'
        ``max.message.bytes`` as far as they are known.
        """
        for record in aborted.records:
            if record.too_large and limits.get(record.topic):
                self._limits[record.topic] = limits[record.topic]
            if record.alone or alone:
                for place in (self._origins or {}).get((record.topic, record.key, record.value), ()):
                    self.add(record.topic, place, f"refused by the broker: {record.reason}")
        self._update()
        found, self._is_new = self._is_new, False
        return found

    def forget(self, *, committed: bool) -> None:
        """A chunk has ended. What was rejected in one that is committed doesn't come again."""
        if self._origins:
            self._origins = {}
        for known in self._met if committed else ():
            self._reasons.pop(known, None)
        self._met = []
        self._update()


def _exceeds(key: bytes | None, value: bytes | None, limit: int) -> bool:
    """Whether a record is larger than a limit beyond doubt: when compressed, too, harder than a producer does."""
    record = (key or b"") + (value or b"")
    if len(record) <= limit:
        return False
    try:
        import lzma
    except ImportError:  # a Python that was built without it
        return False
    compressor, size = lzma.LZMACompressor(preset=1), 0
    for start in range(0, len(record), _PIECE):  # of a second for some megabytes, as little as shows it
        size += len(compressor.compress(record[start : start + _PIECE]))
        if size > limit:
            return True
    return size + len(compressor.flush()) > limit
