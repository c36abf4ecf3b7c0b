"""``run_live``: a transform in a consumer group, exactly once, until it is asked to stop."""

from __future__ import annotations

import logging
import time
import uuid
from typing import cast

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from factory_agents.errors import FencedError, WindowError
from factory_agents.kafka.config import kafka_error
from factory_agents.kafka.cuts import check_names
from factory_agents.kafka.messages import Message
from factory_agents.kafka.topics import Cluster
from factory_agents.kafka.writer import ChunkAbortedError, TransactionalWriter
from factory_agents.protocol import Counts
from factory_agents.runtime.agents import Transform
from factory_agents.runtime.outputs import Origin, Outputs
from factory_agents.runtime.session import RunContext
from factory_agents.telemetry import fields

__all__ = ["default_group", "run_live"]

log = logging.getLogger(__name__)

_POLL, _BATCH, _COMMIT_SECONDS = 0.1, 10_000, 0.2


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
    """Handle what arrives, from the group's position (at first: the earliest record), each record's outputs and position in one transaction.

    Returns the counts when ``context.stop`` says so. Raises a FactoryError where it cannot go on; nothing is lost or doubled by starting it again.
    """
    check_names(group=group, prefix=prefix)
    if transform.stateful:
        raise WindowError(f"agent {transform.name!r} judges a whole window and cannot run live; give it a window (--since, --until)")
    live = _Live(context, transform, in_topic, out_topic, group, dead_letter_topic, prefix)
    try:
        return live.run()
    finally:
        live.close()
        transform.close()


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
        self.writer = TransactionalWriter(context.config, f"{prefix}.live.{group}.{uuid.uuid4().hex}")
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
        self.began = 0.0
        self.consumer: Consumer = context.config.consumer(
            group_id=group, auto_offset_reset="earliest", partition_assignment_strategy="cooperative-sticky"
        )

    def close(self) -> None:
        """Leave the group; an open transaction is ended without its outputs."""
        self.writer.abort()
        self.consumer.close()

    def run(self) -> Counts:
        """Until asked to stop."""
        self.outputs.resolve()
        self.writer.open(time.monotonic() + 60)
        self.consumer.subscribe([self.in_topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
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
            except ChunkAbortedError as aborted:
                log.warning("transaction aborted, going back to the committed position", extra=fields(reason=str(aborted.cause)))
                self._recover()
        self._commit()
        return self.counts

    def _step(self) -> None:
        messages = [m for m in cast("list[Message]", self.consumer.consume(_BATCH, _POLL)) if self._is_record(m)]
        if messages:
            if not self.positions:
                self.began = time.monotonic()
            self.outputs.put(messages, self.transform.process(messages), self.uncommitted)
            for m in messages:
                self.positions[m.partition()] = m.offset() + 1
        if self.positions and (not messages or time.monotonic() - self.began > _COMMIT_SECONDS or self.uncommitted.consumed >= 100_000):
            self._commit()

    def _is_record(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return True
        if (
            error.code() == KafkaError._PARTITION_EOF
            or error.retriable()
            or error.code() in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN)
        ):
            return False
        raise kafka_error(error, f"reading {self.in_topic}")

    def _commit(self) -> None:
        """Outputs and positions become visible together."""
        if not self.positions:
            return
        deadline = time.monotonic() + 60
        self.writer.begin()
        self.writer.flush(deadline)
        offsets = [TopicPartition(self.in_topic, p, o) for p, o in self.positions.items()]
        try:
            self.writer.producer.send_offsets_to_transaction(offsets, self.consumer.consumer_group_metadata(), 30)
        except KafkaException as error:
            raise ChunkAbortedError(kafka_error(error, "committing positions"), refused=False) from error
        self.writer.commit(deadline)
        self.outputs.forget()
        self.counts.add(self.uncommitted)
        self.uncommitted, self.positions = Counts(), {}
        self.context.observer(self.group, self.counts.consumed, -1, self.counts)

    def _drop(self) -> None:
        """End the open transaction without its outputs and take a new producer."""
        self.writer.abort()
        self.outputs.forget()
        self.uncommitted, self.positions = Counts(), {}
        self.writer.open(time.monotonic() + 60)

    def _recover(self) -> None:
        self._drop()
        assigned = self.consumer.assignment()
        for tp in self.consumer.committed(assigned, timeout=30):
            self.consumer.seek(
                tp
                if tp.offset >= 0
                else TopicPartition(tp.topic, tp.partition, self.cluster.log_start(tp.topic, [tp.partition])[tp.partition])
            )

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        log.info("partitions assigned", extra=fields(group=self.group, partitions=[tp.partition for tp in partitions]))

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Commit before another member goes on from the committed positions."""
        try:
            self._commit()
        except (ChunkAbortedError, FencedError) as error:
            log.warning("not committed before the partitions went; their new owner reads those records", extra=fields(reason=str(error)))
            self._drop()

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Partitions went without asking: what is not committed is their new owner's."""
        self._drop()
