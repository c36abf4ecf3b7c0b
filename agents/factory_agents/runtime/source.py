"""``run_source``: the interval of a source into a topic, exactly once, in chunks that resume by row."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence

from factory_agents import failpoints
from factory_agents.errors import AccountingError, StoppedError, WindowError
from factory_agents.kafka.writer import ChunkAbortedError
from factory_agents.protocol import AgentResult, AgentRun
from factory_agents.runtime.agents import Reject, Source, SourceRecord
from factory_agents.runtime.session import RunContext, Session

__all__ = ["run_source"]

log = logging.getLogger(__name__)


def run_source(context: RunContext, run: AgentRun, make: Callable[[], Source]) -> AgentResult:
    """Write the rows of the run's interval (all rows, without one) to the output topic; the result then stands in the ledger.

    Raises a FactoryError; what was committed before stays, and the next attempt goes on after it as long as the source's content is the same.
    """
    source = make()
    session = Session(context, run, source.name, source.version, source.identity)
    try:
        if session.run.output_topic == "":
            raise WindowError(f"stage {run.stage!r}: ingest needs a topic to write to (--topic, OUTPUT_TOPIC or output_topic)")
        done = session.start()
        return done if done is not None else _SourceRun(session, source).to_end()
    finally:
        source.close()
        session.close()


class _SourceRun:
    """The read → write loop of one attempt."""

    def __init__(self, session: Session, source: Source) -> None:
        self.session = session
        self.source = source
        self.chunk = max(1, session.run.chunk_records)
        self.rows = 0
        self.in_chunk = 0
        self.refused = ""

    def to_end(self) -> AgentResult:
        """Chunk after chunk until the source has no more rows."""
        attempt = 0
        while True:
            self.rows = self.session.progress.rows
            batches = self.source.read(self.session.run.interval, self.rows)
            try:
                return self._to_end(batches)
            except ChunkAbortedError as aborted:
                attempt = 0 if aborted.refused else attempt + 1
                self.refused = str(aborted.cause) if aborted.refused and self.chunk == 1 else ""
                if aborted.refused:
                    self.chunk = max(1, min(self.chunk, self.in_chunk) // 2)
                self.session.retry_chunk(aborted, attempt)

    def _to_end(self, batches: Iterator[Sequence[SourceRecord]]) -> AgentResult:
        session = self.session
        self.in_chunk = 0
        for batch in batches:
            for start in range(0, len(batch), self.chunk):
                part = batch[start : start + self.chunk]
                for record in part:
                    self._put(record)
                self.rows += len(part)
                self.in_chunk += len(part)
                failpoints.hit("chunk.after-produce")
                since = session.writer.open_since
                if self.in_chunk >= self.chunk or (since is not None and time.monotonic() - since > session.writer.timeout_ms / 3000):
                    self._commit()
            if session.context.stop():
                self._commit()
                raise StoppedError(f"stage {session.run.stage!r}: asked to stop; what is committed stays, a retry resumes")
        session.check_rejected(final=True)
        result = session.commit({}, {}, rows=self.rows, finished=True)
        self._observe()
        if result is None:
            raise AccountingError(f"stage {session.run.stage!r}: finished without a result")
        return result

    def _commit(self) -> None:
        self.session.check_rejected(final=False)
        self.session.commit({}, {}, rows=self.rows)
        self.in_chunk = 0
        self.chunk = min(self.session.run.chunk_records, self.chunk * 2)
        self._observe()

    def _observe(self) -> None:
        session = self.session
        session.context.observer(session.run.stage, session.counts.consumed, -1, session.counts)

    def _put(self, record: SourceRecord) -> None:
        session, counts = self.session, self.session.counts
        reject = record.reject
        if reject is None and self.refused:
            reject, self.refused = Reject(f"refused by the broker: {self.refused}", rule="refused"), ""
        if reject is None:
            reject = session.outputs.write_new(record.key, record.value, self.rows)
        if reject is None:
            counts.forwarded += 1
            counts.produced += 1
        else:
            counts.rejected += 1
            session.outputs.reject(reject, value=record.value, key=record.key, where=record.where)
        counts.consumed += 1
