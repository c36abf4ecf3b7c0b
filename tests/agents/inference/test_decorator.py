"""A user's own function over a model's answers: everything that ``infer`` promises, and a function's freedom with the result."""

from __future__ import annotations

from typing import Any

import pytest

from factory_agents import Reject
from factory_agents.errors import ConfigurationError
from factory_agents.inference.decorator import model_agent
from factory_agents.protocol import AgentRef, AgentRun
from factory_agents.run import build_transform, execute
from factory_agents.runtime.session import RunContext
from tests.agents.inference.conftest import PROMPT, SCHEMA
from tests.support.model_server import ModelServer
from tests.support.runs import Runs


@model_agent(prompt=PROMPT, output=SCHEMA, model="m", key="label")
def triage(event: dict[str, Any], answer: dict[str, Any], least: int = 0) -> Any:
    if event["event_id"] == 3:
        raise Reject("three is too much", rule="three")
    if event["event_id"] < least:
        return None
    return event | {"label": answer["label"]}


def run_of(runs: Runs, server: ModelServer, name: str = "triage", **params: Any) -> AgentRun:
    agent = AgentRef(f"tests.agents.inference.test_decorator:{name}")
    return runs.run(runs.filled(20), runs.topic("out"), agent=agent, params={"endpoint": server.url, **params})


def test_a_function_sees_the_event_and_the_checked_answer(runs: Runs) -> None:
    with ModelServer() as server:
        run = run_of(runs, server, least=2)
        result = execute(RunContext(runs.config), run)
        assert (result.counts.forwarded, result.counts.filtered, result.counts.rejected, result.counts.asked) == (17, 2, 1, 20)
        assert (result.agent, result.counts.prompt_tokens) == ("triage", server.tokens[0])
        found = runs.manifest(result.manifest)
        assert all(r.event == {"event_id": r.id, "text": f"event {r.id}", "label": r.event["label"]} for r in found)
        assert {r.key for r in found} <= {b"even", b"odd"}
        assert runs.manifest(result.dead_letters)[0].dead_letter["rule"] == "three"
        assert run.params["least"] == 2


def test_what_was_answered_is_not_asked_again_whatever_the_function_makes_of_it(runs: Runs) -> None:
    with ModelServer() as server:
        window = runs.filled(20)
        for n, least in enumerate((0, 5)):
            agent = AgentRef("tests.agents.inference.test_decorator:triage")
            run = runs.run(window, runs.topic(f"out{n}"), agent=agent, stage=f"s{n}", params={"endpoint": server.url, "least": least})
            execute(RunContext(runs.config), run)
        assert server.calls == 20


def test_where_data_and_keys_go_is_the_authors_alone(runs: Runs) -> None:
    run = AgentRun("p", "s", AgentRef("tests.agents.inference.test_decorator:triage"), name="x", untrusted=("endpoint",))
    with pytest.raises(ConfigurationError, match="endpoint: it comes from a parameter of the run"):
        build_transform(run.agent, {"endpoint": "http://evil.example/v1"}, run)


def test_a_parameter_that_nobody_takes_is_named(runs: Runs) -> None:
    with pytest.raises(ConfigurationError, match=r"agent 'triage': .*'leest'"):
        build_transform(AgentRef("tests.agents.inference.test_decorator:triage"), {"leest": 1}, None)


def test_it_is_no_function_for_enrich() -> None:
    with pytest.raises(ConfigurationError, match="asks a model: name it as the stage's agent itself"):
        build_transform(AgentRef("enrich"), {"function": "tests.agents.inference.test_decorator:triage"}, None)


def test_the_function_can_be_called_by_a_unit_test() -> None:
    assert triage({"event_id": 1}, {"label": "odd"}) == {"event_id": 1, "label": "odd"}
