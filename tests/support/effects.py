"""Agents that do something outside, and take it back: lines in a file stand for charges and refunds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from factory_agents.errors import UnavailableError

__all__ = ["charge", "charged", "journal", "refund", "refund_not"]


def charge(event: dict[str, Any], *, path: str) -> dict[str, Any]:
    """Charge for an event."""
    _note(path, f"+{event['event_id']}")
    return event


def refund(event: dict[str, Any], *, path: str) -> None:
    """Take the charge back, once, if there was one."""
    if charged(Path(path)).get(event["event_id"]):
        _note(path, f"-{event['event_id']}")


def refund_not(event: dict[str, Any], *, path: str) -> None:
    """Can't, whoever asks."""
    raise UnavailableError("the bank is closed")


def journal(path: Path) -> list[str]:
    """All that was done."""
    return path.read_text().split() if path.exists() else []


def charged(path: Path) -> dict[int, int]:
    """What is charged in the end, by event: each charge is one, each refund one less, twice the same charge is one."""
    now: Counter[int] = Counter()
    for line in journal(path):
        now[int(line[1:])] = int(line[0] == "+")
    return +now


def _note(path: str, line: str) -> None:
    with Path(path).open("a") as file:  # one write a line: several agents may write at once
        file.write(f"{line}\n")
