"""``run_live``: a transform in a consumer group, exactly once, until it is asked to stop."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid

from factory_agents import failpoints
from factory_agents.errors import ConfigurationError, FencedError, StoppedError, UnavailableError, WindowError
from factory_agents.kafka.cuts import check_names
from factory_agents.kafka.group import GroupReader
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
    accept_loss: bool = False,
) -> Counts:
    """Handle what arrives, from the group's position (at first: the earliest record), outputs and positions in one transaction.

    Returns the counts when ``context.stop`` says so. Raises DataLossError where records that the group has not read are gone (the topic was
    recreated, retention was faster), unless ``accept_loss``; and another FactoryError where it cannot go on. Nothing is lost or doubled by
    starting it again.
    """
    check_names(group=group, prefix=prefix)
    if transform.stateful:
        raise WindowError(f"agent {transform.name!r} judges a whole window and cannot run live; give it a window (--since, --until)")
    live = _Live(context, transform, in_topic, out_topic, group, dead_letter_topic, prefix, accept_loss=accept_loss)
    try:
        return live.run()
    finally:
        live.close()


class _Live:
    """One member of the group. An aborted transaction takes a new producer and goes back to where the group stands."""

    def __init__(
        self,
        context: RunContext,
        transform: Transform,
        in_topic: str,
        out_topic: str,
        group: str,
        dead_letter_topic: str,
        prefix: str,
        *,
        accept_loss: bool,
    ) -> None:
        self.context, self.transform, self.group = context, transform, group
        self.cluster = Cluster(context.config)
        self.reader = GroupReader(context.config, self.cluster, in_topic, group, accept_loss=accept_loss)
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
            Origin(group, "live", transform.name, transform.version, input_topic=in_topic, input_partitions=self.reader.topic.partitions),
            output=out_topic,
            dead=dead_letter_topic,
        )
        self.outputs.sign(f"live/{group}/0")
        self.counts, self.uncommitted = Counts(), Counts()
        self.positions: dict[int, int] = {}
        self.batch = BatchSize()
        self.chunk = _LARGEST_CHUNK
        self.aborts = 0
        self.began = 0.0
        self.in_chunk = 0
        self.thread = AgentThread(transform.name)

    def close(self) -> None:
        """Leave the group; an open transaction is ended without its outputs."""
        self._forget()
        with contextlib.suppress(FencedError):
            self.writer.abort()
        self.reader.close()
        self.thread.close(self.transform.close)
        self.cluster.close()

    def run(self) -> Counts:
        """Until asked to stop."""
        self.outputs.resolve()
        self.reader.subscribe(came=self._on_assign, going=self._on_revoke, gone=self._on_lost)
        log.info(
            "live",
            extra=fields(
                agent=self.transform.name,
                group=self.group,
                topic=self.reader.topic.name,
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
        self.counts.lost = self.reader.lost
        return self.counts

    def _step(self) -> None:
        if not self.writer.is_open:
            self.writer.open(time.monotonic() + _PATIENCE)
        if self.reader.waiting:
            self._commit()  # what is handled is not read again
        messages = self.reader.batch(max(1, min(self.batch.records, self.chunk - self.in_chunk)), _POLL)
        if messages:
            if not self.positions:
                self.began = time.monotonic()
            began = time.monotonic()
            outputs = self.thread.call(lambda: process(self.transform, messages), self._meanwhile)
            self.batch.took(time.monotonic() - began)
            self.in_chunk += len(messages)
            self.outputs.put(messages, outputs, self.uncommitted)
            self.positions |= {m.partition(): m.offset() + 1 for m in messages}
        self.positions |= self.reader.passed(self.positions)  # so that the lag is none when all is read
        if not messages or time.monotonic() - self.began > _COMMIT_SECONDS or self.in_chunk >= self.chunk:
            self._commit()

    def _meanwhile(self) -> None:
        """While the agent is busy: commit what is handled, and leave what it has in hand to the next start when asked to stop."""
        if self.positions and (self.context.stop() or self.writer.age > self.writer.timeout_ms / 3000):
            self._commit()
        if self.context.stop():
            raise StoppedError(f"group {self.group!r}: asked to stop")

    def _commit(self) -> None:
        """Outputs and positions become visible together."""
        if not self.positions:
            return
        deadline = time.monotonic() + _PATIENCE
        self.writer.begin()
        self.writer.flush(deadline)
        failpoints.hit("live.before-offsets")
        self._check_topic(deadline)
        self.writer.send_offsets(self.reader.offsets(self.positions), self.reader.membership)
        self.writer.commit(deadline)
        self.reader.committed(self.positions)
        self.counts.add(self.uncommitted)
        self._forget()
        self.aborts = 0
        self.chunk = min(_LARGEST_CHUNK, self.chunk * 2)
        self.context.observer(self.group, self.counts.consumed, -1, self.counts)

    def _check_topic(self, deadline: float) -> None:
        """See ``GroupReader.check_topic``; a broker that is away is waited for."""
        while True:
            try:
                self.reader.check_topic()
                return
            except UnavailableError:
                if time.monotonic() > deadline or self.context.stop():
                    raise

    def _forget(self) -> None:
        self.outputs.forget()
        self.uncommitted, self.positions, self.in_chunk = Counts(), {}, 0

    def _drop(self) -> None:
        """End the open transaction without its outputs; all that was read and not committed is read again, by whoever has it then.

        A fenced producer has outlived its timeout: nobody else has this transactional id.
        """
        self._forget()
        self.reader.rewind()
        with contextlib.suppress(FencedError):
            self.writer.abort()

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

    def _on_assign(self, partitions: set[int]) -> None:
        log.info("partitions assigned", extra=fields(group=self.group, partitions=sorted(partitions)))

    def _on_revoke(self, partitions: set[int]) -> None:
        """Commit before another member goes on from the committed positions."""
        try:
            self._commit()
        except (ChunkAbortedError, FencedError) as error:
            log.warning("not committed before the partitions went; their new owner reads those records", extra=fields(reason=str(error)))
            self._drop()
        except BaseException:
            self._drop()  # the partitions go all the same: nothing may commit a position of theirs any more
            raise

    def _on_lost(self, partitions: set[int]) -> None:
        """Partitions went without asking: what is not committed is their new owner's."""
        self._drop()
