# ruff: noqa: DTZ001, E501  # as it is in the design
"""Clicks, hour by hour: from a topic that somebody else fills, in shards, into a table."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import Asset, CronDataIntervalTimetable, Param, dag, task

from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.operators.validation import ValidationOperator
from airflow_provider_factory.operators.window import WindowOperator
from airflow_provider_factory.sensors.window_closed import WindowClosedSensor

RAW, ENRICHED, VALID = (Asset(name=t, uri=f"kafka://main/{t}") for t in ("raw_events", "enriched_events", "valid_events"))


@dag(schedule=CronDataIntervalTimetable("@hourly", timezone="UTC"), catchup=False, start_date=datetime(2026, 11, 1), doc_md=__doc__,
     params={"shards": Param(4, type="integer", minimum=1), "reprocess": Param(False, type="boolean")}, default_args={"owner": "data-eng", "retries": 2})  # fmt: skip
def clicks():
    closed = WindowClosedSensor(task_id="closed", topic=RAW, grace=timedelta(minutes=2))
    window = WindowOperator(task_id="window", topic=RAW, shards="{{ params.shards }}")

    @task.kafka_agent(output_topic=ENRICHED, map_index_template="{{ shard_label }}")
    def enrich(event: dict) -> dict:
        return event | {"host": event["url"].split("/")[2]}

    enriched = enrich.expand(window=window.output)
    valid = ValidationOperator(task_id="validate", window=enriched, contract="contracts/clicks.yaml", fail_if="rejected > 1 %", output_topic=VALID)  # fmt: skip
    publish = KafkaAgentOperator(task_id="publish", agent="publish", window=valid.output, agent_params={"table": "events"})  # noqa: F841
    closed >> window


clicks()
