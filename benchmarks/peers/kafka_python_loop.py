"""The seed design's agent: kafka-python with JSON (de)serialisers, one field set, one send a record (at least once)."""

from __future__ import annotations

import json
import sys
import time

from kafka import KafkaConsumer, KafkaProducer  # noqa: TID251  # the peer

bootstrap, source, target, total = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
consumer = KafkaConsumer(
    source,
    bootstrap_servers=bootstrap,
    group_id=f"bench-{target}",
    auto_offset_reset="earliest",
    value_deserializer=lambda m: json.loads(m.decode("utf-8")),
)
producer = KafkaProducer(bootstrap_servers=bootstrap, value_serializer=lambda m: json.dumps(m).encode("utf-8"))
began = 0.0
for done, record in enumerate(consumer, 1):
    began = began or time.monotonic()
    event = record.value
    event["enriched"] = True
    producer.send(target, event)
    if done == total:
        break
producer.flush()
print(json.dumps({"seconds": time.monotonic() - began, "first": began}))
