"""Every hour: what changed in a PostgreSQL table, from the database's log into Kafka, and from there into two sinks.

| task | does |
|---|---|
| `replicate_orders` | writes the hour's changes to the topic `orders_changes`; the first run begins with the table's rows |
| `publish_copy` | makes the table `orders_copy` what `orders` was at the hour's end |
| `publish_reporting` | the same for `orders_reporting` |

Each sink is a stage of its own, with its own progress: one that fails holds back only itself, and is retried or cleared alone. A sink
elsewhere is one more line in `SINKS`: `{"sink": "bigquery", "table": "sales.orders"}`. One run at a time, as a log is read in order.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import CronDataIntervalTimetable, dag

from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.settings import retry_delay

SINKS: dict[str, dict[str, Any]] = {"copy": {"table": "orders_copy"}, "reporting": {"table": "orders_reporting"}}


@dag(
    schedule=CronDataIntervalTimetable("@hourly", timezone="UTC"),
    start_date=datetime(2018, 5, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["factory"],
    doc_md=__doc__,
    default_args={"owner": "data-eng", "retries": 2, "retry_delay": retry_delay(), "pool": "software_factory"},
)
def orders_replicated() -> None:
    """The pipeline; its docs are the module's."""
    changes = KafkaAgentOperator(
        task_id="replicate_orders",
        agent="replicate",
        agent_params={"table": "public.orders"},
        output_topic="orders_changes",
        max_rejected="0",
    )
    for name, sink in SINKS.items():
        KafkaAgentOperator(
            task_id=f"publish_{name}",
            agent="publish",
            window=changes.output,
            contract="contracts/orders.yaml",
            agent_params=sink,
            max_rejected="0",
        )


orders_replicated()
