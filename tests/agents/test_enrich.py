"""The enrich agent: the user's function, and what is looked up before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message

from factory_agents.enrich import build
from factory_agents.errors import AgentError, ConfigurationError, UnavailableError
from factory_agents.protocol import digest
from factory_agents.runtime.agents import Reject

AGENTS = """
from factory_agents.errors import UnavailableError
from factory_agents.runtime.agents import agent

def add(event, by: int = 1):
    event["n"] += by
    return event

@agent(batch=True, version="7")
def total(events):
    return [event | {"total": sum(e["n"] for e in events)} for event in events]

def down(event):
    raise UnavailableError("the service is down")
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module of agents in the working directory, and a reference file."""
    name = f"agents_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(AGENTS)
    (tmp_path / "ref.csv").write_text("k,v\na,1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def process(params: dict[str, Any], *events: object) -> list[Any]:
    transform = build(params)
    try:
        outputs = transform.process([Message(value=json.dumps(e).encode() if not isinstance(e, bytes) else e) for e in events])
        return [json.loads(output) if isinstance(output, bytes) else output for output in outputs]
    finally:
        transform.close()


def test_without_a_function_events_are_marked_enriched() -> None:
    assert process({}, {"event_id": "test-123", "payload": "sample"}) == [{"event_id": "test-123", "payload": "sample", "enriched": True}]


def test_the_function_gets_its_args(module: str) -> None:
    assert process({"function": f"{module}:add"}, {"n": 1}) == [{"n": 2}]
    assert process({"function": f"{module}:add", "args": {"by": "5"}}, {"n": 1}) == [{"n": 6}]


def test_lookups_come_before_the_function(module: str) -> None:
    lookup = {"on": "k", "file": "ref.csv", "types": {"v": "integer"}, "prefix": "n", "fields": ["v"], "on_missing": "reject"}
    params = {"function": f"{module}:total", "lookups": [lookup]}
    first, second, third = process(params, {"k": "a", "n": 1}, {"k": "b", "n": 10}, b"no json")
    assert first == {"k": "a", "n": 1, "nv": 1, "total": 1}
    assert (second.rule, third.rule) == ("lookup", "decode")


def test_lookups_without_a_function_mark_events_too() -> None:
    assert process({"lookups": [{"on": "k", "file": "ref.csv"}]}, {"k": "a"}) == [{"k": "a", "v": "1", "enriched": True}]


def test_a_function_that_raises_rejects_its_event_and_names_itself(module: str) -> None:
    (reject,) = process({"function": f"{module}:add", "lookups": [{"on": "k", "file": "ref.csv"}]}, {"k": "a"})
    assert isinstance(reject, Reject)
    assert reject.reason == "add raised KeyError: 'n'"


@pytest.mark.slow
def test_an_outage_that_the_function_meets_is_no_reject(module: str) -> None:
    for lookups in ([], [{"on": "k", "file": "ref.csv"}]):
        with pytest.raises(UnavailableError, match="the service is down"):
            process({"function": f"{module}:down", "lookups": lookups}, {"k": "a"})


def test_identity_tells_function_args_and_reference_apart(module: str, tmp_path: Path) -> None:
    def identity(**params: Any) -> str:
        transform = build(params)
        assert (transform.name, transform.version, transform.stateful) == ("enrich", "1", False)
        return digest(transform.identity)

    lookups = [{"on": "k", "file": "ref.csv"}]
    before = identity(function=f"{module}:add", lookups=lookups)
    assert before == identity(function=f"{module}:add", lookups=lookups, args={"by": 1})
    others = [
        identity(function=f"{module}:add"),
        identity(function=f"{module}:total", lookups=lookups),
        identity(function=f"{module}:add", lookups=lookups, args={"by": 2}),
        identity(function=f"{module}:add", lookups=[lookups[0] | {"on_missing": "skip"}]),
    ]
    (tmp_path / "ref.csv").write_text("k,v\na,2\n")
    others.append(identity(function=f"{module}:add", lookups=lookups))
    assert len({before, *others}) == 6


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"function": "nowhere_at_all:f"}, AgentError, "no module 'nowhere_at_all'"),
        ({"args": {"by": 1}}, ConfigurationError, "args are given but no function"),
        ({"fnction": "x:y"}, ConfigurationError, "did you mean 'function'"),
        ({"lookups": [{"on": "k"}]}, ConfigurationError, "the lookup on 'k' needs either a file or a table"),
        ({"lookups": [{"on": "k", "file": "none.csv"}]}, ConfigurationError, "none.csv': no such file"),
        ({"lookups": [{"on": "k", "file": "ref.csv", "feilds": []}]}, ConfigurationError, "did you mean 'fields'"),
    ],
)
def test_what_it_does_not_take_is_one_clear_line(params: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        build(params)
    assert "\n" not in str(caught.value)


def test_args_that_the_function_does_not_take_are_one_clear_line(module: str) -> None:
    with pytest.raises(ConfigurationError, match="unknown parameter 'b'; did you mean 'by'"):
        build({"function": f"{module}:add", "args": {"b": 1}})
