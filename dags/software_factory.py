"""Every hour: events from a file or table into Kafka, enriched, validated, and published to PostgreSQL (or a warehouse), exactly once.

Copy this file to start a pipeline of your own: the four stages below are all there is to change.

| stage | reads | writes |
|---|---|---|
| `ingest_events` | the hour of `source` by its time column | topic `raw_events` |
| `enrich_events` | what `ingest_events` wrote | topic `enriched_events` |
| `validate_events` | what `enrich_events` wrote | topic `validated_events`; what breaks the contract goes to `validated_events.dead` |
| `publish_results` | what `validate_events` wrote | table `table`, upserted by the contract's key |

A retry resumes where the last try stopped. Clearing a task does its hour again and replaces it, never doubles it. A run whose validation
fails publishes nothing. Look closer with `factory windows`, `factory dead-letters list validated_events.dead` and each task's log.

Once: `factory topics apply` creates the topics, `airflow pools set software_factory 8 "agents at a time"` the pool.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import CronDataIntervalTimetable, Param, dag, task

from airflow_provider_factory.notifications import late_after
from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.operators.validation import ValidationOperator
from airflow_provider_factory.settings import retry_delay


@dag(
    dag_id="software_factory_pipeline",
    schedule=CronDataIntervalTimetable("@hourly", timezone="UTC"),
    start_date=datetime(2018, 5, 1, tzinfo=UTC),  # where the sample data begin
    catchup=False,
    tags=["factory"],
    doc_md=__doc__,
    default_args={
        "owner": "data-eng",
        "retries": 2,
        "retry_delay": retry_delay(),  # 5 minutes, unless [factory] retry_delay shortens it
        "pool": "software_factory",
    },
    deadline=late_after(timedelta(minutes=45)),
    params={
        "source": Param(
            "data/changes.jsonl", type="string", description="Events with a time column: a file under include/, or a URL allowed here"
        ),
        "time_field": Param("occurred_at", type="string", description="The source's time column"),
        # The gate is the author's: list other contracts of this repository here to let whoever triggers a run choose among them.
        "contract": Param("contracts/events.yaml", enum=["contracts/events.yaml"], description="Data contract that events must keep"),
        "table": Param("events", type="string", description="Table that valid events land in; dataset.table for BigQuery and Iceberg"),
        "sink": Param("postgres", type="string", enum=["postgres", "bigquery", "snowflake", "iceberg"], description="Where that table is"),
        "reprocess": Param(False, type="boolean", description="Do finished work again"),
        "dry_run": Param(False, type="boolean", description="Read, handle and report, but write nothing"),
    },
)
def software_factory_pipeline() -> None:
    """The pipeline; its docs are the module's."""
    ingest = KafkaAgentOperator(
        task_id="ingest_events",
        agent="ingest",
        agent_params={"source": "{{ params.source }}", "time_field": "{{ params.time_field }}"},
        output_topic="raw_events",
        dry_run="{{ params.dry_run }}",
    )

    @task.kafka_agent(output_topic="enriched_events", dry_run="{{ params.dry_run }}")
    def enrich_events(event: dict[str, Any]) -> dict[str, Any]:
        """The language by the file's ending, and a size class by the lines changed."""
        from factory_agents import Reject

        if not event.get("path"):
            raise Reject("the change names no file", rule="no-path")
        languages = {
            "c": "C",
            "h": "C",
            "cpp": "C++",
            "py": "Python",
            "pyi": "Python",
            "pyx": "Cython",
            "md": "Markdown",
            "rst": "reStructuredText",
        }
        event["language"] = languages.get(event["path"].rpartition(".")[2].lower(), "other")
        if event.get("added") is None:
            event["size_class"] = "binary"
        else:
            lines = event["added"] + event["deleted"]
            event["size_class"] = "large" if lines >= 100 else "medium" if lines >= 10 else "small"
        return event

    enriched = enrich_events(window=ingest.output)

    validate = ValidationOperator(
        task_id="validate_events",
        window=enriched,
        contract="{{ params.contract }}",
        output_topic="validated_events",
        fail_if="rejected > 10 %",
        warn_if="rejected > 2 %",
        dry_run="{{ params.dry_run }}",
    )

    KafkaAgentOperator(
        task_id="publish_results",
        agent="publish",
        window=validate.output,
        contract="{{ params.contract }}",
        agent_params={"table": "{{ params.table }}", "sink": "{{ params.sink }}"},
        dry_run="{{ params.dry_run }}",
    )


software_factory_pipeline()
