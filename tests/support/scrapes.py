"""Scrapes as Prometheus makes them, and what their raw increments add up to over restarts of what is scraped."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from tests.support.waiting import wait_for

Key = tuple[str, tuple[tuple[str, str], ...]]


def scrape(address: str) -> dict[Key, float]:
    """All samples by name and labels."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    told = [(s.name, tuple(sorted(s.labels.items())), s.value) for of in text_string_to_metric_families(text) for s in of.samples]
    samples = {(name, labels): value for name, labels, value in told}
    assert len(samples) == len(told), "a series is told twice: Prometheus would drop one of them"
    return samples


def value(samples: dict[Key, float], name: str, **labels: str) -> float | None:
    """The sum of the samples of a name with these labels, None where there is none."""
    found = [v for (of, have), v in samples.items() if of == name and labels.items() <= dict(have).items()]
    return sum(found) if found else None


@dataclass
class Increments:
    """What Prometheus would add up: a series' first value is where it begins, a fall is a restart from 0."""

    last: dict[Key, float] = field(default_factory=dict)
    total: dict[Key, float] = field(default_factory=dict)

    def take(self, samples: dict[Key, float]) -> None:
        for key, now in samples.items():
            before = self.last.get(key, now)
            self.total[key] = self.total.get(key, 0.0) + (now - before if now >= before else now)
        self.last = {**self.last, **samples}

    def of(self, name: str, **labels: str) -> float:
        return sum(v for (of, have), v in self.total.items() if of == name and labels.items() <= dict(have).items())

    def until(self, address: str, name: str, wanted: float, **labels: str) -> None:
        """Scrape until the increments are as many."""

        def there() -> bool:
            self.take(scrape(address))
            return self.of(name, **labels) >= wanted

        wait_for(there, f"{name} {labels} to reach {wanted}")
