"""Prometheus and Alertmanager over a sandbox: they see its ledger, with our rules, and end with it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from factory_agents.errors import ConfigurationError
from factory_agents.sandbox import Sandbox, observability
from factory_agents.sandbox.processes import alive
from factory_agents.sandbox.state import load
from tests.support.jaeger import PROGRAM as JAEGER
from tests.support.prometheus import ALERTMANAGER, PROGRAM, Prometheus
from tests.support.runs import ROOT
from tests.support.waiting import wait_for

installed = pytest.mark.skipif(None in (PROGRAM, ALERTMANAGER), reason="apt-get install prometheus prometheus-alertmanager")


@installed
def test_it_watches_the_sandbox_comes_back_and_ends_with_it(own_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if JAEGER is not None:
        monkeypatch.setenv("PATH", f"{Path(JAEGER).parent}{os.pathsep}{os.environ['PATH']}")
    watched = Sandbox(own_sandbox.home, with_observability=True)
    info = watched.up()
    assert info.prometheus_url is not None
    told = (info.jaeger_url is not None, "OTEL_EXPORTER_OTLP_ENDPOINT" in info.env(), bool([*own_sandbox.home.rglob("jaeger.json")]))
    assert told == (JAEGER is not None,) * 3
    prometheus = Prometheus(info.prometheus_url.removeprefix("http://"))
    wait_for(lambda: prometheus.query('factory_metrics_up{part="lag"} == 1'), "figures of the metrics server", 60)
    rules = {rule["name"] for group in prometheus.rules() for rule in group["rules"]}
    assert "KafkaConsumerLagHigh" in rules
    assert prometheus.alertmanagers(), "alerts go to Alertmanager"
    assert watched.up() == info
    assert own_sandbox.up().prometheus_url == info.prometheus_url, "left alone by whoever doesn't ask for it"

    state = load(own_sandbox.home)
    assert state is not None
    assert state.observability is not None
    assert state.observability.metrics is not None
    os.kill(state.observability.metrics.pid, signal.SIGKILL)
    wait_for(lambda: not alive(state.observability.metrics if state.observability else None), "the metrics server to die")
    assert watched.up() == info

    again = load(own_sandbox.home)
    assert again is not None
    assert again.observability is not None
    parts = (again.observability.process, again.observability.alerts, again.observability.metrics)
    assert all(map(alive, parts))
    watched.down()
    assert not any(map(alive, parts))


def test_without_its_program_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"needs prometheus on the PATH.*apt-get install prometheus"):
        observability.start(tmp_path, observability.ObservabilityState(port=1, alerts_port=2, metrics_port=3), "127.0.0.1:1", print)
