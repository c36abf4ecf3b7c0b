"""Decides what of a pipeline's ledger can be forgotten, and which marks take its place; asks nobody."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, TypeAlias

import msgspec

from factory_agents.kafka.plan_view import Lane, PlanView, interval_of, times_of
from factory_agents.kafka.prune_view import NO_LIMIT, PruneView, origin_of
from factory_agents.kafka.records import ALWAYS, MarkRecord, PipelineRecord, PlanRecord, mark_key, microseconds
from factory_agents.protocol import Manifest

__all__ = ["Horizon", "Kept", "Pruning", "decide_pruning", "is_due", "looked_at", "merged"]

MOST_SPANS = 500
_DAY_MS = 24 * 3600 * 1000
_NO_LIMIT_MS = NO_LIMIT // 1000

LettersThere: TypeAlias = Callable[[Manifest], bool]
"""Whether dead letters of a manifest may still lie in their topic."""


@dataclass(frozen=True)
class Horizon:
    """How far a prune may go: windows of before a time (milliseconds).

    By ``rest`` a window is of the moment at which something was last said of it, by ``time`` of its interval's end, or the moment at which
    it was planned. One that isn't finished stays, and with it all later ones, unless ``unfinished`` says otherwise, or it rests since
    before ``lost``: whatever it was to read is gone. ``keep``: for how long windows are remembered (milliseconds), if that was said.
    """

    before: int
    by: Literal["rest", "time"]
    unfinished: bool = False
    lost: int = 0
    keep: int = 0


class Kept(msgspec.Struct, frozen=True):
    """The first window of an origin that stays, though the horizon may be past it, and why."""

    origin: str
    window: str
    why: str


@dataclass
class Pruning:
    """What a prune comes to: marks to write first, then keys to delete (of works, then of plans and cuts), and what to tell of it.

    ``more``: there are windows that the view had no room for, and which may go once these are gone.
    """

    marks: list[MarkRecord] = field(default_factory=list)
    works: list[bytes] = field(default_factory=list)
    plans: list[bytes] = field(default_factory=list)
    windows: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    letters: int = 0
    more: bool = False


@dataclass(slots=True)
class _Window:
    """What is known of one window of an origin; ``offset`` is where its plan lies, ``planned`` when it was made, if there is one.

    ``to_read``: its plan has records for somebody to read.
    """

    name: str
    rest: _Rest
    start: int = 0
    end: int = 0
    planned: int = 0
    to_read: bool = False
    offset: int = 0
    finished: bool = True


@dataclass(slots=True)
class _Rest:
    """Of a window of an origin: when something was said last of its works, whether all that began are finished, and their stages."""

    last: int = 0
    finished: bool = True
    stages: set[str] = field(default_factory=set)


def decide_pruning(view: PruneView, horizon: Horizon, now_ms: int, letters_there: LettersThere) -> Pruning:
    """What can go. It is the same decision whether an earlier prune got to the end of its deletions or not."""
    return _Decision(view, horizon, now_ms, letters_there).all()


def is_due(view: PlanView, lanes: Iterable[Lane], mark: MarkRecord | None, keep_ms: int, now_ms: int) -> bool:
    """Whether a planner should prune: the oldest window in some lanes is past what is remembered, and nobody looked for a while.

    A prune reads the whole of a pipeline's ledger, so that it is worth it for many windows only: each eighth of the time that they are
    remembered, or each day.
    """
    mark = mark or MarkRecord("", "")
    step = min(keep_ms // 8, _DAY_MS)
    if now_ms - looked_at(view) < step:
        return False
    for lane in lanes:
        spans = (key for start, _, key in lane.spans if not any(first <= start * 1000 < last for first, last in mark.spans))
        others = (key for key in lane.others if (view.offset(key) or 0) >= mark.offset)
        plan = view.get(next(spans, None) or next(others, None) or "")
        if isinstance(plan, PlanRecord) and 0 < plan.planned_at < now_ms - keep_ms - step:
            return True
    return False


def looked_at(view: PlanView) -> int:
    """When somebody set about to prune the pipeline last (milliseconds); 0: never."""
    return max((mark.at for mark in view.of(MarkRecord)), default=0)


class _Decision:
    def __init__(self, view: PruneView, horizon: Horizon, now_ms: int, letters_there: LettersThere) -> None:
        self.view, self.horizon, self.now, self.letters_there = view, horizon, now_ms, letters_there
        self.pruning = Pruning()
        first = next(iter(view.of(PipelineRecord)), None)
        self.by_interval = first is None or first.mode == "intervals"
        self.rest: dict[tuple[str, str], _Rest] = {}
        self.works: dict[str, dict[str, list[bytes]]] = {}
        self.sources = {f"{stage} {scope}".rstrip(): origin_of(scope) for stage, scope in view.scopes}
        for key, done in view.works.items():
            origin = done.origin
            rest = self.rest.setdefault((origin, done.window), _Rest())
            rest.last, rest.finished = max(rest.last, done.last), rest.finished and done.finished
            if key.startswith(b"stage|"):  # a judge of reports alone leaves no such record, whatever it says
                rest.stages.add(done.stage)
            self.works.setdefault(origin, {}).setdefault(done.window, []).append(key)
        self.topics: dict[str, dict[str, Lane]] = {}
        for topic_id, topic in view.origins.items():
            if topic:
                self.topics.setdefault(topic, {})[topic_id] = view.lane(topic_id)

    def all(self) -> Pruning:
        """Origin by origin."""
        for topic, lanes in self.topics.items():
            mark = self._intervals(topic, lanes) if self.by_interval else self._since_last(topic, lanes)
            self._say(mark)
            self._forget_works(mark, self._forget_plans(topic, mark, lanes))
        marked = [mark.origin for mark in self.view.of(MarkRecord)]
        for origin in dict.fromkeys((*self.works, *marked)):
            if origin not in self.topics:
                mark = self._spans(origin)
                self._say(mark)
                self._forget_source(mark)
                self._forget_works(mark, set())
        return self.pruning

    def _mark(self, origin: str) -> MarkRecord:
        found = self.view.get(mark_key(self.view.pipeline, origin))
        return found if isinstance(found, MarkRecord) else MarkRecord(self.view.pipeline, origin)

    def _say(self, mark: MarkRecord) -> None:
        self.pruning.marks.append(msgspec.structs.replace(mark, at=self.now, keep=self.horizon.keep or mark.keep))

    def _why_not(self, window: _Window, *, finished: bool) -> str:
        """Why a window stays; empty where it goes."""
        last = max(window.planned, window.rest.last) or window.end
        if self.horizon.by == "rest" and not 0 < last < self.horizon.before:
            return "something was done on it since"
        if self.horizon.by == "time" and (window.end or window.planned) > self.horizon.before:
            return "it is newer"
        if finished or self.horizon.unfinished or 0 < last < self.horizon.lost:
            return ""
        return "it isn't finished; --before with --unfinished prunes it too"

    def _going(
        self, mark: MarkRecord, windows: Iterable[_Window], *, all_of: bool = False
    ) -> tuple[list[_Window], list[_Window], MarkRecord]:
        """Of windows in order those that go and those that stay; without ``all_of`` all from the first one on that stays.

        A window is finished with all the stages that the one before it had: one that was taken out of the pipeline is missed until a window
        goes without it.
        """
        stages = set(mark.stages)
        going: list[_Window] = []
        staying: list[_Window] = []
        for window in windows:
            begun = window.rest.stages or not window.to_read
            window.finished = bool(begun) and window.rest.finished and (not window.rest.stages or stages <= window.rest.stages)
            why = self._why_not(window, finished=window.finished)
            if not why:
                going.append(window)
                stages = (stages | window.rest.stages) if window.finished else window.rest.stages
                continue
            if not staying:
                self.pruning.kept.append(Kept(mark.origin, window.name, why))
            staying.append(window)
            if not all_of:
                break
        return going, staying, msgspec.structs.replace(mark, stages=tuple(sorted(stages)))

    def _tell(self, windows: Iterable[_Window]) -> None:
        for window in windows:
            self.pruning.windows.append(window.name)
            if not window.finished:
                self.pruning.unfinished.append(window.name)

    def _intervals(self, topic: str, lanes: Mapping[str, Lane]) -> MarkRecord:
        """The mark of a topic's windows with intervals: up to the first one that stays, or that the view may not know."""
        mark = self._mark(topic)
        since, limit = mark.low_water, self.view.limit(topic, lanes) // 1000
        going, staying, new = self._going(mark, (w for w in self._planned(topic, lanes, since) if w.start < limit))
        self.pruning.more |= not staying and limit < _NO_LIMIT_MS
        ends = [window.end for window in going] + ([since] if since is not None else [])
        if not going:
            return mark
        low_water = min([max(ends), limit, *(window.start for window in staying)])
        self._tell(window for window in going if window.start < low_water)
        return msgspec.structs.replace(new, spans=((ALWAYS, low_water * 1000),))

    def _planned(self, topic: str, lanes: Mapping[str, Lane], since: int | None) -> list[_Window]:
        """The topic's windows from a time on, whether they were planned by this pipeline or come from another one, by their start."""
        found: dict[str, _Window] = {}
        for lane in lanes.values():
            for start, end, key in lane.spans:
                if since is None or start >= since:
                    name = key.rpartition("|")[2]
                    found[name] = self._window(topic, name, start, end, self._plan(key))
        for name in self.works.get(topic, ()):
            times = times_of(name)
            if times is not None and (since is None or times[0] >= since):
                found.setdefault(name, self._window(topic, name, *times))
        return sorted(found.values(), key=lambda w: w.start)

    def _window(self, origin: str, name: str, start: int = 0, end: int = 0, plan: PlanRecord | None = None, offset: int = 0) -> _Window:
        planned, to_read = (plan.planned_at, bool(plan.ranges) and not plan.former) if plan is not None else (0, False)
        return _Window(name, self.rest.get((origin, name), _Rest()), start, end, planned, to_read, offset)

    def _plan(self, key: str) -> PlanRecord | None:
        plan = self.view.get(key)
        return plan if isinstance(plan, PlanRecord) else None

    def _since_last(self, topic: str, lanes: Mapping[str, Lane]) -> MarkRecord:
        """The mark of a topic's windows without intervals: up to the first plan that stays, or that the view may not know."""
        mark, limit = self._mark(topic), self.view.run_limit(topic)
        offsets = sorted((self.view.offset(key) or 0, key) for lane in lanes.values() for key in lane.others)
        windows = (
            self._window(topic, key.rpartition("|")[2], plan=self._plan(key), offset=at) for at, key in offsets if mark.offset <= at < limit
        )
        going, staying, new = self._going(mark, windows)
        self.pruning.more |= not staying and limit < NO_LIMIT
        if not going:
            return mark
        self._tell(going)
        asked = max(window.planned for window in going)
        return msgspec.structs.replace(new, offset=going[-1].offset + 1, asked=max(mark.asked, asked))

    def _forget_plans(self, topic: str, mark: MarkRecord, lanes: Mapping[str, Lane]) -> set[str]:
        """Note the plans and cuts that go; the names of windows without an interval among them."""
        names: set[str] = set()
        gone: list[str] = []
        low_water, limit = mark.low_water, self.view.limit(topic, lanes) // 1000
        known = 0 if self.view.run_limit(topic) == NO_LIMIT else self._mark(topic).offset  # plans tell whose works are below
        for lane in lanes.values():
            if low_water is not None:
                kept = self.view.above(lane, min(low_water, limit))
                there = set(kept.cuts)
                gone += [key for _, _, key in lane.spans[: len(lane.spans) - len(kept.spans)]]
                gone += [cut[1] for cut in lane.cuts if cut not in there]
            if mark.offset:
                plans = [key for key in lane.others if (self.view.offset(key) or 0) < mark.offset]
                names.update(key.rpartition("|")[2] for key in plans)
                gone += [key for key in plans if (self.view.offset(key) or 0) >= known]
                gone += [key for key in list(lane.newest)[:-1] if (self.view.offset(key) or 0) < mark.offset]
        names -= {key.rpartition("|")[2] for lane in lanes.values() for key in lane.others if (self.view.offset(key) or 0) >= mark.offset}
        self.pruning.plans += [key.encode() for key in gone]
        return names

    def _spans(self, origin: str) -> MarkRecord:
        """The mark of windows whose times no topic tells, as a source's: the very intervals that were pruned."""
        mark, read = self._mark(origin), self._source_lanes(origin)
        limit = self.view.limit(origin, read)
        spans: dict[str, tuple[int, int]] = {}
        windows: list[_Window] = []
        for name in dict.fromkeys((*self.works.get(origin, ()), *(key.rpartition("|")[2] for key in self._source_plans(origin)))):
            interval = interval_of(name)
            if interval is not None and not mark.covers(interval):
                spans[name] = (microseconds(interval.start), microseconds(interval.end))
                windows.append(self._window(origin, name, interval.start_ms, interval.end_ms))
        windows.sort(key=lambda w: w.start)
        certain = [window for window in windows if spans[window.name][0] < limit]
        going, left, new = self._going(mark, certain, all_of=True)
        staying = merged((*(spans[window.name] for window in left), (limit, NO_LIMIT)))
        rests = [self.view.rests(origin, read), *(max(window.planned, window.rest.last) for window in windows[len(certain) :])]
        unknown = min(rests) if self.horizon.by == "rest" else limit // 1000
        self.pruning.more |= limit < NO_LIMIT and unknown < self.horizon.before
        gone = [window for window in going if not _meets(staying, spans[window.name])]
        self._tell(gone)
        pruned = merged([*mark.spans, *(spans[window.name] for window in gone)])
        return msgspec.structs.replace(new, spans=tuple(_fewer(pruned, staying)))

    def _source_lanes(self, origin: str) -> list[str]:
        """The lanes of what stages planned to read of a source: those of stages of which something else is known."""
        return [name for name in self.view.origins if self.sources.get(name) == origin]

    def _source_plans(self, origin: str) -> Iterator[str]:
        """The keys of these plans."""
        for name in self._source_lanes(origin):
            yield from (key for _, _, key in self.view.lane(name).spans)

    def _forget_source(self, mark: MarkRecord) -> None:
        for key in self._source_plans(mark.origin):
            interval = interval_of(key.rpartition("|")[2])
            if interval is not None and mark.covers(interval):
                self.pruning.plans.append(key.encode())

    def _forget_works(self, mark: MarkRecord, names: set[str]) -> None:
        """Note what stages did that goes, unless its dead letters are there to be replayed."""
        for name, keys in self.works.get(mark.origin, {}).items():
            interval = interval_of(name)
            covered = name in names or (interval is not None and mark.covers(interval))
            for key in keys:
                done = self.view.works[key]
                if not covered and not (interval is None and 0 < done.planned_at < mark.offset):
                    continue
                if any(map(self.letters_there, done.letters)):
                    self.pruning.letters += 1
                else:
                    self.pruning.works.append(key)


def merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same times in as few spans as can be, in order."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _meets(spans: list[tuple[int, int]], span: tuple[int, int]) -> bool:
    """Whether a span overlaps one of several, which are in order and apart."""
    i = bisect_left(spans, (span[1],))
    return i > 0 and spans[i - 1][1] > span[0]


def _fewer(spans: list[tuple[int, int]], staying: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """No more spans than a record should hold: the oldest gaps in which no window stays are closed."""
    while len(spans) > MOST_SPANS:
        i = next((i for i, (one, after) in enumerate(pairwise(spans)) if not _meets(staying, (one[1], after[0]))), None)
        if i is None:
            break
        spans[i : i + 2] = [(spans[i][0], spans[i + 1][1])]
    return spans
