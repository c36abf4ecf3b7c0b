"""``factory answers`` and ``factory eval``: forgetting what a model said, and judging agents before they ship."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from factory_agents.cli import app
from factory_agents.evaluation import compare_results
from factory_agents.inference.answers import current_answers
from factory_agents.protocol import encode
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext
from tests.agents.inference.conftest import infer_params
from tests.support.model_server import ModelServer
from tests.support.runs import Runs

Invoke = Callable[..., Any]


@pytest.fixture
def invoke(runs: Runs, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """A command's exit status and its JSON."""

    def run(*arguments: str, kafka: bool = True) -> tuple[int, Any]:
        where = ["--bootstrap", runs.bootstrap] if kafka else []
        status = app([*arguments, *where, "--json"], standalone_mode=False)
        out = capsys.readouterr().out
        return int(status or 0), json.loads(out) if out else None

    return run


def infer(runs: Runs, topic: str, server: ModelServer, **more: Any) -> Any:
    run = runs.run(runs.window(topic), runs.topic("out"), "infer", params=infer_params(server, **more))
    return execute(RunContext(runs.config), msgspec.structs.replace(run, rerun="redo"))


def test_a_persons_answers_are_forgotten_and_asked_again(runs: Runs, invoke: Invoke) -> None:
    topic = runs.topic("in")
    runs.produce(topic, [json.dumps({"event_id": i, "text": f"t {i}", "user": i % 2}).encode() for i in range(6)])
    with ModelServer() as server:
        infer(runs, topic, server, subject="user")
        assert invoke("answers", "forget", "--subject", "1", "--prefix", runs.prefix) == (0, {"forgotten": 3})
        _, listed = invoke("answers", "list", "--prefix", runs.prefix)
        assert len(listed) == 3
        assert invoke("answers", "forget", listed[0]["key"], "--prefix", runs.prefix) == (0, {"forgotten": 1})
        assert len(current_answers(runs.config, prefix=runs.prefix)) == 2
        infer(runs, topic, server, subject="user")
        assert server.calls == 10
    with pytest.raises(Exception, match="no answer has the key 'x'"):
        invoke("answers", "forget", "x", "--prefix", runs.prefix)


def golden_file(folder: Path, server: ModelServer, **more: Any) -> tuple[str, str]:
    events = [
        {"event": {"text": t}, "expected": {"answer": {"label": label}}} for t, label in (("a", "odd"), ("bb", "even"), ("ccc", "odd"))
    ]
    golden, params = folder / "golden.jsonl", folder / "infer.json"
    golden.write_text("\n".join(map(json.dumps, events)))
    params.write_text(json.dumps(infer_params(server, prices={"prompt": 1.0}, **more)))
    return str(golden), str(params)


def by_text(question: str) -> dict[str, str]:
    return {"label": "odd" if len(question.removeprefix("What kind is this? ")) % 2 else "even"}


def test_a_good_prompt_passes_and_a_worse_one_is_stopped(tmp_path: Path, invoke: Invoke) -> None:
    with ModelServer(by_text) as server:
        golden, params = golden_file(tmp_path, server)
        limits = ["--min-accuracy", "answer.label=0.9", "--max-invalid", "0.1"]
        status, found = invoke("eval", "agent", "--golden", golden, "--params-file", params, *limits, kafka=False)
        assert (status, found["broken"]) == (0, [])
        good = found["evaluations"][0]
        assert (good["accuracy"], good["asked"], good["prompt_tokens"]) == (1.0, 3, 60)
        assert good["cost"] == pytest.approx(60 / 1e6)
        assert good["p95"] > 0
    with ModelServer(lambda _: {"label": "odd"}) as server:
        golden, params = golden_file(tmp_path, server)
        status, found = invoke("eval", "agent", "--golden", golden, "--params-file", params, *limits, kafka=False)
        assert (status, found["broken"]) == (1, ["accuracy(answer.label) is 66.7%, below 90.0%"])
        assert found["evaluations"][0]["examples"] == [{"line": 2, "field": "answer.label", "expected": "even", "got": "odd"}]
    with ModelServer(lambda _: {"label": "purple"}) as server:
        golden, params = golden_file(tmp_path, server)
        status, found = invoke("eval", "agent", "--golden", golden, "--params-file", params, *limits, kafka=False)
        assert status == 1
        assert found["evaluations"][0]["rejected"] == {"invalid_output": 3}


def test_any_agent_can_be_judged(tmp_path: Path, invoke: Invoke) -> None:
    golden = tmp_path / "golden.jsonl"
    golden.write_text('{"event": {"event_id": 1}, "expected": {"seen": true}}\n')
    status, found = invoke("eval", "agent", "tests.support.agents:mark", "--golden", str(golden), "--min-accuracy", "1", kafka=False)
    assert (status, found["evaluations"][0]["accuracy"]) == (0, 1.0)


def test_two_prompts_over_one_window_side_by_side(runs: Runs, tmp_path: Path, invoke: Invoke) -> None:
    topic = runs.topic("in")
    runs.produce(topic, [json.dumps({"event_id": i, "text": "x" * i}).encode() for i in range(10)])
    with ModelServer(by_text) as server:
        old = infer(runs, topic, server)
    with ModelServer(lambda _: {"label": "odd"}) as server:
        new = infer(runs, topic, server, revision="2", prices={"prompt": 1.0})
    for name, result in (("old.json", old), ("new.json", new)):
        (tmp_path / name).write_bytes(encode(result))
    status, found = invoke("eval", "compare", str(tmp_path / "old.json"), str(tmp_path / "new.json"))
    assert (status, found["both"], found["fields"]) == (0, 10, {"answer.label": 5})
    assert found["cost"] == [0.0, pytest.approx(200 / 1e6)]
    assert compare_results(runs.config, [old], [old], "event_id").fields == {}
