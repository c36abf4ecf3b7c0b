"""Lag of consumer groups and of pipelines as metrics."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from factory_agents.errors import ConfigurationError, FactoryError
from factory_agents.kafka.ages import FirstUnread, Place
from factory_agents.kafka.lag import Lags, PartitionLag
from factory_agents.telemetry.metrics import Series, Values

__all__ = ["LagChoice"]


@dataclass(frozen=True)
class LagChoice:
    """Whose lag is told: that of groups and topics whose whole names match; ``by_partition``: a series for each partition."""

    groups: str = ".*"
    topics: str = ".*"
    by_partition: bool = True

    def __post_init__(self) -> None:
        """Refuse what is not a regular expression."""
        _matching(self.groups, "--groups")
        _matching(self.topics, "--topics")

    def values(
        self, lags: Lags, unread: FirstUnread, cuts: Mapping[tuple[str, str, str], tuple[int, ...]], failed: list[FactoryError]
    ) -> Values:
        """The lag now; ``cuts`` as in ``Told``, ``failed`` as for ``Lags.of_groups``.

        Raises a FactoryError; the first that failed where all did.
        """
        topic = _matching(self.topics, "--topics")
        found: dict[Series, float] = {}

        def add(name: str, labels: tuple[str, ...], lag: int) -> None:
            found[name, labels] = found.get((name, labels), 0.0) + lag

        groups = lags.of_groups(_matching(self.groups, "--groups"), topic, failed)
        times = unread.times(_place(row) for rows in groups.values() for row in rows if row.lag)
        now = time.time()
        for group, rows in groups.items():
            for row in rows:
                labels = (row.topic, group, str(row.partition) if self.by_partition else "")
                add("kafka_consumer_lag", labels, row.lag)
                at = times.get(_place(row)) if row.lag else now * 1000
                if at is not None:
                    age = ("kafka_consumer_lag_seconds", labels)
                    found[age] = max(found.get(age, 0.0), now - at / 1000)
        for pipeline, rows in lags.behind_cuts({key: offsets for key, offsets in cuts.items() if topic(key[1])}, failed).items():
            for row in rows:
                add("factory_pipeline_lag", (pipeline, row.topic), row.lag)
        if failed and not found:
            raise failed[0]
        return {series: (lag,) for series, lag in found.items()}


def _place(row: PartitionLag) -> Place:
    return Place(row.topic, row.partition, row.end - row.lag)


def _matching(pattern: str, flag: str) -> Callable[[str], bool]:
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigurationError(f"{flag}: {pattern!r} is not a regular expression: {error}") from None
    return lambda name: compiled.fullmatch(name) is not None
