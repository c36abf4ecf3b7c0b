"""Sensors that wait in a real triggerer: few connections whatever their number, and no harm by its death."""

from __future__ import annotations

import psutil
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.airflow.pipelines import SOAK
from tests.support.airflow_components import RunningAirflow
from tests.support.topics import create_topic
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600 if SOAK else 900)]

SENSORS = 200 if SOAK else 12  # as the DAG has it


def commit(admin: AdminClient, topic: str, groups: list[str], offset: int) -> None:
    for group in groups:
        admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, [TopicPartition(topic, 0, offset)])])[group].result()


FEW = 4 + 2 * 8  # eight groups' consumers are kept, each with its own way to the coordinator


def connections(airflow: RunningAirflow, bootstrap: str) -> int:
    """How many the triggerer and its children have to the broker."""
    port = int(bootstrap.rpartition(":")[2])
    triggerer = psutil.Process(airflow.components.pid("triggerer"))
    return sum(
        c.raddr != () and c.raddr.port == port for p in [triggerer, *triggerer.children(recursive=True)] for c in p.net_connections()
    )


@pytest.mark.soak
def test_many_sensors_wait_with_few_connections_and_survive_the_triggerer(
    airflow_running: RunningAirflow, admin: AdminClient, bootstrap: str
) -> None:
    airflow, topic = airflow_running, f"{airflow_running.topics}.watched"
    groups = [f"{airflow.topics}.watcher-{i}" for i in range(SENSORS)]
    create_topic(admin, topic, 1)
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
    for _ in range(10):
        producer.produce(topic, b"{}")
    assert producer.flush(60) == 0
    commit(admin, topic, [*groups, f"{airflow.topics}.behind"], 4)

    def states(task_id: str) -> list[str]:
        return [ti["state"] for ti in airflow.tasks("watchers", run) if ti["task_id"] == task_id]

    airflow.unpause("watchers")
    run = airflow.trigger("watchers")
    wait_for(lambda: states("caught_up") == ["deferred"] * SENSORS, "the sensors to wait in the triggerer", 1200)
    wait_for(lambda: connections(airflow, bootstrap), "the triggerer to ask the broker")
    assert connections(airflow, bootstrap) <= FEW

    airflow.crash("triggerer")
    wait_for(lambda: states("in_vain") == ["failed"], "the sensor in vain to time out", 400)
    log = airflow.log("watchers", run, "in_vain")
    assert "after 5 s: group" in log
    assert "total lag 6" in log

    commit(admin, topic, groups, 10)
    wait_for(lambda: states("caught_up") == ["success"] * SENSORS, "the sensors to notice", 1200)
    assert connections(airflow, bootstrap) <= FEW
