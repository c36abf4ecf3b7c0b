"""One background reader a process: what the ledger and the brokers say now, so that no request of the page waits for Kafka."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeAlias

from factory_agents.errors import FactoryError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.lag import Lags, LagTotal, lag_totals
from factory_agents.kafka.ledger import CutRecord, FailureRecord, Ledger, PlanRecord, StageRecord
from factory_agents.kafka.records import KINDS, VerdictRecord
from factory_agents.kafka.topics import Cluster
from factory_agents.kafka.view import LedgerView
from factory_agents.kafka.windows import WindowStatus, windows_of
from factory_agents.rollouts import LiveGroup, LiveGroups

__all__ = ["Details", "Figures", "LedgerReader", "Live", "Snapshot", "Snapshots", "Trend"]

_EVERY_SECONDS = 5.0
_IDLE_SECONDS = 300.0
"""Nobody has looked for so long: stop asking Kafka until somebody does."""

_ASK_SECONDS = 5.0
_READ_SECONDS = 60.0
_LAG_SECONDS = 15.0
_AGES_SECONDS = 30.0
"""How long a ledger without news is believed: what has stalled is told by the time alone."""

_HISTORY = 240
"""Lags that are kept of each reader, one each ``_LAG_SECONDS``: an hour."""

log = logging.getLogger(__name__)


Trend: TypeAlias = tuple[tuple[float, int], ...]
"""Times (seconds since 1970) and how many records a reader was behind then; since this process looks."""


@dataclass
class Details:
    """What the ledger holds of one window, beyond its status."""

    plans: list[PlanRecord] = field(default_factory=list)
    stages: list[StageRecord] = field(default_factory=list)
    failures: list[FailureRecord] = field(default_factory=list)
    verdicts: list[VerdictRecord] = field(default_factory=list)


@dataclass(frozen=True)
class Live:
    """The groups of live agents; ``error`` says why they could not be looked at the last time: they are as they were before."""

    groups: tuple[LiveGroup, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Figures:
    """What was read at once: all windows, failed ones first; details by pipeline and window; live agents.

    ``lags``: how far pipelines are behind, and ``trends``: how far each reader was.
    """

    windows: tuple[WindowStatus, ...] = ()
    details: Mapping[tuple[str, str], Details] = field(default_factory=dict)
    lags: tuple[LagTotal, ...] = ()
    live: Live = Live()
    trends: Mapping[str, Trend] = field(default_factory=dict)

    def trend(self, reader: str, topic: str) -> Trend:
        """How a reader of a topic (a pipeline, or a group of live agents) was behind it of late."""
        return self.trends.get(f"{reader} {topic}", ())


@dataclass(frozen=True)
class Snapshot:
    """The figures as of ``taken_at`` (None: not read yet); ``error`` and ``down_since`` say why there are none newer."""

    figures: Figures = Figures()
    taken_at: datetime | None = None
    error: str = ""
    down_since: datetime | None = None

    def age_seconds(self, now: datetime) -> int:
        """Whole seconds since it was taken; 0 for one that never was."""
        return max(0, int((now - self.taken_at).total_seconds())) if self.taken_at else 0

    def of(self, pipeline: str) -> list[WindowStatus]:
        """A pipeline's windows."""
        return [w for w in self.figures.windows if w.pipeline == pipeline]

    def letter_topics(self, pipeline: str) -> list[str]:
        """The topics that a pipeline's stages wrote dead letters to: those that its readers may look into."""
        stages = (r for (name, _), of in self.figures.details.items() if name == pipeline for r in of.stages)
        return sorted({m.topic for r in stages if r.result is not None and (m := r.result.dead_letters) is not None and m.topic})


class LedgerReader:
    """Follows the ledger from one look to the next. After an error it connects again; what it has read stays."""

    def __init__(self, config: Callable[[], KafkaConfig], prefix: Callable[[], str]) -> None:
        self._config, self._prefix = config, prefix
        self._view = LedgerView("", tuple(f"{kind}|".encode() for kind in KINDS if kind not in ("attempt", "replay", "pipeline", "alert")))
        self._cluster: Cluster | None = None
        self._ledger: Ledger | None = None
        self._lags: Lags | None = None
        self._live: LiveGroups | None = None
        self._seen: tuple[str, dict[int, int]] | None = None
        self._figures = Figures()
        self._history: dict[str, deque[tuple[float, int]]] = {}
        self._read_at = self._lag_at = -_LAG_SECONDS

    def __call__(self) -> Figures:
        """The figures now. Raises a FactoryError."""
        try:
            return self._look()
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Disconnect."""
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.close()

    def _look(self) -> Figures:
        if self._cluster is None:
            config, prefix = self._config(), self._prefix()
            self._cluster = Cluster(config, timeout=_ASK_SECONDS)
            self._ledger = Ledger(config, self._cluster, prefix=prefix, pipeline="")
            self._lags = Lags(config, self._cluster)
            self._live = LiveGroups(config, self._cluster, self._lags, prefix=prefix)
        now = time.monotonic()
        is_due = now - self._lag_at > _LAG_SECONDS
        if self._ledger is not None and self._lags is not None and self._cluster.find(self._ledger.topic) is not None:
            self._read(self._ledger)
            if is_due:
                behind = self._lags.behind_cuts(_last_cuts(self._view.of(CutRecord)), failed=[])  # shown is what may be seen
                self._figures = replace(self._figures, lags=tuple(lag_totals(behind)))
        else:
            self._figures, self._seen = Figures(live=self._figures.live), None
        if is_due and self._live is not None:
            self._figures = replace(self._figures, live=_looked(self._live, self._figures.live))
            self._figures = replace(self._figures, trends=self._trends(time.time()))
            self._lag_at = now
        return self._figures

    def _read(self, ledger: Ledger) -> None:
        ledger.follow(self._view, deadline=time.monotonic() + _READ_SECONDS, stable=True)
        now = time.monotonic()
        stands = (self._view.topic_id, dict(self._view.positions))
        if stands != self._seen or now - self._read_at > _AGES_SECONDS:
            windows = tuple(windows_of(self._view))
            self._figures = replace(self._figures, windows=windows, details=_details(self._view))
            self._seen, self._read_at = stands, now

    def _trends(self, at: float) -> dict[str, Trend]:
        """The lags of now behind those of before; of readers that are gone nothing is kept."""
        figures = self._figures
        known = {f"{total.reader} {total.topic}": total.lag for total in figures.lags}
        known |= {f"{group.name} {group.status.topic}": group.status.lag for group in figures.live.groups if not group.error}
        for gone in self._history.keys() - known.keys() - {f"{group.name} {group.status.topic}" for group in figures.live.groups}:
            del self._history[gone]
        for name, lag in known.items():
            self._history.setdefault(name, deque(maxlen=_HISTORY)).append((at, lag))
        return {name: tuple(points) for name, points in self._history.items()}


def _looked(groups: LiveGroups, before: Live) -> Live:
    """The groups now; what the page may not see of them does not take the windows away."""
    try:
        return Live(tuple(groups.look(seconds=_ASK_SECONDS)))
    except FactoryError as error:
        return replace(before, error=str(error))


def _details(view: LedgerView) -> dict[tuple[str, str], Details]:
    found: dict[tuple[str, str], Details] = {}
    for plan in view.of(PlanRecord):
        if plan.topic and not plan.former:
            found.setdefault((plan.pipeline, plan.window), Details()).plans.append(plan)
    for stage in view.of(StageRecord):
        found.setdefault((stage.pipeline, stage.window), Details()).stages.append(stage)
    for failure in view.of(FailureRecord):
        found.setdefault((failure.pipeline, failure.window), Details()).failures.append(failure)
    for verdict in view.of(VerdictRecord):
        found.setdefault((verdict.pipeline, verdict.window), Details()).verdicts.append(verdict)
    return found


def _last_cuts(cuts: Iterable[CutRecord]) -> dict[tuple[str, str, str], tuple[int, ...]]:
    """The offsets of each pipeline's last cut of a topic, by pipeline, topic and topic id."""
    last: dict[tuple[str, str, str], CutRecord] = {}
    for cut in cuts:
        key = (cut.pipeline, cut.topic, cut.topic_id)
        if key not in last or cut.at >= last[key].at:
            last[key] = cut
    return {key: cut.offsets for key, cut in last.items()}


def _configured() -> LedgerReader:
    """A reader of the ledger that Airflow's configuration names, which is asked when it first reads."""

    def config() -> KafkaConfig:
        from airflow_provider_factory.hooks.kafka import FactoryKafkaHook
        from airflow_provider_factory.settings import option

        return FactoryKafkaHook(option("kafka_conn_id")).config()

    def prefix() -> str:
        from airflow_provider_factory.settings import option

        return option("prefix")

    return LedgerReader(config, prefix)


class Snapshots:
    """Keeps the newest ``Snapshot``; reading begins with the first look at it, and rests while nobody looks."""

    def __init__(self, read: Callable[[], Figures] | None = None, *, every: float = _EVERY_SECONDS) -> None:
        self._read = read or _configured()
        self._every = every
        self._now = Snapshot()
        self._lock = threading.Lock()
        self._looked = 0.0
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def current(self) -> Snapshot:
        """The newest there is, at once."""
        with self._lock:
            self._looked = time.monotonic()
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._follow, name="factory-page", daemon=True)
                self._thread.start()
            return self._now

    def close(self) -> None:
        """End the reader; a read under way is left to end by itself."""
        self._stop.set()

    def _follow(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                if time.monotonic() - self._looked > _IDLE_SECONDS:
                    self._thread = None
                    return
            self._take()
            self._stop.wait(self._every)

    def _take(self) -> None:
        try:
            found = Snapshot(self._read(), datetime.now(UTC))
        except Exception as error:
            if self._now.down_since is None:
                log.warning("the Factory page cannot read the ledger: %s", error)
            said = str(error) if isinstance(error, FactoryError) else f"unexpected error ({type(error).__name__}); see the API server's log"
            found = replace(self._now, error=said, down_since=self._now.down_since or datetime.now(UTC))
        with self._lock:
            self._now = found
