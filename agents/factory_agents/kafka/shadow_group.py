"""A version in the shadow: a group of its own, which begins where the official one stands, and who else makes one topic of another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

from confluent_kafka import Consumer, TopicPartition

from factory_agents.errors import FactoryError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.group import GroupReader, Start, stands_of, writes_of
from factory_agents.kafka.routes import shadow_group
from factory_agents.kafka.topics import Cluster

__all__ = ["ShadowReader", "other_writer"]

_AT_ONCE = 8


class ShadowReader(GroupReader):
    """A member of a shadow's group. Where that has no position yet, it begins at the official group's, which it only looks at."""

    def __init__(
        self, config: KafkaConfig, cluster: Cluster, topic: str, group: str, version: str, *, accept_loss: bool = False, writes: str = ""
    ) -> None:
        super().__init__(config, cluster, topic, shadow_group(group, version), accept_loss=accept_loss, writes=writes)
        self._official: Consumer = config.consumer(group_id=group)  # it never subscribes
        self._new: set[int] = set()

    def close(self) -> None:
        """Leave the group."""
        super().close()
        self._official.close()

    def _stands(self, partitions: list[int]) -> list[TopicPartition]:
        own = super()._stands(partitions)
        self._new = {tp.partition for tp in own if tp.offset < 0}
        official = stands_of(self._official, self._named(self._new)) if self._new else []
        return [*(tp for tp in own if tp.offset >= 0), *official]

    def _starts(self, partitions: list[int]) -> dict[int, Start]:
        starts = super()._starts(partitions)
        return {p: replace(start, committed=-1) if p in self._new else start for p, start in starts.items()}  # by this group


def other_writer(cluster: Cluster, in_topic: str, out_topic: str, group: str) -> str:
    """Another group that makes ``out_topic`` of ``in_topic``, by what stands beside its positions; empty for none that can be seen."""
    sizes = {in_topic: cluster.topic(in_topic).partitions}

    def writes(name: str) -> bool:
        with suppress(FactoryError):  # of groups that the user may not see, nothing is known
            return any(tp.offset >= 0 and writes_of(tp.metadata or "") == out_topic for tp in cluster.stands(name, sizes))
        return False

    names = [name for name in cluster.groups() if name != group and not name.startswith(f"{group}~")]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return next((name for name, found in zip(names, pool.map(writes, names), strict=True) if found), "")
