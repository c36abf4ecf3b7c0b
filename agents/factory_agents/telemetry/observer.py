"""Who is told how a run is getting on: progress bars, heartbeats, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Age", "Batch", "Commit", "Done", "Observer", "Observers", "Subject"]


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose work an observer is told of: one shard of a stage over a window, or a live agent (stage ``live``, no window).

    ``total`` is how many records there are at most, -1 if unknown.
    """

    pipeline: str
    stage: str
    agent: str = ""
    version: str = ""
    window: str = ""
    shard: str = ""
    total: int = -1


@dataclass(frozen=True, slots=True)
class Batch:
    """Records that went through the agent (or into the sink) at once, and the seconds that it took. They are not committed yet."""

    records: int
    seconds: float


class Age(NamedTuple):
    """How old an event was when what became of it was committed, in seconds since its record's timestamp; its trace's id, if any."""

    seconds: float
    trace_id: str = ""


@dataclass(frozen=True, slots=True)
class Commit:
    """A transaction that was committed.

    ``records`` were read for it, ``written`` (dead letters included) with values of ``bytes`` in all were sent; it took ``seconds`` from
    the last record on. ``rejected`` are its dead letters by rule. ``done``, ``rejected_in_all`` and ``counts`` (by outcome) are of the
    whole work so far. ``ages`` are those of a sample of its events: the first of each batch and every 1,000th, and those that were traced.
    """

    records: int
    written: int
    bytes: int
    seconds: float
    rejected: Mapping[str, int] = field(default_factory=dict)
    done: int = 0
    rejected_in_all: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    ages: Sequence[Age] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """A window's shard is finished: records read and rejected, and the seconds of this attempt. ``reused``: it had been before."""

    records: int
    rejected: int
    seconds: float
    resumed: bool = False
    reused: bool = False


class Observer:
    """Is told of a run as it goes on, per batch or chunk and never per record. Nothing happens here: override what you want to know.

    Each method is called between two steps of the run, ``busy`` of a sink in a thread of its own: it must return at once and raise nothing.
    """

    def batch(self, subject: Subject, batch: Batch) -> None:
        """A batch went through the agent."""

    def turn(self, subject: Subject, *, joined: bool) -> None:
        """A live agent's loop has gone round, whether there was work or not. ``joined``: it is a member of its group."""

    def busy(self, subject: Subject, seconds: float) -> None:
        """The agent, source or sink has been at one call for so long; called several times a second meanwhile."""

    def committed(self, subject: Subject, commit: Commit) -> None:
        """A transaction was committed."""

    def aborted(self, subject: Subject, records: int, reason: str) -> None:
        """A chunk of so many records was dropped; it is tried again, or the run fails with the reason."""

    def rebalanced(self, subject: Subject, partitions: Set[int]) -> None:
        """A live agent has these partitions now."""

    def lag(self, subject: Subject, lag: Mapping[int, int]) -> None:
        """How many offsets each partition of a live agent is behind; about once a second."""

    def breakers(self, subject: Subject, states: Mapping[str, str]) -> None:
        """The state of the breaker of each service that a live agent calls, by its name; about once a second."""

    def done(self, subject: Subject, done: Done) -> None:
        """A window's shard is finished, its result in the ledger."""


class Observers(Observer):
    """Several observers, each told of everything."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def batch(self, subject: Subject, batch: Batch) -> None:
        """See ``Observer``."""
        for observer in self._observers:
            observer.batch(subject, batch)

    def turn(self, subject: Subject, *, joined: bool) -> None:
        """See ``Observer``."""
        for observer in self._observers:
            observer.turn(subject, joined=joined)

    def busy(self, subject: Subject, seconds: float) -> None:
        """See ``Observer``."""
        for observer in self._observers:
            observer.busy(subject, seconds)

    def committed(self, subject: Subject, commit: Commit) -> None:
        """See ``Observer``."""
        for observer in self._observers:
            observer.committed(subject, commit)

    def aborted(self, subject: Subject, records: int, reason: str) -> None:
        """See ``Observer``."""
        for observer in self._observers:
            observer.aborted(subject, records, reason)

    def rebalanced(self, subject: Subject, partitions: Set[int]) -> None:
        """See ``Observer``."""
        for observer in self._observers:
            observer.rebalanced(subject, partitions)

    def lag(self, subject: Subject, lag: Mapping[int, int]) -> None:
        """See ``Observer``."""
        for observer in self._observers:
            observer.lag(subject, lag)

    def breakers(self, subject: Subject, states: Mapping[str, str]) -> None:
        """See ``Observer``."""
        for observer in self._observers:
            observer.breakers(subject, states)

    def done(self, subject: Subject, done: Done) -> None:
        """See ``Observer``."""
        for observer in self._observers:
            observer.done(subject, done)
