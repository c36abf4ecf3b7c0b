"""Reads a topic as a member of one version's group: the partitions whose token it holds, from where the official group stands."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import msgspec
from confluent_kafka import Consumer, TopicPartition

from factory_agents import failpoints
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.group import GroupReader, Start, stands_of, topic_id_of
from factory_agents.kafka.routes import Route, Token, holder, read_token, version_group
from factory_agents.kafka.topics import Cluster
from factory_agents.kafka.writer import TransactionalWriter

__all__ = ["VersionReader", "official_tokens"]

_WAIT_SECONDS, _LOOK_SECONDS = 0.5, 5.0
"""A token that is to come is looked for so often, and any other one: usually a word in the control topic says when."""
_BACKOFF_MS = 10
"""A position is hidden until the transaction that moved it is through, which takes some milliseconds: then it is asked for again."""


class VersionReader(GroupReader):
    """A member of a version's group, which all partitions of the topic belong to, whoever handles them.

    Kafka fences within this group; positions and tokens are the official group's, which has no members. A partition is read where the
    version holds its token and the order (``follow``) is that it does; ``to_give`` are those that it holds and is not to have.
    ``handles=False`` reads none.
    """

    def __init__(
        self,
        config: KafkaConfig,
        cluster: Cluster,
        topic: str,
        group: str,
        version: str,
        *,
        accept_loss: bool = False,
        writes: str = "",
        handles: bool = True,
    ) -> None:
        super().__init__(config, cluster, topic, version_group(group, version), accept_loss=accept_loss, writes=writes)
        self.version = version
        self._official_group = group
        self._official: Consumer = config.consumer(group_id=group, retry_backoff_ms=_BACKOFF_MS)  # it never subscribes
        self._handles = handles
        self._route: Route | None = None
        self._tokens: dict[int, Token] = {}
        self._tags: dict[int, str] = {}
        self._at: dict[int, int] = {}
        self._ask_at: dict[int, float] = {}

    def close(self) -> None:
        """Leave the group."""
        super().close()
        self._official.close()

    def follow(self, route: Route | None, passed: Iterable[int] = ()) -> None:
        """Take the newest order, and word of partitions that changed hands."""
        if route != self._route:
            self._route = route
            self._ask_at = {}
        for p in passed:
            self._ask_at.pop(p, None)

    @property
    def held(self) -> set[int]:
        """Partitions whose token this version holds, as far as this member knows."""
        return {p for p in self.assigned if (token := self._tokens.get(p)) is not None and token.version == self.version}

    @property
    def to_give(self) -> dict[int, str]:
        """Partitions that this version holds and is not to have, and who is."""
        route = self._route
        if route is None:
            return {}
        return {p: owner for p in self.held if (owner := route.owner(p)) not in ("", self.version)}

    @property
    def to_come(self) -> dict[int, str]:
        """Partitions that this version is to have and doesn't hold, and who does."""
        route = self._route
        if route is None:
            return {}
        held = self.held
        return {p: self._tokens[p].version for p in self.assigned - held if p in self._tokens and route.owner(p) == self.version}

    @property
    def waiting(self) -> bool:
        """See ``GroupReader``."""
        return bool(self._due())

    def _due(self) -> set[int]:
        now = time.monotonic()
        return {p for p in self.assigned - self.reading if self._route is not None and self._ask_at.get(p, 0.0) <= now}

    def peek(self) -> None:
        """Look who holds what, and begin to read nothing."""
        if not self.waiting or time.monotonic() < self._begin_at:
            return
        handles, self._handles = self._handles, False
        try:
            self._begin()
        finally:
            self._handles = handles
        for p in self.held:
            self._ask_at.pop(p, None)

    def all_tokens(self) -> dict[int, Token]:
        """All tokens that were ever passed on. Raises KafkaException while an open transaction hides one."""
        found = official_tokens(self._official, self.topic.name, self.topic.partitions)
        return {p: token for p, (_, token) in found.items() if token is not None}

    @property
    def standing(self) -> dict[int, int]:
        """Where the group stands on the partitions that are read."""
        return {p: self._at[p] for p in self.reading if self._at.get(p, -1) >= 0}

    def _let_go(self, partitions: set[int]) -> None:
        super()._let_go(partitions)
        for known in (self._tokens, self._tags, self._at, self._ask_at):
            for p in partitions:
                known.pop(p, None)

    def rewind(self) -> None:
        """See ``GroupReader``; tokens that were read before don't count any more either."""
        super().rewind()
        self._tokens, self._tags, self._at, self._ask_at = {}, {}, {}, {}

    def _stands(self, partitions: list[int]) -> list[TopicPartition]:
        route = self._route
        if route is None:
            return []
        mine = []
        # Those that others are to have are asked for when none is waited for: what their holders commit just then would hide all of them.
        asked = [p for p in partitions if route.owner(p) == self.version] or partitions
        for tp in stands_of(self._official, self._named(asked)):
            p, metadata = tp.partition, tp.metadata or ""
            token = read_token(metadata)
            who = holder(route, p, token)
            if not who:
                self._ask_at[p] = time.monotonic() + _LOOK_SECONDS
                continue
            if token is None or topic_id_of(metadata) != self.topic.id:
                token = Token(who, token.epoch if token is not None else 0, max(0, tp.offset))
            self._at[p] = tp.offset
            self._set_token(p, token)
            wanted = route.owner(p) == self.version
            if wanted and who == self.version and self._handles:
                mine.append(tp)
            else:
                self._ask_at[p] = time.monotonic() + (_WAIT_SECONDS if wanted else _LOOK_SECONDS)
        if mine:
            failpoints.hit("take.before-read")
        return mine

    def _starts(self, partitions: list[int]) -> dict[int, Start]:
        starts = super()._starts(partitions)
        for p, start in starts.items():
            if self._at[p] < 0 or start.lost:
                self._set_token(p, msgspec.structs.replace(self._tokens[p], start=start.offset))
            self._at[p] = start.offset
        return starts

    def _set_token(self, partition: int, token: Token) -> None:
        self._tokens[partition] = token
        self._tags[partition] = f"{self._tag}|{msgspec.json.encode(token).decode()}"

    def committed(self, positions: Mapping[int, int]) -> None:
        """See ``GroupReader``."""
        super().committed(positions)
        self._at |= positions

    def send(self, writer: TransactionalWriter, positions: Mapping[int, int], passing: Mapping[int, str]) -> dict[int, Token]:
        """Put positions, and tokens that are passed on, into a transaction; returns these tokens as their new holders have them.

        The fence comes last: once it was taken, all that it stands for is hidden from a new owner until the transaction has ended.
        """
        route = self._route
        at = {p: positions.get(p, self._at.get(p, -1)) for p in passing}
        if unread := [p for p, offset in at.items() if offset < 0]:
            at |= self._cluster.log_start(self.topic.name, unread)
        passed = {p: self._tokens[p].passed_to(to, route.epoch if route is not None else 0, at[p]) for p, to in passing.items()}
        tags = self._tags | {p: f"{self._tag}|{msgspec.json.encode(t).decode()}" for p, t in passed.items()}
        all_positions = {**positions, **at}
        official = [TopicPartition(self.topic.name, p, offset, tags[p]) for p, offset in all_positions.items()]
        writer.send_offsets(official, self._official_group, self._official.consumer_group_metadata())
        failpoints.hit("live.before-fence")
        if passing:
            failpoints.hit("give.before-fence")
        writer.send_offsets(self.offsets(all_positions), self._group, self.membership)
        if passing:
            failpoints.hit("give.before-commit")
        return passed

    def release(self, tokens: Mapping[int, Token]) -> None:
        """Read partitions no more: their tokens are passed on, which is committed."""
        gone = set(tokens)
        self._fetch.stop(gone & self._fetched)
        self._fetched -= gone
        self.reading -= gone
        now = time.monotonic()
        for p, token in tokens.items():
            self._set_token(p, token)
            self._at[p] = token.start
            self._ask_at[p] = now + _LOOK_SECONDS


def official_tokens(consumer: Consumer, topic: str, partitions: int) -> dict[int, tuple[int, Token | None]]:
    """Where a group stands and who holds each partition, by a consumer of that group that has not subscribed.

    Raises KafkaException while an open transaction hides it.
    """
    stands = stands_of(consumer, [TopicPartition(topic, p) for p in range(partitions)])
    return {tp.partition: (tp.offset, read_token(tp.metadata or "")) for tp in stands}
