"""``run_sink``: a window into a database, exactly once: the database's ledger row decides, the Kafka ledger follows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import msgspec

from factory_agents import failpoints
from factory_agents.errors import AccountingError, StoppedError, UnavailableError, WindowError
from factory_agents.kafka.messages import Message
from factory_agents.kafka.reader import WindowReader
from factory_agents.kafka.writer import ChunkAbortedError
from factory_agents.protocol import AgentResult, AgentRun, Window
from factory_agents.runtime.agents import Claim, Reject, Row, Sink, SinkOutcome, decode_event
from factory_agents.runtime.session import RunContext, Session

__all__ = ["run_sink"]

log = logging.getLogger(__name__)

_BATCH = 10_000


def run_sink(context: RunContext, run: AgentRun, make: Callable[[], Sink]) -> AgentResult:
    """Publish the run's window and return the result that then stands in both ledgers.

    Rows become visible all at once, when the sink commits. Raises a FactoryError; nothing is visible then, unless the sink's commit was made, which the next
    attempt finds and completes.
    """
    if run.window is None:
        raise WindowError(
            f"stage {run.stage!r}: agent {run.agent.name!r} reads a topic and needs a window; give the stage before, or plan one"
        )
    sink = make()
    session = Session(context, run, sink.name, sink.version, sink.identity)
    try:
        done = session.start()
        return done if done is not None else _SinkRun(session, run.window, sink).to_end()
    except ChunkAbortedError as aborted:
        raise UnavailableError(f"stage {run.stage!r}: {aborted.cause}; a retry completes it") from aborted
    finally:
        sink.close()
        session.close()


class _SinkRun:
    """The read → stage → commit sequence of one attempt.

    Dead letters go to their topic in Kafka transactions of their own along the way. The progress tells up to which offsets they are out, so that a retry, which
    reads the window from its start again, sends none of them twice.
    """

    def __init__(self, session: Session, window: Window, sink: Sink) -> None:
        self.session = session
        self.window = window
        self.sink = sink
        self.sent = dict(session.progress.positions)
        self.sent_rejected = session.progress.counts.rejected
        self.pending = 0
        self.reader = WindowReader(session.context.config, session.cluster, window, accept_loss=session.run.accept_loss)

    def to_end(self) -> AgentResult:
        """Claim, stage every row, commit the sink, then the ledger."""
        session = self.session
        if session.run.dry_run:
            self._read_all()
            return self._finish(SinkOutcome(table="", rows=session.counts.forwarded, written=session.counts.forwarded))
        outcome = self.sink.claim(self._claim())
        if outcome is not None and outcome.rejected == self.sent_rejected:
            session.counts = session.progress.counts.copy()
            session.counts.forwarded = outcome.rows
            session.counts.consumed = outcome.rows + outcome.rejected
            session.counts.rejected = outcome.rejected
            return self._finish(outcome)
        if outcome is not None:
            self.sink.claim(self._claim(reuse=False))
        try:
            self._read_all()
        finally:
            self.reader.close()
        failpoints.hit("sink.before-commit")
        outcome = self.sink.commit(rejected=session.counts.rejected)
        failpoints.hit("sink.after-commit")
        return self._finish(outcome)

    def _claim(self, *, reuse: bool = True) -> Claim:
        session, window = self.session, self.window
        return Claim(
            pipeline=session.run.pipeline,
            stage=session.run.stage,
            window=f"{window.key} {session.run.pipeline}",
            shard=session.run.shard,
            plan=session.run.plan,
            fingerprint=session.fingerprint,
            input_generation=window.generation,
            generation=session.generation,
            epoch=session.run.epoch,
            reuse=reuse and session.run.rerun == "reuse",
        )

    def _read_all(self) -> None:
        session, reader = self.session, self.reader
        if self.window.ranges and not session.run.accept_loss:
            reader.check_topic()
        session.counts = type(session.counts)()
        reader.seek({}, {})
        while not reader.done:
            messages = reader.batch(_BATCH, session.deadline, session.context.stop)
            if session.context.stop():
                raise StoppedError(f"stage {session.run.stage!r}: asked to stop; nothing is published, a retry begins again")
            self._stage(messages)
            session.check_rejected(final=False)
            since = session.writer.open_since
            if self.pending >= 1000 or (since is not None and time.monotonic() - since > session.writer.timeout_ms / 3000):
                self._send_dead_letters()
            session.context.observer(session.run.stage, session.counts.consumed, self.window.size, session.counts)
        session.counts.late, session.counts.skipped = reader.take_figures()
        session.counts.lost = sum(r.end - r.start for r in reader.lost)
        session.check_rejected(final=True)
        if self.window.ranges and not session.run.accept_loss:
            reader.check_topic()
        if self.pending:
            self._send_dead_letters()

    def _send_dead_letters(self) -> None:
        """Commit the dead letters so far and up to where they are complete, before a long sink commit could outlast their transaction."""
        positions = {p: max(offset, self.sent.get(p, 0)) for p, offset in self.reader.positions.items()}
        self.session.commit(positions, {})
        self.sent = positions
        self.pending = 0

    def _stage(self, messages: Sequence[Message]) -> None:
        counts = self.session.counts
        rows: list[Row] = []
        of_row: list[Message] = []
        for message in messages:
            try:
                event = decode_event(message.value())
            except Reject as error:
                self._reject(message, error)
                continue
            rows.append((event, message.partition(), message.offset()))
            of_row.append(message)
        rejected = {} if self.session.run.dry_run else self.sink.write(rows)
        for i, reject in rejected.items():
            self._reject(of_row[i], reject)
        if self.session.run.dry_run:
            for message in of_row:
                self.session.context.show("", message.key(), message.value())
        counts.consumed += len(messages)
        counts.forwarded += len(rows) - len(rejected)

    def _reject(self, message: Message, reject: Reject) -> None:
        self.session.counts.rejected += 1
        if message.offset() >= self.sent.get(message.partition(), 0):
            self.session.outputs.reject(reject, message=message)
            self.pending += 1

    def _finish(self, outcome: SinkOutcome) -> AgentResult:
        session = self.session
        counts = session.counts
        counts.written, counts.duplicates, counts.older, counts.removed = (
            outcome.written,
            outcome.duplicates,
            outcome.older,
            outcome.removed,
        )
        if counts.forwarded != counts.written + counts.duplicates + counts.older:
            raise AccountingError(
                f"stage {session.run.stage!r}: {counts.forwarded} rows went to {outcome.table!r}, but {counts.written} written + {counts.duplicates} duplicates + "
                f"{counts.older} older came back"
            )
        result = session.commit(dict(self.reader.positions) or self.sent, {}, finished=True, table=outcome.table, notes=outcome.notes)
        if result is None:
            raise AccountingError(f"stage {session.run.stage!r}: finished without a result")
        return msgspec.structs.replace(result, reused=outcome.reused)
