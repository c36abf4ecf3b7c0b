"""What has become of dead letters: which were replayed and which still wait, counted and purged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias

import msgspec

from factory_agents.kafka.ledger import Ledger, ReplayRecord
from factory_agents.protocol import PartitionRange
from factory_agents.runtime.dead_letters import Letter, LetterTopic

__all__ = ["LetterStats", "PurgeResult", "RuleStats", "letter_stats", "purge_letters", "replayed_offsets"]

State: TypeAlias = Literal["replayed", "superseded", "waiting", "others"]
"""``superseded``: a later letter is about the same event. ``others``: of attempts that failed or are unknown, which nobody is offered."""

_WAITING = ("waiting", "others")
_LEDGER_SECONDS = 120.0


class RuleStats(msgspec.Struct, frozen=True):
    """Letters of one rule of one stage, by what became of them."""

    pipeline: str
    stage: str
    rule: str
    letters: int
    waiting: int
    replayed: int
    others: int


class LetterStats(msgspec.Struct, frozen=True):
    """A dead-letter topic's contents. Times are ISO 8601, empty where there is no letter.

    ``bytes`` are of values and keys. ``expires`` is when the retention takes the first letter that waits; empty where it takes none.
    """

    topic: str
    letters: int
    waiting: int
    replayed: int
    superseded: int
    others: int
    foreign: int
    bytes: int
    first: str
    last: str
    expires: str
    rules: tuple[RuleStats, ...]


class PurgeResult(msgspec.Struct, frozen=True):
    """What a purge deleted, or would. ``kept`` are letters that stayed, ``waiting`` those of them that were not replayed."""

    topic: str
    deleted: int
    kept: int
    waiting: int
    dry_run: bool


def replayed_offsets(letters: LetterTopic, again: str = "") -> dict[int, set[int]]:
    """The offsets of a topic's letters that were replayed, by partition; with a name those that were by the repetition of that name."""
    ledger = Ledger(letters.config, letters.cluster, prefix=letters.prefix, pipeline=f"replay.{letters.facts.name}")
    if letters.cluster.find(ledger.topic) is None:
        return {}
    found: dict[int, set[int]] = {}
    for record in ledger.read(deadline=time.monotonic() + _LEDGER_SECONDS).of(ReplayRecord):
        if record.topic_id == letters.facts.id and again in ("", record.again):
            for partition, offsets in record.offsets.items():
                found.setdefault(partition, set()).update(offsets)
    return found


def letter_stats(letters: LetterTopic) -> LetterStats:
    """What a topic holds, and what became of it."""
    counts = dict.fromkeys(("replayed", "superseded", "waiting", "others"), 0)
    rules: dict[tuple[str, str, str], dict[str, int]] = {}
    size = 0
    times: list[datetime] = []
    oldest: datetime | None = None
    for letter, state in _states(letters, letters.ranges()):
        counts[state] += 1
        own = rules.setdefault((letter.why.pipeline, letter.why.stage, letter.why.rule), dict.fromkeys(counts, 0))
        own[state] += 1
        size += len(letter.value or b"") + len(letter.key or b"")
        times = [min(letter.written, *times), max(letter.written, *times)] if times else [letter.written, letter.written]
        if state in _WAITING:
            oldest = letter.written if oldest is None else min(oldest, letter.written)
    retention = int(letters.cluster.settings(letters.facts.name).get("retention.ms") or -1)
    found = [
        RuleStats(*key, letters=sum(own.values()), waiting=own["waiting"], replayed=own["replayed"], others=own["others"])
        for key, own in rules.items()
    ]
    return LetterStats(
        topic=letters.facts.name,
        letters=sum(counts.values()),
        foreign=letters.foreign,
        bytes=size,
        first=_text(times[0]) if times else "",
        last=_text(times[1]) if times else "",
        expires=_text(_later(oldest, retention)) if oldest is not None and retention >= 0 else "",
        rules=tuple(sorted(found, key=lambda r: (-r.waiting, -r.letters, r.pipeline, r.stage, r.rule))),
        **counts,
    )


def purge_letters(letters: LetterTopic, *, before: datetime | None = None, waiting: bool = False, dry_run: bool = False) -> PurgeResult:
    """Delete letters that were replayed, and those that a later letter replaced; ``waiting``: all; ``before``: only those written before.

    Kafka deletes from the start of a partition on: of each partition the letters go up to the first that stays.
    """
    ranges = letters.ranges()
    ends = {r.partition: r.end for r in ranges if r.start < r.end}
    at: dict[int, list[tuple[int, bool]]] = {p: [] for p in ends}
    for letter, state in _states(letters, ranges):
        stays = (state in _WAITING and not waiting) or (before is not None and letter.written >= before)
        at[letter.partition].append((letter.offset, state in _WAITING))
        if stays:
            ends[letter.partition] = min(ends[letter.partition], letter.offset)
    deleted = sum(offset < ends[p] for p, found in at.items() for offset, _ in found)
    kept = [waits for p, found in at.items() for offset, waits in found if offset >= ends[p]]
    if not dry_run:
        letters.cluster.delete_before(letters.facts.name, ends)
    return PurgeResult(letters.facts.name, deleted, len(kept), sum(kept), dry_run)


def _states(
    letters: LetterTopic, ranges: Sequence[PartitionRange], stop: Callable[[], bool] = lambda: False
) -> Iterator[tuple[Letter, State]]:
    """Each letter with what became of it. The topic is read twice: a later letter may say that an event was replayed."""
    replayed = replayed_offsets(letters)
    latest: dict[tuple[Any, ...], tuple[datetime, int, int]] = {}
    done: set[tuple[Any, ...]] = set()
    for letter in letters.read(ranges, stop):
        if letter.offset in replayed.get(letter.partition, ()):
            done.add(letter.event)
        if letter.attempt in ("finished", "live"):
            place = (letter.written, letter.partition, letter.offset)
            latest[letter.event] = max(place, latest.get(letter.event, place))
    letters.foreign = 0
    for letter in letters.read(ranges, stop):
        if letter.event in done:
            yield letter, "replayed"
        elif letter.attempt not in ("finished", "live"):
            yield letter, "others"
        else:
            place = (letter.written, letter.partition, letter.offset)
            yield letter, "waiting" if latest.get(letter.event, place) <= place else "superseded"


def _later(moment: datetime, milliseconds: int) -> datetime:
    try:
        return moment + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
