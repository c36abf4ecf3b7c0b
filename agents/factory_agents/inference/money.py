"""What calls cost, by the user's price table, and a budget for a window and a day."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from factory_agents.errors import ConfigurationError, FactoryError

__all__ = ["Budget", "BudgetError", "Prices", "Spent", "Usage"]

_NANO = 1_000_000_000


class BudgetError(FactoryError):
    """What a window or a day may cost is spent; what is committed stays, and a later run, or one with a higher budget, goes on there."""


class Usage(NamedTuple):
    """Tokens of calls: ``cached`` are those of ``prompt`` that the provider had in its cache."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def plus(self, other: Usage) -> Usage:
        """Both together."""
        return Usage(self.prompt + other.prompt, self.cached + other.cached, self.completion + other.completion)


class Prices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prices of a million tokens, in whichever currency; cached prompt tokens cost ``prompt`` where nothing is said of them."""

    prompt: float = 0.0
    completion: float = 0.0
    cached: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no price."""
        if min(self.prompt, self.completion, self.cached or 0.0) < 0:
            raise ValueError("a price cannot be negative")

    def cost(self, usage: Usage) -> int:
        """In billionths of the currency."""
        cached = self.prompt if self.cached is None else self.cached
        fresh = max(0, usage.prompt - usage.cached)
        return round((fresh * self.prompt + usage.cached * cached + usage.completion * self.completion) * 1000)


class Spent(NamedTuple):
    """What was spent: billionths of the currency, and tokens."""

    cost: int = 0
    tokens: int = 0

    def plus(self, cost: int, tokens: int) -> Spent:
        """With so much more."""
        return Spent(self.cost + cost, self.tokens + tokens)


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The most that a window, and a pipeline's stage on one day (UTC), may use: cost by the price table, or tokens; 0: any."""

    window: float = 0.0
    day: float = 0.0
    window_tokens: int = 0
    day_tokens: int = 0

    def check(self, prices: Prices) -> None:
        """Raise ConfigurationError for a budget in money without prices: nothing would ever be spent."""
        if (self.window or self.day) and not (prices.prompt or prices.completion):
            raise ConfigurationError("agent 'infer': budget: it is in money, but prices are not given; add prices, or budget tokens")

    @property
    def daily(self) -> bool:
        """Whether what was spent today has to be known."""
        return bool(self.day or self.day_tokens)

    def exceeded(self, window: Spent, today: Spent, today_before: Spent, shards: int) -> str:
        """Which part of it is used up, for a person; empty while there is some left.

        A shard has its share: of the window's budget, and of what was left of the day's when it began.
        """
        for what, limit, before, spent in (
            ("this window", self.window, 0.0, window.cost / _NANO),
            ("today", self.day, today_before.cost / _NANO, today.cost / _NANO),
            ("this window's tokens", self.window_tokens, 0, window.tokens),
            ("today's tokens", self.day_tokens, today_before.tokens, today.tokens),
        ):
            if limit and spent >= (limit - before) / shards:
                share = f", this shard's share of {limit:g}" if shards > 1 else f" of {limit:g}"
                return f"the budget for {what} is spent: {spent + before:g}{share}"
        return ""
