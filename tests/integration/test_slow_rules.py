"""A rule that takes long over a text keeps nobody waiting: a stop and a deadline are heard in time, and nothing is lost."""

from __future__ import annotations

import json
import random
import time

import psutil
import pytest

from tests.support.runs import Attempt, Runs
from tests.support.waiting import wait_for

PATTERN = "(a|b)*a(a|b){400}[c-z]"
TEXT = "".join(random.Random(1).choices("ab", k=30_000))
CONTRACT = {
    "name": "c",
    "id": "event_id",
    "schema": {"required": ["event_id"], "properties": {"event_id": {"type": "integer"}, "text": {"type": "string"}}},
    "rules": {"slow": f"not text.matches({PATTERN!r})"},
}
EVENTS = 24
GRACE = 30.0


def matching(attempt: Attempt) -> bool:
    """Whether it has worked for seconds: starting takes less than one."""
    times = psutil.Process(attempt.process.pid).cpu_times()
    return bool(times.user > 2)


@pytest.mark.slow
@pytest.mark.soak
def test_a_stop_and_a_deadline_are_heard_while_a_rule_is_slow_and_nothing_is_lost(runs: Runs) -> None:
    topic = runs.topic("in", partitions=1)
    runs.produce(topic, [json.dumps({"event_id": i, "text": TEXT}).encode() for i in range(EVENTS)])
    output = runs.topic("out", partitions=1)
    run = runs.run(runs.window(topic), output, "validate", stage="validate", params={"contract": CONTRACT}, chunk_records=5)

    asked = runs.attempt(run)
    wait_for(lambda: asked.process.poll() is not None or matching(asked), "the rules to be at work")
    began = time.monotonic()
    asked.signal(15)
    assert asked.wait(60) == 75, asked.log
    assert time.monotonic() - began < GRACE / 2
    assert asked.result.error is not None
    assert asked.result.error.type == "StoppedError"

    began = time.monotonic()
    late = runs.attempt(
        runs.run(run.window, output, "validate", stage="validate", params=run.params, chunk_records=5, deadline_seconds=1.0)
    )
    assert late.wait(60) == 75, late.log
    assert time.monotonic() - began < GRACE / 2
    assert late.result.error is not None
    assert late.result.error.type == "DeadlineError"

    result = runs.finished(run)
    assert (result.counts.consumed, result.counts.forwarded) == (EVENTS, EVENTS)
    assert sorted(r.id for r in runs.manifest(result.manifest)) == list(range(EVENTS))
