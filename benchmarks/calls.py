"""An agent whose calls take as long as a language model's, 64 at once."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.peers.latency import latency
from benchmarks.stamp import stamp
from factory_agents import agent


@agent(version="1", concurrency=64)
async def call(event: dict[str, Any]) -> dict[str, Any]:
    """Note the first event, wait for the call, and set the field that every contestant sets."""
    stamp(event)
    await asyncio.sleep(latency(event["event_id"]))
    return event
