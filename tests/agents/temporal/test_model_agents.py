"""An agent over a model as a stage of a workflow: the same answers as anywhere else, the key in the worker alone."""

from __future__ import annotations

import msgspec
import pytest

from tests.agents.inference.conftest import infer_params
from tests.support.model_server import ModelServer
from tests.support.runs import Runs, events
from tests.support.temporal import Pipelines, of_spec, stage


def test_a_model_is_asked_once_about_each_event_whichever_workflow_asks(
    pipelines: Pipelines, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACTORY_MODEL_API_KEY", "sk-secret-123")
    raw, classified, again = runs.topic("raw"), runs.topic("classified"), runs.topic("again")
    runs.produce(raw, events(30))
    with ModelServer() as server, pipelines.served():
        classify = stage("classify", "infer", classified, params=infer_params(server), shards=2)
        request = pipelines.request(raw, classify)
        id_ = pipelines.start(request)
        counts = pipelines.done(id_).stages[0].counts
        assert (counts.forwarded, counts.asked, server.calls) == (30, 30, 30)
        assert (counts.prompt_tokens, counts.completion_tokens) == server.tokens
        other = of_spec(request, pipeline=f"{request.spec.pipeline}.b", stages=(msgspec.structs.replace(classify, output_topic=again),))
        assert pipelines.run(other).stages[0].counts.asked == 0
        assert server.calls == 30
        assert not any(b"sk-secret" in event.SerializeToString() for event in pipelines.history(id_))
    answers = [{r.id: r.event["answer"] for r in runs.everything(topic)} for topic in (classified, again)]
    assert answers[0].keys() == set(range(30))
    assert answers[0] == answers[1]
