"""Faust with slow calls: an agent with ``concurrency=64``, at least once. It keeps no order, not even by key."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time

import faust
from latency import latency

bootstrap, source, target, total = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
app = faust.App(
    f"bench-{target}",
    broker=f"kafka://{bootstrap}",
    consumer_auto_offset_reset="earliest",
    web_enabled=False,
    topic_disable_leader=True,
    datadir=tempfile.mkdtemp(),
)
incoming, outgoing = app.topic(source, value_serializer="json"), app.topic(target, value_serializer="json")
done, began = 0, 0.0


@app.agent(incoming, concurrency=64)
async def enrich(stream):
    global done, began
    async for key, event in stream.items():
        began = began or time.monotonic()
        await asyncio.sleep(latency(event["event_id"]))
        event["enriched"] = True
        await outgoing.send(key=key, value=event)
        done += 1
        if done == total:
            await app.producer.flush()
            print("\n" + json.dumps({"seconds": time.monotonic() - began}), flush=True)  # behind the worker's control characters
            os._exit(0)  # its own end takes seconds


faust.Worker(app, loglevel="ERROR", quiet=True, redirect_stdouts=False).execute_from_commandline()
