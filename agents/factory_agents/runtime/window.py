"""``run_window``: one agent over one window, exactly once, in chunks that resume."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import msgspec

from factory_agents import failpoints
from factory_agents.errors import ConfigurationError, StoppedError, WindowError
from factory_agents.kafka.messages import Message
from factory_agents.kafka.reader import WindowReader
from factory_agents.kafka.writer import ChunkAbortedError
from factory_agents.protocol import AgentResult, AgentRun, Counts, PartitionRange, Window
from factory_agents.runtime.agents import Reject, Transform
from factory_agents.runtime.session import RunContext, Session

__all__ = ["run_transform"]

log = logging.getLogger(__name__)

_BATCH_SECONDS = 0.5
_FIRST_BATCH, _LARGEST_BATCH = 500, 10_000


def run_transform(context: RunContext, run: AgentRun, make: Callable[[], Transform]) -> AgentResult:
    """Run a transform over the run's window to its end and return the result that then stands in the ledger.

    ``make`` builds the transform, anew where a stateful one must be shown its records again. Raises a FactoryError; what was committed before stays, and the
    next attempt resumes there.
    """
    if run.window is None:
        raise WindowError(
            f"stage {run.stage!r}: agent {run.agent.name!r} reads a topic and needs a window; give the stage before, or plan one"
        )
    transform = make()
    session = Session(context, run, transform.name, transform.version, transform.identity)
    loop = _TransformRun(session, run.window, transform, make)
    try:
        done = session.start()
        return done if done is not None else loop.to_end()
    finally:
        loop.close()
        session.close()


class _TransformRun:
    """The read → handle → write loop of one attempt."""

    def __init__(self, session: Session, window: Window, transform: Transform, make: Callable[[], Transform]) -> None:
        self.session = session
        self.window = window
        self.transform = transform
        self.make = make
        self.reader = WindowReader(session.context.config, session.cluster, window, accept_loss=session.run.accept_loss)
        self.batch = _FIRST_BATCH
        self.chunk = max(1, session.run.chunk_records)
        self.alone = False

    def close(self) -> None:
        self.reader.close()
        self.transform.close()

    def to_end(self) -> AgentResult:
        """Chunk after chunk until the window is done."""
        session = self.session
        if self.window.ranges and not session.run.accept_loss:
            self.reader.check_topic()
        self._position()
        attempt = 0
        while True:
            try:
                result = self._chunk()
                attempt = 0
            except ChunkAbortedError as aborted:
                attempt += 1
                if aborted.refused:
                    self.alone = self.chunk == 1
                    self.chunk = max(1, min(self.chunk, self._in_chunk) // 2)
                session.retry_chunk(aborted, attempt)
                self._refused = str(aborted.cause)
                self._rebuild()
                continue
            if result is not None:
                return result

    _in_chunk = 0
    _refused = ""

    def _position(self) -> None:
        progress = self.session.progress
        self.reader.seek(progress.positions, progress.read)
        if self.transform.stateful and progress.positions:
            self._replay(progress.positions)

    def _rebuild(self) -> None:
        if self.transform.stateful:
            self.transform.close()
            self.transform = self.make()
        self._position()

    def _replay(self, positions: dict[int, int]) -> None:
        """Show a stateful transform what is committed already, dropping its outputs."""
        ranges = tuple(PartitionRange(r.partition, r.start, min(r.end, positions.get(r.partition, r.start))) for r in self.window.ranges)
        past = msgspec.structs.replace(self.window, ranges=tuple(r for r in ranges if r.start < r.end))
        reader = WindowReader(self.session.context.config, self.session.cluster, past, accept_loss=self.session.run.accept_loss)
        try:
            reader.seek({}, {})
            while not reader.done:
                self._stop_between()
                self.transform.process(reader.batch(_LARGEST_BATCH, self.session.deadline, self.session.context.stop))
        finally:
            reader.close()

    def _stop_between(self) -> None:
        if self.session.context.stop():
            raise StoppedError(f"stage {self.session.run.stage!r}: asked to stop; what is committed stays, a retry resumes")

    def _chunk(self) -> AgentResult | None:
        """One transaction: as many records as fit by count and time, then the commit. The result, when the window is done."""
        session, reader = self.session, self.reader
        chunk_seconds = session.writer.timeout_ms / 3000
        self._in_chunk = 0
        while not reader.done and self._in_chunk < self.chunk:
            messages = reader.batch(min(self.batch, self.chunk - self._in_chunk), session.deadline, session.context.stop)
            if not messages:
                break
            failpoints.hit("chunk.after-read")
            took = self._handle(messages)
            self._in_chunk += len(messages)
            since = session.writer.open_since
            if since is not None and time.monotonic() - since + took > chunk_seconds:
                break
        late, skipped = reader.take_figures()
        session.counts.late += late
        session.counts.skipped += skipped
        finished = reader.done
        if not finished and not self._in_chunk:
            self._stop_between()
            return None
        result = self._commit(finished)
        if not finished:
            self._stop_between()
            if self.chunk < session.run.chunk_records:
                self.chunk = min(session.run.chunk_records, self.chunk * 2)
                self.alone = False
        return result

    def _commit(self, finished: bool) -> AgentResult | None:
        session, reader = self.session, self.reader
        session.check_rejected(final=finished)
        if not finished:
            session.commit(dict(reader.positions), dict(reader.read))
            self._observe()
            return None
        if reader.lost:
            session.counts.lost = sum(r.end - r.start for r in reader.lost)
        if self.window.ranges and not session.run.accept_loss:
            reader.check_topic()
        report = self.transform.finish(session.counts.copy())
        notes = tuple(f"lost: {self.window.topic}-{r.partition} offsets {r.start} to {r.end}" for r in reader.lost[:20])
        result = session.commit(dict(reader.positions), dict(reader.read), finished=True, report=report, notes=notes)
        self._observe()
        return result

    def _observe(self) -> None:
        counts: Counts = self.session.counts
        self.session.context.observer(self.session.run.stage, counts.consumed, self.window.size, counts)

    def _handle(self, messages: Sequence[Message]) -> float:
        """Process one batch and put its outputs into the chunk; the seconds that processing took, by which the next batch is sized."""
        began = time.monotonic()
        outputs = self.transform.process(messages)
        took = time.monotonic() - began
        if len(outputs) != len(messages):
            raise ConfigurationError(
                f"agent {self.transform.name!r}: {len(messages)} records gave {len(outputs)} outputs, expected one each"
            )
        if self.alone and len(messages) == 1 and outputs[0] is not None and not isinstance(outputs[0], Reject):
            outputs = [Reject(f"refused by the broker: {self._refused}", rule="refused")]
        self.session.outputs.put(messages, outputs, self.session.counts)
        failpoints.hit("chunk.after-produce")
        if took < _BATCH_SECONDS / 2:
            self.batch = min(_LARGEST_BATCH, self.batch * 2)
        elif took > _BATCH_SECONDS:
            self.batch = max(1, int(self.batch * _BATCH_SECONDS / took))
        return took
