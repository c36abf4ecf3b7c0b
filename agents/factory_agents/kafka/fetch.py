"""Takes records from a consumer in bounded memory, whatever their batches expand to.

A batch of some kilobytes may hold gigabytes. librdkafka expands all that one answer of a broker holds before anybody can look, and bounds
only each batch, by ``receive.message.max.bytes`` (gzip's it doesn't). So answers are small here, and so is what a batch in them may expand
to; a batch that is larger is read by a second consumer, alone in its answer.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, cast

from confluent_kafka import Consumer, KafkaError, TopicPartition

from factory_agents.errors import ConfigurationError, UnreadableBatchError
from factory_agents.kafka.config import LARGEST_MESSAGE, KafkaConfig, is_transient
from factory_agents.kafka.messages import Headers, Message, readable_headers
from factory_agents.kafka.topics import Cluster

__all__ = ["UNREADABLE", "BoundedConsumer", "Digest", "LargeMessage", "fetch_limits"]

UNREADABLE = {KafkaError._BAD_COMPRESSION, KafkaError._BAD_MSG}
"""What a consumer says, again and again, of a batch that it can't read (any more than others at the same offset)."""

# The most an answer expands to: many batches of _EXPANDED, each compressed as far as zstd can (to about a ten-thousandth, its own header
# included), come to 600 MB in _ANSWER bytes; where batches may be larger, a thirty-thousandth of their size and 500 MB in _SMALL_ANSWER.
_EXPANDED = 1_250_000
_ANSWER, _SMALL_ANSWER = 65_536, 16_384
_ENVELOPE = 65_536  # what an answer has around a batch, generously
_LARGEST_EXPANDED = 100_000_000
_SMALL = 10_000  # bytes of a key, or of headers, that are kept of a record whose value isn't
_AT_ONCE = 16 * 1024 * 1024
_PIECE, _HEAVY = 100, 4 * 1024 * 1024  # records taken from the client at once; fewer where they would be more than so many bytes
_PATIENCE = 10.0


class Digest:
    """What tells a value again that isn't kept: its size, its SHA-256 and how it begins."""

    def __init__(self, value: bytes) -> None:
        self.size = len(value)
        self.sha256 = hashlib.sha256(value).hexdigest()
        self.prefix = value[:1000]


class LargeMessage:
    """A record that is larger than a producer of ours could write (see ``Message``): no agent gets it, and its value isn't kept."""

    def __init__(self, message: Message) -> None:
        self.digest = Digest(message.value() or b"")
        self._where = message.topic(), message.partition(), message.offset()
        self._timestamp = message.timestamp()
        key, headers = message.key(), readable_headers(message)
        self._key = key if len(key or b"") <= _SMALL else None
        self._headers = headers if sum(len(name) + len(value or b"") for name, value in headers) <= _SMALL else []

    def __len__(self) -> int:
        """The value's bytes: it isn't kept."""
        return 0

    def topic(self) -> str:
        """See ``Message``."""
        return self._where[0]

    def partition(self) -> int:
        """See ``Message``."""
        return self._where[1]

    def offset(self) -> int:
        """See ``Message``."""
        return self._where[2]

    def key(self) -> bytes | None:
        """The key, unless it is what is large."""
        return self._key

    def value(self) -> bytes | None:
        """Empty, which is no event."""
        return b""

    def headers(self) -> Headers | None:
        """The headers, unless they are what is large."""
        return self._headers

    def set_headers(self, value: Headers) -> None:
        """See ``Message``."""
        self._headers = value

    def timestamp(self) -> tuple[int, int]:
        """See ``Message``."""
        return self._timestamp

    def error(self) -> KafkaError | None:
        """None: it is a record."""
        return None


def fetch_limits(values: Mapping[str, str], largest_batch: int) -> dict[str, int]:
    """A consumer's settings for a topic that takes batches (compressed) of this size; ``fetch.*`` of the user's own stay as they are."""
    receive = max(_EXPANDED, largest_batch + _ENVELOPE)
    answer = int(values.get("fetch.max.bytes", _ANSWER if receive == _EXPANDED else _SMALL_ANSWER))
    limits = {
        "fetch_max_bytes": answer,
        "message_max_bytes": min(answer, _SMALL_ANSWER),  # the client raises fetch.max.bytes to it
        "receive_message_max_bytes": max(receive, answer + 512),
    }
    own = {"fetch.message.max.bytes", "max.partition.fetch.bytes"} & values.keys()
    return limits if own else limits | {"fetch_message_max_bytes": answer}


class BoundedConsumer:
    """A consumer of one topic that gives at most 16 MB of records at once, or one record; larger ones than that as a ``LargeMessage``.

    ``client`` is the consumer itself, to join a group with or to ask.
    """

    def __init__(self, config: KafkaConfig, cluster: Cluster, topic: str, **settings: Any) -> None:
        self._config = config
        self._topic = topic
        try:
            self._largest_batch = int(cluster.settings(topic)["max.message.bytes"])
        except (ConfigurationError, KeyError):  # it may not be ours to ask
            self._largest_batch = _LARGEST_EXPANDED
        self._largest_record = max(LARGEST_MESSAGE, int(config.values.get("message.max.bytes", 0)))
        self._pending: deque[Message] = deque()
        self._from: dict[int, int] = {}  # where each partition is read from: what was consumed since lies past it
        self._stopped: set[int] = set()
        self._paused: dict[int, int] = {}  # where each of these partitions goes on
        self._alone: Consumer | None = None
        self._piece = _PIECE
        self.client = config.consumer(**fetch_limits(config.values, self._largest_batch), **settings)

    def close(self) -> None:
        """Disconnect."""
        self._pending.clear()
        self.client.close()
        if self._alone is not None:
            self._alone.close()

    def start(self, positions: Mapping[int, int]) -> None:
        """Read partitions too, each from an offset on."""
        self._from |= positions
        self.client.incremental_assign([TopicPartition(self._topic, p, offset) for p, offset in positions.items()])

    def stop(self, partitions: Iterable[int]) -> None:
        """Read these no more: what was fetched of them and not yet given is forgotten."""
        gone = set(partitions)
        if paused := gone & self._paused.keys():  # the client remembers that beyond an assignment
            self.client.resume([TopicPartition(self._topic, p) for p in paused])
        self.client.incremental_unassign([TopicPartition(self._topic, p) for p in sorted(gone & self._from.keys())])
        self._from = {p: offset for p, offset in self._from.items() if p not in gone}
        self._paused = {p: offset for p, offset in self._paused.items() if p not in gone}
        self._pending = deque(m for m in self._pending if m.partition() not in gone)
        self._stopped |= gone

    def serve(self) -> None:
        """Let the client's callbacks be called without reading: ``take`` goes on where it was."""
        if not self._paused and self._from:
            places = [TopicPartition(self._topic, p) for p in self._from]
            self._paused = {at.partition: max(at.offset, self._from[at.partition]) for at in self.client.position(places)}
            self.client.pause(places)
        self._stopped = set()
        came = cast("list[Message]", self.client.consume(1, 0.0))  # events, and what was on its way when the client paused
        came = [m for m in came if m.partition() not in self._stopped]
        self._paused |= {m.partition(): m.offset() + 1 for m in came if m.error() is None and m.partition() in self._paused}
        self._hold(came)

    def _resume(self) -> None:
        """Go on with what ``serve`` paused: by seeking, in milliseconds. Resuming alone takes a second, and so may a seek before it."""
        paused = {p: offset for p, offset in self._paused.items() if p in self._from}
        self.client.resume([TopicPartition(self._topic, p) for p in paused])
        for p, offset in paused.items():
            self.client.seek(TopicPartition(self._topic, p, offset))
            self._from[p] = offset  # the client knows no position until the next record
        self._paused = {}

    def take(self, size: int, wait: float) -> list[Message]:
        """What comes within ``wait`` seconds: up to ``size`` records, and events about partitions among them."""
        if self._paused:
            self._resume()
        return self._from_pending(size) if self._pending else self._fetch(size, wait)

    def _fetch(self, size: int, wait: float) -> list[Message]:
        """In pieces, so that what is taken from the client's queue, whose length is bounded in bytes, is so too."""
        until = time.monotonic() + wait
        got: list[Message] = []
        weight = 0
        self._stopped = set()
        while len(got) < size and weight <= _AT_ONCE:
            piece = min(self._piece, size - len(got))
            part = cast("list[Message]", self.client.consume(piece, max(0.0, until - time.monotonic())))
            if not part:
                break
            got += part
            size_of_part = sum(map(len, part))
            weight += size_of_part
            self._piece = _PIECE if size_of_part < _HEAVY else 1 + len(part) * _HEAVY // size_of_part
        if self._stopped:  # from a callback meanwhile
            got = [m for m in got if m.partition() not in self._stopped]
        if weight <= min(_AT_ONCE, self._largest_record):
            return got
        self._hold(got)
        return self._from_pending(size)

    def _hold(self, messages: Iterable[Message]) -> None:
        """Keep records until they are asked for, without the values of those that no agent gets."""
        largest = self._largest_record
        self._pending.extend(LargeMessage(m) if len(m) > largest or len(m.key() or b"") > largest else m for m in messages)

    def _from_pending(self, size: int) -> list[Message]:
        pending, weight = self._pending, 0
        batch = [pending.popleft()] if pending else []
        while pending and len(batch) < size and type(batch[-1]) is not LargeMessage and type(pending[0]) is not LargeMessage:
            weight += len(batch[-1])
            if weight + len(pending[0]) > _AT_ONCE:
                break
            batch.append(pending.popleft())
        return batch

    def read_alone(self, partition: int) -> None:
        """After an event whose code is in UNREADABLE: read the batch by itself; ``take`` gives it, and goes on behind it.

        Raises UnreadableBatchError where that can't be done either.
        """
        if any(m.partition() == partition for m in self._pending):
            return  # the same event twice
        place = TopicPartition(self._topic, partition)
        offset = max(self.client.position([place])[0].offset, self._from[partition])
        records = self._records_at(partition, offset)
        if records:
            self._hold(records)
            self._from[partition] = place.offset = records[-1].offset() + 1
            self.client.seek(place)

    def _records_at(self, partition: int, offset: int) -> list[Message]:
        """The records of the batch at an offset; none where the broker has no answer now."""
        found = self._ask(partition, offset)
        error = found[0].error() if found else None
        if error is None or error.code() not in UNREADABLE:
            return found if error is None else []
        end = self._end_of(partition, found[0].offset(), offset)
        raise UnreadableBatchError(
            f"{self._topic}-{partition} offsets {offset} to {end} cannot be read: their batch expands to more than {self._most_expanded:,} "
            f"bytes, or is damaged ({error.str()}); raise receive.message.max.bytes (and the agent's memory), or go on without these "
            f"records: --accept-loss",
            start=offset,
            end=end,
        )

    @property
    def _most_expanded(self) -> int:
        return max(int(self._config.values.get("receive.message.max.bytes", _LARGEST_EXPANDED)), self._largest_batch + _ENVELOPE)

    def _ask(self, partition: int, offset: int) -> list[Message]:
        """The records at an offset with as many after them as the broker sends along, or the first event about them."""
        if self._alone is None:
            self._alone = self._config.consumer(
                message_max_bytes=1000,  # the least there is: a broker sends one batch at least
                fetch_message_max_bytes=1,
                fetch_max_bytes=1000,
                queued_min_messages=1,
                queued_max_messages_kbytes=1,
                receive_message_max_bytes=self._most_expanded,
            )
        consumer = self._alone
        consumer.assign([TopicPartition(self._topic, partition, offset)])
        until = time.monotonic() + _PATIENCE
        try:
            while time.monotonic() < until:
                found = cast("list[Message]", consumer.consume(1, 0.1))
                error = found[0].error() if found else None
                if found and error is None:
                    rest = cast("list[Message]", consumer.consume(10_000, 0.0))
                    return found + [m for m in rest if m.error() is None]
                if error is not None and not is_transient(error) and found[0].topic():  # else it is about the connection
                    return found
            return []
        finally:
            consumer.unassign()

    def _end_of(self, partition: int, start: int, offset: int) -> int:
        """Where the batch ends that begins at ``start`` and holds ``offset``: past its last offset that it is the answer to."""
        inside, step = offset, 1
        while self._is_in(partition, start, inside + step):
            inside, step = inside + step, step * 2
        outside = inside + step
        while inside + 1 < outside:
            middle = (inside + outside) // 2
            inside, outside = (middle, outside) if self._is_in(partition, start, middle) else (inside, middle)
        return outside

    def _is_in(self, partition: int, start: int, offset: int) -> bool:
        found = self._ask(partition, offset)
        error = found[0].error() if found else None
        return error is not None and error.code() in UNREADABLE and found[0].offset() == start
