"""How old the first record is that a reader has still to read."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple, cast

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, TopicPartition

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.fetch import fetch_limits
from factory_agents.kafka.messages import Message

__all__ = ["FirstUnread", "Place"]

_SECONDS = 5.0
_ANSWER_BYTES = 16_384


class Place(NamedTuple):
    """Where a reader reads on."""

    topic: str
    partition: int
    offset: int


class FirstUnread:
    """Looks up the times of first unread records. Those of the last look are kept: a reader that stands still is asked for again."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._known: dict[Place, int] = {}

    def times(self, places: Iterable[Place]) -> dict[Place, int]:
        """The time (milliseconds) of the first committed record at or behind each place, without those that are not found soon."""
        wanted = set(places)
        self._known = {place: at for place, at in self._known.items() if place in wanted}
        missing = wanted - self._known.keys()
        if missing:
            bounds = fetch_limits({**self._config.values, "fetch.max.bytes": str(_ANSWER_BYTES)}, 0)
            consumer = self._config.consumer(auto_offset_reset="earliest", queued_max_messages_kbytes=4096, **bounds)
            try:
                self._look(consumer, missing, time.monotonic() + _SECONDS)
            finally:
                consumer.close()
        return dict(self._known)

    def _look(self, consumer: Consumer, missing: set[Place], until: float) -> None:
        while missing and time.monotonic() < until:
            at_once = {(place.topic, place.partition): place for place in missing}  # of each partition one place
            consumer.assign([TopicPartition(*place) for place in at_once.values()])
            missing -= set(at_once.values())
            while at_once and time.monotonic() < until:
                for message in cast("list[Message]", consumer.consume(1000, 0.05)):
                    self._note(message, at_once)

    def _note(self, message: Message, at_once: dict[tuple[str, int], Place]) -> None:
        """The first record that comes of a place is the one; at a partition's end there is none."""
        of, error = (message.topic(), message.partition()), message.error()
        place = at_once.get(of)
        if place is None or (error is not None and error.code() != KafkaError._PARTITION_EOF):
            return
        del at_once[of]
        kind, at = message.timestamp()
        if error is None and kind != TIMESTAMP_NOT_AVAILABLE:
            self._known[place] = at
