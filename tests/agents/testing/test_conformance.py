"""The suite for sinks, over the sink of the documents; and that it finds what a sink does wrong."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from factory_agents.errors import SinkError
from factory_agents.testing import SinkConformance, SinkTarget
from factory_agents.testing.conformance import Publishers
from factory_agents.testing.records import at, event
from tests.support.documented import documented
from tests.support.duck import Duck
from tests.support.sqlite_sink import DocumentedSink
from tests.support.upserting_sink import Upserting


class Database(SinkTarget):
    """A file of one test's own."""

    def __init__(self, path: Path, make: type[Any] = DocumentedSink) -> None:
        self.path, self._make = path, make

    def make(self) -> Any:
        return self._make(str(self.path))

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.path) as database:
            return database.execute(sql).fetchall()

    def rows(self, *columns: str) -> list[tuple[Any, ...]]:
        return self.run(f"SELECT {', '.join(columns)} FROM events")

    def empty(self) -> None:
        self.run("DELETE FROM events")

    def drop(self) -> None:
        self.run("DROP TABLE events")


class TestTheDocumentedSink(SinkConformance):
    @pytest.fixture
    def target(self, tmp_path: Path) -> Database:
        return Database(tmp_path / "events.db")


class Store(SinkTarget):
    """A store of one test's own, which outlives its publishers."""

    def __init__(self) -> None:
        self.upserting = Upserting()

    def make(self) -> Any:
        return self.upserting

    def rows(self, *columns: str) -> list[tuple[Any, ...]]:
        return list(zip(*map(self.upserting.column, columns), strict=True))

    def empty(self) -> None:
        self.upserting.store.clear()

    drop = empty


class TestASinkWithoutTransactions(SinkConformance):
    IDEMPOTENT = True

    @pytest.fixture
    def target(self) -> Store:
        return Store()


class TestDuckDB(SinkConformance):
    HISTORIES = 5

    @pytest.fixture
    def target(self, examples: Path, tmp_path: Path) -> Duck:
        return Duck(tmp_path / "events.duckdb", "duck_sink", "DuckSink")


class Service(SinkTarget):
    """A service on loopback that upserts events by key and rank, and answers each idempotency key once."""

    def __init__(self) -> None:
        self.store: dict[Any, dict[str, Any]] = {}
        self.refuses: list[bool] = []
        """Which requests are refused, the last one first; all others are taken."""
        answers: dict[str, bytes] = {}
        lock, store, refuses = threading.Lock(), self.store, self.refuses

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    if refuses and refuses.pop():
                        self.send_error(400)
                        return
                    key = self.headers["Idempotency-Key"]
                    if key not in answers:
                        answers[key] = json.dumps({"written": sum(put(row, asked["key"]) for row in asked["rows"])}).encode()
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(answers[key])

            def log_message(self, *args: Any) -> None:
                pass

        def put(row: dict[str, Any], names: list[str]) -> bool:
            key = tuple(row[name] for name in names)
            if key in store and store[key]["_factory_rank"] > row["_factory_rank"]:
                return False
            store[key] = row
            return True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self._answers = answers

    def make(self) -> Any:
        return __import__("http_sink").HttpSink(f"http://127.0.0.1:{self._server.server_port}")

    def rows(self, *columns: str) -> list[tuple[Any, ...]]:
        return [tuple(row[name] for name in columns) for row in self.store.values()]

    def empty(self) -> None:
        self.store.clear()
        self._answers.clear()

    drop = empty

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class TestHttp(SinkConformance):
    IDEMPOTENT = True

    @pytest.fixture
    def target(self, examples: Path) -> Service:
        return Service()

    def test_an_attempt_that_reads_partitions_in_another_order_completes_one_that_died(
        self, publishers: Publishers, target: Service
    ) -> None:
        """Which the consumer does: requests that were answered already are not made of other rows."""
        parts = [at([event(f"{partition}-{n}") for n in range(400)], partition) for partition in range(2)]
        target.refuses[:] = [True, False]
        with pytest.raises(SinkError):
            publishers.publish(parts[0] + parts[1], fingerprint="f")
        assert len(target.store) == 500
        publishers.publish(parts[1] + parts[0], fingerprint="f")
        assert len(target.store) == 800


@pytest.mark.slow
def test_the_documented_test_runs_as_it_stands(tmp_path: Path) -> None:
    for name in ("sqlite_sink.py", "test_sqlite_sink.py"):
        (tmp_path / name).write_text(documented("own-sink.md", name))
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path))
    done = subprocess.run([*command, "-k", "zombie or hostile"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_the_documented_sink_is_short() -> None:
    lines = [line for line in documented("own-sink.md", "sqlite_sink.py").splitlines() if line.strip()]
    assert len(lines) <= 60


@pytest.mark.parametrize("name", ["duck_sink.py", "http_sink.py"])
def test_the_other_documented_sinks_are_shorter(name: str) -> None:
    assert len([line for line in documented("own-sink.md", name).splitlines() if line.strip()]) <= 50


class Forgetful(DocumentedSink):  # type: ignore[misc]
    """Never sweeps."""

    def land(self, landing: Any) -> Any:
        return super().land(type(landing)(**{f: getattr(landing, f) for f in landing.__struct_fields__} | {"stale": ()}))


class Careless(DocumentedSink):  # type: ignore[misc]
    """Changes an entry whatever it is."""

    def change(self, key: str, old: str | None, new: str) -> bool:
        self.db.execute("INSERT OR REPLACE INTO factory_ledger VALUES (?, ?)", [key, new])
        return True


class Torn(DocumentedSink):  # type: ignore[misc]
    """Its rows don't land together with its entry."""

    def land(self, landing: Any) -> Any:
        from factory_agents import failpoints

        done = super().land(landing)
        if done is not None:
            self.change(landing.key, landing.entry(done), landing.old)
            failpoints.hit("torn")
            self.change(landing.key, landing.old, landing.entry(done))
        return done


@pytest.mark.parametrize(
    ("make", "test"),
    [
        (Forgetful, "test_replaced_shrunk_and_emptied"),
        (Careless, "test_a_zombie_is_fenced_before_and_after_its_successor_lands"),
        (Torn, "test_a_publisher_that_dies_at_any_step_is_completed_by_the_next_one"),
    ],
)
def test_what_a_sink_does_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: type[Any], test: str) -> None:
    more: list[tuple[Any, ...]] = [(monkeypatch, first) for first in range(5)] if "dies" in test else [()]
    found = 0
    for i, arguments in enumerate(more):
        publishers = Publishers(Database(tmp_path / f"{i}.db", make))
        try:
            getattr(SinkConformance(), test)(publishers, *arguments)
        except (AssertionError, pytest.fail.Exception):
            found += 1
        finally:
            publishers.close()
    assert found
