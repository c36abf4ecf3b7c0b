"""A failed attempt is known: the ledger says why, ``factory windows`` shows it, and what comes later takes it back."""

from __future__ import annotations

import time
from typing import Literal

import msgspec
import pytest

from factory_agents.errors import FactoryError, FencedError, TooManyRejectedError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.failures import forget_failure, leave_failure
from factory_agents.kafka.ledger import AttemptRecord, FailureRecord, Ledger
from factory_agents.kafka.prune_view import PruneView
from factory_agents.kafka.windows import WindowStatus, read_windows
from factory_agents.protocol import AgentRef, Work
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext
from tests.support.runs import Runs


def only_window(runs: Runs) -> WindowStatus:
    (window,) = read_windows(runs.config, prefix=runs.prefix)
    return window


@pytest.mark.parametrize("rerun", ["redo", "reuse"])
def test_an_attempt_that_fails_says_why_and_the_next_one_that_succeeds_takes_it_back(runs: Runs, rerun: Literal["redo", "reuse"]) -> None:
    good = runs.run(runs.filled(20), runs.topic("out"))
    execute(RunContext(runs.config), good)
    bad = msgspec.structs.replace(good, agent=msgspec.structs.replace(good.agent, version="2"), params={"no": "such"})
    with pytest.raises(FactoryError) as error:
        execute(RunContext(runs.config), bad)
    window = only_window(runs)
    assert (window.state, window.stages[0].state) == ("failed", "failed")
    assert window.stages[0].error == f"{type(error.value).__name__}: {error.value}"
    assert execute(RunContext(runs.config), msgspec.structs.replace(good, rerun=rerun)).reused == (rerun == "reuse")
    assert only_window(runs).state == "finished"


def test_a_failure_whose_words_are_no_text_is_told_with_their_codes(runs: Runs) -> None:
    """As a path's that is not UTF-8: no JSON has half of a character."""
    source = "raise RuntimeError('no such file: \\udcff')\ndef mark(event):\n    return event"
    execute(RunContext(runs.config), good := runs.run(runs.filled(20), runs.topic("out")))
    with pytest.raises(FactoryError, match="no such file"):
        execute(RunContext(runs.config), msgspec.structs.replace(good, agent=AgentRef("mark", "", source, "mark")))
    assert "no such file: \\udcff" in only_window(runs).stages[0].error


def test_too_many_rejected_is_a_failure_with_its_figures(runs: Runs) -> None:
    topic = runs.topic("in")
    runs.produce(topic, [b"no json"] * 20)
    run = runs.run(runs.window(topic), runs.topic("out"), max_rejected="1")
    with pytest.raises(TooManyRejectedError):
        execute(RunContext(runs.config), run)
    (stage,) = only_window(runs).stages
    assert stage.state == "failed"
    assert stage.counts.rejected == 20
    assert "TooManyRejectedError: stage 'stage': 20 of 20 events rejected" in stage.summary


@pytest.mark.parametrize("dry", [True, False])
def test_a_dry_run_and_a_fenced_attempt_say_nothing(runs: Runs, dry: bool) -> None:
    execute(RunContext(runs.config), good := runs.run(runs.filled(20), runs.topic("out")))
    if dry:
        with pytest.raises(FactoryError):
            execute(RunContext(runs.config), msgspec.structs.replace(good, params={"no": "such"}, dry_run=True))
    else:
        leave_failure(runs.config, good.work, error=FencedError("taken over"), began=time.time(), prefix=runs.prefix)
    assert only_window(runs).state == "finished"


def test_without_a_ledger_or_a_broker_nothing_is_said_and_nothing_made(runs: Runs) -> None:
    error, work = FactoryError("why"), Work(runs.prefix, "stage", "w")
    leave_failure(runs.config, work, error=error, began=time.time(), prefix=runs.prefix)
    assert runs.cluster.find(f"{runs.prefix}.ledger") is None
    began = time.monotonic()
    leave_failure(KafkaConfig("127.0.0.1:1"), work, error=error, began=time.time(), prefix=runs.prefix)
    assert time.monotonic() - began < 15


def test_what_was_said_can_be_taken_back(runs: Runs) -> None:
    ledger = Ledger(runs.config, runs.cluster, prefix=runs.prefix, pipeline=runs.prefix)
    ledger.ensure()
    work = Work(runs.prefix, "judge", "w")

    def said() -> list[FailureRecord]:
        return list(ledger.read(deadline=time.monotonic() + 30).of(FailureRecord))

    leave_failure(runs.config, work, error=FactoryError("first\nsecond line"), began=time.time(), run_id="r1", prefix=runs.prefix)
    assert [(f.message, f.run_id) for f in said()] == [("first", "r1")]
    forget_failure(runs.config, work, prefix=runs.prefix)
    assert not said()


def test_each_failed_attempt_is_kept_for_those_who_count_and_goes_with_its_window(runs: Runs) -> None:
    ledger = Ledger(runs.config, runs.cluster, prefix=runs.prefix, pipeline=runs.prefix)
    ledger.ensure()
    good = runs.run(runs.filled(20), runs.topic("out"))
    for _ in range(2):
        with pytest.raises(FactoryError):
            execute(RunContext(runs.config), msgspec.structs.replace(good, params={"no": "such"}))
    execute(RunContext(runs.config), good)
    attempts = ledger.read(deadline=time.monotonic() + 30).of(AttemptRecord)
    assert [(a.agent, a.error, a.stage, a.window) for a in attempts] == [("mark", "ConfigurationError", "stage", "w")] * 2
    assert only_window(runs).state == "finished"
    view = PruneView(runs.prefix)
    ledger.follow(view, deadline=time.monotonic() + 30)
    assert {a.key().encode() for a in attempts} <= view.works.keys()
