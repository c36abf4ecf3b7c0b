"""A planner's view of the ledger, in order of time: of years of windows only the few beside the one that is asked for are decoded."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import TypeAlias, TypeVar

from factory_agents.kafka.records import CutRecord, LedgerRecord, PlanRecord
from factory_agents.kafka.view import ABOUT_PLANS, LedgerView
from factory_agents.protocol import Interval, to_ms

__all__ = ["Lane", "PlanView", "Span", "interval_of", "lane_of", "times_of"]

Span: TypeAlias = tuple[int, int, str]
"""A planned interval: start and end in milliseconds, and its record's key."""


_Timed = TypeVar("_Timed", tuple[int, str], Span)


@dataclass
class Lane:
    """What a pipeline has planned on one topic id (or source): keys of cuts by time, of plans by interval, the others, the newest cut."""

    cuts: list[tuple[int, str]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    others: dict[str, None] = field(default_factory=dict)
    newest: dict[str, None] = field(default_factory=dict)

    def spans_from(self, start: int) -> Iterator[Span]:
        """Intervals that begin at or past a time."""
        yield from self.spans[bisect_left(self.spans, (start,)) :]

    def spans_before(self, start: int) -> Iterator[Span]:
        """Intervals that begin before a time, the last one first."""
        yield from reversed(self.spans[: bisect_left(self.spans, (start,))])

    def cuts_around(self, at: int) -> list[str]:
        """The cut at a time, and its neighbours on both sides."""
        i = bisect_left(self.cuts, (at,))
        return [key for _, key in self.cuts[max(0, i - 1) : i + 2]]

    def cuts_up_to(self, at: int) -> Iterator[str]:
        """Cuts at or before a time, the last one first."""
        yield from (key for _, key in reversed(self.cuts[: bisect_left(self.cuts, (at + 1,))]))

    def above(self, low_water: int, is_scheduled: Callable[[str], bool]) -> Lane:
        """What stays where windows that begin before a time (milliseconds) are pruned: enough for whatever is planned from there on.

        The cut at or before it, from which windows tile on, and the last scheduled one, from which a pause is carried; the last window
        before it, with its cuts, as there is a gap behind it or none; the cut that was made last, which tells how many partitions
        there are. It is the same whether the rest was deleted already or not.
        """
        first = max(0, bisect_left(self.spans, (low_water,)) - 1)
        floor = max(0, bisect_left(self.cuts, (low_water + 1,)) - 1)
        ends = set(self.spans[first][:2]) if self.spans else set()
        kept = {next((key for _, key in reversed(self.cuts[: floor + 1]) if is_scheduled(key)), ""), *list(self.newest)[-1:]}
        cuts = [cut for cut in self.cuts[:floor] if cut[0] in ends or cut[1] in kept]
        return Lane(cuts + self.cuts[floor:], self.spans[first:], self.others, self.newest)


class PlanView(LedgerView):
    """One pipeline's cuts and plans, with an order of time that their keys tell without being decoded."""

    def __init__(self, pipeline: str, records: Iterable[LedgerRecord] = ()) -> None:
        self._lanes: dict[str, Lane] = {}
        super().__init__(pipeline, ABOUT_PLANS, records)

    def lane(self, topic_id: str) -> Lane:
        """What was planned on one topic id; of a source: on the name that stands for it."""
        return self._lanes.get(topic_id) or Lane()

    def lanes_of(self, topic: str) -> dict[str, Lane]:
        """What was planned on topics of this name, by their ids."""
        return {topic_id: lane for topic_id, lane in self._lanes.items() if self.topic_of(lane) == topic}

    @property
    def lanes(self) -> dict[str, Lane]:
        """What was planned, by topic id or source."""
        return self._lanes

    def above(self, lane: Lane, low_water: int | None) -> Lane:
        """See ``Lane.above``; the whole lane where nothing was pruned."""
        return lane if low_water is None else lane.above(low_water, self._is_scheduled)

    def _is_scheduled(self, key: str) -> bool:
        cut = self.get(key)
        return isinstance(cut, CutRecord) and cut.scheduled

    def topic_of(self, lane: Lane) -> str:
        """The name of a lane's topic; empty for a source."""
        for key in (*reversed(lane.newest), *(span[2] for span in lane.spans[-1:]), *lane.others):
            record = self.get(key)
            if isinstance(record, CutRecord | PlanRecord):
                return record.topic
        return ""

    def only(self, keys: Iterable[str]) -> LedgerView:
        """A view of these records alone, as far as they are there."""
        view = LedgerView(self.pipeline)
        found = sorted((offset, key) for key in set(keys) if (offset := self.offset(key)) is not None)
        for offset, key in found:
            record = self.get(key)
            if record is not None:
                view.put(record, offset)
        view.end = self.end
        return view

    def forget(self) -> None:
        """See ``Follower.forget``."""
        super().forget()
        self._lanes.clear()

    def _put(self, kind: str, key: str, offset: int, value: LedgerRecord | bytes | None) -> None:
        known = key in self._kinds.get(kind, ())
        super()._put(kind, key, offset, value)
        if kind in ("cut", "plan"):
            name = lane_of(key)
            lane = self._lanes.get(name) or self._lanes.setdefault(name, Lane())
            (_order_cut if kind == "cut" else _order_plan)(lane, key, known=known, there=value is not None)


def lane_of(key: str) -> str:
    """The topic id, or the name of a source's stage, in the key of a cut or a plan."""
    return key.rpartition("|")[0].split("|", 2)[2]


def _order_cut(lane: Lane, key: str, *, known: bool, there: bool) -> None:
    lane.newest.pop(key, None)
    if there:
        lane.newest[key] = None
    at = key.rpartition("|")[2]
    if at.isdecimal():
        _order(lane.cuts, (int(at), key), known=known, there=there)


def _order_plan(lane: Lane, key: str, *, known: bool, there: bool) -> None:
    times = times_of(key.rpartition("|")[2])
    if times is not None:
        _order(lane.spans, (*times, key), known=known, there=there)
    elif there:
        lane.others[key] = None
    else:
        lane.others.pop(key, None)


def _order(items: list[_Timed], item: _Timed, *, known: bool, there: bool) -> None:
    if not there:
        if known:
            del items[bisect_left(items, item)]
    elif not items or items[-1] < item:
        items.append(item)
    elif not known:
        insort(items, item)


def times_of(window: str) -> tuple[int, int] | None:
    """Start and end of the interval that a window's key tells, in milliseconds; None for one that has another name."""
    start, slash, end = window.partition("/")
    if not slash or not window[0].isdecimal():
        return None
    try:
        return _ms_of(start), _ms_of(end)
    except (ValueError, TypeError):
        return None


@lru_cache(4096)
def _ms_of(moment: str) -> int:
    """A time as milliseconds; one window's end is mostly the next one's start."""
    return to_ms(datetime.fromisoformat(moment))


def interval_of(window: str) -> Interval | None:
    """The interval that a window's key tells."""
    if times_of(window) is None:
        return None
    start, _, end = window.partition("/")
    return Interval(datetime.fromisoformat(start), datetime.fromisoformat(end))
