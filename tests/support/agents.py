"""Agents for processes that tests start: ``tests.support.agents:mark``. Light to import."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import time
from typing import Any

from factory_agents.runtime.agents import Reject, agent


def mark(event: dict[str, Any]) -> dict[str, Any]:
    """The plainest agent."""
    return event | {"seen": True}


@agent(version="1", concurrency=32)
async def mark_by_calls(event: dict[str, Any]) -> dict[str, Any]:
    """As ``mark``, after a while, another one each time."""
    await asyncio.sleep(random.expovariate(100))
    return mark(event)


def judge(event: dict[str, Any]) -> dict[str, Any] | list[dict[str, Any]] | None:
    """Every kind of outcome, by the event's id."""
    n = event["event_id"]
    if n % 10 == 3:
        return None
    if n % 10 == 5:
        raise Reject("ends in five", rule="five")
    if n % 10 == 7:
        raise ValueError(f"cannot bear {n}")
    return [event, event] if n % 10 == 9 else event


@agent(version="2")
def mark_again(event: dict[str, Any]) -> dict[str, Any]:
    """Another version of ``mark``."""
    return event | {"seen": 2}


def grow(event: dict[str, Any]) -> dict[str, Any]:
    """Adds as many bytes as the event asks for."""
    return event | {"pad": "x" * event.get("grow", 0)}


def dawdle(event: dict[str, Any]) -> dict[str, Any]:
    """Takes as many seconds as the event asks for."""
    time.sleep(event.get("seconds", 0))
    return event


def hang(event: dict[str, Any]) -> dict[str, Any]:
    """As ``dawdle``, and meanwhile nothing else in its process runs: it keeps the interpreter's lock."""
    ctypes.PyDLL(None).sleep(event.get("seconds", 0))
    return event


def surroundings(event: dict[str, Any]) -> dict[str, Any]:
    """Tells the names of its environment's variables."""
    return event | {"variables": sorted(os.environ)}


def broken(event: dict[str, Any]) -> dict[str, Any]:
    """Raises for each event."""
    raise KeyError("segment")
