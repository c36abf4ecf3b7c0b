"""Workers, starters and the server are killed, stopped and put to sleep: each event starts a window that is done once."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from factory_agents.protocol import Interval, Shard
from factory_agents.run import EXIT_RETRY
from factory_agents.temporal.pipelines import read_pipeline
from factory_agents.temporal.protocol import PipelineRequest, PipelineSpec
from tests.support.commands import Live
from tests.support.runs import Runs, events
from tests.support.temporal import Pipelines, Server, own_server
from tests.support.waiting import wait_for

PIPELINE = """
pipeline: {name}
topic: {raw}
prefix: {name}
task_queue: {name}
heartbeat_timeout: 2
retry_interval: 0.5
chunk_records: 25
stages:
  - {{name: mark, agent: "tests.support.agents:dawdle", output_topic: {marked}, shards: 2}}
"""
START = datetime(2026, 11, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
SHARDS = (Shard(0, 2), Shard(1, 2))
EACH = 500
"""Events in a window."""


class Storm:
    """Two workers, two starters and a server, of which one is hit at a time; whatever died is replaced at once."""

    def __init__(self, pipelines: Pipelines, server: Server, runs: Runs, runner: str, chance: random.Random) -> None:
        self.pipelines, self.server, self.runs, self.runner, self.chance = pipelines, server, runs, runner, chance
        self.raw, self.marked = runs.topic("raw", retention_ms=-1), runs.topic("marked")
        self.requests = runs.topic("requests")
        text = PIPELINE.format(name=pipelines.prefix, raw=self.raw, marked=self.marked)
        file = pipelines.factory.cwd / "p.yaml"
        file.write_text(text)
        self.spec: PipelineSpec = read_pipeline(str(file))
        self.asleep: list[Live] = []
        self.hits: list[str] = []
        self.workers = [self._worker(), self._worker()]
        self.starters = [self._starter(), self._starter()]
        self.windows: list[PipelineRequest] = []

    def _worker(self) -> Live:
        return self.pipelines.worker(runner=self.runner, wait=False)

    def _starter(self) -> Live:
        soon = json.dumps({"session.timeout.ms": 6000})  # the group lets a dead member go
        return self.pipelines.factory.start("temporal", "listen", "p.yaml", "--topic", self.requests, KAFKA_CONFIG=soon)

    def ask_for(self, count: int) -> list[PipelineRequest]:
        """Events of so many more hours, and an event that asks for each, every third twice."""
        asked, wanted = [], []
        for hour in range(len(self.windows), len(self.windows) + count):
            start = START + hour * HOUR
            at = int((start + HOUR / 2).timestamp() * 1000)
            self.runs.produce(self.raw, events(EACH, hour * EACH, seconds=0.02), timestamp=at)
            wanted.append(PipelineRequest(self.spec, Interval(start, start + HOUR)))
            window = {"start": start.isoformat(), "end": (start + HOUR).isoformat()}
            asked += [json.dumps({"event_id": hour, "window": window}).encode()] * (2 if hour % 3 == 0 else 1)
        self.windows += wanted
        self.runs.produce(self.requests, asked)
        return wanted

    def ride(self, hits: int) -> None:
        """Some windows, during which somebody is hit each time that more is written, until there were so many hits."""
        windows = self.ask_for(6)
        while len(self.hits) < hits and not self.are_over(windows):
            before = self.written
            self._wait(lambda: self.written > before or self.are_over(windows), "more to be written, or the windows to end")  # noqa: B023
            self.hit()
        self._wait(lambda: self.are_over(windows), "the windows to end")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        def met() -> bool:
            self.supervise()
            return condition()

        wait_for(met, what, 300)

    def hit(self) -> None:
        """One of the parts, in one of the ways."""
        self._wake()
        part = self.chance.choice(["worker", "worker", "starter", "starter", "server"])
        how = self.chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
        if part == "server":
            self._hit_server(how)
        else:
            running, make = (self.workers, self._worker) if part == "worker" else (self.starters, self._starter)
            self._hit(running, make, how)
        self.hits.append(f"{part} {how.name}")

    def _hit(self, running: list[Live], make: Callable[[], Live], how: signal.Signals) -> None:
        live = running.pop(self.chance.randrange(2))
        live.process.send_signal(how)
        self.asleep = [live] if how == signal.SIGSTOP else []
        running.append(make())

    def supervise(self) -> None:
        """Start again who found no server and went, as its supervisor does; nothing else may end anybody."""
        for running, make in ((self.workers, self._worker), (self.starters, self._starter)):
            for place, live in enumerate(running):
                if live.process.poll() is not None:
                    assert live.wait().code == EXIT_RETRY, "\n".join(live.lines)
                    running[place] = make()

    def _wake(self) -> None:
        for one in self.asleep:
            one.process.send_signal(signal.SIGCONT)
            one.process.send_signal(signal.SIGTERM)

    def _hit_server(self, how: signal.Signals) -> None:
        assert self.server.process is not None
        if how == signal.SIGSTOP:
            server = psutil.Process(self.server.process.pid)
            server.suspend()
            with suppress(psutil.TimeoutExpired):
                server.wait(5)  # it sleeps meanwhile
            server.resume()
        else:
            self.server.kill(how)
            self.server.start()

    @property
    def written(self) -> int:
        """How much lies in the output: it grows while anybody works."""
        return sum(self.runs.cluster.high_watermark(self.marked, range(4)).values())

    def are_over(self, windows: list[PipelineRequest]) -> bool:
        return all(self.pipelines.exists(w.workflow_id) and self.pipelines.is_over(w.workflow_id) for w in windows)

    def check(self) -> None:
        """Of each window one workflow that succeeded, and each of its events once."""
        for hour, window in enumerate(self.windows):
            assert self.pipelines.done(window.workflow_id).stages[0].counts.consumed == EACH
            manifests = [self.pipelines.result(window, "mark", shard).manifest for shard in SHARDS]
            ids = sorted(r.id for manifest in manifests for r in self.runs.manifest(manifest))
            assert ids == list(range(hour * EACH, (hour + 1) * EACH)), window.window

    def told(self) -> str:
        """Where they are, for whoever looks for the reason of a failure."""
        missing = [w for w in self.windows if not self.pipelines.exists(w.workflow_id)]
        open_ = [w.window for w in self.windows if w not in missing and not self.pipelines.is_over(w.workflow_id)]
        running = (*self.workers, *self.starters)
        logs = [f"{live.process.pid} {live.process.poll()}\n  " + "\n  ".join(live.lines[-8:]) for live in running]
        return "\n".join([f"not over: {open_}", f"not started: {[w.window for w in missing]}", *logs])

    def close(self) -> None:
        for live in (*self.workers, *self.starters, *self.asleep):
            with suppress(ProcessLookupError):
                live.process.send_signal(signal.SIGCONT)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("runner", ["process", "thread"])
def test_each_event_starts_a_window_that_is_done_once_whoever_is_hit(pipelines: Pipelines, runs: Runs, tmp_path: Path, runner: str) -> None:
    seed, hits = int(os.environ.get("SOAK_SEED", "7")), int(os.environ.get("SOAK_KILLS", "50"))
    with own_server(tmp_path / "server") as server:
        own = Pipelines(server.address, pipelines.bootstrap, pipelines.prefix, tmp_path)
        storm = Storm(own, server, runs, runner, random.Random(seed))
        try:
            while len(storm.hits) < hits:
                storm.ride(hits)
            storm.check()
        except BaseException:
            print(storm.told())
            raise
        finally:
            print(f"seed {seed}: {len(storm.hits)} hits over {len(storm.windows)} windows of {EACH} events: {storm.hits}")
            storm.close()
            own.close()
