"""What the sink's own ledger forgets goes as the pipeline's does, is refused afterwards, and never done again unsaid."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from factory_agents.errors import FencedError, WindowError
from factory_agents.kafka.cuts import plan_window
from factory_agents.kafka.pruner import prune_pipeline
from factory_agents.kafka.records import ALWAYS, MarkRecord
from factory_agents.protocol import Interval, Shard
from factory_agents.publish import build
from factory_agents.runtime.session import RunContext
from factory_agents.runtime.sink import run_sink
from tests.support.databases import own_database
from tests.support.runs import Runs, events
from tests.support.sink_bench import Bench, at, event

START = datetime(2026, 3, 1, tzinfo=UTC)


def hour(n: int) -> Interval:
    return Interval(START + timedelta(hours=n), START + timedelta(hours=n + 1))


def until(n: int, **more: Any) -> MarkRecord:
    """A topic's mark: windows that begin before this hour are forgotten."""
    return MarkRecord("p", "raw", spans=((ALWAYS, int(hour(n).start.timestamp() * 1_000_000)),), **more)


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    """A database of this test's own: the ledger's tables are its schema's."""
    with own_database(database_url, "horizon") as url:
        own = Bench(url)
        yield own
        own.close()


class Publisher:
    """Publishes windows of one origin to one table, and prunes behind itself."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, origin: str = "raw") -> None:
        monkeypatch.setenv("DATABASE_URL", bench.url)
        self.bench, self.origin = bench, origin

    def name(self, window: str, instance: str = "") -> str:
        return f"{window} {self.bench.pipeline} {self.origin}{instance}"

    def publish(self, window: str, *ids: str, mark: Callable[[], MarkRecord | None] | None = None, instance: str = "", **more: Any) -> int:
        sink = self.bench.sink()
        claim = self.bench.claim(self.name(window, instance), fingerprint=secrets.token_hex(4), **more)
        try:
            assert sink.claim(_of(claim, self.origin)) is None
            assert sink.write(at([event(i) for i in ids])) == {}
            sink.commit(rejected=0)
            return int(sink.prune(mark)) if mark is not None else 0
        finally:
            sink.close()

    def windows(self, table: str = "factory_publishes") -> set[str]:
        rows = self.bench.admin.execute(f"SELECT window_key FROM {table} WHERE pipeline = %s", [self.bench.pipeline]).fetchall()
        return {row[0].partition(" ")[0] for row in rows}

    def forget_the_look(self) -> None:
        self.bench.admin.execute("UPDATE factory_horizons SET looked_at = now() - interval '2 days'")


def _of(claim: Any, origin: str) -> Any:
    return replace(claim, origin=origin)


@pytest.fixture
def publisher(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Publisher:
    return Publisher(bench, monkeypatch)


def test_windows_below_the_mark_go_with_their_publications_and_their_rows_stay(publisher: Publisher) -> None:
    for n in range(5):
        publisher.publish(hour(n).key, f"h{n}")
    assert publisher.publish(hour(5).key, "h5", mark=lambda: until(3)) == 3
    left = {hour(n).key for n in (3, 4, 5)}
    assert publisher.windows() == publisher.windows("factory_publications") == left
    assert set(publisher.bench.rows()) == {f"h{n}" for n in range(6)}


def test_what_was_forgotten_is_refused_by_name_and_what_is_newer_is_not(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher.publish(hour(0).key, "a", mark=lambda: until(2))
    before = publisher.bench.content()
    for n in (0, 1):
        with pytest.raises(WindowError, match=r"window 2026-03-01T0[01]:.* was pruned from the ledger.*--pipeline"):
            publisher.publish(hour(n).key, "again")
    assert publisher.bench.content() == before
    publisher.publish(hour(2).key, "b")
    other = Publisher(publisher.bench, monkeypatch, origin="other")
    other.publish(hour(0).key, "c")
    assert set(publisher.bench.rows()) == {"a", "b", "c"}


def test_other_origins_stages_and_mapped_tasks_are_told_apart(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Publisher(publisher.bench, monkeypatch, origin="ra")  # neither a part of the name nor a pattern of it
    other.publish(hour(0).key, "o")
    publisher.publish(hour(0).key, "m", instance="[3]")
    publisher.publish(hour(0).key, "a")
    assert publisher.publish(hour(1).key, "b", mark=lambda: until(1)) == 2
    assert publisher.windows() == {hour(0).key, hour(1).key}
    with pytest.raises(WindowError, match="was pruned"):
        publisher.publish(hour(0).key, "m", instance="[4]")


def test_windows_without_an_interval_go_by_when_they_were_claimed(publisher: Publisher) -> None:
    for n, name in enumerate(("live-1-x", "manual__2", "with a space"), 1):
        publisher.publish(name, name, generation=n * 100)
    assert publisher.publish("live-4-x", "z", generation=400, mark=lambda: MarkRecord("p", "raw", offset=300)) == 2
    assert publisher.windows() == {"with", "live-4-x"}


def test_the_mark_is_looked_up_once_a_day(publisher: Publisher) -> None:
    asked: list[int] = []

    def mark() -> MarkRecord | None:
        asked.append(1)
        return None

    for n in range(3):
        publisher.publish(hour(n).key, f"h{n}", mark=mark)
    assert len(asked) == 1
    publisher.forget_the_look()
    assert publisher.publish(hour(3).key, "h3", mark=lambda: until(2)) == 2
    publisher.forget_the_look()
    publisher.publish(hour(4).key, "h4", mark=mark)
    with pytest.raises(WindowError, match="was pruned"):  # a ledger that tells of no mark takes none back
        publisher.publish(hour(1).key, "again")


def test_an_older_mark_takes_nothing_back(publisher: Publisher) -> None:
    for n in range(4):
        publisher.publish(hour(n).key, f"h{n}")
    assert publisher.publish(hour(4).key, "h4", mark=lambda: until(3)) == 3
    publisher.forget_the_look()
    assert publisher.publish(hour(5).key, "h5", mark=lambda: until(1)) == 0
    with pytest.raises(WindowError, match="was pruned"):
        publisher.publish(hour(2).key, "again")


def test_a_window_of_which_somebody_holds_a_row_stays_whole_until_the_next_time(publisher: Publisher) -> None:
    for n in range(2):
        for shard in (Shard(0, 2), Shard(1, 2)):
            publisher.publish(hour(n).key, f"h{n}{shard.index}", shard=shard)
    with psycopg.connect(publisher.bench.url) as other:
        held = "SELECT FROM factory_publishes WHERE window_key LIKE %s AND shard = 1 FOR UPDATE"
        other.execute(held, [f"{hour(0).key}%"])
        assert publisher.publish(hour(2).key, "h2", mark=lambda: until(2)) == 2
        assert publisher.windows() == publisher.windows("factory_publications") == {hour(0).key, hour(2).key}
    publisher.forget_the_look()
    assert publisher.publish(hour(3).key, "h3", mark=lambda: until(2)) == 2
    assert publisher.windows() == {hour(2).key, hour(3).key}


def test_a_prune_fences_who_claimed_a_window_that_it_forgets(publisher: Publisher) -> None:
    publisher.publish(hour(0).key, "a")
    sink = publisher.bench.sink()
    claim = _of(publisher.bench.claim(publisher.name(hour(0).key), fingerprint="other"), "raw")
    assert sink.claim(claim) is None
    sink.write(at([event("late")]))
    assert publisher.publish(hour(1).key, "b", mark=lambda: until(1)) == 1
    with pytest.raises(FencedError):
        sink.commit(rejected=0)
    with pytest.raises(WindowError, match="was pruned"):
        sink.claim(claim)
    assert set(publisher.bench.rows()) == {"a", "b"}


CONTRACT = {"name": "n", "id": "event_id", "columns": {"event_id": "bigint", "text": "text"}}


@pytest.mark.parametrize("killed", [False, True])
def test_a_publish_prunes_behind_the_pipelines_prune(runs: Runs, database_url: str, monkeypatch: pytest.MonkeyPatch, killed: bool) -> None:
    """The runtime, Kafka's ledger and PostgreSQL together; killed between deletion and commit, the next publish prunes."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    table = f"t_{runs.prefix.replace('-', '_')}"
    topic = runs.topic("in", partitions=1)
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=4)

    def window(n: int) -> Any:
        interval = Interval(start + timedelta(hours=n), start + timedelta(hours=n + 1))
        return plan_window(runs.config, pipeline=runs.prefix, topic=topic, interval=interval, run_key="r", prefix=runs.prefix)

    for n in range(4):
        runs.produce(topic, events(5, start=n * 5), timestamp=int((start + timedelta(hours=n, minutes=1)).timestamp() * 1000))
    params = {"table": table, "contract": CONTRACT}

    def publish(n: int) -> None:
        run = runs.run(window(n), name="publish", stage="publish", params=params, origin=topic)
        run_sink(RunContext(runs.config), run, lambda: build(params))

    def entries() -> int:
        with psycopg.connect(database_url) as database:
            return len(database.execute("SELECT FROM factory_publishes WHERE pipeline = %s", [runs.prefix]).fetchall())

    for n in range(3):
        publish(n)
    with psycopg.connect(database_url) as database:
        database.execute("UPDATE factory_horizons SET looked_at = now() - interval '2 days' WHERE pipeline = %s", [runs.prefix])
    done = prune_pipeline(runs.config, runs.prefix, prefix=runs.prefix, before=start + timedelta(hours=2))
    assert done.windows == 2
    if killed:
        run = runs.run(window(3), name="publish", stage="publish", params=params, origin=topic)
        attempt = runs.attempt(run, "postgres.before-prune=kill", secrets={"DATABASE_URL": database_url})
        assert attempt.wait() == -signal.SIGKILL, attempt.log
        assert entries() == 4
        run = runs.run(window(2), name="publish", stage="publish", params=params, origin=topic, rerun="redo", run_id="again")
        run_sink(RunContext(runs.config), run, lambda: build(params))
    else:
        publish(3)
    assert entries() == 2
    with pytest.raises(WindowError, match="was pruned"):
        publish(0)
    with psycopg.connect(database_url) as database:
        assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (20,)
