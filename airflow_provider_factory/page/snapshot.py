"""One background reader a process: what the ledger says now, so that no request of the page waits for Kafka."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from factory_agents.errors import FactoryError
from factory_agents.kafka.windows import WindowStatus, read_windows

__all__ = ["Snapshot", "Snapshots", "read_ledger"]

_EVERY_SECONDS = 5.0
_IDLE_SECONDS = 300.0
"""Nobody has looked for so long: stop asking Kafka until somebody does."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """The windows as of ``taken_at`` (None: not read yet); ``error`` and ``down_since`` say why there is nothing newer."""

    windows: tuple[WindowStatus, ...] = ()
    taken_at: datetime | None = None
    error: str = ""
    down_since: datetime | None = None

    def age_seconds(self, now: datetime) -> int:
        """Whole seconds since it was taken; 0 for one that never was."""
        return max(0, int((now - self.taken_at).total_seconds())) if self.taken_at else 0


def read_ledger() -> tuple[WindowStatus, ...]:
    """Every window in the ledger at ``kafka_default``. Raises a FactoryError."""
    from airflow_provider_factory.hooks.kafka import FactoryKafkaHook
    from airflow_provider_factory.settings import option

    return tuple(read_windows(FactoryKafkaHook().config(), prefix=option("prefix")))


class Snapshots:
    """Keeps the newest ``Snapshot``; reading begins with the first look at it, and rests while nobody looks."""

    def __init__(self, read: Callable[[], tuple[WindowStatus, ...]] = read_ledger, *, every: float = _EVERY_SECONDS) -> None:
        self._read = read
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
