"""Whether a part of the metrics server does its work, and since when not."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from factory_agents.telemetry import fields
from factory_agents.telemetry.metrics import Series, Values

__all__ = ["Part"]

log = logging.getLogger(__name__)


@dataclass
class Part:
    """Something that is done again and again: when that worked last, and whether it did the last time."""

    name: str
    taken_at: float = 0.0
    up: bool = False
    said: str = field(default="", repr=False)

    def values(self) -> Values:
        """What is told of it."""
        found: dict[Series, tuple[float, ...]] = {("factory_metrics_up", (self.name,)): (float(self.up),)}
        if self.taken_at:
            found["factory_metrics_age_seconds", (self.name,)] = (time.monotonic() - self.taken_at,)
        return found

    def took(self) -> None:
        """It worked."""
        if self.said:
            log.info("this part works again", extra=fields(part=self.name))
        self.taken_at, self.up, self.said = time.monotonic(), True, ""

    def failed(self, error: Exception) -> None:
        """It did not: that is said once for each reason."""
        if str(error) != self.said:
            log.warning("this part fails; its figures are old, or some are missing", extra=fields(part=self.name, reason=str(error)))
        self.up, self.said = False, str(error)
