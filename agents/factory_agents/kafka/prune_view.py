"""What a prune knows of a pipeline's records: the oldest windows, as many as there is room for, however large the ledger is."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heappop, heappush
from typing import TypeAlias

import msgspec

from factory_agents.errors import ConfigurationError
from factory_agents.kafka.plan_view import PlanView, interval_of, lane_of
from factory_agents.kafka.records import RECORD_VERSION, CutRecord, LedgerRecord, MarkRecord, PlanRecord, microseconds
from factory_agents.protocol import Manifest

__all__ = ["NO_LIMIT", "Done", "PruneView", "origin_of"]

NO_LIMIT = 2**63
_MOST_NAMES = 10_000
_PAST = 8  # what lies below the marks gets an eighth of the room: it is what a prune left that was killed

_Key: TypeAlias = bytes | str
"""Of what a stage did, or of a plan or a cut."""


@lru_cache(4096)
def _span_of(window: str) -> tuple[int, int] | None:
    """The interval that a window's key tells, in microseconds since 1970."""
    interval = interval_of(window)
    return None if interval is None else (microseconds(interval.start), microseconds(interval.end))


@lru_cache(4096)
def origin_of(scope: str) -> str:
    """The topic or source that a scope names, without its mapped task."""
    return re.sub(r"\[\d+\]$", "", scope)


class _Topic(msgspec.Struct, frozen=True):
    topic: str = ""


class _Result(msgspec.Struct, frozen=True):
    input: _Topic | None = None
    manifest: _Topic | None = None
    dead_letters: Manifest | None = None
    ledger_offset: int = 0


class _Work(msgspec.Struct, frozen=True):
    """The few fields that a prune needs of what was said of a stage's work, or of an alert."""

    stage: str = ""
    window: str = ""
    scope: str = ""
    version: int = 1
    updated_at: int = 0
    at: int = 0
    result: _Result | None = None
    earlier: tuple[Manifest, ...] = ()


_DECODER = msgspec.json.Decoder(_Work)


@dataclass(frozen=True, slots=True)
class Done:
    """One record of what a stage did: of which window, when last (milliseconds), whether it is finished, and its dead letters."""

    stage: str
    window: str
    scope: str
    last: int
    finished: bool
    letters: tuple[Manifest, ...]
    planned_at: int
    group: _Oldest = field(compare=False, repr=False)

    @property
    def origin(self) -> str:
        """The topic or source that its window is of."""
        return origin_of(self.scope)


class _Oldest:
    """The first windows in some order, with the keys of all their records; one at least, and as many as there is room for.

    Each window before ``limit`` is held whole, others are not known. ``rests`` is the earliest time of a record that had no room, 0
    where it isn't known.
    """

    def __init__(self, room: int) -> None:
        self.limit = NO_LIMIT
        self.rests = NO_LIMIT
        self._room = room
        self._records = 0
        self._windows: dict[str, tuple[int, dict[_Key, None]]] = {}
        self._newest: list[tuple[int, str]] = []

    def has_room(self, window: str, order: int) -> bool:
        """Whether a record of a window is held, which stands there."""
        return order < self.limit or window in self._windows

    def put(self, window: str, order: int, key: _Key) -> bool:
        """Hold a record of a window, which stands where its first record put it; False where there is no room for it."""
        held = self._windows.get(window)
        if held is None:
            if not self.has_room(window, order):
                return False
            held = self._windows[window] = (order, {})
            heappush(self._newest, (-order, window))
        if key not in held[1]:
            held[1][key] = None
            self._records += 1
        return True

    def drop(self, window: str, key: _Key) -> None:
        """A record that was deleted."""
        held = self._windows.get(window)
        if held is not None and key in held[1]:
            del held[1][key]
            self._records -= 1
            if not held[1]:
                del self._windows[window]

    def overflow(self) -> Iterator[_Key]:
        """The keys of the last windows, for which there is no room any more."""
        while self._newest and ((self._records > self._room and len(self._windows) > 1) or -self._newest[0][0] >= self.limit):
            order, window = heappop(self._newest)
            held = self._windows.get(window)
            if held is not None and held[0] == -order:
                self.limit = -order
                self._records -= len(held[1])
                del self._windows[window]
                yield from held[1]


class PruneView(PlanView):
    """One pipeline's records: its marks, and of each origin the oldest windows; of what stages did no more than a prune needs.

    Windows with an interval are in the order of their start, others in that of the ledger. ``room`` is how many records are held of each
    origin. ``marks`` are those that are known already: what lies below them takes no room from the others. ``topics`` are those that the
    pipeline's stages read and wrote; where they are given, they are known, and works for which there is no room aren't decoded.
    ``scopes`` are the stages with their scopes, ``origins`` the topic of each id that something was planned on (empty: it is no topic's),
    ``alerts`` when what people are told of happened (milliseconds), by its record's key.
    """

    def __init__(self, pipeline: str, *, room: int = NO_LIMIT, marks: Iterable[MarkRecord] = (), topics: Collection[str] = ()) -> None:
        self.works: dict[bytes, Done] = {}
        self._known = topics
        self.topics = set(topics)
        self.scopes: set[tuple[str, str]] = set()
        self.origins: dict[str, str] = {}
        self._planned: set[str] = set()
        self._room = room
        self._marks = {mark.origin: mark for mark in marks}
        self._oldest: dict[tuple[str, str], _Oldest] = {}
        self._names: dict[str, str] = {}
        self._begins = tuple(f"{kind}|{pipeline}|".encode() for kind in ("stage", "failure", "attempt", "verdict"))
        self.alerts: dict[bytes, int] = {}
        super().__init__(pipeline)
        self._said = self._begins[1:]
        self.begins = (*self.begins, *self._begins, f"alert|{pipeline}|".encode())

    def limit(self, origin: str, lanes: Iterable[str]) -> int:
        """The time (microseconds) of which is certain: each window of an origin that begins before it is held whole, and so is each cut."""
        return min(group.limit for group in self._timed(origin, lanes))

    def rests(self, origin: str, lanes: Iterable[str]) -> int:
        """When something was said first (milliseconds) of the windows with an interval that are not held whole, as far as that is known."""
        return min(group.rests for group in self._timed(origin, lanes))

    def _timed(self, origin: str, lanes: Iterable[str]) -> list[_Oldest]:
        return [self._group(origin, "intervals"), *(self._group(lane, what) for lane in lanes for what in ("intervals", "cuts"))]

    def run_limit(self, origin: str) -> int:
        """The offset up to which each window without an interval that was planned there is held whole."""
        return self._group(origin, "runs").limit

    def take(self, offset: int, key: bytes, value: bytes | None) -> None:
        """See ``Follower.take``."""
        if key.startswith(b"alert|"):
            self.alerts.pop(key, None)
            if value is not None:
                self.alerts[key] = self._work(offset, key, value).at
        elif not key.startswith(self._begins):
            super().take(offset, key, value)
        elif value is None:
            done = self.works.pop(key, None)
            if done is not None:
                done.group.drop(done.window, key)
        elif not (self._known and self._is_passed(key)):
            self._take_work(offset, key, self._work(offset, key, value))

    def _is_passed(self, key: bytes) -> bool:
        """Whether the key alone says that there is no room for a work, of a topic's window with an interval."""
        parts = key.decode(errors="replace").split("|")
        if len(parts) != 6:
            return False
        _, _, stage, scope, window, _ = parts
        span, origin = _span_of(window), origin_of(scope)
        if span is None or origin not in self._planned or self._group(*self._place(origin, span, 0)).has_room(window, span[0]):
            return False
        self.scopes.add((stage, scope))
        return True

    def _take_work(self, offset: int, key: bytes, work: _Work) -> None:
        self.scopes.add((work.stage, work.scope))
        result, letters = work.result, work.earlier
        for manifest in letters if result is None else (*letters, result.input, result.manifest, result.dead_letters):
            if manifest is not None:
                self.topics.add(manifest.topic)
        if result is not None and result.dead_letters is not None:
            letters = (*letters, result.dead_letters)
        span, origin, planned_at = _span_of(work.window), origin_of(work.scope), result.ledger_offset if result is not None else 0
        group, last = self._group(*self._place(origin, span, planned_at or offset)), max(work.updated_at, work.at)
        before = self.works.get(key)
        if before is not None and before.group is not group:
            self.works.pop(key).group.drop(before.window, key)
        if not group.put(work.window, offset if span is None else span[0], key):
            group.rests = min(group.rests, last)
            return
        finished, there = result is not None or key.startswith(self._said), tuple(m for m in letters if m.ranges)
        stage, window, scope = (self._one(name) for name in (work.stage, work.window, work.scope))
        self.works[key] = Done(stage, window, scope, last, finished, there, planned_at, group)
        self._release(group)

    def _place(self, origin: str, span: tuple[int, int] | None, offset: int) -> tuple[str, str]:
        """With which windows this one is counted; those below a mark are of no interest to it any more, and stand apart.

        ``offset`` is where its plan lies, or where a record of it does, which comes after that.
        """
        mark = self._marks.get(origin)
        if mark is not None and (offset < mark.offset if span is None else mark.covers_span(*span)):
            return origin, "past works"
        return origin, "runs" if span is None else "intervals"

    def _put(self, kind: str, key: str, offset: int, value: LedgerRecord | bytes | None) -> None:
        if kind not in ("cut", "plan"):
            super()._put(kind, key, offset, value)
            return
        lane, name = lane_of(key), key.rpartition("|")[2]
        if lane not in self.origins:
            if value is None:
                return
            record = self._decode(kind, key, offset, value)
            topic = self.origins[lane] = record.topic if isinstance(record, CutRecord | PlanRecord) else ""
            self._planned |= {topic} - {""}
        now, past, order, is_past = self._places(kind, lane, name, offset)
        group, other = (past, now) if is_past else (now, past)
        other.drop(name, key)
        if value is None:
            group.drop(name, key)
        elif not group.put(name, -order if is_past else order, key):
            group.rests = 0
            return
        super()._put(kind, key, offset, value)
        self._release(group)

    def _places(self, kind: str, lane: str, name: str, offset: int) -> tuple[_Oldest, _Oldest, int, bool]:
        """With which windows or cuts this one is counted, and where it would be below the mark; where it stands; whether it is below.

        Of those below the mark the last ones are held: the windows above follow on them, and a prune that was killed left them.
        """
        mark = self._marks.get(self.origins[lane] or origin_of(lane.partition(" ")[2]))
        span = _span_of(name) if kind == "plan" else None
        if kind == "cut" and name.isdecimal():
            low_water = mark.low_water if mark is not None else None
            return (
                self._group(lane, "cuts"),
                self._group(lane, "past cuts"),
                int(name) * 1000,
                low_water is not None and int(name) < low_water,
            )
        origin = self.origins[lane] or lane
        if span is not None:
            past = self._group(lane, "past intervals")
            return self._group(origin, "intervals"), past, span[0], mark is not None and mark.covers_span(*span)
        return self._group(origin, "runs"), self._group(lane, "past runs"), offset, mark is not None and offset < mark.offset

    def _group(self, origin: str, what: str) -> _Oldest:
        found = self._oldest.get((origin, what))
        if found is None:
            room = self._room if not what.startswith("past") else self._room // _PAST + 1
            found = self._oldest[origin, what] = _Oldest(room)
        return found

    def _release(self, group: _Oldest) -> None:
        """Let go of what a group has no room for."""
        for key in group.overflow():
            if isinstance(key, bytes):
                group.rests = min(group.rests, self.works.pop(key).last)
            else:
                group.rests = 0
                super()._put("cut" if key.startswith("cut|") else "plan", key, 0, None)

    def _work(self, offset: int, key: bytes, value: bytes) -> _Work:
        try:
            work = _DECODER.decode(value)
            if work.version > RECORD_VERSION:
                raise ValueError(f"its version is {work.version}, this release reads up to {RECORD_VERSION}")
        except (msgspec.MsgspecError, ValueError) as error:
            raise ConfigurationError(
                f"ledger record {key.decode(errors='replace')!r} at offset {offset}: not one that this version can read ({error}), so "
                f"nothing of its pipeline is pruned; was it written by a newer release?"
            ) from error
        return work

    def _one(self, text: str) -> str:
        """The same text as one object: there are many records of few names."""
        if len(self._names) > _MOST_NAMES:
            self._names.clear()
        return self._names.setdefault(text, text)

    def _decoded(self, kind: str, key: str) -> LedgerRecord:
        """A prune looks at each plan once: decoded, they would take three times as much memory until it ends."""
        found = self._kinds[kind][key]
        record = super()._decoded(kind, key)
        self._kinds[kind][key] = found
        return record

    def forget(self) -> None:
        """See ``Follower.forget``."""
        super().forget()
        self.works.clear()
        self.alerts.clear()
        self.topics = set(self._known)
        self.scopes.clear()
        self.origins.clear()
        self._planned.clear()
        self._oldest.clear()
