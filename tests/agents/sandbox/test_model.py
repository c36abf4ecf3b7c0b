"""The sandbox's language model is a real one: it answers what it is asked, in the form that it is asked for."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from itertools import islice
from urllib.parse import urlsplit

import psutil
import pytest

from factory_agents.errors import FactoryError
from factory_agents.protocol import AgentRef, AgentResult
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext
from factory_agents.sandbox import Sandbox, SandboxInfo
from factory_agents.sandbox.processes import alive
from factory_agents.sandbox.state import load, model_env
from tests.support import shared_sandbox
from tests.support.runs import ROOT, Runs

pytestmark = [pytest.mark.parts, pytest.mark.slow]

PARAMS = {
    "prompt": str(ROOT / "include/prompts/kind.md"),
    "output": str(ROOT / "include/contracts/kind.yaml"),
    "parameters": {"temperature": 0, "max_tokens": 50},
    "concurrency": 4,
}


@pytest.fixture(scope="module")
def model(sandbox: Sandbox) -> SandboxInfo:
    """The shared sandbox, with the model."""
    try:
        return shared_sandbox.with_model().up()
    except FactoryError as error:
        pytest.skip(f"the model: {error}")


def test_20_events_get_20_valid_answers_which_nobody_asks_for_a_second_time(
    model: SandboxInfo, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in model_env(model.model_url or "", model.model_key or "").items():
        monkeypatch.setenv(name, value)
    topic = runs.topic("in", partitions=4)
    with (ROOT / "include/data/changes.jsonl").open("rb") as changes:
        runs.produce(topic, islice(changes, 20))
    window = runs.window(topic)

    def classified(stage: str) -> AgentResult:
        run = runs.run(window, runs.topic(stage), stage=stage, agent=AgentRef("infer"), params=PARAMS)
        return execute(RunContext(runs.config), run)

    first, second = classified("first"), classified("second")
    answers = {r.id: r.event["answer"] for r in runs.manifest(first.manifest)}
    assert len(answers) == 20
    assert all(answer.keys() == {"kind"} and answer["kind"] in ("code", "test", "docs", "other") for answer in answers.values())
    assert (first.counts.forwarded, first.counts.rejected) == (20, 0)
    assert 0 < first.counts.asked <= 20, "equal questions are asked once"
    assert first.counts.prompt_tokens > first.counts.completion_tokens > 0
    assert {r.id: r.event["answer"] for r in runs.manifest(second.manifest)} == answers
    assert (second.counts.asked, second.counts.prompt_tokens) == (0, 0)


def test_it_listens_on_loopback_wants_its_key_and_shows_nobody_what_others_ask(model: SandboxInfo) -> None:
    url = urlsplit(model.model_url or "")
    state = load(model.home)
    assert state is not None
    assert state.model is not None
    assert state.model.process is not None
    listening = [c for c in psutil.Process(state.model.process.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert [(c.laddr.ip, c.laddr.port) for c in listening] == [("127.0.0.1", url.port)]
    assert model.model_key not in psutil.Process(state.model.process.pid).cmdline()
    body = json.dumps({"messages": [{"role": "user", "content": "?"}]}).encode()
    for path, key, status in (("v1/chat/completions", "wrong", 401), ("slots", model.model_key, 501)):
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        request = urllib.request.Request(f"http://{url.netloc}/{path}", body if key == "wrong" else None, headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        with refused.value:
            assert refused.value.code == status


@pytest.mark.soak
def test_up_again_leaves_it_alone_and_it_ends_with_its_sandbox(model: SandboxInfo, own_sandbox: Sandbox) -> None:
    with_model = Sandbox(own_sandbox.home, with_model=True)
    info = with_model.up()
    assert info.model_url not in (None, model.model_url)
    assert with_model.up() == own_sandbox.up() == info
    part = with_model.status().model
    assert part is not None
    assert part.running
    process = (load(own_sandbox.home) or pytest.fail("no state")).model
    own_sandbox.down()
    assert process is not None
    assert not alive(process.process)
    assert with_model.status().model is not None
