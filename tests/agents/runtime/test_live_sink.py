"""A live sink: window after window, exactly once, whoever of several members lives to publish them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from confluent_kafka import TopicPartition

from factory_agents.errors import DataLossError, UnavailableError
from factory_agents.kafka.ledger import Ledger, PlanRecord, StageRecord
from factory_agents.protocol import AgentRef, AgentRun, Counts, Window
from factory_agents.publish import build
from factory_agents.runtime.live_sink import run_sink_live
from factory_agents.runtime.session import RunContext
from tests.support.live_work import LiveWork, ending
from tests.support.proxy import Proxy
from tests.support.runs import Runs, events
from tests.support.sqlite_sink import CONTRACT, SqliteSink
from tests.support.sqlite_sink import published as rows
from tests.support.topics import recreate
from tests.support.waiting import wait_for


@contextmanager
def publisher(
    runs: Runs, source: str, database: Path, make: Callable[[Path], Any] = SqliteSink, *, accept_loss: bool = False
) -> Iterator[LiveWork]:
    """A member in a thread of its own."""
    pipeline = f"{runs.prefix}.publish"

    def make_run(window: Window) -> AgentRun:
        return AgentRun(pipeline, "publish", AgentRef("publish"), window=window, prefix=runs.prefix, accept_loss=accept_loss)

    def publish(stop: Callable[[], bool]) -> Counts:
        return run_sink_live(
            RunContext(runs.configured(session_timeout_ms=6000), stop=stop),
            make_run,
            lambda: make(database),
            pipeline=pipeline,
            in_topic=source,
            prefix=runs.prefix,
            every=0.3,
            accept_loss=accept_loss,
        )

    with ending(LiveWork(publish)) as running:
        yield running


def wait_rows(database: Path, expected: list[int]) -> None:
    wait_for(lambda: rows(database) == expected, f"{len(expected)} rows", patience=60)


def ledger_records(runs: Runs, kind: type[Any]) -> list[Any]:
    import time

    ledger = Ledger(runs.config, runs.cluster, prefix=runs.prefix, pipeline=f"{runs.prefix}.publish")
    return ledger.read(deadline=time.monotonic() + 30).of(kind)


class DiesError(Exception):
    """What a test makes a member end with, without a word to anybody."""


def test_members_share_the_work_and_a_restart_goes_on(runs: Runs, tmp_path: Path) -> None:
    source, database = runs.topic("in"), tmp_path / "d.sqlite"
    runs.produce(source, events(100))
    with publisher(runs, source, database) as one, publisher(runs, source, database) as two:
        wait_rows(database, list(range(100)))
        runs.produce(source, events(100, 100))
        wait_rows(database, list(range(200)))
        assert one.end().written + two.end().written == 200
    with publisher(runs, source, database) as again:
        runs.produce(source, events(50, 200))
        wait_rows(database, list(range(250)))
        assert again.end().written == 50


def test_a_window_whose_planner_died_is_published_by_one_of_its_peers(runs: Runs, tmp_path: Path) -> None:
    source, database = runs.topic("in"), tmp_path / "d.sqlite"
    died = threading.Event()

    class Mortal(SqliteSink):
        def claim(self, claim: Any) -> Any:
            if not died.is_set():
                died.set()
                raise DiesError
            return super().claim(claim)

    with ExitStack() as stack:
        members = [stack.enter_context(publisher(runs, source, database, Mortal)) for _ in range(3)]
        runs.produce(source, events(100))
        assert died.wait(30)
        wait_rows(database, list(range(100)))
        assert sum(isinstance(m.error, DiesError) for m in members) == 1
    (result,) = [r.result for r in ledger_records(runs, StageRecord) if r.result and r.result.counts.written]
    assert result.counts.written == 100


def test_a_window_that_a_member_was_fenced_from_without_need_is_taken_up_again(runs: Runs, tmp_path: Path) -> None:
    from factory_agents.errors import FencedError

    source, database = runs.topic("in"), tmp_path / "d.sqlite"
    fenced = threading.Event()

    class Fenced(SqliteSink):
        def commit(self, *, rejected: int) -> Any:
            if not fenced.is_set():
                fenced.set()
                raise FencedError("the session was ended")
            return super().commit(rejected=rejected)

    with publisher(runs, source, database, Fenced):
        runs.produce(source, events(100))
        wait_rows(database, list(range(100)))
    assert fenced.is_set()


class TestLoss:
    def test_to_retention_is_an_error_until_it_is_accepted_and_recorded(self, runs: Runs, tmp_path: Path) -> None:
        source, database = runs.topic("in", partitions=1), tmp_path / "d.sqlite"
        runs.produce(source, events(20))
        with publisher(runs, source, database):
            wait_rows(database, list(range(20)))
        runs.produce(source, events(40, 20))
        runs.admin.delete_records([TopicPartition(source, 0, 30)])[TopicPartition(source, 0)].result()
        for _ in range(2):
            with publisher(runs, source, database) as refused:
                refused.wait()
                with pytest.raises(DataLossError, match=r"offsets 20 to 30 are gone.*--accept-loss"):
                    refused.end()
        with publisher(runs, source, database, accept_loss=True) as going_on:
            wait_rows(database, [*range(20), *range(30, 60)])
            assert going_on.end().lost == 10
        results = [r.result for r in ledger_records(runs, StageRecord) if r.result is not None]
        assert sum(r.counts.lost for r in results) == 10
        assert any("offsets 20 to 30" in note for r in results for note in r.notes)
        with publisher(runs, source, database):
            runs.produce(source, events(5, 60))
            wait_rows(database, [*range(20), *range(30, 65)])

    def test_of_the_whole_topic_is_an_error_until_it_is_accepted_and_recorded(self, runs: Runs, tmp_path: Path) -> None:
        source, database = runs.topic("in"), tmp_path / "d.sqlite"
        runs.produce(source, events(20))
        with publisher(runs, source, database):
            wait_rows(database, list(range(20)))
        recreate(runs.admin, source, 2)
        runs.produce(source, events(40, 20))
        with publisher(runs, source, database) as refused:
            refused.wait()
            with pytest.raises(DataLossError, match=r"deleted and created again.*--accept-loss"):
                refused.end()
        with publisher(runs, source, database, accept_loss=True):
            wait_rows(database, list(range(60)))
        assert [bool(plan.replaces) for plan in ledger_records(runs, PlanRecord) if plan.ranges] == [False, True]

    def test_of_a_topic_that_is_created_again_as_long_as_it_was_is_an_error_too(self, runs: Runs, tmp_path: Path) -> None:
        """A member that is frozen, or publishes for a while, sees no step in between: only the end, which is where it was."""
        source, database = runs.topic("in", partitions=1), tmp_path / "d.sqlite"
        frozen, thawed = threading.Event(), threading.Event()

        class Freezing(SqliteSink):
            def commit(self, *, rejected: int) -> Any:
                outcome = super().commit(rejected=rejected)
                if 39 in rows(database):
                    frozen.set()
                    assert thawed.wait(60)
                return outcome

        runs.produce(source, events(20))
        with publisher(runs, source, database, Freezing) as freezing:
            wait_rows(database, list(range(20)))
            runs.produce(source, events(20, 20))
            assert frozen.wait(30)
            recreate(runs.admin, source, 1)
            runs.produce(source, events(40, 40))
            thawed.set()
            freezing.wait()
            with pytest.raises(DataLossError, match=r"deleted and created again.*--accept-loss"):
                freezing.end()

    def test_of_a_window_that_was_planned_and_not_published_is_recorded_with_it(self, runs: Runs, tmp_path: Path) -> None:
        source, database = runs.topic("in", partitions=1), tmp_path / "d.sqlite"

        class Dying(SqliteSink):
            def claim(self, claim: Any) -> Any:
                raise DiesError

        runs.produce(source, events(20))
        with publisher(runs, source, database, Dying) as died:
            died.wait()
        recreate(runs.admin, source, 1)
        runs.produce(source, events(40, 20))
        with publisher(runs, source, database) as refused:
            refused.wait()
            with pytest.raises(DataLossError, match=r"deleted and created again.*--accept-loss"):
                refused.end()
        with publisher(runs, source, database, accept_loss=True) as going_on:
            wait_rows(database, list(range(20, 60)))
            assert going_on.end().lost == 20
        results = [r.result for r in ledger_records(runs, StageRecord) if r.result is not None]
        assert [r.counts.lost for r in results if r.counts.lost] == [20]


def test_partitions_added_while_it_runs_are_published_too(runs: Runs, tmp_path: Path) -> None:
    from confluent_kafka.admin import NewPartitions

    source, database = runs.topic("in", partitions=1), tmp_path / "d.sqlite"
    runs.produce(source, events(10))
    with publisher(runs, source, database):
        wait_rows(database, list(range(10)))
        runs.admin.create_partitions([NewPartitions(source, 2)])[source].result()
        wait_for(lambda: runs.cluster.topic(source).partitions == 2, "the new partition")
        runs.produce(source, events(10, 10), partition=1)
        wait_rows(database, list(range(20)))


def test_a_database_that_is_away_for_a_while_is_waited_for(
    runs: Runs, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table, source = f"t_{runs.prefix.replace('-', '_')}", runs.topic("in", partitions=1)
    at = urlsplit(database_url)
    proxy = Proxy(at.hostname or "", at.port or 5432)
    monkeypatch.setenv("DATABASE_URL", at._replace(netloc=f"{at.username}:{at.password}@127.0.0.1:{proxy.port}").geturl())

    def ids() -> list[int]:
        with psycopg.connect(database_url) as database:
            if database.execute("SELECT to_regclass(%s)", [table]).fetchone() == (None,):
                return []
            return [row[0] for row in database.execute(f"SELECT event_id FROM {table} ORDER BY 1").fetchall()]

    with publisher(runs, source, tmp_path, lambda _: build({"table": table, "contract": CONTRACT})) as running:
        runs.produce(source, events(10))
        wait_for(lambda: ids() == list(range(10)), "the first rows")
        proxy.cut()
        runs.produce(source, events(10, 10))
        wait_for(lambda: caplog.text.count("waiting") > 1, "it to wait, and to try again")
        runs.produce(source, events(10, 20))
        proxy.mend()
        wait_for(lambda: ids() == list(range(30)), "all rows", patience=60)
        assert running.end().forwarded == 30
    proxy.close()


def test_a_database_that_is_not_there_at_the_start_is_told_at_once(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = runs.topic("in", partitions=1)
    runs.produce(source, events(10))
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody:secret@127.0.0.1:1/nowhere")
    with publisher(runs, source, tmp_path, lambda _: build({"table": "t", "contract": CONTRACT})) as refused:
        refused.wait()
        with pytest.raises(UnavailableError):
            refused.end()
