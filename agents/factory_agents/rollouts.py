"""Rollouts of live agents' versions: begin, shift, roll back, finish, look at; and which records a version handled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

import msgspec
from confluent_kafka import KafkaException, TopicPartition

from factory_agents.errors import ConfigurationError, DeadlineError, FactoryError, UnavailableError
from factory_agents.kafka.config import KafkaConfig, kafka_error, unauthorized
from factory_agents.kafka.control import Control, Member, control_topic
from factory_agents.kafka.followed import FollowedTopic
from factory_agents.kafka.group import TOPIC_TAG
from factory_agents.kafka.lag import Lags, PartitionLag
from factory_agents.kafka.ledger import LEDGER_PARTITIONS
from factory_agents.kafka.routes import (
    Limits,
    Route,
    Spell,
    Token,
    check_version,
    finished,
    holder,
    read_token,
    rolled_back,
    shifted,
    started,
    steps_of,
    version_group,
    without_versions,
)
from factory_agents.kafka.topics import Cluster
from factory_agents.kafka.version_group import official_tokens
from factory_agents.kafka.view import Follower
from factory_agents.protocol import PartitionRange, Window
from factory_agents.text import did_you_mean

__all__ = [
    "GroupSummary",
    "LiveGroup",
    "LiveGroups",
    "PartitionStatus",
    "Rollouts",
    "Status",
    "Verdict",
    "live_groups",
]

_ASK_SECONDS = 30.0
_ALIVE_SECONDS = 30.0
_LOOK_SECONDS = 0.2

Verdict = Literal["steady", "rolling", "rolled out", "rolled back"]


@dataclass(frozen=True)
class PartitionStatus:
    """Where a partition stands: the official position (None: none yet), who is to handle it, and who does."""

    partition: int
    position: int | None
    end: int
    lag: int
    owner: str
    holder: str


@dataclass(frozen=True)
class Status:
    """A group's versions at one moment.

    ``verdict``: ``rolled out`` when the new version holds all partitions and no step is left, ``rolled back`` with the ``reason``.
    ``replaced`` is the version that ``base`` took over from when its rollout was finished.
    """

    group: str
    topic: str
    verdict: Verdict
    base: str
    new: str
    reason: str
    epoch: int
    steps: tuple[float, ...]
    by: str
    partitions: tuple[PartitionStatus, ...]
    members: tuple[Member, ...] = ()
    ages: dict[str, float] = field(default_factory=dict)
    replaced: str = ""

    @property
    def held(self) -> int:
        """How many partitions the new version holds."""
        return sum(p.holder == self.new for p in self.partitions) if self.new else 0

    @property
    def is_settled(self) -> bool:
        """Whether each partition is held by the version that is to have it."""
        return all(p.holder == p.owner for p in self.partitions)

    @property
    def lag(self) -> int:
        """The official group's lag."""
        return sum(p.lag for p in self.partitions)


class Rollouts:
    """The rollouts of one group; each order is written by compare and set, so that of two at once one is refused or comes second.

    Raises ConfigurationError where there are no versions, or an order does not fit, UnavailableError without a broker.
    """

    def __init__(self, config: KafkaConfig, group: str, *, prefix: str = "factory") -> None:
        self._config, self._group, self._prefix = config, group, prefix

    @contextmanager
    def _control(self) -> Iterator[tuple[Cluster, Control, Route]]:
        with Cluster(self._config) as cluster:
            control = Control(self._config, cluster, prefix=self._prefix, group=self._group)
            try:
                route = control.catch_up(time.monotonic() + _ASK_SECONDS) if control.exists else None
                if route is None:
                    raise ConfigurationError(
                        f"group {self._group!r}: no version of an agent has run in it yet{self._near(cluster)}; start the one that is to "
                        f"be replaced later with --live-version"
                    )
                cluster.group(self._group)  # says at once if the user may not see it, which asking for its positions doesn't
                yield cluster, control, route
            finally:
                control.close()

    def _near(self, cluster: Cluster) -> str:
        """The group that may have been meant, of those that versions have run in."""
        with suppress(FactoryError):
            return did_you_mean(self._group, {name.rpartition("~")[0] for name in cluster.groups() if "~" in name}, 0.8)
        return ""

    def start(
        self,
        version: str,
        *,
        steps: Sequence[str] = (),
        hold: float = 0.0,
        limits: Limits = Limits(),  # noqa: B008  # frozen
        by: str = "",
        force: bool = False,
    ) -> Status:
        """Give a new version the first step's partitions (without steps: all); further steps follow by themselves, ``hold`` seconds apart.

        Where that very rollout is under way already, nothing is done. ``force``: also where none of its members is there.
        """
        check_version(version)
        with self._control() as (cluster, control, route):
            if not force and route.new != version:
                members = cluster.group(version_group(self._group, version))
                if members is None or not members.members:
                    raise ConfigurationError(
                        f"group {self._group!r}: version {version!r} has no members; start it first (--live-version {version})"
                    )

            def change(found: Route) -> Route:
                if found.state == "rolling" and found.new == version:
                    return found
                shares = steps_of(steps, len(found.owners))
                return started(found, version, shares, hold=hold, limits=limits, now=time.time(), by=by)

            return self._ordered(cluster, control, change)

    def shift(self, share: str, *, by: str = "") -> Status:
        """Give the new version as many partitions as said, such as ``3`` or ``50%``; further steps are off then."""
        with self._control() as (cluster, control, _):
            return self._ordered(
                cluster, control, lambda found: shifted(found, steps_of([share], len(found.owners))[0], now=time.time(), by=by)
            )

    def roll_back(self, reason: str, *, version: str = "", by: str = "") -> Status:
        """Take all partitions from the new version. With ``version``, nothing is done where another one or none is being rolled out."""
        with self._control() as (cluster, control, _):

            def change(found: Route) -> Route:
                if version and (found.state != "rolling" or found.new != version):
                    return found
                return rolled_back(found, reason, now=time.time(), by=by)

            return self._ordered(cluster, control, change)

    def finish(self, *, by: str = "") -> Status:
        """The new version holds all partitions and is the base from now on; where it is so already, nothing is done."""
        with self._control() as (cluster, control, _):

            def change(found: Route) -> Route:
                tokens = self._tokens(found)
                holders = [holder(found, p, tokens[p][1]) for p in range(len(found.owners))]
                return finished(found, holders, now=time.time(), by=by)

            return self._ordered(cluster, control, change)

    def _ordered(self, cluster: Cluster, control: Control, change: Callable[[Route], Route]) -> Status:
        """Give an order, and look what there is then."""

        def changed(found: Route | None) -> Route | None:
            return None if found is None else change(found)

        route = control.order(changed)
        if route is None:
            raise ConfigurationError(f"group {self._group!r}: the order of its versions is gone; its members write it again, try then")
        return self._status(cluster, control, route)

    def status(self) -> Status:
        """What there is now."""
        with self._control() as (cluster, control, route):
            return self._status(cluster, control, route)

    def wait(self, seconds: float, *, until: Callable[[Status], bool] = lambda status: status.is_settled) -> Status:
        """Look again and again until ``until`` says so, by default until each partition is where it is to be. Raises DeadlineError."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.status()
            if until(status):
                return status
            if time.monotonic() > deadline:
                late = [f"{p.partition} (held by {p.holder or 'nobody'})" for p in status.partitions if p.holder != p.owner]
                raise DeadlineError(
                    f"group {self._group!r}: not there after {seconds:g} s; partitions that wait: {', '.join(late) or 'none'}"
                )
            time.sleep(_LOOK_SECONDS)

    def handled(self, version: str = "") -> Window:
        """The records that a version handled in its last rollout (by default the one that was rolled back), as a window."""
        with self._control() as (cluster, _, route):
            version = version or route.new
            if not version:
                raise ConfigurationError(f"group {self._group!r}: no version was rolled back; say whose records are meant")
            tokens = self._tokens(route)
            ranges = [
                PartitionRange(p, spell.start, spell.end)
                for p, (position, token) in sorted(tokens.items())
                for spell in _merged(token, position)
                if spell.version == version and (spell.epoch >= route.since or version != route.new)
            ]
            topic = cluster.topic(route.topic)
        name = f"{version}-{route.since}"
        return Window(f"{self._group}.repair", topic.name, topic.id, tuple(ranges), name=name, origin=topic.name)

    def _tokens(self, route: Route) -> dict[int, tuple[int, Token | None]]:
        consumer = self._config.consumer(group_id=self._group)
        deadline = time.monotonic() + _ASK_SECONDS
        try:
            while True:
                try:
                    return official_tokens(consumer, route.topic, len(route.owners))
                except KafkaException as error:  # a transaction is open that may move it
                    if unauthorized(error) or time.monotonic() > deadline:
                        raise kafka_error(
                            error,
                            f"positions of group {self._group!r}",
                            group=f"DESCRIBE on group {self._group!r}",
                            topic=f"DESCRIBE on topic {route.topic!r}",
                        ) from error
        finally:
            consumer.close()

    def _status(self, cluster: Cluster, control: Control, route: Route) -> Status:
        tokens = self._tokens(route)
        lags = Lags(self._config, cluster).of_group(self._group, [route.topic]) if any(at >= 0 for at, _ in tokens.values()) else []
        return _status_of(route, control.members.values(), {p: token for p, (_, token) in tokens.items()}, lags)


@dataclass(frozen=True)
class LiveGroup:
    """A live agent's group as it was looked at; ``error`` says why its positions, and who holds what, could not be seen."""

    name: str
    status: Status
    error: str = ""


class LiveGroups(Follower):
    """All groups of live agents that have versions, looked at again and again: the control topic is followed, positions are asked for.

    A look costs a question for each group, and what ``Lags`` asks for each topic.
    """

    def __init__(self, config: KafkaConfig, cluster: Cluster, lags: Lags, *, prefix: str = "factory") -> None:
        super().__init__()
        self._cluster, self._lags = cluster, lags
        self._control = FollowedTopic(config, cluster, control_topic(prefix), range(LEDGER_PARTITIONS), kind="control topic")
        self._routes: dict[str, Route] = {}
        self._members: dict[str, dict[str, Member]] = {}

    def forget(self) -> None:
        """See ``Follower``."""
        self._routes, self._members = {}, {}

    def take(self, offset: int, key: bytes, value: bytes | None) -> None:
        """See ``Follower``. What this release can't read is passed over."""
        kind, _, rest = key.decode(errors="replace").partition("|")
        group, _, member = rest.partition("|")
        with suppress(msgspec.MsgspecError, ValueError, RecursionError):
            if kind == "route" and value is not None:
                self._routes[group] = msgspec.json.decode(value, type=Route)
            elif kind == "member" and value is not None:
                self._members.setdefault(group, {})[member] = msgspec.json.decode(value, type=Member)
            elif kind == "member":
                self._members.get(group, {}).pop(member, None)

    def look(self, *, seconds: float = _ASK_SECONDS) -> list[LiveGroup]:
        """What there is now, by name. Raises a FactoryError where the control topic or the topics cannot be read."""
        if self._cluster.find(self._control.topic) is None:
            return []
        self._control.follow(self, deadline=time.monotonic() + seconds, stable=True)
        errors: dict[str, str] = {}
        stands: dict[str, list[TopicPartition]] = {}
        for name, route in self._routes.items():
            try:
                stands[name] = self._cluster.stands(name, {route.topic: len(route.owners)})
            except UnavailableError:  # to wait for each of many groups would take minutes
                raise
            except FactoryError as error:
                errors[name] = str(error)
        rows = self._lags.of_readers(
            {name: {(tp.topic, tp.partition): tp.offset for tp in found if tp.offset >= 0} for name, found in stands.items()}
        )
        return [self._group(name, stands.get(name, []), rows.get(name, []), errors.get(name, "")) for name in sorted(self._routes)]

    def _group(self, name: str, stands: list[TopicPartition], rows: list[PartitionLag], error: str) -> LiveGroup:
        tokens = {tp.partition: read_token(tp.metadata or "") for tp in stands}
        return LiveGroup(name, _status_of(self._routes[name], self._members.get(name, {}).values(), tokens, rows), error)


@dataclass(frozen=True)
class GroupSummary:
    """A live agent's group in one line; ``version`` is empty where it runs without one; ``lag`` is that of its partitions."""

    group: str
    topics: tuple[str, ...]
    version: str
    new: str
    verdict: Verdict
    members: int
    partitions: int
    lag: int
    error: str = ""


def live_groups(config: KafkaConfig, *, prefix: str = "factory") -> list[GroupSummary]:
    """All groups of live agents, by name: those with versions, and others by what stands beside their positions.

    One that has committed nothing yet is not known to be one. A look costs two questions for each consumer group of the cluster.
    """
    with Cluster(config) as cluster:
        lags = Lags(config, cluster)
        found = {group.name: _summary(group) for group in LiveGroups(config, cluster, lags, prefix=prefix).look()}
        sizes = cluster.sizes()
        for name in without_versions([*found, *cluster.groups()]):
            if name not in found and (plain := _plain_summary(cluster, lags, name, sizes)) is not None:
                found[name] = plain
    return [found[name] for name in sorted(found)]


def _summary(group: LiveGroup) -> GroupSummary:
    status = group.status
    topics, count = (status.topic,), len(status.partitions)
    return GroupSummary(group.name, topics, status.base, status.new, status.verdict, len(status.members), count, status.lag, group.error)


def _plain_summary(cluster: Cluster, lags: Lags, name: str, sizes: Mapping[str, int]) -> GroupSummary | None:
    stands = [tp for tp in cluster.stands(name, sizes) if tp.offset >= 0 and (tp.metadata or "").startswith(TOPIC_TAG)]
    if not stands:
        return None
    rows = lags.of_readers({name: {(tp.topic, tp.partition): tp.offset for tp in stands}})[name]
    facts = cluster.group(name)
    topics = tuple(sorted({tp.topic for tp in stands}))
    return GroupSummary(name, topics, "", "", "steady", facts.members if facts is not None else 0, len(rows), sum(row.lag for row in rows))


def _status_of(route: Route, members: Iterable[Member], tokens: Mapping[int, Token | None], rows: Iterable[PartitionLag]) -> Status:
    by_partition = {row.partition: row for row in rows}
    partitions = []
    for p in range(len(route.owners)):
        row = by_partition.get(p)
        partitions.append(
            PartitionStatus(
                p,
                row.committed if row is not None else None,
                row.end if row is not None else 0,
                row.lag if row is not None else 0,
                route.owner(p),
                holder(route, p, tokens.get(p)),
            )
        )
    settled = all(p.holder == p.owner for p in partitions)
    verdict: Verdict = "steady"
    if route.state == "rolled-back":
        verdict = "rolled back"
    elif route.state == "rolling":
        verdict = "rolled out" if settled and not route.steps and route.moved == len(route.owners) else "rolling"
    now = time.time()
    known = sorted(members, key=lambda m: (m.version, m.host, m.id))
    return Status(
        route.group,
        route.topic,
        verdict,
        route.base,
        route.new,
        route.reason,
        route.epoch,
        route.steps,
        route.by,
        tuple(partitions),
        tuple(m for m in known if now - m.at < _ALIVE_SECONDS),
        {m.id: round(now - m.at, 1) for m in known},
        route.replaced,
    )


def _merged(token: Token | None, position: int) -> list[Spell]:
    """A partition's spells, those of one version that follow on each other as one."""
    spells: list[Spell] = []
    for spell in token.spells(position) if token is not None else ():
        last = spells[-1] if spells else None
        if last is not None and last.version == spell.version and last.end == spell.start:
            spells[-1] = Spell(spell.version, spell.epoch, last.start, spell.end)
        else:
            spells.append(spell)
    return spells
