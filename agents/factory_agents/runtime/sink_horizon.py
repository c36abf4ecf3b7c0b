"""What a sink's own ledger forgets, as pure functions: windows that the pipeline's ledger has forgotten, which are refused from then on."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from factory_agents.errors import SinkError
from factory_agents.kafka.plan_view import interval_of
from factory_agents.kafka.pruning import merged
from factory_agents.kafka.records import MarkRecord, pruned
from factory_agents.protocol import Interval
from factory_agents.runtime.agents import Claim
from factory_agents.runtime.sink_ledger import key_text

__all__ = ["Horizon", "Horizons", "Spans", "forgotten_interval", "horizons_key", "is_below", "own_name", "read_horizons"]

Spans = tuple[tuple[int, int], ...]
"""Times whose windows were forgotten, ``[start, end)`` in microseconds since 1970."""

_DAY = 24 * 3600.0


class Horizon(msgspec.Struct, frozen=True):
    """What was forgotten of one origin, and when somebody looked last (seconds since 1970)."""

    looked_at: float = 0.0
    spans: Spans = ()


class Horizons(msgspec.Struct, frozen=True):
    """What was forgotten of one stage at one table, by origin: a topic or a source. A sink stores it beside its ledger's entries."""

    origins: dict[str, Horizon] = {}

    def is_due(self, origin: str, now: float) -> bool:
        """Whether nobody has looked since yesterday; a time in the future, of a clock that was wrong, counts for nothing."""
        return not 0 <= now - self._of(origin).looked_at < _DAY

    def moved(self, origin: str, mark: MarkRecord | None, now: float) -> Horizons:
        """With what the mark says, too: a ledger that was restored, and tells of an older mark, takes nothing back."""
        spans = (*self._of(origin).spans, *(mark.spans if mark is not None else ()))
        return Horizons({**self.origins, origin: Horizon(now, tuple(merged(spans)))})

    def refuse(self, claim: Claim, table: str) -> None:
        """Raise WindowError for a claim of a window that was forgotten."""
        found = forgotten_interval(claim, ((origin, horizon.spans) for origin, horizon in self.origins.items()))
        if found is not None:
            raise pruned(f"table {table}, stage {claim.stage!r}", found.key)

    def _of(self, origin: str) -> Horizon:
        return self.origins.get(origin, Horizon())

    @property
    def text(self) -> str:
        """As a sink stores it."""
        return msgspec.json.encode(self).decode()


def read_horizons(text: str | None, table: str) -> Horizons:
    """What a sink stores, or nothing forgotten for None; raises SinkError for what is none."""
    try:
        return Horizons() if text is None else msgspec.json.decode(text, type=Horizons)
    except msgspec.MsgspecError as error:
        raise SinkError(f"table {table}: its ledger's horizon cannot be read: {error}; restore it") from error


def horizons_key(claim: Claim) -> str:
    """What the horizons of a claim's stage are stored under: no entry has this key, since each of those names a window."""
    return key_text("", claim.pipeline, claim.stage, "horizon")


def forgotten_interval(claim: Claim, horizons: Iterable[tuple[str, Spans]]) -> Interval | None:
    """The interval of a claim's window, if it was forgotten."""
    for origin, spans in horizons:
        name = own_name(claim.window, claim.pipeline, origin)
        interval = interval_of(name) if name is not None else None
        if interval is not None and MarkRecord("", "", spans=spans).covers(interval):
            return interval
    return None


def is_below(window: str, generation: int, claim: Claim, mark: MarkRecord) -> bool:
    """Whether a window of the claim's origin lies below the mark: by its times, or (without an interval) by when it was claimed last.

    ``generation``: of the last claim, 0 where that isn't known.
    """
    name = own_name(window, claim.pipeline, claim.origin)
    if name is None:
        return False
    interval = interval_of(name)
    return mark.covers(interval) if interval is not None else 0 < generation < mark.offset


def own_name(window: str, pipeline: str, origin: str) -> str | None:
    """A window's own name in a claim's, which has the pipeline and the scope behind it; None where it is of another origin."""
    scope = rf" {re.escape(origin)}(?:\[\d+\])?" if origin else ""
    found = re.fullmatch(rf"(.*) {re.escape(pipeline)}{scope}", window, re.DOTALL)
    return found[1] if found is not None else None
