"""Replays dead letters, each exactly once. The Factory page starts it; by hand, *Trigger* asks for the same parameters.

Events go to the pipeline's first topic, whose next window takes them. Nothing is deleted: a run that is ended half-way can be cleared, and
goes on with the letters that are left. Whoever may start this DAG may replay any pipeline's letters into any topic.
"""

from __future__ import annotations

from airflow.sdk import Param, dag

from airflow_provider_factory.operators.replay import ReplayOperator
from airflow_provider_factory.settings import retry_delay


@dag(
    dag_id="factory_replay",
    schedule=None,
    is_paused_upon_creation=False,
    catchup=False,
    max_active_runs=1,  # a replay of the same letters would fence the one before it
    tags=["factory"],
    doc_md=__doc__,
    default_args={"owner": "data-eng", "retries": 2, "retry_delay": retry_delay()},
    params={
        "topic": Param("", type="string", description="The dead-letter topic"),
        "to": Param("", type="string", description="The topic to write to: the pipeline's first"),
        "pipeline": Param("", type="string", description="Only this pipeline's letters"),
        "window": Param("", type="string", description="Only letters of this window"),
        "stage": Param("", type="string", description="Only letters of this stage"),
        "rule": Param("", type="string", description="Only letters with this rule"),
        "positions": Param([], type="array", items={"type": "string"}, description="Only these letters, each partition@offset"),
        "attempt": Param("", type="string", enum=["", "finished", "unfinished", "live", "unknown", "all"], description="Whose letters"),
        "rate": Param(0, type="number", minimum=0, description="Most events a second; 0 for no limit"),
        "through": Param("", type="string", enum=["", "validate"], description="What events pass first; what it rejects stays a letter"),
        "contract": Param("", type="string", description="The mended contract that they pass, such as contracts/clicks.yaml"),
        "stop_above": Param("", type="string", description="Stop once more per cent of the events are rejected again; empty: never"),
        "dry_run": Param(False, type="boolean", description="Only count; write nothing"),
    },
)
def factory_replay() -> None:
    """The only task; its docs are the module's."""
    ReplayOperator(
        task_id="replay",
        topic="{{ params.topic }}",
        to="{{ params.to }}",
        pipeline="{{ params.pipeline }}",
        window="{{ params.window }}",
        stage="{{ params.stage }}",
        rule="{{ params.rule }}",
        positions="{{ params.positions | join(',') }}",
        attempt="{{ params.attempt }}",
        rate="{{ params.rate }}",
        through="{{ params.through }}",
        agent_params={"contract": "{{ params.contract }}"},
        stop_above="{{ params.stop_above }}",
        count_only="{{ params.dry_run }}",
    )


factory_replay()
