"""How long each call takes, the same for every contestant: a language model's shape (lognormal, some eight times the median at worst)."""

from __future__ import annotations

import math
import random

MEDIAN, SIGMA, LONGEST = 0.05, 0.9, 2.0


def latency(event_id: str) -> float:
    """Seconds that the call of an event takes."""
    return min(LONGEST, random.Random(event_id).lognormvariate(math.log(MEDIAN), SIGMA))
