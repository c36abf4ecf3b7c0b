"""Who of several processes that share a work is alive: Kafka's own failure detector, which is membership in a consumer group."""

from __future__ import annotations

import logging
import threading
import uuid
import zlib

from confluent_kafka import Consumer, KafkaError, TopicPartition

from factory_agents.errors import UnavailableError
from factory_agents.kafka.config import KafkaConfig, kafka_error, unauthorized
from factory_agents.kafka.topics import Cluster
from factory_agents.telemetry import fields

__all__ = ["Presence"]

log = logging.getLogger(__name__)

_SESSION_MS = 10_000


class Presence:
    """This process among its peers. A peer that dies is missed after its session's timeout (10 s, or ``session.timeout.ms``).

    A member reads nothing: a thread of its own keeps it in the group, however long the work takes. ``work`` is what all of them are to do:
    ``is_of_another`` tells peers who do something else.
    """

    def __init__(self, config: KafkaConfig, cluster: Cluster, *, group: str, topic: str, work: str = "") -> None:
        self._cluster = cluster
        self._group = group
        self._work = f"{zlib.crc32(work.encode()):08x}"
        self.me = uuid.uuid4().hex[:12] + self._work
        session = {} if "session.timeout.ms" in config.values else {"session_timeout_ms": _SESSION_MS}
        self._consumer: Consumer = config.consumer(group_id=group, client_id=self.me, **session)
        self._topic = topic
        self._refused: KafkaError | None = None
        self._consumer.subscribe([topic], on_assign=_take_nothing)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._stay, name=f"presence in {group}", daemon=True)
        self._thread.start()

    def _stay(self) -> None:
        while not self._ended.is_set():
            message = self._consumer.poll(0.2)
            error = message.error() if message is not None else None
            self._refused = error if error is not None and unauthorized(error) else self._refused

    def peers(self) -> list[str]:
        """Who is there now, oneself included, in one order for all; empty while that isn't known, or this process isn't there itself.

        Raises ConfigurationError where the user may not be in the group.
        """
        if self._refused is not None:
            raise kafka_error(
                self._refused,
                f"joining group {self._group!r}",
                group=f"READ on group {self._group!r}",
                topic=f"READ on topic {self._topic!r}",
            )
        try:
            found = self._cluster.group(self._group)
        except UnavailableError as error:
            log.info("the group's members cannot be listed now", extra=fields(group=self._group, reason=str(error)))
            return []
        return sorted(found.clients) if found is not None and self.me in found.clients else []

    def is_of_another(self, peer: str) -> bool:
        """Whether a peer is there for another work."""
        return not peer.endswith(self._work)

    def leave(self) -> None:
        """Be missed at once."""
        self._ended.set()
        self._thread.join()
        self._consumer.close()


def _take_nothing(consumer: Consumer, _: list[TopicPartition]) -> None:
    consumer.assign([])
