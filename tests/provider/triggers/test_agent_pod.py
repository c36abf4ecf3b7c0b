"""AgentPodTrigger under Airflow's own trigger runner: a killed task's pod goes, however long the API server takes over it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_provider_factory.triggers.agent_pod import AgentPodTrigger
from airflow_provider_factory.version_compat import AIRFLOW_V_3_3_PLUS
from tests.support.kube_api import KubeApi, kube_api


def trigger(api: KubeApi, **arguments: Any) -> AgentPodTrigger:
    return AgentPodTrigger(
        pod_name="pod",
        pod_namespace="ns",
        trigger_start_time=datetime.now(UTC),
        base_container_name="base",
        config_dict=api.config,
        in_cluster=False,
        poll_interval=0.1,
        **arguments,
    )


async def until(condition: Any, patience: float = 30.0) -> None:
    async with asyncio.timeout(patience):
        while not condition():  # noqa: ASYNC110  # another thread's doing
            await asyncio.sleep(0.02)


async def killed_by_a_user(api: KubeApi, waiting: AgentPodTrigger) -> None:
    """Run a trigger as the triggerer does, and cancel it as the triggerer does: again in every pass of its loop, until it is gone."""
    from airflow.jobs.triggerer_job_runner import _USER_ACTION_CANCEL_MSG, TriggerRunner

    runner = TriggerRunner()
    runner.triggers[1] = {"task": None, "is_watcher": False, "name": "t", "events": 0}  # type: ignore[typeddict-item]
    task = asyncio.create_task(runner.run_trigger(1, waiting, None, None))
    await until(lambda: ("GET", "/api/v1/namespaces/ns/pods/pod") in api.asked[2:])
    while not task.done():
        task.cancel(_USER_ACTION_CANCEL_MSG)
        await asyncio.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(not AIRFLOW_V_3_3_PLUS, reason="from Airflow 3.3 on, a trigger is told that its task was killed")
def test_a_busy_api_server_is_asked_again_though_the_triggerer_cancels_again_and_again() -> None:
    async def go(api: KubeApi) -> None:
        api.answer = lambda method, path: 503 if method == "DELETE" and len(api.deleted()) == 1 else None
        await killed_by_a_user(api, trigger(api))
        await until(lambda: len(api.deleted()) == 2)

    with kube_api() as api:
        asyncio.run(go(api))


@pytest.mark.skipif(not AIRFLOW_V_3_3_PLUS, reason="from Airflow 3.3 on, a trigger is told that its task was killed")
def test_a_pod_that_is_to_be_kept_is_kept() -> None:
    async def go(api: KubeApi) -> None:
        await killed_by_a_user(api, trigger(api, on_kill_action="keep_pod"))

    with kube_api() as api:
        asyncio.run(go(api))
        assert not api.deleted()


def test_a_triggerer_that_ends_leaves_the_pod_to_the_next_one() -> None:
    async def go(api: KubeApi) -> None:
        task = asyncio.create_task(anext(aiter(trigger(api).run())))  # type: ignore[arg-type]
        await until(lambda: len(api.asked) > 2)
        while not task.done():  # again and again, as the triggerer does: one that comes while the start is left behind is lost
            task.cancel()
            await asyncio.sleep(0.2)

    with kube_api() as api:
        asyncio.run(go(api))
        assert not api.deleted()


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_log_that_cannot_be_read_now_is_read_later(status: int) -> None:
    """The pod's node has just started again, or its kubelet is away: that ends no task."""

    async def go(api: KubeApi) -> None:
        api.answer = lambda method, path: status if path.endswith("/log") and api.logs() < 3 else None
        waiting = trigger(api, get_logs=True, logging_interval=0.01)
        task = asyncio.create_task(anext(aiter(waiting.run())))  # type: ignore[arg-type]
        await until(lambda: task.done() or api.logs() > 5)
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])

    with kube_api() as api:
        asyncio.run(go(api))
