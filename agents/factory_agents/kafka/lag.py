"""How far readers are behind: a consumer group's lag, and a pipeline's (what has arrived since its last cut). Asking changes nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from factory_agents.errors import ConfigurationError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.ledger import CutRecord, Ledger, about_plans
from factory_agents.kafka.topics import Cluster

__all__ = ["LagTotal", "PartitionLag", "group_lag", "lag_of", "lag_totals", "pipeline_lag", "topic_lag"]

_LEDGER_SECONDS = 60.0


@dataclass(frozen=True)
class PartitionLag:
    """One partition's lag in offsets (transaction markers included, as all of Kafka's tools count).

    ``committed`` is the next offset to read, or None where there is none yet: the lag then counts from the log's start.
    ``end`` is the last stable offset: what a committed reader can see.
    """

    topic: str
    partition: int
    committed: int | None
    end: int
    lag: int


@dataclass(frozen=True)
class LagTotal:
    """A reader's lag on one topic: in all, and on the partition that is furthest behind."""

    reader: str
    topic: str
    partitions: int
    lag: int
    worst: int
    worst_partition: int


def lag_of(
    config: KafkaConfig, *, group: str | None, topics: Sequence[str] | None, pipeline: str | None, prefix: str = "factory"
) -> dict[str, list[PartitionLag]]:
    """By reader, the lag of a group, of a pipeline, or (with topics only) of every group that reads them.

    Raises ConfigurationError where it isn't said whose lag is wanted, and as the three others do.
    """
    if group and pipeline:
        raise ConfigurationError(f"the lag of a group or of a pipeline is wanted: leave {group!r} or --pipeline out")
    if group:
        return {group: group_lag(config, group, topics)}
    if pipeline:
        return {pipeline: pipeline_lag(config, pipeline, topics, prefix=prefix)}
    if not topics:
        raise ConfigurationError("whose lag? name a consumer group, or give --topic or --pipeline")
    return topic_lag(config, topics)


def lag_totals(rows: Mapping[str, Sequence[PartitionLag]]) -> list[LagTotal]:
    """One line a reader and topic, the furthest behind first."""
    totals = []
    for reader, lags in rows.items():
        for topic in dict.fromkeys(r.topic for r in lags):
            of_topic = [r for r in lags if r.topic == topic]
            worst = max(of_topic, key=lambda r: r.lag)
            totals.append(LagTotal(reader, topic, len(of_topic), sum(r.lag for r in of_topic), worst.lag, worst.partition))
    return sorted(totals, key=lambda t: -t.lag)


def topic_lag(config: KafkaConfig, topics: Sequence[str]) -> dict[str, list[PartitionLag]]:
    """The lag of every consumer group that has committed offsets for a topic or is assigned it, by group. Raises as ``group_lag`` does."""
    cluster = Cluster(config)
    cluster.topics(topics)
    found = {}
    for name in cluster.groups():
        facts, committed = cluster.group(name), cluster.committed(name)
        read = {t for t, _ in committed} | ({t for t, _ in facts.assigned} if facts is not None else set())
        names = [t for t in dict.fromkeys(topics) if t in read]
        if names:
            found[name] = _lags(cluster, names, committed)
    return found


def group_lag(
    config: KafkaConfig, group: str, topics: Sequence[str] | None = None, *, cluster: Cluster | None = None
) -> list[PartitionLag]:
    """The lag of a consumer group on topics (None: all those it has committed offsets for or is assigned), by topic and partition.

    Joins no group and commits nothing. ``cluster``: a client to ask with, for who asks often. Raises ConfigurationError for an unknown
    group or topic, UnavailableError without a broker.
    """
    cluster = cluster or Cluster(config)
    facts = cluster.group(group)
    if facts is None:
        raise ConfigurationError(
            f"consumer group {group!r}: it has neither members nor committed offsets at {config.bootstrap}; is the name right, has it run?"
        )
    committed = cluster.committed(group)
    names = sorted({t for t, _ in (*committed, *facts.assigned)}) if topics is None else list(dict.fromkeys(topics))
    return _lags(cluster, names, committed)


def pipeline_lag(
    config: KafkaConfig, pipeline: str, topics: Sequence[str] | None = None, *, prefix: str = "factory", cluster: Cluster | None = None
) -> list[PartitionLag]:
    """What has arrived on topics (None: all that the pipeline has planned on) since the pipeline's last cut, by topic and partition.

    Before the first cut the lag counts from the log's start. ``cluster`` is as in ``group_lag``. Raises ConfigurationError for an unknown
    topic, or without ``topics`` for a pipeline that has planned nothing, and UnavailableError without a broker.
    """
    cluster = cluster or Cluster(config)
    cuts = _last_cuts(config, cluster, pipeline, prefix)
    names = sorted({t for t, _ in cuts}) if topics is None else list(dict.fromkeys(topics))
    if not names:
        raise ConfigurationError(f"pipeline {pipeline!r}: it has planned no window yet, so name the topics whose lag is wanted")
    ids = {name: cluster.topic(name).id for name in names}
    committed = {(t, p): o for (t, topic_id), offsets in cuts.items() if ids.get(t) == topic_id for p, o in enumerate(offsets)}
    return _lags(cluster, names, committed)


def _last_cuts(config: KafkaConfig, cluster: Cluster, pipeline: str, prefix: str) -> dict[tuple[str, str], tuple[int, ...]]:
    """The furthest cut of each topic (by name and id)."""
    ledger = Ledger(config, cluster, prefix=prefix, pipeline=pipeline)
    if cluster.find(ledger.topic) is None:
        return {}
    last: dict[tuple[str, str], CutRecord] = {}
    for cut in ledger.read(deadline=time.monotonic() + _LEDGER_SECONDS, wanted=about_plans).of(CutRecord):
        have = last.get((cut.topic, cut.topic_id))
        if have is None or cut.at >= have.at:
            last[cut.topic, cut.topic_id] = cut
    return {key: cut.offsets for key, cut in last.items()}


def _lags(cluster: Cluster, topics: Sequence[str], committed: Mapping[tuple[str, int], int]) -> list[PartitionLag]:
    lags: list[PartitionLag] = []
    for name in topics:
        partitions = range(cluster.topic(name).partitions)
        starts = cluster.log_start(name, partitions)
        ends = cluster.stable_offset(name, partitions)
        for p in partitions:
            position = committed.get((name, p))
            lags.append(PartitionLag(name, p, position, ends[p], max(0, ends[p] - max(starts[p], position or 0))))
    return lags
