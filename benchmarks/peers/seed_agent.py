"""The seed design's four agents in kafka-python, one a process: ``seed_agent.py STAGE SOURCE TARGET`` (at least once, no windows).

``SEED_EVENTS`` says how many events to read, so that no time is lost to waiting for more.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from kafka import KafkaConsumer, KafkaProducer  # noqa: TID251  # the peer

stage, source, target = sys.argv[1:]
bootstrap, total = os.environ["KAFKA_BOOTSTRAP"], int(os.environ["SEED_EVENTS"])


def producer() -> KafkaProducer:
    return KafkaProducer(bootstrap_servers=bootstrap, value_serializer=lambda m: json.dumps(m).encode("utf-8"))


def consumed():
    consumer = KafkaConsumer(
        source,
        bootstrap_servers=bootstrap,
        group_id=f"seed-{stage}-{source}",
        auto_offset_reset="earliest",
        value_deserializer=lambda m: json.loads(m.decode("utf-8")),
    )
    for n, record in enumerate(consumer, 1):
        yield record.value
        if n == total:
            break
    consumer.close()


def enriched(event: dict) -> dict:
    event["language"] = {"py": "Python", "c": "C", "md": "Markdown"}.get(event["path"].rpartition(".")[2], "other")
    event["size_class"] = "small" if event["added"] + event["deleted"] < 10 else "medium"
    return event


def validated(event: dict) -> dict:
    for name in ("event_id", "repo", "commit", "path", "occurred_at", "language", "size_class"):
        if name not in event:
            raise ValueError(f"missing {name}")
    return event


if stage == "publish":
    import psycopg

    with psycopg.connect(os.environ["DATABASE_URL"]) as database:
        database.execute(f"CREATE TABLE IF NOT EXISTS {target} (event_id text PRIMARY KEY, body jsonb)")
        for event in consumed():
            database.execute(f"INSERT INTO {target} VALUES (%s, %s) ON CONFLICT DO NOTHING", (event["event_id"], json.dumps(event)))
else:
    to = producer()
    if stage == "ingest":
        with Path(source).open(encoding="utf-8") as lines:
            for line in lines:
                to.send(target, json.loads(line))
    else:
        for event in consumed():
            to.send(target, enriched(event) if stage == "enrich" else validated(event))
    to.flush()
