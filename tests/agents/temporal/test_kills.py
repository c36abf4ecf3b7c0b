"""Workers and servers are killed in the middle of a window, workflows are cancelled: nothing is lost, doubled, or left running."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from factory_agents.protocol import Shard
from factory_agents.temporal.protocol import PipelineRequest
from tests.support.commands import Live
from tests.support.runs import Runs, events
from tests.support.temporal import Pipelines, own_server, stage
from tests.support.waiting import wait_for

DAWDLE = "tests.support.agents:dawdle"
SHARDS = (Shard(0, 2), Shard(1, 2))


@dataclass
class Window:
    """A window of slow events in two shards, done by workers that are disturbed."""

    pipelines: Pipelines
    runs: Runs
    request: PipelineRequest
    events: int

    @classmethod
    def of(cls, pipelines: Pipelines, runs: Runs, number: int, seconds: float, key: str = "w") -> Window:
        raw, marked = runs.topic("raw"), runs.topic("marked")
        runs.produce(raw, events(number, seconds=seconds))
        request = pipelines.request(
            raw,
            stage("mark", DAWDLE, marked, shards=2),
            key=key,
            pipeline=f"{pipelines.prefix}-{key}",
            heartbeat_timeout=2,
            retry_interval=0.5,
            chunk_records=50,
        )
        return cls(pipelines, runs, request, number)

    @property
    def done(self) -> int:
        """How many events are committed."""
        return sum(self.pipelines.position(self.request, "mark", shard) for shard in SHARDS)

    def wait_for_more(self, than: int) -> None:
        id_ = self.request.workflow_id
        wait_for(lambda: self.done > than or self.done == self.events or self.pipelines.is_over(id_), "a further commit, or the end", 180)

    def wait_for_each_shard(self) -> None:
        """Until each shard has committed more than it has now, or all."""
        before = [self.pipelines.position(self.request, "mark", shard) for shard in SHARDS]

        def further() -> bool:
            now = [self.pipelines.position(self.request, "mark", shard) for shard in SHARDS]
            return sum(now) == self.events or all(a > b for a, b in zip(now, before, strict=True))

        wait_for(further, "each shard's next commit", 180)

    def check(self) -> None:
        """Each event once, by the manifests; whatever else is in the topic counts for nobody."""
        manifests = [self.pipelines.result(self.request, "mark", shard).manifest for shard in SHARDS]
        assert sorted(r.id for manifest in manifests for r in self.runs.manifest(manifest)) == list(range(self.events))


def test_a_window_survives_the_death_and_the_sleep_of_its_workers(pipelines: Pipelines, runs: Runs) -> None:
    window = Window.of(pipelines, runs, 1600, 0.005)
    first, second = (pipelines.worker(runner=runner, wait=False) for runner in ("process", "thread"))
    id_ = pipelines.start(window.request)
    window.wait_for_more(0)
    pipelines.worker()
    first.process.kill()
    window.wait_for_more(window.done)
    second.process.send_signal(signal.SIGSTOP)
    window.wait_for_more(window.done)
    second.process.send_signal(signal.SIGCONT)
    assert pipelines.done(id_).stages[0].counts.consumed == 1600
    window.check()


@pytest.mark.parametrize(("roll_outs", "number"), [(1, 1200), pytest.param(10, 12_000, marks=pytest.mark.soak)])
def test_roll_outs_cost_no_attempt(pipelines: Pipelines, runs: Runs, roll_outs: int, number: int) -> None:
    window = Window.of(pipelines, runs, number, 0.005)
    worker = pipelines.worker()
    id_ = pipelines.start(window.request)
    window.wait_for_more(0)
    for nth in range(roll_outs):
        new = pipelines.worker(wait=False)
        assert worker.stop().code == 0
        pipelines.wait_working(new)
        window.wait_for_each_shard()
        assert not pipelines.is_over(id_) or nth == roll_outs - 1, "the window was over before all roll-outs were"
        worker = new
    done = pipelines.done(id_).stages[0]
    assert done.slices == 2 * (1 + roll_outs), "each shard's work was handed over at each"
    assert set(pipelines.attempts(id_)) == {1}
    window.check()
    assert len(runs.everything(window.request.spec.stages[0].output_topic)) == number, "nothing was done twice"


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("runner", ["process", "thread"])
def test_windows_survive_fifty_kills_of_their_workers(pipelines: Pipelines, runs: Runs, runner: str) -> None:
    """SIGKILL, SIGTERM, and SIGSTOP with a SIGCONT once others have gone on; two workers at any time."""
    chance = random.Random(int(os.environ.get("SOAK_SEED", "7")))
    workers, asleep, kills, round_ = [pipelines.worker(runner=runner) for _ in range(2)], list[Live](), 0, 0
    while kills < int(os.environ.get("SOAK_KILLS", "50")):
        round_ += 1
        window = Window.of(pipelines, runs, 4000, 0.01, key=f"w{round_}")
        id_ = pipelines.start(window.request)
        while not pipelines.is_over(id_):
            window.wait_for_more(window.done)
            for one in asleep:
                one.process.send_signal(signal.SIGCONT)
                one.process.send_signal(signal.SIGTERM)
            worker = workers.pop(chance.randrange(2))
            how = chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
            worker.process.send_signal(how)
            asleep = [worker] if how == signal.SIGSTOP else []
            workers.append(pipelines.worker(runner=runner))
            kills += 1
        assert pipelines.done(id_).stages[0].counts.consumed == window.events
        window.check()
    for one in asleep:
        one.process.send_signal(signal.SIGCONT)
    print(f"{kills} kills over {round_} windows of 4,000 events: each event once")


@pytest.mark.parametrize(("runner", "agent"), [("process", DAWDLE), ("process", "tests.support.agents:hang"), ("thread", DAWDLE)])
def test_a_cancelled_workflow_leaves_no_agent_and_what_it_has_done(pipelines: Pipelines, runs: Runs, runner: str, agent: str) -> None:
    """Within five seconds, as the server counts them, of an agent too that hears nothing: its process is killed."""
    raw, marked = runs.topic("raw", partitions=1), runs.topic("marked")
    runs.produce(raw, [*events(100), *events(1, 100, seconds=600)])
    request = pipelines.request(raw, stage("mark", agent, marked), chunk_records=50)
    worker = pipelines.worker(runner=runner)
    id_ = pipelines.start(request)
    wait_for(lambda: pipelines.position(request, "mark") >= 50, "the agent to come to what takes so long")
    pipelines.cancel(id_)
    assert psutil.Process(worker.process.pid).children() == []
    assert worker.process.poll() is None
    asked, gone = (pipelines.time_of(id_, kind) for kind in ("workflow_execution_cancel_requested", "activity_task_canceled"))
    assert gone - asked <= timedelta(seconds=5)
    assert pipelines.position(request, "mark") >= 50


def test_a_worker_that_dies_while_it_plans_costs_moments(pipelines: Pipelines, runs: Runs) -> None:
    """As one that dies in the middle of a slice: not the five minutes that planning may take."""
    raw, marked = runs.topic("raw"), runs.topic("marked")
    runs.produce(raw, events(10))
    request = pipelines.request(raw, stage("mark", output=marked), heartbeat_timeout=2, retry_interval=0.5)
    dying = pipelines.worker(FACTORY_FAILPOINTS="activity.begun=kill@1")
    id_ = pipelines.start(request)
    assert dying.wait(60).code == -signal.SIGKILL
    with pipelines.served():
        assert pipelines.done(id_).stages[0].counts.consumed == 10
    asked, planned = (pipelines.time_of(id_, kind) for kind in ("activity_task_scheduled", "activity_task_completed"))
    assert planned - asked < timedelta(minutes=2)


def test_a_server_that_is_killed_goes_on_from_its_file(pipelines: Pipelines, runs: Runs, tmp_path: Path) -> None:
    with own_server(tmp_path / "server") as server:
        own = Pipelines(server.address, pipelines.bootstrap, pipelines.prefix, tmp_path)
        window = Window.of(own, runs, 800, 0.005)
        own.worker()
        id_ = own.start(window.request)
        window.wait_for_more(0)
        server.kill()
        server.start()
        assert own.done(id_).stages[0].counts.consumed == 800
        window.check()
        own.close()
