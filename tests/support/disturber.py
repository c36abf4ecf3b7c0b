"""Events as they arrive in a bad week: late, out of order, twice, updated, malformed; and what one pass over them leaves in a table."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

SAMPLE = Path(__file__).resolve().parents[2] / "include" / "data" / "changes.jsonl"

Row = tuple[str, int, str, int | None, int, str]
"""event_id, revision, path, added, occurred_at, language."""


@dataclass(frozen=True)
class Arrival:
    """One record: the time its producer stamps it with (milliseconds), its partition and value; in a list, in order of arrival."""

    at: int
    partition: int
    value: bytes


def sample_events() -> list[dict[str, Any]]:
    """The good lines of the repository's sample, each id once, as revision 1."""
    events: dict[str, dict[str, Any]] = {}
    for line in SAMPLE.read_text().splitlines():
        try:
            event = json.loads(line)
            events[event["event_id"]] = {k: event[k] for k in ("event_id", "path", "added", "deleted")} | {"revision": 1}
        except (ValueError, KeyError, TypeError):
            continue
    return list(events.values())


def disturbed(events: Sequence[dict[str, Any]], *, seed: int, start: datetime, hours: int, partitions: int) -> list[Arrival]:
    """The same seed gives the same arrivals, all of them stamped within the hours."""
    chance = random.Random(seed)
    begin, length = int(start.timestamp()), hours * 3600
    sent: list[tuple[int, bytes]] = []
    for event in events:
        at = begin + chance.randrange(length)
        occurred = at - (chance.randrange(6 * 3600) if chance.random() < 0.1 else 0)  # some are late
        first = event | {"occurred_at": occurred}
        sent.append((at, json.dumps(first).encode()))
        fate = chance.random()
        again = min(begin + length - 1, at + chance.randrange(4 * 3600))
        if fate < 0.08:
            sent.append((again, sent[-1][1]))
        elif fate < 0.16:
            sent.append((again, json.dumps(first | {"revision": 2, "added": chance.randrange(1000)}).encode()))
        elif fate < 0.2:  # an older revision comes after the newer one
            sent.append((again, json.dumps(first | {"revision": 0, "added": chance.randrange(1000)}).encode()))
        elif fate < 0.26:
            sent.append((again, _malformed(first, chance)))
    sent.sort(key=lambda item: item[0])
    return [Arrival(_stamp(at, begin, chance), chance.randrange(partitions), value) for at, value in sent]


def _stamp(at: int, begin: int, chance: random.Random) -> int:
    """Some producers' clocks are behind, up to an hour and a half."""
    return 1000 * (max(begin, at - chance.randrange(5400)) if chance.random() < 0.1 else at)


def _malformed(event: dict[str, Any], chance: random.Random) -> bytes:
    text = json.dumps(event | {"revision": 9})
    return chance.choice(
        [
            text[: len(text) // 2].encode(),
            json.dumps({k: v for k, v in event.items() if k != "event_id"}).encode(),
            json.dumps(event | {"revision": 9, "added": -1}).encode(),
            json.dumps(event | {"revision": "nine"}).encode(),
            b"[1, 2]",
            b"\xff\xfe not text",
        ]
    )


def one_pass(values: Iterable[bytes]) -> set[Row]:
    """What a reader without windows, agents or retries makes of all values: well-formed events, the newest revision of each."""
    rows: dict[str, Row] = {}
    for value in values:
        try:
            event = json.loads(value)
            id_, revision, path, added, occurred = (event[k] for k in ("event_id", "revision", "path", "added", "occurred_at"))
        except (ValueError, KeyError, TypeError):
            continue
        if not isinstance(revision, int) or not isinstance(path, str) or (added is not None and added < 0):
            continue
        if id_ not in rows or rows[id_][1] < revision:
            rows[id_] = (id_, revision, path, added, occurred, path.rpartition(".")[2])
    return set(rows.values())
