"""What a figure usually is: its median over earlier windows, whose reports are in the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from statistics import median
from typing import Any

from factory_agents.contracts.conditions import Condition, observed
from factory_agents.errors import ConfigurationError

__all__ = ["baselines"]


def baselines(conditions: Iterable[Condition], earlier: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each condition on a drift, by its argument: the figure's ``median`` over its last windows, and how many ``windows`` had it.

    ``earlier`` are the reports of the windows before, the newest last. One that doesn't know the figure is no window of it.
    """
    found: dict[str, dict[str, Any]] = {}
    for condition in conditions:
        if condition.figure == "drift":
            values = _last_values(condition, earlier)
            found[condition.argument] = {"median": float(median(values)) if values else None, "windows": len(values)}
    return found


def _last_values(condition: Condition, earlier: Sequence[Mapping[str, Any]]) -> list[Fraction]:
    values: list[Fraction] = []
    for report in reversed(earlier):
        with suppress(ConfigurationError, KeyError):  # a report of before the contract counted this
            value = observed(report, condition.compared)
            if value is not None:
                values.append(value)
        if len(values) == condition.windows:
            break
    return values
