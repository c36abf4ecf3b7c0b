"""What every windowed run shares: the start order, the fingerprint, dead letters, chunks committed with their progress, the result."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from confluent_kafka import KafkaException

from factory_agents import failpoints
from factory_agents.errors import AccountingError, ConfigurationError, DeadlineError, FencedError, StoppedError, TooManyRejectedError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.failures import forget_failure
from factory_agents.kafka.ledger import (
    Ledger,
    LedgerRecord,
    LedgerView,
    MarkRecord,
    Progress,
    StageRecord,
    StoredResult,
    shards_key,
    stage_key,
)
from factory_agents.kafka.records import Published, check_names, failure_key, fence_key, mark_key, pruned
from factory_agents.kafka.topics import Cluster, check_window_topic
from factory_agents.kafka.writer import ChunkAbortedError, TransactionalWriter
from factory_agents.protocol import AgentResult, AgentRun, CodecRef, Counts, Manifest, Order, PartitionRange, Shard, Window, digest
from factory_agents.runtime.agents import SideLog
from factory_agents.runtime.chunk import Chunk
from factory_agents.runtime.codecs import OpenCodec, open_codec, same_choice
from factory_agents.runtime.history import earlier_reports
from factory_agents.runtime.outputs import Origin, Outputs
from factory_agents.telemetry import Done, Observer, Subject, fields

if TYPE_CHECKING:
    from factory_agents.telemetry.spans import RunTrace, Traces

__all__ = ["RunContext", "Session", "fingerprint", "parse_limit", "told_again"]

log = logging.getLogger(__name__)

_FOREVER = 10 * 365 * 24 * 3600.0
_LEDGER_SECONDS = 900.0
_MARK_SECONDS = 60.0
_MOST_EARLIER = 20
_MOST_NOTES = 20
_MOST_ORDERS = 50


@dataclass
class RunContext:
    """What surrounds a run: the cluster, a question whether to stop, and who is told of progress.

    ``show`` takes what a dry run would write; its result has up to so many ``examples`` of each reason for which events were rejected.
    ``sliced``: somebody goes on where it stops, so that a stop is no failure to be told of in the ledger. ``traces`` writes this process's
    spans, if there are any, and ``trace`` those of one run (see ``runtime.traced``).
    """

    config: KafkaConfig
    stop: Callable[[], bool] = lambda: False
    observer: Observer = field(default_factory=Observer)
    show: Callable[[str, bytes | None, bytes | None], None] = lambda topic, key, value: None
    examples: int = 3
    sliced: bool = False
    traces: Traces | None = None
    trace: RunTrace | None = None

    def heed_stop(self, stage: str) -> None:
        """Raise StoppedError where it is time to go."""
        if self.stop():
            raise StoppedError(f"stage {stage!r}: asked to stop; what is committed stays, a retry resumes")


def _loss_notes(window: Window, lost: Sequence[PartitionRange]) -> tuple[str, ...]:
    return tuple(f"lost: {window.topic}-{r.partition} offsets {r.start} to {r.end}" for r in lost[:_MOST_NOTES])


def fingerprint(
    run: AgentRun, name: str, version: str, identity: dict[str, Any], output_id: str = "", codecs: Sequence[OpenCodec | None] = ()
) -> str:
    """Equal for equal work: what it is, agent with version and parameters, output topic (and its id), codecs and their schemas."""
    window = run.window
    ranges = None if window is None else [window.topic_id, [(r.partition, r.start, r.end) for r in window.ranges], window.writers]
    return digest(
        {
            "pipeline": run.pipeline,
            "stage": run.stage,
            "scope": run.work.scope,
            "key": run.key,
            "shard": run.shard,
            "window": ranges,
            "agent": [name, version, identity],
            "output": [run.output_topic, output_id],
        }
        | ({"codecs": [codec and codec.identity for codec in codecs]} if any(codecs) else {})
    )


def told_again(order: Order | None, record: StageRecord | None) -> bool:
    """Whether a task instance was told to run again since it obeyed the last time, by what the ledger remembers of just this one.

    A clear of another task of its run raises ``clears`` alone: work that is under way goes on then. Finished work is done again all the
    same, as ``tries`` may come out equal where the task's retries were edited in between. A late attempt from before the last clear is
    told nothing.
    """
    if order is None:
        return False
    before = next((o for o in record.orders if o.task == order.task), None) if record is not None else None
    if record is None or before is None or order.is_of_a_later_run(before):
        return order.again
    if order.clears == before.clears:
        return order.tries > before.tries
    return order.clears > before.clears and (record.result is not None or order.tries != before.tries)


def _remembered(orders: Sequence[Order], order: Order | None) -> tuple[Order, ...]:
    """The orders that were obeyed, the newest last."""
    before = next((o for o in orders if order is not None and o.task == order.task), None)
    if order is None or (before is not None and order.clears < before.clears and not order.is_of_a_later_run(before)):
        return tuple(orders)
    return (*(o for o in orders if o.task != order.task), order)[-_MOST_ORDERS:]


def parse_limit(text: str) -> tuple[float, bool]:
    """A limit on rejected events: ``"5 %"`` gives (5.0, True), ``"1000"`` gives (1000.0, False)."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if found is None:
        raise ConfigurationError(f"max_rejected: expected a number or a percentage such as '5 %', got {text!r}")
    return float(found[1]), found[2] == "%"


class Session:
    """One attempt at one shard of one stage over one window.

    ``start`` decides: a finished result of the same fingerprint is returned (``reused``), unfinished work is resumed (``progress``), else
    the work begins again under a new generation. Then chunks: put records into ``outputs`` and ``commit`` them with the progress, or
    ``retry_chunk`` after an abort.
    """

    default_codec: CodecRef | None = None
    """What writes the outputs if the run doesn't say."""

    def __init__(
        self, context: RunContext, run: AgentRun, name: str, version: str, identity: dict[str, Any], *, transactional_id: str = ""
    ) -> None:
        check_names(pipeline=run.pipeline, stage=run.stage, prefix=run.prefix)
        self.run = run
        self.context = context
        self.agent, self.version = name, run.agent.version or version
        self._identity = identity
        self.fingerprint = ""
        self.deadline = time.monotonic() + (run.deadline_seconds or _FOREVER)
        self.cluster = Cluster(context.config)
        self.ledger = Ledger(context.config, self.cluster, prefix=run.prefix, pipeline=run.pipeline)
        own_id = transactional_id or run.transactional_id
        self.writer = TransactionalWriter(context.config, own_id, known_topic=self.ledger.topic, stop=context.stop, lingers=True)
        self.generation = 0
        self.epoch = 0
        self._view_end = 0
        self._failed_before = False
        self._orders: tuple[Order, ...] = ()
        self._earlier: tuple[Manifest, ...] = ()
        self._published: Published | None = None
        self._source = digest(identity["files"]) if "files" in identity and run.window is None else ""
        self._shards: list[StageRecord] = []
        self.input_codec: OpenCodec | None = None
        self.resumed = False
        self.progress = Progress()
        self.counts = Counts()
        self.tolerated = 0
        """How many of the rejected are no bad events: records without a value, where those mean nothing."""
        window = run.window
        facts = self.cluster.find(window.topic) if window is not None and window.ranges else None
        self.outputs = Outputs(
            self.cluster,
            self.writer,
            Origin(
                pipeline=run.pipeline,
                stage=run.stage,
                agent=name,
                version=version,
                window=run.key,
                input_topic=window.topic if window is not None else "",
                input_topic_id=window.topic_id if window is not None else "",
                source=self._source,
                input_partitions=facts.partitions if facts is not None else 0,
            ),
            output=run.output_topic,
            dead=run.dead_letter_topic,
            show=context.show if run.dry_run else None,
            examples=context.examples if run.dry_run else 0,
        )
        self.subject = Subject(run.pipeline, run.stage, name, version, run.key, run.shard.key, window.size if window is not None else -1)
        self.observer = context.observer
        self.chunk = Chunk(
            self.writer, self.outputs, largest=run.chunk_records, name=f"stage {run.stage!r}", observer=self.observer, subject=self.subject
        )
        self._started = time.monotonic()
        self._limit = parse_limit(run.max_rejected)

    @property
    def trace(self) -> RunTrace | None:
        """What follows its events, if they are traced: a dry run's go nowhere."""
        return None if self.run.dry_run else self.context.trace

    @property
    def writer_id(self) -> str:
        """What this attempt's records carry in their header."""
        return f"{self.run.stage}/{self.fingerprint}/{self.generation}"

    @property
    def chunk_seconds(self) -> float:
        """How long a chunk may be open: a third of the transaction's timeout."""
        return self.writer.timeout_ms / 3000

    def open_side(self, log: SideLog) -> None:
        """Have a transform's log opened, whose records are committed with the chunks from here on."""
        log.open(self.context.config, self.cluster, self.run.prefix, self.counts, self.deadline, self.context.stop)
        self.chunk.side = log

    def start(self) -> AgentResult | None:
        """The start order: check topics, fence, read the ledger to its end, decide. The result, where the work is done already.

        Whoever goes on in spite of a result redoes the work, under a new generation.
        """
        run = self.run
        self.outputs.resolve()
        output = self.outputs.output
        if output is not None:
            check_window_topic(self.cluster, output.name)
        record = None
        if not run.dry_run:
            self.ledger.ensure()
            record = self._claim()
        self._open_codecs(record)
        codecs = (self.input_codec, self.outputs.codec)
        self.fingerprint = fingerprint(run, self.agent, self.version, self._identity, output.id if output is not None else "", codecs)
        return None if run.dry_run else self._decide(record)

    def _open_codecs(self, record: StageRecord | None) -> None:
        """With the schemas that this work was begun with, or another shard of it, so that all of it is read and written by the same."""
        window = self.run.window
        reading, writing = window.codec if window is not None else None, self.run.output_codec or self.default_codec
        for before in (*([record] if record is not None else []), *self._shards):
            if self._may_resume(before):
                reading, writing = same_choice(reading, before.input_codec), same_choice(writing, before.output_codec)
        self.input_codec = open_codec(reading, window.topic if window is not None else "", writing=False)
        self.outputs.use_codecs(self.input_codec, open_codec(writing, self.run.output_topic, writing=True))

    def _decide(self, record: StageRecord | None) -> AgentResult | None:
        self.generation = self._view_end
        again = self._told_again(record)
        self.epoch = (record.epoch if record is not None else 0) + again
        self._orders = _remembered(record.orders if record is not None else (), self.run.order)
        self._earlier = self._earlier_letters(record)
        self._published = record.last_published() if record is not None else None
        done = None
        if record is not None and not again and self._same_work(record) and not self._is_outdated(record):
            done = record.answer() if self._reuses else None
            if record.progress is not None and self._may_resume(record):
                self.resumed = True
                self.generation = record.generation
                self.progress = record.progress
                log.info("resuming", extra=fields(stage=self.run.stage, done=self.progress.counts.consumed))
        self.counts = self.progress.counts.copy()
        self.outputs.set_writer(self.writer_id)
        if done is None:
            return None
        return msgspec.structs.replace(done, plan=self.run.plan, mapped=self.run.mapped, run=self.run.digest, reused=True)

    def _earlier_letters(self, record: StageRecord | None) -> tuple[Manifest, ...]:
        """Dead letters of finished work under this key that this work doesn't replace: it is about other records."""
        if record is None:
            return ()
        again = f"{self.run.stage}/{self.fingerprint}/"
        kept = tuple(m for m in record.earlier if not m.writer.startswith(again))
        letters = record.result.dead_letters if record.result is not None else None
        if record.result is None or letters is None or record.fingerprint == self.fingerprint:
            return kept
        read, window = record.result.input, self.run.window
        same = read.topic_id == window.topic_id if read is not None and window is not None else record.source == self._source
        return kept if same else (*kept, letters)[-_MOST_EARLIER:]

    @property
    def _ledger_begin(self) -> int:
        """Where this pipeline's records may begin in its ledger partition; another pipeline's window speaks of another place."""
        window = self.run.window
        return window.ledger_offset if window is not None and window.pipeline == self.run.pipeline else 0

    def _claim(self) -> StageRecord | None:
        self.writer.open(self.deadline)
        failpoints.hit("start.after-init")
        begin = self._ledger_begin
        work, mark = self.run.work, mark_key(self.run.pipeline, self.run.origin)
        wanted = (shards_key(work).encode(), mark.encode(), failure_key(work).encode(), *self._also_wanted())
        until = min(self.deadline, time.monotonic() + _LEDGER_SECONDS)
        view = self.ledger.read(start=begin, deadline=until, wanted=wanted)
        self._refuse_pruned(view.get(mark))
        self._failed_before = view.get(failure_key(work)) is not None
        self._view_end = view.end
        self._found(view)
        self._shards = [record for record in view.of(StageRecord) if record.window == self.run.key]
        found = view.get(stage_key(work))
        return found if isinstance(found, StageRecord) else None

    def check_fence(self) -> None:
        """Raise FencedError where a newer attempt has taken over by now: the deletion of a key that there never is fails then."""
        self.writer.begin()
        self.ledger.erase(self.writer.producer, [fence_key(self.run.work).encode()])
        self.writer.flush(self.deadline)
        self.writer.commit(self.deadline)

    def _also_wanted(self) -> Iterable[bytes]:
        """What the keys begin with of more records that the session wants whenever it has fenced the others; ``_found`` gets them."""
        return ()

    def _found(self, view: LedgerView) -> None:
        """Take what was wanted."""

    def _refuse_pruned(self, mark: LedgerRecord | None) -> None:
        """What was done on a window that lies below the mark is forgotten, so that doing it would be doing it again.

        A mark is written behind the plans that it is about, so that whoever begins to read at a window's plan meets it.
        """
        if not isinstance(mark, MarkRecord):
            return
        run = self.run
        interval = run.interval or (run.window.interval if run.window is not None else None)
        if mark.covers(interval) if interval is not None else 0 < self._ledger_begin < mark.offset:
            raise pruned(f"pipeline {run.pipeline!r}, stage {run.stage!r}", run.key)

    def read_mark(self) -> MarkRecord | None:
        """The mark of what was pruned of this run's origin, looked for in the whole of the pipeline's ledger."""
        key = mark_key(self.run.pipeline, self.run.origin)
        mark = self.ledger.read_stable(deadline=time.monotonic() + _MARK_SECONDS, wanted=(key.encode(),)).get(key)
        return mark if isinstance(mark, MarkRecord) else None

    def earlier_reports(self) -> list[Mapping[str, Any]]:
        """The validation reports of this stage over the windows before, the newest last, as far as they were finished by now."""
        if self.cluster.find(self.ledger.topic) is None:  # a dry run makes none
            return []
        deadline = min(self.deadline, time.monotonic() + _LEDGER_SECONDS)
        return earlier_reports(self.ledger.read_stable(deadline=deadline, wanted=(b"stage|",)), self.run)

    def published(self) -> list[tuple[Shard, Published]]:
        """What the stage's shards over this window published last, of whatever plan."""
        return [(record.shard, before) for record in self._shards if (before := record.last_published()) is not None]

    @property
    def _reuses(self) -> bool:
        """Whether a finished result is returned."""
        return self.run.rerun == "reuse"

    def _told_again(self, record: StageRecord | None) -> bool:
        return told_again(self.run.order, record)

    def _same_work(self, record: StageRecord) -> bool:
        return record.fingerprint == self.fingerprint and not self._identity.get("volatile")

    def _is_outdated(self, record: StageRecord) -> bool:
        """Whether the window was done since in another number of shards: what came of that is newer than what is remembered of this one."""
        others = (other for other in self._shards if other.shard.of != record.shard.of and other.result is not None)
        return any(other.generation > record.generation for other in others)

    def _may_resume(self, record: StageRecord) -> bool:
        """A run that is told to redo the work resumes only what it began itself."""
        return self.run.rerun == "reuse" or (self.run.run_id != "" and record.redo == self.run.run_id)

    def check_rejected(self, *, final: bool) -> None:
        """Fail once more events are rejected than ``max_rejected`` allows.

        A percentage counts from 10 rejected on, and before the end only from 10,000 consumed.
        """
        limit, percent = self._limit
        rejected, consumed = self.counts.rejected - self.tolerated, self.counts.consumed
        enough = not percent or (rejected >= 10 and (final or consumed >= 10_000))
        if enough and rejected > (consumed * limit / 100 if percent else limit):
            reasons = self.outputs.reasons
            where = "" if self.run.dry_run else f"; see them: factory dead-letters list {self.outputs.dead_name}"
            error = TooManyRejectedError(
                f"stage {self.run.stage!r}: {rejected} of {consumed} events rejected, more than max_rejected={self.run.max_rejected!r} "
                f"allows{reasons.commonest()}{where}"
            )
            error.reasons = reasons.told() if self.run.dry_run else ()
            raise error

    def check_counts(self) -> None:
        """Fail unless every consumed record was forwarded, filtered or rejected."""
        c = self.counts
        if c.consumed != c.forwarded + c.filtered + c.rejected:
            raise AccountingError(
                f"stage {self.run.stage!r}: consumed {c.consumed} != forwarded {c.forwarded} + filtered {c.filtered} + "
                f"rejected {c.rejected}"
            )

    def commit(
        self,
        positions: dict[int, int],
        read: dict[int, int],
        *,
        rows: int = 0,
        lost: Sequence[PartitionRange] = (),
        finished: bool = False,
        report: dict[str, Any] | None = None,
        **more: Any,
    ) -> AgentResult | None:
        """Commit the chunk with its progress, or with the result when ``finished``.

        Raises TooManyRejectedError after the commit, so that the dead letters can be seen; ChunkAbortedError where the chunk may be tried
        again; FencedError, UnavailableError, DeadlineError.
        """
        self.check_counts()
        broken = None
        try:
            self.check_rejected(final=finished)
        except TooManyRejectedError as error:
            broken, finished = error, False
        result = self._commit_dry(finished, report, **more) if self.run.dry_run else None
        if not self.run.dry_run:
            result = self._commit(positions, read, rows, lost, finished=finished, report=report, **more)
        if broken is not None:
            raise broken
        if result is not None:
            self._tell_done(result)
        return result

    def reused(self, result: AgentResult) -> AgentResult:
        """The result of an earlier attempt, returned as it is. No record follows that would outdate the word of a failure since."""
        if self._failed_before:
            forget_failure(self.context.config, self.run.work, start=self._ledger_begin, prefix=self.run.prefix)
        self._tell_done(result)
        return result

    def _tell_done(self, result: AgentResult) -> None:
        counts = result.counts
        self.observer.done(self.subject, Done(counts.consumed, counts.rejected, result.seconds, result.resumed, result.reused))

    def _commit_dry(self, finished: bool, report: dict[str, Any] | None, **more: Any) -> AgentResult | None:
        self.chunk.take_side(self.counts)
        self.progress = msgspec.structs.replace(self.progress, counts=self.counts.copy())
        self.chunk.forget(committed=True)
        return self._result(self.progress, report, **more) if finished else None

    def _commit(
        self,
        positions: dict[int, int],
        read: dict[int, int],
        rows: int,
        lost: Sequence[PartitionRange],
        *,
        finished: bool,
        report: dict[str, Any] | None,
        **more: Any,
    ) -> AgentResult | None:
        self.chunk.take_side(self.counts)
        progress = Progress(positions=dict(positions), read=dict(read), rows=rows, counts=self.counts.copy(), lost=tuple(lost))
        result: AgentResult | None = None

        def seal() -> None:
            nonlocal result
            failpoints.hit("chunk.before-ledger")
            progress.outputs = self.outputs.bounds(self.outputs.output, self.progress.outputs)
            progress.dead = self.outputs.bounds(self.outputs.dead, self.progress.dead)
            result = self._result(progress, report, **more) if finished else None
            self._write_records([self._record(progress, result), *self._beside()])

        self.chunk.commit(self.deadline, seal, self.counts)
        self.progress = progress
        return result

    def _record(self, progress: Progress, result: AgentResult | None) -> StageRecord:
        run = self.run
        return StageRecord(
            run.pipeline,
            run.stage,
            run.key,
            run.shard,
            self.fingerprint,
            self.generation,
            scope=self.run.work.scope,
            epoch=self.epoch,
            updated_at=int(time.time() * 1000),
            redo=run.run_id if run.rerun != "reuse" else "",
            orders=self._orders,
            progress=None if result is not None else progress,
            result=None if result is None else StoredResult.of(result),
            source=self._source,
            earlier=self._earlier,
            input_codec=self.input_codec.ref if self.input_codec is not None else None,
            output_codec=self.outputs.codec.ref if self.outputs.codec is not None else None,
            published=self._published if result is None else None,
        )

    def _beside(self) -> Sequence[LedgerRecord]:
        """What more goes into the ledger with each chunk."""
        return ()

    def _write_records(self, records: Sequence[LedgerRecord]) -> None:
        """The ledger's records go last, and nothing else of the chunk can be refused any more."""
        try:
            self.ledger.produce(self.writer.producer, records)
            self.writer.flush(self.deadline)
        except KafkaException as error:
            raise ConfigurationError(f"writing to the ledger {self.ledger.topic!r}: {error.args[0].str()}") from error
        except ChunkAbortedError as aborted:
            if not aborted.refused:
                raise
            size = max(len(msgspec.json.encode(record)) for record in records)
            raise ConfigurationError(
                f"the ledger {self.ledger.topic!r} refuses a record of {size} bytes ({aborted.cause}); raise its max.message.bytes"
            ) from aborted

    def recover(self, reason: str) -> None:
        """After an aborted chunk: a new producer, and the ledger's word whether the work is still ours. Counts go back to the last commit.

        Raises FencedError where it is not.
        """
        self.chunk.abort(reason)
        record = self._claim()
        ours = record is not None and record.generation == self.generation and record.fingerprint == self.fingerprint
        position = record.progress if ours and record is not None else None
        if (record is not None and record.generation > self.generation) or (ours and position != self.progress):
            raise FencedError(f"stage {self.run.stage!r}: another attempt has gone on with this work; this one stops")
        self.counts = self.progress.counts.copy()

    def _result(self, progress: Progress, report: dict[str, Any] | None, **more: Any) -> AgentResult:
        run = self.run
        window = run.window
        span = self.context.trace.context if self.context.trace is not None else None
        if window is not None and progress.lost:
            more["notes"] = (*_loss_notes(window, progress.lost), *more.get("notes", ()))
        return AgentResult(
            pipeline=run.pipeline,
            stage=run.stage,
            key=run.key,
            agent=self.agent,
            version=self.version,
            interval=run.interval or (window.interval if window is not None else None),
            shard=run.shard,
            plan=run.plan,
            origin=run.origin,
            instance=run.instance,
            mapped=run.mapped,
            run=run.digest,
            fingerprint=self.fingerprint,
            generation=self.generation,
            epoch=self.epoch,
            input=None if window is None else Manifest(window.topic, window.topic_id, ",".join(window.writers), window.ranges),
            manifest=self.outputs.manifest(progress.outputs, self.writer_id),
            dead_letters=self.outputs.dead_manifest(progress.dead, self.writer_id),
            counts=self.counts.copy(),
            report=report,
            reasons=self.outputs.reasons.told() if run.dry_run else (),
            seconds=round(time.monotonic() - self._started, 3),
            resumed=self.resumed,
            dry_run=run.dry_run,
            ledger_offset=self._ledger_begin,
            traceparent=span.text if span is not None else "",
            **more,
        )

    def retry_chunk(self, aborted: ChunkAbortedError) -> None:
        """Recover from an abort; see ``Chunk.retry``."""
        if time.monotonic() > self.deadline:
            raise DeadlineError(f"out of time; last: {aborted.cause}")
        self.chunk.retry(aborted)
        self.recover(str(aborted.cause))

    def close(self) -> None:
        """End an open transaction without its outputs, and disconnect."""
        with contextlib.ExitStack() as last_to_first:
            last_to_first.callback(self.cluster.close)
            for codec in filter(None, (self.outputs.codec, self.input_codec)):
                last_to_first.callback(codec.close)
            with contextlib.suppress(FencedError):
                self.writer.abort()
