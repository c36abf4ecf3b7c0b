"""Reads exactly the records of a window: committed, complete, and only its writers'."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from confluent_kafka import Consumer, KafkaError, TopicPartition

from factory_agents.errors import DataLossError, DeadlineError, WindowError
from factory_agents.kafka.config import KafkaConfig, kafka_error
from factory_agents.kafka.messages import Message
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import PartitionRange, Window
from factory_agents.telemetry import fields

__all__ = ["WRITER_HEADER", "WindowReader"]

log = logging.getLogger(__name__)

WRITER_HEADER = "factory-writer"
"""The one header that says whose record it is: ``stage/fingerprint/generation``."""

_MARGIN = 30.0


class WindowReader:
    """Yields a window's records in batches, per partition in order, each range to its end or an error.

    ``positions`` are the offsets to go on from; ``read`` counts the window's own records per partition so far. What is not there any more is an error, or with ``accept_loss`` skipped and noted in ``lost``.
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
        self._consumer: Consumer | None = None
        self._longest: float | None = None
        self._todo: dict[int, PartitionRange] = {}
        self.positions: dict[int, int] = {}
        self.read: dict[int, int] = {}
        self.lost: list[PartitionRange] = list(window.lost)
        self.skipped = 0
        self.late = 0

    def check_topic(self) -> None:
        """Raise DataLossError where the topic is not the one that was planned, or has fewer partitions."""
        facts = self._cluster.find(self._window.topic)
        highest = max((r.partition for r in self._window.ranges), default=-1)
        if facts is None:
            raise DataLossError(
                f"topic {self._window.topic!r} of the window {self._window.key} does not exist any more: its records are lost"
            )
        if facts.id != self._window.topic_id or facts.partitions <= highest:
            raise DataLossError(
                f"topic {self._window.topic!r} was deleted and created again since window {self._window.key} was planned (topic id {facts.id}, planned "
                f"{self._window.topic_id}): the window's records are lost; plan anew, or go on without them with --accept-loss"
            )

    def seek(self, positions: dict[int, int], read: dict[int, int]) -> None:
        """Begin (or begin again) at these offsets, with this many records read; ranges without one begin at their start.

        Raises DataLossError where records from there on have been deleted already.
        """
        self.close()
        self.skipped = self.late = 0
        self.read = dict(read)
        self.lost = list(self._window.lost)
        todo = {r.partition: r for r in self._window.ranges if positions.get(r.partition, r.start) < r.end}
        self.positions = {r.partition: positions.get(r.partition, r.start) for r in self._window.ranges}
        starts = self._cluster.log_start(self._window.topic, todo) if todo else {}
        for p, r in todo.items():
            if starts[p] > self.positions[p]:
                self._lose(r, self.positions[p], min(starts[p], r.end), "deleted by retention")
                self.positions[p] = min(starts[p], r.end)
        self._todo = {p: r for p, r in todo.items() if self.positions[p] < r.end}
        if self._todo:
            self._consumer = self._config.consumer()
            self._consumer.assign([TopicPartition(self._window.topic, p, self.positions[p]) for p in self._todo])

    def _lose(self, r: PartitionRange, start: int, end: int, why: str) -> None:
        where = f"{self._window.topic}-{r.partition} offsets {start} to {end}"
        if not self._accept_loss:
            raise DataLossError(
                f"window {self._window.key}: {where} are gone ({why}); run it earlier or keep records longer; to go on without them: --accept-loss"
            )
        log.warning("loss accepted", extra=fields(topic=self._window.topic, partition=r.partition, start=start, end=end, why=why))
        self.lost.append(PartitionRange(r.partition, start, end))

    def take_figures(self) -> tuple[int, int]:
        """Late and skipped records since the last call."""
        figures = self.late, self.skipped
        self.late = self.skipped = 0
        return figures

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
            got = cast("list[Message]", self._consumer.consume(size, self._poll))
            if got and (records := self._take(got)):
                return records
            now = time.monotonic()
            if now > deadline:
                raise DeadlineError(
                    f"window {self._window.key}: {self._waiting()}: out of time; what is committed stays, a retry goes on from there"
                )
            if got:
                waited_since = now if any(m.error() is None for m in got) else waited_since
            if now - waited_since > 5.0 and now - waited_since > self._longest_transaction() + _MARGIN:
                raise DeadlineError(
                    f"window {self._window.key}: {self._waiting()}: longer than any transaction may stay open; is a producer hanging, or the broker down?"
                )
        return []

    def _longest_transaction(self) -> float:
        if self._longest is None:
            self._longest = int(self._cluster.broker_setting("transaction.max.timeout.ms", "900000")) / 1000
        return self._longest

    def _waiting(self) -> str:
        p, r = next(iter(self._todo.items()))
        return f"{self._window.topic}-{p} stands at {self.positions[p]} of {r.end}, waiting for an open transaction to end"

    def _take(self, got: Sequence[Message]) -> list[Message]:
        """The window's own records among what was consumed; closes ranges that have come to their end."""
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
                    del todo[partition]
                continue
            offset = m.offset()
            if offset < r.end:
                positions[partition] = offset + 1
                if writers and not _written_by(m.headers(), writers):
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
        if error.retriable() or error.code() in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT):
            return False
        raise kafka_error(error, f"reading {self._window.topic}-{r.partition}")

    def _out_of_range(self, r: PartitionRange) -> bool:
        self.check_topic()
        start, position = self._cluster.log_start(self._window.topic, [r.partition])[r.partition], self.positions[r.partition]
        self._lose(r, position, min(max(start, position + 1), r.end), "deleted while being read")
        self.positions[r.partition] = min(max(start, position + 1), r.end)
        if self.positions[r.partition] >= r.end:
            return True
        if self._consumer is not None:
            self._consumer.seek(TopicPartition(self._window.topic, r.partition, self.positions[r.partition]))
        return False

    def _close_ranges(self, closed: Iterable[int]) -> None:
        partitions = list(closed)
        if self._consumer is not None and self._todo:
            self._consumer.incremental_unassign([TopicPartition(self._window.topic, p) for p in partitions])
        for p in partitions:
            r = next(r for r in self._window.ranges if r.partition == p)
            if r.count >= 0 and self.read.get(p, 0) < r.count:
                missing = r.count - self.read.get(p, 0)
                if self._accept_loss:
                    self.lost.append(PartitionRange(p, r.start, r.end, missing))
                    continue
                raise DataLossError(
                    f"window {self._window.key}: {self._window.topic}-{p} offsets {r.start} to {r.end} hold {self.read.get(p, 0)} records of their writer, "
                    f"its manifest says {r.count}: {missing} are gone (retention or compaction); run the stage before again, or --accept-loss"
                )

    def close(self) -> None:
        """Disconnect."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None


def _written_by(headers: Sequence[tuple[str, bytes | None]] | None, writers: frozenset[bytes]) -> bool:
    if headers:
        for name, value in headers:
            if name == WRITER_HEADER:
                return value in writers
    return False
