"""Quix Streams with ``processing_guarantee="exactly-once"``: read, set a field, write. With ``calls``, each event waits for a slow call."""

from __future__ import annotations

import json
import sys
import time

from latency import latency
from quixstreams import Application

bootstrap, source, target, total = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
calls = sys.argv[5:] == ["calls"]
app = Application(
    broker_address=bootstrap,
    consumer_group=f"bench-{target}",
    auto_offset_reset="earliest",
    processing_guarantee="exactly-once",
    commit_interval=5.0,
    loglevel="ERROR",
    use_changelog_topics=False,
    producer_extra_config={"compression.type": "lz4", "linger.ms": 5},
)
done, began = 0, 0.0


def enrich(event: dict) -> dict:
    global done, began
    began = began or time.monotonic()
    done += 1
    if calls:
        time.sleep(latency(event["event_id"]))
    event["enriched"] = True
    return event


frame = app.dataframe(app.topic(source, value_deserializer="json"))
frame = frame.apply(enrich)
frame = frame.to_topic(app.topic(target, value_serializer="json"))
app.run(count=total)  # commits what is open before it returns
print(json.dumps({"seconds": time.monotonic() - began}))
