"""Promise 5, the runtime's part: what a sink committed is completed, never doubled, and the sink's own ledger decides.

The sink here is a small one over SQLite, so that these tests are of the runtime alone; PostgreSQL's has tests of its own.
"""

from __future__ import annotations

import dataclasses
import json
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from factory_agents.errors import AccountingError, ConfigurationError, StoppedError, TooManyRejectedError, UnavailableError
from factory_agents.kafka.ledger import read_result
from factory_agents.kafka.messages import Message
from factory_agents.protocol import AgentResult, AgentRun, Dataset, Order, Shard, Window, merge_results, shard_window
from factory_agents.publish import build
from factory_agents.runtime.agents import Reject, SinkOutcome
from factory_agents.runtime.session import RunContext
from factory_agents.runtime.sink import run_sink
from factory_agents.sandbox.state import bigquery_env
from tests.support.bigquery import Emulator
from tests.support.iceberg import Bench
from tests.support.runs import Attempt, Runs, events
from tests.support.snowflake import SnowflakeSchema
from tests.support.sqlite_sink import SqliteSink, published
from tests.support.waiting import wait_for

EVENTS = 300
POISON = [b"{broken", b'{"event_id": null}', None]


class Table:
    """The database of one test, and runs that publish to it."""

    def __init__(self, runs: Runs, path: Path) -> None:
        self.runs, self.path = runs, path
        topic = runs.topic("in", partitions=3)
        runs.produce(topic, [*events(EVENTS // 2), *POISON, *events(EVENTS // 2, EVENTS // 2)])
        self.run = runs.run(runs.window(topic), name="publish", stage="publish", dead_letter_topic=f"{topic}.dead")

    def rows(self) -> list[int]:
        return published(self.path)

    def forget(self) -> None:
        with sqlite3.connect(self.path) as database:
            database.executescript("DELETE FROM events; DELETE FROM factory_ledger;")

    def publish(self, run: AgentRun | None = None, make: Callable[[], Any] | None = None, **context: Any) -> AgentResult:
        return run_sink(RunContext(self.runs.config, **context), run or self.run, make or (lambda: SqliteSink(self.path)))

    def attempt(self, failpoints: str = "") -> Any:
        params = {"sink": "tests.support.sqlite_sink:SqliteSink", "path": str(self.path)}
        return self.runs.attempt(msgspec.structs.replace(self.run, params=params), failpoints)

    def check(self, result: AgentResult) -> None:
        """Every event is in the table once, every other is a dead letter once, and both ledgers and the counts say so."""
        counts = result.counts
        assert self.rows() == list(range(EVENTS))
        assert (counts.consumed, counts.forwarded, counts.rejected) == (EVENTS + 3, EVENTS, 3)
        assert (counts.written, counts.duplicates, counts.older) == (EVENTS, 0, 0)
        letters = self.runs.manifest(result.dead_letters)
        assert sorted(str(r.value) for r in letters) == sorted(map(str, POISON))
        assert len(self.runs.everything(self.run.dead_letter_topic)) == 3
        run = self.run
        stored = read_result(self.runs.config, run.work, prefix=run.prefix)
        assert stored is not None
        assert stored.counts == counts


@pytest.fixture
def table(runs: Runs, tmp_path: Path) -> Table:
    return Table(runs, tmp_path / "sink.db")


POINTS = [
    "start.after-init@1",
    "chunk.before-ledger@1",
    "chunk.before-commit@1",
    "chunk.after-commit@1",
    "sink.before-commit@1",
    "sink.after-commit@1",
    "chunk.before-ledger@2",
    "chunk.before-commit@2",
    "chunk.after-commit@2",
]


@pytest.mark.parametrize("point", POINTS)
def test_a_publisher_killed_anywhere_is_completed_by_the_next_one(table: Table, point: str) -> None:
    name, _, nth = point.partition("@")
    attempt = table.attempt(f"{name}=kill@{nth}")
    assert attempt.wait() == -signal.SIGKILL, attempt.log
    committed = table.rows() != []
    result = table.publish()
    table.check(result)
    assert result.reused == committed


@pytest.mark.parametrize("seed", range(2))
def test_publishers_killed_at_random_again_and_again_lose_and_double_nothing(table: Table, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(3):
        name = rng.choice(POINTS).partition("@")[0]
        attempt = table.attempt(f"{name}=kill@{rng.randint(1, 2)}")
        assert attempt.wait() in (0, -signal.SIGKILL), attempt.log
    table.check(table.publish())


@pytest.mark.parametrize("point", ["chunk.before-commit", "sink.before-commit", "sink.after-commit"])
def test_a_zombie_publisher_is_fenced(table: Table, point: str) -> None:
    zombie = table.attempt(f"{point}=stop")
    zombie.wait_stopped()
    result = table.publish()
    zombie.signal(signal.SIGCONT)
    assert zombie.wait() == 75, zombie.log
    table.check(result)


@pytest.mark.parametrize("point", ["start.after-init@1", "sink.asking@1", "sink.answered@1"])
def test_a_zombie_that_had_not_claimed_yet_replaces_nothing(runs: Runs, tmp_path: Path, point: str) -> None:
    """It is of other work than what landed meanwhile, which the sink's ledger alone can't tell from newer work."""
    topic, path = runs.topic("in"), tmp_path / "sink.db"
    runs.produce(topic, events(3))
    run = runs.run(runs.window(topic), name="publish", stage="publish")

    def attempt(version: str, failpoints: str = "") -> Attempt:
        params = {"sink": "tests.support.sqlite_sink:SqliteSink", "path": str(path), "version": version}
        return runs.attempt(msgspec.structs.replace(run, params=params), failpoints)

    name, _, nth = point.partition("@")
    zombie = attempt("1", f"{name}=stop@{nth}")
    zombie.wait_stopped()
    newer = attempt("2")
    assert newer.wait() == 0, newer.log
    with sqlite3.connect(path) as database:
        landed = database.execute("SELECT DISTINCT _factory_publication FROM events").fetchall()
        zombie.signal(signal.SIGCONT)
        assert zombie.wait() == 75, zombie.log
        assert database.execute("SELECT DISTINCT _factory_publication FROM events").fetchall() == landed


def test_an_identical_run_publishes_nothing_again(table: Table) -> None:
    table.check(table.publish())
    again = table.publish()
    assert again.reused
    table.check(again)


def test_the_sinks_ledger_decides_where_the_two_differ(table: Table) -> None:
    """A restored or emptied database is filled again, although Kafka's ledger says that all is done."""
    table.publish()
    table.forget()
    result = table.publish()
    assert not result.reused
    assert table.rows() == list(range(EVENTS))


def test_a_version_that_was_overwritten_in_the_sink_is_published_again_when_it_comes_back(table: Table) -> None:
    table.publish()
    broken = SqliteSink(table.path)
    broken.version = "2"
    broken_commit = broken.commit

    def commit(*, rejected: int) -> SinkOutcome:
        broken_commit(rejected=rejected)
        raise UnavailableError("the answer is lost")

    broken.commit = commit  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        table.publish(make=lambda: broken)
    result = table.publish()  # back to the old version, whose result is the last in Kafka's ledger
    assert not result.reused
    assert table.rows() == list(range(EVENTS))


def test_a_clear_and_a_redo_publish_again_and_replace(table: Table) -> None:
    table.publish()
    for changes in ({"order": Order("r", again=True)}, {"rerun": "redo"}):
        result = table.publish(msgspec.structs.replace(table.run, **changes))
        assert not result.reused
        assert (result.counts.written, result.counts.removed) == (EVENTS, 0)
        assert table.rows() == list(range(EVENTS))


def test_dead_letters_of_an_earlier_attempt_are_not_sent_again(table: Table) -> None:
    class Failing(SqliteSink):
        def commit(self, *, rejected: int) -> SinkOutcome:
            raise UnavailableError("the database is away")

    for _ in range(2):
        with pytest.raises(UnavailableError):
            table.publish(make=lambda: Failing(table.path))
    assert table.rows() == []
    table.check(table.publish())


def test_no_kafka_transaction_is_open_while_the_sink_works(table: Table) -> None:
    """A sink that is slower than the transaction timeout publishes all the same."""
    runs = table.runs

    class Slow(SqliteSink):
        def write(self, messages: Sequence[Message]) -> dict[int, Reject]:
            self.look()
            return super().write(messages)

        def commit(self, *, rejected: int) -> SinkOutcome:
            self.look()
            return super().commit(rejected=rejected)

        def look(self) -> None:
            dead = runs.cluster.find(table.run.dead_letter_topic)
            if dead is not None:
                partitions = range(dead.partitions)
                ask = runs.cluster
                # a commit is visible some moments late
                wait_for(
                    lambda: ask.stable_offset(dead.name, partitions) == ask.high_watermark(dead.name, partitions), "no open transaction"
                )

    table.check(table.publish(make=lambda: Slow(table.path)))


def test_shards_publish_side_by_side(table: Table) -> None:
    runs = table.runs
    assert table.run.window is not None
    shards = shard_window(table.run.window, 3)
    runs_of_shards = [msgspec.structs.replace(table.run, window=w, shard=Shard(i, 3)) for i, w in enumerate(shards)]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(table.publish, runs_of_shards))
    assert table.rows() == list(range(EVENTS))
    assert sum(r.counts.consumed for r in results) == EVENTS + 3
    assert len(runs.everything(table.run.dead_letter_topic)) == 3


def test_what_does_not_add_up_at_the_sink_fails_the_run(table: Table) -> None:
    class Miscounting(SqliteSink):
        def commit(self, *, rejected: int) -> SinkOutcome:
            outcome = super().commit(rejected=rejected)
            return dataclasses.replace(outcome, written=outcome.written - 1)

    with pytest.raises(AccountingError, match="300 rows went to 'events', but 299 written"):
        table.publish(make=lambda: Miscounting(table.path))


def test_too_many_rejected_publish_nothing_and_can_be_looked_at(table: Table) -> None:
    with pytest.raises(TooManyRejectedError):
        table.publish(msgspec.structs.replace(table.run, max_rejected="1"))
    assert table.rows() == []
    assert len(table.runs.everything(table.run.dead_letter_topic)) == 3
    table.check(table.publish())


def test_a_tombstone_that_means_nothing_is_a_dead_letter_but_no_bad_event(table: Table) -> None:
    """Of the three dead letters one is a record without a value."""
    table.check(table.publish(msgspec.structs.replace(table.run, max_rejected="2")))


def test_asked_to_stop_nothing_is_published(table: Table) -> None:
    with pytest.raises(StoppedError):
        table.publish(stop=lambda: True)
    assert table.rows() == []
    table.check(table.publish())


def test_a_dry_run_counts_what_it_would_publish_and_touches_neither_sink_nor_ledger(table: Table) -> None:
    shown: list[bytes | None] = []
    run = msgspec.structs.replace(table.run, dry_run=True)
    result = table.publish(run, show=lambda _topic, _key, value: shown.append(value))
    assert result.counts.consumed == EVENTS + 3
    assert len(shown) == EVENTS + 1, "one of the three poisonous ones is an event"
    assert [(r.rule, r.count) for r in result.reasons] == [("decode", 1), ("decode", 1)]
    assert table.rows() == []
    assert table.runs.cluster.find(f"{run.prefix}.ledger") is None


def test_a_dead_letter_that_does_not_fit_is_a_pointer_and_where_that_does_not_either_says_what_to_do(runs: Runs, tmp_path: Path) -> None:
    topic = runs.topic("in", partitions=1, max_message_bytes=3_000_000)
    runs.produce(topic, [b"x" + random.Random(1).randbytes(50_000).hex().encode()])
    for limit in (5000, 500):
        letters = runs.topic("in.dead", partitions=1, max_message_bytes=limit)
        run = runs.run(runs.window(topic), name="publish", stage=f"publish-{limit}", dead_letter_topic=letters, max_rejected="100 %")
        if limit == 500:
            with pytest.raises(ConfigurationError, match=r"max.message.bytes"):
                run_sink(RunContext(runs.config), run, lambda: SqliteSink(tmp_path / "db"))
        else:
            run_sink(RunContext(runs.config), run, lambda: SqliteSink(tmp_path / "db"))
            (letter,) = runs.everything(letters)
            assert (letter.value, letter.dead_letter["size"]) == (None, 100_001)


def test_a_whole_pipeline_lands_each_event_once(runs: Runs, tmp_path: Path) -> None:
    """enrich in two shards, then publish what their manifests name."""
    out = runs.topic("out")
    shards = shard_window(runs.filled(EVENTS), 2)
    results = [runs.transform(runs.run(w, out, shard=Shard(i, 2), chunk_records=40)) for i, w in enumerate(shards)]
    run = runs.run(merge_results(results), name="publish", stage="publish")
    result = run_sink(RunContext(runs.config), run, lambda: SqliteSink(tmp_path / "db"))
    assert result.counts.written == EVENTS
    assert result.manifest is None


@pytest.mark.parametrize("point", ["postgres.before-commit", "postgres.committed", "sink.after-commit"])
def test_a_publisher_to_postgresql_killed_around_its_commit_is_completed(runs: Runs, database_url: str, point: str) -> None:
    """The runtime and the real sink together, as an orchestrator starts them."""
    table = f"t_{runs.prefix.replace('-', '_')}"
    with psycopg.connect(database_url, autocommit=True) as database:
        database.execute(f"CREATE TABLE {table} (event_id bigint PRIMARY KEY, text text)")
    run = runs.run(runs.filled(EVENTS), name="publish", stage="publish", params={"table": table})
    attempt = runs.attempt(run, f"{point}=kill", secrets={"DATABASE_URL": database_url})
    assert attempt.wait() == -signal.SIGKILL, attempt.log
    attempt = runs.attempt(run, secrets={"DATABASE_URL": database_url})
    assert attempt.wait() == 0, attempt.log
    result = attempt.result
    assert (result.counts.consumed, result.counts.written) == (EVENTS, EVENTS)
    assert result.reused == (point != "postgres.before-commit")
    with psycopg.connect(database_url) as database:
        rows = database.execute(f"SELECT event_id, text FROM {table} ORDER BY event_id").fetchall()
    assert rows == [(n, f"event {n}") for n in range(EVENTS)]


BY_ID = {"name": "n", "id": "event_id", "columns": {"event_id": "bigint", "text": "text"}}


class TestPostgresql:
    """The runtime and the real sink in one process, over windows that are of no interval, as since_last's and live ones are."""

    @pytest.fixture
    def publish(self, runs: Runs, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[Window], AgentResult]:
        monkeypatch.setenv("DATABASE_URL", database_url)
        params = {"table": f"t_{runs.prefix.replace('-', '_')}", "contract": BY_ID}

        def publish(window: Window) -> AgentResult:
            run = runs.run(window, name="publish", stage="publish", params=params)
            return run_sink(RunContext(runs.config), run, lambda: build(params))

        return publish

    def rows(self, runs: Runs, database_url: str) -> list[Any]:
        with psycopg.connect(database_url) as database:
            return database.execute(f"SELECT text FROM t_{runs.prefix.replace('-', '_')} ORDER BY event_id").fetchall()

    def test_the_later_record_of_an_id_wins_whatever_its_partition(
        self, runs: Runs, database_url: str, publish: Callable[[Window], AgentResult]
    ) -> None:
        topic, now = runs.topic("in", partitions=4), int(time.time() * 1000)
        runs.produce(topic, [b'{"event_id": 1, "text": "first"}'], partition=3, timestamp=now)
        first = runs.window(topic, "run-1")
        runs.produce(topic, [b'{"event_id": 1, "text": "second"}'], partition=0, timestamp=now + 1)
        both = runs.window(topic, "run-2")
        second = msgspec.structs.replace(both, ranges=tuple(r for r in both.ranges if r.partition == 0))
        for order in ((first, second), (second, first), (both,)):
            for window in order:
                publish(window)
            assert self.rows(runs, database_url) == [("second",)]

    def test_a_record_without_a_value_deletes_its_keys_row_where_the_contract_says_so(
        self, runs: Runs, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", database_url)
        params = {"table": f"t_{runs.prefix.replace('-', '_')}", "contract": BY_ID | {"deletes": True}}
        topic = runs.topic("in", partitions=1)
        for n in range(4):
            runs.produce(topic, [b'{"event_id": %d, "text": "%d"}' % (n, n)], key=str(n))
        runs.produce(topic, [None], key="1")
        runs.produce(topic, [None], key="3")
        runs.produce(topic, [b'{"event_id": 3, "text": "again"}'], key="3")
        run = runs.run(runs.window(topic), name="publish", stage="publish", params=params)
        for _ in range(2):
            counts = run_sink(RunContext(runs.config), run, lambda: build(params)).counts
            assert (counts.consumed, counts.forwarded, counts.rejected) == (7, 7, 0)
            assert (counts.written, counts.duplicates, counts.deleted) == (3, 3, 1)
            assert self.rows(runs, database_url) == [("0",), ("2",), ("again",)]
            run = msgspec.structs.replace(run, rerun="redo")

    def test_a_record_that_does_not_delete_what_it_means_to_is_a_bad_one(
        self, runs: Runs, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its key names no row, or the database keeps the row: both count against ``max_rejected``."""
        monkeypatch.setenv("DATABASE_URL", database_url)
        table = f"t_{runs.prefix.replace('-', '_')}"
        topic = runs.topic("in", partitions=1)
        runs.produce(topic, [b'{"event_id": 1, "text": "1"}'], key="1")
        params = {"table": table, "contract": BY_ID | {"deletes": True}}
        run = runs.run(runs.window(topic), name="publish", stage="publish", params=params, dead_letter_topic=f"{topic}.dead")
        run_sink(RunContext(runs.config), run, lambda: build(params))
        with psycopg.connect(database_url, autocommit=True) as database:
            database.execute(f"CREATE TABLE child_{table} (id bigint REFERENCES {table})")
            database.execute(f"INSERT INTO child_{table} VALUES (1)")
        runs.produce(topic, [None], key="no number")
        runs.produce(topic, [None], key="1")
        run = msgspec.structs.replace(run, window=runs.window(topic, "run-2"), max_rejected="1")
        with pytest.raises(TooManyRejectedError, match="2 of 3"):
            run_sink(RunContext(runs.config), run, lambda: build(params))
        run = msgspec.structs.replace(run, max_rejected="2")
        counts = run_sink(RunContext(runs.config), run, lambda: build(params)).counts
        assert (counts.rejected, counts.written, counts.deleted) == (2, 1, 0)
        assert self.rows(runs, database_url) == [("1",)]

    def test_a_table_that_was_emptied_is_filled_again_though_both_ledgers_have_the_result(
        self, runs: Runs, database_url: str, publish: Callable[[Window], AgentResult]
    ) -> None:
        window = runs.filled(10)
        publish(window)
        assert publish(window).reused
        with psycopg.connect(database_url) as database:
            database.execute(f"TRUNCATE t_{runs.prefix.replace('-', '_')}")
        result = publish(window)
        assert (result.reused, result.counts.written) == (False, 10)
        assert len(self.rows(runs, database_url)) == 10


class TestRowsThatTheDatabaseRefuses:
    """They are dead letters, of a window that lands without them, as far as ``max_rejected`` allows."""

    BAD = (3, 77, 250)

    @pytest.fixture
    def run(self, runs: Runs, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AgentRun:
        monkeypatch.setenv("DATABASE_URL", database_url)
        name = self.table(runs)
        with psycopg.connect(database_url, autocommit=True) as database:
            numbers = ", ".join(map(str, self.BAD))
            database.execute(
                f"CREATE TABLE {name} (event_id bigint PRIMARY KEY CONSTRAINT not_these CHECK (event_id NOT IN ({numbers})), text text)"
            )
        topic = runs.topic("in", partitions=3)
        runs.produce(topic, [*events(EVENTS // 2), b"{broken", *events(EVENTS // 2, EVENTS // 2)])
        return runs.run(
            runs.window(topic), name="publish", stage="publish", params={"table": name}, dead_letter_topic=f"{topic}.dead", max_rejected="4"
        )

    def table(self, runs: Runs) -> str:
        return f"t_{runs.prefix.replace('-', '_')}"

    def rows(self, runs: Runs, database_url: str) -> list[int]:
        with psycopg.connect(database_url) as database:
            return [row[0] for row in database.execute(f"SELECT event_id FROM {self.table(runs)} ORDER BY 1").fetchall()]

    def check(self, runs: Runs, database_url: str, run: AgentRun, result: AgentResult) -> None:
        counts = result.counts
        assert (counts.consumed, counts.forwarded, counts.written, counts.rejected) == (EVENTS + 1, EVENTS - 3, EVENTS - 3, 4)
        assert self.rows(runs, database_url) == [n for n in range(EVENTS) if n not in self.BAD]
        letters = runs.manifest(result.dead_letters)
        assert sorted(r.dead_letter["rule"] for r in letters) == ["decode", "not_these", "not_these", "not_these"]
        assert {r.event["event_id"] for r in letters if r.value != b"{broken"} == set(self.BAD)
        assert len(runs.everything(run.dead_letter_topic)) == 4

    def test_are_dead_lettered_whole_by_the_constraints_name(self, runs: Runs, database_url: str, run: AgentRun) -> None:
        for _ in range(2):
            result = run_sink(RunContext(runs.config), run, lambda: build(run.params))
            self.check(runs, database_url, run, result)
        assert result.reused

    def test_past_the_limit_publish_nothing_and_can_be_looked_at(self, runs: Runs, database_url: str, run: AgentRun) -> None:
        strict = msgspec.structs.replace(run, max_rejected="3")
        with pytest.raises(TooManyRejectedError, match="4 of 301"):
            run_sink(RunContext(runs.config), strict, lambda: build(run.params))
        assert self.rows(runs, database_url) == []
        assert len(runs.everything(run.dead_letter_topic)) == 4

    @pytest.mark.parametrize("point", ["postgres.before-commit", "postgres.committed", "sink.after-commit", "chunk.before-commit@2"])
    def test_are_dead_lettered_once_by_a_publisher_killed_around_its_commits(
        self, runs: Runs, database_url: str, run: AgentRun, point: str
    ) -> None:
        name, _, nth = point.partition("@")
        killed = runs.attempt(run, f"{name}=kill{f'@{nth}' if nth else ''}", secrets={"DATABASE_URL": database_url})
        assert killed.wait() == -signal.SIGKILL, killed.log
        result = run_sink(RunContext(runs.config), run, lambda: build(run.params))
        self.check(runs, database_url, run, result)


@pytest.mark.parametrize(
    "point",
    [
        "sink.before-landing",
        "sink.landed",
        *(
            pytest.param(point, marks=pytest.mark.soak)
            for point in ("start.after-init", "sink.claimed", "sink.staging", "sink.after-commit")
        ),
    ],
)
def test_a_publisher_to_bigquery_killed_at_any_step_is_completed(runs: Runs, emulator: Emulator, point: str) -> None:
    """The runtime and the sink together, as an orchestrator starts them; events that don't fit are dead letters that say why."""
    topic = runs.topic("in", partitions=2)
    runs.produce(topic, [*events(EVENTS // 2), *POISON, b'{"event_id": 7.5, "text": "seven"}', *events(EVENTS // 2, EVENTS // 2)])
    contract = {"name": "events", "columns": {"event_id": "bigint", "text": "text"}}
    params = {"sink": "bigquery", "table": f"{emulator.dataset}.t", "contract": contract}
    run = runs.run(runs.window(topic), name="publish", stage="publish", params=params, dead_letter_topic=f"{topic}.dead")
    secrets = bigquery_env(emulator.url)
    attempt = runs.attempt(run, f"{point}=kill", secrets=secrets)
    assert attempt.wait(180) == -signal.SIGKILL, attempt.log
    attempt = runs.attempt(run, secrets=secrets)
    assert attempt.wait(180) == 0, attempt.log
    result = attempt.result
    assert result.table == f"local.{emulator.dataset}.t"
    assert (result.counts.consumed, result.counts.written, result.counts.rejected) == (EVENTS + 4, EVENTS, 4)
    assert result.reused == (point in ("sink.landed", "sink.after-commit"))
    assert emulator.query("SELECT event_id, text FROM {d}.t ORDER BY 1") == [(n, f"event {n}") for n in range(EVENTS)]
    letters = runs.everything(run.dead_letter_topic)
    assert len(letters) == 4
    reasons = {str(letter.value): letter.dead_letter["error"] for letter in letters}
    assert reasons['b\'{"event_id": 7.5, "text": "seven"}\''].startswith("column 'event_id': expected `int`, got `float`: 7.5")


@pytest.mark.parametrize(
    "point",
    [
        "snowflake.answered@21",  # in the landing's transaction: the next publisher waits until Snowflake has ended it
        "sink.landed",
        *(
            pytest.param(point, marks=pytest.mark.soak)
            for point in ("sink.claimed", "sink.staging", "sink.before-landing", "sink.after-commit")
        ),
    ],
)
def test_a_publisher_to_snowflake_killed_at_any_step_is_completed(runs: Runs, snowflake: SnowflakeSchema, point: str) -> None:
    topic = runs.topic("in", partitions=2)
    runs.produce(topic, [*events(EVENTS // 2), *POISON, b'{"event_id": 7.5, "text": "seven"}', *events(EVENTS // 2, EVENTS // 2)])
    contract = {"name": "events", "columns": {"event_id": "bigint", "text": "text"}}
    params = {"sink": "snowflake", "table": "t", "contract": contract, "timeout": 60}
    run = runs.run(runs.window(topic), name="publish", stage="publish", params=params, dead_letter_topic=f"{topic}.dead")
    name, _, nth = point.partition("@")
    attempt = runs.attempt(run, f"{name}=kill{f'@{nth}' if nth else ''}", secrets=snowflake.environment)
    assert attempt.wait(180) == -signal.SIGKILL, attempt.log
    attempt = runs.attempt(run, secrets=snowflake.environment)
    assert attempt.wait(180) == 0, attempt.log
    result = attempt.result
    assert result.dataset == Dataset("snowflake", f"LOCAL.{snowflake.name}.T", "local")
    assert (result.counts.consumed, result.counts.written, result.counts.rejected) == (EVENTS + 4, EVENTS, 4)
    assert result.reused == (point in ("sink.landed", "sink.after-commit"))
    assert snowflake.query("SELECT EVENT_ID, TEXT FROM T ORDER BY 1") == [(n, f"event {n}") for n in range(EVENTS)]
    assert len(runs.everything(run.dead_letter_topic)) == 4
    assert "WARNING" not in attempt.log


@pytest.mark.parametrize("mode", ["append", "upsert"])
@pytest.mark.parametrize(
    "point",
    [
        "iceberg.before-commit@2",  # of the landing: files are written, and no snapshot names them
        "iceberg.committed@2",
        *(
            pytest.param(point, marks=pytest.mark.soak)
            for point in ("iceberg.committed@1", "sink.claimed", "sink.staging", "sink.before-landing", "sink.landed", "sink.after-commit")
        ),
    ],
)
def test_a_publisher_to_iceberg_killed_at_any_step_is_completed(runs: Runs, tmp_path: Path, point: str, mode: str) -> None:
    topic = runs.topic("in", partitions=2)
    runs.produce(topic, [*events(EVENTS // 2), *POISON, b'{"event_id": 7.5, "text": "seven"}', *events(EVENTS // 2, EVENTS // 2)])
    bench = Bench({"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/warehouse"})
    contract = {"name": "events", "columns": {"event_id": "bigint", "text": "text"}}
    params = {"sink": "iceberg", "table": bench.table, "contract": contract, "mode": mode, "timeout": 60}
    run = runs.run(runs.window(topic), name="publish", stage="publish", params=params, dead_letter_topic=f"{topic}.dead")
    secrets = {"ICEBERG_CATALOG": json.dumps(bench.properties)}
    name, _, nth = point.partition("@")
    attempt = runs.attempt(run, f"{name}=kill{f'@{nth}' if nth else ''}", secrets=secrets)
    assert attempt.wait(180) == -signal.SIGKILL, attempt.log
    attempt = runs.attempt(run, secrets=secrets)
    assert attempt.wait(180) == 0, attempt.log
    result = attempt.result
    assert result.dataset == Dataset("iceberg", bench.table, f"{tmp_path}/catalog.db")
    assert (result.counts.consumed, result.counts.written, result.counts.rejected) == (EVENTS + 4, EVENTS, 4)
    assert result.reused == (point in ("iceberg.committed@2", "sink.landed", "sink.after-commit"))
    assert bench.rows("event_id", "text") == sorted(((n, f"event {n}") for n in range(EVENTS)), key=repr)
    assert len(runs.everything(run.dead_letter_topic)) == 4
    assert "WARNING" not in attempt.log
