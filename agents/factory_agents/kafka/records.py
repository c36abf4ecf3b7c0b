"""What the ledger's records hold, and how they are written: each kind apart from what goes over the wire, with a version of its own.

A release adds fields with defaults, and kinds; those who don't know them pass them over. What an older release would take for something
else than it is gets a greater version: it is refused by whoever needs that very record, and by nobody else.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias

import msgspec

from factory_agents.errors import ConfigurationError, WindowError
from factory_agents.protocol import AgentResult, CodecRef, Counts, Dataset, Interval, Manifest, Order, PartitionRange, Shard, Work

__all__ = [
    "ALWAYS",
    "KINDS",
    "RECORD_VERSION",
    "AlertRecord",
    "AttemptRecord",
    "CutRecord",
    "FailureRecord",
    "LedgerRecord",
    "MarkRecord",
    "PipelineRecord",
    "PlanRecord",
    "Progress",
    "ReplayRecord",
    "StageRecord",
    "StoredResult",
    "StreamRecord",
    "TableCopy",
    "VerdictRecord",
    "check_names",
    "decode_record",
    "encode_record",
    "failure_key",
    "fence_key",
    "kind_of",
    "mark_key",
    "microseconds",
    "pruned",
    "shards_key",
    "stage_key",
    "stream_key",
]

RECORD_VERSION = 2
"""What this release writes. Records without a version are of the first one, which had the same fields, or fewer."""

_SEPARATOR = "|"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

ALWAYS = -(2**53)
"""The beginning of a span that has none."""


class _Record(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag_field="kind"):
    version: int = RECORD_VERSION


class PipelineRecord(_Record, frozen=True, tag="pipeline"):
    """How a pipeline's windows are made, fixed by its first plan."""

    pipeline: str
    mode: Literal["intervals", "since_last"]

    def key(self) -> str:
        """The record key."""
        return _SEPARATOR.join(("pipeline", self.pipeline))


class CutRecord(_Record, frozen=True, tag="cut"):
    """A time on a topic as an offset per partition (by position), fixed once and for good.

    ``at`` is the time in milliseconds, or the moment of planning for a cut that a run (``run_key``) made. ``scheduled`` cuts are ends of
    scheduled intervals, which a later run may carry on from; a cut that a manual run made gets that mark when a scheduled run asks for it.
    """

    pipeline: str
    topic: str
    topic_id: str
    at: int
    offsets: tuple[int, ...]
    run_key: str = ""
    scheduled: bool = False

    def key(self) -> str:
        """The record key."""
        return _SEPARATOR.join(("cut", self.pipeline, self.topic_id, self.run_key or str(self.at)))


class PlanRecord(_Record, frozen=True, tag="plan"):
    """A window that was planned, whether anything ran over it yet or not.

    ``carried`` and ``gap`` as in Window. ``replaces`` is the id of the topic that was deleted with what it held, which was accepted;
    ``former`` says that the window stays what it was on that one, as this one holds nothing for it. Of a source ``topic`` is empty, and
    ``topic_id`` names the stage that reads it.
    """

    pipeline: str
    topic: str
    topic_id: str
    window: str
    ranges: tuple[PartitionRange, ...]
    interval: Interval | None = None
    carried: int = 0
    lost: tuple[PartitionRange, ...] = ()
    gap: int = 0
    replaces: str = ""
    former: bool = False
    planned_at: int = 0

    def key(self) -> str:
        """The record key."""
        return _SEPARATOR.join(("plan", self.pipeline, self.topic_id, self.window))


class Progress(msgspec.Struct, omit_defaults=True):
    """How far an unfinished stage is: next offset per input partition (or rows of a source), what it wrote so far, and what was lost."""

    positions: dict[int, int] = {}
    rows: int = 0
    outputs: dict[int, tuple[int, int, int]] = {}
    dead: dict[int, tuple[int, int, int]] = {}
    counts: Counts = msgspec.field(default_factory=Counts)
    read: dict[int, int] = {}
    lost: tuple[PartitionRange, ...] = ()


class StoredResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a finished shard of a stage came to, as the ledger keeps it: AgentResult's fields, without what the record says itself."""

    agent: str = ""
    version: str = ""
    interval: Interval | None = None
    plan: str = ""
    origin: str = ""
    instance: int = 0
    mapped: int = 0
    input_generation: int = 0
    input: Manifest | None = None
    manifest: Manifest | None = None
    dead_letters: Manifest | None = None
    counts: Counts = msgspec.field(default_factory=Counts)
    report: dict[str, Any] | None = None
    dataset: Dataset | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    resumed: bool = False
    ledger_offset: int = 0
    run: str = ""
    traceparent: str = ""

    @classmethod
    def of(cls, result: AgentResult) -> StoredResult:
        """The part of a result that is stored."""
        return cls(**{name: getattr(result, name) for name in cls.__struct_fields__})


class Published(msgspec.Struct, frozen=True, array_like=True):
    """What a sink published last of a shard: of which plan, what these writers had written, and its place among other such inputs."""

    plan: str
    writers: str
    input_generation: int


class MarkRecord(_Record, frozen=True, tag="mark"):
    """What was pruned of a pipeline's windows of one origin (a topic, or a source): such work is refused, as its results are forgotten.

    ``spans`` are the times whose intervals were pruned, ``[start, end)`` in microseconds since 1970; of a topic one span without a
    beginning: the low-water mark. Windows without an interval were pruned where they were planned below ``offset`` of the ledger; a
    run that was there by ``asked`` (milliseconds) and has no plan may be one of them. ``at`` says when it was last looked at, and ``keep``
    for how long windows were remembered then (milliseconds; 0: nobody said). ``stages`` are those that the windows had which were pruned
    last: a later one without one of them isn't finished.
    """

    pipeline: str
    origin: str
    spans: tuple[tuple[int, int], ...] = ()
    offset: int = 0
    asked: int = 0
    at: int = 0
    keep: int = 0
    stages: tuple[str, ...] = ()

    def key(self) -> str:
        """The record key."""
        return mark_key(self.pipeline, self.origin)

    def covers(self, interval: Interval) -> bool:
        """Whether windows at this time were pruned."""
        return self.covers_span(microseconds(interval.start), microseconds(interval.end))

    def covers_span(self, start: int, end: int) -> bool:
        """The same of a time in microseconds since 1970."""
        return any(first < end and start < last for first, last in self.spans)

    @property
    def low_water(self) -> int | None:
        """Of a topic's windows: the time (milliseconds) before whose they begin that were pruned; None where no such mark is set."""
        return self.spans[0][1] // 1000 if self.spans and self.spans[0][0] == ALWAYS else None


class StageRecord(_Record, frozen=True, tag="stage"):
    """A shard of a stage over a window: in progress, or finished with its result.

    ``scope`` tells works over the same window apart (``AgentRun.scope``). ``redo`` is the run that told the work in progress to be done
    again: its own retries resume it. ``orders`` are those that the work obeyed, by task instance; ``epoch`` counts how many of them
    told it to begin again. ``source`` tells what a source held. ``earlier`` are the dead letters of finished work over other records
    under this key (another topic of the name, another content of the file), which are still good for a replay. ``input_codec`` and
    ``output_codec`` are what it is read and written with, pinned. ``published`` is what a sink published before the work in progress.
    """

    pipeline: str
    stage: str
    window: str
    shard: Shard
    fingerprint: str
    generation: int
    scope: str = ""
    epoch: int = 0
    updated_at: int = 0
    redo: str = ""
    orders: tuple[Order, ...] = ()
    progress: Progress | None = None
    result: StoredResult | None = None
    source: str = ""
    earlier: tuple[Manifest, ...] = ()
    input_codec: CodecRef | None = None
    output_codec: CodecRef | None = None
    published: Published | None = None

    def last_published(self) -> Published | None:
        """What the sink that it speaks of published last, also while the work is done again."""
        result = self.result
        if result is None or not result.input_generation:
            return self.published
        return Published(result.plan, result.input.writer if result.input is not None else "", result.input_generation)

    def answer(self) -> AgentResult | None:
        """The result as its run gave it, once the work is finished."""
        if self.result is None:
            return None
        stored: dict[str, Any] = {name: getattr(self.result, name) for name in self.result.__struct_fields__}
        return AgentResult(
            self.pipeline,
            self.stage,
            self.window,
            shard=self.shard,
            fingerprint=self.fingerprint,
            generation=self.generation,
            epoch=self.epoch,
            **stored,
        )

    def key(self) -> str:
        """The record key."""
        return stage_key(Work(self.pipeline, self.stage, self.window, self.shard, self.scope))


class TableCopy(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far the first copy of a table is: rows up to the key ``after`` (None: none) are in the topic, as many as ``rows``.

    ``horizon``: it may begin once every transaction with a lower number is over.
    """

    horizon: int
    after: tuple[str, ...] | None = None
    rows: int = 0


class StreamRecord(_Record, frozen=True, tag="stream"):
    """How far a database's log is in a topic, whatever window brought it there: written with the records that it speaks of.

    All transactions that were committed before ``lsn`` are in; of the one committed at ``transaction`` (0: none) the first ``done``
    changes. An ``lsn`` of 0 says that the slot is about to be made. ``copying`` is there until the table's rows are in. ``window`` read it
    last (its interval ends at ``end``, microseconds since 1970) and reads up to ``until``, or (``timed``) to the first transaction after
    its interval; it is ``open`` until it is finished. ``system``, ``database`` and ``table`` (its oid) tell the log from others,
    ``topic_id`` where it goes. ``behind`` is how many bytes of log were not read yet at ``at`` (milliseconds), ``changed`` (milliseconds)
    when the newest change that is in was committed. ``key_columns`` are those of the records' keys (none: nothing was written yet), and
    ``condition`` is what the publication asked of rows (None: not known), ``membership`` the table's place in it.
    """

    pipeline: str
    stage: str
    scope: str
    slot: str
    publication: str
    system: str
    database: str
    table: int
    name: str
    topic: str
    topic_id: str
    lsn: int = 0
    transaction: int = 0
    done: int = 0
    copying: TableCopy | None = None
    window: str = ""
    end: int = 0
    until: int = 0
    timed: bool = True
    open: bool = False
    behind: int = 0
    changed: int = 0
    at: int = 0
    key_columns: tuple[str, ...] = ()
    condition: str | None = None
    membership: str = ""

    def key(self) -> str:
        """The record key."""
        return stream_key(self.pipeline, self.stage, self.scope)


class ReplayRecord(_Record, frozen=True, tag="replay"):
    """Dead letters that one transaction put back into a topic: their offsets by partition.

    ``at`` (milliseconds) says when, ``first`` (``partition@offset``) names one of them, ``again`` the repetition that it was a part of.
    """

    pipeline: str
    topic_id: str
    to: str
    offsets: dict[int, list[int]]
    at: int
    first: str
    again: str = ""

    def key(self) -> str:
        """The record key: its own for each transaction."""
        return _SEPARATOR.join(("replay", self.pipeline, self.topic_id, f"{self.at}.{self.first}"))


class FailureRecord(_Record, frozen=True, tag="failure"):
    """The last attempt at a stage's shard failed: why, when it began and when it ended (milliseconds).

    For whoever looks, no more: what is done or to be resumed is in StageRecords. One of these that began before the shard was
    finished says nothing any more.
    """

    pipeline: str
    stage: str
    window: str
    shard: Shard
    began: int
    at: int
    error: str
    message: str
    retriable: bool = False
    run_id: str = ""
    scope: str = ""

    def key(self) -> str:
        """The record key."""
        return failure_key(Work(self.pipeline, self.stage, self.window, self.shard, self.scope))


class AttemptRecord(_Record, frozen=True, tag="attempt"):
    """One attempt at a stage's shard that failed, for good: it is for those who count, and no later attempt takes it back.

    Times as in FailureRecord; ``agent`` is its name, ``error`` the error's class.
    """

    pipeline: str
    stage: str
    window: str
    shard: Shard
    began: int
    at: int
    error: str
    agent: str = ""
    retriable: bool = False
    scope: str = ""

    def key(self) -> str:
        """The record key: its own for each attempt."""
        work = Work(self.pipeline, self.stage, self.window, self.shard, self.scope)
        return f"{_work_key('attempt', work)}{self.shard.key}@{self.began}"


class VerdictRecord(_Record, frozen=True, tag="verdict"):
    """What a task found in a validation report by conditions of its own, which stand in no contract.

    ``judged`` is the stage whose report it is, ``stage`` the task's: the same one, or a judge of its own. ``checks`` are as those of the
    report (``contracts.check``). It is about the report of the ``generation`` (the newest shard's), and says nothing of a later one.
    ``tolerated``: the verdict was ``fail``, and the task went on.
    """

    pipeline: str
    stage: str
    window: str
    judged: str
    generation: int
    at: int
    scope: str = ""
    checks: tuple[dict[str, Any], ...] = ()
    tolerated: bool = False

    def key(self) -> str:
        """The record key."""
        return _work_key("verdict", Work(self.pipeline, self.stage, self.window, scope=self.scope)) + self.judged


class AlertRecord(_Record, frozen=True, tag="alert"):
    """Something happened to a window that people are told of: what, when (milliseconds) and to whom (``who``, such as a task's name).

    ``sent`` says that the message about the record ``of`` went out. Of anything else ``of`` names a record whose author was to send the
    message and seems to have died: this one's author does it instead. See ``alerts``.
    """

    pipeline: str
    window: str
    id: str
    what: Literal["failed", "late", "warned", "whole", "sent"]
    at: int
    who: str = ""
    of: str = ""

    def key(self) -> str:
        """The record key: its own for each."""
        return _SEPARATOR.join(("alert", self.pipeline, self.window, self.id))


def _work_key(kind: str, work: Work) -> str:
    return _SEPARATOR.join((kind, work.pipeline, work.stage, work.scope, work.window, ""))


def shards_key(work: Work) -> str:
    """What the record keys of all shards of a work's stage over its window begin with (and those of windows with a longer name)."""
    return _work_key("stage", work)


def mark_key(pipeline: str, origin: str) -> str:
    """The record key of what was pruned of an origin's windows."""
    return _SEPARATOR.join(("mark", pipeline, origin))


def microseconds(moment: datetime) -> int:
    """A time as microseconds since 1970 UTC."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def stream_key(pipeline: str, stage: str, scope: str) -> str:
    """The record key of how far a log is read."""
    return _SEPARATOR.join(("stream", pipeline, stage, scope))


def stage_key(work: Work) -> str:
    """The record key of what was done."""
    return shards_key(work) + work.shard.key


def fence_key(work: Work) -> str:
    """The key of no record: see ``Session.check_fence``."""
    return _work_key("fence", work) + work.shard.key


def failure_key(work: Work) -> str:
    """The record key of the last failure."""
    return _work_key("failure", work) + work.shard.key


LedgerRecord: TypeAlias = (
    PipelineRecord
    | CutRecord
    | PlanRecord
    | MarkRecord
    | StageRecord
    | StreamRecord
    | ReplayRecord
    | FailureRecord
    | AttemptRecord
    | AlertRecord
    | VerdictRecord
)
_TYPES: dict[str, type[LedgerRecord]] = {
    "pipeline": PipelineRecord,
    "cut": CutRecord,
    "plan": PlanRecord,
    "mark": MarkRecord,
    "stage": StageRecord,
    "stream": StreamRecord,
    "replay": ReplayRecord,
    "failure": FailureRecord,
    "attempt": AttemptRecord,
    "alert": AlertRecord,
    "verdict": VerdictRecord,
}
KINDS = tuple(_TYPES)
"""What a record's key may begin with."""
_KINDS = {type_: kind for kind, type_ in _TYPES.items()}
_DECODERS = {kind: msgspec.json.Decoder(type_) for kind, type_ in _TYPES.items()}


def kind_of(record: str | type[Any]) -> str:
    """The kind of a record, by its key or by its type; empty for one that this release doesn't know."""
    if not isinstance(record, str):
        return _KINDS.get(record, "")
    kind = record.partition(_SEPARATOR)[0]
    return kind if kind in _TYPES else ""


def encode_record(record: LedgerRecord) -> bytes:
    """The record as JSON, its version first."""
    return b'{"version":%d,' % record.version + msgspec.json.encode(record)[1:]


def decode_record(kind: str, value: bytes) -> LedgerRecord:
    """A record of a known kind; raises ValueError with the reason for one that a newer release meant to be read by none before it."""
    record = _DECODERS[kind].decode(value)
    if record.version > RECORD_VERSION:
        raise ValueError(f"its version is {record.version}, this release reads up to {RECORD_VERSION}")
    return record


def check_names(**names: str) -> None:
    """Refuse names that cannot stand in ledger keys and transactional ids."""
    for what, name in names.items():
        if not name or "|" in name or not name.isprintable():
            raise ConfigurationError(f"{what.replace('_', ' ')}: expected a printable name without '|', got {name!r}")


def pruned(doing: str, window: str) -> WindowError:
    """The error of work that lies below a mark."""
    return WindowError(
        f"{doing}: window {window} was pruned from the ledger, so its results are no longer known, and it isn't done again; "
        f"use another pipeline name (--pipeline) to do it all the same"
    )
