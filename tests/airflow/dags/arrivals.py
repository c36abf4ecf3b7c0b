"""A pipeline that nobody schedules: it runs when enough has arrived, and takes what came since its last run."""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import Asset, AssetWatcher, dag

from airflow_provider_factory.assets import table_asset
from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.operators.window import WindowOperator
from airflow_provider_factory.triggers.topic_ready import TopicReadyTrigger

TOPICS = os.environ["TEST_TOPICS"]
CONTRACT = {
    "name": "arrivals",
    "id": "event_id",
    "schema": {"type": "object", "required": ["event_id"], "properties": {"event_id": {"type": "integer"}}},
}
ENOUGH = TopicReadyTrigger(topic=f"{TOPICS}.arrivals", pipeline="arrivals", records=20, age=3, poll_interval=0.5)
ARRIVALS = Asset(name=f"{TOPICS}.arrivals", uri=f"kafka://main/{TOPICS}.arrivals", watchers=[AssetWatcher(name="enough", trigger=ENOUGH)])


@dag(schedule=[ARRIVALS], max_active_runs=3, default_args={"retries": 5, "retry_delay": timedelta(seconds=1)})
def arrivals() -> None:
    window = WindowOperator(task_id="window", topic=ARRIVALS, no_interval="since_last")
    KafkaAgentOperator(task_id="publish", agent="publish", window=window.output, contract=CONTRACT, agent_params={"table": "arrivals"})


@dag(schedule=[table_asset("arrivals")])
def after_arrivals() -> None:
    """Another team's: it is about intervals, so a run by an asset has nothing to read."""
    KafkaAgentOperator(task_id="ingest", agent="ingest", agent_params={"source": "data/changes.jsonl", "time_field": "occurred_at"})
    WindowOperator(task_id="window", topic=ARRIVALS)


arrivals()
after_arrivals()
