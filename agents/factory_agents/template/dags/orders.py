"""Every hour: orders from a file into Kafka, priced, checked, and published to the table ``orders``, each exactly once."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import CronDataIntervalTimetable, dag

from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.operators.validation import ValidationOperator
from airflow_provider_factory.settings import retry_delay


@dag(
    schedule=CronDataIntervalTimetable("@hourly", timezone="UTC"),
    start_date=datetime(2026, 11, 1, tzinfo=UTC),
    catchup=False,
    doc_md=__doc__,
    default_args={"retries": 2, "retry_delay": retry_delay(), "pool": "software_factory"},
)
def orders() -> None:
    """The pipeline; its docs are the module's."""
    ingest = KafkaAgentOperator(
        task_id="ingest",
        agent="ingest",
        agent_params={"source": "data/orders.jsonl", "time_field": "at"},  # found under include/
        output_topic="raw_orders",
    )
    price = KafkaAgentOperator(task_id="price", agent="pricing:price", window=ingest.output, output_topic="priced_orders")
    validate = ValidationOperator(
        task_id="validate",
        window=price.output,
        contract="contracts/orders.yaml",
        output_topic="checked_orders",
        fail_if="rejected > 20 %",
    )
    KafkaAgentOperator(
        task_id="publish",
        agent="publish",
        window=validate.output,
        contract="contracts/orders.yaml",
        agent_params={"table": "orders"},
    )


orders()
