"""What every windowed run shares: the start order, the fingerprint, dead letters, chunks committed with their progress, the result."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from factory_agents import failpoints
from factory_agents.errors import AccountingError, ConfigurationError, DeadlineError, FencedError, TooManyRejectedError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.cuts import check_names, check_window_topic
from factory_agents.kafka.ledger import Ledger, Progress, StageRecord, stage_key
from factory_agents.kafka.topics import Cluster
from factory_agents.kafka.writer import ChunkAbortedError, TransactionalWriter
from factory_agents.protocol import AgentResult, AgentRun, Counts, Manifest, digest
from factory_agents.runtime.outputs import Origin, Outputs
from factory_agents.telemetry import fields

__all__ = ["Observer", "RunContext", "Session", "fingerprint", "parse_limit"]

log = logging.getLogger(__name__)

_FOREVER = 10 * 365 * 24 * 3600.0

Observer = Callable[[str, int, int, Counts], None]
"""Called as work proceeds: stage, records done, records in all (-1: unknown), counts so far."""


def _silent(stage: str, done: int, total: int, counts: Counts) -> None:
    return None


@dataclass
class RunContext:
    """What surrounds a run: the cluster, a question whether to stop, who is told of progress, and where a dry run shows its outputs."""

    config: KafkaConfig
    stop: Callable[[], bool] = lambda: False
    observer: Observer = _silent
    show: Callable[[str, bytes | None, bytes | None], None] = lambda topic, key, value: None


def fingerprint(run: AgentRun, name: str, version: str, identity: dict[str, Any]) -> str:
    """Equal for equal work: pipeline, stage, window, shard, agent with version and resolved parameters, output topic."""
    window = run.window
    return digest(
        {
            "pipeline": run.pipeline,
            "stage": run.stage,
            "key": run.key,
            "shard": run.shard,
            "window": None
            if window is None
            else [window.topic_id, [r[:3] for r in map(msgspec.to_builtins, window.ranges)], window.writers],
            "agent": [name, version, identity],
            "output": run.output_topic,
        }
    )


def parse_limit(text: str) -> tuple[float, bool]:
    """A limit on rejected events: ``"5 %"`` gives (5.0, True), ``"1000"`` gives (1000.0, False)."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if found is None:
        raise ConfigurationError(f"max_rejected: expected a number or a percentage such as '5 %', got {text!r}")
    return float(found[1]), found[2] == "%"


class Session:
    """One attempt at one shard of one stage over one window.

    ``start`` decides: a finished result of the same fingerprint is returned (``reused``), unfinished work is resumed (``progress``), else the work
    begins anew under a new generation. Then chunks: put records into ``outputs`` and ``commit`` them with the progress, or ``recover`` after an abort.
    """

    def __init__(self, context: RunContext, run: AgentRun, name: str, version: str, identity: dict[str, Any]) -> None:
        check_names(pipeline=run.pipeline, stage=run.stage, prefix=run.prefix)
        self.run = run
        self.context = context
        self.agent, self.version = name, version
        self._volatile = bool(identity.get("volatile"))
        self.fingerprint = fingerprint(run, name, version, identity)
        self.deadline = time.monotonic() + (run.deadline_seconds or _FOREVER)
        self.cluster = Cluster(context.config)
        self.ledger = Ledger(context.config, self.cluster, prefix=run.prefix, pipeline=run.pipeline)
        self.writer = TransactionalWriter(context.config, run.transactional_id)
        self.generation = 0
        self._view_end = 0
        self.resumed = False
        self.progress = Progress()
        self.counts = Counts()
        window = run.window
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
                input_partitions=self.cluster.topic(window.topic).partitions if window is not None and window.ranges else 0,
            ),
            output=run.output_topic,
            dead=run.dead_letter_topic,
            show=context.show if run.dry_run else None,
        )
        self._started = time.monotonic()
        self._limit = parse_limit(run.max_rejected)

    @property
    def writer_id(self) -> str:
        """What this attempt's records carry in their header."""
        return f"{self.run.stage}/{self.fingerprint}/{self.generation}"

    def start(self) -> AgentResult | None:
        """The start order: check topics, fence, read the ledger to its end, decide. The result, where the work is done already."""
        run = self.run
        self.outputs.resolve()
        if run.output_topic:
            check_window_topic(self.cluster, run.output_topic)
        if run.dry_run:
            return None
        self.ledger.ensure()
        return self._decide()

    def _decide(self) -> AgentResult | None:
        record = self._claim()
        done = self._reusable(record)
        if done is not None:
            self.writer.close()
            return msgspec.structs.replace(done, reused=True)
        if record is not None and record.progress is not None and self._same_work(record):
            self.resumed = True
            self.generation = record.generation
            self.progress = record.progress
            log.info("resuming", extra=fields(stage=self.run.stage, done=self.progress.counts.consumed))
        else:
            self.generation = self._view_end
            self.progress = Progress()
        self.counts = self.progress.counts.copy()
        self.outputs.sign(self.writer_id)
        return None

    def _claim(self) -> StageRecord | None:
        self.writer.open(self.deadline)
        failpoints.hit("start.after-init")
        window = self.run.window
        view = self.ledger.read(
            start=window.ledger_offset if window is not None else 0, deadline=min(self.deadline, time.monotonic() + 900)
        )
        self._view_end = view.end
        found = view.get(stage_key(self.run.pipeline, self.run.stage, self.run.key, self.run.shard))
        return found if isinstance(found, StageRecord) else None

    def _same_work(self, record: StageRecord) -> bool:
        return record.fingerprint == self.fingerprint and self.run.epoch <= record.epoch and not self._volatile

    def _reusable(self, record: StageRecord | None) -> AgentResult | None:
        if record is None or record.result is None or self.run.rerun == "redo" or not self._same_work(record):
            return None
        manifest, output = record.result.manifest, self.outputs.output
        if manifest is not None and output is not None and manifest.topic_id != output.id:
            log.warning("the output topic was recreated since; doing the work anew", extra=fields(topic=output.name))
            return None
        return record.result

    def check_rejected(self, *, final: bool) -> None:
        """Fail once more events are rejected than ``max_rejected`` allows; a percentage counts from 10 rejected on, and early only from 10,000 consumed."""
        limit, percent = self._limit
        rejected, consumed = self.counts.rejected, self.counts.consumed
        if percent:
            broken = rejected >= 10 and rejected > consumed * limit / 100 and (final or consumed >= 10_000)
        else:
            broken = rejected > limit
        if broken:
            raise TooManyRejectedError(
                f"stage {self.run.stage!r}: {rejected} of {consumed} events rejected, more than max_rejected={self.run.max_rejected!r} allows; "
                f"see them: factory dead-letters list {self.outputs.dead_name}"
            )

    def check_counts(self) -> None:
        """Fail unless every consumed record was forwarded, filtered or rejected."""
        c = self.counts
        if c.consumed != c.forwarded + c.filtered + c.rejected:
            raise AccountingError(
                f"stage {self.run.stage!r}: consumed {c.consumed} != forwarded {c.forwarded} + filtered {c.filtered} + rejected {c.rejected}"
            )

    def commit(
        self,
        positions: dict[int, int],
        read: dict[int, int],
        *,
        rows: int = 0,
        finished: bool = False,
        report: dict[str, Any] | None = None,
        **more: Any,
    ) -> AgentResult | None:
        """Commit the chunk with its progress, or with the result when ``finished``.

        Raises ChunkAbortedError where the chunk may be tried again, FencedError, UnavailableError, DeadlineError.
        """
        self.check_counts()
        if self.run.dry_run:
            return self._result(self.progress, report, **more) if finished else None
        self.writer.begin()
        self.writer.flush(self.deadline)
        failpoints.hit("chunk.before-ledger")
        progress = Progress(
            positions=positions,
            read=read,
            rows=rows,
            counts=self.counts.copy(),
            outputs=self.outputs.bounds(self.outputs.output, self.progress.outputs),
            dead=self.outputs.bounds(self.outputs.dead, self.progress.dead),
        )
        result = self._result(progress, report, **more) if finished else None
        record = StageRecord(
            self.run.pipeline,
            self.run.stage,
            self.run.key,
            self.run.shard,
            self.fingerprint,
            self.generation,
            epoch=self.run.epoch,
            updated_at=int(time.time() * 1000),
            progress=None if finished else progress,
            result=result,
        )
        self.ledger.produce(self.writer.producer, [record])
        self.writer.commit(self.deadline)
        self.progress = progress
        self.outputs.forget()
        return result

    def recover(self) -> None:
        """After an aborted chunk: a new producer, and the ledger's word whether the work is still ours. Counts go back to the last commit."""
        self.writer.abort()
        self.outputs.forget()
        record = self._claim()
        ours = record is not None and record.generation == self.generation and record.fingerprint == self.fingerprint
        position = record.progress if ours and record is not None else None
        if (record is not None and record.generation > self.generation) or (ours and position != self.progress):
            raise FencedError(f"stage {self.run.stage!r}: another attempt has gone on with this work; this one stops")
        self.counts = self.progress.counts.copy()

    def _result(self, progress: Progress, report: dict[str, Any] | None, **more: Any) -> AgentResult:
        run = self.run
        window = run.window
        return AgentResult(
            pipeline=run.pipeline,
            stage=run.stage,
            key=run.key,
            agent=self.agent,
            version=self.version,
            interval=run.interval or (window.interval if window is not None else None),
            shard=run.shard,
            plan=run.plan,
            fingerprint=self.fingerprint,
            generation=self.generation,
            epoch=run.epoch,
            input=None if window is None else Manifest(window.topic, window.topic_id, ",".join(window.writers), window.ranges),
            manifest=self.outputs.manifest(progress.outputs, self.writer_id),
            dead_letters=self.outputs.dead_manifest(progress.dead, self.writer_id),
            counts=self.counts.copy(),
            report=report,
            seconds=round(time.monotonic() - self._started, 3),
            resumed=self.resumed,
            dry_run=run.dry_run,
            ledger_offset=window.ledger_offset if window is not None else 0,
            **more,
        )

    def retry_chunk(self, aborted: ChunkAbortedError, attempt: int) -> None:
        """Log an abort and recover, or give up after five in a row that no refused record explains."""
        if attempt >= 5 and not aborted.refused:
            raise aborted.cause
        if time.monotonic() > self.deadline:
            raise DeadlineError(f"out of time; last: {aborted.cause}")
        log.warning("chunk aborted, trying it again", extra=fields(stage=self.run.stage, reason=str(aborted.cause)))
        self.recover()

    def close(self) -> None:
        """End an open transaction without its outputs, and disconnect."""
        self.writer.abort()
        self.cluster.close()
