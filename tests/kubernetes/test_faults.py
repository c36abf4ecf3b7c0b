"""What befalls pods: each fault ends in every event written once, or in one clear error."""

from __future__ import annotations

import time

import pytest
from kubernetes import client

from tests.kubernetes.conftest import OneAgent
from tests.kubernetes.dags import FIRST_TRY_SLOW, TRY
from tests.support.cluster import FILL_TMP
from tests.support.waiting import wait_for

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])
def test_a_pod_deleted_while_it_runs(one: OneAgent, deferrable: bool) -> None:
    outcome = one.run(
        *FIRST_TRY_SLOW,
        arguments=f"{TRY}, termination_grace_period=10, deferrable={deferrable}, poll_interval=1",
        meanwhile=lambda: one.cluster.delete(one.wait_working()),
    )
    one.assert_exact(outcome, tries=2)
    assert "StoppedError" in one.log or "is gone: somebody deleted it" in one.log


def test_a_pod_deleted_without_grace(one: OneAgent) -> None:
    outcome = one.run(*FIRST_TRY_SLOW, arguments=TRY, meanwhile=lambda: one.cluster.delete(one.wait_working(), grace=0))
    one.assert_exact(outcome, tries=2)
    assert "is gone: somebody deleted it, or its node went" in one.log


def test_a_pod_evicted(one: OneAgent) -> None:
    def evict() -> None:
        one.cluster.evict(one.wait_working().metadata.name)

    one.assert_exact(one.run(*FIRST_TRY_SLOW, arguments=f"{TRY}, termination_grace_period=10", meanwhile=evict), tries=2)


def test_a_pod_out_of_memory(one: OneAgent) -> None:
    body = ("import os", "blob = b'x' * (300_000_000 if os.environ['TRY'] == '1' else 1)", "event['n'] += 0 * len(blob)")
    outcome = one.run(*body, arguments=f'{TRY}, container_resources=k8s.V1ResourceRequirements(limits={{"memory": "200Mi"}})', events=20)
    one.assert_exact(outcome, tries=2)
    assert "ran out of memory (OOMKilled; its limit is 200Mi)" in one.log


def test_a_pod_that_fills_its_disk(one: OneAgent) -> None:
    """The kubelet looks when it has the time to: until then the first try waits in its first event."""
    fill = ("    open('/tmp/x', 'wb').write(bytes(150_000_000))", "    threading.Event().wait()")
    body = ("import os, threading", "if os.environ['TRY'] == '1':", *fill)
    storage = 'limits={"ephemeral-storage": "100Mi", "memory": "1Gi"}'
    outcome = one.run(*body, arguments=f"{TRY}, container_resources=k8s.V1ResourceRequirements({storage})", events=100)
    one.assert_exact(outcome, tries=2)
    assert "was evicted by its node" in one.log


@pytest.mark.soak  # the kubelet takes minutes to notice
@pytest.mark.timeout(900)
@pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])
def test_a_pod_whose_volume_is_filled(one: OneAgent, deferrable: bool) -> None:
    def fill() -> None:
        one.cluster.execute(one.wait_working().metadata.name, FILL_TMP)

    arguments = f"{TRY}, deferrable={deferrable}, poll_interval=1"
    outcome = one.run(*FIRST_TRY_SLOW, arguments=arguments, events=4000, meanwhile=fill)
    one.assert_exact(outcome, tries=2)
    assert 'was evicted by its node: Usage of EmptyDir volume "tmp" exceeds the limit "1Gi"' in one.log


@pytest.mark.soak  # it closes the node to whatever else runs on it
@pytest.mark.parametrize("effect", ["NoSchedule", "NoExecute"])
def test_a_node_that_is_drained(one: OneAgent, effect: str) -> None:
    """The retry's pod waits until there is a node again."""

    def drain() -> None:
        first = one.wait_working()
        with one.cluster.tainted(effect):
            if effect == "NoSchedule":
                one.cluster.evict(first.metadata.name)
            wait_for(lambda: {p.metadata.name for p in one.cluster.pods(one.dag_id)} - {first.metadata.name}, "the retry's pod", 120)

    one.assert_exact(one.run(*FIRST_TRY_SLOW, arguments=TRY, meanwhile=drain), tries=2)
    assert "was taken away" in one.log


@pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])
def test_an_image_that_does_not_exist_fails_soon(one: OneAgent, deferrable: bool) -> None:
    began = time.monotonic()
    outcome = one.run(arguments=f'image="registry.invalid/nothing:1", deferrable={deferrable}', retries=0, events=1)
    assert outcome.states["work"] == ["failed"]
    assert time.monotonic() - began < 90
    assert "its image 'registry.invalid/nothing:1' cannot be pulled" in one.log
    one.cluster.wait_gone(one.dag_id)


def test_a_pod_that_no_node_takes(one: OneAgent) -> None:
    outcome = one.run(arguments='node_selector={"no": "where"}, schedule_timeout_seconds=3', retries=0, events=1)
    assert outcome.states["work"] == ["failed"]
    assert "found no node: 0/1 nodes are available" in one.log
    one.cluster.wait_gone(one.dag_id)


def test_a_secret_that_is_not_there(one: OneAgent) -> None:
    outcome = one.run(arguments='agent_secret="nobody-made-it", startup_timeout_seconds=4', retries=0, events=1)
    assert outcome.states["work"] == ["failed"]
    assert 'cannot be set up (CreateContainerConfigError): secret "nobody-made-it" not found' in one.log
    one.cluster.wait_gone(one.dag_id)


def test_the_agents_own_error_is_the_tasks(one: OneAgent) -> None:
    outcome = one.run("raise ValueError('no more room')", arguments='max_rejected="0"', retries=1, events=3)
    assert outcome.states["work"] == ["failed"]
    assert outcome.tries["work"] == [1], "what a retry cannot mend is not tried again"
    assert "TooManyRejectedError: " in one.log
    one.cluster.wait_gone(one.dag_id)


def _copy(one: OneAgent, **labels: str) -> None:
    """Another live pod like the task's own, as a second attempt would have made it."""
    pod = one.wait_working()
    meta = client.V1ObjectMeta(
        name=f"{pod.metadata.name[:50]}-other", labels={**pod.metadata.labels, **labels}, annotations=pod.metadata.annotations
    )
    pod.spec.node_name = None
    for container in pod.spec.containers:
        for variable in container.env:
            variable.value = "2" if variable.name == "TRY" and not labels else variable.value
    one.cluster.core.create_namespaced_pod(one.cluster.namespace, client.V1Pod(metadata=meta, spec=pod.spec))


def test_two_attempts_alive_at_once(one: OneAgent) -> None:
    outcome = one.run(*FIRST_TRY_SLOW, arguments=TRY, meanwhile=lambda: _copy(one))
    one.assert_exact(outcome, tries=2)
    assert "FencedError" in one.log


def test_a_live_pod_of_older_code_is_not_taken_up_again(one: OneAgent) -> None:
    outcome = one.run(
        *FIRST_TRY_SLOW,
        arguments=f"{TRY}, termination_grace_period=5",
        meanwhile=lambda: _copy(one, **{"factory-agents/fingerprint": "older"}),
    )
    one.assert_exact(outcome, tries=2)
    assert "-other: of an older run of this task" in one.log
