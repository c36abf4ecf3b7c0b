"""A file of DuckDB of a test's own, and the documents' sinks to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from factory_agents.testing import SinkTarget


class Duck(SinkTarget):
    """A file of DuckDB; ``module`` makes publishers to it."""

    def __init__(self, path: Path, module: str, name: str) -> None:
        self.path, self._make = path, getattr(__import__(module), name)

    def make(self) -> Any:
        return self._make(str(self.path))

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        with duckdb.connect(str(self.path)) as database:
            found: list[tuple[Any, ...]] = database.execute(sql).fetchall()
            return found

    def rows(self, *columns: str) -> list[tuple[Any, ...]]:
        return self.run(f"SELECT {', '.join(columns)} FROM events")

    def empty(self) -> None:
        self.run("DELETE FROM events")

    def drop(self) -> None:
        self.run("DROP TABLE events; DROP TABLE IF EXISTS events_deleted")
