"""Prepared transactions: their changes come once, when they are committed, and never where they are rolled back."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from factory_agents.sandbox import postgres
from factory_agents.sandbox.processes import free_port
from tests.agents.replication.test_publish import publish
from tests.support.databases import own_database
from tests.support.replication import Source, source
from tests.support.runs import Runs
from tests.support.waiting import wait_for

HOST = "127.0.0.1"


class Server:
    """A PostgreSQL of the module's own, which takes prepared transactions."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port(HOST)
        self.url = f"postgresql://factory:secret@{HOST}:{self.port}/postgres"
        self.process = postgres.start(folder, HOST, self.port, "secret", lambda _: None)
        postgres.wait_ready(folder, self.process)
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET max_prepared_transactions = 10")
        self.restart()

    def restart(self) -> None:
        postgres.end(self.process)
        self.process = postgres.start(self.folder, HOST, self.port, "secret", lambda _: None)
        postgres.wait_ready(self.folder, self.process)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    own = Server(tmp_path_factory.mktemp("prepared") / "factory" / "postgres")
    yield own
    postgres.end(own.process)


@pytest.fixture
def replicated(runs: Runs, server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    with own_database(server.url, "replicated") as url:
        monkeypatch.setenv("DATABASE_URL", url)
        with source(runs, url) as own:
            own.create()
            yield own
            for (gid,) in own.run("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"):
                own.run(f"ROLLBACK PREPARED '{gid}'")


def prepare(replicated: Source, gid: str, *statements: str) -> None:
    with psycopg.connect(replicated.url, autocommit=True) as connection:
        for statement in ("BEGIN", *statements, f"PREPARE TRANSACTION '{gid}'"):
            connection.execute(statement.replace("{}", replicated.table).encode())


def test_changes_come_when_they_are_committed_and_never_where_they_are_rolled_back(replicated: Source) -> None:
    replicated.run("INSERT INTO {} SELECT g, g, 'before' FROM generate_series(1, 5) g")
    publish(replicated, replicated.replicate())
    prepare(
        replicated, "kept", "INSERT INTO {} VALUES (10, 1, 'kept')", "UPDATE {} SET id = 20 WHERE id = 1", "DELETE FROM {} WHERE id = 2"
    )
    prepare(
        replicated, "gone", "INSERT INTO {} VALUES (11, 1, 'gone')", "UPDATE {} SET id = 30 WHERE id = 3", "DELETE FROM {} WHERE id = 4"
    )
    replicated.run("INSERT INTO {} VALUES (12, 1, 'beside')")
    beside = replicated.replicate()
    assert [c[0] for c in replicated.changes(beside)] == ["c"]
    publish(replicated, beside)
    assert replicated.checksum("copy") == replicated.checksum()
    replicated.run("ROLLBACK PREPARED 'gone'")
    assert replicated.replicate().counts.consumed == 0
    replicated.run("COMMIT PREPARED 'kept'")
    kept = replicated.replicate()
    assert [c[0] for c in replicated.changes(kept)] == ["c", "d", "c", "d"]
    publish(replicated, kept)
    assert replicated.checksum("copy") == replicated.checksum()
    assert replicated.replicate().counts.consumed == 0


def test_changes_outlive_readers_and_the_server_that_end_before_and_while_they_come(replicated: Source, server: Server) -> None:
    replicated.run("INSERT INTO {} SELECT g, g, 'before' FROM generate_series(1, 5) g")
    publish(replicated, replicated.replicate())
    prepare(replicated, "kept", "INSERT INTO {} SELECT g, g, 'kept' FROM generate_series(101, 200) g", "DELETE FROM {} WHERE id < 3")
    prepare(replicated, "gone", "INSERT INTO {} SELECT g, g, 'gone' FROM generate_series(201, 300) g", "DELETE FROM {} WHERE id = 3")
    replicated.run("INSERT INTO {} SELECT g, g, 'beside' FROM generate_series(1001, 1050) g")
    run = replicated.window(chunk_records=16)
    replicated.runs.killed(run, "replicate.committed=kill@2")
    server.restart()
    replicated.reconnect()
    replicated.run("COMMIT PREPARED 'kept'")
    replicated.run("ROLLBACK PREPARED 'gone'")
    beside = replicated.replicate(run)
    assert beside.counts.consumed == 50
    later = replicated.window(chunk_records=16)
    for point in ("replicate.put=kill@40", "chunk.before-commit=kill@2", "replicate.committed=kill@2"):
        replicated.runs.killed(later, point)
    kept = replicated.replicate(later)
    assert kept.counts.consumed == 102
    for result in (beside, kept):
        publish(replicated, result)
        replicated.records(result)
    assert replicated.checksum("copy") == replicated.checksum()


def test_a_live_reader_that_was_killed_meanwhile_brings_them_once(replicated: Source) -> None:
    everything = lambda: replicated.runs.everything(replicated.topic)  # noqa: E731
    reader = replicated.runs.attempt(live := replicated.of(None))
    replicated.run("INSERT INTO {} VALUES (1, 1, 'before')")
    wait_for(lambda: len(everything()) == 1, "the row to be there")
    prepare(replicated, "kept", "INSERT INTO {} VALUES (2, 1, 'kept')")
    reader.signal(signal.SIGKILL)
    reader.wait()
    replicated.run("COMMIT PREPARED 'kept'")
    replicated.run("INSERT INTO {} VALUES (3, 1, 'after')")
    reader = replicated.runs.attempt(live)
    wait_for(lambda: len(everything()) >= 3, "the changes to be there")
    reader.signal(signal.SIGTERM)
    assert reader.wait() == 0, reader.log
    assert sorted(r.event["after"]["id"] for r in everything()) == [1, 2, 3]


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_a_snapshot_waits_for_one_says_so_and_has_it_once(replicated: Source, end: str, caplog: pytest.LogCaptureFixture) -> None:
    replicated.run("INSERT INTO {} VALUES (1, 1, 'before')")
    prepare(replicated, "an order", "INSERT INTO {} VALUES (2, 2, 'prepared')", "UPDATE {} SET a = 5")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(replicated.replicate)
        wait_for(lambda: "making the slot waits" in caplog.text, "the line")
        assert not reading.done()
        replicated.run(f"{end} PREPARED 'an order'")
        first = reading.result()
    (line,) = [record for record in caplog.records if record.message.startswith("making the slot waits")]
    assert "an order" in str(vars(line))
    publish(replicated, first)
    publish(replicated, replicated.replicate())
    assert replicated.checksum("copy") == replicated.checksum()


def test_a_snapshot_that_is_gone_on_with_while_one_is_prepared_has_it_once(replicated: Source, caplog: pytest.LogCaptureFixture) -> None:
    """Prepared when the slot was there already, and committed before the rows are copied."""
    replicated.run("INSERT INTO {} SELECT g, g, 'before' FROM generate_series(1, 2500) g")
    first = replicated.window()
    replicated.runs.killed(first, "replicate.slot-made=kill@1")
    prepare(replicated, "kept", "INSERT INTO {} VALUES (3000, 2, 'prepared')", "UPDATE {} SET id = -id WHERE id < 100")
    caplog.set_level(logging.INFO)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(replicated.replicate, first)
        wait_for(lambda: "the copy waits for transactions" in caplog.text, "the line")
        replicated.run("COMMIT PREPARED 'kept'")
        copied = reading.result()
    publish(replicated, copied)
    assert replicated.checksum("copy") == replicated.checksum()
    publish(replicated, replicated.replicate())
    assert replicated.checksum("copy") == replicated.checksum()
