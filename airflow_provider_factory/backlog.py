"""What waits on a topic beyond a pipeline's last window, and whether that is reason to start a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from confluent_kafka import KafkaError

from factory_agents.errors import UnreadableBatchError
from factory_agents.kafka.config import KafkaConfig, is_transient, kafka_error
from factory_agents.kafka.fetch import UNREADABLE, BoundedConsumer, LargeMessage
from factory_agents.kafka.lag import Lags
from factory_agents.kafka.messages import Message
from factory_agents.kafka.topics import Cluster

__all__ = ["Enough", "Sizes", "Waiting", "look", "reason_to_start"]

_READ_SECONDS = 1.0
"""How long records are counted at a time; the next look goes on from there."""

_UNREADABLE_BYTES = 100_000_000
"""What a batch counts that no consumer reads, because it expands to more than that: the run that it starts says what is wrong."""


@dataclass(frozen=True)
class Enough:
    """When to start: so many ``records`` (offsets) or bytes (``size``) wait, or the oldest has waited ``age`` seconds; None: not asked."""

    records: int | None = None
    size: int | None = None
    age: float | None = None


@dataclass(frozen=True)
class Waiting:
    """By partition: where the last window ended, where the topic ends, and up to where records are older than the age asked for.

    ``size``: bytes of the records beyond the last window (or beyond the last start), as far as they were counted.
    """

    taken: Mapping[int, int] = field(default_factory=dict)
    ends: Mapping[int, int] = field(default_factory=dict)
    old: Mapping[int, int] = field(default_factory=dict)
    size: int = 0

    def beyond(self, begun: Mapping[int, int]) -> int:
        """How many records (offsets) wait beyond the last window and the last start."""
        base = _base(self.taken, begun)
        return sum(max(0, end - base[p]) for p, end in self.ends.items())


def _base(taken: Mapping[int, int], begun: Mapping[int, int]) -> dict[int, int]:
    return {p: max(offset, begun.get(p, 0)) for p, offset in taken.items()}


def reason_to_start(enough: Enough, waiting: Waiting, begun: Mapping[int, int], watched: float = 0.0) -> str:
    """Why a run should start, or nothing. What a start was made for already (``begun``: partition to offset) doesn't count again.

    ``watched``: seconds for which something has been seen to wait, since producers' times may be out of order.
    """
    base, count = _base(waiting.taken, begun), waiting.beyond(begun)
    if enough.records is not None and count >= enough.records:
        return f"{count:,} records wait, {enough.records:,} are enough"
    if enough.size is not None and count and waiting.size >= enough.size:
        return f"{waiting.size:,} bytes wait, {enough.size:,} are enough"
    if enough.age is not None and count and (watched >= enough.age or any(waiting.old.get(p, 0) > o for p, o in base.items())):
        return f"the oldest of {count:,} records has waited {enough.age:g} s"
    return ""


def look(
    config: KafkaConfig,
    cluster: Cluster,
    lags: Lags,
    *,
    topic: str,
    pipeline: str,
    prefix: str,
    enough: Enough,
    begun: Mapping[int, int],
    sizes: Sizes,
) -> Waiting:
    """Ask the cluster, joining no group and committing nothing; raises FactoryError."""
    found = lags.of_pipeline(pipeline, [topic], prefix=prefix)
    taken = {lag.partition: lag.end - lag.lag for lag in found}
    ends = {lag.partition: lag.end for lag in found}
    old: dict[int, int] = {}
    if enough.age is not None and any(lag.lag for lag in found):
        young = cluster.at_time(topic, ends, round((time.time() - enough.age) * 1000))
        old = {p: offset if offset >= 0 else ends[p] for p, (offset, _) in young.items()}
    size = 0
    if enough.size is not None:
        size = sizes.beyond(config, cluster, _base(taken, begun), ends, enough.size)
    return Waiting(taken, ends, old, size)


class Sizes:
    """Counts the bytes of a topic's keys and values from some offsets on, reading each record once and no more than is needed.

    What they expand to is bounded as it is for an agent.
    """

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._base: dict[int, int] = {}
        self._read: dict[int, int] = {}
        self._total = 0

    def beyond(self, config: KafkaConfig, cluster: Cluster, base: Mapping[int, int], ends: Mapping[int, int], enough: int) -> int:
        """Bytes between two offsets of each partition; stops early once there are ``enough``. Raises FactoryError."""
        if self._base != base:
            self._base, self._read, self._total = dict(base), dict(base), 0
        todo = {p for p, end in ends.items() if self._read[p] < end}
        if todo and self._total < enough:
            fetch = BoundedConsumer(config, cluster, self._topic, auto_offset_reset="earliest")
            try:
                fetch.start({p: self._read[p] for p in todo})
                self._count(fetch, todo, ends, enough)
            finally:
                fetch.close()
        return self._total

    def _count(self, fetch: BoundedConsumer, todo: set[int], ends: Mapping[int, int], enough: int) -> None:
        until = time.monotonic() + _READ_SECONDS
        while todo and self._total < enough and time.monotonic() < until:
            for message in fetch.take(10_000, 0.05):
                self._add(fetch, message)
                partition = message.partition()
                at_end = (error := message.error()) is not None and error.code() == KafkaError._PARTITION_EOF
                if at_end or (partition in todo and self._read[partition] >= ends[partition]):
                    todo.discard(partition)

    def _add(self, fetch: BoundedConsumer, message: Message) -> None:
        error, partition = message.error(), message.partition()
        if error is None:
            size = message.digest.size if isinstance(message, LargeMessage) else len(message)
            self._total += len(message.key() or b"") + size
            self._read[partition] = message.offset() + 1
        elif error.code() == KafkaError._PARTITION_EOF:
            self._read[partition] = max(self._read[partition], message.offset())
        elif error.code() in UNREADABLE:
            self._add_unreadable(fetch, partition)
        elif not is_transient(error):
            raise kafka_error(error, f"reading {self._topic}-{partition}", topic=f"READ on topic {self._topic!r}")

    def _add_unreadable(self, fetch: BoundedConsumer, partition: int) -> None:
        """A batch that can't be read beside others: by itself, or else it counts as what it is at least, and what follows it is read on."""
        try:
            fetch.read_alone(partition)
        except UnreadableBatchError as error:
            self._total += _UNREADABLE_BYTES
            self._read[partition] = error.end
            fetch.stop([partition])
            fetch.start({partition: error.end})
