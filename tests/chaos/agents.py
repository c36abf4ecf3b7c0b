"""The agent of the disturbed pipeline, for the processes that run it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from pathlib import Path
from typing import Any

from factory_agents.runtime.agents import Reject, agent
from factory_agents.runtime.dependencies import Dependency
from factory_agents.runtime.split import split


def enrich(event: dict[str, Any]) -> dict[str, Any] | list[dict[str, Any]] | None:
    """Every kind of outcome, by the event's number: most get a size, some are filtered, some rejected, some become two."""
    n = event["n"]
    if n % 17 == 3:
        return None
    if n % 23 == 5:
        raise Reject("a number that ends badly", rule="unlucky")
    sized = event | {"size": "large" if n % 3 == 0 else "small"}
    return [sized, sized] if n % 19 == 7 else sized


def dies(event: dict[str, Any]) -> None:
    """Ends its process without a word."""
    os._exit(1)


@agent(version="1", concurrency=32)
async def asks(event: dict[str, Any]) -> dict[str, Any]:
    """Takes a while, another one each time."""
    await asyncio.sleep(random.expovariate(30))
    return event


@agent(version="1", concurrency=8)
async def slow(event: dict[str, Any]) -> dict[str, Any]:
    """Takes so long that a machine has time for several of them."""
    await asyncio.sleep(0.02)
    return event


def minute(event: dict[str, Any]) -> dict[str, Any]:
    """Takes a minute, the first time that an event says so."""
    if event.get("slow"):
        with contextlib.suppress(FileExistsError):
            Path(os.environ["CALLED"]).touch(exist_ok=False)
            time.sleep(60)
    return event


crm = Dependency("crm")


def depends(event: dict[str, Any]) -> dict[str, Any]:
    """Calls a service, which is there while the file is that ``SERVICE`` names; the calls that it doesn't answer are counted beside it."""
    service = Path(os.environ["SERVICE"])
    with crm:
        if event.get("poison") or not service.exists():
            with service.with_suffix(".refused").open("ab") as calls:
                calls.write(b".")
            raise ConnectionError("connection refused")
    return event


def left(event: dict[str, Any]) -> dict[str, Any]:
    """One half."""
    return event


def right(event: dict[str, Any]) -> dict[str, Any]:
    """The other."""
    return event


halves = split("halves", {"left": (left, 50), "right": (right, 50)}, field="part")
