"""The pipelines of ``temporal_stage.py`` for Airflow: a window of a topic, then one stage or several."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

from airflow.sdk import CronDataIntervalTimetable, dag

from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.operators.window import WindowOperator

TOPICS = os.environ["TEST_TOPICS"]


def make(name: str, stages: int) -> None:
    @dag(
        dag_id=f"{name}_{stages}",
        schedule=CronDataIntervalTimetable("@hourly", timezone="UTC"),
        start_date=datetime(2025, 1, 6, tzinfo=UTC),
        end_date=datetime(2025, 2, 1, tzinfo=UTC),  # long over: what runs was asked for
        catchup=False,
        default_args={"retries": 3, "retry_delay": timedelta(seconds=10)},
    )
    def pipeline() -> None:
        ready = WindowOperator(task_id="window", topic=TOPICS).output
        for n in range(stages):
            task_id = f"s{n}"
            stage = KafkaAgentOperator(task_id=task_id, agent="benchmarks.stamp:mark", window=ready, output_topic=f"{TOPICS}.{task_id}")
            ready = stage.output

    pipeline()


for number in (1, 4):
    make("stages", number)
    make("tested", number)  # by `airflow dags test`: it stays paused, as a scheduler would run its tasks too
