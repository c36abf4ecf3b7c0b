"""``run_transform``: one agent over one window, exactly once, in chunks that resume."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from factory_agents import failpoints
from factory_agents.errors import AgentCrashedError, AgentError, DeadlineError, FactoryError, WindowError
from factory_agents.kafka.messages import Message
from factory_agents.kafka.reader import WindowReader
from factory_agents.kafka.writer import ChunkAbortedError
from factory_agents.protocol import AgentResult, AgentRun, Counts, PartitionRange, Window
from factory_agents.runtime.agent_thread import AgentThread
from factory_agents.runtime.agents import Output, SideLog, Transform
from factory_agents.runtime.codecs import OpenCodec
from factory_agents.runtime.dependencies import InterruptedBatchError
from factory_agents.runtime.outputs import reject_large
from factory_agents.runtime.session import RunContext, Session
from factory_agents.runtime.side_by_side import PER_LANE, SideBySide
from factory_agents.telemetry import Batch

__all__ = ["SIDE_SECONDS", "BatchSize", "process", "run_transform"]

_BATCH_SECONDS = 0.5
_LARGEST_BATCH = 10_000
_TURN_SECONDS = 0.1  # while calls are under way side by side, until it is looked whether it is time to commit, or to go
SIDE_SECONDS = 1.0
"""How long what goes beside the outputs waits for its commit, at most: a kill loses no more than that."""


def run_transform(context: RunContext, run: AgentRun, make: Callable[[], Transform]) -> AgentResult:
    """Run a transform over the run's window to its end and return the result, which is then in the ledger.

    ``make`` builds the transform, a new one where a stateful one must be shown its records again; all of it runs in one thread of its own.
    Raises a FactoryError; what was committed before stays, and the next attempt resumes there.
    """
    if run.window is None:
        raise WindowError(
            f"stage {run.stage!r}: agent {run.agent.name!r} reads a topic and needs a window; give the stage before, or plan one"
        )
    thread = AgentThread(run.stage)
    transform: Transform | None = None
    try:
        transform = thread.call(make, lambda: context.heed_stop(run.stage))
        session = Session(context, run, transform.name, transform.version, transform.identity)
        loop = _TransformRun(session, run.window, thread, transform, make)
        try:
            done = session.start()
            if done is not None:
                return session.reused(done)
            loop.open_side()
            return loop.to_end()
        finally:
            transform = loop.transform
            if loop.chunk.side is not None:
                loop.chunk.side.leave()
            loop.reader.close()
            session.close()
    finally:
        thread.close(transform.close if transform is not None else lambda: None)


class BatchSize:
    """How many records to give an agent at once: so many that it takes about half a second.

    It begins with one record, since nothing is known of the agent yet, and never gives fewer than ``least``.
    """

    def __init__(self, records: int = 1, *, least: int = 1) -> None:
        self.records = max(records, least)
        self._least = least

    def took(self, seconds: float) -> None:
        """Learn from the last batch."""
        if seconds < _BATCH_SECONDS / 2:
            self.records = min(_LARGEST_BATCH, self.records * 2)
        elif seconds > _BATCH_SECONDS:
            self.records = max(self._least, int(self.records * _BATCH_SECONDS / seconds))


def process(transform: Transform, messages: Sequence[Message], codec: OpenCodec | None = None) -> list[Output]:
    """What the transform makes of a batch, read by the topic's codec; AgentError, with where it was, for what it must not do."""
    where = f"agent {transform.name!r}, {len(messages)} records from {messages[0].topic()}-{messages[0].partition()}@{messages[0].offset()}"
    with failing_agent(where):
        outputs = transform.process(messages if codec is None else codec.read(messages))
    if len(outputs) != len(messages):
        raise AgentError(f"{where}: gave {len(outputs)} outputs, expected one each")
    large = reject_large(messages)
    return outputs if large is None else [large]


@contextmanager
def failing_agent(where: str) -> Iterator[None]:
    """What the agent raises inside, and must not, says where."""
    try:
        yield
    except FactoryError:
        raise
    except MemoryError as error:
        raise AgentCrashedError(f"{where}: out of memory; give it more, or smaller chunks (chunk_records); a retry resumes") from error
    except Exception as error:
        raise AgentError(f"{where}: raised {type(error).__name__}: {error}") from error


def finish(transform: Transform, counts: Counts) -> dict[str, Any] | None:
    """The transform's report; AgentError for what it must not do."""
    try:
        return transform.finish(counts)
    except (FactoryError, MemoryError):
        raise
    except Exception as error:
        raise AgentError(f"agent {transform.name!r}: its report of the window raised {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class _ReadSoFar:
    """Where a reader stands, with its late and skipped records since it was asked before."""

    late: int
    skipped: int
    lost_records: int
    positions: dict[int, int]
    read: dict[int, int]
    lost: tuple[PartitionRange, ...]


class _TransformRun:
    """The read → handle → write loop of one attempt.

    What is ``handled`` (and may be committed) lags behind what the reader has read by the batch that the agent has in hand, or by all that
    came since the first of its ``calls`` that has no answer yet.
    """

    def __init__(self, session: Session, window: Window, thread: AgentThread, transform: Transform, make: Callable[[], Transform]) -> None:
        self.session = session
        self.window = window
        self.thread = thread
        self.transform = transform
        self.make = make
        self.reader = WindowReader(session.context.config, session.cluster, window, accept_loss=session.run.accept_loss)
        self.batch = BatchSize(least=transform.at_once)
        self.chunk = session.chunk
        self.handled = session.progress
        self.calls: SideBySide | None = getattr(transform, "side_by_side", None)
        share: Callable[[float], None] | None = getattr(transform, "share", None)
        if share is not None:
            share(1 / session.run.shard.of)
        self.told_at = 0.0
        session.outputs.trace = session.trace

    def open_side(self) -> None:
        """What the transform wants committed beside its outputs."""
        log: SideLog | None = getattr(self.transform, "log", None)
        if log is not None:
            self.thread.call(lambda: self.session.open_side(log), self._meanwhile)

    def to_end(self) -> AgentResult:
        """Chunk after chunk until the window is done."""
        self.reader.check_topic()
        load: Callable[[], None] | None = getattr(self.transform, "load", None)
        if self.calls is not None and load is not None:
            self.thread.call(load, self._meanwhile)
        self._position()
        while True:
            try:
                result = self._chunk()
            except ChunkAbortedError as aborted:
                self.session.retry_chunk(aborted)
                self._rebuild()
                continue
            if result is not None:
                return result

    def _position(self) -> None:
        """Begin behind what is committed."""
        if self.calls is not None:
            self.calls.keep(())
        self.handled = progress = self.session.progress
        self.reader.seek(progress.positions, progress.read, progress.lost)
        if self.transform.stateful:
            self.thread.call(lambda: self.transform.compare(self.session.earlier_reports), self._meanwhile)
        if self.transform.stateful and progress.positions:
            self._replay(progress.positions)

    def _rebuild(self) -> None:
        if self.transform.stateful:
            self.thread.call(self.transform.close, self._meanwhile)
            self.transform = self.thread.call(self.make, self._meanwhile)
        self._position()

    def _replay(self, positions: dict[int, int]) -> None:
        """Show a stateful transform what is committed already, dropping its outputs."""
        ranges = tuple(PartitionRange(r.partition, r.start, min(r.end, positions.get(r.partition, r.start))) for r in self.window.ranges)
        past = msgspec.structs.replace(self.window, ranges=tuple(r for r in ranges if r.start < r.end))
        reader = WindowReader(self.session.context.config, self.session.cluster, past, accept_loss=self.session.run.accept_loss)
        try:
            reader.seek({}, {})
            while not reader.done:
                self._check_time()
                messages = reader.batch(_LARGEST_BATCH, self.session.deadline, self.session.context.stop)
                if messages:
                    self._process(messages)
        finally:
            reader.close()

    def _check_time(self) -> None:
        session = self.session
        session.context.heed_stop(session.run.stage)
        if time.monotonic() > session.deadline:
            raise DeadlineError(f"stage {session.run.stage!r}: out of time; what is committed stays, a retry resumes")

    def _is_old(self) -> bool:
        return self.chunk.age > self.session.chunk_seconds or self.chunk.side_age > SIDE_SECONDS

    def _meanwhile(self) -> None:
        """While the agent is busy: commit what is handled before its transaction gets too old, or when it is time to go."""
        session = self.session
        session.observer.busy(session.subject, self.thread.busy_seconds)
        leaving = session.context.stop() or time.monotonic() > session.deadline
        if self.chunk.is_begun and (leaving or self._is_old()):
            self._commit_handled()
        if leaving:
            self._check_time()

    def _chunk(self) -> AgentResult | None:
        """One transaction: as many records as fit by count and time, then the commit. The result, when the window is done."""
        calls = self.calls
        if calls is None:
            self._fill()
        else:
            self._fill_from(calls)
        if calls is None or not calls.unfinished:
            self._mark_handled(self._read_so_far())
            if self.reader.done:
                return self._finish()
        if self.chunk.is_begun:
            self._commit_handled()
        self._check_time()
        return None

    def _fill(self) -> None:
        """Batch after batch."""
        reader = self.reader
        took = 0.0
        while not reader.done and not self.chunk.is_full and not self._is_old():
            size = min(self.batch.records, self.chunk.room)
            messages = reader.batch(size, self.session.deadline, self._is_time)
            if not messages:
                break
            failpoints.hit("chunk.after-read")
            took = self._handle(messages)
            if self.session.writer.age + took > self.session.chunk_seconds:
                break

    def _is_time(self) -> bool:
        """Whether to wait for no more records."""
        return self.session.context.stop() or self._is_old()

    def _fill_from(self, calls: SideBySide) -> None:
        """What the calls have come to, of the records that come next; the others stay under way beyond the commit."""
        session = self.session
        while (calls.unfinished or not self.reader.done) and not self.chunk.is_full and not self._is_time():
            if time.monotonic() > session.deadline:
                return
            while (places := min(calls.room, PER_LANE, self.chunk.size)) > 0 and self._read_on(calls, places):
                pass
            try:
                with failing_agent(f"agent {self.transform.name!r}"):
                    calls.wait(_TURN_SECONDS)
            except InterruptedBatchError:
                self._take(calls)
                if self.chunk.is_begun:
                    self._commit_handled()
                raise
            self._take(calls)
            session.observer.busy(session.subject, calls.busy_seconds)

    def _read_on(self, calls: SideBySide, places: int) -> bool:
        """Put the next records, if there are any, in one piece: of a part of it, nobody could say what was late, or skipped."""
        reader = self.reader
        if calls.unfinished:
            messages = reader.look(places)
        else:
            messages = reader.batch(places, self.session.deadline, self._is_time)
            self.told_at = time.monotonic()
        if not messages:
            return False
        failpoints.hit("chunk.after-read")
        codec = self.session.input_codec
        read = messages if codec is None else self.thread.call(lambda: codec.read(messages), self._meanwhile)
        large, so_far = reject_large(messages), self._read_so_far()
        if large is not None:
            calls.put_rejected(0, messages[0], large, after=so_far)
        else:
            calls.put(0, messages, read, after=so_far)
        return True

    def _take(self, calls: SideBySide) -> None:
        """Put what is finished into the chunk."""
        records = 0
        for _, piece in calls.take(self.chunk.room):
            self.chunk.put(piece.messages, piece.outputs, self.session.counts)
            self._mark_handled(piece.after)
            failpoints.hit("chunk.after-produce")
            records += len(piece.messages)
        if records:
            now = time.monotonic()
            self.session.observer.batch(self.session.subject, Batch(records, now - self.told_at))
            self.told_at = now

    def _handle(self, messages: Sequence[Message]) -> float:
        """Process one batch and put its outputs into the chunk; the seconds that processing took."""
        began = time.monotonic()
        outputs = self._process(messages)
        took = time.monotonic() - began
        self.batch.took(took)
        self.session.observer.batch(self.session.subject, Batch(len(messages), took))
        self.chunk.put(messages, outputs, self.session.counts, carriers=self.reader.carriers)
        self._mark_handled(self._read_so_far())
        failpoints.hit("chunk.after-produce")
        return took

    def _process(self, messages: Sequence[Message]) -> list[Output]:
        try:
            return self.thread.call(lambda: process(self.transform, messages, self.session.input_codec), self._meanwhile)
        except FactoryError:
            if self.chunk.side_age and not self.thread.busy_seconds:  # what was learned is kept, though this ends the attempt
                self._commit_handled()
            raise

    def _read_so_far(self) -> _ReadSoFar:
        reader = self.reader
        late, skipped = reader.take_figures()
        return _ReadSoFar(late, skipped, reader.lost_records, dict(reader.positions), dict(reader.read), tuple(reader.lost))

    def _mark_handled(self, so_far: _ReadSoFar) -> None:
        """All that was read so far is in the chunk."""
        counts = self.session.counts
        counts.late += so_far.late
        counts.skipped += so_far.skipped
        counts.lost = so_far.lost_records
        self.handled = msgspec.structs.replace(self.handled, positions=so_far.positions, read=so_far.read, lost=so_far.lost)

    def _commit_handled(self) -> None:
        done = self.handled
        self.reader.check_topic()
        self.session.commit(done.positions, done.read, lost=done.lost)

    def _finish(self) -> AgentResult | None:
        session, done = self.session, self.handled
        self.reader.check_topic()
        report = self.thread.call(lambda: finish(self.transform, session.counts.copy()), self._meanwhile)
        return session.commit(done.positions, done.read, lost=done.lost, finished=True, report=report)
