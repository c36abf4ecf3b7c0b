"""How far readers are behind: a consumer group's lag, and a pipeline's (what has arrived since its last cut). Asking changes nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, cast

from factory_agents.errors import ConfigurationError, FactoryError, UnavailableError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.ledger import CutRecord, Ledger
from factory_agents.kafka.records import decode_record
from factory_agents.kafka.routes import without_versions
from factory_agents.kafka.tails import Span, Tails
from factory_agents.kafka.topics import Cluster, TopicInfo
from factory_agents.kafka.view import Follower

__all__ = ["LagTotal", "Lags", "PartitionLag", "group_lag", "lag_of", "lag_totals", "pipeline_lag", "topic_lag"]

_LEDGER_SECONDS = 60.0
_AT_ONCE = 8  # groups asked for at the same time

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class PartitionLag:
    """One partition's lag in offsets (transaction markers between records included, as all of Kafka's tools count).

    ``committed`` is the next offset to read, or None where there is none yet: the lag then counts from the log's start, and so it does
    where that offset is past the log's end, since it is about a topic that was deleted and created again. ``end`` is one past
    the last record that a committed reader can see: the markers behind it are nothing that anybody waits for.
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
        raise ConfigurationError(f"expected a group or a pipeline, got both: leave {group!r} or --pipeline out")
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
    """See ``Lags.of_topics``."""
    with Cluster(config) as cluster:
        return Lags(config, cluster).of_topics(topics)


def group_lag(config: KafkaConfig, group: str, topics: Sequence[str] | None = None) -> list[PartitionLag]:
    """See ``Lags.of_group``."""
    with Cluster(config) as cluster:
        return Lags(config, cluster).of_group(group, topics)


def pipeline_lag(config: KafkaConfig, pipeline: str, topics: Sequence[str] | None = None, *, prefix: str = "factory") -> list[PartitionLag]:
    """See ``Lags.of_pipeline``."""
    with Cluster(config) as cluster:
        return Lags(config, cluster).of_pipeline(pipeline, topics, prefix=prefix)


class Lags:
    """Looks up lag, again and again: what was found out is kept for the next time. Joins no group, commits nothing; thread-safe."""

    def __init__(self, config: KafkaConfig, cluster: Cluster) -> None:
        self._config = config
        self._cluster = cluster
        self._tails = Tails(config)
        self._cuts: dict[tuple[str, str], _LastCuts] = {}

    def of_topics(self, topics: Sequence[str]) -> dict[str, list[PartitionLag]]:
        """By group, the lag of every consumer group that has committed offsets for a topic or is assigned it. Raises as ``of_group``.

        Groups of an agent's versions are left out: the official one tells.
        """
        self._cluster.topics(topics)
        groups = without_versions(self._cluster.groups())
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            stands = pool.map(lambda name: self._cluster.committed(name, topics), groups)
            facts_of = pool.map(self._cluster.group, groups)
        found = {}
        for name, committed, facts in zip(groups, stands, facts_of, strict=True):
            read = {t for t, _ in committed} | ({t for t, _ in facts.assigned} if facts is not None else set())
            names = [t for t in dict.fromkeys(topics) if t in read]
            if names:
                found[name] = self._lags(names, committed)
        return found

    def of_group(self, group: str, topics: Sequence[str] | None = None) -> list[PartitionLag]:
        """The lag of a consumer group on topics (None: all those it has committed offsets for or is assigned), by topic and partition.

        Raises ConfigurationError for an unknown group or topic, UnavailableError without a broker.
        """
        facts = self._cluster.group(group)
        if facts is None:
            raise ConfigurationError(
                f"consumer group {group!r}: it has neither members nor committed offsets at {self._config.bootstrap}; is the name right, "
                f"has it run?"
            )
        committed = self._cluster.committed(group, topics)
        names = sorted({t for t, _ in (*committed, *facts.assigned)}) if topics is None else list(dict.fromkeys(topics))
        if not (names or facts.members):
            raise ConfigurationError(
                f"consumer group {group!r}: none of the topics that it has read may be looked at; the Kafka user needs READ on its topics; "
                f"add those ACLs, or name the topics"
            )
        return self._lags(names, committed)

    def of_pipeline(self, pipeline: str, topics: Sequence[str] | None = None, *, prefix: str = "factory") -> list[PartitionLag]:
        """What has arrived on topics (None: all that the pipeline has planned on) since the pipeline's last cut, by topic and partition.

        Before the first cut the lag counts from the log's start. Raises ConfigurationError for an unknown topic, or without ``topics`` for
        a pipeline that has planned nothing, and UnavailableError without a broker.
        """
        cuts = self._last_cuts(pipeline, prefix)
        names = sorted({t for t, _ in cuts}) if topics is None else list(dict.fromkeys(topics))
        if not names:
            raise ConfigurationError(f"pipeline {pipeline!r}: it has planned no window yet, so name the topics whose lag is wanted")
        ids = {name: facts.id for name, facts in self._cluster.topics(names).items()}
        committed = {(t, p): o for (t, topic_id), offsets in cuts.items() if ids.get(t) == topic_id for p, o in enumerate(offsets)}
        return self._lags(names, committed)

    def of_groups(
        self, group: Callable[[str], bool], topic: Callable[[str], bool], failed: list[FactoryError] | None = None
    ) -> dict[str, list[PartitionLag]]:
        """By group, the lag of all groups with fitting names on the topics with fitting names that they have committed offsets for.

        Each topic is looked at once, however many groups read it, and one question goes to each group's coordinator. A group or a topic
        that cannot be asked is left out, and ``failed`` says why; without it, that is raised.
        """
        sizes = {name: partitions for name, partitions in self._cluster.sizes().items() if topic(name)}
        groups = [name for name in without_versions(self._cluster.groups()) if group(name)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            asked = {name: pool.submit(self._cluster.positions, name, sizes) for name in groups}
            stands = _of_each(groups, lambda name: asked[name].result(), failed)
        return self.of_readers(stands, failed)

    def behind_cuts(
        self, cuts: Mapping[tuple[str, str, str], Sequence[int]], failed: list[FactoryError] | None = None
    ) -> dict[str, list[PartitionLag]]:
        """By pipeline, what has arrived since its last cuts (offsets by pipeline, topic and topic id), without topics that are gone.

        ``failed`` as for ``of_groups``.
        """
        topics = _of_each({topic for _, topic, _ in cuts}, self._cluster.find, failed)
        ids = {name: facts.id for name, facts in topics.items() if facts is not None}
        stands: dict[str, dict[tuple[str, int], int]] = {}
        for (pipeline, topic, topic_id), offsets in cuts.items():
            if ids.get(topic) == topic_id:
                stands.setdefault(pipeline, {}).update(((topic, p), offset) for p, offset in enumerate(offsets))
        return self.of_readers(stands, failed)

    def of_readers(
        self, stands: Mapping[str, Mapping[tuple[str, int], int]], failed: list[FactoryError] | None = None
    ) -> dict[str, list[PartitionLag]]:
        """By reader, the lag from where it stands (offsets by topic and partition); a topic that is gone is left out.

        ``failed`` as for ``of_groups``.
        """

        def ask(name: str) -> dict[str, list[PartitionLag]]:
            facts = self._cluster.find(name)
            if facts is None:
                return {}
            without = frozenset[int]() if failed is None else facts.away
            if failed is not None and without:
                failed.append(UnavailableError(f"topic {name!r}: partitions {', '.join(map(str, sorted(without)))} have no leader"))
            of_topic = {reader: stand for reader, stand in stands.items() if any(topic == name for topic, _ in stand)}
            return self._on_topic(facts, of_topic, without)

        found: dict[str, list[PartitionLag]] = {reader: [] for reader in stands}
        for of_topic in _of_each(sorted({topic for stand in stands.values() for topic, _ in stand}), ask, failed).values():
            for reader, rows in of_topic.items():
                found[reader] += rows
        return found

    def _last_cuts(self, pipeline: str, prefix: str) -> dict[tuple[str, str], tuple[int, ...]]:
        ledger = Ledger(self._config, self._cluster, prefix=prefix, pipeline=pipeline)
        if self._cluster.find(ledger.topic) is None:
            return {}
        return self._cuts.setdefault((prefix, pipeline), _LastCuts(pipeline)).look(ledger)

    def _lags(self, topics: Sequence[str], committed: Mapping[tuple[str, int], int]) -> list[PartitionLag]:
        return [row for name in topics for row in self._on_topic(self._cluster.topic(name), {"": committed})[""]]

    def _on_topic(
        self, topic: TopicInfo, stands: Mapping[str, Mapping[tuple[str, int], int]], without: Collection[int] = ()
    ) -> dict[str, list[PartitionLag]]:
        """By reader, the lag on a topic from where each stands; what is the topic's own is looked up once.

        It is that of the topic's partitions ``without`` some.
        """
        name, partitions = topic.name, [p for p in range(topic.partitions) if p not in without]
        starts, ends = self._cluster.log_start(name, partitions), self._cluster.stable_offset(name, partitions)
        beyond = {p for p in partitions if any(stand.get((name, p), 0) > ends[p] for stand in stands.values())}
        lasts = self._cluster.high_watermark(name, beyond) if beyond else {}

        def begin_of(p: int, stand: int) -> int:
            """Where a reader goes on: from the log's start, where it stands past the end of a log that was made again."""
            return min(ends[p], max(starts[p], 0 if stand > lasts.get(p, stand) else stand))

        begins = {reader: {p: begin_of(p, stand.get((name, p), 0)) for p in partitions} for reader, stand in stands.items()}
        spans = {p: Span(min(begin[p] for begin in begins.values()), ends[p]) for p in partitions}
        seen = self._tails.visible_ends(name, topic.id, spans)
        return {
            reader: [
                PartitionLag(name, p, stands[reader].get((name, p)), max(begin[p], seen[p]), max(0, seen[p] - begin[p])) for p in partitions
            ]
            for reader, begin in begins.items()
        }


def _of_each(names: Iterable[str], ask: Callable[[str], _Found], failed: list[FactoryError] | None) -> dict[str, _Found]:
    """What is found out about each name, without those of which ``failed`` says why nothing could be; without it, that is raised."""
    found = {}
    for name in names:
        try:
            found[name] = ask(name)
        except FactoryError as error:
            if failed is None:
                raise
            failed.append(error)
    return found


class _LastCuts(Follower):
    """The furthest cut of each topic (by name and id) of one pipeline: however long its ledger is, no more is kept."""

    def __init__(self, pipeline: str) -> None:
        super().__init__()
        self.begins = (f"cut|{pipeline}|".encode(),)
        self._last: dict[tuple[str, str], CutRecord] = {}
        self._lock = threading.Lock()

    def take(self, offset: int, key: bytes, value: bytes | None) -> None:
        """See ``Follower.take``. One that was deleted was no last one."""
        if value is None:
            return
        cut = cast("CutRecord", decode_record("cut", value))
        have = self._last.get((cut.topic, cut.topic_id))
        if have is None or cut.at >= have.at:
            self._last[cut.topic, cut.topic_id] = cut

    def forget(self) -> None:
        """See ``Follower.forget``."""
        self._last.clear()

    def look(self, ledger: Ledger) -> dict[tuple[str, str], tuple[int, ...]]:
        """Their offsets now, as far as they are committed: nobody's open transaction is waited for."""
        with self._lock:
            ledger.follow(self, deadline=time.monotonic() + _LEDGER_SECONDS, stable=True)
            return {key: cut.offsets for key, cut in self._last.items()}
