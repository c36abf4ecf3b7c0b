"""A source table of a test's own, readers of its log, and a copy of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg
from psycopg import sql

from factory_agents.protocol import AgentRef, AgentResult, AgentRun, Interval
from factory_agents.replicate import build, log_name
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext
from tests.support.runs import Rec, Runs

CONTRACT: dict[str, Any] = {
    "name": "copy",
    "id": "id",
    "key": "id",
    "version_field": "__lsn",
    "deletes": True,
    "columns": {"id": "bigint", "a": "bigint", "b": "text", "__lsn": "bigint"},
}
CHECKSUM = "SELECT count(*), md5(string_agg(concat_ws('|', id, a, b), ',' ORDER BY id)) FROM {}"


class Source:
    """A table ``(id, a, b)`` whose changes are replicated to a topic in windows, hour after hour."""

    def __init__(self, runs: Runs, url: str, connection: psycopg.Connection[Any]) -> None:
        self.runs, self.url, self.connection = runs, url, connection
        self.table = f"src_{runs.prefix.replace('-', '_')}"
        self.topic = runs.topic("changes", partitions=3)
        self.params: dict[str, Any] = {"table": self.table}
        self._until = datetime.now(UTC) - timedelta(hours=1)

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        """A statement in which ``{}`` is the table."""
        cursor = self.connection.execute(sql.SQL(statement).format(sql.Identifier(self.table)))
        return cursor.fetchall() if cursor.description is not None else []

    def create(self, columns: str = "id bigint PRIMARY KEY, a bigint, b text") -> None:
        self.run(f"CREATE TABLE {{}} ({columns})")

    def window(self, **more: Any) -> AgentRun:
        """A window from the end of the one before it until now."""
        start, self._until = self._until, datetime.now(UTC)
        return self.of(Interval(start, self._until), **more)

    def of(self, interval: Interval | None, **more: Any) -> AgentRun:
        params = self.params | more.pop("params", {})
        run = AgentRun(
            self.runs.prefix,
            "replicate",
            AgentRef("replicate"),
            params=params,
            interval=interval,
            name="" if interval is not None else "live",
            origin=log_name(params),
            output_topic=self.topic,
            prefix=self.runs.prefix,
            max_rejected="0",
        )
        return msgspec.structs.replace(run, **more)

    def replicate(self, run: AgentRun | None = None, **context: Any) -> AgentResult:
        """A window, here and now."""
        return execute(RunContext(self.runs.config, **context), run or self.window())

    def records(self, result: AgentResult) -> list[Rec]:
        """What a window wrote, in the order of each key."""
        return sorted(self.runs.manifest(result.manifest), key=lambda r: (r.partition, r.offset))

    def changes(self, result: AgentResult) -> list[tuple[str, Any, Any]]:
        """What a window wrote as op, before and after, in the log's order; tombstones are left out."""
        events = [r.event for r in self.records(result) if r.value is not None]
        events.sort(key=lambda event: (event["source"]["lsn"], event["op"] != "d"))
        return [(event["op"], event["before"], event["after"]) for event in events]

    @property
    def slot(self) -> str:
        return build(self.params, self.of(None)).slot

    def confirmed(self) -> int:
        rows = self.connection.execute(
            "SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = %s", [self.slot]
        ).fetchall()
        return int(rows[0][0]) if rows else -1

    def checksum(self, table: str = "") -> Any:
        return self.connection.execute(sql.SQL(CHECKSUM).format(sql.Identifier(table or self.table))).fetchone()

    def reconnect(self) -> None:
        """Connect again, where the server has died since."""
        self.connection.close()
        self.connection = psycopg.connect(self.url, autocommit=True)

    def end(self) -> None:
        """Drop its slots, by a connection of its own: the other one's server may have died since."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            ours = "FROM pg_replication_slots WHERE database = current_database()"
            connection.execute(f"SELECT pg_terminate_backend(active_pid, 5000) {ours} AND active_pid > 0".encode())
            connection.execute(f"SELECT pg_drop_replication_slot(slot_name) {ours}".encode())


@contextmanager
def source(runs: Runs, url: str) -> Iterator[Source]:
    """A source in this database, whose slots are dropped at the end."""
    own = Source(runs, url, psycopg.connect(url, autocommit=True))
    try:
        yield own
    finally:
        own.connection.close()
        own.end()


def shown(record: Rec) -> tuple[Any, Any]:
    """Key and value as Python's."""
    return json.loads(record.key or b"null"), json.loads(record.value or b"null")
