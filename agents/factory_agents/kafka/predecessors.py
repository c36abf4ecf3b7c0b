"""Ends what members of a group that died have left open: until its timeout it would hide all later outputs from their readers.

Each commit of a live agent says beside the positions who made it. Who takes partitions over looks whether that member is still there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from confluent_kafka import KafkaException, TopicPartition

from factory_agents.errors import FactoryError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.topics import Cluster
from factory_agents.kafka.writer import TransactionalWriter
from factory_agents.telemetry import fields

__all__ = ["Predecessors", "signature"]

log = logging.getLogger(__name__)

_BY = "|by:"
_OPEN_SECONDS, _CLOSE_SECONDS = 15.0, 1.0


def signature(writer: str, member: str) -> str:
    """What ends the metadata of a position that a writer commits as a member of its group."""
    return f"{_BY}{writer} {member}"


def signer(metadata: str) -> tuple[str, str]:
    """The writer that committed a position and the member that it was, empty where its metadata doesn't say."""
    _, found, text = metadata.rpartition(_BY)
    writer, _, member = text.partition(" ")
    return (writer, member) if found else ("", "")


class Predecessors:
    """Looks, in threads of its own, who had the partitions that a member gets, and ends the transactions of those who are gone.

    ``id_of`` makes the transactional id of a writer's name; ``me`` is this member's.
    """

    def __init__(self, config: KafkaConfig, cluster: Cluster, group: str, *, id_of: Callable[[str], str], me: str) -> None:
        self._config, self._cluster, self._group, self._id_of, self._me = config, cluster, group, id_of, me
        self._ended: set[str] = set()
        self._threads: list[threading.Thread] = []

    def look(self, topic: str, partitions: Iterable[int]) -> None:
        """Begin to look after those who had these partitions; returns at once."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=self._run, args=(topic, set(partitions)), name="predecessors", daemon=True)
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        """Wait a moment for what is under way."""
        for thread in self._threads:
            thread.join(_CLOSE_SECONDS)

    def _run(self, topic: str, partitions: set[int]) -> None:
        try:
            had = {signer(tp.metadata or "") for tp in self._stands(topic) if tp.partition in partitions}
            unknown = {(writer, member) for writer, member in had if writer not in {"", self._me, *self._ended}}
            if not unknown:
                return
            facts = self._cluster.group(self._group)
            there = facts.member_ids if facts is not None else frozenset()
            for writer in sorted({writer for writer, member in unknown if member not in there}):
                self._end(topic, writer)
        except (FactoryError, KafkaException) as error:
            log.info("who had these partitions cannot be seen now", extra=fields(group=self._group, reason=str(error)))

    def _stands(self, topic: str) -> list[TopicPartition]:
        """Where the group stands, by commits that are through: one that is under way is not waited for."""
        return self._cluster.stands(self._group, {topic: self._cluster.topic(topic).partitions})

    def _end(self, topic: str, writer: str) -> None:
        """Fence a writer, which ends its transaction; one that has left nothing open, or lives all the same, loses nothing that counts."""
        self._ended.add(writer)
        fence = TransactionalWriter(self._config, self._id_of(writer), known_topic=topic)
        try:
            fence.open(time.monotonic() + _OPEN_SECONDS)
        finally:
            fence.close()
        log.info("a member that is gone has nothing open any more", extra=fields(group=self._group, writer=writer))
