"""What a live agent tells at ``/metrics``, ``/livez`` and ``/readyz``: kept by batch and commit, never by record."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Set

from factory_agents.telemetry.logs import fields
from factory_agents.telemetry.metrics import Series, Snapshot, Totals, Values, encoder, require_encoder
from factory_agents.telemetry.observer import Batch, Commit, Observer, Subject
from factory_agents.telemetry.serving import Answer, Asked, SmallServer, text
from factory_agents.telemetry.shown import Shown

__all__ = ["LiveTelemetry"]

log = logging.getLogger(__name__)

_QUIET_SECONDS = 180.0
"""A loop that has said nothing for so long hangs: a commit that waits for its broker gives up before that."""


_AGENT_LABELS = 3  # agent, pipeline and stage come first in all labels
_OPEN = {"closed": 0.0, "half-open": 0.5, "open": 1.0}


class LiveTelemetry(Observer):
    """An observer that serves what it was told, from when it is made until it is closed.

    What a sink does over windows is in the ledger, and counted from there: here it is not counted a second time. Raises ConfigurationError
    where it cannot listen, or prometheus-client is missing.
    """

    def __init__(self, listen: str, *, where: str = "--metrics-listen") -> None:
        require_encoder()
        self._lock = threading.Lock()
        self._totals, self._gauges = Totals(), dict[Series, tuple[float, ...]]()
        self._number = 0
        self._counts: dict[Subject, Mapping[str, int]] = {}
        self._open: dict[tuple[str, ...], float] = {}
        self._shown = Shown(Snapshot())
        self._last = time.monotonic()
        self._joined = False
        self._server = SmallServer(listen, {"/metrics": self._metrics, "/livez": self._livez, "/readyz": self._readyz}, where=where)
        log.info("serving metrics", extra=fields(address=self.address))

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._server.address

    def close(self) -> None:
        """Listen no more."""
        self._server.close()

    def batch(self, subject: Subject, batch: Batch) -> None:
        """See ``Observer``."""
        with self._lock:
            labels = self._heard(subject)
            self._totals.observe("factory_batch_records", labels, batch.records)
            self._totals.observe("factory_batch_seconds", labels, batch.seconds)
            self._totals.add("factory_aborts_total", labels, 0)  # so that there is one to look at before the first
            if not subject.window:  # a sink's transaction is the database's, as long as its window takes
                self._open.setdefault(labels, self._last - batch.seconds)
            self._gauges["factory_busy_seconds", labels] = (0.0,)

    def turn(self, subject: Subject, *, joined: bool) -> None:
        """See ``Observer``."""
        self._last = time.monotonic()
        self._joined = joined

    def busy(self, subject: Subject, seconds: float) -> None:
        """See ``Observer``."""
        with self._lock:
            self._gauges["factory_busy_seconds", self._heard(subject)] = (seconds,)

    def committed(self, subject: Subject, commit: Commit) -> None:
        """See ``Observer``."""
        with self._lock:
            labels = self._heard(subject)
            self._open.pop(labels, None)
            self._totals.observe("factory_commit_seconds", labels, commit.seconds)
            if not subject.window:
                self._totals.add("agent_success_total", labels, 1)
                for age in commit.ages:
                    self._totals.observe("factory_event_seconds", labels, age.seconds, trace_id=age.trace_id)
                before = self._counts.get(subject, {})
                for name, amount in commit.counts.items():
                    self._totals.count(labels, name, amount - before.get(name, 0))
                self._counts[subject] = commit.counts

    def aborted(self, subject: Subject, records: int, reason: str) -> None:
        """See ``Observer``."""
        with self._lock:
            labels = self._heard(subject)
            self._open.pop(labels, None)
            self._totals.add("factory_aborts_total", labels, 1)

    def rebalanced(self, subject: Subject, partitions: Set[int]) -> None:
        """See ``Observer``."""
        with self._lock:
            labels = self._heard(subject)
            self._totals.add("factory_rebalances_total", labels, 1)
            self._gauges["factory_partitions_held", labels] = (float(len(partitions)),)

    def lag(self, subject: Subject, lag: Mapping[int, int]) -> None:
        """See ``Observer``."""
        with self._lock:
            labels, behind = self._heard(subject), float(sum(lag.values()))
            self._gauges["factory_held_lag", labels] = self._gauges["factory_scalable_lag", labels] = (behind,)

    def breakers(self, subject: Subject, states: Mapping[str, str]) -> None:
        """See ``Observer``."""
        with self._lock:
            labels = self._heard(subject)
            for name, state in states.items():
                self._gauges["factory_breaker_open", (*labels, name)] = (_OPEN[state],)
            if any(state != "closed" for state in states.values()):
                self._gauges["factory_scalable_lag", labels] = (0.0,)

    def _heard(self, subject: Subject) -> tuple[str, ...]:
        self._last = time.monotonic()
        labels = (subject.agent, subject.pipeline, subject.stage)
        if not subject.window:
            self._gauges["factory_agent_info", (*labels, subject.version)] = (1.0,)
        return labels

    def _metrics(self, asked: Asked) -> Answer:
        with self._lock:
            self._number += 1
            encode, content_type = encoder(asked.accept, self._totals.examples())
            self._shown.tell(Snapshot(self._number, self._totals.frozen(), {**self._gauges, **self._ages()}))
        values, sent = self._shown.to(asked.client)
        return Answer(encode(values), content_type, sent=sent)

    def _ages(self) -> Values:
        now = time.monotonic()
        agents = {labels[:_AGENT_LABELS] for _, labels in self._gauges} | self._open.keys()
        return {("factory_transaction_age_seconds", labels): (now - self._open.get(labels, now),) for labels in agents}

    def _livez(self, asked: Asked) -> Answer:
        quiet = time.monotonic() - self._last
        return text("ok") if quiet < _QUIET_SECONDS else text(f"nothing has happened for {quiet:.0f} s", 503)

    def _readyz(self, asked: Asked) -> Answer:
        return text("ok") if self._joined else text("not a member of the group yet", 503)
