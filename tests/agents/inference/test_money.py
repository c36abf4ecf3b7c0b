"""What calls cost, and when a budget is spent: a shard has its share."""

from __future__ import annotations

import msgspec
import pytest

from factory_agents.errors import ConfigurationError
from factory_agents.inference.money import Budget, Prices, Spent, Usage


@pytest.mark.parametrize(
    ("prices", "usage", "cost"),
    [
        (Prices(prompt=2, completion=8), Usage(1_000_000, 0, 0), 2_000_000_000),
        (Prices(prompt=2, completion=8), Usage(1_000, 400, 100), 2_800_000),
        (Prices(prompt=2, completion=8, cached=0.5), Usage(1_000, 400, 100), 2_200_000),
        (Prices(prompt=2, cached=0), Usage(1_000, 1_000), 0),
        (Prices(prompt=2), Usage(10, 20), 40_000),
        (Prices(), Usage(1_000, 0, 1_000), 0),
    ],
)
def test_cached_tokens_have_a_price_of_their_own_where_one_is_given(prices: Prices, usage: Usage, cost: int) -> None:
    assert prices.cost(usage) == cost


def test_a_price_is_never_negative() -> None:
    with pytest.raises(msgspec.ValidationError, match="negative"):
        msgspec.convert({"prompt": -1}, Prices)


def test_usage_and_what_was_spent_add_up() -> None:
    assert Usage(1, 2, 3).plus(Usage(10, 20, 30)) == Usage(11, 22, 33)
    assert Spent(1, 2).plus(10, 20) == Spent(11, 22)


def test_a_budget_in_money_needs_prices() -> None:
    with pytest.raises(ConfigurationError, match="prices are not given"):
        Budget(day=5).check(Prices())
    Budget(day=5).check(Prices(completion=1))
    Budget(day_tokens=5).check(Prices())


class TestABudget:
    def test_without_limits_is_never_spent(self) -> None:
        assert Budget().exceeded(Spent(10**12, 10**9), Spent(10**12, 10**9), Spent(), 1) == ""

    def test_is_spent_when_it_is_reached(self) -> None:
        budget = Budget(window=2)
        assert budget.exceeded(Spent(1_999_999_999, 0), Spent(), Spent(), 1) == ""
        assert budget.exceeded(Spent(2_000_000_000, 0), Spent(), Spent(), 1) == "the budget for this window is spent: 2 of 2"

    def test_of_a_window_is_shared_by_its_shards(self) -> None:
        budget = Budget(window_tokens=100)
        assert budget.exceeded(Spent(0, 24), Spent(), Spent(), 4) == ""
        assert "this shard's share of 100" in budget.exceeded(Spent(0, 25), Spent(), Spent(), 4)

    def test_of_a_day_counts_what_was_spent_before(self) -> None:
        """Sixty are left of a hundred: thirty for each of two shards."""
        budget = Budget(day_tokens=100)
        assert budget.exceeded(Spent(), Spent(0, 29), Spent(0, 40), 2) == ""
        assert budget.exceeded(Spent(), Spent(0, 30), Spent(0, 40), 2).startswith("the budget for today's tokens is spent: 70")

    def test_of_a_day_needs_to_know_the_day(self) -> None:
        assert [b.daily for b in (Budget(), Budget(window=1), Budget(day=1), Budget(day_tokens=1))] == [False, False, True, True]
