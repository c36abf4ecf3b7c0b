"""A pipeline with a shard that fails: some of its events are refused, and none may be."""

from __future__ import annotations

import os
from typing import Any

from airflow.sdk import dag, task

from airflow_provider_factory.operators.window import WindowOperator

TOPICS = os.environ["TEST_TOPICS"]


@dag(schedule=None)
def broken() -> None:
    window = WindowOperator(task_id="window", topic=f"{TOPICS}.broken", no_interval="since_last", shards=2)

    @task.kafka_agent(output_topic=f"{TOPICS}.broken.out", max_rejected=0)
    def work(event: dict[str, Any]) -> dict[str, Any]:
        return event | {"half": event["number"] / 2}

    work.expand(window=window.output)


broken()
