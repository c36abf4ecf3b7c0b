"""``run_source``: the interval of a source into a topic, exactly once, in chunks that resume by row."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from factory_agents import failpoints
from factory_agents.errors import AccountingError, AgentError, ConfigurationError, DeadlineError, FactoryError
from factory_agents.kafka.cuts import plan_source
from factory_agents.kafka.writer import ChunkAbortedError
from factory_agents.protocol import AgentResult, AgentRun
from factory_agents.runtime.agent_thread import AgentThread
from factory_agents.runtime.agents import Source, SourceRecord
from factory_agents.runtime.backpressure import Downstream
from factory_agents.runtime.session import RunContext, Session
from factory_agents.telemetry import Batch

__all__ = ["run_source"]

_T = TypeVar("_T")
_WAIT_SECONDS, _LOOK_SECONDS = 0.1, 10.0


def run_source(context: RunContext, run: AgentRun, make: Callable[[], Source]) -> AgentResult:
    """Write the rows of the run's interval (all rows, without one) to the output topic; the result is then in the ledger.

    The source is read in one thread of its own. Raises a FactoryError; what was committed before stays, and the next attempt goes on after
    it as long as the source's content is the same.
    """
    if not run.output_topic:
        raise ConfigurationError(f"stage {run.stage!r}: ingest needs a topic to write to (--topic, OUTPUT_TOPIC or output_topic)")
    thread = AgentThread(run.stage)
    source: Source | None = None
    try:
        source = thread.call(make, lambda: context.heed_stop(run.stage))
        session = Session(context, run, source.name, source.version, source.identity)
        try:
            done = session.start()
            if done is not None:
                return session.reused(done)
            plan_source(
                context.config,
                run.work,
                run.interval,
                prefix=run.prefix,
                dry_run=run.dry_run,
                output_topic=run.output_topic,
                keep=run.keep_windows,
            )
            with downstream_of(context, run) as downstream:
                return _SourceRun(session, thread, source, downstream).to_end()
        finally:
            session.close()
    finally:
        thread.close(source.close if source is not None else lambda: None)


@contextmanager
def downstream_of(context: RunContext, run: AgentRun) -> Iterator[Downstream | None]:
    """What looks after the readers of a run's output, where it is told to wait for them."""
    if not run.max_lag_downstream or run.dry_run:
        yield None
        return
    downstream = Downstream(context.config, run.output_topic, run.max_lag_downstream, group=run.downstream_group)
    try:
        downstream.look(_LOOK_SECONDS)
        yield downstream
    finally:
        downstream.close()


class _SourceRun:
    """The read → write loop of one attempt, which waits for readers of the output that are too far behind (``downstream``)."""

    def __init__(self, session: Session, thread: AgentThread, source: Source, downstream: Downstream | None) -> None:
        self.downstream = downstream
        self.session = session
        self.thread = thread
        self.source = source
        self.chunk = session.chunk
        self.rows = 0
        session.outputs.trace = session.trace

    def to_end(self) -> AgentResult:
        """Chunk after chunk until the source has no more rows."""
        while True:
            self.rows = self.session.progress.rows
            batches = self._read(self.rows)
            try:
                return self._to_end(batches)
            except ChunkAbortedError as aborted:
                self.session.retry_chunk(aborted)

    def _read(self, skip: int) -> Iterator[Sequence[SourceRecord]]:
        """The source's batches from a row on, each fetched while the chunk before it is kept from getting too old."""
        interval = self.session.run.interval
        batches = self.thread.call(lambda: self._asked(lambda: iter(self.source.read(interval, skip))), self._meanwhile)
        began = time.monotonic()
        while (batch := self.thread.call(lambda: self._asked(lambda: self._checked(next(batches, None))), self._meanwhile)) is not None:
            self.session.observer.batch(self.session.subject, Batch(len(batch), time.monotonic() - began))
            yield batch
            began = time.monotonic()

    def _asked(self, ask: Callable[[], _T]) -> _T:
        """Ask the source something; what it raises is its own error, unless we know it."""
        try:
            return ask()
        except (FactoryError, OSError, MemoryError):
            raise
        except Exception as error:
            raise AgentError(f"source {self.source.name!r}: raised {type(error).__name__}: {error}") from error

    def _checked(self, batch: object) -> Sequence[SourceRecord] | None:
        if batch is None or (isinstance(batch, Sequence) and (not batch or isinstance(batch[0], SourceRecord))):
            return batch
        got = f"a list of {type(batch[0]).__name__}" if isinstance(batch, Sequence) else type(batch).__name__
        raise AgentError(f"source {self.source.name!r}: read() gave {got}, expected lists of SourceRecord")

    def _meanwhile(self) -> None:
        """While the source is busy: commit what it gave before the transaction gets too old, or when it is time to go."""
        session = self.session
        session.observer.busy(session.subject, self.thread.busy_seconds)
        leaving = session.context.stop() or time.monotonic() > session.deadline
        if self.chunk.records and (leaving or self._is_old()):
            self._commit()
        if leaving:
            self._check_time()

    def _check_time(self) -> None:
        session = self.session
        session.context.heed_stop(session.run.stage)
        if time.monotonic() > session.deadline:
            raise DeadlineError(f"stage {session.run.stage!r}: out of time; what is committed stays, a retry resumes")

    def _is_old(self) -> bool:
        return self.chunk.age > self.session.chunk_seconds

    def _to_end(self, batches: Iterator[Sequence[SourceRecord]]) -> AgentResult:
        session = self.session
        for batch in batches:
            done = 0
            while done < len(batch):
                part = batch[done : done + min(self.chunk.room, self._give_way())]
                self._put(part)
                done += len(part)
                if self.chunk.is_full or self._is_old():
                    self._commit()
            self._meanwhile()
        result = session.commit({}, {}, rows=self.rows, finished=True)
        if result is None:
            raise AccountingError(f"stage {session.run.stage!r}: finished without a result")
        return result

    def _give_way(self) -> int:
        """How many records the readers of the output can take; while they can't, what is written is committed, and this waits."""
        downstream = self.downstream
        if downstream is None:
            return self.chunk.room
        if not (room := downstream.room(self.chunk.records)) and self.chunk.records:
            self._commit()
        while not (room := room or downstream.room()):
            self._check_time()
            self.session.observer.busy(self.session.subject, 0.0)
            downstream.look(_WAIT_SECONDS)
            if downstream.is_behind:
                time.sleep(_WAIT_SECONDS)
        return room

    def _commit(self) -> None:
        records = self.chunk.records
        self.session.commit({}, {}, rows=self.rows)
        if self.downstream is not None:
            self.downstream.wrote(records)

    def _put(self, records: Sequence[SourceRecord]) -> None:
        """Each record to the topic, or to the dead letters; without a key its row's number chooses the partition, so that re-runs agree."""
        counts, outputs = self.session.counts, self.session.outputs
        self.chunk.add(len(records))
        due = outputs.traces_due()
        for record in records:
            reject = record.reject
            if reject is None:
                reject = outputs.write_new(record.key, record.value, self.rows, traced=due > 0)
                due -= 1
            if reject is None:
                counts.forwarded += 1
                counts.produced += 1
            else:
                counts.rejected += 1
                outputs.reject(reject, value=record.value, key=record.key, where=record.where, row=self.rows)
            counts.consumed += 1
            self.rows += 1
        failpoints.hit("chunk.after-produce")
