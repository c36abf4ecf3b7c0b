"""Kills at any moment: every event is answered once, and nothing that was committed is asked, or paid for, again."""

from __future__ import annotations

import random

import pytest

from factory_agents.inference.answers import current_answers
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext
from tests.agents.inference.conftest import MakeRun
from tests.support.model_server import ModelServer
from tests.support.runs import Runs
from tests.support.waiting import wait_for


@pytest.mark.parametrize(("events", "kills"), [(200, 5), pytest.param(2000, 50, marks=pytest.mark.soak)])
def test_whatever_is_killed_every_event_is_answered_once(runs: Runs, infer_run: MakeRun, events: int, kills: int) -> None:
    window, chance, lost = runs.filled(events), random.Random(18), 0
    with ModelServer(seconds=0.02, limited=0.05, failed=0.02, cut=0.01, hung=0.002) as server:
        run = infer_run(window, runs.topic("out"), server, concurrency=8, timeout=2, repair=True, run={"chunk_records": 50})
        each = events // (kills + 2)
        for _ in range(kills):
            before, after = server.calls, each * chance.uniform(0.5, 1.0)
            attempt = runs.attempt(run)
            wait_for(lambda: server.calls >= before + after or attempt.process.poll() is not None, "some answers", patience=60)  # noqa: B023
            attempt.process.kill()
            attempt.wait()
        result = runs.finished(run)
        calls = server.calls
        lost = calls - result.counts.asked
        again = execute(
            RunContext(runs.config), infer_run(window, runs.topic("out"), server, repair=True, run={"rerun": "redo", "stage": "b"})
        )
        assert server.calls == calls
    assert again.counts.asked == 0
    assert sorted(r.id for r in runs.manifest(result.manifest)) == list(range(events))
    answers = current_answers(runs.config, prefix=runs.prefix)
    assert len(answers) == events
    assert sum(a.calls for a in answers.values()) == result.counts.asked
    assert sum(a.prompt_tokens for a in answers.values()) == result.counts.prompt_tokens
    assert lost <= calls - events  # what was asked twice was lost in a kill
    assert max(server.answered.values()) <= 1 + kills
