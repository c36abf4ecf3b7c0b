"""A DAG deploys a live agent's next version on a cluster, brings it in, takes it back, brings it in for good, and ends the one before."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from kubernetes import client

from factory_agents.kafka.lag import group_lag
from tests.kubernetes.conftest import OneAgent
from tests.support.cluster import IMAGE
from tests.support.runs import events
from tests.support.waiting import wait_for

PARTITIONS = 12
BATCH, PAUSE = 100, 0.1
"""A thousand events a second."""

DAG = """
from datetime import datetime

from airflow.sdk import dag

from airflow_provider_factory.operators.deploy_agent import DeployAgentOperator
from airflow_provider_factory.operators.rollout import RolloutOperator
from airflow_provider_factory.sensors.rollout import RolloutSensor


@dag(dag_id="DAG_ID", schedule=None, start_date=datetime(2026, 1, 1))
def live():
    def deploy(task_id, version, replicas=4):
        return DeployAgentOperator(
            task_id=task_id, agent="enrich", in_topic="TOPIC", out_topic="OUTPUT", live_version=version, replicas=replicas,
            pod_resources={"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        )

    def roll(task_id, action, **more):
        return RolloutOperator(task_id=task_id, group="factory.enrich.TOPIC", action=action, version="v2", **more)

    (
        deploy("old", "v1")
        >> deploy("new", "v2")
        >> roll("try_it", "start", steps=["1", "100%"], hold=3600)
        >> roll("all_of_it", "shift", share="100%")
        >> roll("take_back", "rollback", reason="a trial")
        >> deploy("still_there", "v2")
        >> roll("bring_in", "start", steps=["25%", "100%"], hold=2)
        >> RolloutSensor(task_id="verdict", group="factory.enrich.TOPIC", version="v2", deferrable=True, poke_interval=1, timeout=120)
        >> roll("finish", "finish")
        >> deploy("end_old", "v1", replicas=0)
    )


live()
"""


@pytest.fixture
def emptied(one: OneAgent) -> Iterator[None]:
    """Whatever was deployed is gone after the test."""
    yield
    apps, budgets = client.AppsV1Api(one.cluster.api), client.PolicyV1Api(one.cluster.api)
    apps.delete_collection_namespaced_deployment(one.cluster.namespace)
    budgets.delete_collection_namespaced_pod_disruption_budget(one.cluster.namespace)
    pods = one.cluster.core.list_namespaced_pod
    wait_for(lambda: not pods(one.cluster.namespace).items, "the live agents' pods to be gone", 120)


@pytest.mark.soak  # four minutes
@pytest.mark.usefixtures("emptied")
@pytest.mark.timeout(600)
def test_a_dag_brings_a_version_in_and_ends_the_one_before_under_load(one: OneAgent, capsys: pytest.CaptureFixture[str]) -> None:
    topic, output = (one.runs.topic(name, PARTITIONS) for name in ("live", "lived"))
    over, sent = threading.Event(), 0

    def load() -> None:
        nonlocal sent
        while not over.wait(PAUSE):
            one.runs.produce(topic, events(BATCH, start=sent))
            sent += BATCH

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    try:
        outcome = one.runner.run(DAG.replace("TOPIC", topic).replace("OUTPUT", output), None)
    finally:
        over.set()
        thread.join()
    assert outcome.state == "success", capsys.readouterr().out[-60000:]
    results = outcome.results
    assert [results[task]["changed"] for task in ("old", "new", "still_there", "end_old")] == [True, True, False, True]
    assert (results["all_of_it"]["held"], results["take_back"]["verdict"], results["finish"]["base"]) == (PARTITIONS, "rolled back", "v2")
    left = client.AppsV1Api(one.cluster.api).list_namespaced_deployment(one.cluster.namespace).items
    assert [(d.spec.template.spec.containers[0].image, d.status.available_replicas) for d in left] == [(IMAGE, 4)]
    wait_for(lambda: not any(p.lag for p in group_lag(one.runs.config, f"factory.enrich.{topic}")), "the agents to be done", 120)
    came, went = ([record.id for record in one.runs.everything(name)] for name in (topic, output))
    assert len(came) == sent
    assert sorted(went) == sorted(came)  # 0 lost, 0 doubled
