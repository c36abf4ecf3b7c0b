"""DAGs of one agent as a pod, whose window is what has arrived on a topic."""

from __future__ import annotations

from typing import Any

__all__ = ["FIRST_TRY_SLOW", "TRY", "one_agent"]

TRY = 'env_vars={"TRY": "{{ ti.try_number }}"}'
"""An argument that tells the agent which try it is."""

FIRST_TRY_SLOW = (
    "import os, time",
    "if os.environ['TRY'] == '1':",
    "    print('working', flush=True)",
    "    time.sleep(0.1)",
)
"""An agent that takes a minute for 600 events in its first try, and none in the next."""

_DAG = """
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import dag, task
from kubernetes.client import models as k8s

from airflow_provider_factory.operators.window import WindowOperator


@dag(dag_id="DAG_ID", schedule=None, start_date=datetime(2026, 1, 1), default_args={"retries": RETRIES, "retry_delay": timedelta(0)})
def one_agent():
    window = WindowOperator(task_id="window", topic="TOPIC", no_interval="since_last", shards=SHARDS)

    @task.kafka_agent(output_topic="OUTPUT", ARGUMENTS)
    def work(event: dict[str, Any]) -> dict[str, Any]:
BODY
        return event | {"done": True}

    work.expand(window=window.output)


one_agent()
"""


def one_agent(topic: str, output: str, *body: str, arguments: str = "", retries: int = 1, shards: Any = 1) -> str:
    """The DAG's text: ``body`` are statements on ``event``, ``arguments`` KafkaAgentOperator's."""
    text = _DAG.replace("BODY", "\n".join(f"        {line}" for line in body)).replace("ARGUMENTS", arguments)
    text = text.replace("RETRIES", str(retries)).replace("SHARDS", repr(shards))
    return text.replace("TOPIC", topic).replace("OUTPUT", output)
