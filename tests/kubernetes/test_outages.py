"""The cluster's own parts fail: the API server for a while, the node's agent."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.kubernetes.conftest import OneAgent
from tests.kubernetes.dags import FIRST_TRY_SLOW, TRY
from tests.support.cluster import KUBECONFIG, RESTART_KUBELET
from tests.support.proxy import through_proxy

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])
def test_an_api_server_that_is_away_for_half_a_minute(
    one: OneAgent, deferrable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, kubeconfig = through_proxy(Path(KUBECONFIG), tmp_path)
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", one.cluster.connection.replace(KUBECONFIG, str(kubeconfig)))

    def outage() -> None:
        one.wait_working()
        proxy.cut()
        time.sleep(30)  # how long it is away is what is tested
        proxy.mend()

    try:
        outcome = one.run(*FIRST_TRY_SLOW, arguments=f"{TRY}, deferrable={deferrable}, poll_interval=1", events=400, meanwhile=outage)
    finally:
        proxy.close()
    one.assert_exact(outcome)
    assert one.log.count("done reused=False") == 1, "no line twice"


@pytest.mark.skipif(not RESTART_KUBELET, reason="nobody says how to restart the kubelet: FACTORY_TEST_RESTART_KUBELET")
def test_a_kubelet_that_is_restarted(one: OneAgent) -> None:
    def restart() -> None:
        one.wait_working()
        subprocess.run(RESTART_KUBELET, shell=True, check=True, capture_output=True, executable="/bin/bash")

    one.assert_exact(one.run(*FIRST_TRY_SLOW, arguments=TRY, events=200, meanwhile=restart))
