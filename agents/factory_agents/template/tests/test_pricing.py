"""What the agent does to an order."""

from __future__ import annotations

import pytest
from pricing import price

from factory_agents import Reject


def test_an_order_gets_its_total() -> None:
    assert price({"quantity": 2, "unit_cents": 1250})["total_cents"] == 2500


def test_an_order_of_nothing_is_rejected() -> None:
    with pytest.raises(Reject, match="nothing was ordered"):
        price({"quantity": 0, "unit_cents": 400})
