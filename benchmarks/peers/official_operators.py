"""The official Kafka provider's operators, executed one after the other: consume (with a function), then produce (at least once)."""

from __future__ import annotations

import json
import logging
import os
import sys
import time

bootstrap, source, target, total = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
os.environ["AIRFLOW_CONN_BENCH_CONSUME"] = json.dumps(
    {
        "conn_type": "kafka",
        "extra": {
            "bootstrap.servers": bootstrap,
            "group.id": f"bench-{target}",
            "enable.auto.commit": "false",
            "auto.offset.reset": "earliest",
        },
    }
)
os.environ["AIRFLOW_CONN_BENCH_PRODUCE"] = json.dumps({"conn_type": "kafka", "extra": {"bootstrap.servers": bootstrap}})

from airflow.providers.apache.kafka.operators.consume import ConsumeFromTopicOperator  # noqa: E402  # after the connections are in the environment
from airflow.providers.apache.kafka.operators.produce import ProduceToTopicOperator  # noqa: E402

logging.disable(logging.INFO)  # the produce operator logs every delivery at INFO
events: list[tuple[bytes | None, bytes]] = []


def collect(message: object) -> None:
    event = json.loads(message.value())  # type: ignore[attr-defined]
    event["enriched"] = True
    events.append((message.key(), json.dumps(event).encode()))  # type: ignore[attr-defined]


began = time.monotonic()
ConsumeFromTopicOperator(
    task_id="consume", topics=[source], kafka_config_id="bench_consume", apply_function=collect, max_messages=total, max_batch_size=10_000
).execute({})
ProduceToTopicOperator(
    task_id="produce", topic=target, kafka_config_id="bench_produce", producer_function=lambda: iter(events), synchronous=False
).execute({})
print(json.dumps({"seconds": time.monotonic() - began}))
