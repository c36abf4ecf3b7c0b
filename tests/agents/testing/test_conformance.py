"""The suite for sinks, over the sink of the documents; and that it finds what a sink does wrong."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from factory_agents.testing import SinkConformance, SinkTarget
from factory_agents.testing.conformance import Publishers
from tests.support.documented import documented
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
