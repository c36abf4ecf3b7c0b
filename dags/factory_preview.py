"""Tries a contract, a built-in agent, or a stage of a pipeline on a topic's newest records, and writes nothing.

The Factory page starts it, and shows its result. The task *preview* says how many records would go on and how many would be rejected,
with examples of each reason; its log shows what would be written. A stage is run as its DAG's file has it now, with its connections and
its image. Whoever may start this DAG may read any topic with it, and run any pipeline's stage on it.
"""

from __future__ import annotations

from airflow.sdk import Param, dag

from airflow_provider_factory.operators.preview import PreviewOperator


@dag(
    dag_id="factory_preview",
    schedule=None,
    is_paused_upon_creation=False,
    catchup=False,
    max_active_runs=4,
    tags=["factory"],
    doc_md=__doc__,
    default_args={"owner": "data-eng", "retries": 0},
    params={
        "topic": Param("", type="string", description="The topic whose newest records are tried"),
        "pipeline": Param("", type="string", description="Whose page shows the result, and whose stage is tried"),
        "stage": Param("", type="string", description="What is tried: this task of the pipeline; empty: the agent below"),
        "agent": Param("validate", type="string", enum=["validate", "enrich"], description="Without a stage: what is tried"),
        "contract": Param("", type="string", description="Path of a contract, for validate: contracts/events.yaml, say"),
        "agent_params": Param({}, type="object", description="More parameters of the agent"),
        "count": Param(1000, type="integer", minimum=1, maximum=100_000, description="How many records, at least"),
    },
)
def factory_preview() -> None:
    """The only task; its docs are the module's."""
    PreviewOperator(
        task_id="preview",
        topic="{{ params.topic }}",
        count="{{ params.count }}",
        of_dag="{{ params.pipeline }}",
        stage="{{ params.stage }}",
        agent="{{ params.agent }}",
        agent_params="{{ (dict(params.agent_params, contract=params.contract) if params.contract else params.agent_params) | tojson }}",
    )


factory_preview()
