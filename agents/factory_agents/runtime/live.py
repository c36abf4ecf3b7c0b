"""``run_live``: a transform in a consumer group, exactly once, until it is asked to stop."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from typing import cast

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from factory_agents import failpoints
from factory_agents.errors import ConfigurationError, FencedError, StoppedError, WindowError
from factory_agents.kafka.config import kafka_error, passing
from factory_agents.kafka.cuts import check_names
from factory_agents.kafka.messages import Message
from factory_agents.kafka.topics import Cluster
from factory_agents.kafka.writer import ChunkAbortedError, TransactionalWriter
from factory_agents.protocol import Counts, transactional_id
from factory_agents.runtime.agent_thread import AgentThread
from factory_agents.runtime.agents import Transform
from factory_agents.runtime.outputs import Origin, Outputs
from factory_agents.runtime.session import RunContext
from factory_agents.runtime.window import BatchSize, process
from factory_agents.telemetry import fields

__all__ = ["default_group", "run_live"]

log = logging.getLogger(__name__)

_POLL, _COMMIT_SECONDS = 0.1, 0.2
_LARGEST_CHUNK, _MOST_ABORTS = 100_000, 10
_PATIENCE = 60.0
_TIMEOUT_MS = 15_000
"""A transaction's timeout: until it is over, what a killed member left open holds its successor and all readers up."""


def default_group(agent: str, topic: str) -> str:
    """The consumer group of a live agent: ``factory.<agent>.<in-topic>``."""
    return f"factory.{agent}.{topic}"


def run_live(
    context: RunContext,
    transform: Transform,
    *,
    in_topic: str,
    out_topic: str,
    group: str,
    dead_letter_topic: str = "",
    prefix: str = "factory",
) -> Counts:
    """Handle what arrives, from the group's position (at first: the earliest record), outputs and positions in one transaction.

    Returns the counts when ``context.stop`` says so. Raises a FactoryError where it cannot go on; nothing is lost or doubled by starting
    it again.
    """
    check_names(group=group, prefix=prefix)
    if transform.stateful:
        raise WindowError(f"agent {transform.name!r} judges a whole window and cannot run live; give it a window (--since, --until)")
    live = _Live(context, transform, in_topic, out_topic, group, dead_letter_topic, prefix)
    try:
        return live.run()
    finally:
        live.close()


class _Live:
    """One member of the group. An aborted transaction takes a new producer and goes back to the group's committed position."""

    def __init__(
        self,
        context: RunContext,
        transform: Transform,
        in_topic: str,
        out_topic: str,
        group: str,
        dead_letter_topic: str,
        prefix: str,
    ) -> None:
        self.context, self.transform, self.in_topic, self.group = context, transform, in_topic, group
        self.cluster = Cluster(context.config)
        partitions = self.cluster.topic(in_topic).partitions
        self.writer = TransactionalWriter(
            context.config,
            transactional_id(prefix, "live", group, uuid.uuid4().hex),
            known_topic=in_topic,
            timeout_ms=int(context.config.values.get("transaction.timeout.ms", _TIMEOUT_MS)),
            stop=context.stop,
        )
        self.outputs = Outputs(
            self.cluster,
            self.writer,
            Origin(group, "live", transform.name, transform.version, input_topic=in_topic, input_partitions=partitions),
            output=out_topic,
            dead=dead_letter_topic,
        )
        self.outputs.sign(f"live/{group}/0")
        self.counts, self.uncommitted = Counts(), Counts()
        self.positions: dict[int, int] = {}
        self.committed: dict[int, int] = {}
        self.ends: dict[int, int] = {}  # where partitions ended when read to their end: past the last transaction's marker
        self.assigned: set[int] = set()
        self.batch = BatchSize()
        self.chunk = _LARGEST_CHUNK
        self.aborts = 0
        self.began = 0.0
        self.in_chunk = 0
        self.thread = AgentThread(transform.name)
        self.consumer: Consumer = context.config.consumer(
            group_id=group, auto_offset_reset="earliest", partition_assignment_strategy="cooperative-sticky"
        )

    def close(self) -> None:
        """Leave the group; an open transaction is ended without its outputs."""
        with contextlib.suppress(FencedError):
            self.writer.abort()
        self.positions = {}
        self.consumer.close()
        self.thread.close(self.transform.close)
        self.cluster.close()

    def run(self) -> Counts:
        """Until asked to stop."""
        self.outputs.resolve()
        self.writer.open(time.monotonic() + _PATIENCE)
        self.consumer.subscribe([self.in_topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)
        log.info(
            "live",
            extra=fields(
                agent=self.transform.name,
                group=self.group,
                topic=self.in_topic,
                output=self.outputs.output and self.outputs.output.name,
            ),
        )
        while not self.context.stop():
            try:
                self._step()
            except (ChunkAbortedError, FencedError) as error:
                self._recover(error)
            except StoppedError:
                break
        try:
            self._commit()
        except (ChunkAbortedError, FencedError, StoppedError) as error:
            log.warning("the last records are not committed; the next start reads them again", extra=fields(reason=str(error)))
        return self.counts

    def _step(self) -> None:
        size = max(1, min(self.batch.records, self.chunk - self.in_chunk))
        messages = [m for m in cast("list[Message]", self.consumer.consume(size, _POLL)) if self._is_record(m)]
        if messages:
            if not self.positions:
                self.began = time.monotonic()
            began = time.monotonic()
            outputs = self.thread.call(lambda: process(self.transform, messages), self._meanwhile)
            self.batch.took(time.monotonic() - began)
            self.in_chunk += len(messages)
            self.outputs.put(messages, outputs, self.uncommitted)
            self.positions |= {m.partition(): m.offset() + 1 for m in messages}
        self._pass_markers()
        if not messages or time.monotonic() - self.began > _COMMIT_SECONDS or self.in_chunk >= self.chunk:
            self._commit()

    def _pass_markers(self) -> None:
        """Go past the markers that end a partition, so that its lag is none when all is read."""
        for partition, end in self.ends.items():
            if partition in self.assigned and end > max(self.committed.get(partition, 0), self.positions.get(partition, 0)):
                self.positions[partition] = end
        self.ends = {}

    def _meanwhile(self) -> None:
        """While the agent is busy: commit what is handled, and leave what it has in hand to the next start when asked to stop."""
        if self.positions and (self.context.stop() or self.writer.age > self.writer.timeout_ms / 3000):
            self._commit()
        if self.context.stop():
            raise StoppedError(f"group {self.group!r}: asked to stop")

    def _is_record(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return message.partition() in self.assigned  # a rebalance may take partitions away within one call of consume
        if error.code() == KafkaError._PARTITION_EOF:
            self.ends[message.partition()] = message.offset()
            return False
        if passing(error):
            return False
        raise kafka_error(error, f"reading {self.in_topic}")

    def _commit(self) -> None:
        """Outputs and positions become visible together."""
        if not self.positions:
            return
        deadline = time.monotonic() + _PATIENCE
        self.writer.begin()
        self.writer.flush(deadline)
        failpoints.hit("live.before-offsets")
        offsets = [TopicPartition(self.in_topic, p, o) for p, o in self.positions.items()]
        self.writer.send_offsets(offsets, self.consumer.consumer_group_metadata())
        self.writer.commit(deadline)
        self.counts.add(self.uncommitted)
        self.committed |= self.positions
        self._forget()
        self.aborts = 0
        self.chunk = min(_LARGEST_CHUNK, self.chunk * 2)
        self.context.observer(self.group, self.counts.consumed, -1, self.counts)

    def _forget(self) -> None:
        self.outputs.forget()
        self.uncommitted, self.positions, self.in_chunk = Counts(), {}, 0

    def _drop(self) -> None:
        """End the open transaction without its outputs and take a new producer.

        A fenced one has outlived its timeout: nobody else has this transactional id.
        """
        with contextlib.suppress(FencedError):
            self.writer.abort()
        self._forget()
        self.ends = {}
        self.writer.open(time.monotonic() + _PATIENCE)

    def _recover(self, error: ChunkAbortedError | FencedError) -> None:
        """Go back to the committed position; a refused record is halved down to, and dead-lettered, as in a window."""
        self.aborts += 1
        if isinstance(error, ChunkAbortedError) and error.refused:
            if not self.outputs.condemn(error, alone=self.in_chunk <= 1):
                if self.in_chunk <= 1:
                    raise ConfigurationError(f"group {self.group!r}: a record is refused: {error}") from error
                self.chunk = max(1, min(self.chunk, self.in_chunk) // 2)
        elif self.aborts >= _MOST_ABORTS:
            raise error.cause if isinstance(error, ChunkAbortedError) else error
        log.warning("transaction aborted, going back to the committed position", extra=fields(reason=str(error), records=self.chunk))
        self._drop()
        try:
            positions = self.consumer.committed(self.consumer.assignment(), timeout=_TIMEOUT_MS / 1000 * 2)
            for tp in positions:
                start = tp.offset if tp.offset >= 0 else self.cluster.log_start(tp.topic, [tp.partition])[tp.partition]
                self._seek(TopicPartition(tp.topic, tp.partition, start))
        except KafkaException as failure:
            raise kafka_error(failure, f"group {self.group!r}: going back to the committed position") from failure

    def _seek(self, to: TopicPartition) -> None:
        try:
            self.consumer.seek(to)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._STATE:  # not begun to be read: it begins at the committed position by itself
                raise

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.assigned |= {tp.partition for tp in partitions}
        self.committed = {p: o for p, o in self.committed.items() if p not in {tp.partition for tp in partitions}}
        log.info("partitions assigned", extra=fields(group=self.group, partitions=[tp.partition for tp in partitions]))

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Commit before another member goes on from the committed positions."""
        self.assigned -= {tp.partition for tp in partitions}
        try:
            self._commit()
        except (ChunkAbortedError, FencedError) as error:
            log.warning("not committed before the partitions went; their new owner reads those records", extra=fields(reason=str(error)))
            self._drop()

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Partitions went without asking: what is not committed is their new owner's."""
        self.assigned -= {tp.partition for tp in partitions}
        self._drop()
