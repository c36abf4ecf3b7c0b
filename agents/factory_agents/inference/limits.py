"""How fast a model may be asked: requests and tokens per minute, evenly spread, and the pauses that it asks for itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["Limits", "Pace"]

_SPARE = 0.97
"""Of a rate: calls that leave evenly arrive less evenly, and no second is to hold more than the limit."""


class Pace:
    """So many a minute, evenly spread: what comes too early waits its turn. 0: as fast as it comes."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._each = 60.0 / (per_minute * _SPARE) if per_minute else 0.0
        self._clock = clock
        self._free_at = 0.0

    def take(self, amount: float = 1.0) -> float:
        """Take a turn; the seconds until it comes."""
        now = self._clock()
        turn = max(now, self._free_at)
        self._free_at = turn + amount * self._each
        return turn - now

    def correct(self, amount: float) -> None:
        """Of what was taken so much more (or, negative, less) was needed."""
        self._free_at += amount * self._each


class Limits:
    """Requests and tokens a minute of one process; a shard takes its share of what the whole stage may use."""

    def __init__(self, requests: float, tokens: float, *, shards: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._requests, self._tokens = Pace(requests / shards, clock), Pace(tokens / shards, clock)
        self._clock = clock
        self._held_until = 0.0

    def hold(self, seconds: float) -> None:
        """Ask nothing for so long: the model said so."""
        self._held_until = max(self._held_until, self._clock() + seconds)

    async def turn(self, tokens: float) -> None:
        """Wait until one more call, of about so many tokens, may be made."""
        wait = self._tokens.take(tokens)
        if wait > 0:
            await asyncio.sleep(wait)
        wait = self._requests.take()
        if wait > 0:
            await asyncio.sleep(wait)
        while (held := self._held_until - self._clock()) > 0:
            await asyncio.sleep(held)
            wait = self._requests.take()  # all of them waited: they don't go at once
            if wait > 0:
                await asyncio.sleep(wait)

    def used(self, estimated: float, tokens: int) -> None:
        """What a call really took."""
        self._tokens.correct(tokens - estimated)
