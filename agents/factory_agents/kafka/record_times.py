"""The times that a topic's records bear: for a person who asked for an interval in which it holds none."""

from __future__ import annotations

import time
from contextlib import closing, suppress
from datetime import UTC, datetime

from factory_agents.errors import FactoryError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.reader import WindowReader
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import Interval, PartitionRange, Window

__all__ = ["why_empty"]

_NEWEST = 10
"""Offsets of each partition that are read for its newest record; some of them are transactions' markers."""
_SECONDS = 15.0


def why_empty(config: KafkaConfig, topic: str, interval: Interval) -> str:
    """A hint for an interval without records, or "" where the topic holds none at all, or can't be asked."""
    with suppress(FactoryError), closing(Cluster(config)) as cluster:
        if (held := _held(config, cluster, topic)) is not None:
            oldest, newest = (datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds") for ms in held)
            return (
                f"topic {topic!r} has no records from {interval.start.isoformat()} to {interval.end.isoformat()}: those that it holds are"
                f" of {oldest} to {newest}. --since and --until go by the time that Kafka keeps with a record, not by a field of the event"
            )
    return ""


def _held(config: KafkaConfig, cluster: Cluster, topic: str) -> tuple[int, int] | None:
    """Times (milliseconds) of the first record and of the newest, as far as the partitions' ends show."""
    facts = cluster.topic(topic)
    partitions = range(facts.partitions)
    times = [ms for _, ms in cluster.at_time(topic, partitions, 0).values() if ms >= 0]
    if not times:
        return None
    starts, ends = cluster.log_start(topic, partitions), cluster.stable_offset(topic, partitions)
    ranges = tuple(PartitionRange(p, max(starts[p], ends[p] - _NEWEST), ends[p]) for p in partitions if starts[p] < ends[p])
    reader = WindowReader(config, cluster, Window("", topic, facts.id, ranges, name="newest"), accept_loss=True)
    deadline = time.monotonic() + _SECONDS
    with closing(reader):
        reader.seek({}, {})
        while not reader.done:
            times += [message.timestamp()[1] for message in reader.batch(_NEWEST * len(ranges), deadline, lambda: False)]
    return min(times), max(times)
