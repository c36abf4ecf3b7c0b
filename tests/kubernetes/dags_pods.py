"""DAGs for a running Airflow whose agents are pods: one for each thing that is done to them."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import dag, task

from airflow_provider_factory.operators.window import WindowOperator

TOPICS = os.environ["TEST_TOPICS"]


def pod_dag(name: str, *, shards: int = 1, pause: float = 0.0, **arguments: Any) -> None:
    """A DAG ``name`` from the topic ``<topics>.name`` to ``<topics>.name.out``, by an agent that takes so long for an event."""

    @dag(dag_id=name, schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC), default_args={"retries": 2, "retry_delay": timedelta(0)})
    def made() -> None:
        window = WindowOperator(task_id="window", topic=f"{TOPICS}.{name}", no_interval="since_last", shards=shards)

        @task.kafka_agent(output_topic=f"{TOPICS}.{name}.out", agent_params={"pause": pause}, **arguments)
        def work(event: dict[str, Any], pause: float) -> dict[str, Any]:
            import time

            if pause or event["n"] % 1000 == 0:
                print(f"working on {event['event_id']}.", flush=True)
            time.sleep(pause)
            return event

        work.expand(window=window.output)

    made()


pod_dag("shards", shards=4)
pod_dag("triggerer_restarts", pause=0.1)
pod_dag("worker_dies", pause=0.1, deferrable=False)
pod_dag("task_is_told_to_stop", pause=0.1, deferrable=False)
pod_dag("failed_while_deferred", pause=0.1)
pod_dag("failed_while_running", pause=0.1, deferrable=False)
pod_dag("success_while_deferred", pause=0.1)
