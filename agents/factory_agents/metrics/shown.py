"""What scrapers have been shown: a new series first as zero, so that its first value is an increase, and nothing before its time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from factory_agents.metrics.tally import Told
from factory_agents.telemetry.metrics import Series, Values, family

__all__ = ["Shown"]

_MOST_SCRAPERS = 64


@dataclass
class _Scraper:
    """One that asks: the series it knows, and what was told when it asked last, all of whose series it knows."""

    known: set[Series] = field(default_factory=set)
    last: Told = field(default_factory=Told)


class Shown:
    """Decides what a scraper is shown of the newest figures; thread-safe.

    Prometheus takes a series' first value for what it was before it looked, and counts from there. So where there are new series, they are
    shown as zeros beside what was told at the scrape before, and with their values at the next one. What a scraper was shown always is the
    figures at one place of the ledger: ``whole`` is the newest that somebody was.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest = Told()
        self._scrapers: dict[str, _Scraper] = {}
        self.whole = Told()

    def tell(self, told: Told) -> None:
        """There are newer figures."""
        with self._lock:
            self._newest = told

    def to(self, client: str) -> tuple[Values, Callable[[], None]]:
        """What a client is shown now, and what to call when it has that."""
        with self._lock:
            newest = self._newest
            scraper = self._scrapers.get(client) or _Scraper()
            new = newest.totals.keys() - scraper.known
            told = scraper.last if new else newest
            totals = {**told.totals, **{series: (0.0,) * family(series[0]).width for series in new}}
        return {**totals, **newest.gauges}, lambda: self._sent(client, scraper, told, newest)

    def _sent(self, client: str, scraper: _Scraper, told: Told, newest: Told) -> None:
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
