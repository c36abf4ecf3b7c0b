"""Tells an offset by the record that lies there, so that it is found again in a copy of the topic, whose offsets are others."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from typing import Self, cast

import msgspec
from confluent_kafka import Consumer, KafkaError, TopicPartition

from factory_agents.errors import UnavailableError
from factory_agents.kafka.config import KafkaConfig, is_transient, kafka_error
from factory_agents.kafka.messages import Message
from factory_agents.kafka.topics import Cluster

__all__ = ["Place", "Places"]

_FARTHEST = 100_000  # records between the first of a time and the one that is meant
_PATIENCE = 60.0


class Place(msgspec.Struct, frozen=True, array_like=True):
    """An offset, and what lies there: a record (``after``: the last one before the offset), told by its time and content.

    ``skip`` counts the records between the partition's first one of that time, or a later one, and the record that is meant. A log
    without any record has neither time nor content.
    """

    offset: int
    time: int = -1
    skip: int = 0
    digest: str = ""
    after: bool = False


class Places:
    """Notes the places of a topic's offsets, and finds them in a copy of the topic that kept order, times, keys and values."""

    def __init__(self, config: KafkaConfig, cluster: Cluster, topic: str) -> None:
        self._cluster = cluster
        self._topic = topic
        self._consumer: Consumer = config.consumer(fetch_message_max_bytes=16_384, queued_min_messages=1, queued_max_messages_kbytes=1_024)
        self._assigned: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def note(self, partition: int, offsets: Iterable[int]) -> Iterator[Place]:
        """The places of a partition's offsets, in order; of those below the log's start, and of a record that can't be told, there is none.

        A record can't be told by its time where 100,000 others lie between it and the first of that time or a later one.
        """
        start = self._cluster.log_start(self._topic, [partition])[partition]
        end = self._cluster.stable_offset(self._topic, [partition])[partition]
        for offset in sorted(set(offsets)):
            if offset < start:
                continue
            record = self._first(partition, offset) if offset < end else None
            after = record is None
            if record is None and (record := self._last(partition, start, min(offset, end))) is None:
                yield Place(offset)
            elif (skip := self._skipped(partition, record)) is not None:
                yield Place(offset, record.timestamp()[1], skip, _digest(record), after)

    def find(self, partition: int, place: Place) -> int | None:
        """The offset of a place here; None where its record isn't."""
        if place.time < 0:
            return self._cluster.log_start(self._topic, [partition])[partition]
        found = next((m for n, m in enumerate(self._since(partition, place.time)) if n == place.skip), None)
        return None if found is None or _digest(found) != place.digest else found.offset() + place.after

    def _first(self, partition: int, offset: int) -> Message | None:
        return next(self._records(partition, offset), None)

    def _last(self, partition: int, start: int, end: int) -> Message | None:
        """The last record between two offsets: looks back twice as far each time."""
        at, step = end, 1
        while at > start:
            at, step = max(start, end - step), step * 2
            last = None
            for record in self._records(partition, at):
                if record.offset() >= end:
                    break
                last = record
            if last is not None:
                return last
        return None

    def _skipped(self, partition: int, record: Message) -> int | None:
        for n, found in enumerate(self._since(partition, record.timestamp()[1])):
            if found.offset() >= record.offset():
                return n
            if n == _FARTHEST:
                return None
        return None

    def _since(self, partition: int, ms: int) -> Iterator[Message]:
        """The partition's records from the first one of a time, or a later one, on."""
        at, _ = self._cluster.at_time(self._topic, [partition], ms)[partition]
        begun = False
        for record in self._records(partition, at) if at >= 0 else ():
            begun = begun or record.timestamp()[1] >= ms  # the broker's answer may be a record that was never committed
            if begun:
                yield record

    def _records(self, partition: int, offset: int) -> Iterator[Message]:
        """The committed records from an offset on, to the end."""
        at = TopicPartition(self._topic, partition, offset)
        if self._assigned == partition:
            self._consumer.seek(at)
        else:
            self._consumer.assign([at])
            self._assigned = partition
        heard = time.monotonic()
        while True:
            message = cast("Message | None", self._consumer.poll(0.5))
            error = None if message is None else message.error()
            if message is None or (error is not None and is_transient(error)):
                if time.monotonic() - heard > _PATIENCE:
                    raise UnavailableError(f"{self._topic}-{partition}: nothing came from offset {offset} on for {_PATIENCE:g} s")
                continue
            heard = time.monotonic()
            if error is None:
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                return
            else:
                raise kafka_error(error, f"reading {self._topic}-{partition}", topic=f"READ on topic {self._topic!r}")


def _digest(record: Message) -> str:
    """Sixteen hex digits of a record's key and value."""
    found = hashlib.blake2b(digest_size=8)
    for part in (record.key(), record.value()):
        found.update(b"-" if part is None else f"{len(part)}:".encode() + part)
    return found.hexdigest()
