"""A pipeline whose agent refuses some prices until it is mended (its runs are told so), and a contract that wants enough rows."""

from __future__ import annotations

import os
from typing import Any

from airflow.sdk import Param, dag, task

from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.operators.validation import ValidationOperator
from airflow_provider_factory.operators.window import WindowOperator

TOPICS = os.environ["TEST_TOPICS"]
CONTRACT = {
    "name": "orders",
    "id": "order",
    "schema": {
        "type": "object",
        "required": ["order", "price"],
        "properties": {"order": {"type": "integer"}, "price": {"type": "integer"}},
    },
}


@dag(schedule=None, params={"mended": Param("no", type="string"), "enough": Param(3, type="integer")})
def priced() -> None:
    window = WindowOperator(task_id="window", topic=f"{TOPICS}.priced", no_interval="since_last")

    @task.kafka_agent(output_topic=f"{TOPICS}.priced.read", max_rejected="100 %", agent_params={"mended": "{{ params.mended }}"})
    def read_price(event: dict[str, Any], mended: str) -> dict[str, Any]:
        from factory_agents import Reject

        if event["price"] < 0 and mended != "yes":
            raise Reject("price < 0", rule="price")
        return event | {"price": abs(event["price"])}

    valid = ValidationOperator(
        task_id="validate",
        window=read_price(window=window.output),
        contract=CONTRACT,
        fail_if="rows < {{ params.enough }}",
        output_topic=f"{TOPICS}.priced.valid",
    )
    KafkaAgentOperator(task_id="publish", agent="publish", window=valid.output, contract=CONTRACT, agent_params={"table": "priced"})


priced()
