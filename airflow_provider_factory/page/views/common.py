"""What several pages say: how old the figures are, counts in words, the parts of a stage's records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar
from urllib.parse import urlencode

from airflow_provider_factory.page.snapshot import Snapshot, Trend
from factory_agents.kafka.windows import age_text
from factory_agents.protocol import Counts
from factory_agents.text import count

__all__ = ["STATES", "Chart", "Freshness", "Part", "chart", "freshness", "link", "now", "paid", "parts_of"]

STATES = {"finished": "whole", "unfinished": "open", "planned": "waiting", "failed": "failed", "uncovered": "missing"}


@dataclass(frozen=True)
class Freshness:
    """How old the figures are, in words; ``stale`` where Kafka doesn't answer."""

    text: str
    stale: bool


@dataclass(frozen=True)
class Part:
    """A share of a stage's records: what became of them, how many they are, and percent of a bar where it begins and ends."""

    name: str
    count: int
    start: float = 0.0
    width: float = 0.0

    @property
    def text(self) -> str:
        """``3 duplicates``, ``1 duplicate``, ``1 rejected``."""
        return f"{self.count:,} {self.name.removesuffix('s') if self.count == 1 else self.name}"


@dataclass(frozen=True)
class Chart:
    """A lag over time as the points of a line, ``WIDTH`` by ``HEIGHT``, in words, and each value with its time, in whole seconds."""

    WIDTH: ClassVar = 240
    HEIGHT: ClassVar = 32

    points: str
    text: str
    times: tuple[int, ...] = ()
    values: tuple[int, ...] = ()


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def freshness(snapshot: Snapshot, at: datetime) -> Freshness:
    """What the page says of its figures' age."""
    if snapshot.error:
        since = f"{snapshot.down_since:%H:%M:%S} UTC" if snapshot.down_since else "just now"
        figures = f"figures from {snapshot.taken_at:%H:%M:%S} UTC" if snapshot.taken_at else "no figures yet"
        return Freshness(f"Kafka cannot be read since {since}; {figures}. {snapshot.error}", True)
    if snapshot.taken_at is None:
        return Freshness("Reading the ledger …", False)
    return Freshness(f"As of {snapshot.age_seconds(at)} s ago", False)


def chart(trend: Trend) -> Chart | None:
    """A trend as it is drawn; None for one of a single moment, which is none."""
    if len(trend) < 2 or trend[-1][0] <= trend[0][0]:
        return None
    (first, _), (last, behind) = trend[0], trend[-1]
    most = max(lag for _, lag in trend)
    points = (
        f"{Chart.WIDTH * (at - first) / (last - first):.1f},{Chart.HEIGHT - 1 - (Chart.HEIGHT - 2) * lag / max(1, most):.1f}"
        for at, lag in trend
    )
    span = age_text(datetime.fromtimestamp(first, UTC), datetime.fromtimestamp(last, UTC))
    text = f"{trend[0][1]:,} to {count(behind, 'record')} behind in {span}, at most {most:,}"
    return Chart(" ".join(points), text, tuple(round(at) for at, _ in trend), tuple(lag for _, lag in trend))


def link(path: str, **query: str) -> str:
    """A path with the parameters that are not empty."""
    given = urlencode({name: value for name, value in query.items() if value})
    return f"{path}?{given}" if given else path


def paid(counts: Counts) -> str:
    """What calls of a model took, in words; empty where there were none."""
    if not counts.asked:
        return ""
    tokens = count(counts.prompt_tokens + counts.completion_tokens, "token")
    cost = f", cost {counts.cost:,.4f}" if counts.nanocost else ""
    return f"{count(counts.asked, 'call')} of a model, {tokens}{cost}"


_LANDED = ("written", "duplicates", "older", "deleted", "dropped")


def parts_of(counts: Counts) -> tuple[Part, ...]:
    """What became of the records that were read: parts that add up to them, whatever the figures are.

    At a sink ``forwarded`` is told apart into what was written and what was not. What no part explains is one of its own: ``unexplained``.
    """
    landed = [(name, getattr(counts, name)) for name in _LANDED]
    forwarded = landed if any(n for _, n in landed) else [("forwarded", counts.forwarded)]
    named = [(name, n) for name, n in (*forwarded, ("filtered", counts.filtered), ("rejected", counts.rejected)) if n]
    left = counts.consumed - sum(n for _, n in named)
    return tuple(_bar([*named, ("unexplained", left)] if left else named))


def _bar(named: list[tuple[str, int]]) -> Iterable[Part]:
    whole = sum(max(0, n) for _, n in named)
    start = 0.0
    for name, n in named:
        width = 100 * max(0, n) / whole if whole else 0.0
        yield Part(name, n, round(start, 3), round(width, 3))
        start += width
