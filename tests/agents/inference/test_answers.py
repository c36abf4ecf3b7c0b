"""The answer log: what was answered is never asked again, whatever happens to the attempt, and money is spent once."""

from __future__ import annotations

import json

import pytest

from factory_agents.inference.answers import Answer, answers_topic, current_answers, partition_of, read_answers
from factory_agents.protocol import AgentResult, AgentRun
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext
from tests.agents.inference.conftest import MakeRun
from tests.support.model_server import ModelServer
from tests.support.runs import Runs


def done(runs: Runs, run: AgentRun) -> AgentResult:
    return execute(RunContext(runs.config), run)


def test_partitions_that_are_added_hide_no_answer() -> None:
    assert all(partition_of(question, 12) == partition_of(question, 24) for question in (b"a", b"b", b"c", b"d"))


def logged(runs: Runs) -> list[Answer]:
    return [answer for _, answer in read_answers(runs.config, prefix=runs.prefix) if answer is not None]


def committed_keys(runs: Runs) -> set[bytes | None]:
    """Without waiting for what a killed attempt left open."""
    topic = answers_topic(runs.prefix)
    ends = runs.cluster.stable_offset(topic, range(runs.cluster.topic(topic).partitions))
    return {r.key for p, end in ends.items() for r in runs.read(topic, p, 0, end)}


def test_every_event_gets_its_answer_in_one_field_and_the_result_tells_what_it_took(runs: Runs, infer_run: MakeRun) -> None:
    window = runs.filled(40)
    with ModelServer() as server:
        prices = {"prompt": 2.0, "completion": 10.0}
        result = done(runs, infer_run(window, runs.topic("out"), server, prices=prices))
    found = runs.manifest(result.manifest)
    assert sorted(r.id for r in found) == list(range(40))
    assert all(r.event["answer"]["label"] in ("even", "odd") and r.event["text"] == f"event {r.id}" for r in found)
    counts = result.counts
    assert (counts.consumed, counts.forwarded, counts.asked) == (40, 40, 40)
    assert (counts.prompt_tokens, counts.completion_tokens) == server.tokens
    assert counts.nanocost == (server.tokens[0] * 2 + server.tokens[1] * 10) * 1000
    assert result.report == {"model": "m", "revision": "", "prompt": "kind@1"}
    assert counts.cost == counts.nanocost / 1e9
    assert sum(a.cost for a in logged(runs)) == counts.nanocost


def test_done_again_it_takes_the_logged_answers_and_asks_nothing(runs: Runs, infer_run: MakeRun) -> None:
    window = runs.filled(30)
    with ModelServer() as server:
        first = done(runs, infer_run(window, runs.topic("out"), server))
    events = {r.id: r.event for r in runs.manifest(first.manifest)}
    with ModelServer(lambda _: {"label": "changed its mind"}) as server:  # and nobody would answer
        for more in ({"rerun": "redo"}, {"stage": "again"}, {"pipeline": f"{runs.prefix}.b"}):
            second = done(runs, infer_run(window, runs.topic("out"), server, run=more))
            assert server.requests == []
            assert second.counts.asked == second.counts.prompt_tokens == second.counts.nanocost == 0
            assert {r.id: r.event for r in runs.manifest(second.manifest)} == events


def test_asked_again_by_choice_the_new_answers_count_from_then_on(runs: Runs, infer_run: MakeRun) -> None:
    window, out = runs.filled(20), runs.topic("out")
    with ModelServer(lambda _: {"label": "odd"}) as server:
        done(runs, infer_run(window, out, server))
    with ModelServer(lambda _: {"label": "even"}) as server:
        again = infer_run(window, out, server, run={"rerun": "ask_again", "run_id": "r2"})
        result = done(runs, again)
        assert server.calls == 20
        assert {r.event["answer"]["label"] for r in runs.manifest(result.manifest)} == {"even"}
        result = done(runs, infer_run(window, out, server, run={"rerun": "redo"}))
        assert server.calls == 20
    assert {r.event["answer"]["label"] for r in runs.manifest(result.manifest)} == {"even"}


def test_equal_inputs_are_asked_once_though_the_events_differ(runs: Runs, infer_run: MakeRun) -> None:
    topic = runs.topic("in")
    runs.produce(topic, [json.dumps({"event_id": i, "text": f"same {i % 3}"}).encode() for i in range(60)])
    with ModelServer() as server:
        result = done(runs, infer_run(runs.window(topic), runs.topic("out"), server))
        assert server.calls == 3
    assert (result.counts.forwarded, result.counts.asked) == (60, 3)


def test_whatever_decides_an_answer_is_in_its_key(runs: Runs, infer_run: MakeRun) -> None:
    window, out = runs.filled(8), runs.topic("out")
    with ModelServer() as server:
        done(runs, infer_run(window, out, server))
        for n, changed in enumerate(
            (
                {"prompt": {"name": "kind@1.md", "text": "Which kind is this? {{ text }}"}},
                {"revision": "2"},
                {"parameters": {"temperature": 0.5}},
                {"output": {"type": "object", "properties": {"label": {"type": "string"}}}},
            ),
            2,
        ):
            done(runs, infer_run(window, out, server, **changed))
            assert server.calls == 8 * n


def test_limits_and_the_field_that_takes_the_answer_ask_nothing_again(runs: Runs, infer_run: MakeRun) -> None:
    window = runs.filled(8)
    with ModelServer() as server:
        done(runs, infer_run(window, runs.topic("out"), server))
        result = done(runs, infer_run(window, runs.topic("out"), server, into="kind", concurrency=2, requests_per_minute=6000))
        assert server.calls == 8
    assert all("kind" in r.event for r in runs.manifest(result.manifest))


@pytest.mark.parametrize("failpoint", ["chunk.before-ledger=kill@2", "chunk.before-commit=kill@2", "chunk.after-commit=kill@1"])
def test_a_kill_loses_no_answer_that_was_committed(runs: Runs, infer_run: MakeRun, failpoint: str) -> None:
    window = runs.filled(60)
    with ModelServer() as server:
        run = infer_run(window, runs.topic("out"), server, run={"chunk_records": 20})
        runs.killed(run, failpoint)
        committed, calls = committed_keys(runs), server.calls
        result = runs.finished(run)
        assert server.calls == calls + 60 - len(committed)
        assert len(committed) >= 20
    assert sorted(r.id for r in runs.manifest(result.manifest)) == list(range(60))
    answers = logged(runs)
    assert len(answers) == 60
    assert result.counts.asked == 60  # each answer that counts is paid for in one result, once


def test_a_record_that_is_no_answer_is_asked_about_again(runs: Runs, infer_run: MakeRun) -> None:
    window, out = runs.filled(5), runs.topic("out")
    with ModelServer() as server:
        done(runs, infer_run(window, out, server))
        first = runs.everything(answers_topic(runs.prefix))[0]
        runs.produce(answers_topic(runs.prefix), [b"\xff no answer"], partition=first.partition, key=first.key)
        assert first.key is not None
        assert current_answers(runs.config, prefix=runs.prefix)[first.key.decode()].text == ""
        result = done(runs, infer_run(window, out, server, run={"rerun": "redo"}))
    assert (result.counts.forwarded, result.counts.asked) == (5, 1)


def test_an_answer_that_is_no_good_is_logged_too(runs: Runs, infer_run: MakeRun) -> None:
    window = runs.filled(10)
    with ModelServer(lambda _: {"label": "purple"}) as server:
        result = done(runs, infer_run(window, runs.topic("out"), server, run={"max_rejected": "100 %"}))
        again = done(runs, infer_run(window, runs.topic("out"), server, run={"max_rejected": "100 %", "rerun": "redo"}))
        assert server.calls == 10
    assert (result.counts.rejected, again.counts.rejected, again.counts.asked) == (10, 10, 0)
    letter = runs.manifest(again.dead_letters)[0]
    assert letter.dead_letter["rule"] == "invalid_output"
    assert 'the model answered: {"label": "purple"}' in letter.dead_letter["error"]
    assert "text" in letter.event
