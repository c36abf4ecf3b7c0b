"""Decides windows: which cuts are missing and where they lie, from what the ledger holds and what the log answers; asks nobody."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, takewhile
from typing import Literal

import msgspec

from factory_agents.errors import DataLossError, UnavailableError, WindowError
from factory_agents.kafka.ledger import CutRecord, LedgerRecord, LedgerView, PipelineRecord, PlanRecord
from factory_agents.kafka.plan_view import Lane, PlanView
from factory_agents.kafka.records import MarkRecord, mark_key, pruned
from factory_agents.kafka.topics import TopicInfo
from factory_agents.protocol import Interval, PartitionRange, Window, Work

__all__ = [
    "FUTURE_MS",
    "LogAnswers",
    "PlanRequest",
    "Policy",
    "check_source",
    "decide",
    "decide_cut",
    "planned",
    "relevant",
    "relevant_source",
    "source_plan",
    "window_of",
]

FUTURE_MS = 5 * 60 * 1000
"""How far ahead of now a record's time may lie before the index's answer is taken for a wrong clock's."""

_FOREVER_MS = 2**63

Policy = Literal["carry", "index"]
"""What a missing start takes: the latest earlier scheduled cut, or the timestamp index's answer."""


@dataclass(frozen=True)
class PlanRequest:
    """What a planner wants: the window of an interval on a topic, or (``interval`` None) one since the last cut under a run's key.

    ``follows`` says that another run is there for the time right before the interval, whether it was planned already or not. ``asked``
    (milliseconds) is when a run without an interval was created (0: unknown).
    """

    pipeline: str
    topic: str
    interval: Interval | None
    run_key: str = ""
    policy: Policy = "index"
    accept_loss: bool = False
    follows: bool = False
    asked: int = 0

    @property
    def mode(self) -> Literal["intervals", "since_last"]:
        """How this window is made."""
        return "since_last" if self.interval is None else "intervals"

    @property
    def window(self) -> str:
        """The window's key."""
        return self.run_key if self.interval is None else self.interval.key


@dataclass(frozen=True)
class LogAnswers:
    """What the log said, for every partition of one and the same topic id.

    ``stable`` holds last stable offsets; ``index`` maps a time (ms) to (offset, timestamp) of the first record at or past it, or (-1, -1).
    """

    topic: TopicInfo
    log_start: Mapping[int, int]
    stable: Mapping[int, int]
    index: Mapping[int, Mapping[int, tuple[int, int]]]


def _at(cut: CutRecord, partition: int) -> int:
    """A cut's offset; 0 in a partition that was added after it."""
    return cut.offsets[partition] if partition < len(cut.offsets) else 0


def _between(start: CutRecord, end: CutRecord) -> int:
    return sum(max(0, _at(end, p) - _at(start, p)) for p in range(len(end.offsets)))


def decide_cut(
    known: Sequence[CutRecord], at: int, index: Mapping[int, tuple[int, int]], stable: Mapping[int, int], now_ms: int
) -> tuple[int, ...]:
    """Offsets of a new cut at a time (ms): the index's answer, the stable offset where that has none or lies in the future, clamped.

    ``known`` are the topic's cuts; ``index`` maps each partition (0 to n-1, all of them) to (offset, timestamp) or (-1, -1), ``stable`` to
    the last stable offset. Never below an earlier cut nor above a later one: windows tile whatever the order in which they are planned.
    """
    offsets = []
    for p in range(len(stable)):
        offset, stamp = index[p]
        if offset < 0 or stamp > now_ms + FUTURE_MS:
            offset = stable[p]
        lower = max((_at(c, p) for c in known if c.at < at), default=0)
        upper = min((_at(c, p) for c in known if c.at > at), default=None)
        offset = max(offset, lower)
        offsets.append(offset if upper is None else min(offset, upper))
    return tuple(offsets)


def relevant(view: PlanView, request: PlanRequest, topic: TopicInfo) -> LedgerView:
    """The few records of a ledger that can matter to ``planned`` and ``decide`` for this request: they answer the same with these alone.

    Cuts are monotone, so that of those before and after a time its neighbours say all; likewise of windows, which don't overlap.
    """
    marked = mark_key(request.pipeline, topic.name)
    keys = [PipelineRecord(request.pipeline, request.mode).key(), marked]
    mark = view.get(marked)
    low_water = mark.low_water if isinstance(mark, MarkRecord) else None
    for topic_id, whole in {topic.id: view.lane(topic.id), **view.lanes_of(topic.name)}.items():
        lane = view.above(whole, low_water)
        keys.append(PlanRecord(request.pipeline, topic.name, topic_id, request.window, ()).key())
        keys.extend(list(lane.newest)[-1:])
        if request.interval is not None:
            keys.extend(_beside(view, lane, request.interval))
    return view.only(keys)


def _beside(view: PlanView, lane: Lane, interval: Interval) -> Iterator[str]:
    """Cuts and windows of one topic id beside an interval: as far back as to the last cut of a scheduled run, or the last window."""
    start, end = interval.start_ms, interval.end_ms
    scheduled = next((c for c in map(view.get, lane.cuts_up_to(start)) if isinstance(c, CutRecord) and c.scheduled), None)
    before = next((c for c in map(view.get, lane.cuts_up_to(start - 1)) if isinstance(c, CutRecord) and c.scheduled), None)
    yield from (cut.key() for cut in (scheduled, before) if cut is not None)
    spans = list(islice(lane.spans_before(start), 2))
    spans += takewhile(lambda span: scheduled is not None and span[0] >= scheduled.at, islice(lane.spans_before(start), 2, None))
    for span in lane.spans_from(start):
        spans.append(span)
        if span[0] >= end:
            break
    for at in {start, end, *(at for span in spans for at in span[:2])}:
        yield from lane.cuts_around(at)
    yield from (key for _, _, key in spans)


def planned(view: LedgerView, request: PlanRequest, topic: TopicInfo) -> Window | None:
    """The window, where everything about it is in the ledger already; None where something is missing or has to be refused.

    A window that was planned on the topic that bore the name before stays what it is, unless its loss is accepted and this one may hold
    records of its interval: those of a run without one are gone, what is there belongs to later runs. Raises WindowError for one that was
    pruned.
    """
    _check_pruned(view, request, topic)
    plan = view.get(PlanRecord(request.pipeline, topic.name, topic.id, request.window, ()).key())
    if not isinstance(plan, PlanRecord) and request.accept_loss and request.interval is not None:
        return None
    if not isinstance(plan, PlanRecord) or plan.former:
        plan = _former_plan(view, request, topic)
    if plan is None or (plan.interval is None) != (request.interval is None) or _unmarked(view, request, topic):
        return None
    return window_of(plan, view.offset(plan.key()) or 0)


def _former_plan(view: LedgerView, request: PlanRequest, topic: TopicInfo) -> PlanRecord | None:
    """The same window as it was planned on a topic of the same name that was deleted since."""
    plans: list[PlanRecord] = [p for p in view.of(PlanRecord) if p.topic == topic.name and p.window == request.window]
    return next((p for p in reversed(plans) if p.topic_id != topic.id), None)


def window_of(plan: PlanRecord, offset: int) -> Window:
    """A plan as a window; ``offset`` is where it lies in the ledger."""
    return Window(
        pipeline=plan.pipeline,
        topic=plan.topic,
        topic_id=plan.topic_id,
        ranges=plan.ranges,
        interval=plan.interval,
        name="" if plan.interval else plan.window,
        ledger_offset=offset,
        generation=offset,
        lost=plan.lost,
        carried=plan.carried,
        gap=plan.gap,
        origin=plan.topic,
    )


def decide(view: LedgerView, request: PlanRequest, answers: LogAnswers, now_ms: int) -> list[LedgerRecord]:
    """The records that the ledger lacks for this window, in the order in which they are written.

    Where the window was planned on a topic that was deleted since, and this one holds nothing for it, it stays what it was: an empty one
    would take back what came of it.

    Raises WindowError (mixed modes, overlap, pruned), DataLossError (the topic was recreated) and UnavailableError (the answers are older
    than the ledger).
    """
    _check_mode(view, request)
    _check_pruned(view, request, answers.topic)
    topic = answers.topic
    unmarked = _unmarked(view, request, topic)
    if unmarked is not None:
        return [msgspec.structs.replace(unmarked, scheduled=True)]
    _check_overlap(view, request, topic)
    replaced = _replaced(view, request, topic)
    known = _cuts(view, topic)
    if any(len(c.offsets) > topic.partitions for c in known):
        raise UnavailableError(
            f"topic {topic.name!r}: a broker says that it has {topic.partitions} partitions, "
            f"a cut has {max(len(c.offsets) for c in known)}: its metadata are behind; try again"
        )
    records: list[LedgerRecord] = [] if view.of(PipelineRecord) else [PipelineRecord(request.pipeline, request.mode)]
    carried = gap = 0
    if request.interval is None:
        start, end = _since_last(known, request, answers, now_ms)
        records.append(end)
    else:
        maker = _CutMaker(request, answers, known, _before(view, topic), now_ms)
        start, end = maker.start(request.interval.start_ms), maker.end(request.interval.end_ms)
        carried, gap = maker.carried, _gap(view, topic, request, start, end)
        records.extend(maker.made)
    partitions = range(topic.partitions)
    ranges = tuple(PartitionRange(p, _at(start, p), _at(end, p)) for p in partitions if _at(start, p) < _at(end, p))
    former = not ranges and _former_plan(view, request, topic) is not None
    records.append(
        PlanRecord(
            request.pipeline,
            topic.name,
            topic.id,
            request.window,
            ranges,
            interval=request.interval,
            carried=carried,
            gap=gap,
            replaces=replaced,
            former=former,
            planned_at=now_ms,
        )
    )
    return records


def source_plan(work: Work, interval: Interval | None) -> PlanRecord:
    """The record that says which interval of a source (None: all of it) a stage reads."""
    return PlanRecord(work.pipeline, "", f"{work.stage} {work.scope}".rstrip(), work.window, (), interval=interval)


def relevant_source(view: PlanView, plan: PlanRecord, origin: str = "") -> LedgerView:
    """The few records that can matter to ``check_source``."""
    lane = view.lane(plan.topic_id)
    keys = [mark_key(plan.pipeline, origin), plan.key(), *lane.others]
    if plan.interval is None:
        return view.only([*keys, *(key for _, _, key in lane.spans)])
    start, end = plan.interval.start_ms, plan.interval.end_ms
    spans = [*islice(lane.spans_before(start), 2), *takewhile(lambda span: span[0] <= end, lane.spans_from(start))]
    return view.only([*keys, *(key for _, _, key in spans)])


def check_source(view: LedgerView, plan: PlanRecord, origin: str = "") -> None:
    """Refuse to read rows of a source that the stage has read under another interval, or once and for good; raises WindowError."""
    mark = view.get(mark_key(plan.pipeline, origin))
    if isinstance(mark, MarkRecord) and mark.spans and (plan.interval is None or mark.covers(plan.interval)):
        raise pruned(f"pipeline {plan.pipeline!r}, stage {plan.topic_id.partition(' ')[0]!r}", plan.window)
    for other in view.of(PlanRecord):
        if not other.topic and other.topic_id == plan.topic_id and other.window != plan.window and _overlap(other.interval, plan.interval):
            raise WindowError(
                f"pipeline {plan.pipeline!r}, stage {plan.topic_id.partition(' ')[0]!r}: {plan.window} overlaps {other.window}, which was "
                f"read from the same source; rows would be written twice: keep to one schedule, or use another pipeline name"
            )


def _overlap(one: Interval | None, other: Interval | None) -> bool:
    return one is None or other is None or (one.start < other.end and other.start < one.end)


def _check_pruned(view: LedgerView, request: PlanRequest, topic: TopicInfo) -> None:
    mark = view.get(mark_key(request.pipeline, topic.name))
    if not isinstance(mark, MarkRecord):
        return
    if request.interval is not None:
        gone = mark.covers(request.interval)
    else:
        plans = [p for p in view.of(PlanRecord) if p.topic == topic.name and p.window == request.window]
        newest = max((view.offset(p.key()) or 0 for p in plans), default=None)
        gone = 0 < request.asked <= mark.asked if newest is None else newest < mark.offset
    if gone:
        raise pruned(f"pipeline {request.pipeline!r} on {topic.name!r}", request.window)


def _cuts(view: LedgerView, topic: TopicInfo) -> list[CutRecord]:
    return [c for c in view.of(CutRecord) if c.topic_id == topic.id]


def _before(view: LedgerView, topic: TopicInfo) -> list[CutRecord]:
    """Cuts of the topics that bore this name before: in this one, everything came after them."""
    return [msgspec.structs.replace(c, offsets=()) for c in view.of(CutRecord) if c.topic == topic.name and c.topic_id != topic.id]


def _unmarked(view: LedgerView, request: PlanRequest, topic: TopicInfo) -> CutRecord | None:
    """The end of a planned window that a manual run made and a scheduled one now asks for: a later pause is carried from there, too."""
    if request.interval is None or request.policy != "carry":
        return None
    if view.get(PlanRecord(request.pipeline, topic.name, topic.id, request.window, ()).key()) is None:
        return None
    end = view.get(CutRecord(request.pipeline, topic.name, topic.id, request.interval.end_ms, ()).key())
    return end if isinstance(end, CutRecord) and not end.scheduled else None


def _check_mode(view: LedgerView, request: PlanRequest) -> None:
    first = next(iter(view.of(PipelineRecord)), None)
    if first is not None and first.mode != request.mode:
        raise WindowError(
            f"pipeline {request.pipeline!r}: its windows are made by {first.mode.replace('_', ' ')}, "
            f"this run asks for {request.mode.replace('_', ' ')}; mixing them would read records twice: "
            f"use another pipeline name (--pipeline)"
        )


def _check_overlap(view: LedgerView, request: PlanRequest, topic: TopicInfo) -> None:
    interval = request.interval
    if interval is None:
        return
    for plan in view.of(PlanRecord):
        other = plan.interval
        if plan.topic_id == topic.id and other is not None and other.start_ms < interval.end_ms and interval.start_ms < other.end_ms:
            raise WindowError(
                f"pipeline {request.pipeline!r} on {topic.name!r}: interval {interval.key} overlaps {other.key}, which is planned; "
                f"overlapping intervals would read records twice: keep to one schedule, or use another pipeline name (--pipeline)"
            )


def _replaced(view: LedgerView, request: PlanRequest, topic: TopicInfo) -> str:
    """The id of the topic that this one replaces with this very plan, empty for none; DataLossError unless that loss is accepted."""
    others: list[str] = [c.topic_id for c in view.of(CutRecord) if c.topic == topic.name and c.topic_id != topic.id]
    if not others or _cuts(view, topic):
        return ""
    if not request.accept_loss:
        raise DataLossError(
            f"topic {topic.name!r} was deleted and created again since pipeline {request.pipeline!r} last planned on it "
            f"(topic id {topic.id}, was {others[-1]}): what it held and was not read is lost; "
            f"accept that with --accept-loss (accept_loss=True) to go on"
        )
    return others[-1]


def _since_last(known: Sequence[CutRecord], request: PlanRequest, answers: LogAnswers, now_ms: int) -> tuple[CutRecord, CutRecord]:
    topic = answers.topic
    first = CutRecord(request.pipeline, topic.name, topic.id, 0, tuple(answers.log_start[p] for p in range(topic.partitions)))
    start = known[-1] if known else first
    offsets = tuple(max(answers.stable[p], _at(start, p)) for p in range(topic.partitions))
    return start, CutRecord(request.pipeline, topic.name, topic.id, now_ms, offsets, run_key=request.run_key)


class _CutMaker:
    """Finds or makes the two cuts of an interval; ``made`` are the new ones, ``carried`` counts what a pause left and the start takes."""

    def __init__(
        self, request: PlanRequest, answers: LogAnswers, known: Sequence[CutRecord], before: Sequence[CutRecord], now_ms: int
    ) -> None:
        self._request = request
        self._answers = answers
        self._known = known
        self._before = before
        self._now_ms = now_ms
        self.made: list[CutRecord] = []
        self.carried = 0

    def start(self, at: int) -> CutRecord:
        """The cut at the interval's start."""
        found = next((c for c in self._known if c.at == at), None)
        if found is not None:
            return found
        # Behind a record from a wrong clock the index sees nothing, so the first start of all takes that record: rather more than less.
        first = all(c.at > at for c in self._known)
        cut = self._new(at, scheduled=False, now_ms=_FOREVER_MS if first else self._now_ms)
        paused = self._request.policy == "carry" and not self._request.follows
        if paused and any(c.scheduled and c.at < at for c in (*self._known, *self._before)):
            held = tuple(max((_at(c, p) for c in self._known if c.at < at), default=0) for p in range(len(cut.offsets)))
            earlier = msgspec.structs.replace(cut, offsets=held)
            self.carried = _between(earlier, cut)
            cut = earlier
        self.made.append(cut)
        return cut

    def end(self, at: int) -> CutRecord:
        """The cut at the interval's end; one of a scheduled run is one that a later run may carry on from."""
        scheduled = self._request.policy == "carry"
        found = next((c for c in self._known if c.at == at), None)
        if found is not None and (found.scheduled or not scheduled):
            return found
        cut = (
            msgspec.structs.replace(found, scheduled=True) if found is not None else self._new(at, scheduled=scheduled, now_ms=self._now_ms)
        )
        self.made.append(cut)
        return cut

    def _new(self, at: int, *, scheduled: bool, now_ms: int) -> CutRecord:
        topic, known = self._answers.topic, (*self._known, *self.made)
        offsets = decide_cut(known, at, self._answers.index[at], self._answers.stable, now_ms)
        return CutRecord(self._request.pipeline, topic.name, topic.id, at, offsets, scheduled=scheduled)


def _gap(view: LedgerView, topic: TopicInfo, request: PlanRequest, start: CutRecord, end: CutRecord) -> int:
    """Records (offsets) beside this window that are in no window: up to the windows planned next to it in time.

    Before the window of a scheduled run: up to the last one of a scheduled run, whatever was run by hand in between. What lies below the
    mark of what was pruned can be taken by nobody any more, and doesn't count.
    """
    cuts = {c.at: c for c in _cuts(view, topic)}
    plans = [p for p in view.of(PlanRecord) if p.topic == topic.name and p.interval is not None]
    spans = sorted((p.interval.start_ms, p.interval.end_ms) for p in plans if p.topic_id == topic.id and p.interval is not None)
    earlier = [span for span in spans if span[1] <= start.at]
    after = min((first for first, _ in spans if first >= end.at), default=None)
    following = end if after is None or after == end.at else cuts[after]
    if not earlier:  # the first on this topic: one that bore its name before ended somewhere, all of this one came later
        last = msgspec.structs.replace(start, offsets=()) if plans and not spans else start
        return _between(last, start) + _between(end, following)
    scheduled = [c.at for c in cuts.values() if c.scheduled and c.at <= start.at] if request.policy == "carry" else []
    mark = view.get(mark_key(request.pipeline, topic.name))
    low_water = mark.low_water if isinstance(mark, MarkRecord) else None
    floor = max((at for at in cuts if low_water is not None and at <= low_water), default=0)
    since = max([floor, *scheduled]) if scheduled else max(floor, earlier[-1][1])
    taken = [(since, since), *(span for span in earlier if span[0] >= since), (start.at, start.at)]
    at = {**cuts, start.at: start}
    return sum(_between(at[one[1]], at[next_[0]]) for one, next_ in pairwise(taken)) + _between(end, following)
