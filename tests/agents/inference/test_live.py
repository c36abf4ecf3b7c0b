"""Agents over models that run live: the same answers, committed with the group's positions, and an outage that loses nothing."""

from __future__ import annotations

import threading
from typing import Any

from factory_agents.infer import build
from factory_agents.inference.decorator import ModelAgent, model_agent
from factory_agents.run import execute
from factory_agents.runtime.live import LiveSettings, run_live
from factory_agents.runtime.session import RunContext
from tests.agents.inference.conftest import SCHEMA, MakeRun, infer_params
from tests.agents.runtime.test_versions import feeding, rollouts, version, wait_members
from tests.support.model_server import ModelServer
from tests.support.runs import Runs, events
from tests.support.waiting import wait_for


class Live:
    """``infer`` in a consumer group, until it is left."""

    def __init__(self, runs: Runs, server: ModelServer, topic: str, out: str, **more: Any) -> None:
        self._stop = threading.Event()
        transform = build(infer_params(server, **more), None)
        context = RunContext(runs.config, stop=self._stop.is_set)
        live = LiveSettings(topic, out, f"{runs.prefix}.live", prefix=runs.prefix)
        self._thread = threading.Thread(target=lambda: run_live(context, transform, live))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


def test_it_answers_what_arrives_and_waits_while_the_model_is_away(runs: Runs) -> None:
    topic, out = runs.topic("in"), runs.topic("out")
    with ModelServer() as server, Live(runs, server, topic, out):
        runs.produce(topic, events(20))
        wait_for(lambda: len(runs.everything(out)) == 20, "the first events")
        server.down = True
        asked = len(server.requests)
        runs.produce(topic, events(20, start=20))
        wait_for(lambda: len(server.requests) > asked + 4, "questions without an answer")
        server.down = False
        wait_for(lambda: len(runs.everything(out)) >= 40, "the others")
    assert sorted(r.id for r in runs.everything(out)) == list(range(40))
    assert max(server.answered.values()) == 1


def test_a_window_takes_what_a_live_agent_was_answered(runs: Runs, infer_run: Any) -> None:
    topic, out = runs.topic("in"), runs.topic("out")
    with ModelServer() as server:
        with Live(runs, server, topic, out):
            runs.produce(topic, events(10))
            wait_for(lambda: len(runs.everything(out)) == 10, "all events")
        execute(RunContext(runs.config), infer_run(runs.window(topic), runs.topic("out2"), server))
        assert server.calls == 10


def test_a_worse_prompt_is_taken_back_live_and_what_it_did_is_done_again(runs: Runs, infer_run: MakeRun) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    runs.topic("out.dead")

    def asking(text: str) -> ModelAgent:
        def labelled(event: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
            return event | {"answer": answer}

        return model_agent(prompt={"name": "kind@1.md", "text": text}, output=SCHEMA, model="m", endpoint=server.url)(labelled)

    good, bad = "What kind is this? {{ text }}", "Say anything about {{ text }}"
    with (
        ModelServer(lambda question: {"label": "odd" if question.startswith("What") else "purple"}) as server,
        version(runs, source, out, "v1", asking(good)) as one,
    ):
        with feeding(runs, source, 0.02) as sent:
            wait_for(lambda: runs.everything(out), "the first events")
            with version(runs, source, out, "v2", asking(bad)):
                wait_members(runs, "v2")
                rollouts(runs).start("v2")
                status = rollouts(runs).wait(30, until=lambda s: s.verdict == "rolled back" and s.is_settled)
        assert "it rejected" in status.reason
        wait_for(lambda: len(runs.everything(out)) + len(runs.everything(f"{out}.dead")) >= len(sent), "the old version's")
        one.end()
        letters = {r.id for r in runs.everything(f"{out}.dead")}
        assert sorted([*(r.id for r in runs.everything(out)), *letters]) == sent
        execute(RunContext(runs.config), infer_run(rollouts(runs).handled(), out, server))
    assert {r.id for r in runs.everything(out)} == set(sent)
    assert {r.event["answer"]["label"] for r in runs.everything(out)} == {"odd"}
