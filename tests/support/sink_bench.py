"""One table of a test's own in PostgreSQL, and publishers to it."""

from __future__ import annotations

import contextlib
import secrets
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from factory_agents.kafka.messages import Message
from factory_agents.protocol import Shard
from factory_agents.publish import build
from factory_agents.runtime.agents import Claim, SinkOutcome
from factory_agents.testing.records import CONTRACT, W1, W2, W3, at, event, record
from tests.support.waiting import wait_for

__all__ = [
    "ALL_TYPES",
    "CONTRACT",
    "W1",
    "W2",
    "W3",
    "WHOLE",
    "Bench",
    "CuttingProxy",
    "SmallDisk",
    "at",
    "event",
    "holding_proxy",
    "record",
    "write_and_commit",
]

ALL_TYPES: dict[str, Any] = {
    "name": "all",
    "id": "id",
    "columns": {
        "id": "text",
        "text": "text",
        "bigint": "bigint",
        "double": "double",
        "boolean": "boolean",
        "timestamptz": "timestamptz",
        "json": "json",
        "numeric": "numeric",
        "date": "date",
        "uuid": "uuid",
        "timestamp": "timestamp",
        "time": "time",
        "interval": "interval",
        "bytea": "bytea",
        "inet": "inet",
        "smallint": "smallint",
        "integer": "integer",
        "real": "real",
        "char": "char(3)",
        "varchar": "varchar(5)",
        "texts": "text[]",
        "numbers": "numeric(10,2)[]",
        "documents": "json[]",
    },
}
WHOLE = Shard()


def write_and_commit(sink: Any, rows: Sequence[Message]) -> SinkOutcome:
    assert sink.write(rows) == {}
    outcome: SinkOutcome = sink.commit(rejected=0)
    return outcome


@contextmanager
def holding_proxy(url: str) -> Iterator[tuple[str, threading.Event]]:
    """A way to the database, and what makes its first connection hold all further answers."""
    parts = urlsplit(url)
    hold, listener = threading.Event(), socket.create_server(("127.0.0.1", 0))
    opened = contextlib.ExitStack()

    def forward(source: socket.socket, target: socket.socket, held: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not held.is_set():
                    target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def end(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed alone, it stays open as long as a thread waits for what comes
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    def serve() -> None:
        held = hold
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((parts.hostname, parts.port))
                opened.callback(end, server)
                opened.callback(end, client)
                threading.Thread(target=forward, args=(client, server, threading.Event()), daemon=True).start()
                threading.Thread(target=forward, args=(server, client, held), daemon=True).start()
                held = threading.Event()

    threading.Thread(target=serve, daemon=True).start()
    yield url.replace(f":{parts.port}/", f":{listener.getsockname()[1]}/"), hold
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    opened.close()


class CuttingProxy:
    """A way to the database that ends a connection at one of the things that clients send: before it is there, or before its answer is.

    ``sent`` is how many things came so far.
    """

    def __init__(self, url: str, at: int, *, before_it: bool) -> None:
        parts = urlsplit(url)
        self._target, self._at, self._before_it = (parts.hostname, parts.port), at, before_it
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._opened: list[socket.socket] = []
        self.url = url.replace(f":{parts.port}/", f":{self._listener.getsockname()[1]}/")
        self.sent = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        for each in (self._listener, *self._opened):
            _shut(each)
            each.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._opened += [client, server]
                answers = threading.Event()
                threading.Thread(target=self._ask, args=(client, server, answers), daemon=True).start()
                threading.Thread(target=self._answer, args=(client, server, answers), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket, unanswered: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                self.sent += 1
                if self.sent == self._at and self._before_it:
                    break
                if self.sent == self._at:
                    unanswered.set()
                server.sendall(data)
        _shut(server)
        _shut(client)

    def _answer(self, client: socket.socket, server: socket.socket, unanswered: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while (data := server.recv(65536)) and not unanswered.is_set():
                client.sendall(data)
        _shut(client)
        _shut(server)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class Bench:
    """One table of this test's own, and publishers to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = f"t_{secrets.token_hex(4)}"
        self.pipeline = f"p_{secrets.token_hex(4)}"
        self.contract: dict[str, Any] | None = CONTRACT
        self.admin = psycopg.connect(url, autocommit=True)
        self.generation = 0
        self.sinks: list[Any] = []

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()
        self.admin.close()

    def sink(self, **params: Any) -> Any:
        sink = build({"table": self.name, "contract": self.contract, "lock_timeout": 20} | params)
        self.sinks.append(sink)
        return sink

    def claim(self, window: str = W1, shard: Shard = WHOLE, **changes: Any) -> Claim:
        self.generation += 1
        values = {"plan": "plan", "fingerprint": "f", "input_generation": 1, "generation": self.generation} | changes
        return Claim(self.pipeline, "publish", window, shard, **values)

    def publish(self, rows: Sequence[Message], window: str = W1, shard: Shard = WHOLE, **changes: Any) -> SinkOutcome:
        """All of it; without another fingerprint each publication is a new one."""
        claim = self.claim(window, shard, **({"fingerprint": f"f{self.generation}"} | changes))
        sink = self.sink()
        try:
            outcome = sink.claim(claim)
            if outcome is None:
                for start in range(0, len(rows), 3):
                    assert sink.write(rows[start : start + 3]) == {}
                outcome = sink.commit(rejected=0)
        finally:
            sink.close()
        return outcome

    def query(self, template: str, **parts: Any) -> list[tuple[Any, ...]]:
        query = sql.SQL(template).format(t=sql.Identifier(self.name), **{k: sql.Literal(v) for k, v in parts.items()})
        return self.admin.execute(query).fetchall()

    def rows(self) -> dict[str, str]:
        return dict(self.query("SELECT id, value FROM {t} ORDER BY id"))

    def content(self) -> list[tuple[Any, ...]]:
        return self.query("SELECT id, value, version, at::text FROM {t} ORDER BY id")

    def backends(self) -> list[int]:
        name = f"factory {self.pipeline}/publish"
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()"
        return [r[0] for r in self.admin.execute(query, [name]).fetchall()]

    def terminate(self) -> None:
        for pid in self.backends():
            self.admin.execute("SELECT pg_terminate_backend(%s)", [pid])
        wait_for(lambda: not self.backends(), "its sessions to end")

    def waits_for_lock(self) -> bool:
        name = f"factory {self.pipeline}/publish"
        query = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND datname = current_database() AND wait_event_type = 'Lock'"
        return self.admin.execute(query, [name]).fetchone() is not None


class SmallDisk:
    """A tablespace of 1 MB, on a file system of its own."""

    def __init__(self, place: Path, name: str) -> None:
        self.place = place
        self.name = name

    def mount(self, options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.place], capture_output=True, text=True, check=False)

    def grow(self) -> None:
        assert self.mount("remount,size=64m").returncode == 0
