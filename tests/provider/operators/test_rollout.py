"""A rollout from Airflow: orders that a retry repeats safely, and a sensor that tells the verdict."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from airflow_provider_factory.operators.rollout import RolloutOperator
from airflow_provider_factory.sensors.rollout import RolloutSensor
from airflow_provider_factory.triggers.rollout import RolloutTrigger
from tests.agents.runtime.test_versions import rollouts, version, wait_members
from tests.provider.test_links import Pushed
from tests.support.runs import Runs, events


@pytest.fixture(autouse=True)
def connection(monkeypatch: pytest.MonkeyPatch, bootstrap: str, prefix: str) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps({"conn_type": "kafka", "extra": {"bootstrap.servers": bootstrap}}))
    monkeypatch.setenv("AIRFLOW__FACTORY__PREFIX", prefix)


def context() -> Any:
    return {"run_id": "manual", "ti": Pushed()}


def run(runs: Runs, **arguments: Any) -> dict[str, Any]:
    with DAG("rollout", schedule=None):
        task = RolloutOperator(task_id="t", group=f"{runs.prefix}.group", **arguments)
    return task.execute(context())


def sensor(runs: Runs, **arguments: Any) -> RolloutSensor:
    with DAG("rollout", schedule=None):
        return RolloutSensor(task_id="s", group=f"{runs.prefix}.group", poke_interval=0.2, timeout=30, **arguments)


def deferred(task: RolloutSensor) -> dict[str, Any]:
    """What is stored of the trigger that the task waits by."""
    with pytest.raises(TaskDeferred) as raised:
        task.execute(context())
    _, kwargs = raised.value.trigger.serialize()
    return dict(json.loads(json.dumps(kwargs)))


def fired(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The event of the trigger, as the triggerer makes it from what is stored."""

    async def first() -> dict[str, Any]:
        async for event in RolloutTrigger(**kwargs).run():
            return dict(event.payload)
        raise AssertionError

    return asyncio.run(first())


def test_a_version_is_brought_in_waited_for_and_finished_and_a_retry_changes_nothing(runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    runs.produce(source, events(20))
    with version(runs, source, out, "v1"):
        wait_members(runs, "v1")
        with version(runs, source, out, "v2"):
            wait_members(runs, "v2")
            begun = run(runs, version="v2", steps="50%")
            assert (begun["verdict"], begun["new"], begun["held"]) == ("rolling", "v2", 2)
            waiting = deferred(sensor(runs, deferrable=True))
            assert run(runs, action="shift", share="100%")["verdict"] == "rolled out"
            event = fired(waiting)
            assert (event["status"], event["facts"]["held"]) == ("met", 4)
            assert sensor(runs, version="v2").poke(context())
            assert run(runs, version="v2", steps="50%,100%")["held"] == 4  # a retry of the first task
            assert run(runs, action="finish")["base"] == "v2"
            assert run(runs, action="finish")["base"] == "v2"
            assert run(runs, version="v2")["verdict"] == "steady"


def test_a_version_that_was_rolled_back_fails_sensor_and_operator_with_the_reason(runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    with version(runs, source, out, "v1"):
        wait_members(runs, "v1")
        with version(runs, source, out, "v2"):
            wait_members(runs, "v2")
            run(runs, version="v2", steps=["50%"])
            waiting = sensor(runs, deferrable=True)
            with pytest.raises(TaskDeferred):
                waiting.execute(context())
            assert run(runs, action="rollback", reason="wrong segments")["verdict"] == "rolled back"
            assert run(runs, action="rollback")["reason"] == "wrong segments"  # a retry
            reason = "version 'v2' was rolled back: wrong segments"
            with pytest.raises(AirflowFailException, match=reason):
                waiting.execute(context())
            with pytest.raises(AirflowFailException, match=reason):
                waiting.execute_complete(context(), {"status": "error", "reason": f"RolledBackError: {reason}"})
            with pytest.raises(AirflowFailException, match="nothing can be shifted"):
                run(runs, action="shift", share="100%")
            assert rollouts(runs).status().base == "v1"
            assert run(runs, version="v1")["base"] == "v1"  # the task that brought v1 in, cleared
            assert sensor(runs, version="v1").poke(context())
            assert run(runs, action="finish", version="v1")["base"] == "v1"


def test_what_takes_a_version_back_leaves_the_rollout_of_another_one_alone(runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    with version(runs, source, out, "v1"):
        wait_members(runs, "v1")
        assert run(runs, action="rollback", version="v2")["verdict"] == "steady"
        with version(runs, source, out, "v2"):
            wait_members(runs, "v2")
            run(runs, version="v2")
            with pytest.raises(AirflowFailException, match="version 'v3' has no members"):
                run(runs, version="v3")
            assert run(runs, action="rollback", version="v3")["new"] == "v2"
            assert rollouts(runs).status().verdict == "rolled out"
            assert run(runs, action="rollback", version="v2")["verdict"] == "rolled back"


def test_what_cannot_be_an_order_is_refused(runs: Runs) -> None:
    with pytest.raises(ValueError, match="expected one of start, shift, finish, rollback"):
        run(runs, action="stop")
    with pytest.raises(AirflowFailException, match="no version of an agent has run in it yet"):
        run(runs, version="v2")
