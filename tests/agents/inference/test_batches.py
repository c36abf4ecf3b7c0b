"""A provider's batch API: submitted by one attempt and taken by a later one, each question paid for once, each event accounted for."""

from __future__ import annotations

import pytest

from factory_agents.errors import ConfigurationError, FactoryError, UnavailableError
from factory_agents.inference.money import BudgetError
from factory_agents.protocol import AgentResult, AgentRun
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext
from tests.agents.inference.conftest import MakeRun, asked
from tests.support.model_server import BatchServer, ModelServer
from tests.support.runs import Runs

BRIEFLY = {"batch": True, "patience": 0.1}


def done(runs: Runs, run: AgentRun) -> AgentResult:
    return execute(RunContext(runs.config), run)


def test_one_attempt_submits_a_batch_and_a_later_one_takes_its_answers(runs: Runs, infer_run: MakeRun) -> None:
    window, out = runs.filled(40), runs.topic("out")
    with BatchServer() as server:
        run = infer_run(window, out, server, **BRIEFLY, run={"chunk_records": 30})
        for _ in range(2):
            with pytest.raises(UnavailableError, match=r"30 questions are in a batch of model 'm', and it isn't over yet; a retry takes"):
                done(runs, run)
        assert len(server.batches) == 1
        assert not runs.everything(out)
        server.finish()
        server.ready = True  # those of the second chunk
        result = done(runs, run)
        assert len(server.batches) == 2
        assert server.requests == [], "nothing was asked directly"
        assert (result.counts.forwarded, result.counts.asked) == (40, 40) == (40, server.calls)
        assert (result.counts.prompt_tokens, result.counts.completion_tokens) == server.tokens
        again = done(runs, infer_run(window, runs.topic("again"), server, run={"stage": "b"}))  # without the batch API, too
        assert (again.counts.asked, server.calls, len(server.batches)) == (0, 40, 2)
    assert sorted(r.id for r in runs.manifest(result.manifest)) == list(range(40))


def test_a_bad_answer_costs_its_own_event_and_what_a_batch_does_not_answer_is_asked(runs: Runs, infer_run: MakeRun) -> None:
    lines = {"event 3": 400, "event 4": 500, "event 5": None}
    with BatchServer(lambda q: {"label": "purple" if q.endswith("event 2") else "odd"}, ready=True, lines=lines) as server:
        result = done(runs, infer_run(runs.filled(10), runs.topic("out"), server, batch=True, repair=True))
        direct = [request["messages"][0]["content"][-7:] for request in server.requests]
        assert sorted(direct) == ["event 2", "event 4", "event 5"], "the first of them since its answer was wrong"
        assert (result.counts.forwarded, result.counts.asked) == (9, server.calls) == (9, 10)
        assert (result.counts.prompt_tokens, result.counts.completion_tokens) == server.tokens
    letters = {r.id: r.dead_letter["rule"] for r in runs.manifest(result.dead_letters)}
    assert letters == {3: "refused_by_model"}


@pytest.mark.parametrize("lost", ["before", "after"])
def test_whoever_comes_after_a_kill_finds_the_batch_by_its_name(runs: Runs, infer_run: MakeRun, lost: str) -> None:
    """As in a kill: the name is committed, and whether the provider has the batch isn't known."""
    window, out = runs.filled(10), runs.topic("out")
    with BatchServer() as server:
        run = infer_run(window, out, server, **BRIEFLY)
        server.batches["batch_0"] = {"id": "batch_0", "status": "completed", "metadata": {"factory_batch": "another"}}
        server.lost = lost
        with pytest.raises(FactoryError):
            done(runs, run)
        server.finish()
        server.ready = True
        assert done(runs, run).counts.asked == 10
        assert len(server.batches) == 2
        assert max(server.answered.values()) == 1


def test_a_batch_that_the_provider_refuses_fails_the_attempt_and_the_next_one_submits_another(runs: Runs, infer_run: MakeRun) -> None:
    window, out = runs.filled(10), runs.topic("out")
    with BatchServer() as server:
        run = infer_run(window, out, server, **BRIEFLY)
        with pytest.raises(UnavailableError):
            done(runs, run)
        server.finish("failed")
        server.ready = True
        assert done(runs, run).counts.forwarded == 10
        server.ready = False
        other = infer_run(runs.filled(5, name="other"), out, server, batch=True, patience=5, run={"stage": "other"}, revision="2")
        server.ends_as = "failed"
        server.ready = True
        with pytest.raises(ConfigurationError, match=r"the provider does not take batch .*no such model in a batch"):
            done(runs, other)


def test_a_batch_that_would_cost_more_than_is_left_is_not_submitted(runs: Runs, infer_run: MakeRun) -> None:
    with BatchServer() as server:
        run = infer_run(runs.filled(10), runs.topic("out"), server, **BRIEFLY, budget={"window_tokens": 500})
        with pytest.raises(BudgetError, match="the budget for this window's tokens is spent"):
            done(runs, run)
        assert not server.batches


def test_an_endpoint_without_a_batch_api_is_told(runs: Runs, infer_run: MakeRun) -> None:
    window, out = runs.filled(5), runs.topic("out")
    with ModelServer() as server:
        with pytest.raises(ConfigurationError, match="its endpoint has no batch API"):
            done(runs, infer_run(window, out, server, batch=True))
        assert done(runs, infer_run(window, out, server)).counts.asked == 5, "without it the questions are asked"


def test_live_and_over_golden_events_questions_are_asked_directly() -> None:
    with BatchServer() as server:
        assert asked(server, 5, live=True, batch=True).forwarded == len(server.requests) == 5
        assert not server.batches
