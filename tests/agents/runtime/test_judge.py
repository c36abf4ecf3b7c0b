"""When a new version is rolled back, and when it isn't."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from factory_agents.kafka.routes import Limits
from factory_agents.runtime.judge import Figures, Watch, verdict
from factory_agents.telemetry import Batch, Commit, Subject

SUBJECT = Subject("group", "live")
WELL = Figures(records=1000, seconds=1.0, span=20.0)
ASKED = Figures(records=100, asked=100, tokens=2_000, nanocost=1_000_000)


@pytest.mark.parametrize(
    ("new", "old", "reason"),
    [
        (Figures(records=10, errors=10), WELL, "raised errors for 10 of 10"),
        (Figures(records=50, errors=10), WELL, "raised errors for 10 of 50"),
        (Figures(records=9, errors=9), WELL, ""),  # too few to tell
        (Figures(records=5000, errors=20), WELL, ""),  # less than a hundredth
        (Figures(records=100, errors=20), WELL._replace(errors=100), ""),  # less than three times as often as before
        (Figures(records=100, errors=40), WELL._replace(errors=100), "raised errors for 40 of 100"),
        (Figures(records=100, rejected=20), WELL, "rejected 20 of 100"),
        (Figures(records=100, rejected=20), WELL._replace(rejected=100), ""),
        (Figures(records=100, seconds=1.0), WELL, "takes 10.0 ms an event, the version before it 1.0 ms"),
        (Figures(records=300, seconds=1.0), WELL, ""),
        (Figures(records=100, seconds=1.0), Figures(), ""),  # nothing to compare it with
        (Figures(waiting=15, span=20.0), WELL, "waits 75% of the time"),
        (Figures(waiting=15, span=20.0), WELL._replace(waiting=15), ""),  # the service is down for both
        (ASKED._replace(nanocost=4_000_000), ASKED, "costs 40,000 (billionths) a call of its model, the version before it 10,000"),
        (ASKED._replace(nanocost=2_900_000), ASKED, ""),
        (ASKED._replace(nanocost=0, tokens=9_000), ASKED, "takes 90 tokens a call of its model, the version before it 20"),
        (ASKED._replace(asked=5, nanocost=4_000_000), ASKED, ""),  # too few to tell
        (ASKED, Figures(records=1000, seconds=1.0), ""),  # the one before asks no model
        (ASKED._replace(records=100), ASKED._replace(records=10_000), ""),  # most of what the old one needs is logged
    ],
)
def test_a_version_is_judged_by_what_it_does_worse_than_the_one_before(new: Figures, old: Figures, reason: str) -> None:
    found = verdict(new, old, Limits())
    assert reason in found
    assert bool(reason) == bool(found)


def warm(clock: Callable[[], float] = time.monotonic) -> Watch:
    """That of a member that has made its first call."""
    watch = Watch(clock)
    watch.batch(SUBJECT, Batch(1, 5.0))
    return watch


def test_the_time_of_the_first_call_does_not_count() -> None:
    watch = Watch()
    assert watch.chunk(1, {}, busy=5.0).seconds == 0.0
    watch.batch(SUBJECT, Batch(1, 5.0))
    watch.batch(SUBJECT, Batch(2, 0.5))
    assert watch.chunk(3, {}, busy=0.25) == Figures(3, seconds=0.75)


def test_a_member_counts_what_it_did_of_late_and_remembers_it_when_nothing_comes() -> None:
    now = [0.0]
    watch = warm(lambda: now[0])
    watch.batch(SUBJECT, Batch(100, 2.0))
    assert watch.chunk(100, {"agent-error": 3, "unavailable": 5, "five": 1}) == Figures(100, errors=3, rejected=1, seconds=2.0)
    watch.committed(SUBJECT, Commit(100, 100, 0, 0.1, {"agent-error": 3, "five": 1}))
    watch.waited(4.0)
    now[0] = 10.0
    assert watch.figures == Figures(100, 3, 1, 2.0, waiting=4.0, span=10.0)
    now[0] = 60.0
    assert watch.figures == Figures(100, 3, 1, 2.0, waiting=0.0, span=20.0)


def test_what_a_model_cost_is_counted_from_commit_to_commit() -> None:
    watch = Watch(clock=lambda: 0.0)
    for n in (1, 3):  # what is told is of all the work so far
        told = {"asked": n, "prompt_tokens": 20 * n, "completion_tokens": 5 * n, "nanocost": 100 * n}
        watch.committed(SUBJECT, Commit(10, 10, 0, 0.1, counts=told))
    assert watch.figures._replace(span=0.0) == Figures(20, asked=3, tokens=75, nanocost=300)


def test_what_a_chunk_that_was_dropped_took_doesnt_count() -> None:
    watch = warm()
    watch.batch(SUBJECT, Batch(100, 2.0))
    watch.aborted(SUBJECT, 100, "refused")
    assert watch.chunk(1, {}).seconds == 0.0
