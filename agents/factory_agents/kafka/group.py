"""Reads a topic as a member of a consumer group: each partition from where the group stands, if that was said of this very topic."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import methodcaller
from typing import TypeAlias

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from factory_agents.errors import ConfigurationError, DataLossError, FactoryError, UnavailableError, UnreadableBatchError
from factory_agents.kafka.config import KafkaConfig, is_transient, kafka_error, unauthorized
from factory_agents.kafka.fetch import UNREADABLE, BoundedConsumer
from factory_agents.kafka.messages import Message
from factory_agents.kafka.predecessors import signature
from factory_agents.kafka.reader import TOPIC_CHANGED
from factory_agents.kafka.topics import Cluster, TopicInfo
from factory_agents.kafka.writer import ChunkAbortedError
from factory_agents.telemetry import fields

__all__ = [
    "SESSION_MS",
    "TABLE_TAG",
    "TOPIC_TAG",
    "GroupReader",
    "OnPartitions",
    "Start",
    "decide_start",
    "stands_of",
    "tag_of",
    "topic_id_of",
    "writes_of",
]

log = logging.getLogger(__name__)

_ASK_SECONDS = 0.3
_CHECK_SECONDS = 5.0
_LEAVE_SECONDS = 5.0
SESSION_MS = 10_000
_OWN = {"session.timeout.ms": SESSION_MS, "heartbeat.interval.ms": 500, "topic.metadata.refresh.interval.ms": 5_000}
"""A member that was killed holds its partitions up for a session, a rebalance is heard of at a heartbeat, and partitions that are added
are seen at the next look at the topic: after five minutes, if it were up to the client.
"""
TOPIC_TAG = "topic-id:"
_WRITES_TAG = " writes:"
TABLE_TAG = "postgres:"
"""Begins what a group writes to where that is a table; no topic's name has a colon."""
_error, _partition = methodcaller("error"), methodcaller("partition")

OnPartitions: TypeAlias = Callable[[set[int]], None]


@dataclass(frozen=True)
class Start:
    """Where a partition is read from.

    ``committed`` is where the group stands by its own word, -1 where it has said nothing of this topic. ``lost`` says what is gone before
    ``offset``, empty for nothing; ``records`` how many records that were, at most and as far as anybody can know.
    """

    offset: int
    committed: int = -1
    lost: str = ""
    records: int = 0


def topic_id_of(metadata: str) -> str:
    """The id of the topic that a committed position is about, from the metadata beside it; empty where it isn't said."""
    tag = metadata.partition("|")[0]  # a token may follow (see ``routes``)
    return tag.removeprefix(TOPIC_TAG).partition(_WRITES_TAG)[0] if tag.startswith(TOPIC_TAG) else ""


def writes_of(metadata: str) -> str:
    """The topic that a position's group writes to; empty where it isn't said."""
    return metadata.partition("|")[0].partition(_WRITES_TAG)[2] if metadata.startswith(TOPIC_TAG) else ""


def tag_of(topic_id: str, writes: str = "") -> str:
    """The metadata of a position: the topic that it is about, and what its group writes to."""
    return f"{TOPIC_TAG}{topic_id}" + (f"{_WRITES_TAG}{writes}" if writes else "")


def decide_start(offset: int, metadata: str, topic_id: str, log_start: int, *, end: int | None = None, replaced: bool = False) -> Start:
    """Where to read on, from a group's committed offset (negative: none) and the metadata beside it.

    ``end`` is the log's end, given where the broker has no record at the offset. ``replaced`` says that the topic was replaced by another
    of its name meanwhile, so that a position which names no topic is about the former one.
    """
    if offset < 0:
        return Start(log_start)
    named = topic_id_of(metadata)
    if (named or ("" if replaced else topic_id)) != topic_id:
        return Start(log_start, lost="the topic was deleted and created again")
    if offset < log_start:
        return Start(log_start, lost=f"offsets {offset} to {log_start} were deleted by retention", records=log_start - offset)
    if end is not None and offset > end:
        return Start(end if named else log_start, lost=f"the log ends at {end}, the group stands at {offset}")
    return Start(offset, committed=offset if named else -1)


class GroupReader:
    """A member of a consumer group on one topic.

    A partition that comes, or that goes back (``rewind``), is read once it is known where the group stands: an open transaction may hide
    that for a while, and the other partitions go on meanwhile. The topic's id is remembered beside every position (``offsets``), so that a
    topic which was deleted and created again is told from the one that was read. What is lost is an error, or with ``accept_loss`` passed
    over and counted in ``lost``. ``writes`` is the topic that the group writes to, which is remembered there too.
    """

    def __init__(
        self, config: KafkaConfig, cluster: Cluster, topic: str, group: str, *, accept_loss: bool = False, writes: str = ""
    ) -> None:
        self._cluster = cluster
        self._group = group
        self._accept_loss = accept_loss
        self._writes = writes
        self._wrote = ""
        self.topic = cluster.topic(topic)
        self.assigned: set[int] = set()
        self.reading: set[int] = set()
        self.ends: dict[int, int] = {}
        self.lost = 0
        self.writer = ""
        """Names who commits, beside each position."""
        self._committed: dict[int, int] = {}
        self._fetched: set[int] = set()
        self._out_of_range: set[int] = set()
        self._replaced = self._topic_gone = False
        self._begin_at = 0.0
        self._check_at = time.monotonic() + _CHECK_SECONDS
        self._classic = config.values.get("group.protocol", "classic") == "classic"
        own = {name.replace(".", "_"): value for name, value in _OWN.items() if name not in config.values}
        self._fetch = BoundedConsumer(config, cluster, topic, group_id=group, partition_assignment_strategy="cooperative-sticky", **own)
        self._consumer: Consumer = self._fetch.client

    def subscribe(self, *, came: OnPartitions, going: OnPartitions, gone: OnPartitions) -> None:
        """Join the group. ``going`` is called while partitions are still this member's, ``gone`` when they were taken without asking.

        All three are called from within ``batch``, ``idle``, ``serve`` and ``close``.
        """

        def on_assign(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            consumer.incremental_assign([])  # taken; they are read when it is known from where
            self.assigned |= _numbers(partitions)
            came(_numbers(partitions))

        def on_revoke(_: Consumer, partitions: list[TopicPartition]) -> None:
            try:
                going(_numbers(partitions))
            finally:
                self._let_go(_numbers(partitions))

        def on_lost(_: Consumer, partitions: list[TopicPartition]) -> None:
            try:
                gone(_numbers(partitions))
            finally:
                self._let_go(_numbers(partitions))

        self._consumer.subscribe([self.topic.name], on_assign=on_assign, on_revoke=on_revoke, on_lost=on_lost)

    def _let_go(self, partitions: set[int]) -> None:
        self._fetch.stop(partitions)
        for mine in (self.assigned, self.reading, self._fetched, self._out_of_range):
            mine -= partitions
        self._committed = {p: o for p, o in self._committed.items() if p not in partitions}

    def _named(self, partitions: Iterable[int]) -> list[TopicPartition]:
        return [TopicPartition(self.topic.name, p) for p in sorted(partitions)]

    @property
    def waiting(self) -> bool:
        """Whether there are partitions that ``batch`` will begin to read from where the group stands: commit before it what is handled."""
        return self.assigned != self.reading

    def _due(self) -> set[int]:
        """Partitions that it is time to begin to read."""
        return self.assigned - self.reading

    def rewind(self) -> None:
        """What was read and not committed is read again, on every partition; nothing read before counts any more."""
        self.reading = set()
        self.ends = {}

    def idle(self, timeout: float) -> None:
        """Stay in the group for so long without reading, after ``rewind``."""
        self._fetch.stop(self._fetched)
        self._fetched = set()
        for message in self._fetch.take(1, timeout):
            self._is_record(message)

    def serve(self) -> None:
        """Answer the group while what was read is being handled, and read nothing: the callbacks of ``subscribe`` may be called."""
        self._fetch.serve()

    def batch(self, size: int, timeout: float) -> list[Message]:
        """Up to ``size`` records within ``timeout`` seconds; ``ends`` tells which partitions were read to their end, and where that is.

        Raises DataLossError for what is lost, and ChunkAbortedError where the topic was replaced while it was read (``rewind`` then).
        """
        if time.monotonic() >= self._check_at:
            self._check_now_and_then()
        if (self.waiting or self._topic_gone) and time.monotonic() >= self._begin_at:
            self._begin()
        self.ends = {}
        got = self._fetch.take(size, timeout)
        if self.reading.issuperset(map(_partition, got)) and not any(map(_error, got)):
            return got
        return [m for m in got if self._is_record(m)]

    def _is_record(self, message: Message) -> bool:
        """Whether it is a record of a partition that is being read: a rebalance may take some away within one call of ``consume``."""
        error, partition = message.error(), message.partition()
        if error is None:
            return partition in self.reading
        if error.code() == KafkaError._PARTITION_EOF:
            if partition in self.reading:
                self.ends[partition] = message.offset()
        elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            self.reading.discard(partition)
            self._out_of_range.add(partition)
        elif error.code() in TOPIC_CHANGED:
            self._check_at = 0.0
        elif error.code() in UNREADABLE and partition in self.reading:
            self._read_alone(partition)
        elif unauthorized(error) or not is_transient(error):
            raise self._failed(error, f"reading {self.topic.name}")
        return False

    def _failed(self, error: KafkaException | KafkaError, doing: str) -> FactoryError:
        return kafka_error(error, doing, topic=f"READ on topic {self.topic.name!r}", group=f"READ on group {self._group!r}")

    def _read_alone(self, partition: int) -> None:
        """A batch that can't be read beside others: by itself, if it can; else go on behind it, if its loss is accepted."""
        try:
            self._fetch.read_alone(partition)
        except UnreadableBatchError as error:
            if not self._accept_loss:
                raise
            log.warning("loss accepted", extra=fields(group=self._group, partition=f"{self.topic.name}-{partition}", why=str(error)))
            self.lost += error.end - error.start
            self._fetch.stop([partition])
            self._fetch.start({partition: error.end})

    def _check_now_and_then(self) -> None:
        """Where nothing arrives, nothing else would tell that the topic was replaced."""
        try:
            self.check_topic()
        except UnavailableError as error:
            log.info("the topic's id cannot be read now", extra=fields(topic=self.topic.name, reason=str(error)))

    def check_topic(self) -> None:
        """Raise ChunkAbortedError where the topic isn't the one any more that was read; call it before every commit.

        Once it returns, all that was read before it was of this topic: an id never comes back.
        """
        self._check_at = time.monotonic() + _CHECK_SECONDS
        found = self._cluster.find(self.topic.name)
        if found is None or found.id != self.topic.id:
            self._topic_gone = True
            raise ChunkAbortedError(self._replaced_by(found), refused=False)
        self.topic = found  # it may have more partitions by now

    def _replaced_by(self, found: TopicInfo | None) -> DataLossError:
        name = self.topic.name
        if found is None:
            return DataLossError(f"group {self._group!r}: topic {name!r} does not exist any more: what it held and was not read is lost")
        return DataLossError(
            f"group {self._group!r}: topic {name!r} was deleted and created again while it was read (topic id {found.id}, was "
            f"{self.topic.id}): what it held and was not read is lost; to go on with the new one: --accept-loss"
        )

    def _begin(self) -> None:
        """Begin to read the partitions that wait for it, each where the group stands; ask again in a moment where that is not to be had."""
        self._begin_at = time.monotonic() + _ASK_SECONDS
        if stale := self._fetched - self.reading:
            self._fetch.stop(stale)
            self._fetched -= stale
        try:
            if self._topic_gone:
                self._go_over()
            self.check_topic()
            starts = self._starts(sorted(p for p in self._due() if p < self.topic.partitions))
        except UnavailableError as error:
            log.info("it cannot be told now where the group stands", extra=fields(group=self._group, reason=str(error)))
            return
        except KafkaException as error:
            if unauthorized(error) or not is_transient(error.args[0]):
                raise self._failed(error, f"group {self._group!r}: reading its positions") from error
            return  # a transaction is open that may move the group on
        for p, start in starts.items():
            if start.lost:
                self._lose(p, start)
        self._fetch.start({p: start.offset for p, start in starts.items()})
        self._committed |= {p: start.committed for p, start in starts.items()}
        self._fetched |= starts.keys()
        self.reading |= starts.keys()
        self._out_of_range -= starts.keys()
        self._begin_at = 0.0

    def _go_over(self) -> None:
        """Go over to the topic that bears the name now, if the loss of the former one's records is accepted."""
        found = self._cluster.find(self.topic.name)
        if (found is None or found.id != self.topic.id) and not self._accept_loss:
            raise self._replaced_by(found)
        if found is None:
            raise UnavailableError(f"topic {self.topic.name!r} does not exist; waiting for it to be created again")
        if found.id != self.topic.id:
            log.warning("loss accepted", extra=fields(group=self._group, topic=found.name, topic_id=found.id, was=self.topic.id))
            self.topic, self._replaced = found, True
        self._topic_gone = False

    def _starts(self, partitions: list[int]) -> dict[int, Start]:
        """Where each is to be read from. Raises KafkaException while an open transaction hides where the group stands."""
        if not partitions:
            return {}
        stands = self._stands(partitions)
        if not stands:
            return {}
        partitions = [tp.partition for tp in stands]
        first = self._cluster.log_start(self.topic.name, partitions)
        beyond = self._out_of_range & set(partitions)
        ends = self._cluster.high_watermark(self.topic.name, beyond) if beyond else {}
        return {tp.partition: self._start(tp, first[tp.partition], ends.get(tp.partition)) for tp in stands}

    def _start(self, tp: TopicPartition, log_start: int, end: int | None) -> Start:
        """Where a partition is to be read from whose group stands there. Raises ConfigurationError where the group publishes to a table."""
        wrote = writes_of(tp.metadata or "")
        if wrote.startswith(TABLE_TAG):
            raise ConfigurationError(
                f"group {self._group!r} publishes to a table, and would share its records with this agent; give each a group of its own"
                " (--group)"
            )
        if self._writes and wrote not in ("", self._writes, self._wrote):
            log.warning(
                "group %r wrote to topic %r, and goes on to write to %r: if the former agent is still there, each gets a part of them;"
                " give each a group of its own (--group)",
                self._group,
                wrote,
                self._writes,
            )
            self._wrote = wrote
        return decide_start(tp.offset, tp.metadata or "", self.topic.id, log_start, end=end, replaced=self._replaced)

    def _stands(self, partitions: list[int]) -> list[TopicPartition]:
        """Where the group stands on those of the partitions that may be read now. Raises KafkaException as ``_starts`` does."""
        return stands_of(self._consumer, self._named(partitions))

    def _lose(self, partition: int, start: Start) -> None:
        where = f"{self.topic.name}-{partition}"
        if not self._accept_loss:
            raise DataLossError(
                f"group {self._group!r}: {where}: {start.lost}: records that were not read are lost; to go on without them: --accept-loss"
            )
        log.warning("loss accepted", extra=fields(group=self._group, partition=where, why=start.lost, going_on_at=start.offset))
        self.lost += start.records

    def passed(self, positions: Mapping[int, int]) -> dict[int, int]:
        """Where partitions ended (past the marker of the last transaction) further on than the group, or what was handled, stands.

        Of partitions that are still read: one that went since ``batch`` is its new owner's, with what was in hand of it.
        """
        reading = self.reading
        return {p: end for p, end in self.ends.items() if p in reading and end > max(self._committed.get(p, -1), positions.get(p, -1), 0)}

    def offsets(self, positions: Mapping[int, int]) -> list[TopicPartition]:
        """Positions as they are committed: each with the id of the topic that it is about, and who commits it."""
        by = signature(self.writer, self._consumer.memberid() or "") if self.writer else ""
        return [TopicPartition(self.topic.name, p, offset, self._tag_of(p) + by) for p, offset in positions.items()]

    @property
    def _tag(self) -> str:
        return tag_of(self.topic.id, self._writes)

    def _tag_of(self, _: int) -> str:
        return self._tag

    def committed(self, positions: Mapping[int, int]) -> None:
        """Take note of what was committed."""
        self._committed |= positions

    def stands_at(self, partition: int) -> int:
        """Where the group stands on a partition that is read, by what was committed of this topic; -1: nothing was."""
        return self._committed.get(partition, -1)

    @property
    def group(self) -> str:
        """The group that it is a member of."""
        return self._group

    @property
    def membership(self) -> object:
        """What fences a former owner of the partitions, for a transaction that commits positions."""
        return self._consumer.consumer_group_metadata()

    @property
    def joined(self) -> bool:
        """Whether the group has taken this member in; asks nobody."""
        return bool(self._consumer.memberid())

    def lag(self) -> dict[int, int]:
        """How far each partition's end is past what was committed, as far as the last fetch tells; asks nobody."""
        behind = {}
        for p in self.reading:
            _, high = self._consumer.get_watermark_offsets(TopicPartition(self.topic.name, p), cached=True)
            if high >= 0:
                behind[p] = max(0, high - max(0, self._committed.get(p, 0)))
        return behind

    def close(self) -> None:
        """Leave the group.

        A client that closes between two steps of joining sends no word of it, and the group waits for it for a session before anybody
        gets partitions: so one that has none leaves before it closes.
        """
        if self._classic and self.joined and not self.assigned:
            self._consumer.unsubscribe()
            until = time.monotonic() + _LEAVE_SECONDS
            while self._consumer.memberid() and time.monotonic() < until:
                self._consumer.poll(0.05)
        self._fetch.close()


def stands_of(consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
    """Where a consumer's group stands. Raises KafkaException while an open transaction hides that."""
    stands: list[TopicPartition] = consumer.committed(partitions, timeout=_ASK_SECONDS)
    for tp in stands:
        if tp.error is not None:
            raise KafkaException(tp.error)
    return stands


def _numbers(partitions: Iterable[TopicPartition]) -> set[int]:
    return {tp.partition for tp in partitions}
