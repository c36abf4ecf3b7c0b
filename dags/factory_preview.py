"""Tries a contract, or a built-in agent, on a topic's newest records, and writes nothing. The Factory page starts it, and shows its result.

The task *preview* says how many records would go on and how many would be rejected, with examples of each reason; its log shows what would
be written. Whoever may start this DAG may read any topic with it.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, dag, task

from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator


@task
def newest_records(topic: str, count: int) -> dict[str, Any]:
    """The window of a topic's newest records."""
    from airflow_provider_factory.hooks.kafka import FactoryKafkaHook
    from airflow_provider_factory.settings import option
    from factory_agents.protocol import plain
    from factory_agents.trial import last_records

    found: dict[str, Any] = plain(last_records(FactoryKafkaHook(option("kafka_conn_id")).config(), topic, int(count)))
    return found


@dag(
    dag_id="factory_preview",
    schedule=None,
    is_paused_upon_creation=False,
    catchup=False,
    tags=["factory"],
    doc_md=__doc__,
    default_args={"owner": "data-eng", "retries": 0},
    params={
        "topic": Param("", type="string", description="The topic whose newest records are tried"),
        "agent": Param("validate", type="string", enum=["validate", "enrich"], description="What is tried on them"),
        "contract": Param("", type="string", description="Path of a contract, for validate: contracts/events.yaml, say"),
        "agent_params": Param({}, type="object", description="More parameters of the agent"),
        "count": Param(1000, type="integer", minimum=1, maximum=100_000, description="How many records, at least"),
        "pipeline": Param("", type="string", description="Whose page shows the result"),
    },
)
def factory_preview() -> None:
    """The window, then the agent over it."""
    KafkaAgentOperator(
        task_id="preview",
        agent="{{ params.agent }}",
        window=newest_records("{{ params.topic }}", "{{ params.count }}"),  # type: ignore[arg-type]
        output_topic="{{ params.topic }}",  # its settings count: a dry run writes nothing there
        agent_params="{{ (dict(params.agent_params, contract=params.contract) if params.contract else params.agent_params) | tojson }}",
        max_rejected="100 %",
        dry_run=True,
    )


factory_preview()
