"""``factory replicate`` over a million changes that wait in a log, beside a bare psycopg loop that reads the same log and keeps nothing."""

from __future__ import annotations

import os
import select
import struct
import sys
import time
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg
from harness import arguments, bench_sandbox, report, rounds, run_agent

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import AgentRef, AgentRun, Interval
from factory_agents.replicate import build, log_name


class Source:
    """A table, its log, and a topic for its changes."""

    def __init__(self, url: str, config: KafkaConfig) -> None:
        self.url, self.config = url, config
        self.table = f"bench_{uuid.uuid4().hex[:8]}"
        self.params = {"table": self.table}
        self.until = datetime.now(UTC) - timedelta(hours=1)
        self.peaks: list[float] = []
        self.rows = 0
        Cluster(config).create(self.table, 4, settings={"retention.ms": "-1"})
        self.run("CREATE TABLE {} (id bigint PRIMARY KEY, a bigint, b text)")
        self.ours()
        self.bare = f"{self.table}_bare"
        self.run(f"SELECT pg_create_logical_replication_slot('{self.bare}', 'pgoutput')")

    def run(self, statement: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement.replace("{}", self.table).encode())

    def change(self, count: int) -> None:
        """So many changes in transactions of ten thousand: half of them inserts, the others updates and deletes."""
        first, self.rows = self.rows, self.rows + count
        with psycopg.connect(self.url) as connection:
            for start in range(first, first + count, 10_000):
                some = "FROM generate_series(1, 5000) g"
                rows = f"{start} + g {some}"
                connection.execute(f"INSERT INTO {self.table} SELECT {start} + g, g, 'value ' || g {some}".encode())
                connection.execute(f"UPDATE {self.table} SET a = a + 1 WHERE id IN (SELECT {rows} WHERE g <= 2500)".encode())
                connection.execute(f"DELETE FROM {self.table} WHERE id IN (SELECT {rows} WHERE g > 2500)".encode())
                connection.commit()

    def ours(self) -> float:
        """Seconds of a window, as an orchestrator runs it: a process, from its start to its result."""
        start, self.until = self.until, datetime.now(UTC)
        run = AgentRun(
            self.table,
            "replicate",
            AgentRef("replicate"),
            params=self.params,
            interval=Interval(start, self.until),
            origin=log_name(self.params),
            output_topic=self.table,
            max_rejected="0",
        )
        done, cost = run_agent(self.config, run, DATABASE_URL=self.url)
        print(f"    {done.counts.consumed:,} changes, {cost.cpu:.1f} s of CPU, {cost.peak:.0f} MB", file=sys.stderr)
        self.peaks.append(cost.peak)
        self.slot = build(self.params, run).slot
        return cost.wall

    def loop(self) -> float:
        """Seconds of a loop that takes every message, splits its columns, and answers at the end."""
        began = time.monotonic()
        log = psycopg.connect(self.url, replication="database", autocommit=True)
        with psycopg.connect(self.url, autocommit=True) as plain, closing(log):
            end = plain.execute("SELECT pg_current_wal_lsn() - '0/0'").fetchone()[0]  # type: ignore[index]
            options = f"(proto_version '1', publication_names '{self.slot}')"
            log.execute(f"START_REPLICATION SLOT {self.bare} LOGICAL 0/0 {options}".encode())
            at, changes = 0, 0
            while at < end:
                size, data = log.pgconn.get_copy_data(1)
                if size == 0:
                    select.select([log.pgconn.socket], [], [], 1)
                    log.pgconn.consume_input()
                    continue
                body = bytes(data)
                if body[:1] == b"k":
                    at = max(at, struct.unpack_from("!Q", body, 1)[0])
                elif body[25:26] in b"IUD":
                    changes += len(_columns(body, 31)) > 0
                elif body[25:26] == b"C":
                    at = max(at, struct.unpack_from("!Q", body, 35)[0])
            answer = struct.pack("!QQQqB", at, at, at, 0, 0)
            log.pgconn.put_copy_data(b"r" + answer)
            log.pgconn.flush()
        print(f"    {changes:,} changes", file=sys.stderr)
        return time.monotonic() - began

    def end(self) -> None:
        for slot in (self.slot, self.bare):
            self.run(f"SELECT pg_drop_replication_slot('{slot}')")
        self.run("DROP TABLE {}")


def _columns(body: bytes, at: int) -> list[bytes | None]:
    (count,) = struct.unpack_from("!H", body, at)
    at += 2
    found: list[bytes | None] = []
    for _ in range(count):
        kind, at = body[at : at + 1], at + 1
        if kind == b"t":
            (size,) = struct.unpack_from("!I", body, at)
            found.append(body[at + 4 : at + 4 + size])
            at += 4 + size
        else:
            found.append(None)
    return found


def main() -> None:
    """Change, read, change again: each round has new changes, which both read."""
    options = arguments(__doc__ or "", changes=1_000_000)
    changes = 20_000 if options.smoke else options.changes
    info = bench_sandbox().info()
    os.environ["DATABASE_URL"] = info.database_url
    source = Source(info.database_url, KafkaConfig(info.bootstrap))

    def ours(_: int) -> float:
        source.change(changes)  # before the clock
        return source.ours()

    try:
        seconds = rounds(options.rounds, {"factory": ours, "bare psycopg loop": lambda _: source.loop()})
        report("replication", seconds, "factory", changes, "changes", {"peak_mb": [round(peak) for peak in source.peaks[1:]]})
    finally:
        source.end()


if __name__ == "__main__":
    main()
