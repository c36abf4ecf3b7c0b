"""``run_live``: a transform in a consumer group, exactly once, until it is asked to stop."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from factory_agents import failpoints
from factory_agents.errors import FencedError, StoppedError, UnavailableError, WindowError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.group import GroupReader
from factory_agents.kafka.messages import Message
from factory_agents.kafka.predecessors import Predecessors
from factory_agents.kafka.records import check_names
from factory_agents.kafka.routes import shadow_group
from factory_agents.kafka.shadow_group import ShadowReader
from factory_agents.kafka.topics import Cluster
from factory_agents.kafka.writer import ChunkAbortedError, TransactionalWriter
from factory_agents.protocol import CodecRef, Counts, transactional_id
from factory_agents.runtime.agent_thread import AgentThread
from factory_agents.runtime.agents import Output, SideLog, Transform
from factory_agents.runtime.backpressure import Downstream
from factory_agents.runtime.chunk import Chunk
from factory_agents.runtime.codecs import OpenCodec, open_codec
from factory_agents.runtime.dependencies import InterruptedBatchError, breakers
from factory_agents.runtime.outputs import Origin, Outputs, reject_large
from factory_agents.runtime.session import RunContext
from factory_agents.runtime.side_by_side import SideBySide
from factory_agents.runtime.window import SIDE_SECONDS, BatchSize, failing_agent, process
from factory_agents.telemetry import Batch, Observers, Subject, fields

__all__ = ["LiveAgent", "LiveSettings", "awaiting", "check_live", "default_group", "run_live"]

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_POLL, _COMMIT_SECONDS = 0.1, 0.2
_LARGEST_CHUNK, _MOST_ABORTS = 100_000, 10
_PATIENCE = 60.0
_LAG_SECONDS = 1.0
_AGAIN_SECONDS = 1.0
_BUSY_SECONDS = 1.0  # at one call: from then on the group is answered meanwhile
_TURN_SECONDS = 0.03  # while calls are under way, until it is looked for more records
_LEAVE_SECONDS = 10.0  # that calls have to end when the agent is stopped
_SIDE_PATIENCE = 900.0
_TIMEOUT_MS = 15_000
"""A transaction's timeout: until it is over, what a killed member left open holds its successor and all readers up."""


def default_group(agent: str, topic: str) -> str:
    """The consumer group of a live agent: ``factory.<agent>.<in-topic>``."""
    return f"factory.{agent}.{topic}"


@dataclass(frozen=True)
class LiveSettings:
    """What a live agent reads and writes, and in which group.

    With ``max_lag_downstream`` it waits while a consumer group of the output topic (or ``downstream_group`` alone) is further behind.
    ``shadow`` is the version of one that runs in the shadow of ``group``, whose position it begins at and never moves.
    """

    in_topic: str
    out_topic: str
    group: str
    dead_letter_topic: str = ""
    prefix: str = "factory"
    accept_loss: bool = False
    input_codec: CodecRef | None = None
    output_codec: CodecRef | None = None
    max_lag_downstream: int = 0
    downstream_group: str = ""
    shadow: str = ""


def run_live(context: RunContext, transform: Transform, settings: LiveSettings) -> Counts:
    """Handle what arrives, from the group's position (at first: the earliest record), outputs and positions in one transaction.

    Returns the counts when ``context.stop`` says so. Raises DataLossError where records that the group has not read are gone (the topic was
    recreated, retention was faster), unless ``accept_loss``; and another FactoryError where it cannot go on. Nothing is lost or doubled by
    starting it again.
    """
    check_live(transform, settings)
    return LiveAgent(context, transform, settings).run_until_stopped()


def check_live(transform: Transform, settings: LiveSettings) -> None:
    """Refuse what cannot run live."""
    check_names(group=settings.group, prefix=settings.prefix)
    if transform.stateful:
        raise WindowError(f"agent {transform.name!r} judges a whole window and cannot run live; give it a window (--since, --until)")


def _reader(config: KafkaConfig, cluster: Cluster, of: LiveSettings) -> GroupReader:
    if of.shadow:
        return ShadowReader(config, cluster, of.in_topic, of.group, of.shadow, accept_loss=of.accept_loss, writes=of.out_topic)
    return GroupReader(config, cluster, of.in_topic, of.group, accept_loss=of.accept_loss, writes=of.out_topic)


class LiveAgent:
    """One member of the group. An aborted transaction takes a new producer and goes back to where the group stands.

    ``part`` ends the writer's name, which every record has in a header; ``member`` the transactional id, which is random by default.
    """

    poll = _POLL

    def __init__(
        self,
        context: RunContext,
        transform: Transform,
        settings: LiveSettings,
        *,
        cluster: Cluster | None = None,
        reader: GroupReader | None = None,
        part: str = "0",
        member: str = "",
    ) -> None:
        in_topic, group = settings.in_topic, settings.group
        self.context, self.transform, self.settings, self.part = context, transform, settings, part
        self.cluster = cluster or Cluster(context.config)
        self.reader = reader or _reader(context.config, self.cluster, settings)
        if settings.shadow:
            group = shadow_group(group, settings.shadow)
        self.group, self.prefix = group, settings.prefix
        self.reader.writer = me = member or uuid.uuid4().hex
        id_of = functools.partial(transactional_id, settings.prefix, "live", group)
        self.predecessors = Predecessors(context.config, self.cluster, self.reader.group, id_of=id_of, me=me)
        self.writer = TransactionalWriter(
            context.config,
            id_of(me),
            known_topic=in_topic,
            timeout_ms=int(context.config.values.get("transaction.timeout.ms", _TIMEOUT_MS)),
            stop=context.stop,
        )
        self.outputs = Outputs(
            self.cluster,
            self.writer,
            Origin(group, "live", transform.name, transform.version, input_topic=in_topic, input_partitions=self.reader.topic.partitions),
            output=settings.out_topic,
            dead=settings.dead_letter_topic,
        )
        self.input_codec: OpenCodec | None = None
        self.counts, self.uncommitted = Counts(), Counts()
        self.positions: dict[int, int] = {}
        self.batch = BatchSize(least=transform.at_once)
        self.observer, self.subject = context.observer, Subject(group, "live", transform.name, transform.version)
        if context.traces is not None:
            self.outputs.trace = context.traces.live(self.subject, in_topic)
            self.observer = Observers(self.observer, self.outputs.trace)
        self.chunk = Chunk(
            self.writer,
            self.outputs,
            largest=_LARGEST_CHUNK,
            name=f"group {group!r}",
            observer=self.observer,
            subject=self.subject,
            most_aborts=_MOST_ABORTS,
        )
        self.lag_told = 0.0
        self.again_at = 0.0
        self.gone: set[int] = set()
        self.downstream: Downstream | None = None
        self.thread = AgentThread(transform.name)
        self.calls: SideBySide | None = getattr(transform, "side_by_side", None)
        self.share: Callable[[float], None] = getattr(transform, "share", lambda of: None)
        self.read_at = self.told_at = 0.0

    @property
    def busy_seconds(self) -> float:
        """How long the oldest call of the agent has lasted that is under way."""
        return self.thread.busy_seconds if self.calls is None else self.calls.busy_seconds

    def run_until_stopped(self) -> Counts:
        """Open what it reads and writes with, run, and close it all."""
        of = self.settings
        try:
            reading = self.input_codec = open_codec(of.input_codec, of.in_topic, writing=False)
            self.outputs.use_codecs(reading, open_codec(of.output_codec, of.out_topic, writing=True))
            self.outputs.set_writer(f"live/{self.group}/{self.part}")
            if of.max_lag_downstream and of.out_topic:
                self.downstream = Downstream(self.context.config, of.out_topic, of.max_lag_downstream, group=of.downstream_group)
            return self.run()
        except StoppedError:
            return self.counts  # before it had joined
        finally:
            self.close()

    def close(self) -> None:
        """Leave the group; an open transaction is ended without its outputs. What can't be ended keeps nothing else open."""
        with contextlib.ExitStack() as last_to_first:
            last_to_first.callback(self.cluster.close)
            for codec in filter(None, (self.outputs.codec, self.input_codec)):
                last_to_first.callback(codec.close)
            last_to_first.callback(self.thread.close, self.transform.close)
            last_to_first.callback(self.predecessors.close)
            last_to_first.callback(self.reader.close)
            last_to_first.callback(self._drop, "the agent ends")
            if self.chunk.side is not None:
                last_to_first.callback(self.chunk.side.leave)
            if self.downstream is not None:
                last_to_first.callback(self.downstream.close)

    def run(self) -> Counts:
        """Until asked to stop."""
        self.outputs.resolve()
        self._load()
        self.writer.open(time.monotonic() + _PATIENCE)  # before it joins: who joins and ends at once is missed by the group for a while
        self._open_side()
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
                self.chunk.retry(error if isinstance(error, ChunkAbortedError) else ChunkAbortedError(error, refused=False))
                self._drop(str(error))
            except StoppedError:
                break
        try:
            self._end_calls()
            self._commit()
        except (ChunkAbortedError, FencedError, StoppedError) as error:
            log.warning("the last records are not committed; the next start reads them again", extra=fields(reason=str(error)))
        self.counts.lost = self.reader.lost
        return self.counts

    def _load(self) -> None:
        """What the agent loads once a process: the group has this member when it can work."""

        def meanwhile() -> None:
            self.observer.busy(self.subject, self.thread.busy_seconds)
            if self.context.stop():
                raise StoppedError(f"group {self.group!r}: asked to stop while agent {self.transform.name!r} loads")

        load: Callable[[], None] | None = getattr(self.transform, "load", None)
        if load is not None:
            self.thread.call(load, meanwhile)

    def _open_side(self) -> None:
        """What the transform wants committed beside its outputs."""
        side: SideLog | None = getattr(self.transform, "log", None)
        if side is not None:
            until = time.monotonic() + _SIDE_PATIENCE
            self.thread.call(lambda: side.open(self.context.config, self.cluster, self.prefix, self.counts, until, self.context.stop))
            self.chunk.side = side

    def _open(self) -> None:
        """Have a producer in place of one that was given up with its transaction."""
        if not self.writer.is_open:
            self.writer.open(time.monotonic() + _PATIENCE)

    def _step(self) -> None:
        self._open()
        room = self._room()
        if time.monotonic() < self.again_at:
            self.reader.idle(self.poll)
            self._tell_lag()
            self.observer.turn(self.subject, joined=self.reader.joined)
            return
        if self.reader.waiting:
            self._commit()  # what is handled is not read again
        self.share(len(self.reader.reading) / self.reader.topic.partitions)
        is_idle = self._next_batch(room) if self.calls is None else self._move_on(self.calls, room)
        if self._is_due(is_idle=is_idle) or self.chunk.is_full or self.chunk.side_age > SIDE_SECONDS:
            self._commit()
        self._tell_lag()
        self.observer.turn(self.subject, joined=self.reader.joined)

    def _is_due(self, *, is_idle: bool) -> bool:
        """Whether it is time to commit."""
        return is_idle or self.chunk.age > _COMMIT_SECONDS

    def _next_batch(self, room: int) -> bool:
        """Handle what has come; whether nothing has."""
        messages = self.reader.batch(min(self.batch.records, self.chunk.room, room), self.poll)
        if messages:
            self._handle(messages)
        self.positions |= self.reader.passed(self.positions)  # so that the lag is none when all is read
        return not messages

    def _move_on(self, calls: SideBySide, room: int) -> bool:
        """Read what there is a place for beside the calls under way, and take what is finished; whether there is nothing of either."""
        calls.keep(self.reader.reading)  # what is read again, here or by another member, is not waited for
        if not calls.unfinished:
            self.told_at = time.monotonic()
        places, has_read = min(calls.room, room), False
        try:
            if places > 0:
                has_read = self._read_on(calls, places)
            elif time.monotonic() - self.read_at > _BUSY_SECONDS:
                self.reader.serve()
                calls.keep(self.reader.reading)
            with failing_agent(f"agent {self.transform.name!r}"):
                calls.wait(min(self.poll, _TURN_SECONDS))
        except InterruptedBatchError as interrupted:
            self._take(calls)
            self._wait([], interrupted)
            return False
        self._take(calls)
        self._watch()
        return not has_read and not calls.unfinished

    def _read_on(self, calls: SideBySide, places: int) -> bool:
        """Put what has come beside what is under way; whether anything has."""
        messages = self.reader.batch(places, 0.0 if calls.unfinished else self.poll)
        self.read_at = time.monotonic()
        calls.keep(self.reader.reading)
        read: Sequence[Message] = messages
        if messages and (codec := self.input_codec) is not None:
            read = self.thread.call(lambda: awaiting(lambda: codec.read(messages)), self._meanwhile)
        large, came = reject_large(messages), dict[int, int]()
        for message, as_read in zip(messages, read, strict=True):
            partition, after = message.partition(), message.offset() + 1
            if partition not in self.reader.reading:
                continue
            came[partition] = after
            if large is not None:
                calls.put_rejected(partition, message, large, after=after)
            else:
                calls.put(partition, [message], [as_read], after=after)
        for partition, end in self.reader.passed(self.positions | came).items():  # an end may have been seen before some of these came
            if not calls.extend(partition, end):
                self.positions[partition] = end
        return bool(messages)

    def _take(self, calls: SideBySide) -> None:
        """Put what is finished into the chunk: of each partition what comes next."""
        taken = calls.take(self.chunk.room)
        if not taken:
            return
        self.gone = set()  # nothing of theirs is taken
        messages = [message for _, piece in taken for message in piece.messages]
        now = time.monotonic()
        self.observer.batch(self.subject, Batch(len(messages), now - self.told_at))
        self.told_at = now
        self._put(messages, [output for _, piece in taken for output in piece.outputs])
        self.positions |= {partition: piece.after for partition, piece in taken}

    def _end_calls(self) -> None:
        """Calls that are under way have a while to end, and none is begun."""
        calls = self.calls
        if calls is None:
            return
        calls.end()
        until = time.monotonic() + _LEAVE_SECONDS
        with contextlib.suppress(InterruptedBatchError):
            while not calls.is_resting and time.monotonic() < until:
                calls.wait(self.poll)
                self.reader.serve()
                calls.keep(self.reader.reading)
                self._take(calls)
                self._watch()
                if self.chunk.age > _COMMIT_SECONDS:
                    self._commit()

    def _room(self) -> int:
        """How many records the readers of the output can take; for none, what is done is committed, and more is read later."""
        downstream = self.downstream
        if downstream is None:
            return _LARGEST_CHUNK
        share = len(self.reader.assigned) / self.reader.topic.partitions  # of what all members write together
        waiting = self.calls.unfinished if self.calls is not None else 0
        room = downstream.room(self.uncommitted.produced + waiting, share)
        if room == 0 and waiting:
            return 0
        if room == 0 and share and time.monotonic() >= self.again_at:
            self._commit()
            downstream.look(self.poll)
            room = downstream.room(0, share)
            if room == 0:
                self.reader.rewind()
                self.again_at = time.monotonic() + _AGAIN_SECONDS
        return max(1, room)

    def _handle(self, messages: Sequence[Message]) -> None:
        began = time.monotonic()
        self.gone = set()
        try:
            outputs = self.thread.call(lambda: self._process(messages), self._meanwhile)
        except InterruptedBatchError as interrupted:
            self._wait(messages, interrupted)
            return
        took = time.monotonic() - began
        self.batch.took(took)
        self.observer.batch(self.subject, Batch(len(messages), took))
        self._put(messages, outputs)

    def _process(self, messages: Sequence[Message]) -> list[Output]:
        return awaiting(lambda: process(self.transform, messages, self.input_codec))

    def _put(self, messages: Sequence[Message], outputs: Sequence[Output]) -> None:
        if self.gone:  # partitions that went meanwhile: whoever has them handles these records
            kept = [(m, o) for m, o in zip(messages, outputs, strict=True) if m.partition() not in self.gone]
            messages, outputs = [m for m, _ in kept], [o for _, o in kept]
            if not kept:
                return
        self.outputs.input_topic_id = self.reader.topic.id  # it may have been replaced, if that is accepted
        self.chunk.put(messages, outputs, self.uncommitted)
        self.positions |= {m.partition(): m.offset() + 1 for m in messages}

    def _wait(self, messages: Sequence[Message], interrupted: InterruptedBatchError) -> None:
        """Something that the agent calls is down: commit what is done, and come back to the rest in a while. Nothing is rejected."""
        log.warning("waiting", extra=fields(group=self.group, reason=str(interrupted), seconds=round(interrupted.seconds, 1)))
        if interrupted.outputs:
            self._put(messages[: len(interrupted.outputs)], interrupted.outputs)
        self._commit()
        self.reader.rewind()
        self.batch = BatchSize(interrupted.events, least=self.transform.at_once)
        self.again_at = time.monotonic() + interrupted.seconds

    def _tell_lag(self) -> None:
        now = time.monotonic()
        if now - self.lag_told >= _LAG_SECONDS:
            self.lag_told = now
            self.observer.lag(self.subject, self.reader.lag())
            if states := breakers():
                self.observer.breakers(self.subject, states)

    def _watch(self) -> None:
        """Tell how long the agent has been busy."""
        self.observer.busy(self.subject, self.busy_seconds)

    def _meanwhile(self) -> None:
        """While the agent is busy: commit what is handled, and leave what it has in hand to the next start when asked to stop."""
        self._watch()
        self._tell_lag()
        if self.thread.busy_seconds > _BUSY_SECONDS:
            self.reader.serve()
        old = self.writer.age > self.writer.timeout_ms / 3000
        if (self.positions and (self.context.stop() or old)) or self.chunk.side_age > (0 if self.context.stop() else SIDE_SECONDS):
            self._commit()
        if self.context.stop():
            raise StoppedError(f"group {self.group!r}: asked to stop")

    def _commit(self) -> None:
        """Outputs and positions become visible together."""
        if self.positions or self.chunk.side_age:
            self._commit_now()

    def _commit_now(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        self.chunk.take_side(self.uncommitted)

        def seal() -> None:
            failpoints.hit("live.before-offsets")
            self._check_topic(deadline)
            self._send_offsets()

        counts = self.counts.copy()
        counts.add(self.uncommitted)
        self.chunk.commit(deadline, seal, counts)
        self.reader.committed(self.positions)
        if self.downstream is not None:
            self.downstream.wrote(self.uncommitted.produced)
        self.counts = counts
        self.uncommitted, self.positions = Counts(), {}

    def _send_offsets(self) -> None:
        if self.positions:
            self.writer.send_offsets(self.reader.offsets(self.positions), self.group, self.reader.membership)

    def _check_topic(self, deadline: float) -> None:
        """See ``GroupReader.check_topic``; a broker that is away is waited for."""
        while True:
            try:
                self.reader.check_topic()
                return
            except UnavailableError:
                if time.monotonic() > deadline or self.context.stop():
                    raise

    def _drop(self, reason: str) -> None:
        """End the open transaction without its outputs; all that was read and not committed is read again, by whoever has it then.

        A fenced producer has outlived its timeout: nobody else has this transactional id.
        """
        self.uncommitted, self.positions = Counts(), {}
        self.gone |= self.reader.assigned
        self.reader.rewind()
        with contextlib.suppress(FencedError):
            self.chunk.abort(reason)

    def _on_assign(self, partitions: set[int]) -> None:
        log.info("partitions assigned", extra=fields(group=self.group, partitions=sorted(partitions)))
        if partitions:
            self.predecessors.look(self.reader.topic.name, partitions)
        self.observer.rebalanced(self.subject, frozenset(self.reader.assigned))

    def _on_revoke(self, partitions: set[int]) -> None:
        """Commit before another member goes on from the committed positions."""
        self.gone |= partitions
        try:
            self._commit()
        except (ChunkAbortedError, FencedError) as error:
            log.warning("not committed before the partitions went; their new owner reads those records", extra=fields(reason=str(error)))
            self._drop(str(error))
        except BaseException as error:
            self._drop(str(error))  # the partitions go all the same: nothing may commit a position of theirs any more
            raise
        self.observer.rebalanced(self.subject, self.reader.assigned - partitions)

    def _on_lost(self, partitions: set[int]) -> None:
        """Partitions went without asking: what is not committed is their new owner's."""
        self.gone |= partitions
        self._drop("partitions were taken without asking")
        self.observer.rebalanced(self.subject, self.reader.assigned - partitions)


def awaiting(work: Callable[[], _T]) -> _T:
    """Its value; what isn't there for it, such as a registry that the events are read by, is waited for."""
    try:
        return work()
    except InterruptedBatchError:
        raise
    except UnavailableError as error:
        raise InterruptedBatchError(str(error), [], _AGAIN_SECONDS) from error
