"""What an orchestrator tells an agent (``AgentRun``) and what the agent answers (``AgentResult``): versioned JSON, data only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar

import msgspec

from factory_agents.errors import ConfigurationError, DryRunError, WindowError

__all__ = [
    "PROTOCOL_VERSION",
    "AgentRef",
    "AgentResult",
    "AgentRun",
    "CodecRef",
    "Counts",
    "Dataset",
    "ErrorInfo",
    "Example",
    "Interval",
    "Manifest",
    "Order",
    "PartitionRange",
    "Reason",
    "Shard",
    "Window",
    "Work",
    "decode_result",
    "decode_run",
    "decode_window",
    "digest",
    "encode",
    "merge_results",
    "plain",
    "read_writers",
    "scope_of",
    "shard_output",
    "shard_window",
    "to_ms",
    "transactional_id",
]

PROTOCOL_VERSION = 1

_T = TypeVar("_T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_SPANS = 16


def to_ms(moment: datetime) -> int:
    """Milliseconds since 1970 UTC, rounded up."""
    return -((_EPOCH - moment) // timedelta(milliseconds=1))


def _text(moment: datetime) -> str:
    digits = "microseconds" if moment.microsecond % 1000 else "milliseconds"
    return moment.astimezone(UTC).isoformat(timespec=digits).replace("+00:00", "Z")


class Interval(msgspec.Struct, frozen=True):
    """A half-open span of time ``[start, end)``, both aware datetimes in UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        """Refuse naive and backwards intervals."""
        for name in ("start", "end"):
            if getattr(self, name).tzinfo is None:
                raise WindowError(f"interval {name}: expected a time with a time zone, got {getattr(self, name).isoformat()}")
            try:
                getattr(self, name).astimezone(UTC)
            except OverflowError:
                raise WindowError(f"interval {name}: expected a time from year 1 to 9999 in UTC, got {getattr(self, name)}") from None
        if self.end <= self.start:
            raise WindowError(
                f"interval: its end {self.end.isoformat()} is not after its start {self.start.isoformat()}; give them the other way round"
            )
        if self.end_ms == self.start_ms:
            raise WindowError(f"interval: expected at least a millisecond, got {self.start.isoformat()} to {self.end.isoformat()}")

    @property
    def start_ms(self) -> int:
        """Start in milliseconds since 1970 UTC, rounded up: the first a record at or past it can have."""
        return to_ms(self.start)

    @property
    def end_ms(self) -> int:
        """End in milliseconds since 1970 UTC, rounded up as the start is."""
        return to_ms(self.end)

    @property
    def key(self) -> str:
        """Canonical text, equal for equal instants only: used in ledger keys and transactional ids.

        Milliseconds, and microseconds where there are any: rows of a source are told apart by them.
        """
        return f"{_text(self.start)}/{_text(self.end)}"


class PartitionRange(msgspec.Struct, frozen=True, array_like=True):
    """Offsets ``[start, end)`` of one partition; ``count`` is how many records the writer put there, -1 where that is unknown."""

    partition: int
    start: int
    end: int
    count: int = -1


class Shard(msgspec.Struct, frozen=True, array_like=True):
    """Shard ``index`` (from 0) of ``of`` (at least 1)."""

    index: int = 0
    of: int = 1

    @property
    def key(self) -> str:
        """Text for ledger keys, for example ``0of4``."""
        return f"{self.index}of{self.of}"


class CodecRef(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the records of a topic are written: a codec's name (or ``module:Class``) and its options. JSON is None.

    ``pinned`` is what the options leave open and the first attempt at a piece of work found out for good: which schema ``latest`` is.
    """

    name: str
    options: dict[str, Any] = {}
    pinned: dict[str, Any] = {}


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one stage (one shard of it) wrote to one topic: bounds and counts per partition, whose records count, and their codec."""

    topic: str
    topic_id: str
    writer: str
    ranges: tuple[PartitionRange, ...] = ()
    codec: CodecRef | None = None

    @property
    def count(self) -> int:
        """Records written."""
        return sum(r.count for r in self.ranges)

    @property
    def writers(self) -> tuple[str, ...]:
        """Whose records count; empty for everybody's."""
        return read_writers(self.writer)


class Window(msgspec.Struct, frozen=True, omit_defaults=True):
    """The records of one topic between two cuts, or those that a manifest names.

    ``writers`` holds the writers whose records belong to it (empty: every record). ``generation`` orders windows made from
    the same interval: a greater one is newer. ``lost`` are ranges known to be gone and accepted as such. ``ledger_offset`` is where
    a reader of the pipeline's ledger partition may begin. ``carried`` records arrived before the interval, in a pause, and are in this
    window; ``gap`` lay beside it in no window when it was planned (a backfill takes them). Both are upper bounds, in offsets.
    ``origin`` is the topic on which the pipeline's window was planned, and ``instance`` tells mapped tasks apart: stages hand both on.
    ``codec`` is what reads its records. ``spans`` are the runs that wrote them, as ``traceparent``, where they were traced; they say
    nothing of which records these are.
    """

    pipeline: str
    topic: str
    topic_id: str
    ranges: tuple[PartitionRange, ...]
    interval: Interval | None = None
    name: str = ""
    writers: tuple[str, ...] = ()
    generation: int = 0
    ledger_offset: int = 0
    lost: tuple[PartitionRange, ...] = ()
    carried: int = 0
    gap: int = 0
    origin: str = ""
    instance: int = 0
    codec: CodecRef | None = None
    spans: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What names this window in ledger keys and transactional ids: its interval, its name, or a hash of its ranges."""
        if self.interval is not None:
            return self.interval.key
        return self.name or digest([self.topic, self.topic_id, [(r.partition, r.start, r.end) for r in self.ranges], self.writers])

    @property
    def size(self) -> int:
        """Upper bound of its records: counts where known, else offsets (control records included)."""
        return sum(r.count if r.count >= 0 else max(0, r.end - r.start) for r in self.ranges)


class AgentRef(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which agent: a built-in's name, ``module:function``, or a function's source text that travels with the run."""

    name: str
    version: str = ""
    source: str = ""
    function: str = ""


def transactional_id(prefix: str, *parts: str) -> str:
    """A transactional id that no other parts make: none of them but a window's key, next to last, may hold the separator."""
    return "|".join((prefix, *parts))


def scope_of(origin: str, instance: int) -> str:
    """What tells a pipeline's works over one interval apart: where their records came from, and which mapped task's they are."""
    return f"{origin}[{instance}]" if instance else origin


class Work(msgspec.Struct, frozen=True):
    """What a piece of work is: who fences whom, what is resumed, returned again or replaced goes by this and by nothing else.

    ``window`` is the window's key, ``scope`` as in ``scope_of``.
    """

    pipeline: str
    stage: str
    window: str
    shard: Shard = Shard()
    scope: str = ""


class Order(msgspec.Struct, frozen=True, array_like=True):
    """What an orchestrator has told one task instance so far, by that task instance's own counters.

    A clear raises ``tries`` (the try that is to be its last) and ``clears`` (of its run), a retry neither. They are compared with what
    the ledger remembers of the same ``task`` alone; where it doesn't know the task yet, ``again`` says whether it was cleared before.
    ``began`` is when its run began (milliseconds; 0: unknown): a run that was deleted and made again under its name counts from 0 again.
    """

    task: str
    tries: int = 0
    clears: int = 0
    again: bool = False
    began: int = 0

    def is_of_a_later_run(self, before: Order) -> bool:
        """Whether the run of an earlier order is gone, and this is another of its name: a clear of the same one would count up."""
        return self.began > before.began > 0 and self.clears <= before.clears


class AgentRun(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One stage (one shard of it) to run over one window.

    ``window`` is None for ``ingest``, whose window is ``interval`` over the source's time column, or all rows under ``name``. ``plan``
    names the whole plan that the shard is a part of. ``origin`` and ``instance`` are as in Window: they and pipeline, stage, window and
    shard are what the work *is*. ``mapped``: how many tasks the stage is mapped to (0: it isn't, or nobody can tell). ``rerun``:
    ``reuse`` returns the finished result of the same fingerprint, ``redo`` does the work again, ``ask_again`` asks models again too
    (``redo`` takes the answers that are logged); so does an ``order`` that was given since. Limits and ``accept_loss`` don't enter the
    fingerprint; ``max_lag_downstream`` and ``downstream_group`` are limits of ``ingest``: how far readers of the output topic may be
    behind. ``keep_windows``: for how long the ledger remembers what was read of a source, such as ``45 d``. ``output_codec`` is what
    writes records to the output topic; the window names what reads them.

    ``traceparent`` is the span that it is a part of: it says nothing of what is done.

    ``untrusted`` names the parameters whose values come from whoever started the run, not from the pipeline's author: the files and URLs
    that they name are confined (see ``factory_agents.paths``).
    """

    pipeline: str
    stage: str
    agent: AgentRef
    protocol: int = PROTOCOL_VERSION
    params: dict[str, Any] = {}
    untrusted: tuple[str, ...] = ()
    window: Window | None = None
    interval: Interval | None = None
    name: str = ""
    shard: Shard = Shard()
    plan: str = ""
    origin: str = ""
    instance: int = 0
    mapped: int = 0
    output_topic: str = ""
    output_codec: CodecRef | None = None
    dead_letter_topic: str = ""
    run_id: str = ""
    rerun: Literal["reuse", "redo", "ask_again"] = "reuse"
    order: Order | None = None
    accept_loss: bool = False
    dry_run: bool = False
    max_rejected: str = "50 %"
    deadline_seconds: float = 0.0
    chunk_records: int = 100_000
    max_lag_downstream: int = 0
    downstream_group: str = ""
    prefix: str = "factory"
    keep_windows: str = "retention"
    traceparent: str = ""

    @property
    def key(self) -> str:
        """The window's or the interval's key, or the name given in their place."""
        if self.window is not None:
            return self.window.key
        if self.interval is not None:
            return self.interval.key
        if not self.name:
            raise WindowError(f"stage {self.stage!r}: expected a window or an interval, got neither")
        return self.name

    @property
    def work(self) -> Work:
        """What is run, whoever runs it and however often."""
        return Work(self.pipeline, self.stage, self.key, self.shard, scope_of(self.origin, self.instance))

    @property
    def transactional_id(self) -> str:
        """Stable over attempts, versions and parameters, so that a newer attempt fences an older one."""
        work = self.work
        return transactional_id(self.prefix, "stage", work.pipeline, work.stage, work.scope, work.window, work.shard.key)

    @property
    def digest(self) -> str:
        """Equal for runs that are told the same: everything in them but where their ledger may be read from, and their traces."""
        window = None if self.window is None else msgspec.structs.replace(self.window, ledger_offset=0, spans=())
        return digest(msgspec.structs.replace(self, window=window, traceparent=""))


class Counts(msgspec.Struct, omit_defaults=True):
    """What happened to the records of a window: ``consumed = forwarded + filtered + rejected``.

    ``produced`` are records written to the output topic. ``skipped`` belong to other writers and are not consumed. ``late`` came
    with a time before the window's interval. At a sink ``forwarded = written + duplicates + older + deleted + dropped``;
    ``deleted`` are keys whose newest record has no value, ``dropped`` rows that the table's triggers did not let in, ``removed`` rows that
    an older generation had left. ``asked`` are calls of a model, with the tokens that they took (``cached_tokens`` are among
    ``prompt_tokens``) and what they cost, in billionths of the price table's currency.
    """

    consumed: int = 0
    forwarded: int = 0
    filtered: int = 0
    rejected: int = 0
    produced: int = 0
    skipped: int = 0
    late: int = 0
    written: int = 0
    duplicates: int = 0
    older: int = 0
    deleted: int = 0
    dropped: int = 0
    removed: int = 0
    lost: int = 0
    asked: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    nanocost: int = 0

    def add(self, other: Counts) -> None:
        """Add another's figures to these."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def cost(self) -> float:
        """What the calls of models cost, in the price table's currency."""
        return self.nanocost / 1_000_000_000

    def told(self) -> dict[str, int]:
        """Those that are not 0, by name, and always those that add up to the events read: shares are computed from them."""
        figures = msgspec.structs.asdict(self)
        return {name: n for name, n in figures.items() if n or name in ("consumed", "forwarded", "filtered", "rejected")}

    def copy(self) -> Counts:
        """An independent copy."""
        return msgspec.structs.replace(self)


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a run failed: the error's class, its one line, and whether a retry may help."""

    type: str
    message: str
    retriable: bool = False


class Example(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rejected event: where it was read (``topic-partition@offset``, or the place in a file), its key and how its value begins."""

    at: str
    key: str | None = None
    value: str | None = None


class Reason(msgspec.Struct, frozen=True, omit_defaults=True):
    """Events rejected for one reason: the rule, the first one's error and place, and how many they are."""

    rule: str
    error: str
    count: int
    first: str
    examples: tuple[Example, ...] = ()


class Dataset(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a sink writes to: ``name`` in ``system`` (postgres, bigquery, snowflake, iceberg, or the sink's own name) at ``address``.

    The address tells two servers or accounts apart, without credentials: ``host:port/database``, an account, "" where there is but one.
    """

    system: str
    name: str
    address: str = ""


class AgentResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one run of one shard of one stage did. ``manifest`` is None where nothing is written to a topic (sinks, dry runs).

    ``origin``, ``instance`` and ``mapped`` are the run's. ``input_generation`` is where a sink placed its input among others. ``epoch``
    counts how often the work was done again because it was told to.
    ``reasons`` say, of a dry run, why events were rejected: it writes no dead letters.
    ``run`` is the digest of the run that it answers. ``truncated`` says that it was too long for a termination message: the whole of it
    is in the ledger. ``traceparent`` is the span of the run that did the work, if it was traced.
    """

    pipeline: str
    stage: str
    key: str
    protocol: int = PROTOCOL_VERSION
    status: Literal["success", "failed"] = "success"
    agent: str = ""
    version: str = ""
    interval: Interval | None = None
    shard: Shard = Shard()
    plan: str = ""
    origin: str = ""
    instance: int = 0
    mapped: int = 0
    fingerprint: str = ""
    generation: int = 0
    epoch: int = 0
    input_generation: int = 0
    input: Manifest | None = None
    manifest: Manifest | None = None
    dead_letters: Manifest | None = None
    counts: Counts = msgspec.field(default_factory=Counts)
    report: dict[str, Any] | None = None
    dataset: Dataset | None = None
    notes: tuple[str, ...] = ()
    reasons: tuple[Reason, ...] = ()
    seconds: float = 0.0
    resumed: bool = False
    reused: bool = False
    dry_run: bool = False
    ledger_offset: int = 0
    run: str = ""
    truncated: bool = False
    error: ErrorInfo | None = None
    traceparent: str = ""

    @property
    def table(self) -> str:
        """The name of what its sink wrote to, "" where there is none."""
        return self.dataset.name if self.dataset is not None else ""


def encode(value: msgspec.Struct) -> bytes:
    """Any of this module's values as JSON."""
    return msgspec.json.encode(value)


def plain(value: msgspec.Struct) -> dict[str, Any]:
    """Any of this module's values as XCom and asset events hold it: nothing but JSON's types."""
    data: dict[str, Any] = msgspec.json.decode(encode(value))
    return data


def _decode(data: bytes | str | dict[str, Any], type_: type[_T], what: str) -> _T:
    try:
        value = msgspec.convert(data, type_) if isinstance(data, dict) else msgspec.json.decode(data, type=type_)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ConfigurationError(f"{what}: not what this version ({PROTOCOL_VERSION}) of the protocol expects: {error}") from error
    version = getattr(value, "protocol", PROTOCOL_VERSION)
    if version != PROTOCOL_VERSION:
        raise ConfigurationError(
            f"{what}: protocol version {version}, this side speaks {PROTOCOL_VERSION}; use the same release of both distributions"
        )
    return value


def decode_run(data: bytes | str | dict[str, Any]) -> AgentRun:
    """Read an ``AgentRun``; raises ConfigurationError naming the field that does not fit."""
    return _decode(data, AgentRun, "AgentRun")


def decode_result(data: bytes | str | dict[str, Any]) -> AgentResult:
    """Read an ``AgentResult``; raises ConfigurationError naming the field that does not fit."""
    return _decode(data, AgentResult, "AgentResult")


def decode_window(data: bytes | str | dict[str, Any]) -> Window:
    """Read a ``Window``; raises ConfigurationError naming the field that does not fit."""
    return _decode(data, Window, "Window")


def digest(value: Any) -> str:
    """Sixteen hex digits of the SHA-256 of a value's canonical JSON (keys sorted): equal values, equal digests."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:16]


def read_writers(writer: str) -> tuple[str, ...]:
    """The writers that a text names, with commas between them."""
    return tuple(filter(None, writer.split(",")))


def shard_window(window: Window, shards: int) -> tuple[Window, ...]:
    """Cut a window into at most ``shards`` windows (at least one, for an empty window too) by whole partitions, balanced by records.

    Greedy, largest range first onto the lightest shard, ties by number: the same window always gives the same shards.
    """
    if shards < 1:
        raise WindowError(f"shards: expected at least 1, got {shards}")
    of = max(1, min(shards, len(window.ranges)))
    loads = [0] * of
    parts: list[list[PartitionRange]] = [[] for _ in range(of)]
    for r in sorted(window.ranges, key=lambda r: (-(r.count if r.count >= 0 else max(0, r.end - r.start)), r.partition)):
        lightest = min(range(of), key=lambda i: (loads[i], len(parts[i]), i))
        loads[lightest] += r.count if r.count >= 0 else max(0, r.end - r.start)
        parts[lightest].append(r)
    return tuple(
        msgspec.structs.replace(window, ranges=tuple(sorted(part, key=lambda r: r.partition)), lost=window.lost if i == 0 else ())
        for i, part in enumerate(parts)
    )


def merge_results(results: Sequence[AgentResult]) -> Window:
    """The next stage's window: what all shards of a stage wrote, or of several stages and instances that wrote to one topic.

    Raises WindowError unless each of them is one complete, successful set of one plan, all over the same window of one pipeline.
    """
    if not results:
        raise WindowError(
            "expected the results of the stage before, got none; was it skipped, or marked as a success by hand? clear it so that it runs"
        )
    sets: dict[tuple[str, str], list[AgentResult]] = {}
    for r in results:
        sets.setdefault((r.stage, scope_of(r.origin, r.instance)), []).append(r)
    for of_one in sets.values():
        _check_set(of_one)
    windows = sorted({f"{r.key} of pipeline {r.pipeline!r}" for r in results})
    if len(windows) != 1:
        raise WindowError(
            f"{_stages(results)}: results of different windows cannot be merged ({', '.join(windows)}); clear the whole stage"
        )
    return _window_of(results)


def shard_output(result: AgentResult) -> Window:
    """What one shard of a stage wrote, for the same shard of the next stage; raises WindowError where that cannot be read."""
    _check_result(result)
    return _window_of([result])


def _window_of(results: Sequence[AgentResult]) -> Window:
    name = _stages(results)
    manifests = [r.manifest for r in results if r.manifest is not None]
    if len(manifests) != len(results):
        raise WindowError(f"{name} wrote to no topic, so nothing can read on from it; give it an output topic")
    topics = sorted({m.topic for m in manifests})
    if len(topics) != 1:
        raise WindowError(
            f"{name}: results on different topics ({', '.join(topics)}), and a stage reads one: let them write to one topic, or read each "
            f"by a task of its own (a mapped stage: expand(window=…))"
        )
    if len({m.topic_id for m in manifests}) != 1:
        raise WindowError(f"{name}: topic {topics[0]!r} was deleted and created again between its results; clear the whole stage")
    if any(m.codec != manifests[0].codec for m in manifests):
        raise WindowError(
            f"{name}: its results on topic {topics[0]!r} were not written by one codec and one schema; clear the whole stage, and name the "
            f"schema's version if it changes while stages run"
        )
    first = min(results, key=lambda r: r.instance)  # of several topics the one that stands first: one that is added later changes nothing
    return Window(
        pipeline=first.pipeline,
        topic=manifests[0].topic,
        topic_id=manifests[0].topic_id,
        ranges=_merge_ranges(r for m in manifests for r in m.ranges),
        interval=first.interval,
        name="" if first.interval else first.key,
        writers=tuple(sorted(m.writer for m in manifests)),
        generation=max(r.generation for r in results),
        ledger_offset=min(r.ledger_offset for r in results),
        origin=first.origin,
        instance=first.instance,
        codec=manifests[0].codec,
        spans=tuple(r.traceparent for r in results if r.traceparent)[:_MOST_SPANS],
    )


def _stages(results: Sequence[AgentResult]) -> str:
    names = sorted({repr(r.stage) for r in results})
    return f"stage{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _check_result(r: AgentResult) -> None:
    """Refuse the result of a run that gave the next stage nothing to read."""
    name = f"stage {r.stage!r}"
    if r.status != "success":
        raise WindowError(f"{name} shard {r.shard.index + 1} of {r.shard.of} failed; clear it so that it runs again")
    if r.dry_run:
        raise DryRunError(f"{name}: its result is of a dry run, which writes nothing that a next stage could read; run it for real")


def _check_set(results: Sequence[AgentResult]) -> None:
    """Refuse results of one stage that are no complete, successful set of one plan."""
    first = results[0]
    name = f"stage {first.stage!r}" + (f" (mapped task {first.instance})" if first.instance else "")
    for r in results:
        _check_result(r)
        if (r.pipeline, r.key, r.plan, r.shard.of) != (first.pipeline, first.key, first.plan, first.shard.of):
            raise WindowError(f"{name}: results of different plans ({first.plan}, {r.plan}) cannot be merged; clear the whole stage")
    have = {r.shard.index for r in results}
    if len(have) != len(results) or max(have) >= first.shard.of:
        raise WindowError(f"{name}: {len(results)} results for {first.shard.of} shards; clear the whole stage")
    missing = [i for i in range(first.shard.of) if i not in have]
    if missing:
        raise WindowError(f"{name}: shard {missing[0] + 1} of {first.shard.of} has no result; clear it so that it runs")
    if any(r.truncated for r in results):
        raise WindowError(f"{name}: its results are too long for a termination message; take them from the ledger (read_result)")


def _merge_ranges(ranges: Iterable[PartitionRange]) -> tuple[PartitionRange, ...]:
    merged: dict[int, PartitionRange] = {}
    for r in ranges:
        if r.start >= r.end:
            continue
        have = merged.get(r.partition)
        if have is not None:
            count = have.count + r.count if have.count >= 0 and r.count >= 0 else -1
            r = PartitionRange(r.partition, min(have.start, r.start), max(have.end, r.end), count)
        merged[r.partition] = r
    return tuple(merged[p] for p in sorted(merged))
