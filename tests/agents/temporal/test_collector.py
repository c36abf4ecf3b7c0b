"""Busy topics: a window for many events, or for those that have waited long; whatever word comes twice, whatever dies, each event once."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.client import Client

from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.temporal import client as clients
from factory_agents.temporal.protocol import Arrived, Collected, CollectRequest, PipelineSpec
from tests.agents.temporal.test_commands import written
from tests.support.runs import Runs, events
from tests.support.temporal import Pipelines, own_server, stage
from tests.support.waiting import wait_for

NOW = datetime(2026, 11, 1, tzinfo=UTC)
SPEC = PipelineSpec(pipeline="p", topic="t", stages=(stage("mark"),))
NEW = CollectRequest(SPEC, 10, 60, Collected("p"))

WORDS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50), st.integers(1, 20)), max_size=30)


@given(WORDS, st.randoms())
def test_each_offset_is_counted_once_however_often_word_of_it_comes(words: list[tuple[int, int, int]], chance: object) -> None:
    """As a group's members tell: in order in each partition, the last ones again after a death."""
    state, ends = NEW, dict.fromkeys(range(3), 0)
    for partition, back, more in words:
        start = max(0, ends[partition] - back)
        ends[partition] = max(ends[partition], start + more)
        state = state.with_word(Arrived({partition: (start, start + more)}), NOW)
    assert state.done.waiting == sum(ends.values())


def test_a_topic_that_was_made_again_begins_at_its_beginning() -> None:
    state = NEW.with_word(Arrived({0: (100, 110)}, "a"), NOW).with_word(Arrived({0: (100, 110)}, "a"), NOW)
    assert state.done.waiting == 10
    assert state.with_word(Arrived({0: (0, 5)}, "b"), NOW).done.waiting == 15


def test_the_first_event_that_waits_sets_the_time() -> None:
    first = NEW.with_word(Arrived({0: (0, 1)}), NOW)
    later = first.with_word(Arrived({0: (1, 3)}), NOW + timedelta(seconds=30))
    assert (later.since, later.done.waiting) == (NOW, 3)
    assert first.with_word(Arrived({0: (0, 1)}), NOW + timedelta(seconds=30)) == first


def test_what_starts_windows_without_an_end_is_refused() -> None:
    for count, age in ((0, 60), (10, 0.5)):
        with pytest.raises(ConfigurationError, match="collect: expected at least 1 event and 1 s"):
            CollectRequest(SPEC, count, age, Collected("p"))


def windows(pipelines: Pipelines) -> list[str]:
    async def found(client: Client) -> list[str]:
        return sorted([w.id async for w in client.list_workflows(f'WorkflowId STARTS_WITH "{pipelines.prefix}/collected-"')])

    return pipelines.ask(found)


def test_events_become_few_windows_that_hold_each_once_though_the_starter_dies(pipelines: Pipelines, runs: Runs) -> None:
    raw, marked = runs.topic("raw"), runs.topic("marked")
    runs.produce(raw, events(500))
    written(pipelines, raw, marked)
    listen = ("temporal", "listen", "p.yaml", "--topic", raw, "--count", "400", "--age", "2 s")
    soon = {"KAFKA_CONFIG": json.dumps({"session.timeout.ms": 6000})}  # the group lets a dead member go
    collector = f"{pipelines.prefix}/collector"
    with pipelines.served():
        dying = pipelines.factory.start(*listen, FACTORY_FAILPOINTS="starter.before-commit=kill@1", **soon)
        assert dying.wait(90).code == -signal.SIGKILL, dying.lines
        living = pipelines.factory.start(*listen, **soon)
        wait_for(lambda: len(runs.everything(marked)) >= 500, "the first window")  # it holds what is there when it is planned
        living.wait_logged("listening")
        runs.produce(raw, events(100, 500))  # fewer than a window's, but they don't wait for ever
        wait_for(lambda: len(runs.everything(marked)) >= 600, "all events")
        wait_for(lambda: pipelines.progress(collector).waiting == 0, "nothing to wait")
        assert living.stop().code == 0
        told = pipelines.factory.ok("temporal", "progress", collector).data
        assert "failed" not in told
        pipelines.cancel(collector)
    assert sorted(r.id for r in runs.everything(marked)) == list(range(600))
    assert 2 <= told["windows"] <= 5


def test_a_collector_that_is_told_often_goes_on_before_and_after_its_window(pipelines: Pipelines, runs: Runs, tmp_path: Path) -> None:
    """While it gathers, in workflows with empty histories; while its window runs, a teller waits where the server lets it tell no more."""
    limits = ("limit.historyCount.suggestContinueAsNew=12", "history.maximumSignalsPerExecution=6")
    options = [word for limit in limits for word in ("--dynamic-config-value", limit)]
    with own_server(tmp_path / "server", *options) as server:
        own = Pipelines(server.address, pipelines.bootstrap, pipelines.prefix, tmp_path)
        spec = PipelineSpec(pipeline=own.prefix, task_queue=own.prefix, stages=(stage("read", "ingest", "a"),))
        wanted = CollectRequest(spec, 10, 600, Collected(spec.pipeline))

        def tell(offset: int) -> str:
            return own.ask(lambda client: clients.announce(client, wanted, Arrived({0: (offset, offset + 1)})))

        def tell_and_see(offset: int, waiting: int) -> str:
            id_ = tell(offset)
            wait_for(lambda: own.progress(id_).waiting == waiting, "it to be counted")
            return id_

        with own.served_slowly() as gate:
            for offset in range(9):
                id_ = tell_and_see(offset, offset + 1)
            assert own.runs_of(id_) > 1
            tell(9)
            wait_for(lambda: gate.began, "the window")
            with pytest.raises(UnavailableError, match="limit for signal"):
                [tell(offset) for offset in range(10, 17)]
            before = own.runs_of(id_)
            gate.opened.set()
            wait_for(lambda: own.runs_of(id_) > before, "it to go on after the window")
            counted = own.progress(id_).waiting
            assert 0 < counted < 7
            for offset in range(10 + counted, 17):
                tell_and_see(offset, offset - 9)


def test_a_window_that_fails_is_named_and_the_next_one_comes(pipelines: Pipelines, runs: Runs) -> None:
    raw, later = runs.topic("raw"), f"{pipelines.prefix}.later"
    spec = pipelines.request(raw, stage("mark", output=later)).spec
    wanted = CollectRequest(spec, 10, 60, Collected(spec.pipeline), per_workflow=1)  # so that it goes on in further workflows

    def tell(start: int, end: int) -> str:
        runs.produce(raw, events(end - start, start), partition=0)
        return pipelines.ask(lambda client: clients.announce(client, wanted, Arrived({0: (start, end)})))

    with pipelines.served():
        id_ = tell(0, 10)
        wait_for(lambda: pipelines.progress(id_).failed, "the first window to fail")
        assert runs.topic("later") == later
        assert tell(10, 20) == id_
        wait_for(lambda: len(runs.everything(later)) == 10, "the second window")
        (failed,) = pipelines.progress(id_).failed
        pipelines.cancel(id_)
    assert f"{spec.pipeline}/{failed}" in windows(pipelines)
    assert sorted(r.id for r in runs.everything(later)) == list(range(10, 20))


def test_a_cancellation_that_comes_as_a_window_ends_ends_it(pipelines: Pipelines) -> None:
    spec = PipelineSpec(pipeline=pipelines.prefix, task_queue=pipelines.prefix, stages=(stage("read", "ingest", "a"),))
    wanted = CollectRequest(spec, 1, 60, Collected(spec.pipeline), per_workflow=2)
    with pipelines.served_slowly() as gate:
        id_ = pipelines.ask(lambda client: clients.announce(client, wanted, Arrived({0: (0, 10)})))
        wait_for(lambda: gate.began, "the window")
        pipelines.ask(lambda client: clients.cancel(client, id_, wait=False))
        wait_for(lambda: pipelines.cancel_asked(id_), "the server to know")
        gate.opened.set()
        wait_for(lambda: pipelines.is_over(id_), "its end")
