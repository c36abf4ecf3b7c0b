"""Many sensors that wait at once, one after the other in groups of consumers that have not caught up."""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import dag

from airflow_provider_factory.sensors.consumer_lag import ConsumerLagSensor

TOPICS = os.environ["TEST_TOPICS"]
SENSORS = 200 if os.environ.get("FACTORY_SOAK") else 12


@dag(schedule=None, max_active_tasks=SENSORS + 1)
def watchers() -> None:
    common = {"topics": f"{TOPICS}.watched", "deferrable": True, "poke_interval": 2}
    groups = [f"{TOPICS}.watcher-{i}" for i in range(SENSORS)]
    ConsumerLagSensor.partial(task_id="caught_up", timeout=timedelta(minutes=30), **common).expand(group=groups)
    ConsumerLagSensor(task_id="in_vain", timeout=5, group=f"{TOPICS}.behind", **common)


watchers()
