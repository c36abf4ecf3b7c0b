"""What a worker is told by its environment, and what it keeps from its agents."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys

import grpc  # type: ignore[import-untyped]
import pytest
from temporalio import activity
from temporalio.client import Client
from temporalio.common import VersioningBehavior
from temporalio.testing import ActivityEnvironment

from factory_agents.errors import ConfigurationError, FactoryError, UnavailableError
from factory_agents.temporal.activities import _Pulse
from factory_agents.temporal.client import RefusedError
from factory_agents.temporal.converter import data_converter
from factory_agents.temporal.worker import _deployment, _no_tasks, _refusal
from tests.support.grpc_front import in_front_of
from tests.support.runs import Runs, events
from tests.support.temporal import Pipelines, stage
from tests.support.waiting import wait_for


def test_a_version_has_a_deployment_and_a_build() -> None:
    assert _deployment({}) is None
    config = _deployment({"TEMPORAL_DEPLOYMENT_NAME": "factory", "TEMPORAL_WORKER_BUILD_ID": "1.0"})
    assert config is not None
    assert (config.version.to_canonical_string(), config.default_versioning_behavior) == ("factory.1.0", VersioningBehavior.PINNED)
    with pytest.raises(ConfigurationError, match="go together"):
        _deployment({"TEMPORAL_WORKER_BUILD_ID": "1.0"})


@pytest.mark.slow
def test_a_pulse_goes_on_after_a_beat_that_the_worker_did_not_take() -> None:
    """As when its process slept: a pulse that ended then would hear of no cancellation, and the server of no agent."""
    environment, beats = ActivityEnvironment(), list[object]()

    def beat(*_: object) -> None:
        beats.append(None)
        if len(beats) == 1:
            raise TimeoutError
        environment.cancel()

    @activity.defn(no_thread_cancel_exception=True)
    def heard() -> bool:
        with _Pulse(600) as pulse:
            return pulse.leaving.wait(10)

    environment.on_heartbeat = beat
    assert environment.run(heard)
    assert len(beats) == 2


def test_what_began_on_a_version_ends_on_it(pipelines: Pipelines, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, marked = runs.topic("raw"), runs.topic("marked")
    runs.produce(raw, events(300, seconds=0.01))
    dawdle = stage("mark", "tests.support.agents:dawdle", output=marked)
    long = pipelines.request(raw, dawdle, key="long", timeout=3)
    name = pipelines.prefix
    monkeypatch.setenv("TEMPORAL_DEPLOYMENT_NAME", name)
    monkeypatch.setenv("TEMPORAL_WORKER_BUILD_ID", "1")
    with pipelines.served():
        wait_for(lambda: pipelines.make_current(name, "1"), "version 1 to be known")
        began = pipelines.start(long)
        wait_for(lambda: pipelines.position(long, "mark"), "the first commit")
        monkeypatch.setenv("TEMPORAL_WORKER_BUILD_ID", "2")
        with pipelines.served():
            wait_for(lambda: pipelines.make_current(name, "2"), "version 2 to be known")
            later = pipelines.start(pipelines.request(raw, stage("mark", output=marked), key="later", pipeline=f"{name}-2"))
            pipelines.done(later)
            pipelines.done(began)
    assert (pipelines.version(began), pipelines.version(later)) == ("1", "2")


def test_an_agents_process_is_told_nothing_of_the_server(pipelines: Pipelines, runs: Runs) -> None:
    raw, marked = runs.topic("raw"), runs.topic("marked")
    runs.produce(raw, events(1))
    pipelines.worker(TEMPORAL_NAMESPACE="default", KEPT="yes")
    pipelines.run(pipelines.request(raw, stage("mark", "tests.support.agents:surroundings", output=marked)))
    (record,) = runs.everything(marked)
    assert "KEPT" in record.event["variables"]
    assert not [variable for variable in record.event["variables"] if variable.startswith("TEMPORAL_")]


def test_a_namespace_that_is_not_there_is_one_line_before_it_works(pipelines: Pipelines) -> None:
    failed = pipelines.factory("temporal", "worker", "--task-queue", pipelines.prefix, TEMPORAL_NAMESPACE="defualt")
    assert (failed.code, failed.error) == (1, "namespace 'defualt': Temporal: Namespace defualt is not found.")


def test_a_container_that_is_stopped_before_it_works_ends(pipelines: Pipelines) -> None:
    """Here it waits for a server. A process 1 without a handler is given no SIGTERM: it would take tasks until it is killed."""
    first = (sys.executable, "-c", "import os; os.getpid = lambda: 1\nfrom factory_agents.cli import program; program()")
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        deaf.settimeout(60)
        live = pipelines.factory.start("temporal", "worker", program=first, TEMPORAL_ADDRESS=f"127.0.0.1:{deaf.getsockname()[1]}")
        with deaf.accept()[0]:
            assert live.stop().code == 128 + signal.SIGTERM, live.lines


def test_a_worker_that_the_server_takes_no_more_says_so_and_ends_one_without_an_answer_waits(
    pipelines: Pipelines, caplog: pytest.LogCaptureFixture
) -> None:
    """The SDK asks such a server for tasks without an end, and tells nobody."""
    answers = iter(["UNAVAILABLE", "UNAVAILABLE", "", "PERMISSION_DENIED", "", *["PERMISSION_DENIED"] * 3])

    def refuse(method: str, context: object) -> tuple[grpc.StatusCode, str] | None:
        status = next(answers) if method.endswith("/DescribeNamespace") else ""
        return (getattr(grpc.StatusCode, status), f"{status.lower()}: by hand") if status else None

    async def watched(port: int) -> FactoryError | None:
        client = await Client.connect(f"127.0.0.1:{port}", data_converter=data_converter)
        return await asyncio.wait_for(_refusal(client, asyncio.Event(), 0.05), 60)

    with in_front_of(pipelines.address, refuse) as port, caplog.at_level("INFO"):
        refused = asyncio.run(watched(port))
    assert str(refused) == "namespace 'default': Temporal: permission_denied: by hand"
    assert isinstance(refused, FactoryError)
    assert not refused.retriable
    assert next(answers, None) is None, "it was refused three times in a row"
    told = [record.message for record in caplog.records if record.name == "factory_agents.temporal.worker"]
    assert [message.partition(":")[0] for message in told] == [
        "the server does not answer; trying again",
        "the server answers again",
    ]


@pytest.mark.soak
@pytest.mark.parametrize("status", ["PERMISSION_DENIED", "UNAUTHENTICATED"])
def test_a_worker_that_gets_no_tasks_says_so_and_ends(pipelines: Pipelines, status: str) -> None:
    """Its namespace answers, and only what it polls is refused: the SDK gives up after a minute."""

    def refuse(method: str, context: object) -> tuple[grpc.StatusCode, str] | None:
        return (getattr(grpc.StatusCode, status), "by hand") if "/Poll" in method else None

    with in_front_of(pipelines.address, refuse) as port:
        done = pipelines.worker(TEMPORAL_ADDRESS=f"127.0.0.1:{port}").wait(150)
    assert done.code == 1
    last = json.loads(done.err.splitlines()[-1])
    assert (last["level"], last["message"].partition(" (")[0]) == (
        "error",
        f"asking for tasks of queue {pipelines.prefix!r}: Temporal: by hand",
    )
    assert "Traceback" not in last


@pytest.mark.parametrize(
    ("code", "message", "said"),
    [
        ("PermissionDenied", "no", RefusedError("asking for tasks of queue 'q': Temporal: no (PermissionDenied)")),
        ("Internal", "broken", UnavailableError("asking for tasks of queue 'q': Temporal: broken (Internal)")),
    ],
)
def test_what_the_sdk_gave_up_for_is_one_line(code: str, message: str, said: FactoryError) -> None:
    error = RuntimeError("Workflow worker failed")
    error.__cause__ = RuntimeError(
        f'Poll failure: Unhandled grpc error when polling: Status {{ code: {code}, message: "{message}", metadata: MetadataMap {{ }} }}'
    )
    found = _no_tasks(error, "q")
    assert (type(found), str(found)) == (type(said), str(said))
    assert _no_tasks(RuntimeError("Workflow worker failed"), "q") is None


def test_every_line_of_a_workers_log_is_json_the_sdks_own_too(pipelines: Pipelines) -> None:
    """Its core tells of a server that is gone."""
    with in_front_of(pipelines.address, lambda method, context: None) as port:
        worker = pipelines.worker(TEMPORAL_ADDRESS=f"127.0.0.1:{port}")
    wait_for(lambda: any("temporalio.core" in line for line in worker.lines), "the core to tell of it", 120)
    done = worker.stop()
    assert done.out == ""
    assert all(json.loads(line)["level"] for line in worker.lines)


def test_an_activity_that_fails_is_a_line_of_the_workers_log_and_no_traceback(pipelines: Pipelines, runs: Runs) -> None:
    raw = runs.topic("raw")
    runs.produce(raw, events(10))
    worker = pipelines.worker()
    id_ = pipelines.start(pipelines.request(raw, stage("mark", output="no-such-topic")))
    wait_for(lambda: pipelines.is_over(id_), "it to fail", 120)
    worker.stop()
    told = [json.loads(line) for line in worker.lines]
    (failed,) = [line for line in told if line["logger"] == "temporalio.activity"]
    assert ": ConfigurationError: topic 'no-such-topic': " in failed["message"]
    assert not [line for line in told if "exception" in line]
