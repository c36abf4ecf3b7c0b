"""The page's background reader: figures at once, an outage said with its age, rest while nobody looks."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest

from airflow_provider_factory.page import snapshot
from airflow_provider_factory.page.snapshot import Snapshot, Snapshots
from factory_agents.errors import UnavailableError
from factory_agents.kafka.windows import WindowStatus
from tests.support.waiting import wait_for

WINDOW = WindowStatus("p", "2026-11-01T04:00:00.000Z/2026-11-01T05:00:00.000Z", "planned", records=7)


def test_the_first_look_does_not_wait_for_kafka() -> None:
    go = threading.Event()

    def read() -> tuple[WindowStatus, ...]:
        go.wait(30)
        return (WINDOW,)

    figures = Snapshots(read, every=0.01)
    assert figures.current() == Snapshot()
    go.set()
    wait_for(lambda: figures.current().windows == (WINDOW,), "the first figures")
    figures.close()


def test_an_outage_keeps_the_last_figures_and_says_since_when() -> None:
    answers: list[tuple[WindowStatus, ...] | Exception] = [(WINDOW,)]

    def read() -> tuple[WindowStatus, ...]:
        answer = answers[-1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    figures = Snapshots(read, every=0.01)
    wait_for(lambda: figures.current().taken_at, "figures")
    answers.append(UnavailableError("no broker answered"))
    wait_for(lambda: figures.current().error, "the outage")
    down = figures.current()
    assert (down.windows, down.error) == ((WINDOW,), "no broker answered")
    assert down.down_since is not None
    answers.append(ValueError("secret://user:password@host"))
    wait_for(lambda: "unexpected error" in figures.current().error, "the next error")
    assert "password" not in figures.current().error
    assert figures.current().down_since == down.down_since
    answers.append(())
    wait_for(lambda: not figures.current().error, "the end of the outage")
    figures.close()


def test_it_rests_while_nobody_looks_and_wakes_with_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[datetime] = []

    def read() -> tuple[WindowStatus, ...]:
        reads.append(datetime.now(UTC))
        return ()

    monkeypatch.setattr(snapshot, "_IDLE_SECONDS", 0.05)
    figures = Snapshots(read, every=0.01)
    figures.current()
    wait_for(lambda: figures._thread is None, "the reader to rest")
    before = len(reads)
    figures.current()
    wait_for(lambda: len(reads) > before, "another read")
    figures.close()


def test_its_age_is_never_negative() -> None:
    now = datetime.now(UTC)
    assert Snapshot(taken_at=now).age_seconds(now - timedelta(seconds=5)) == 0
    assert Snapshot(taken_at=now).age_seconds(now + timedelta(seconds=5)) == 5
