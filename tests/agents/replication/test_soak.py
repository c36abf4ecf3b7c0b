"""A million changes through readers, a broker and a database that die: the copies are the source, in PostgreSQL and in Iceberg."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg
import pytest

from factory_agents.protocol import AgentRef, AgentResult, AgentRun
from factory_agents.stage_plan import stage_input
from tests.support.databases import own_database
from tests.support.iceberg import Bench
from tests.support.replication import CONTRACT, Source, source
from tests.support.runs import Attempt, Runs, own_runs
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from factory_agents.sandbox import Sandbox

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

CHANGES, AT_ONCE = int(os.environ.get("CHANGES", "1000000")), 10_000
CHUNK = CHANGES // 50  # so that five readers never come to a window's end


@pytest.fixture
def runs(own_sandbox: Sandbox, prefix: str) -> Iterator[Runs]:
    with own_runs(own_sandbox.info().bootstrap, prefix) as own:
        yield own


def change(url: str, table: str, first: int, count: int) -> None:
    """So many changes, also of keys, in transactions of ten thousand; one that a server's end cut off is made again."""
    done = 0
    while done < count:
        start = first + done
        try:
            with psycopg.connect(url) as connection:
                for statement in (
                    f"INSERT INTO {table} SELECT {start} + g, g, 'v' || g FROM generate_series(1, 6000) g",
                    f"UPDATE {table} SET a = a + 1, b = nullif(b, 'v7') WHERE id BETWEEN {start} + 1 AND {start} + 2000",
                    f"DELETE FROM {table} WHERE id BETWEEN {start} + 3001 AND {start} + 4000",
                    f"UPDATE {table} SET id = -id WHERE id BETWEEN {start} + 5001 AND {start} + 5500",
                    f"UPDATE {table} SET a = -1 WHERE id BETWEEN {start} - 9999 AND {start} - 9500",
                ):
                    connection.execute(statement.encode())
        except psycopg.OperationalError:
            continue
        done += AT_ONCE


def end(sandbox: Sandbox, pid: int | None, how: signal.Signals) -> None:
    """End a server at once, and start it again on what it left."""
    assert pid is not None
    os.kill(pid, how)
    wait_for(lambda: pid not in (sandbox.kafka_pid, sandbox.postgres_pid), "its end")
    sandbox.up()


def read(source: Source, run: AgentRun, rng: random.Random, kills: int, disturb: list[Any]) -> AgentResult:
    """A window read by one reader after the other, each killed somewhere, and with servers that end meanwhile."""
    for n in range(kills):
        point = rng.choice(("replicate.put", "replicate.put", "chunk.before-commit", "chunk.after-commit", "replicate.committed"))
        at = rng.randrange(CHUNK // 10, 4 * CHUNK) if point == "replicate.put" else rng.randrange(1, 4)
        attempt = source.runs.attempt(run, f"{point}=kill@{at}")
        if n < len(disturb):
            wait_for(lambda attempt=attempt: "replicat" in attempt.log or attempt.process.poll() is not None, "it to be at work")
            disturb[n]()
        code = attempt.wait(300)
        assert code in (-signal.SIGKILL, 75), (point, at, attempt.log)
    return finished(source.runs, run)


def finished(runs: Runs, run: AgentRun, **more: Any) -> AgentResult:
    attempt: Attempt | None = None
    for _ in range(3):  # as an orchestrator retries, where a server was away
        attempt = runs.attempt(run, **more)
        if attempt.wait(600) == 0:
            return attempt.result
    raise AssertionError(attempt and attempt.log)


def test_a_million_changes_outlive_ten_readers_and_both_servers(
    own_sandbox: Sandbox, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(int(os.environ.get("SEED", "1")))
    lake = Bench({"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/warehouse"})
    secrets = {"ICEBERG_CATALOG": json.dumps(lake.properties)}
    with own_database(own_sandbox.info().database_url, "replicated") as url:
        monkeypatch.setenv("DATABASE_URL", url)
        with source(runs, url) as own:
            own.create()
            change(url, own.table, 0, AT_ONCE)
            results = [own.replicate()]
            half = CHANGES // 2
            change(url, own.table, AT_ONCE, half)
            writer = threading.Thread(target=change, args=(url, own.table, AT_ONCE + half, half))
            writer.start()
            broker = lambda: end(own_sandbox, own_sandbox.kafka_pid, signal.SIGKILL)  # noqa: E731
            database = lambda: end(own_sandbox, own_sandbox.postgres_pid, signal.SIGQUIT)  # noqa: E731  # takes its children along
            results.append(read(own, own.window(chunk_records=CHUNK), rng, 5, [broker, database]))
            writer.join()
            own.reconnect()
            results.append(read(own, own.window(chunk_records=CHUNK), rng, 5, [database, broker]))
            for sink, params in (("postgres", {"table": "copy"}), ("iceberg", {"sink": "iceberg", "table": lake.table, "mode": "upsert"})):
                for result in results:
                    given = stage_input(msgspec.to_builtins(result), None)
                    run = AgentRun(
                        runs.prefix,
                        f"publish-{sink}",
                        AgentRef("publish"),
                        window=given.window,
                        shard=given.shard,
                        plan=given.plan,
                        params={"contract": CONTRACT, **params},
                        prefix=runs.prefix,
                        max_rejected="0",
                    )
                    finished(runs, run, secrets=secrets)
            with psycopg.connect(url, autocommit=True) as connection:
                wanted = connection.execute(f"SELECT id, a, b FROM {own.table} ORDER BY id".encode()).fetchall()
                assert connection.execute(b"SELECT id, a, b FROM copy ORDER BY id").fetchall() == wanted
            copied = lake.load().scan(selected_fields=("id", "a", "b")).to_arrow().select(["id", "a", "b"]).sort_by("id")
            assert _digest(zip(*(column.to_pylist() for column in copied.columns), strict=True)) == _digest(wanted)
            assert sum(result.counts.consumed for result in results) >= CHANGES


def _digest(rows: Any) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(tuple(row)).encode())
    return digest.hexdigest()
