"""A sink over SQLite, the smallest that keeps promise 5."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from factory_agents.errors import FencedError, SinkError
from factory_agents.kafka.messages import Message
from factory_agents.runtime.agents import Claim, Reject, SinkOutcome, decode_event

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (id PRIMARY KEY, body TEXT, window TEXT, shard TEXT, generation INTEGER);
CREATE TABLE IF NOT EXISTS publishes (
  window TEXT, stage TEXT, shard TEXT, fence INTEGER, fingerprint TEXT, epoch INTEGER, input_generation INTEGER, outcome TEXT,
  PRIMARY KEY (window, stage, shard));
"""


class SqliteSink:
    """Rows by ``event_id``; events without one are rejected."""

    name, version = "publish", "1"

    def __init__(self, path: Path, table: str = "events") -> None:
        self.identity: dict[str, Any] = {"table": table}
        self._database = sqlite3.connect(path, isolation_level=None, timeout=30)
        self._database.executescript(_SCHEMA)
        self._claim: Claim | None = None
        self._fence = 0
        self._events: dict[Any, dict[str, Any]] = {}
        self._staged = 0

    def claim(self, claim: Claim) -> SinkOutcome | None:
        self._claim = claim
        run = self._database.execute
        key = (claim.window, claim.stage, claim.shard.key)
        run("BEGIN IMMEDIATE")
        run("INSERT OR IGNORE INTO publishes VALUES (?, ?, ?, 0, NULL, 0, -1, NULL)", key)
        run("UPDATE publishes SET fence = fence + 1 WHERE (window, stage, shard) = (?, ?, ?)", key)
        self._fence, fingerprint, epoch, newest, outcome = run(
            "SELECT fence, fingerprint, epoch, input_generation, outcome FROM publishes WHERE (window, stage, shard) = (?, ?, ?)", key
        ).fetchone()
        run("COMMIT")
        if newest > claim.input_generation:
            raise SinkError("an older generation")
        if claim.reuse and fingerprint == claim.fingerprint and epoch >= claim.epoch:
            return msgspec.convert(json.loads(outcome) | {"reused": True}, SinkOutcome)
        return None

    def write(self, messages: Sequence[Message]) -> dict[int, Reject]:
        rejected = {}
        for i, message in enumerate(messages):
            try:
                event = decode_event(message.value())
            except Reject as reject:
                rejected[i] = reject
                continue
            if event.get("event_id") is None:
                rejected[i] = Reject("no event_id", rule="key")
            else:
                self._events[event["event_id"]] = event
                self._staged += 1
        return rejected

    def commit(self, *, rejected: int) -> SinkOutcome:
        claim = self._claim
        assert claim is not None
        run = self._database.execute
        key = (claim.window, claim.stage, claim.shard.key)
        run("BEGIN IMMEDIATE")
        if run("SELECT fence FROM publishes WHERE (window, stage, shard) = (?, ?, ?)", key).fetchone() != (self._fence,):
            run("ROLLBACK")
            raise FencedError("a newer attempt took over")
        removed = run(
            "DELETE FROM events WHERE window = ? AND shard = ? AND generation < ?", (claim.window, claim.shard.key, claim.generation)
        ).rowcount
        for event_id, event in self._events.items():
            values = (event_id, json.dumps(event), claim.window, claim.shard.key, claim.generation)
            run("INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?)", values)
        written = len(self._events)
        outcome = SinkOutcome(
            "events", rows=self._staged, written=written, duplicates=self._staged - written, removed=removed, rejected=rejected
        )
        run(
            "UPDATE publishes SET fingerprint = ?, epoch = ?, input_generation = ?, outcome = ? WHERE (window, stage, shard) = (?, ?, ?)",
            (claim.fingerprint, claim.epoch, claim.input_generation, msgspec.json.encode(outcome).decode(), *key),
        )
        run("COMMIT")
        return outcome

    def close(self) -> None:
        self._database.close()
