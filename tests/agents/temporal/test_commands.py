"""``factory temporal``: what it prints, how it ends, one line for what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from temporalio.client import Client

from factory_agents import console
from factory_agents.cli import app
from factory_agents.commands import invoke
from factory_agents.temporal import client as clients
from factory_agents.temporal import commands
from factory_agents.temporal.protocol import PipelineDone
from tests.support.commands import Command
from tests.support.runs import Runs, events
from tests.support.temporal import Pipelines, stage
from tests.support.waiting import wait_for

PIPELINE = """
pipeline: {pipeline}
topic: {raw}
prefix: {prefix}
task_queue: {queue}
stages:
  - name: mark
    agent: tests.support.agents:mark
    output_topic: {marked}
"""


def written(pipelines: Pipelines, raw: str, marked: str) -> None:
    """A pipeline's file where commands run."""
    name = pipelines.prefix
    (pipelines.factory.cwd / "p.yaml").write_text(PIPELINE.format(pipeline=name, raw=raw, prefix=name, queue=name, marked=marked))


def test_a_pipeline_is_started_looked_at_and_started_again(pipelines: Pipelines, runs: Runs) -> None:
    raw, marked = runs.topic("raw"), runs.topic("marked")
    runs.produce(raw, events(100))
    written(pipelines, raw, marked)
    factory = pipelines.factory
    with pipelines.served():
        done = factory.ok("temporal", "start", "p.yaml", "--key", "w", "--wait").data
    assert done["window"] == "w"
    assert [(s["stage"], s["counts"]["consumed"], s["topic"]) for s in done["stages"]] == [("mark", 100, marked)]
    id_ = factory.ok("temporal", "start", "p.yaml", "--key", "w").data["workflow_id"]
    assert id_ == f"{pipelines.prefix}/w"
    with pipelines.served():
        assert factory.ok("temporal", "progress", id_).data["stages"] == done["stages"]
    gone = factory("temporal", "cancel", id_)
    assert (gone.code, gone.error) == (1, f"workflow {id_} had finished before: nothing was cancelled")


def test_a_failure_is_its_one_line(pipelines: Pipelines, runs: Runs) -> None:
    raw = runs.topic("raw")
    runs.produce(raw, events(10))
    written(pipelines, raw, "no-such-topic")
    with pipelines.served():
        failed = pipelines.factory("temporal", "start", "p.yaml", "--key", "w", "--wait")
    assert failed.code == 1
    assert failed.error.startswith(f"workflow {pipelines.prefix}/w: ConfigurationError: ")
    assert "no-such-topic" in failed.error


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the command says in one line, in this process, where neither broker nor server is to be reached."""
    (tmp_path / "p.yaml").write_text(PIPELINE.format(pipeline="p", raw="r", prefix="f", queue="q", marked="m"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FACTORY_INCLUDE", str(tmp_path))

    def told(*arguments: str, address: str = "127.0.0.1:1") -> str:
        monkeypatch.setenv("TEMPORAL_ADDRESS", address)
        monkeypatch.setattr(sys, "argv", ["factory", "temporal", *arguments])
        assert invoke(app, "factory") in (1, 75)
        (line,) = capfd.readouterr().err.splitlines()
        return line

    return told


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (("start", "no.yaml", "--key", "w"), "pipeline file 'no.yaml': no such file"),
        (("start", "p.yaml"), "expected --since and --until, the window's interval, or --key"),
        (("start", "p.yaml", "--since", "2026-11-01"), "expected --since and --until"),
        (("start", "p.yaml", "--key", "w", "--since", "2026-11-01"), "--key names a window without an interval"),
        (("start", "p.yaml", "--since", "2026-11-02", "--until", "2026-11-01"), "not after its start"),
        (("start", "p.yaml", "--key", "a|b"), "key: expected a printable name without '|', got 'a|b'"),
        (("start", "p.yaml", "--key", "collector"), "key: 'collector' is the name of another workflow"),
        (("progress", "p/w"), "Temporal at 127.0.0.1:1 doesn't answer"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(refused: Callable[..., str], arguments: tuple[str, ...], wrong: str) -> None:
    assert wrong in refused(*arguments)


@pytest.mark.slow
def test_a_worker_without_kafka_says_so(offline: Command) -> None:
    failed = offline("temporal", "worker", KAFKA_BOOTSTRAP="", TEMPORAL_ADDRESS="127.0.0.1:1")
    assert failed.code == 1
    assert failed.error.startswith("Kafka: no broker named; set KAFKA_BOOTSTRAP")


@pytest.mark.parametrize("address", ["http://localhost:7233", "x y", "localhost:99999"])
def test_an_address_that_is_none_is_one_line(refused: Callable[..., str], address: str) -> None:
    assert "Temporal's address: expected host:port in TEMPORAL_ADDRESS" in refused("progress", "p/w", address=address)


def test_without_the_extra_it_says_which_one(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "temporalio", None)
    assert "factory temporal needs Temporal's SDK: pip install 'factory-agents[temporal]'" in refused("progress", "p/w")


class NotedError(Exception):
    """Somebody was told something."""


def test_stages_read_by_workers_of_their_own_queue_and_who_waits_for_none_is_told(
    pipelines: Pipelines, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def note(text: str) -> None:
        raise NotedError(text)

    async def waited(client: Client) -> PipelineDone:
        done: PipelineDone = await commands._waited(client, clients.handle_of(client, id_), request.spec)
        return done

    monkeypatch.setattr(commands, "_PATIENCE", 0.01)
    monkeypatch.setattr(console, "note", note)
    raw, marked = runs.topic("raw"), runs.topic("marked")
    runs.produce(raw, events(100))
    other = Pipelines(pipelines.address, pipelines.bootstrap, f"{pipelines.prefix}-gpu", pipelines.factory.cwd)
    request = pipelines.request(raw, stage("mark", output=marked, task_queue=other.prefix))
    with pipelines.served():
        id_ = pipelines.start(request)
        wait_for(lambda: pipelines.ask(lambda client: clients.waited_for(client, id_)) == {other.prefix}, "it to wait for a worker")
        with pytest.raises(NotedError, match=f"^no worker takes tasks of queue '{other.prefix}'"):
            pipelines.ask(waited)
        with other.served():
            assert pipelines.done(id_).stages[0].counts.consumed == 100
    queues = {e.activity_task_scheduled_event_attributes.task_queue.name for e in pipelines.history(id_)} - {""}
    assert queues == {pipelines.prefix, other.prefix}


def test_a_cancellation_that_no_worker_takes_names_the_queue(pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch) -> None:
    def note(text: str) -> None:
        raise NotedError(text)

    monkeypatch.setattr(commands, "_PATIENCE", 0.5)
    monkeypatch.setattr(console, "note", note)
    monkeypatch.setenv("TEMPORAL_ADDRESS", pipelines.address)
    id_ = pipelines.start(pipelines.request("raw", stage("mark")))
    with pytest.raises(NotedError, match=f"^no worker takes tasks of queue '{pipelines.prefix}'"):
        commands.cancel(id_)
    with pipelines.served():
        wait_for(lambda: pipelines.is_over(id_), "it to be cancelled")
