"""What passes between a Temporal client, workflow and worker: data only, none of it Temporal's.

Each struct has a required field and refuses fields that it doesn't know: a payload meant for something else never reads as an empty one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal

import msgspec

from factory_agents.errors import ConfigurationError
from factory_agents.kafka.records import check_names
from factory_agents.protocol import AgentRef, AgentResult, AgentRun, CodecRef, Counts, Interval, Window

__all__ = [
    "Arrived",
    "BackfillDone",
    "BackfillRequest",
    "Carried",
    "CollectRequest",
    "Collected",
    "Compensation",
    "Judgement",
    "PipelineDone",
    "PipelineRequest",
    "PipelineSpec",
    "Planning",
    "Progress",
    "RunStatus",
    "ScheduledRequest",
    "Slice",
    "SliceOutcome",
    "StageDone",
    "StageSpec",
]

INGEST, VALIDATE = "ingest", "validate"
_LONGEST = 365 * 24 * 3600.0
_LONGEST_QUEUE = 255
_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"
_TAKEN = re.compile(rf"{_TIME}/{_TIME}|backfill/{_TIME}/{_TIME}|schedule(-{_TIME})?|collector")
"""Keys that would give a window the id of another workflow: of an interval, or of the pipeline's backfill, schedule or collector."""
_QUEUES = f"expected at most {_LONGEST_QUEUE} bytes that can be printed, not beginning with /_sys/"


def _is_queue(name: str) -> bool:
    """Whether the server takes it as a task queue's name; no workflow could tell of one that it doesn't."""
    return len(name.encode(errors="replace")) <= _LONGEST_QUEUE and (not name or name.isprintable()) and not name.startswith("/_sys/")


class Compensation(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """The agent that takes back what a stage's agent did outside: it sees the stage's input, also events that the stage didn't come to.

    ``agent``, ``source``, ``version``, ``params``: as for a stage. What it returns goes nowhere.
    """

    agent: str
    source: str = ""
    version: str = ""
    params: dict[str, Any] = {}


class StageSpec(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """One stage: an agent, over what the stage before wrote.

    ``agent``: a built-in, ``module:function``, or with ``source`` the name of the function that this text defines. ``shards``: into how
    many parts the window is cut at most. ``fail_if`` and ``warn_if`` judge the report of ``validate``, as the contract's own conditions
    do. ``task_queue``: whose workers have the agent (by default the pipeline's). ``compensate``: runs over the stage's input if the
    workflow fails or is cancelled once the stage has begun, the last stage's first; another workflow over the window then does the stage
    again.
    """

    name: str
    agent: str
    source: str = ""
    version: str = ""
    params: dict[str, Any] = {}
    output_topic: str = ""
    output_codec: CodecRef | None = None
    dead_letter_topic: str = ""
    shards: int = 1
    max_rejected: str = "50 %"
    fail_if: tuple[str, ...] = ()
    warn_if: tuple[str, ...] = ()
    task_queue: str = ""
    compensate: Compensation | None = None

    def __post_init__(self) -> None:
        """Refuse what no stage can be."""
        if self.shards < 1:
            raise ConfigurationError(f"stage {self.name!r}: shards: expected at least 1, got {self.shards}")
        if not _is_queue(self.task_queue):
            raise ConfigurationError(f"stage {self.name!r}: task_queue: {_QUEUES}, got {self.task_queue!r}")
        if (self.fail_if or self.warn_if) and self.agent != VALIDATE:
            raise ConfigurationError(f"stage {self.name!r}: fail_if and warn_if judge the report of validate, not of {self.agent!r}")
        if self.compensate is not None and self.agent == INGEST:
            raise ConfigurationError(f"stage {self.name!r}: ingest has no input that a compensation could read")

    @property
    def undo(self) -> StageSpec | None:
        """Its compensation, as a stage over the same input."""
        c = self.compensate
        if c is None:
            return None
        return StageSpec(
            name=f"{self.name}.undo",
            agent=c.agent,
            source=c.source,
            version=c.version,
            params=c.params,
            dead_letter_topic=self.dead_letter_topic,
            shards=self.shards,
            max_rejected=self.max_rejected,
            task_queue=self.task_queue,
        )

    @property
    def ref(self) -> AgentRef:
        """The agent as a run names it."""
        return AgentRef(self.agent, self.version, self.source, self.agent if self.source else "")


class PipelineSpec(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """A pipeline as data. With ``pipeline``, stage names and ``prefix`` the same as a DAG's, both do the same work in the same ledger.

    ``topic``: what the first stage reads, and ``codec`` how; without one it is ``ingest``. ``timeout`` is how long one activity may take
    (seconds): an agent over a window of any length is run in slices of that. ``heartbeat_timeout``: when a worker that says nothing is
    given up; ``retry_interval``: how long the first retry of three attempts waits, the second twice as long. ``hold``: for how many seconds
    a workflow in which something failed for good waits for somebody to mend it and to say ``retry``; by default it fails at once.
    """

    pipeline: str
    stages: tuple[StageSpec, ...]
    topic: str = ""
    codec: CodecRef | None = None
    task_queue: str = "factory"
    prefix: str = "factory"
    timeout: float = 300.0
    heartbeat_timeout: float = 10.0
    retry_interval: float = 10.0
    hold: float = 0.0
    chunk_records: int = 100_000
    accept_loss: bool = False
    keep_windows: str = "retention"

    @property
    def task_queues(self) -> set[str]:
        """Where its tasks wait for workers: its own, and its stages'."""
        return {self.task_queue, *(stage.task_queue for stage in self.stages if stage.task_queue)}

    def __post_init__(self) -> None:
        """Refuse what cannot run, before anything does."""
        for problem in self._problems():
            raise ConfigurationError(f"pipeline {self.pipeline!r}: {problem}")

    def _problems(self) -> Iterator[str]:
        if not self.pipeline or "|" in self.pipeline or "/" in self.pipeline:
            yield "expected a name without | and /"
        if not self.stages:
            yield "expected at least one stage"
            return
        names = [s.name for stage in self.stages for s in (stage, stage.undo) if s is not None]
        if len(set(names)) != len(names):
            yield f"each stage needs a name of its own, got {', '.join(names)}"
        ingests = [stage.agent == INGEST for stage in self.stages]
        if ingests != [not self.topic] + [False] * (len(self.stages) - 1):
            yield "expected a topic that the first stage reads, or ingest as the first stage and no topic; and ingest nowhere else"
        for stage in self.stages[:-1]:
            if not stage.output_topic:
                yield f"stage {stage.name!r} needs an output_topic, which the next stage reads"
        for name, least in (("timeout", 1), ("heartbeat_timeout", 1), ("retry_interval", 0.001), ("hold", 0)):
            if not least <= (seconds := getattr(self, name)) <= _LONGEST:
                yield f"{name}: expected {least:g} s to a year, got {seconds:g} s"
        if not self.task_queue or not _is_queue(self.task_queue):
            yield f"task_queue: {_QUEUES}, got {self.task_queue!r}"


class Carried(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """Where a workflow was whose history had grown long, for the one that goes on with an empty one.

    ``inputs``: of the stages that had begun, the last one's for going on, those before it for their compensations; ``results`` of the last
    one's shards that had finished.
    """

    stages: tuple[StageDone, ...]
    inputs: tuple[Window | None, ...]
    results: tuple[AgentResult | None, ...]
    slices: int
    paused: bool = False


class PipelineRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A pipeline over one window: of ``interval``, or without one of what came since the last window, under the name ``key``.

    ``carried``: by the workflow before, of which this one is the rest.
    """

    spec: PipelineSpec
    interval: Interval | None = None
    key: str = ""
    rerun: Literal["reuse", "redo"] = "reuse"
    carried: Carried | None = None

    def __post_init__(self) -> None:
        """Refuse a request for no window, or for two."""
        if (self.interval is None) == (not self.key):
            raise ConfigurationError("expected an interval, or the name of a window without one")
        if self.key:
            check_names(key=self.key)
            if _TAKEN.fullmatch(self.key):
                raise ConfigurationError(f"key: {self.key!r} is the name of another workflow of the pipeline's: name the window otherwise")

    @property
    def window(self) -> str:
        """The window's key."""
        return self.interval.key if self.interval is not None else self.key

    @property
    def workflow_id(self) -> str:
        """``pipeline/window``: one workflow a window, whoever starts it."""
        return f"{self.spec.pipeline}/{self.window}"


class ScheduledRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A pipeline over the window of ``every`` seconds that ends ``delay`` seconds before the time at which it is scheduled."""

    spec: PipelineSpec
    every: float
    delay: float = 0.0


class BackfillDone(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How many windows of a backfill have ended; ``known`` had been done, or were running, before; ``failed`` by their keys."""

    pipeline: str
    windows: int = 0
    known: int = 0
    failed: tuple[str, ...] = ()


class BackfillRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A pipeline over every window of ``every`` seconds in ``interval``, ``at_once`` side by side.

    ``done``: by the workflows before; after ``per_workflow`` windows another goes on, with an empty history.
    """

    spec: PipelineSpec
    interval: Interval
    every: float
    done: BackfillDone
    at_once: int = 4
    per_workflow: int = 500

    def __post_init__(self) -> None:
        """Refuse what has no whole number of windows."""
        seconds = (self.interval.end - self.interval.start).total_seconds()
        if self.every < 1 or self.at_once < 1 or seconds % self.every:
            raise ConfigurationError(
                f"backfill: expected a span of a whole number of windows of {self.every:g} s (at least 1 s), at least 1 at once; got "
                f"{seconds:g} s, {self.at_once} at once"
            )


class Arrived(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Events are in a topic: ``[start, end)`` of offsets by partition. ``topic_id``: of which making of the topic."""

    ranges: dict[int, tuple[int, int]]
    topic_id: str = ""


class Collected(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How far a collector is: events that wait for a window, windows that it has started, names of the latest that failed."""

    pipeline: str
    waiting: int = 0
    windows: int = 0
    failed: tuple[str, ...] = ()


class CollectRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Start a window of what came since the last one when ``count`` events have come, or the first of them has waited ``age`` seconds.

    ``done``, ``topic_id``, ``ends`` (of what is counted, by partition) and ``since`` (when the first event that waits was announced): by
    the workflows before; after ``per_workflow`` windows another goes on, with an empty history.
    """

    spec: PipelineSpec
    count: int
    age: float
    done: Collected
    topic_id: str = ""
    ends: dict[int, int] = {}
    since: datetime | None = None
    per_workflow: int = 200

    def __post_init__(self) -> None:
        """Refuse what would start windows without an end."""
        if self.count < 1 or not 1 <= self.age <= _LONGEST:
            raise ConfigurationError(f"collect: expected at least 1 event and 1 s to a year, got {self.count} and {self.age:g} s")

    def with_word(self, word: Arrived, now: datetime) -> CollectRequest:
        """With the events of a word that are not counted yet: it may come twice. A topic that was made again begins at its beginning."""
        ends, more = dict(self.ends) if word.topic_id == self.topic_id else {}, 0
        for partition, (start, end) in word.ranges.items():
            known = ends.get(partition, 0)
            more += max(0, end - max(start, known))
            ends[partition] = max(known, end)
        since = now if more and not self.done.waiting else self.since
        done = msgspec.structs.replace(self.done, waiting=self.done.waiting + more)
        return msgspec.structs.replace(self, done=done, topic_id=word.topic_id, ends=ends, since=since)


class Planning(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Plan a window: see ``factory_agents.kafka.cuts.plan_window``."""

    pipeline: str
    topic: str
    interval: Interval | None
    key: str
    prefix: str
    accept_loss: bool
    keep_windows: str
    asked: datetime | None = None


class Slice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Run an agent for so many seconds, or to the end of its window."""

    run: AgentRun
    seconds: float


class SliceOutcome(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Where a slice ended: its result, or how far the ledger says the work is (``done`` events of its ``generation``)."""

    done: int
    generation: int = 0
    result: AgentResult | None = None

    @property
    def position(self) -> tuple[int, int]:
        """Changes with everything that is committed."""
        return self.generation, self.done


class Judgement(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Judge what a validate stage reported of its shards."""

    results: tuple[AgentResult, ...]
    prefix: str
    run_id: str
    fail_if: tuple[str, ...] = ()
    warn_if: tuple[str, ...] = ()


class StageDone(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a stage came to: in all its shards, of which ``reused`` were done before."""

    stage: str
    shards: int
    reused: int = 0
    slices: int = 0
    counts: Counts = msgspec.field(default_factory=Counts)
    topic: str = ""
    table: str = ""
    notes: tuple[str, ...] = ()


class PipelineDone(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a pipeline came to over one window."""

    pipeline: str
    window: str
    stages: tuple[StageDone, ...] = ()


class RunStatus(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """What a server says of a workflow. ``status``: ``running``, ``completed``, ``failed``, ``canceled``, ``terminated`` or ``timed_out``.

    ``progress``: while it runs, and where a worker answers; ``result`` once it is completed; ``error`` where it ended otherwise.
    """

    id: str
    status: str
    started: datetime
    ended: datetime | None = None
    progress: Progress | None = None
    result: PipelineDone | None = None
    error: str = ""


class Progress(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How far a workflow is. ``done``: events of the stage that runs, as of its last slice; ``total``: at most, -1 if unknown.

    ``held``: what failed for good, and waits for a ``retry``.
    """

    window: str
    stage: str = ""
    shards: int = 0
    shards_done: int = 0
    done: int = 0
    total: int = -1
    paused: bool = False
    stages: tuple[StageDone, ...] = ()
    held: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """As Temporal's UI shows it: Markdown, a line a stage."""
        lines = [
            f"- **{done.stage}**: {done.counts.consumed:,} events, {done.counts.forwarded:,} forwarded, {done.counts.rejected:,} rejected"
            + (" (done before)" if done.reused == done.shards else "")
            for done in self.stages
        ]
        if self.stage and all(done.stage != self.stage for done in self.stages):
            total = f" of up to {self.total:,}" if self.total >= 0 else ""
            lines.append(f"- **{self.stage}**: {self.done:,}{total} events, {self.shards_done} of {self.shards} shards")
        return "\n".join([*lines, *(["- paused"] if self.paused else []), *(f"- waits for a retry: {error}" for error in self.held)])
