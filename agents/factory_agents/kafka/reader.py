"""Reads exactly the records of a window: committed, complete, and only its writers'."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from operator import methodcaller

from confluent_kafka import KafkaError

from factory_agents.errors import DataLossError, DeadlineError, FactoryError, ForgedRecordError, UnreadableBatchError, WindowError
from factory_agents.kafka.config import KafkaConfig, is_transient, kafka_error
from factory_agents.kafka.fetch import UNREADABLE, BoundedConsumer
from factory_agents.kafka.messages import UNREADABLE_HEADERS, Message, drop_headers, headers_of, readable_headers
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import PartitionRange, Window
from factory_agents.telemetry import fields

__all__ = ["TOPIC_CHANGED", "WRITER_HEADER", "WindowReader"]

log = logging.getLogger(__name__)

WRITER_HEADER = "factory-writer"
"""The one header that says whose record it is: ``stage/fingerprint/generation``."""

_MARGIN = 30.0

_error, _partition = methodcaller("error"), methodcaller("partition")
_MOST_CARRIERS = 16  # in a batch; of more than that all are treated alike
_LEAST_WAIT = 5.0  # seconds without a record before anybody is asked how long a transaction may last
TOPIC_CHANGED = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.UNKNOWN_TOPIC_ID,
    KafkaError.INCONSISTENT_TOPIC_ID,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
}


class WindowReader:
    """Yields a window's records in batches, per partition in order, each range to its end or an error.

    ``positions`` are the offsets to go on from; ``read`` counts the window's own records per partition so far. What is not there any more
    is an error, or with ``accept_loss`` skipped and noted in ``lost``: ranges, with how many records are missing where a manifest counts.
    """

    def __init__(
        self,
        config: KafkaConfig,
        cluster: Cluster,
        window: Window,
        *,
        accept_loss: bool = False,
        poll: float = 0.03,
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._window = window
        self._accept_loss = accept_loss
        self._poll = poll
        self._writers = frozenset(w.encode() for w in window.writers)
        self._late_before = window.interval.start_ms if window.interval is not None and not window.writers else 0
        self._consumer: BoundedConsumer | None = None
        self._longest: float | None = None
        self._todo: dict[int, PartitionRange] = {}
        self._begun = self._gone = False
        self.positions: dict[int, int] = {}
        self.read: dict[int, int] = {}
        self.lost: list[PartitionRange] = list(window.lost)
        self.skipped = 0
        self.late = 0
        self.carriers: Sequence[Message] | None = None
        """Of the last batch the few records that have more headers than their writer's; None where nobody has looked, or it is many."""

    def check_topic(self) -> None:
        """Raise DataLossError where the topic is not the one that was planned (any more), or has fewer partitions.

        Once it returns, all that was read before it is the window's: a topic id never comes back. Call it before every commit. With
        ``accept_loss`` a topic that was gone before ``seek`` is no error: nothing of it is read.
        """
        if self._gone or (self._accept_loss and not self._begun):
            return
        why = self._topic_gone()
        if why:
            raise DataLossError(
                f"window {self._window.key}: {why}: its records are lost; plan it again, or go on without them with --accept-loss"
                + (" (this attempt began before that; run it once more)" if self._accept_loss else "")
            )

    def _topic_gone(self) -> str:
        """How it comes that the window's topic is not there, empty where it is."""
        window = self._window
        if not window.ranges:
            return ""
        facts = self._cluster.find(window.topic)
        if facts is None:
            return f"topic {window.topic!r} does not exist any more"
        if facts.id != window.topic_id:
            return (
                f"topic {window.topic!r} was deleted and created again since the window was planned "
                f"(topic id {facts.id}, planned {window.topic_id})"
            )
        highest = max(r.partition for r in window.ranges)
        return f"topic {window.topic!r} has {facts.partitions} partitions, planned {highest + 1}" if facts.partitions <= highest else ""

    def seek(self, positions: dict[int, int], read: dict[int, int], lost: Sequence[PartitionRange] = ()) -> None:
        """Begin (or begin again) at these offsets, with this many records read and these lost; ranges without one begin at their start.

        Raises DataLossError where the topic, or records from there on, have been deleted already.
        """
        self.close()
        self.skipped = self.late = 0
        self.read = dict(read)
        self.lost = list(lost or self._window.lost)
        self.positions = {r.partition: positions.get(r.partition, r.start) for r in self._window.ranges}
        self._todo = {r.partition: r for r in self._window.ranges if self.positions[r.partition] < r.end}
        if not self._todo:
            return
        self._gone = False
        gone = self._topic_gone()
        if gone and not self._accept_loss:
            self.check_topic()
        self._begun, self._gone = True, bool(gone)
        starts = {p: r.end for p, r in self._todo.items()} if gone else self._cluster.log_start(self._window.topic, self._todo)
        for p, r in list(self._todo.items()):
            if starts[p] > self.positions[p]:
                self._lose(r, min(starts[p], r.end), gone or "deleted by retention")
                if p not in self._todo:
                    self._check_count(r)
        if self._todo:
            self._consumer = BoundedConsumer(self._config, self._cluster, self._window.topic)
            self._consumer.start({p: self.positions[p] for p in self._todo})

    def _lose(self, r: PartitionRange, end: int, why: str) -> None:
        """Go on at ``end`` without what lay before it, if that is accepted; closes the range where nothing is left of it."""
        start = self.positions[r.partition]
        if not self._accept_loss:
            raise DataLossError(
                f"window {self._window.key}: {self._window.topic}-{r.partition} offsets {start} to {end} are gone ({why}); "
                f"run it earlier or keep records longer; to go on without them: --accept-loss"
            )
        self._skip(r, end, why)

    def _skip(self, r: PartitionRange, end: int, why: str) -> None:
        start = self.positions[r.partition]
        log.warning("records skipped", extra=fields(topic=self._window.topic, partition=r.partition, start=start, end=end, why=why))
        self.positions[r.partition] = end
        if r.count < 0:
            self.lost.append(PartitionRange(r.partition, start, end))
        if end >= r.end:
            del self._todo[r.partition]

    def take_figures(self) -> tuple[int, int]:
        """Late and skipped records since the last call."""
        figures = self.late, self.skipped
        self.late = self.skipped = 0
        return figures

    @property
    def lost_records(self) -> int:
        """How many records are lost: exactly where a manifest counts them, else at most (offsets)."""
        return sum(r.count if r.count >= 0 else r.end - r.start for r in self.lost)

    @property
    def done(self) -> bool:
        """Whether every range has been read to its end."""
        return not self._todo

    def batch(self, size: int, deadline: float, stop: Callable[[], bool]) -> list[Message]:
        """Up to ``size`` of the window's next records; an empty list when all is done (``done``), or when ``stop`` says so.

        Raises DeadlineError past ``deadline`` (``time.monotonic()``), naming the partition that waits and for what.
        """
        waited_since = time.monotonic()
        while self._todo and not stop():
            if self._consumer is None:
                raise WindowError("seek() comes before batch()")
            got = self._consumer.take(size, self._poll)
            if got and (records := self._take(got)):
                return records
            now = time.monotonic()
            if now > deadline:
                raise DeadlineError(
                    f"window {self._window.key}: {self._waiting()}: out of time; what is committed stays, a retry goes on from there"
                )
            if got:
                waited_since = now if any(m.error() is None for m in got) else waited_since
            if now - waited_since > _LEAST_WAIT and now - waited_since > self._longest_transaction() + _MARGIN:
                raise DeadlineError(
                    f"window {self._window.key}: {self._waiting()}: longer than any transaction may stay open; "
                    f"is a producer hanging, or the broker down?"
                )
        return []

    def look(self, size: int) -> list[Message]:
        """Up to ``size`` of the window's next records that have come already."""
        if self._consumer is None:
            raise WindowError("seek() comes before look()")
        got = self._consumer.take(size, 0.0) if self._todo else []
        return self._take(got) if got else []

    def _longest_transaction(self) -> float:
        if self._longest is None:
            self._longest = int(self._cluster.broker_setting("transaction.max.timeout.ms", "900000")) / 1000
        return self._longest

    def _waiting(self) -> str:
        """Which partition is waited for, and for what."""
        p, r = next(iter(self._todo.items()))
        where = f"{self._window.topic}-{p} stands at {self.positions[p]} of {r.end}"
        try:
            stable = self._cluster.stable_offset(self._window.topic, [p])[p]
            end = self._cluster.high_watermark(self._window.topic, [p])[p]
        except FactoryError as error:
            return f"{where} ({error})"
        if end < r.end:
            return f"{where}, but its log ends at {end}: the broker lost what lay past that"
        if stable < r.end:
            return f"{where}, waiting for the transaction to end that has been open since offset {stable}"
        return f"{where}, still reading"

    def _take(self, got: list[Message]) -> list[Message]:
        """The window's own records among what was consumed; closes ranges that have come to their end."""
        return got if self._take_whole(got) else self._take_each(got)

    def _take_whole(self, got: list[Message]) -> bool:
        """The usual batch, without a look at each record's offset: every one a record of this window, none the last of its range.

        A partition's records come in order, so its last one tells of all. False where anything is different; nothing is done then.
        """
        last = {m.partition(): m for m in got}
        for p, m in last.items():
            r = self._todo.get(p)
            if r is None or m.error() is not None or m.offset() >= r.end - 1:
                return False
        if any(map(_error, got)) or not self._all_written(got):
            return False
        if late_before := self._late_before:
            self.late += sum(m.timestamp()[1] < late_before for m in got)
        for p, count in Counter(map(_partition, got)).items():
            self.positions[p] = last[p].offset() + 1
            self.read[p] = self.read.get(p, 0) + count
        return True

    def _all_written(self, got: Sequence[Message]) -> bool:
        """Whether each record's header names a writer of this window, and few records have any other one: those are ``carriers``."""
        writers = self._writers
        carriers: list[Message] = []
        self.carriers = None
        try:
            for m in got if writers else ():
                headers = headers_of(m)
                if not headers or len(headers) != 1 or headers[0][1] not in writers or headers[0][0] != WRITER_HEADER:
                    if len(carriers) >= _MOST_CARRIERS or not _written_by(m, writers):
                        return False
                    carriers.append(m)
        except UNREADABLE_HEADERS:
            drop_headers(m)
            return False
        if writers:
            self.carriers = carriers
        return True

    def _take_each(self, got: Sequence[Message]) -> list[Message]:
        self.carriers = None
        todo, positions, writers, late_before = self._todo, self.positions, self._writers, self._late_before
        read = self.read
        records: list[Message] = []
        append = records.append
        closed: list[int] = []
        for m in got:
            partition = m.partition()
            r = todo.get(partition)
            if r is None:
                continue
            if m.error() is not None:
                if self._failed(m, r):
                    closed.append(partition)
                    todo.pop(partition, None)
                continue
            offset = m.offset()
            if offset < r.end:
                positions[partition] = offset + 1
                if writers and not _written_by(m, writers):
                    self.skipped += 1
                else:
                    append(m)
                    read[partition] = read.get(partition, 0) + 1
                    if late_before and m.timestamp()[1] < late_before:
                        self.late += 1
            if offset >= r.end - 1:
                positions[partition] = r.end
                closed.append(partition)
                del todo[partition]
        if closed:
            self._close_ranges(closed)
        return records

    def _failed(self, m: Message, r: PartitionRange) -> bool:
        """Handle a consumer event that is no record; True where it closes the range."""
        error = m.error()
        if error is None:
            return False
        if error.code() == KafkaError._PARTITION_EOF:
            if m.offset() >= r.end:
                self.positions[r.partition] = r.end
                return True
            return False
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            return self._out_of_range(r)
        if error.code() in UNREADABLE:
            return self._unreadable(r)
        if error.code() in TOPIC_CHANGED:
            self.check_topic()  # where it is only the client's metadata that are behind, it goes on by itself
            return False
        if is_transient(error):
            return False
        raise kafka_error(error, f"reading {self._window.topic}-{r.partition}", topic=f"READ on topic {self._window.topic!r}")

    def _out_of_range(self, r: PartitionRange) -> bool:
        """The broker has no such offset (any more): go on after what is lost, if that is accepted."""
        self.check_topic()
        p, topic = r.partition, self._window.topic
        if (start := self._cluster.log_start(topic, [p])[p]) > self.positions[p]:
            self._lose(r, min(start, r.end), "deleted while being read")
        elif (end := self._cluster.high_watermark(topic, [p])[p]) < self.positions[p]:
            self._lose(r, r.end, f"the broker lost what lay past {end}")
        return self._go_on(p)

    def _unreadable(self, r: PartitionRange) -> bool:
        """A batch that the client can't read beside others: alone, if it can; else go on behind it, if that is accepted.

        Where a manifest counts its records, a batch of anybody else's is no loss.
        """
        try:
            if self._consumer is not None:
                self._consumer.read_alone(r.partition)
            return False
        except UnreadableBatchError as error:
            if r.count < 0 and not self._accept_loss:
                raise
            self._skip(r, min(error.end, r.end), str(error))
        return self._go_on(r.partition)

    def _go_on(self, p: int) -> bool:
        """Read a partition on from its position, if there is more of it; True where there isn't."""
        if p not in self._todo:
            return True
        if self._consumer is not None:  # a partition in this state refuses seek()
            self._consumer.stop([p])
            self._consumer.start({p: self.positions[p]})
        return False

    def _close_ranges(self, closed: Sequence[int]) -> None:
        if self._consumer is not None and self._todo:
            self._consumer.stop(closed)
        for r in self._window.ranges:
            if r.partition in closed:
                self._check_count(r)

    def _check_count(self, r: PartitionRange) -> None:
        """A range has come to its end: as many records as its manifest says, or an error."""
        read = self.read.get(r.partition, 0)
        missing = r.count - read
        if r.count < 0 or missing == 0:
            return
        if missing < 0:
            raise ForgedRecordError(
                f"window {self._window.key}: {self._window.topic}-{r.partition} offsets {r.start} to {r.end} hold {read} records that name "
                f"their writer, its manifest says {r.count}: {-missing} are somebody else's under its name; let nobody but the stage "
                f"before write to this topic, and run that stage again (clear it, or --rerun redo)"
            )
        if not self._accept_loss:
            raise DataLossError(
                f"window {self._window.key}: {self._window.topic}-{r.partition} offsets {r.start} to {r.end} hold {read} records of their "
                f"writer, its manifest says {r.count}: {missing} are gone (retention or compaction); "
                f"run the stage before again, or --accept-loss"
            )
        log.warning("loss accepted", extra=fields(topic=self._window.topic, partition=r.partition, missing=missing))
        self.lost.append(PartitionRange(r.partition, r.start, r.end, missing))

    def close(self) -> None:
        """Disconnect."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None


def _written_by(message: Message, writers: frozenset[bytes]) -> bool:
    for name, value in readable_headers(message):
        if name == WRITER_HEADER:
            return value in writers
    return False
