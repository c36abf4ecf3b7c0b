"""When traces are written, and that nobody waits for those who take them."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from factory_agents.telemetry import Subject, spans, tracing
from factory_agents.telemetry.spans import _WarnsOnce
from factory_agents.telemetry.tracing import handed_on
from tests.support.otlp import Collector

SUBJECT = Subject("p", "enrich", "a", "1", "w", "0of1")
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": NOWHERE}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp_proto_http", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE}, False),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": NOWHERE}, False),
    ],
)
def test_the_variables_of_opentelemetry_say_whether_there_are_traces(
    environ: dict[str, str], wanted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with tracing("factory-agent", environ) as traces:
        assert (traces is not None) == wanted
    assert not caplog.records


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: expected otlp or none, got 'zipkin'"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "user:secret@localhost:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT: expected http:// or https://"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "grpc://h:4317"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: expected http:// or https://"),
    ],
)
def test_what_cannot_be_done_is_one_warning_and_no_failure(environ: dict[str, str], says: str, caplog: pytest.LogCaptureFixture) -> None:
    with tracing("factory-agent", environ) as traces:
        assert traces is None
    (record,) = caplog.records
    assert says in record.getMessage()
    assert "secret" not in record.getMessage()


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "no traces: OpenTelemetry's settings (OTEL_…) can't be used: ValueError: OTEL_SPAN_ATTRIBUTE"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "no traces: OpenTelemetry's settings (OTEL_…) can't be used: ValueError: max_export_batch_size"),
        ("OTEL_TRACES_SAMPLER", "Couldn't recognize sampler 99999"),
        ("OTEL_RESOURCE_ATTRIBUTES", "Invalid key value resource attribute pair 99999"),
    ],
)
def test_a_setting_that_opentelemetry_does_not_take_is_told_and_the_work_goes_on(variable: str, says: str) -> None:
    """In a process of its own: some are read when the SDK is imported."""
    code = (
        "import logging; logging.basicConfig(format='%(message)s')\n"
        "from factory_agents.telemetry import tracing\n"
        "with tracing('x'): pass\n"
        "logging.getLogger('opentelemetry.sdk.other').warning('still heard')"
    )
    environ = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE, variable: "99999"}
    if "COUNT_LIMIT" in variable:
        environ[variable] = "many"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    told, heard = done.stderr.splitlines()
    assert told.startswith(says)
    assert heard == "still heard"


@pytest.mark.parametrize("rate", ["fast", "-1", "nan", "inf"])
def test_a_rate_that_is_none_is_told_of(rate: str, caplog: pytest.LogCaptureFixture) -> None:
    with tracing("factory-agent", {"OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE, "FACTORY_TRACE_RATE": rate}) as traces:
        assert traces is not None
        assert traces.rate == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"FACTORY_TRACE_RATE: expected events a second (a number, 0 or more), got {rate!r}; it is 1"
    ]


def test_without_the_extra_a_warning_names_it(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "factory_agents.telemetry.spans", raising=False)
    with tracing("factory-agent", {"OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE}) as traces:
        assert traces is None
    assert "pip install 'factory-agents[tracing]'" in caplog.text


def test_nothing_is_imported_where_there_are_none() -> None:
    code = (
        "import sys, factory_agents.run, factory_agents.launch, factory_agents.cli\n"
        "from factory_agents.telemetry import tracing\n"
        "with tracing('x', {}) as traces: assert traces is None\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_service_has_a_name_unless_it_is_given_one(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in collector.environment.items():
        monkeypatch.setenv(name, value)
    for given, service in (("", "factory-agent"), ("clicks", "clicks")):
        monkeypatch.setenv("OTEL_SERVICE_NAME", given)
        with tracing("factory-agent") as traces:
            assert traces is not None
            with traces.run(SUBJECT):
                pass
        assert collector.spans[-1].service == service


@pytest.fixture(params=["refuses", "hangs", "is never reached", "is away", "is overloaded", "sends on"])
def down(request: pytest.FixtureRequest, collector: Collector) -> Iterator[str]:
    """The address of a collector that takes nothing."""
    if request.param == "refuses":
        collector.answer = 401
    elif request.param == "is overloaded":
        collector.answer = 503
    elif request.param == "sends on":  # to itself, for ever
        collector.answer = 307
    elif request.param == "hangs":
        collector.hang = threading.Event()
    elif request.param == "is away":
        yield NOWHERE
        return
    else:
        with socket.socket() as deaf:  # a connection is made by the system, and nobody answers
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(1)
            yield f"http://user:secret@127.0.0.1:{deaf.getsockname()[1]}"
        return
    yield collector.url


@pytest.mark.slow
def test_a_collector_that_takes_nothing_holds_nobody_up_and_is_one_warning(
    down: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", down)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")  # for as long it would be waited for
    with caplog.at_level(logging.WARNING):
        with tracing("factory-agent") as traces:
            assert traces is not None
            for _ in range(3000):  # more than may wait
                with traces.run(SUBJECT):
                    pass
            ends = time.monotonic()
        took = time.monotonic() - ends
    assert took < 20  # 1.7 s
    (record,) = caplog.records
    assert record.getMessage().startswith("traces do not reach http://127.0.0.1:")
    assert "secret" not in caplog.text


@pytest.mark.slow
def test_what_sends_them_is_waited_for_while_it_is_loaded(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that takes longer than is left at the end, as on a pod's tenth of a core."""
    go, load = threading.Event(), _WarnsOnce._load

    def late(of: _WarnsOnce) -> None:
        go.wait(30)
        load(of)

    monkeypatch.setattr(_WarnsOnce, "_load", late)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    with tracing("factory-agent") as traces:
        assert traces is not None
        with traces.run(SUBJECT):
            pass
        threading.Timer(spans._EXIT_SECONDS + 0.3, go.set).start()
    assert [span.name for span in collector.spans] == ["enrich"]


def test_of_the_settings_an_agent_elsewhere_gets_those_with_secrets_apart() -> None:
    plain, secret = handed_on(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector:4318",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://user:word@collector/v1/traces",
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=word",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "api-key=word",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": "/etc/ssl/ca.pem",
            "OTEL_EXPORTER_OTLP_CLIENT_KEY": "/etc/ssl/key.pem",
            "OTEL_TRACES_SAMPLER": "parentbased_always_on",
            "FACTORY_TRACE_RATE": "5",
            "FACTORY_PREFIX": "factory",
            "OTEL_SERVICE_NAME": "airflow-worker",
            "OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=worker-0",
            "OTEL_PROPAGATORS": "",
            "PATH": "/bin",
        }
    )
    assert set(plain) == {"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER", "FACTORY_TRACE_RATE"}
    assert set(secret) == {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"}
    assert "word" not in json.dumps(plain)
