"""``run_sink``: a window into a database, exactly once: the database's ledger row decides, the Kafka ledger follows."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from factory_agents import failpoints
from factory_agents.errors import (
    AccountingError,
    DeadlineError,
    FactoryError,
    SinkBackpressureError,
    StoppedError,
    TooManyRejectedError,
    WindowError,
)
from factory_agents.kafka.messages import Message, readable_headers
from factory_agents.kafka.reader import WindowReader
from factory_agents.kafka.writer import ChunkAbortedError
from factory_agents.protocol import AgentResult, AgentRun, Counts, Dataset, PartitionRange, Window, read_writers
from factory_agents.runtime.agents import Claim, PrunedSink, Reject, RowsRefused, Sink, SinkOutcome, decode_event
from factory_agents.runtime.outputs import reject_large
from factory_agents.runtime.session import RunContext, Session
from factory_agents.telemetry import Batch, fields

__all__ = ["run_sink"]

log = logging.getLogger(__name__)

_BATCH = 10_000
_PENDING, _PENDING_BYTES = 1000, 64 * 1024 * 1024
_OUTCOMES = ("written", "duplicates", "older", "deleted", "dropped")
_BEAT_SECONDS = 0.1
_T = TypeVar("_T")


def run_sink(context: RunContext, run: AgentRun, make: Callable[[], Sink]) -> AgentResult:
    """Publish the run's window and return the result that both ledgers then hold.

    Rows become visible all at once, when the sink commits. Raises a FactoryError; nothing is visible then, unless the sink's commit was
    made, which the next attempt finds and completes.
    """
    if run.window is None:
        raise WindowError(
            f"stage {run.stage!r}: agent {run.agent.name!r} reads a topic and needs a window; give the stage before, or plan one"
        )
    sink = make()
    try:
        session = Session(context, run, sink.name, sink.version, sink.identity)
        heartbeat = _Heartbeat(session)
        try:
            return _SinkRun(session, run.window, sink, heartbeat).to_end()
        finally:
            heartbeat.end()
            session.close()
    finally:
        sink.close()


class _Heartbeat:
    """Tells the observer that the sink is busy: the sink itself is called in the run's own thread, where its connection belongs."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._since = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat {session.run.stage}", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS):
            since = self._since
            if since:
                self._session.observer.busy(self._session.subject, time.monotonic() - since)

    def during(self, function: Callable[[], _T]) -> _T:
        """Call a function of the sink."""
        self._since = time.monotonic()
        try:
            return function()
        finally:
            self._since = 0.0

    def end(self) -> None:
        """No more of it."""
        self._ended.set()
        self._thread.join()


class _SinkRun:
    """The read → stage → commit sequence of one attempt.

    Dead letters go to their topic in Kafka transactions of their own along the way, which are never open while the sink works: it may be
    slow. The progress tells up to which offsets they are out, so that a retry, which reads the window from its start again, sends none of
    them twice.
    """

    def __init__(self, session: Session, window: Window, sink: Sink, heartbeat: _Heartbeat) -> None:
        self.session = session
        self.window = window
        self.sink = sink
        self.heartbeat = heartbeat
        self.sent: dict[int, int] = {}
        self.pending: list[tuple[Message, Reject]] = []
        self.pending_bytes = 0
        self.refused: dict[tuple[int, int], Reject] = {}
        self.input_generation = window.generation
        self.trace = session.trace
        self.reader = WindowReader(session.context.config, session.cluster, window, accept_loss=session.run.accept_loss)

    def to_end(self) -> AgentResult:
        """Claim, stage every row, commit the sink, then the ledger."""
        session = self.session
        done = session.start()
        self.sent = dict(session.progress.positions)
        self.input_generation = self._input_generation()
        try:
            if session.run.dry_run:
                self._read_all()
                return self._finish(SinkOutcome(table="", rows=session.counts.forwarded, written=session.counts.forwarded))
            outcome = self.heartbeat.during(lambda: self.sink.claim(self._claim(done=done is not None)))
            if outcome is not None and done is not None:
                return session.reused(done)
            if outcome is not None and outcome.rejected == session.progress.counts.rejected:
                return self._complete(outcome)
            if outcome is not None:
                self.heartbeat.during(lambda: self.sink.claim(self._claim(reuse=False)))
            # Who comes after this look claims after us, and fences us in the sink; who came before it has fenced us here.
            self._in_kafka(session.check_fence)
            result = self._publish()
            self._prune()
            return result
        finally:
            self.reader.close()

    def _complete(self, outcome: SinkOutcome) -> AgentResult:
        """What an earlier attempt committed to the sink, and did not live to write to the ledger."""
        counts = self.session.counts = self.session.progress.counts.copy()
        counts.forwarded, counts.rejected = outcome.rows, outcome.rejected
        counts.consumed = outcome.rows + outcome.rejected
        return self._finish(outcome)

    def _publish(self) -> AgentResult:
        self._read_all()
        failpoints.hit("sink.before-commit")
        outcome = self._commit()
        if self.trace is not None:
            self.trace.settle(committed=True)
        failpoints.hit("sink.after-commit")
        return self._finish(outcome)

    def _prune(self) -> None:
        """Let the sink's ledger forget what the pipeline's has forgotten; it is no reason to fail what is published."""
        sink, session = self.sink, self.session
        if not isinstance(sink, PrunedSink):
            return
        try:
            gone = self.heartbeat.during(lambda: sink.prune(session.read_mark))
        except FactoryError as error:
            log.info("the sink's ledger was not pruned, the next publish tries again: %s", error)
        else:
            if gone:
                log.info("the sink's ledger was pruned", extra=fields(entries=gone))

    def _commit(self) -> SinkOutcome:
        """Commit the sink, without the rows that the database refuses: their dead letters go out with the result."""
        session = self.session
        while True:
            try:
                return self._patiently(lambda: self.sink.commit(rejected=session.counts.rejected))
            except RowsRefused as refused:
                self.refused.update(refused.rows)
                session.counts.rejected += len(refused.rows)
                session.counts.forwarded -= len(refused.rows)
            try:
                session.check_rejected(final=True)
            except TooManyRejectedError:
                self._in_kafka(lambda: self._with_refused(self.sent))
                session.check_rejected(final=True)  # again: now it knows why they were refused

    def _with_refused(self, positions: dict[int, int], **more: Any) -> AgentResult | None:
        """Commit to Kafka with the dead letters of what the database refused, which are read from the topic once more."""
        session = self.session
        if self.refused:
            offsets: dict[int, list[int]] = {}
            for partition, offset in self.refused:
                offsets.setdefault(partition, []).append(offset)
            ranges = tuple(PartitionRange(p, min(of), max(of) + 1) for p, of in sorted(offsets.items()))
            window = msgspec.structs.replace(self.window, ranges=ranges, lost=())
            reader = WindowReader(session.context.config, session.cluster, window)
            try:
                reader.seek({}, {})
                while not reader.done:
                    for message in reader.batch(_BATCH, session.deadline, session.context.stop):
                        reject = self.refused.get((message.partition(), message.offset()))
                        if reject is not None:
                            session.outputs.reject(reject, message=message)
                    if session.context.stop():
                        raise StoppedError(f"stage {session.run.stage!r}: asked to stop; a retry completes it")
            finally:
                reader.close()
        return session.commit(positions, {}, **more)

    def _claim(self, *, reuse: bool = True, done: bool = False) -> Claim:
        session, window = self.session, self.window
        return Claim(
            pipeline=session.run.pipeline,
            stage=session.run.stage,
            window=" ".join(filter(None, (window.key, session.run.pipeline, session.run.work.scope))),
            shard=session.run.shard,
            plan=session.run.plan,
            fingerprint=session.fingerprint,
            input_generation=self.input_generation,
            generation=session.generation,
            epoch=session.epoch,
            reuse=reuse and session.run.rerun == "reuse",
            done=done,
            origin=session.run.origin,
        )

    def _input_generation(self) -> int:
        """Our manifest's place among those that the sink holds: older only than newer ones of the same stages.

        What other stages wrote is no newer making of it: a stage that was between us was taken out, or put in. Nor is what was published
        with ours in it, or in another shard of our plan, whose input is another one.
        """
        window, run = self.window, self.session.run
        generation = window.generation
        for shard, before in self.session.published():
            beside = before.plan == run.plan and shard.of == run.shard.of and shard != run.shard
            if window.writers and not beside and _is_newer(read_writers(before.writers), window):
                return window.generation
            generation = max(generation, before.input_generation)
        return generation

    def _read_all(self) -> None:
        session, reader = self.session, self.reader
        reader.check_topic()
        session.counts, session.tolerated = Counts(), 0
        reader.seek({}, {})
        while not reader.done:
            messages = reader.batch(_BATCH, session.deadline, session.context.stop)
            if session.context.stop():
                raise StoppedError(f"stage {session.run.stage!r}: asked to stop; nothing is published, a retry begins again")
            if messages:
                self._stage(messages)
            if len(self.pending) >= _PENDING or self.pending_bytes >= _PENDING_BYTES:
                self._send_dead_letters()
        session.counts.late, session.counts.skipped = reader.take_figures()
        session.counts.lost = reader.lost_records
        reader.check_topic()
        if self.pending:
            self._send_dead_letters()
        session.check_rejected(final=True)

    def _send_dead_letters(self) -> None:
        """Commit the dead letters so far, and up to where they are out."""
        while self.pending:
            self.sent = self._in_kafka(self._send_some)

        self.pending_bytes = 0

    def _send_some(self) -> dict[int, int]:
        """As many of the dead letters as a chunk may hold; up to where they are out then."""
        session = self.session
        letters = self.pending[: session.chunk.size]
        session.chunk.add(len(letters))
        for message, reject in letters:
            session.outputs.reject(reject, message=message, tolerated=_is_tolerated(message, reject))
        out = {m.partition(): m.offset() + 1 for m, _ in letters} if len(letters) < len(self.pending) else self.reader.positions
        positions = {p: max(out.get(p, 0), self.sent.get(p, 0)) for p in out.keys() | self.sent.keys()}
        session.commit(positions, {})
        del self.pending[: len(letters)]
        return positions

    def _in_kafka(self, write: Callable[[], _T]) -> _T:
        """Write in a transaction, again after an abort; the counts are of what was read, which an abort doesn't undo."""
        session = self.session
        counts = session.counts
        while True:
            try:
                return write()
            except ChunkAbortedError as aborted:
                session.retry_chunk(aborted)
                session.counts = counts

    def _stage(self, messages: Sequence[Message]) -> None:
        counts = self.session.counts
        write = self._show if self.session.run.dry_run else self._write
        large = reject_large(messages)
        began = time.monotonic()
        rejected = self._patiently(lambda: write(messages)) if large is None else {0: large}
        self.session.observer.batch(self.session.subject, Batch(len(messages), time.monotonic() - began))
        if self.trace is not None and self.reader.carriers != []:
            for i, message in enumerate(messages):
                if own := readable_headers(message):
                    self.trace.follow(message, own, "rejected" if i in rejected else "forwarded")
        for i, reject in rejected.items():
            self._reject(messages[i], reject)
        counts.consumed += len(messages)
        counts.forwarded += len(messages) - len(rejected)

    def _patiently(self, ask: Callable[[], _T]) -> _T:
        """Ask the sink, again when it has asked to wait. Nothing is read meanwhile: Kafka keeps what the sink can't take yet."""
        while True:
            try:
                return self.heartbeat.during(ask)
            except SinkBackpressureError as full:
                log.info("the sink asks to wait", extra=fields(seconds=full.retry_after, reason=str(full)))
                self._wait(time.monotonic() + full.retry_after)

    def _wait(self, until: float) -> None:
        session = self.session
        while (now := time.monotonic()) < until:
            if session.context.stop():
                raise StoppedError(f"stage {session.run.stage!r}: asked to stop while the sink had it wait; a retry begins again")
            if now > session.deadline:
                raise DeadlineError(f"stage {session.run.stage!r}: out of time while the sink had it wait; a retry begins again")
            session.observer.busy(session.subject, 0.0)
            time.sleep(min(_BEAT_SECONDS, until - now))

    def _write(self, messages: Sequence[Message]) -> dict[int, Reject]:
        """What the sink, or the topic's codec before it, rejects of a batch, by index."""
        codec = self.session.input_codec
        if codec is None:
            return self.sink.write(messages)
        readable, places, rejected = codec.readable(messages)
        refused = self.sink.write(readable) if readable else {}
        return rejected | {places[i]: reject for i, reject in refused.items()}

    def _show(self, messages: Sequence[Message]) -> dict[int, Reject]:
        """A dry run: what there is of events, and what is none, by index."""
        rejected = {}
        codec = self.session.input_codec
        for i, message in enumerate(messages if codec is None else codec.read(messages)):
            try:
                decode_event(message.value())
            except Reject as reject:
                rejected[i] = reject
            else:
                self.session.context.show("", message.key(), message.value())
        return rejected

    def _reject(self, message: Message, reject: Reject) -> None:
        self.session.counts.rejected += 1
        reject.forget_frames()
        tolerated = _is_tolerated(message, reject)
        self.session.tolerated += tolerated
        if message.offset() >= self.sent.get(message.partition(), 0):
            self.pending.append((message, reject))
            self.pending_bytes += len(message)
        else:
            place = f"{message.topic()}-{message.partition()}@{message.offset()}"
            self.session.outputs.reasons.add(reject.rule, reject.reason, place, message.key(), message.value(), tolerated=tolerated)

    def _finish(self, outcome: SinkOutcome) -> AgentResult:
        session = self.session
        counts = session.counts
        for name in (*_OUTCOMES, "removed"):
            setattr(counts, name, getattr(outcome, name))
        if counts.forwarded != sum(getattr(counts, name) for name in _OUTCOMES):
            came = " + ".join(f"{getattr(counts, name)} {name}" for name in _OUTCOMES)
            raise AccountingError(f"stage {session.run.stage!r}: {counts.forwarded} rows went to {outcome.table!r}, but {came} came back")
        positions = dict(self.reader.positions) or self.sent
        lost = tuple(self.reader.lost)
        more: dict[str, Any] = {
            "dataset": self._dataset(outcome.table),
            "notes": outcome.notes,
            "input_generation": self.input_generation,
        }
        result = self._in_kafka(lambda: self._with_refused(positions, lost=lost, finished=True, **more))
        if result is None:
            raise AccountingError(f"stage {session.run.stage!r}: finished without a result")
        return msgspec.structs.replace(result, reused=outcome.reused)

    def _dataset(self, table: str) -> Dataset | None:
        """The table that the sink wrote to, by the sink's word on where it is."""
        system = getattr(self.sink, "system", "") or str(self.session.run.params.get("sink") or self.sink.name)
        return Dataset(system, table, getattr(self.sink, "address", "")) if table else None


def _is_tolerated(message: Message, reject: Reject) -> bool:
    """Whether a record is no bad one: it has no value where that means nothing. One that can't delete what it means to is."""
    return message.value() is None and reject.rule == "decode"


def _is_newer(writers: Sequence[str], window: Window) -> bool:
    """Whether what these writers wrote is what a window's writers wrote, made again."""
    if _stages(writers) != _stages(window.writers) or {*window.writers} <= {*writers}:
        return False
    return max(map(_generation, writers)) > window.generation


def _stages(writers: Sequence[str]) -> set[str]:
    return {writer.rsplit("/", 2)[0] for writer in writers}


def _generation(writer: str) -> int:
    number = writer.rpartition("/")[2]
    return int(number) if number.isdecimal() else 0
