"""Log lines of pods: their own level, and none twice; an API server that doesn't answer is waited for."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.cncf.kubernetes.utils.pod_manager import PodManager
from kubernetes.client import ApiException, CoreV1Api
from kubernetes.config import new_client_from_config_dict
from urllib3.exceptions import MaxRetryError

from airflow_provider_factory.runners.kubernetes.logs import AgentPodManager, _all_succeeded, is_outage, since_seconds
from tests.support.kube_api import kube_api

LINE = '{"time":"2026-01-01T00:00:00.000+00:00","level":"warning","logger":"l","message":"slow","lag":3}'


def manager() -> AgentPodManager:
    return AgentPodManager(kube_client=SimpleNamespace())


def test_a_structured_line_keeps_its_level(caplog: pytest.LogCaptureFixture) -> None:
    pods = manager()
    pods._log = logging.getLogger("pods")  # type: ignore[assignment]  # Airflow's own doesn't reach caplog
    with caplog.at_level(logging.INFO):
        pods._log_message(f"{LINE}\nplain", "base", True, None)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("WARNING", "slow lag=3"), ("INFO", "plain")]
    assert list(pods.last_lines) == ["slow lag=3", "plain"]


def test_lines_that_an_interrupted_connection_brings_again_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = [
        [b"2026-01-01T00:00:05.1Z one\n", b"more of one\n", b"2026-01-01T00:00:05.2Z tw"],
        [b"2026-01-01T00:00:05.1Z one\n", b"more of one\n", b"2026-01-01T00:00:05.2Z two\n", b"2026-01-01T00:00:05.2Z two\n"],
    ]
    monkeypatch.setattr(PodManager, "read_pod_logs", lambda *a, **k: reads.pop(0))
    pods, pod = manager(), SimpleNamespace(metadata=SimpleNamespace(name="p"))
    assert [list(pods.read_pod_logs(pod, "base", timestamps=True)) for _ in range(2)] == [
        [b"2026-01-01T00:00:05.1Z one\n", b"more of one\n", b"2026-01-01T00:00:05.2Z tw"],
        [b"2026-01-01T00:00:05.2Z two\n"],
    ]


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (ApiException(status=404), False),
        (ApiException(status=403), False),
        (ApiException(status=503), True),
        (ApiException(status=429), True),
        (MaxRetryError(None, "u", None), True),  # type: ignore[arg-type]
        (ConnectionRefusedError(), True),
        (ValueError("x"), False),
    ],
)
def test_only_what_may_pass_is_waited_for(error: Exception, outage: bool) -> None:
    assert is_outage(error) is outage


def test_a_pod_is_asked_for_until_the_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [ConnectionRefusedError(), ApiException(status=503), "pod"]

    def read(self: PodManager, pod: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(PodManager, "read_pod", read)
    monkeypatch.setattr("airflow_provider_factory.runners.kubernetes.logs.time.sleep", lambda seconds: None)
    assert manager().read_pod(None) == "pod"  # type: ignore[arg-type, comparison-overlap]


@pytest.mark.parametrize("status", [400, 404])
def test_a_kubelet_that_starts_again_does_not_know_its_pods_yet(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_factory.runners.kubernetes.logs.time.sleep", lambda seconds: None)
    with kube_api() as api:
        api.answer = lambda method, path: status if path.endswith("/log") and api.logs() < 3 else None
        pods = AgentPodManager(kube_client=CoreV1Api(new_client_from_config_dict(api.config)))
        pod: Any = SimpleNamespace(metadata=SimpleNamespace(name="pod", namespace="ns"))
        assert pods.read_pod_logs(pod, "base")


def test_the_log_of_a_pod_that_is_gone_is_not_waited_for() -> None:
    with kube_api() as api:
        api.answer = lambda method, path: 404
        pods = AgentPodManager(kube_client=CoreV1Api(new_client_from_config_dict(api.config)))
        pod: Any = SimpleNamespace(metadata=SimpleNamespace(name="pod", namespace="ns"))
        with pytest.raises(ApiException, match="404"):
            pods.read_pod_logs(pod, "base")
        assert len(api.asked) == 2


def test_what_is_asked_for_reaches_back_to_the_last_line() -> None:
    assert since_seconds("") is None
    then = datetime.now(UTC) - timedelta(seconds=30)
    asked = since_seconds(then.strftime("%Y-%m-%dT%H:%M:%S.123456789Z"))
    assert asked is not None
    assert 31 <= asked <= 35


@pytest.mark.parametrize(
    ("exits", "policy", "succeeded"),
    [
        ([0], "Never", True),
        ([0, 0], "Never", True),
        ([0, None], "Never", False),  # a sidecar still runs
        ([1], "Never", False),  # its phase, and why, are for Kubernetes to say
        ([], "Never", False),
        ([0], "OnFailure", False),
    ],
)
def test_a_pod_has_succeeded_once_all_its_containers_have(exits: list[int | None], policy: str, succeeded: bool) -> None:
    states = [{"terminated": None if code is None else SimpleNamespace(exit_code=code)} for code in exits]
    statuses = [SimpleNamespace(state=SimpleNamespace(**state)) for state in states]
    spec = SimpleNamespace(restart_policy=policy, containers=[object()] * max(1, len(exits)))
    pod: Any = SimpleNamespace(status=SimpleNamespace(container_statuses=statuses), spec=spec)
    assert _all_succeeded(pod) is succeeded
