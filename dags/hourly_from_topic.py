"""Every hour: the records that arrived on a topic that somebody else fills, in shards, each exactly once.

| task | does |
|---|---|
| `closed` | waits until every partition has passed the hour's end, or 2 minutes have gone by |
| `window` | turns the hour into offsets, once and for good, and cuts it into shards |
| `classify` | one agent a shard; what it wrote is read on as one window |
| `check` | keeps what fits the contract, and judges the hour as a whole |
| `publish` | upserts it into the table `arrivals` |

A late record is in the hour in which it arrived. After a pause, the first run carries on from where the last one ended.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Asset, CronDataIntervalTimetable, Param, dag, task

from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.operators.validation import ValidationOperator
from airflow_provider_factory.operators.window import WindowOperator
from airflow_provider_factory.sensors.window_closed import WindowClosedSensor
from airflow_provider_factory.settings import retry_delay

RAW, CLASSIFIED, CHECKED = (Asset(name=t, uri=f"kafka://main/{t}") for t in ("raw_events", "classified_events", "checked_events"))


@dag(
    schedule=CronDataIntervalTimetable("@hourly", timezone="UTC"),
    start_date=datetime(2026, 11, 1, tzinfo=UTC),
    catchup=False,
    tags=["factory"],
    doc_md=__doc__,
    default_args={"owner": "data-eng", "retries": 2, "retry_delay": retry_delay(), "pool": "software_factory"},
    params={"shards": Param(4, type="integer", minimum=1), "reprocess": Param(False, type="boolean")},
)
def hourly_from_topic() -> None:
    """The pipeline; its docs are the module's."""
    closed = WindowClosedSensor(task_id="closed", topic=RAW, grace=timedelta(minutes=2))
    window = WindowOperator(task_id="window", topic=RAW, shards="{{ params.shards }}")

    @task.kafka_agent(output_topic=CLASSIFIED, map_index_template="{{ shard_label }}")
    def classify(event: dict[str, Any]) -> dict[str, Any]:
        path = event.get("path") or ""
        return event | {"language": path.rpartition(".")[2] or "none", "size_class": "large" if (event.get("added") or 0) > 99 else "small"}

    classified = classify.expand(window=window.output)
    check = ValidationOperator(
        task_id="check", window=classified, contract="contracts/events.yaml", fail_if="rejected > 10 %", output_topic=CHECKED
    )
    KafkaAgentOperator(
        task_id="publish", agent="publish", window=check.output, contract="contracts/events.yaml", agent_params={"table": "arrivals"}
    )
    closed >> window


hourly_from_topic()
