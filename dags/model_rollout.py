"""Every morning: a new version of the live agent `enrich` takes over in steps, or is taken back.

| task | does |
|---|---|
| `bring_in` | gives the version in `params.version` one partition, then a quarter of them, then all, `params.hold` seconds apart |
| `verdict` | waits until it holds all partitions; fails, with the reason, when it was rolled back |
| `finish` | makes it the version that the next rollout starts from |
| `take_back` | takes it back where it was brought in and is not finished: the verdict didn't come in time, say |

The version's members have to run: a Deployment whose agents are started with `--live-version`.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import Param, dag

from airflow_provider_factory.operators.rollout import RolloutOperator
from airflow_provider_factory.sensors.rollout import RolloutSensor
from airflow_provider_factory.settings import retry_delay

GROUP = "factory.enrich.raw_events"


@dag(
    schedule=None,
    start_date=datetime(2026, 11, 1, tzinfo=UTC),
    catchup=False,
    tags=["factory"],
    doc_md=__doc__,
    default_args={"owner": "data-eng", "retries": 2, "retry_delay": retry_delay()},
    params={
        "version": Param("v2", type="string"),
        "group": Param(GROUP, type="string"),
        "hold": Param(600, type="number", minimum=0, description="seconds that each step lasts at least"),
    },
)
def model_rollout() -> None:
    """The rollout; its docs are the module's."""
    group, version = "{{ params.group }}", "{{ params.version }}"
    steps = ["1", "25%", "100%"]
    bring_in = RolloutOperator(task_id="bring_in", group=group, version=version, steps=steps, hold="{{ params.hold }}")
    verdict = RolloutSensor(task_id="verdict", group=group, version=version, deferrable=True, poke_interval=15, timeout=2 * 3600, retries=0)
    finish = RolloutOperator(task_id="finish", group=group, action="finish", version=version)
    take_back = RolloutOperator(task_id="take_back", group=group, action="rollback", version=version, reason="it was not finished")
    bring_in >> verdict >> finish >> take_back.as_teardown(setups=bring_in)


model_rollout()
