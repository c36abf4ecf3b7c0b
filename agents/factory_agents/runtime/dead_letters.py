"""Dead letters read back: listed by what was broken, and shown whole."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import Any, Literal, TypeAlias

import msgspec

from factory_agents.errors import ConfigurationError, StoppedError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.ledger import Ledger, StageRecord
from factory_agents.kafka.messages import Message, readable_headers
from factory_agents.kafka.reader import WRITER_HEADER, WindowReader
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import PartitionRange, Window
from factory_agents.runtime.letter_values import LetterReader, plain
from factory_agents.runtime.outputs import DEAD_LETTER_HEADER, DeadLetter
from factory_agents.runtime.reasons import error_kind
from factory_agents.text import printable, shortened, unknown

__all__ = [
    "ATTEMPTS",
    "READ_SECONDS",
    "STOPPED",
    "Letter",
    "LetterGroup",
    "LetterTopic",
    "Names",
    "Selection",
    "group_letters",
    "place_of_letter",
]

Attempt: TypeAlias = Literal["finished", "unfinished", "live", "unknown"]
"""Whose letter it is: of finished work, of work that is under way or failed, of a live agent, or of nobody that the ledger knows (work that
failed and was done again without it, or somebody who is no agent)."""

ATTEMPTS: tuple[Attempt, ...] = ("finished", "unfinished", "live", "unknown")
_LISTED: frozenset[str] = frozenset({"finished", "unfinished", "live"})

READ_SECONDS = 900.0
_BATCH = 10_000
_LEDGER_SECONDS = 120.0
_LAST_MS = 253402300799999  # the last millisecond of the year 9999
STOPPED = "asked to stop; what was committed stays, and the same command goes on from there"


@lru_cache(256)
def _shown(name: str) -> str:
    return printable(shortened(name, 100))


class Names:
    """The rules, stages and pipelines that letters name: what a selection may have meant. Of very many, the first."""

    MOST = 200

    def __init__(self) -> None:
        self.of: dict[str, set[str]] = {"rule": set(), "stage": set(), "pipeline": set()}

    def add(self, letter: Letter) -> None:
        """Note what a letter names."""
        why = letter.why
        for known, names in zip(self.of.values(), (why.rule.split(","), (why.stage,), (why.pipeline,)), strict=True):
            if len(known) < self.MOST:
                known.update(_shown(name) for name in names if name)


@dataclass(frozen=True)
class Selection:
    """Which letters are meant: all that fit everything given. ``rule`` is one of a letter's; times are those at which it was written.
    ``positions`` (``partition@offset``) name single letters.

    ``attempt`` is one of ATTEMPTS or ``all``; without it a list has those that the ledger knows, and a replay takes finished and live ones.
    """

    rule: str = ""
    stage: str = ""
    pipeline: str = ""
    window: str = ""
    attempt: str = ""
    since: datetime | None = None
    until: datetime | None = None
    limit: int = 0
    positions: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Refuse a mistyped attempt or position."""
        if self.attempt not in ("", "all", *ATTEMPTS):
            raise ConfigurationError(f"attempt {self.attempt!r}: expected one of {', '.join(ATTEMPTS)}, all")
        for position in self.positions:
            place_of_letter(position)

    def fits(self, letter: Letter) -> bool:
        """Whether a letter is meant, by whomever it is."""
        why = letter.why
        return (
            (not self.rule or self.rule in why.rule.split(","))
            and (not self.stage or self.stage == why.stage)
            and (not self.pipeline or self.pipeline == why.pipeline)
            and (not self.window or self.window == why.window)
            and (self.since is None or letter.written >= self.since)
            and (self.until is None or letter.written < self.until)
            and (not self.positions or letter.position in self.positions)
        )

    def unmet(self, letters: Names) -> str:
        """What of it no letter names, and what was likely meant; nothing where each by itself fits some letter."""
        for name, known in letters.of.items():
            given = getattr(self, name)
            if given and given not in known and len(known) < Names.MOST:
                return unknown(name, given, sorted(known))
        return ""

    def takes(self, attempt: Attempt, usual: frozenset[str]) -> bool:
        """Whether letters of such an attempt are meant."""
        return self.attempt == "all" or (attempt == self.attempt if self.attempt else attempt in usual)


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter: where it lies, when it was written, why, and the rejected event itself with its own headers."""

    partition: int
    offset: int
    written: datetime
    why: DeadLetter
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    writer: str = ""
    attempt: Attempt = "unknown"

    @property
    def position(self) -> str:
        """``partition@offset``, as ``dead-letters show`` takes it."""
        return f"{self.partition}@{self.offset}"

    @property
    def event(self) -> tuple[Any, ...]:
        """What tells whether two letters are about the same event; unique where its place isn't known.

        A live agent's never stands for a window's: nothing vouches for it but the topic that it lies in.
        """
        why = self.why
        whose = (self.attempt == "live", why.pipeline, why.stage)
        if why.topic and why.offset >= 0:
            return (*whose, why.topic, why.topic_id, why.partition, why.offset)
        return (*whose, why.where, why.source) if why.where else (self.partition, self.offset)

    @property
    def is_pointer(self) -> bool:
        """Whether the event itself stayed where it was: it doesn't fit a letter."""
        return self.why.size >= 0

    def to_data(self, reader: LetterReader) -> dict[str, Any]:
        """Everything as JSON-able data; value and key as the JSON that they are or a schema makes of them, else as text.

        ``value_as`` and ``key_as`` say of what was no text how it was read, or why it was not.
        """
        why = {name: value for name, value in msgspec.to_builtins(self.why).items() if value not in ("", -1)}
        if self.is_pointer:
            why["prefix"] = plain(self.why.prefix, whole=False).text
        value, key = reader.value(self), reader.key(self)
        return {
            "letter": self.position,
            "written": self.written.isoformat(timespec="milliseconds"),
            "attempt": self.attempt,
            "why": why,
            "key": key and key.text,
            **({"key_as": key.said} if key and key.said else {}),
            "headers": {name: plain(data or b"").text for name, data in self.headers},
            "value": value and _json_or_text(value.text),
            **({"value_as": value.said} if value and value.said else {}),
        }


def _json_or_text(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text


class LetterGroup(msgspec.Struct, frozen=True):
    """Letters of one attempt at a window with the same stage, rule and error (figures and quoted values in it aside)."""

    pipeline: str
    window: str
    attempt: Attempt
    stage: str
    rule: str
    error: str
    count: int
    first: str
    last: str
    example: str


def place_of_letter(position: str) -> tuple[int, int]:
    """Partition and offset of ``partition@offset``. Raises ConfigurationError for other texts."""
    found = re.fullmatch(r"([0-9]{1,9})@([0-9]{1,18})", position)
    if found is None:
        raise ConfigurationError(f"letter {position!r}: expected partition@offset, such as 3@17")
    return int(found[1]), int(found[2])


def _letter(message: Message) -> Letter | None:
    """The letter that a record is, or None for a record that is none."""
    headers = readable_headers(message)
    text = [value for name, value in headers if name == DEAD_LETTER_HEADER]
    try:
        why = msgspec.json.decode(text[0] or b"", type=DeadLetter) if len(text) == 1 else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        why = None
    if why is None:
        return None
    writers = [(value or b"").decode(errors="replace") for name, value in headers if name == WRITER_HEADER]
    own = tuple((n, v) for n, v in headers if n not in (DEAD_LETTER_HEADER, WRITER_HEADER))
    written = datetime.fromtimestamp(min(max(0, message.timestamp()[1]), _LAST_MS) / 1000, UTC)
    writer = writers[0] if len(writers) == 1 else ""
    return Letter(message.partition(), message.offset(), written, why, message.key(), message.value(), own, writer)


class _Ledgered:
    """Which of a topic's letters the ledger vouches for: those in the ranges that it says their writer wrote.

    It says how many there are, too: where there are more, somebody uses the writer's name, and none of them counts.
    """

    def __init__(self, records: Iterable[StageRecord], topic_id: str) -> None:
        self._ranges: dict[tuple[str, int], tuple[Attempt, StageRecord, PartitionRange]] = {}
        self._seen: Counter[tuple[str, int]] = Counter()
        self.records = tuple(records)
        for record in self.records:
            last = record.result.dead_letters if record.result is not None else None
            for manifest in (*record.earlier, *([last] if last is not None else [])):
                if manifest.topic_id == topic_id:
                    self._add(record, "finished", manifest.writer, manifest.ranges)
            if record.progress is not None:
                ranges = (PartitionRange(p, *bounds) for p, bounds in record.progress.dead.items())
                self._add(record, "unfinished", f"{record.stage}/{record.fingerprint}/{record.generation}", ranges)

    def _add(self, record: StageRecord, attempt: Attempt, writer: str, ranges: Iterable[PartitionRange]) -> None:
        for r in ranges:
            self._ranges[writer, r.partition] = (attempt, record, r)

    def attempt_of(self, letter: Letter) -> Attempt:
        """Whose letter it is."""
        why, name = letter.why, (letter.writer, letter.partition)
        if why.stage == "live" and letter.writer.rpartition("/")[0] == f"live/{why.pipeline}":  # by whichever version
            return "live"
        found = self._ranges.get(name)
        if found is None:
            return "unknown"
        attempt, record, r = found
        claimed = (why.pipeline, why.stage, why.window) == (record.pipeline, record.stage, record.window)
        if not claimed or not r.start <= letter.offset < r.end:
            return "unknown"
        self._seen[name] += 1
        return attempt

    def forged(self) -> set[tuple[str, int]]:
        """Writers and partitions of which there were more letters than they wrote."""
        return {name for name, count in self._seen.items() if count > self._ranges[name][2].count}

    def record_of(self, name: tuple[str, int]) -> StageRecord | None:
        """What the ledger says of the work of a writer, by its name and the partition."""
        found = self._ranges.get(name)
        return None if found is None else found[1]


class LetterTopic:
    """A dead-letter topic, and what the ledger knows of it; ``stages`` are its records for one who has read them already.

    ``foreign`` counts the records read that are no letters, ``passed_over`` the letters that fit a selection but for their attempt;
    ``names`` is what those that ``select`` read name.
    """

    def __init__(
        self,
        config: KafkaConfig,
        topic: str,
        *,
        prefix: str = "factory",
        stages: Iterable[StageRecord] | None = None,
        timeout: float = 15.0,
    ) -> None:
        self.config = config
        self.cluster = Cluster(config, timeout=timeout)
        self._known_stages = stages
        self.facts = self.cluster.topic(topic)
        self.prefix = prefix
        self.ledger = Ledger(config, self.cluster, prefix=prefix, pipeline="")
        self.foreign = self.passed_over = 0
        self.names = Names()

    @cached_property
    def known(self) -> _Ledgered:
        """What the ledger knows, read when it is first asked for: an attempt that was killed may hold it up until somebody fences it."""
        return _Ledgered(self._stages(), self.facts.id)

    def _stages(self) -> Iterable[StageRecord]:
        if self._known_stages is not None:
            return self._known_stages
        if self.cluster.find(self.ledger.topic) is None:
            return []
        view = self.ledger.read(deadline=time.monotonic() + _LEDGER_SECONDS, wanted=(b"stage|",))
        return view.of(StageRecord)

    def ranges(self, since: datetime | None = None) -> list[PartitionRange]:
        """What the topic holds now, in offsets; from a time on where one is given."""
        name, partitions = self.facts.name, range(self.facts.partitions)
        starts, ends = self.cluster.log_start(name, partitions), self.cluster.stable_offset(name, partitions)
        if since is not None:
            found = self.cluster.at_time(name, partitions, int(since.timestamp() * 1000))
            starts = {p: max(starts[p], found[p][0] if found[p][0] >= 0 else ends[p]) for p in partitions}
        return [PartitionRange(p, starts[p], ends[p]) for p in partitions]

    def read(
        self, ranges: Iterable[PartitionRange], stop: Callable[[], bool] = lambda: False, patience: float = READ_SECONDS
    ) -> Iterator[Letter]:
        """The letters in some ranges, each with its attempt; what is no letter is passed over and counted."""
        window = Window("", self.facts.name, self.facts.id, tuple(r for r in ranges if r.start < r.end), name="dead-letters")
        reader = WindowReader(self.config, self.cluster, window, accept_loss=True)  # retention may take letters away meanwhile
        deadline = time.monotonic() + patience
        try:
            reader.seek({}, {})
            while not reader.done:
                for message in reader.batch(_BATCH, deadline, stop):
                    letter = _letter(message)
                    if letter is None:
                        self.foreign += 1
                    else:
                        yield replace(letter, attempt=self.known.attempt_of(letter))
                if stop():
                    raise StoppedError(STOPPED)
        finally:
            reader.close()

    def select(self, selection: Selection) -> Iterator[Letter]:
        """The letters meant, by partition in order. Raises ConfigurationError at the end of a topic that holds other records only."""
        letters = found = 0
        for letter in self.read(self.ranges(selection.since)):
            letters += 1
            self.names.add(letter)
            if not selection.fits(letter):
                continue
            if not selection.takes(letter.attempt, _LISTED):
                self.passed_over += 1
                continue
            yield letter
            found += 1
            if found == selection.limit:
                return
        if self.foreign and not letters:
            raise ConfigurationError(
                f"{self.facts.name}: none of its {self.foreign:,} records is a dead letter (has the header {DEAD_LETTER_HEADER!r}); "
                f"is it a dead-letter topic?"
            )

    def at(self, position: str) -> Letter:
        """The letter at ``partition@offset``. Raises ConfigurationError where there is none."""
        partition, offset = place_of_letter(position)
        if partition >= self.facts.partitions:
            raise ConfigurationError(f"letter {position!r}: topic {self.facts.name!r} has the partitions 0 to {self.facts.partitions - 1}")
        ends = self.ranges()[partition]
        if ends.start <= offset < ends.end:
            for letter in self.read([PartitionRange(partition, offset, offset + 1)]):
                if letter.offset == offset:
                    return letter
        raise ConfigurationError(
            f"letter {position!r}: {self.facts.name}-{partition} has no letter there (its offsets go from {ends.start} to {ends.end - 1})"
        )


def group_letters(letters: Iterable[Letter]) -> list[LetterGroup]:
    """Letters by window, attempt, stage, rule and kind of error, the most numerous first; error and example are the latest letter's."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for letter in letters:
        why = letter.why
        kind = (why.pipeline, why.window, letter.attempt, why.stage, why.rule, error_kind(why.error))
        group = groups.setdefault(kind, [0, letter.written, letter.written, why.error, letter.position])
        group[0] += 1
        group[1] = min(group[1], letter.written)
        if letter.written >= group[2]:
            group[2:] = letter.written, why.error, letter.position
    return sorted(
        (
            LetterGroup(pipeline, window, attempt, stage, rule, error, count, _seconds(first), _seconds(last), example)
            for (pipeline, window, attempt, stage, rule, _), (count, first, last, error, example) in groups.items()
        ),
        key=lambda g: (-g.count, g.pipeline, g.stage, g.rule, g.window),
    )


def _seconds(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
