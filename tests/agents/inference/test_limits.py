"""A model is asked no faster than it may be, and not at all while it asks for a pause."""

from __future__ import annotations

import asyncio

import pytest

from factory_agents.inference.limits import Limits, Pace


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0

        async def sleep(seconds: float) -> None:
            self.now += seconds

        monkeypatch.setattr(asyncio, "sleep", sleep)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def seconds(clock: Clock, limits: Limits, calls: int, tokens: float = 0) -> float:
    """How long so many calls take."""

    async def ask() -> None:
        for _ in range(calls):
            await limits.turn(tokens)

    began = clock.now
    asyncio.run(ask())
    return clock.now - began


def test_without_a_limit_nothing_waits(clock: Clock) -> None:
    assert seconds(clock, Limits(0, 0, clock=clock), 1000, 1e6) == 0


@pytest.mark.parametrize(("shards", "least"), [(1, 60), (3, 180)])
def test_requests_are_spread_over_the_minute_and_shared_by_shards(clock: Clock, shards: int, least: float) -> None:
    taken = seconds(clock, Limits(60, 0, shards=shards, clock=clock), 61)
    assert least <= taken < 1.1 * least


def test_tokens_are_a_limit_too(clock: Clock) -> None:
    assert 60 <= seconds(clock, Limits(0, 1000, clock=clock), 11, 100) < 66


def test_what_a_call_used_in_the_end_corrects_the_estimate(clock: Clock) -> None:
    limits = Limits(0, 1000, clock=clock)
    seconds(clock, limits, 1, 1000)
    limits.used(1000, 0)
    assert seconds(clock, limits, 1, 1000) == pytest.approx(0)


def test_a_pause_holds_all_who_wait_and_they_dont_go_at_once(clock: Clock) -> None:
    limits = Limits(60, 0, clock=clock)
    limits.hold(30)
    limits.hold(10)
    assert 32 <= seconds(clock, limits, 3) < 40


def test_a_turn_that_was_not_used_is_not_saved_up(clock: Clock) -> None:
    pace = Pace(60, clock)
    pace.take()
    clock.now += 3600
    assert [round(pace.take(), 2) for _ in range(2)] == [0, 1.03]
