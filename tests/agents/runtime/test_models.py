"""Models without an API: loaded once a process, asked in batches of lists, NumPy arrays or Arrow tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from factory_agents.errors import AgentError
from factory_agents.protocol import AgentRef
from factory_agents.runtime.agents import AgentFunction, agent
from factory_agents.runtime.loading import load_agent_ref
from factory_agents.runtime.models import with_columns
from tests.support.runs import Runs


@pytest.fixture(scope="module")
def classifier() -> Callable[[], Any]:
    """Loads a small classifier, trained here; ``calls`` counts how often."""

    def load() -> Any:
        from sklearn.linear_model import LogisticRegression

        load.calls += 1  # type: ignore[attr-defined]
        return LogisticRegression().fit([[0], [1], [8], [9]], ["small", "small", "large", "large"])

    load.calls = 0  # type: ignore[attr-defined]
    return load


def forms(load: Callable[[], Any]) -> Iterator[AgentFunction]:
    @agent(load=load, batch=True)
    def lists(events: list[dict[str, Any]], model: Any) -> list[dict[str, Any]]:
        sizes = model.predict([[event["event_id"]] for event in events])
        return [event | {"size": str(size)} for event, size in zip(events, sizes, strict=True)]

    @agent(load=load, batch="numpy")
    def arrays(columns: Any, model: Any) -> dict[str, Any]:
        return {"size": model.predict(columns["event_id"].reshape(-1, 1))}

    @agent(load=load, batch="arrow")
    def tables(table: Any, model: Any) -> dict[str, Any]:
        return {"size": model.predict([[n.as_py()] for n in table["event_id"]])}

    @agent(load=load)
    def one(event: dict[str, Any], model: Any) -> dict[str, Any]:
        return event | {"size": str(model.predict([[event["event_id"]]])[0])}

    yield from (lists, arrays, tables, one)


def test_it_is_loaded_once_and_asked_in_whichever_form(runs: Runs, classifier: Any) -> None:
    window = runs.filled(10)
    for function in forms(classifier):
        result = runs.transform(runs.run(window, runs.topic("out")), function.bind({}))
        found = {r.id: r.event["size"] for r in runs.manifest(result.manifest)}
        assert found == {n: "small" if n < 5 else "large" for n in range(10)}, function.name
    assert classifier.calls == 1


def test_what_goes_wrong_while_it_is_loaded_rejects_no_event(runs: Runs) -> None:
    def load() -> Any:
        raise OSError("no such model")

    @agent(load=load)
    def one(event: dict[str, Any], model: Any) -> dict[str, Any]:
        return event

    with pytest.raises(AgentError, match="load, which loads what the agent needs, raised OSError: no such model"):
        runs.transform(runs.run(runs.filled(3), runs.topic("out")), one.bind({}))


def test_columns_of_another_length_are_an_error_and_no_events() -> None:
    short = with_columns(lambda columns: {"size": [1]}, "numpy", "short")
    with pytest.raises(AgentError, match="agent 'short': a batch of 3 events must give 3 of 'size', got 1"):
        short([{"n": 1}, {"n": 2}, {}])


def test_a_version_in_the_reference_changes_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = agent(concurrency=4, load=dict)(lambda event, model: event)
    monkeypatch.setattr("tests.support.agents.slow", slow, raising=False)
    found = load_agent_ref(AgentRef("tests.support.agents:slow", version="9"))
    assert (found.version, found.concurrency, found.load) == ("9", 4, dict)


def test_a_column_that_is_given_back_is_what_it_was() -> None:
    for numbers in ([9007199254740993, 0.5], [2**63, -1], [True, False], [1, 2.5], [-(2**63)]):
        events = [{"n": number} for number in numbers]
        (*given,) = with_columns(dict, "numpy", "same")([dict(event) for event in events])
        assert [(type(event["n"]), event["n"]) for event in given] == [(type(number), number) for number in numbers]
    as_floats = with_columns(lambda columns: {"n": columns["n"].astype(float)}, "numpy", "floats")
    assert [type(event["n"]) for event in as_floats([{"n": True}, {"n": False}])] == [float, float]
