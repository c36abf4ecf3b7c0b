"""The documents' sink over SQLite, for tests of the runtime alone."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from factory_agents.contracts import load_contract
from factory_agents.runtime.exact_sink import ExactSink
from tests.support.documented import documented

__all__ = ["CONTRACT", "DocumentedSink", "SqliteSink", "published"]

CONTRACT = {"name": "events", "id": "event_id", "columns": {"event_id": "bigint", "text": "text"}}

_module: dict[str, Any] = {"__name__": __name__}
exec(compile(documented("own-sink.md", "sqlite_sink.py"), "docs/own-sink.md", "exec", dont_inherit=True), _module)
DocumentedSink: Any = _module["SqliteSink"]


class SqliteSink(ExactSink):
    """Events by ``event_id``, as the runtime drives it."""

    def __init__(self, path: Path, table: str = "events", version: str = "1") -> None:
        super().__init__(DocumentedSink(str(path), table), load_contract(CONTRACT).table(), {"table": table}, version=version)


def published(path: Path) -> list[int]:
    """The ids of the events in the table, in order; none where nobody made it yet."""
    if not path.exists():
        return []
    with closing(sqlite3.connect(path)) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'events'").fetchone():
            return []
        return [row[0] for row in database.execute("SELECT event_id FROM events ORDER BY 1")]
