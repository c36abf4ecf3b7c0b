"""Stages with outside effects: what a workflow that fails or is cancelled has done is taken back, and done again by the next one."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from factory_agents.errors import ConfigurationError
from factory_agents.temporal.client import PipelineFailedError
from factory_agents.temporal.protocol import Compensation, PipelineRequest, PipelineSpec, StageSpec
from tests.support.effects import charged, journal
from tests.support.runs import Runs, events
from tests.support.temporal import Pipelines, own_server, stage
from tests.support.waiting import wait_for

ALL = dict.fromkeys(range(40), 1)


def charging(name: str, path: Path, output: str, *, undo: str = "refund", **more: Any) -> StageSpec:
    """A stage that charges for each event, and takes it back."""
    params = {"path": str(path)}
    compensate = Compensation(agent=f"tests.support.effects:{undo}", params=params)
    return stage(name, "tests.support.effects:charge", output, params=params, compensate=compensate, **more)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return tmp_path / "first"


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return tmp_path / "second"


def filled(runs: Runs) -> tuple[str, str, str]:
    raw, one, two = (runs.topic(name) for name in ("raw", "one", "two"))
    runs.produce(raw, events(40))
    return raw, one, two


def test_what_was_done_is_taken_back_and_the_next_workflow_does_it_again(
    pipelines: Pipelines, runs: Runs, first: Path, second: Path
) -> None:
    raw, one, two = filled(runs)
    last = f"{pipelines.prefix}.three"
    request = pipelines.request(raw, charging("a", first, one, shards=2), charging("b", second, two), stage("c", output=last))
    with pipelines.served():
        with pytest.raises(PipelineFailedError, match="three"):
            pipelines.run(request)
        assert charged(first) == charged(second) == {}
        assert [len(journal(path)) for path in (first, second)] == [80, 80]
        runs.topic("three")
        done = pipelines.run(request, again=True)
        assert [(s.stage, s.reused) for s in done.stages] == [("a", 0), ("b", 0), ("c", 0)]
        assert charged(first) == charged(second) == ALL
        assert pipelines.run(request) == done  # nothing is charged again
        assert [len(journal(path)) for path in (first, second)] == [120, 120]


def test_a_window_that_fails_twice_is_taken_back_twice(pipelines: Pipelines, runs: Runs, first: Path) -> None:
    raw, one, _ = filled(runs)
    request = pipelines.request(raw, charging("a", first, one), stage("c", output="no-such-topic"))
    with pipelines.served():
        for again in (False, True):
            with pytest.raises(PipelineFailedError, match="no-such-topic"):
                pipelines.run(request, again=again)
            assert charged(first) == {}
    assert len(journal(first)) == 160


def test_a_cancelled_workflow_takes_back_what_it_had_begun(pipelines: Pipelines, runs: Runs, first: Path) -> None:
    raw, one, two = filled(runs)
    request = pipelines.request(raw, charging("a", first, one), stage("slow", "tests.support.agents:dawdle", two))
    runs.produce(raw, events(40, seconds=600))
    with pipelines.served():
        id_ = pipelines.start(request)
        wait_for(lambda: len(charged(first)) == 40, "the first stage to charge")
        wait_for(lambda: "slow" in str(pipelines.progress(id_)), "the first stage to end")
        assert charged(first) == ALL
        pipelines.cancel(id_)
        assert charged(first) == {}
        with pytest.raises(PipelineFailedError, match="cancelled"):
            pipelines.done(id_)


def test_a_compensation_that_fails_is_named_and_stops_none_of_the_others(
    pipelines: Pipelines, runs: Runs, first: Path, second: Path
) -> None:
    raw, one, two = filled(runs)
    stages = charging("a", first, one), charging("b", second, two, undo="refund_not"), stage("c", output="no-such-topic")
    with pipelines.served(), pytest.raises(PipelineFailedError) as raised:
        pipelines.run(pipelines.request(raw, *stages, retry_interval=0.1))
    assert str(raised.value).count("CompensationFailed: not everything was taken back: b.undo: UnavailableError: ") == 1
    assert "no-such-topic" in str(raised.value)
    assert charged(first) == {}
    assert charged(second) == ALL


def test_workers_that_die_meanwhile_take_back_all_of_it(pipelines: Pipelines, runs: Runs, first: Path) -> None:
    raw, one, _ = filled(runs)
    request = pipelines.request(
        raw, charging("a", first, one), stage("c", output="no-such-topic"), heartbeat_timeout=2, retry_interval=0.2, chunk_records=5
    )
    dying = pipelines.worker(runner="thread")
    id_ = pipelines.start(request)
    wait_for(lambda: any(line.startswith("-") for line in journal(first)) or dying.process.poll() is not None, "the refunds to begin")
    dying.process.send_signal(signal.SIGKILL)
    pipelines.worker(runner="thread")
    wait_for(lambda: pipelines.is_over(id_), "the workflow to end", 60)
    assert charged(first) == {}


def test_a_window_that_outgrows_a_history_is_gone_on_with_and_taken_back_as_any_other(
    pipelines: Pipelines, runs: Runs, tmp_path: Path, first: Path
) -> None:
    """The server ends a workflow of 51,200 events: long before, another one of its id goes on with an empty history."""
    raw, one, two = filled(runs)
    runs.produce(raw, events(80, 40, seconds=0.04))
    slow = stage("slow", "tests.support.agents:dawdle", two, shards=2)
    with own_server(tmp_path / "server", "--dynamic-config-value", "limit.historyCount.suggestContinueAsNew=25") as server:
        own = Pipelines(server.address, pipelines.bootstrap, pipelines.prefix, tmp_path)
        request = own.request(raw, charging("a", first, one), slow, stage("c", output="no-such-topic"), timeout=2)
        with own.served(), pytest.raises(PipelineFailedError, match="no-such-topic"):
            own.run(request)
        assert own.runs_of(request.workflow_id) >= 2
    assert sorted(r.id for r in runs.everything(two)) == list(range(120))
    assert charged(first) == {}
    assert len(journal(first)) == 240


def test_what_cannot_be_taken_back_is_refused_at_once() -> None:
    nothing = Compensation(agent="a:b")
    with pytest.raises(ConfigurationError, match="ingest has no input"):
        StageSpec(name="in", agent="ingest", compensate=nothing)
    twice = (StageSpec(name="a", agent="a:b", output_topic="o", compensate=nothing), StageSpec(name="a.undo", agent="a:b"))
    with pytest.raises(ConfigurationError, match=r"each stage needs a name of its own, got a, a\.undo, a\.undo"):
        PipelineRequest(PipelineSpec(pipeline="p", topic="t", stages=twice), key="w")
