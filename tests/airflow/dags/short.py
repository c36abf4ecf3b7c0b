"""Seconds that stand in for hours: one topic, read by a pipeline that carries pauses and by one that leaves them to backfills."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DeltaDataIntervalTimetable, dag, task

from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.operators.window import WindowOperator

TOPICS = os.environ["TEST_TOPICS"]
CONTRACT = {
    "name": "ticks",
    "id": "event_id",
    "schema": {"type": "object", "required": ["event_id"], "properties": {"event_id": {"type": "integer"}}},
}


def make(policy: str) -> None:
    @dag(
        dag_id=f"short_{policy}",
        schedule=DeltaDataIntervalTimetable(timedelta(seconds=20)),
        start_date=datetime(2025, 1, 6, tzinfo=UTC),
        catchup=False,
        max_active_runs=4,
        default_args={"retries": 5, "retry_delay": timedelta(seconds=1)},
    )
    def pipeline() -> None:
        window = WindowOperator(task_id="window", topic=f"{TOPICS}.short", after_pause=policy)  # type: ignore[arg-type]

        @task.kafka_agent(output_topic=f"{TOPICS}.short_{policy}")
        def slow(event: dict[str, Any]) -> dict[str, Any]:
            import time

            time.sleep(event.get("takes", 0))
            return event

        ready = slow(window=window.output)
        KafkaAgentOperator(task_id="publish", agent="publish", window=ready, contract=CONTRACT, agent_params={"table": f"short_{policy}"})

    pipeline()


for after_pause in ("carry", "leave"):
    make(after_pause)
