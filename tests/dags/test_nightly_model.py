"""The shipped nightly DAG: a small model learns from a large one's answers, is judged, and goes live or is taken back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Producer

from factory_agents.rollouts import Rollouts, Status
from tests.dags.test_classified_changes import connect, kind
from tests.support.model_server import ModelServer
from tests.support.repository import ROOT, Repository
from tests.support.runs import Runs

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(900)]

DAG, AGENT, BROKEN = "nightly_model", "models.kinds:classify", "tests.support.agents:broken"
FIRST, SECOND, THIRD, TOO_LITTLE = "2018-05-18T00:00", "2018-05-30T00:00", "2018-06-16T00:00", "2018-06-12T00:00"
"""The nights after days with 8, 13, 11 and 7 changes."""


class Live:
    """The members of the live versions, as somebody starts them: one as soon as its model is there, which runs ``agent``."""

    def __init__(self, repository: Repository, runs: Runs, models: Path) -> None:
        self.group, self.source, self.out = f"{repository.prefix}.kinds", runs.topic("changes"), runs.topic("kinds")
        self.agent = AGENT
        self._models, self._prefix = models, repository.prefix
        self._environment = repository.environment | {"PYTHONPATH": f"{ROOT / 'dags'}{os.pathsep}{ROOT}"}
        self._rollouts = Rollouts(runs.config, self.group, prefix=repository.prefix)
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._ended = threading.Event()
        self._producer = Producer({"bootstrap.servers": runs.bootstrap, "log_level": 0})
        self._thread = threading.Thread(target=self._run)

    @property
    def status(self) -> Status:
        return self._rollouts.status()

    def _run(self) -> None:
        n = 0
        while not self._ended.wait(0.02):
            self._producer.produce(self.source, b'{"path": "docs/%d.md"}' % n, partition=n % 4)
            self._producer.poll(0)
            n += 1
            for file in self._models.glob("*.joblib"):
                if file.stem not in self._started:
                    self._started[file.stem] = self._start(file.stem)
        self._producer.flush(60)

    def _start(self, version: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "factory_agents.cli", "agent", "run", self.agent, "--group", self.group]
        command += ["--in-topic", self.source, "--out-topic", self.out, "--prefix", self._prefix, "--live-version", version]
        command += ["--param", f"model={version}"] if self.agent == AGENT else []
        with (self._models / f"{version}.log").open("wb") as log:
            return subprocess.Popen(command, env=self._environment, cwd=ROOT, stdout=log, stderr=log)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()
            for process in self._started.values():
                process.terminate()
            for process in self._started.values():
                process.wait(30)


@pytest.fixture
def models(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the models, and what the tasks import."""
    folder = tmp_path / "models"
    folder.mkdir()
    repository.environment["FACTORY_MODELS"] = str(folder)
    monkeypatch.syspath_prepend(str(ROOT / "dags"))
    return folder


@pytest.mark.soak
def test_each_night_a_model_learns_and_goes_live_and_one_that_fails_live_is_taken_back(
    repository: Repository, runs: Runs, models: Path
) -> None:
    live = Live(repository, runs, models)
    conf = {"group": live.group, "hold": 0.5}
    with live.running(), ModelServer(kind) as server:
        connect(repository, server)
        state, printed = repository.run(conf, dag=DAG, hour=FIRST)
        assert state == "success", printed
        assert "sesame-of-the-model" not in printed
        first = live.status
        assert (first.verdict, first.held, first.base) == ("steady", 0, next(models.glob("*.joblib")).stem)

        state, printed = repository.run(conf, dag=DAG, hour=SECOND)
        assert state == "success", printed
        second = live.status
        assert (second.verdict, {p.holder for p in second.partitions}) == ("steady", {second.base})
        assert second.base != first.base

        live.agent = BROKEN
        state, printed = repository.run(conf, dag=DAG, hour=THIRD)
        assert state == "failed"
        assert "raised errors for" in printed, printed
        third = live.status
        assert (third.verdict, third.base, third.new == first.base) == ("rolled back", second.base, False)
    found = [record.event for record in runs.everything(live.out)]
    assert found
    assert {event["kind"] for event in found} <= {"code", "docs", "test"}


def test_a_model_that_is_not_good_enough_does_not_go_live(repository: Repository, models: Path) -> None:
    with ModelServer(kind) as server:
        connect(repository, server)
        state, printed = repository.run({"group": f"{repository.prefix}.kinds"}, dag=DAG, hour=TOO_LITTLE)
    assert state == "failed"
    assert "is not good enough: accuracy(kind) is" in printed, printed
    assert "no version of an agent has run" not in printed, "nothing is taken back that was not brought in"
