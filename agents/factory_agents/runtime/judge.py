"""Whether a version that is being rolled out does worse than the one before it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from factory_agents.kafka.routes import Limits
from factory_agents.telemetry import Batch, Commit, Observer, Subject

__all__ = ["ERROR_RULE", "Figures", "Watch", "verdict"]

ERROR_RULE, _OUTAGE_RULE = "agent-error", "unavailable"
_WINDOW = 20.0
_BUSY_SECONDS, _SLOW_RECORD = 1.0, 0.002  # less than that is no figure to compare
_WAITING_SECONDS = 10.0


class Figures(NamedTuple):
    """What some members did of late: records handled, those that raised or were rejected, seconds at it, and seconds waited of ``span``.

    ``asked`` are calls of a model, with the ``tokens`` that they took and what they cost, in billionths.
    """

    records: int = 0
    errors: int = 0
    rejected: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    span: float = 0.0
    asked: int = 0
    tokens: int = 0
    nanocost: int = 0


def total(figures: Iterable[Figures]) -> Figures:
    """All together."""
    found = list(figures)
    return Figures(*map(sum, zip(*found, strict=True))) if found else Figures()


def verdict(new: Figures, old: Figures, limits: Limits) -> str:
    """Why the new version is to be rolled back; empty where it isn't.

    A service that is down for both is no reason: nothing is rejected meanwhile, and both wait.
    """
    for what, bad, limit, before in (
        ("raised errors for", new.errors, limits.errors, old.errors),
        ("rejected", new.rejected, limits.rejected, old.rejected),
    ):
        share, was = bad / max(1, new.records), before / max(1, old.records)
        if bad >= limits.least and share > max(limit, limits.times * was):
            return f"it {what} {bad} of {new.records} events ({share:.1%}), the version before it {before} of {old.records}"
    if new.seconds >= _BUSY_SECONDS and old.records >= limits.least:
        mean, was = new.seconds / max(1, new.records), old.seconds / old.records
        if mean > max(_SLOW_RECORD, limits.slower * was):
            return f"it takes {mean * 1000:.1f} ms an event, the version before it {was * 1000:.1f} ms"
    if new.waiting >= _WAITING_SECONDS and old.span and new.span:
        mine, theirs = new.waiting / new.span, old.waiting / old.span
        if mine > limits.waiting and theirs < limits.waiting / 2:
            return f"it waits {mine:.0%} of the time for a service that answers the version before it"
    return _dearer(new, old, limits)


def _dearer(new: Figures, old: Figures, limits: Limits) -> str:
    """By call and not by event: the answers to a new prompt aren't logged yet, those to the old one are."""
    if min(new.asked, old.asked) < limits.least:
        return ""
    for what, spent, before in (
        ("costs {} (billionths)", new.nanocost, old.nanocost),
        ("takes {} tokens", new.tokens, old.tokens),
    ):
        mean, was = spent / new.asked, before / old.asked
        if was and mean > limits.dearer * was:
            return f"it {what.format(f'{mean:,.0f}')} a call of its model, the version before it {was:,.0f}"
    return ""


class Watch(Observer):
    """What one member did within the last seconds, told by its own loop.

    The time of a process's first batch doesn't count: it imports and connects then.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._done: deque[tuple[float, Figures]] = deque()
        self._uncommitted = self._excused = 0.0
        self._is_warm = False
        self._spent = Figures()
        self._last = Figures()

    def batch(self, subject: Subject, batch: Batch) -> None:
        """See ``Observer``."""
        self._uncommitted += max(0.0, batch.seconds - self._excused) if self._is_warm else 0.0
        self._is_warm, self._excused = True, 0.0

    def committed(self, subject: Subject, commit: Commit) -> None:
        """See ``Observer``."""
        counts, before = commit.counts, self._spent
        tokens = counts.get("prompt_tokens", 0) + counts.get("completion_tokens", 0)
        self._spent = Figures(asked=counts.get("asked", 0), tokens=tokens, nanocost=counts.get("nanocost", 0))
        spent = {name: getattr(self._spent, name) - getattr(before, name) for name in ("asked", "tokens", "nanocost")}
        if commit.records or spent["asked"]:
            self._note(self.chunk(commit.records, commit.rejected)._replace(**spent))
        self._uncommitted = self._excused = 0.0

    def aborted(self, subject: Subject, records: int, reason: str) -> None:
        """See ``Observer``."""
        self._uncommitted = self._excused = 0.0

    def waited(self, seconds: float) -> None:
        """The agent waits for a service."""
        self._note(Figures(waiting=seconds))

    def excuse(self, seconds: float) -> None:
        """So much of the call under way is nobody's fault: a service hangs for both versions."""
        self._excused = seconds

    def restart(self) -> None:
        """A rollout begins: what was before it doesn't count."""
        self._done.clear()
        self._last = Figures()
        self._began = self._clock()

    def _note(self, figures: Figures) -> None:
        self._done.append((self._clock(), figures))

    def chunk(self, records: int, rejected: Mapping[str, int], busy: float = 0.0) -> Figures:
        """Figures of a chunk that isn't committed yet, and of a call under way that has lasted ``busy`` seconds."""
        errors = rejected.get(ERROR_RULE, 0)
        others = sum(rejected.values()) - errors - rejected.get(_OUTAGE_RULE, 0)
        return Figures(records, errors, others, self._uncommitted + (busy if self._is_warm else 0.0))

    @property
    def figures(self) -> Figures:
        """Of the last seconds; where nothing came meanwhile, of those when something did."""
        now = self._clock()
        while self._done and self._done[0][0] < now - _WINDOW:
            self._done.popleft()
        found = total(figures for _, figures in self._done)._replace(span=min(_WINDOW, max(0.1, now - self._began)))
        if found.records:
            self._last = found
        return found if found.records else self._last._replace(waiting=found.waiting, span=found.span)
