"""The agent that prices orders. It is a plain function: tests call it, and ``factory agent run pricing:price`` runs it without Airflow."""

from __future__ import annotations

from typing import Any

from factory_agents import Reject, agent


@agent(version="1")
def price(event: dict[str, Any]) -> dict[str, Any]:
    """The order with its total, in cents; one without a quantity is rejected."""
    if not event.get("quantity"):
        raise Reject("nothing was ordered", rule="no-quantity")
    return event | {"total_cents": event["quantity"] * event["unit_cents"]}
