"""Hourly pipelines from a topic into a table, all the same: each test that backfills or clears has one of its own."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import CronDataIntervalTimetable, Param, dag, task

from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.operators.validation import ValidationOperator
from airflow_provider_factory.operators.window import WindowOperator

TOPICS = os.environ["TEST_TOPICS"]
CONTRACT = {
    "name": "changes",
    "id": "event_id",
    "time": "occurred_at",
    "time_unit": "s",
    "version_field": "revision",
    "schema": {
        "type": "object",
        "required": ["event_id", "revision", "path", "occurred_at", "language"],
        "properties": {
            "event_id": {"type": "string", "minLength": 1},
            "revision": {"type": "integer"},
            "path": {"type": "string"},
            "added": {"type": ["integer", "null"], "minimum": 0},
            "occurred_at": {"type": "integer"},
            "language": {"type": "string"},
        },
    },
}


def make(name: str, *, shards: int = 2, short: bool = False) -> None:
    """``short``: without what comes after its first stage, where it is only run to be looked at."""

    @dag(
        dag_id=name,
        schedule=CronDataIntervalTimetable("@hourly", timezone="UTC"),
        start_date=datetime(2025, 1, 6, tzinfo=UTC),
        end_date=datetime(2025, 2, 1, tzinfo=UTC),  # long over: nothing is scheduled, what runs was asked for
        catchup=False,
        max_active_runs=8,
        default_args={"retries": 5, "retry_delay": timedelta(seconds=1)},
        params={"reprocess": Param(False, type="boolean")},
    )
    def pipeline() -> None:
        window = WindowOperator(task_id="window", topic=f"{TOPICS}.{name}", shards=shards)
        if short:
            copied = f"{TOPICS}.{name}.enriched"
            KafkaAgentOperator(task_id="copy", agent="enrich", window=window.output, output_topic=copied, max_rejected="100 %")
            return

        @task.kafka_agent(output_topic=f"{TOPICS}.{name}.enriched", max_rejected="100 %")
        def enrich(event: dict[str, Any]) -> dict[str, Any]:
            return event | {"language": str(event.get("path")).rpartition(".")[2]}

        valid = ValidationOperator(
            task_id="validate",
            window=enrich.expand(window=window.output),
            contract=CONTRACT,
            output_topic=f"{TOPICS}.{name}.valid",
            max_rejected="100 %",
        )
        KafkaAgentOperator(task_id="publish", agent="publish", window=valid.output, contract=CONTRACT, agent_params={"table": name})

    pipeline()


make("forward")
make("backward")
make("by_hand", shards=1)
make("from_calendar", shards=1, short=True)
