"""Kills at any moment: every event is answered once, and nothing that was committed is asked, or paid for, again."""

from __future__ import annotations

import random

import pytest

from factory_agents.inference.answers import answer_key, answers_topic, current_answers
from factory_agents.inference.params import read_asking
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext
from factory_agents.runtime.window import SIDE_SECONDS
from tests.agents.inference.conftest import MakeRun
from tests.support.model_server import ModelServer
from tests.support.runs import Runs
from tests.support.waiting import wait_for

SECONDS, CONCURRENCY = 0.4, 8
RATE = CONCURRENCY / SECONDS


def committed(runs: Runs) -> set[bytes | None]:
    """Keys of answers that are committed, without waiting for what a killed attempt left open."""
    facts = runs.cluster.find(answers_topic(runs.prefix))
    ends = runs.cluster.stable_offset(facts.name, range(facts.partitions)) if facts is not None else {}
    return {r.key for p, end in ends.items() for r in runs.read(answers_topic(runs.prefix), p, 0, end)}


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("events", "kills"), [(80, 2), pytest.param(2000, 50, marks=pytest.mark.soak)])
def test_whatever_is_killed_every_event_is_answered_once(runs: Runs, infer_run: MakeRun, events: int, kills: int) -> None:
    window, chance = runs.filled(events), random.Random(18)
    with ModelServer(seconds=SECONDS, limited=0.05, failed=0.02, cut=0.01, hung=0.002) as server:
        run = infer_run(window, runs.topic("out"), server, concurrency=CONCURRENCY, repair=True, run={"chunk_records": 50})
        question = read_asking(run.params).question
        keys = {f"What kind is this? event {n}": answer_key(question, [f"event {n}"]) for n in range(events)}
        for _ in range(kills):
            settled, asked = committed(runs), len(server.requests)
            until = server.calls + RATE * chance.uniform(0.5, 3.0)
            attempt = runs.attempt(run)
            wait_for(lambda: server.calls >= until or attempt.process.poll() is not None, "some answers", patience=120)  # noqa: B023
            attempt.process.kill()
            attempt.wait()
            again = {request["messages"][0]["content"] for request in server.requests[asked:]}
            assert not {text for text in again if keys.get(text) in settled}, "what is committed was asked again"
        last = runs.attempt(run)
        assert last.wait(600) == 0, last.log
        result = last.result
        calls = server.calls
        redone = execute(
            RunContext(runs.config), infer_run(window, runs.topic("out"), server, repair=True, run={"rerun": "redo", "stage": "b"})
        )
        assert server.calls == calls
    assert redone.counts.asked == 0
    assert sorted(r.id for r in runs.manifest(result.manifest)) == list(range(events))
    answers = current_answers(runs.config, prefix=runs.prefix)
    assert {key.decode() for key in keys.values()} <= answers.keys()
    counts = result.counts
    assert sum(a.calls for a in answers.values()) == counts.asked
    assert sum(a.prompt_tokens for a in answers.values()) == counts.prompt_tokens
    lost = calls - counts.asked  # paid for twice: what a kill caught under way, and what wasn't committed yet
    print(f"{events} events, {kills} kills: {calls} calls answered, {lost} of them lost")
    assert 0 <= lost <= kills * (CONCURRENCY + RATE * (SIDE_SECONDS + 2))
