"""Every hour: changes of source code from a file into Kafka, checked, classified by a language model, and published to PostgreSQL.

| stage | reads | writes |
|---|---|---|
| `ingest_changes` | the hour of the sample data | topic `changes` |
| `check_changes` | what `ingest_changes` wrote | topic `checked_changes`: nobody pays for an answer about what is wrong |
| `classify_changes` | what `check_changes` wrote | topic `classified_changes`, with the model's answer in the field `answer` |
| `publish_changes` | what `classify_changes` wrote | table `classified_changes` |

The model is asked by the connection `model_default` (type pydanticai): address, key and `{"model": …}` as its extra. Here that is
`factory sandbox up --with model`. Answers are logged, so a retry, a cleared task or a backfill asks nothing again. The prompt and what an
answer must be are in `include/prompts/kind.md` and `include/contracts/kind.yaml`.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import CronDataIntervalTimetable, Param, dag

from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.operators.validation import ValidationOperator
from airflow_provider_factory.settings import retry_delay

CONTRACT = "contracts/classified_changes.yaml"


@dag(
    schedule=CronDataIntervalTimetable("@hourly", timezone="UTC"),
    start_date=datetime(2018, 5, 1, tzinfo=UTC),  # where the sample data begin
    catchup=False,
    tags=["factory"],
    doc_md=__doc__,
    default_args={"owner": "data-eng", "retries": 2, "retry_delay": retry_delay(), "pool": "software_factory"},
    params={"reprocess": Param(False, type="boolean", description="Do finished work again; what the model said is taken from its log")},
)
def classified_changes() -> None:
    """The pipeline; its docs are the module's."""
    ingest = KafkaAgentOperator(
        task_id="ingest_changes",
        agent="ingest",
        agent_params={"source": "data/changes.jsonl", "time_field": "occurred_at"},
        output_topic="changes",
    )
    check = ValidationOperator(
        task_id="check_changes", window=ingest.output, contract=CONTRACT, fail_if="rejected > 10 %", output_topic="checked_changes"
    )
    classify = KafkaAgentOperator(
        task_id="classify_changes",
        agent="infer",
        window=check.output,
        output_topic="classified_changes",
        model_conn_id="model_default",
        agent_params={
            "prompt": "prompts/kind.md",
            "output": "contracts/kind.yaml",
            "parameters": {"temperature": 0, "max_tokens": 50},
            "concurrency": 4,
            "repair": True,
            "budget": {"window_tokens": 500_000},
        },
    )
    KafkaAgentOperator(
        task_id="publish_changes",
        agent="publish",
        window=classify.output,
        contract=CONTRACT,
        agent_params={"table": "classified_changes"},
    )


classified_changes()
