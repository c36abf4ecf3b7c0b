"""Observers that remember what they were told."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from factory_agents.telemetry import Batch, Commit, Done, Observer, Subject


class Recorder(Observer):
    """Everything, in order: the method's name and what it was told of."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.subjects: set[Subject] = set()

    def of(self, name: str) -> list[Any]:
        """What one method was told."""
        return [what for called, what in self.calls if called == name]

    @property
    def commits(self) -> list[int]:
        """Records done in all, at each commit."""
        return [commit.done for commit in self.of("committed")]

    def _note(self, name: str, subject: Subject, what: Any) -> None:
        self.subjects.add(subject)
        self.calls.append((name, what))

    def batch(self, subject: Subject, batch: Batch) -> None:
        self._note("batch", subject, batch)

    def busy(self, subject: Subject, seconds: float) -> None:
        self._note("busy", subject, seconds)

    def committed(self, subject: Subject, commit: Commit) -> None:
        self._note("committed", subject, commit)

    def aborted(self, subject: Subject, records: int, reason: str) -> None:
        self._note("aborted", subject, (records, reason))

    def rebalanced(self, subject: Subject, partitions: Set[int]) -> None:
        self._note("rebalanced", subject, set(partitions))

    def lag(self, subject: Subject, lag: Mapping[int, int]) -> None:
        self._note("lag", subject, dict(lag))

    def breakers(self, subject: Subject, states: Mapping[str, str]) -> None:
        self._note("breakers", subject, dict(states))

    def done(self, subject: Subject, done: Done) -> None:
        self._note("done", subject, done)
