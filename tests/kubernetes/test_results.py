"""A pod's result comes by its message or by the ledger, its credentials by no way that anybody reads, its log once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from airflow.triggers.base import TriggerEvent

from airflow_provider_factory.triggers.agent_pod import AgentPodTrigger
from tests.kubernetes.conftest import OneAgent
from tests.support.waiting import wait_for

pytestmark = pytest.mark.timeout(600)

PASSWORD = "s3cret-of-nobody"


@pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])
def test_shards_are_pods_with_their_own_log_label_and_result(one: OneAgent, deferrable: bool) -> None:
    lines = "print(f\"event {event['event_id']}.\", flush=True)"
    outcome = one.run(lines, events=36, partitions=12, shards=4, arguments=f"deferrable={deferrable}, poll_interval=1")
    one.assert_exact(outcome)
    assert outcome.states["work"] == ["success"] * 4
    assert outcome.labels["work"][1] == "2 of 4: partitions 1, 5, 9, up to 9 records"
    assert [one.log.count(f" event e{i}. ") for i in range(36)] == [1] * 36


def test_a_result_too_long_for_a_message_comes_from_the_ledger(one: OneAgent) -> None:
    outcome = one.run(events=500, partitions=250)
    one.assert_exact(outcome)
    assert len(json.dumps(outcome.results["work"][0])) > 4096
    assert len(outcome.results["work"][0]["manifest"]["ranges"]) == 250


def test_shards_auto_go_by_the_windows_records(one: OneAgent) -> None:
    outcome = one.run(events=300, partitions=6, shards="auto")
    one.assert_exact(outcome)
    assert len(outcome.states["work"]) == 1


def _gone_before_the_task_wakes(monkeypatch: pytest.MonkeyPatch, one: OneAgent, **changes: Any) -> None:
    """Between the trigger's event and the task's return the pod is deleted."""
    run = AgentPodTrigger.run

    async def and_gone(self: AgentPodTrigger) -> AsyncIterator[TriggerEvent]:
        async for event in run(self):
            for pod in one.cluster.pods(one.dag_id):
                one.cluster.delete(pod, grace=0)
            one.cluster.wait_gone(one.dag_id)
            yield TriggerEvent({**event.payload, **changes})

    monkeypatch.setattr(AgentPodTrigger, "run", and_gone)


@pytest.mark.parametrize("said", [{}, {"said": ""}], ids=["the event brings the result", "the ledger has it"])
def test_a_pod_gone_at_reentry_still_has_its_result(one: OneAgent, monkeypatch: pytest.MonkeyPatch, said: dict[str, str]) -> None:
    _gone_before_the_task_wakes(monkeypatch, one, **said)
    one.assert_exact(one.run(events=50, arguments="deferrable=True, poll_interval=1"))


def test_a_pod_gone_at_reentry_without_a_result_is_a_failure(one: OneAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    _gone_before_the_task_wakes(monkeypatch, one, said="")
    monkeypatch.setattr("factory_agents.kafka.ledger.read_result", lambda *a, **k: None)
    outcome = one.run(events=50, arguments="deferrable=True, poll_interval=1", retries=0)
    assert outcome.states["work"] == ["failed"]
    assert "left no result, nor does the ledger hold one" in one.log


def test_airflows_connections_reach_the_pod_in_a_secret_that_goes_with_it(one: OneAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"bootstrap.servers": one.pods.info.bootstrap, "sasl.password": PASSWORD}
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps({"conn_type": "kafka", "extra": extra}))
    seen: dict[str, Any] = {}

    def look() -> None:
        pod = one.wait_working()
        seen["pod"] = pod.to_dict()
        seen["secret"] = one.cluster.core.read_namespaced_secret(pod.metadata.name, one.cluster.namespace)

    body = ("import time", "print('working', flush=True)", "time.sleep(0.1)")
    outcome = one.run(*body, events=60, arguments='credentials="connections"', meanwhile=look)
    one.assert_exact(outcome)
    assert set(seen["secret"].data) >= {"KAFKA_BOOTSTRAP", "KAFKA_CONFIG"}
    assert PASSWORD not in str(seen["pod"]), "not in the pod's spec or annotations"
    assert PASSWORD not in one.log
    assert PASSWORD not in json.dumps(outcome.results)
    name = seen["secret"].metadata.name
    wait_for(lambda: name not in one.cluster.secrets(), "the Secret to go with its pod")
