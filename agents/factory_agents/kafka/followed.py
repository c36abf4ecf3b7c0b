"""Reads a compacted topic to its end, and goes on from there the next time."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import cast

from confluent_kafka import Consumer, KafkaError, TopicPartition

from factory_agents.errors import DeadlineError, FactoryError
from factory_agents.kafka.config import KafkaConfig, is_transient, kafka_error
from factory_agents.kafka.messages import Message
from factory_agents.kafka.topics import Cluster
from factory_agents.kafka.view import Follower

__all__ = ["FollowedTopic"]

log = logging.getLogger(__name__)

_QUIET_SECONDS = 3.0
"""How long nothing comes before it is said what is waited for, and a new client asks: one waits a minute for a frozen broker."""
_FRESH_SECONDS = 12 * 3600.0
"""How long a follower may rest: what was deleted meanwhile is told for a day (``delete.retention.ms``), then it isn't there any more."""

_AT_ONCE = 300
"""Records asked for at once: many fewer than the allocations at which Python looks for garbage among them."""


class FollowedTopic:
    """Some partitions of a topic, for followers of it; errors call it by its ``kind``: the ledger or the control topic."""

    def __init__(self, config: KafkaConfig, cluster: Cluster, topic: str, partitions: Sequence[int], *, kind: str) -> None:
        self._config, self._cluster, self.topic, self._kind = config, cluster, topic, kind
        self._partitions = partitions

    def follow(self, follower: Follower, *, start: int = 0, deadline: float, stable: bool = False) -> None:
        """Have a follower take what came since it was here last, up to the high watermark of now; waits for open transactions below it.

        With ``stable`` up to the last stable offset, which waits for nobody. ``deadline`` is a ``time.monotonic()`` value; raises
        DeadlineError past it. The follower begins again with another topic of this name, and when it has rested for too long.
        """
        topic_id = self._cluster.topic(self.topic).id
        if follower.topic_id != topic_id or time.monotonic() - follower.read_at > _FRESH_SECONDS:
            follower.restart(topic_id)
        self._read_on(follower, start, deadline, stable=stable)
        follower.read_at = time.monotonic()

    def _read_on(self, follower: Follower, start: int, deadline: float, *, stable: bool) -> None:
        partitions = self._partitions
        ask = self._cluster.stable_offset if stable else self._cluster.high_watermark
        ends = ask(self.topic, partitions)
        missing = [p for p in partitions if p not in follower.positions]
        starts = self._cluster.log_start(self.topic, missing)
        follower.positions |= {p: max(start, starts[p]) for p in missing}
        follower.end = ends[partitions[0]]
        todo = {p: end for p, end in ends.items() if follower.positions[p] < end}
        is_told = False
        while todo:
            consumer = self._config.consumer(auto_offset_reset="earliest")
            try:
                consumer.assign([TopicPartition(self.topic, p, follower.positions[p]) for p in todo])
                self._drain(consumer, todo, follower, deadline)
            finally:
                consumer.close()
            if todo and not is_told:
                is_told = True
                self._tell(todo)

    def _drain(self, consumer: Consumer, todo: dict[int, int], follower: Follower, deadline: float) -> None:
        """Have a follower take what comes, until it has all, or nothing comes any more."""
        came_at = time.monotonic()
        while todo and time.monotonic() < came_at + _QUIET_SECONDS:
            messages = cast("list[Message]", consumer.consume(_AT_ONCE, 0.02))
            self._give(messages, todo, follower)
            last = messages[-1:] if len(self._partitions) == 1 else {m.partition(): m for m in messages}.values()
            for message in last:
                if message.error() is None:
                    self._passed(message.partition(), message.offset() + 1, todo, follower)
            if messages:
                came_at = time.monotonic()
            if todo and time.monotonic() > deadline:
                raise DeadlineError(
                    f"{self._kind} {self.topic} could not be read to its end in time: a transaction on partition {next(iter(todo))} is "
                    f"still open, or its broker is down; a transaction ends with its producer or after its timeout; try again then"
                )

    def _give(self, messages: Sequence[Message], todo: dict[int, int], follower: Follower) -> None:
        """Have a follower take what it may need; of all other records nothing but the key is looked at."""
        begins = follower.begins
        for message in [m for m in messages if (key := m.key()) is None or key.startswith(begins)]:
            error, partition, offset, key = message.error(), message.partition(), message.offset(), message.key() or b""
            if error is None:
                if offset < todo.get(partition, 0) and key.startswith(begins):
                    follower.take(offset, key, message.value())
                    follower.positions[partition] = offset + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                self._passed(partition, offset, todo, follower)
            elif not is_transient(error):
                raise kafka_error(error, f"reading {self.topic}-{partition}", topic=f"READ on topic {self.topic!r}")

    @staticmethod
    def _passed(partition: int, position: int, todo: dict[int, int], follower: Follower) -> None:
        """Note how far a follower is in a partition, and whether that is all."""
        if partition in todo:
            position = follower.positions[partition] = min(todo[partition], max(position, follower.positions[partition]))
            if position == todo[partition]:
                del todo[partition]

    def _tell(self, todo: Mapping[int, int]) -> None:
        """Say which open transaction is waited for, if one is."""
        with suppress(FactoryError):
            stable = self._cluster.stable_offset(self.topic, todo)
            for p in (p for p, end in todo.items() if stable[p] < end):
                why = "of a killed producer it ends after its timeout"
                where = f"open since offset {stable[p]} of partition {p}"
                log.info("%s %s: waiting for the transaction to end that is %s; %s", self._kind, self.topic, where, why)
                return
