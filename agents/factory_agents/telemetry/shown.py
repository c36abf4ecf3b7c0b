"""What scrapers have been shown: a new series first as zero, so that its first value is an increase, and nothing before its time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from factory_agents.telemetry.metrics import Series, Snapshot, Values, family

__all__ = ["Shown"]

_MOST_SCRAPERS = 64

_Taken = TypeVar("_Taken", bound=Snapshot)


@dataclass
class _Scraper(Generic[_Taken]):
    """One that asks: the snapshot that there was when it asked last, and the series that it knows: all of that one's."""

    last: _Taken
    known: set[Series] = field(default_factory=set)


class Shown(Generic[_Taken]):
    """Decides what a scraper is shown of the newest figures; thread-safe.

    Prometheus takes a series' first value for what it was before it looked, and counts from there. So where there are new series, they are
    shown as zeros beside the snapshot of the scrape before, and with their values at the next one. So a scraper is shown one snapshot
    always: ``whole`` is the newest that somebody was. ``nothing`` is the snapshot that there is before the first.
    """

    def __init__(self, nothing: _Taken) -> None:
        self._lock = threading.Lock()
        self._scrapers: dict[str, _Scraper[_Taken]] = {}
        self._nothing = self._newest = self.whole = nothing

    def tell(self, snapshot: _Taken) -> None:
        """There is a newer one."""
        with self._lock:
            self._newest = snapshot

    def to(self, client: str) -> tuple[Values, Callable[[], None]]:
        """What a client is shown now, and what to call when it has that."""
        with self._lock:
            newest = self._newest
            scraper = self._scrapers.get(client) or _Scraper(self._nothing)
            new = newest.totals.keys() - scraper.known
            told = scraper.last if new else newest
            totals = {**told.totals, **{series: (0.0,) * family(series[0]).width for series in new}}
        return {**totals, **newest.gauges}, lambda: self._sent(client, scraper, told, newest)

    def _sent(self, client: str, scraper: _Scraper[_Taken], told: _Taken, newest: _Taken) -> None:
        with self._lock:
            if newest.number < scraper.last.number:  # two at once: the later answer counts
                return
            scraper.known |= newest.totals.keys()
            scraper.last = newest
            self._scrapers.pop(client, None)
            self._scrapers[client] = scraper
            while len(self._scrapers) > _MOST_SCRAPERS:
                del self._scrapers[next(iter(self._scrapers))]
            if told.number > self.whole.number:
                self.whole = told
