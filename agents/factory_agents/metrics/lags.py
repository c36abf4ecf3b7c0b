"""Lag of consumer groups and of pipelines as metrics."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from factory_agents.errors import ConfigurationError
from factory_agents.kafka.lag import Lags
from factory_agents.telemetry.metrics import Series, Values

__all__ = ["LagChoice"]


@dataclass(frozen=True)
class LagChoice:
    """Whose lag is told: that of groups and topics whose whole names match; ``by_partition``: a series for each partition."""

    groups: str = ".*"
    topics: str = ".*"
    by_partition: bool = True

    def __post_init__(self) -> None:
        """Refuse what is no regular expression."""
        _matching(self.groups, "--groups")
        _matching(self.topics, "--topics")

    def values(self, lags: Lags, cuts: Mapping[tuple[str, str, str], tuple[int, ...]]) -> Values:
        """The lag now; ``cuts`` as in ``Told``. Raises a FactoryError."""
        topic = _matching(self.topics, "--topics")
        found: dict[Series, float] = {}

        def add(name: str, labels: tuple[str, ...], lag: int) -> None:
            found[name, labels] = found.get((name, labels), 0.0) + lag

        for group, rows in lags.of_groups(_matching(self.groups, "--groups"), topic).items():
            for row in rows:
                add("kafka_consumer_lag", (row.topic, group, str(row.partition) if self.by_partition else ""), row.lag)
        for pipeline, rows in lags.behind_cuts({key: offsets for key, offsets in cuts.items() if topic(key[1])}).items():
            for row in rows:
                add("factory_pipeline_lag", (pipeline, row.topic), row.lag)
        return {series: (lag,) for series, lag in found.items()}


def _matching(pattern: str, flag: str) -> Callable[[str], bool]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigurationError(f"{flag}: {pattern!r} is no regular expression: {error}") from None
    return lambda name: compiled.fullmatch(name) is not None
