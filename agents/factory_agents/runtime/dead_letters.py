"""Dead letters read back: listed by what was broken, shown whole, replayed into a topic exactly once."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from factory_agents.errors import ConfigurationError, StoppedError, UnavailableError
from factory_agents.kafka.config import KafkaConfig, kafka_error
from factory_agents.kafka.ledger import Ledger, ReplayRecord
from factory_agents.kafka.messages import Message, readable_headers
from factory_agents.kafka.reader import WRITER_HEADER, WindowReader
from factory_agents.kafka.topics import Cluster, TopicFacts
from factory_agents.kafka.writer import ChunkAbortedError, TransactionalWriter, choose_partition
from factory_agents.protocol import Counts, PartitionRange, Window, transactional_id
from factory_agents.runtime.outputs import DEAD_LETTER_HEADER, DeadLetter
from factory_agents.telemetry import Commit, Observer, Subject

__all__ = ["Letter", "LetterGroup", "ReplayResult", "Selection", "group_letters", "read_letter", "read_letters", "replay_letters"]

_READ_SECONDS = 900.0
_BATCH = 10_000
_CHUNK, _CHUNK_BYTES = 10_000, 64 * 1024 * 1024
_TRIES, _PATIENCE = 5, 60.0
_BIG = 1 << 30
_STOPPED = "asked to stop; what was committed stays, and the same command goes on from there"


@dataclass(frozen=True)
class Selection:
    """Which letters are meant: all that fit everything given. ``rule`` is one of a letter's; times are those at which it was written."""

    rule: str = ""
    stage: str = ""
    since: datetime | None = None
    until: datetime | None = None
    limit: int = 0

    def fits(self, letter: Letter) -> bool:
        """Whether a letter is meant."""
        why = letter.why
        return (
            (not self.rule or self.rule in why.rule.split(","))
            and (not self.stage or self.stage == why.stage)
            and (self.since is None or letter.written >= self.since)
            and (self.until is None or letter.written < self.until)
        )


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

    @property
    def position(self) -> str:
        """``partition@offset``, as ``dead-letters show`` takes it."""
        return f"{self.partition}@{self.offset}"

    @property
    def event(self) -> tuple[Any, ...]:
        """What tells whether two letters of one pipeline's stage are about the same event; unique where its place isn't known."""
        why = self.why
        if why.topic and why.offset >= 0:
            return (why.pipeline, why.stage, why.topic, why.partition, why.offset)
        return (why.pipeline, why.stage, why.where) if why.where else (self.partition, self.offset)

    def to_data(self) -> dict[str, Any]:
        """Everything as JSON-able data; the value as the JSON it is, else as text."""
        why = {name: value for name, value in msgspec.to_builtins(self.why).items() if value not in ("", -1)}
        try:
            value = msgspec.json.decode(self.value or b"")
        except msgspec.DecodeError:
            value = None if self.value is None else self.value.decode(errors="replace")
        return {
            "letter": self.position,
            "written": self.written.isoformat(timespec="milliseconds"),
            "why": why,
            "key": None if self.key is None else self.key.decode(errors="replace"),
            "headers": {name: (text or b"").decode(errors="replace") for name, text in self.headers},
            "value": value,
        }


class LetterGroup(msgspec.Struct, frozen=True):
    """Letters with the same stage, rule and error (figures and quoted values in it aside)."""

    stage: str
    rule: str
    error: str
    count: int
    first: str
    last: str
    example: str


class ReplayResult(msgspec.Struct, frozen=True):
    """What a replay did: letters replayed, those replayed before, older letters about an event that was rejected again since.

    ``refused`` says which events the target did not take, and why.
    """

    topic: str
    to: str
    replayed: int
    before: int
    superseded: int
    dry_run: bool
    refused: tuple[str, ...] = ()


def _letter(message: Message) -> Letter:
    headers = readable_headers(message)
    text = next((value for name, value in headers if name == DEAD_LETTER_HEADER), None)
    try:
        why = msgspec.json.decode(text or b"", type=DeadLetter)
    except msgspec.MsgspecError as error:
        raise ConfigurationError(
            f"{message.topic()}-{message.partition()}@{message.offset()}: no dead letter (its header {DEAD_LETTER_HEADER!r}: {error}); "
            f"is {message.topic()!r} a dead-letter topic?"
        ) from None
    own = tuple((n, v) for n, v in headers if n not in (DEAD_LETTER_HEADER, WRITER_HEADER))
    written = datetime.fromtimestamp(max(0, message.timestamp()[1]) / 1000, UTC)
    return Letter(message.partition(), message.offset(), written, why, message.key(), message.value(), own)


def _read(
    config: KafkaConfig, cluster: Cluster, facts: TopicFacts, ranges: Iterable[PartitionRange], stop: Callable[[], bool] = lambda: False
) -> Iterator[Letter]:
    window = Window("", facts.name, facts.id, tuple(r for r in ranges if r.start < r.end), name="dead-letters")
    reader = WindowReader(config, cluster, window, accept_loss=True)  # retention may take letters away meanwhile
    deadline = time.monotonic() + _READ_SECONDS
    try:
        reader.seek({}, {})
        while not reader.done:
            yield from map(_letter, reader.batch(_BATCH, deadline, stop))
            if stop():
                raise StoppedError(_STOPPED)
    finally:
        reader.close()


def _ranges(cluster: Cluster, facts: TopicFacts, since: datetime | None = None) -> list[PartitionRange]:
    """What the topic holds now, in offsets; from a time on where one is given."""
    partitions = range(facts.partitions)
    starts, ends = cluster.log_start(facts.name, partitions), cluster.stable_offset(facts.name, partitions)
    if since is not None:
        found = cluster.at_time(facts.name, partitions, int(since.timestamp() * 1000))
        starts = {p: max(starts[p], found[p][0] if found[p][0] >= 0 else ends[p]) for p in partitions}
    return [PartitionRange(p, starts[p], ends[p]) for p in partitions]


def read_letters(config: KafkaConfig, topic: str, selection: Selection) -> Iterator[Letter]:
    """The letters meant, by partition in order. Raises ConfigurationError for an unknown topic, or one that holds other records."""
    cluster = Cluster(config)
    facts = cluster.topic(topic)
    found = (letter for letter in _read(config, cluster, facts, _ranges(cluster, facts, selection.since)) if selection.fits(letter))
    for n, letter in enumerate(found, 1):
        yield letter
        if n == selection.limit:
            return


def read_letter(config: KafkaConfig, topic: str, position: str) -> Letter:
    """The letter at ``partition@offset``. Raises ConfigurationError where there is none."""
    found = re.fullmatch(r"(\d+)@(\d+)", position)
    if found is None:
        raise ConfigurationError(f"letter {position!r}: expected partition@offset, such as 3@17")
    partition, offset = int(found[1]), int(found[2])
    cluster = Cluster(config)
    facts = cluster.topic(topic)
    if partition >= facts.partitions:
        raise ConfigurationError(f"letter {position!r}: topic {topic!r} has the partitions 0 to {facts.partitions - 1}")
    ends = _ranges(cluster, facts)[partition]
    if ends.start <= offset < ends.end:
        for letter in _read(config, cluster, facts, [PartitionRange(partition, offset, offset + 1)]):
            if letter.offset == offset:
                return letter
    raise ConfigurationError(
        f"letter {position!r}: {topic}-{partition} has no letter there (its offsets go from {ends.start} to {ends.end - 1})"
    )


def _error_kind(error: str) -> str:
    """An error without what differs from event to event: quoted values and figures."""
    return re.sub(r"(?<![\w.])-?\d[\d.,]*", "#", re.sub(r"'[^']*'|\"[^\"]*\"", "…", error))


def group_letters(letters: Iterable[Letter]) -> list[LetterGroup]:
    """Letters by stage, rule and kind of error, the most numerous first; the error and the example are the latest letter's."""
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for letter in letters:
        why = letter.why
        group = groups.setdefault((why.stage, why.rule, _error_kind(why.error)), [0, letter.written, letter])
        group[0] += 1
        group[1] = min(group[1], letter.written)
        if letter.written >= group[2].written:
            group[2] = letter
    return sorted(
        (
            LetterGroup(
                stage,
                rule,
                last.why.error,
                count,
                first.isoformat(timespec="seconds"),
                last.written.isoformat(timespec="seconds"),
                last.position,
            )
            for (stage, rule, _), (count, first, last) in groups.items()
        ),
        key=lambda g: (-g.count, g.stage, g.rule),
    )


def replay_letters(
    config: KafkaConfig,
    topic: str,
    to: str,
    selection: Selection,
    *,
    prefix: str = "factory",
    again: bool = False,
    dry_run: bool = False,
    stop: Callable[[], bool] = lambda: False,
    observer: Observer | None = None,
) -> ReplayResult:
    """Write the events of the letters meant to a topic, each once: key, value, headers, and the partition if it is the topic they were in.

    The ledger says which letters were replayed, in the same transactions as the events; so a second replay, or one that goes on after a
    crash, takes only the others (all, with ``again``). Of several letters about one event the last counts. Raises ConfigurationError for
    unknown topics, and where no letter is meant or all were replayed before.
    """
    replay = _Replay(config, topic, to, prefix, again=again, stop=stop)
    try:
        return replay.run(selection, dry_run=dry_run, observer=observer or Observer())
    finally:
        replay.writer.abort()


class _Replay:
    """One attempt at a replay; a later attempt between the same topics fences it."""

    def __init__(self, config: KafkaConfig, topic: str, to: str, prefix: str, *, again: bool, stop: Callable[[], bool]) -> None:
        self.config, self.again, self.stop = config, again, stop
        self.cluster = Cluster(config)
        self.facts = self.cluster.topic(topic)
        self.target = self.cluster.topic(to)
        self.ledger = Ledger(config, self.cluster, prefix=prefix, pipeline=f"replay.{topic}")
        self.writer = TransactionalWriter(config, transactional_id(prefix, "replay", topic), known_topic=topic)
        self.writer.batch_bytes = min(self.writer.batch_bytes, int(self.cluster.settings(to).get("max.message.bytes") or _BIG))
        self.counts = Counts()
        self.refused: list[str] = []

    def run(self, selection: Selection, *, dry_run: bool, observer: Observer) -> ReplayResult:
        if not dry_run:
            self.ledger.ensure()
            self.writer.open(time.monotonic() + _PATIENCE)
        ranges = _ranges(self.cluster, self.facts)
        places, superseded, before = self._choose(ranges, selection)
        if not places:
            raise ConfigurationError(
                f"{self.facts.name}: all letters meant ({before:,}) were replayed before; --again replays them once more"
                if before
                else f"{self.facts.name}: there is no dead letter such as is meant"
            )
        if not dry_run:
            self._write(ranges, places, observer)
        replayed = len(places) if dry_run else self.counts.consumed
        return ReplayResult(self.facts.name, self.target.name, replayed, before, superseded, dry_run, tuple(self.refused))

    def _choose(self, ranges: Sequence[PartitionRange], selection: Selection) -> tuple[set[tuple[int, int]], int, int]:
        """Where the letters lie that are to be replayed; how many are superseded, and how many events were replayed before."""
        replayed = self._replayed()
        latest: dict[tuple[Any, ...], tuple[datetime, int, int]] = {}
        done: set[tuple[Any, ...]] = set()
        meant = 0
        for letter in _read(self.config, self.cluster, self.facts, ranges, self.stop):
            if not selection.fits(letter):
                continue
            meant += 1
            place = (letter.written, letter.partition, letter.offset)
            latest[letter.event] = max(place, latest.get(letter.event, place))
            if letter.offset in replayed.get(letter.partition, ()):
                done.add(letter.event)
        chosen = sorted(place for event, place in latest.items() if self.again or event not in done)
        chosen = chosen[: selection.limit] if selection.limit else chosen
        return {(partition, offset) for _, partition, offset in chosen}, meant - len(latest), len(done)

    def _write(self, ranges: Sequence[PartitionRange], places: set[tuple[int, int]], observer: Observer) -> None:
        subject = Subject(self.ledger.pipeline, "replay", total=len(places))
        chunk: list[Letter] = []
        size = 0
        for letter in _read(self.config, self.cluster, self.facts, ranges, self.stop):
            if (letter.partition, letter.offset) not in places:
                continue
            chunk.append(letter)
            size += len(letter.value or b"")
            if len(chunk) >= _CHUNK or size >= _CHUNK_BYTES:
                began = time.monotonic()
                self._chunk(chunk)
                observer.committed(subject, Commit(len(chunk), len(chunk), size, time.monotonic() - began, done=self.counts.consumed))
                chunk, size = [], 0
                if self.stop():
                    raise StoppedError(_STOPPED)
        if chunk:
            self._chunk(chunk)

    def _replayed(self) -> dict[int, set[int]]:
        """The offsets of this topic's letters that were replayed before, by partition."""
        if self.cluster.find(self.ledger.topic) is None:
            return {}
        found: dict[int, set[int]] = {}
        for record in self.ledger.read(deadline=time.monotonic() + 120).of(ReplayRecord):
            if record.topic_id == self.facts.id:
                for partition, offsets in record.offsets.items():
                    found.setdefault(partition, set()).update(offsets)
        return found

    def _chunk(self, letters: Sequence[Letter]) -> None:
        """One transaction: events, and the note of which letters they were; halves of it where the broker refuses an event."""
        for attempt in range(1, _TRIES + 1):
            try:
                self._try(letters)
                self.counts.consumed += len(letters)
                return
            except ChunkAbortedError as aborted:
                self.writer.abort()
                self.writer.open(time.monotonic() + _PATIENCE)
                if aborted.refused:
                    self._halve(letters, aborted.cause)
                    return
                if attempt == _TRIES:
                    raise UnavailableError(f"replay into {self.target.name!r}: {aborted.cause}") from None

    def _halve(self, letters: Sequence[Letter], cause: Exception) -> None:
        if len(letters) == 1:
            self.refused.append(f"{self.facts.name} {letters[0].position}: {cause}")
            return
        half = len(letters) // 2
        self._chunk(letters[:half])
        self._chunk(letters[half:])

    def _try(self, letters: Sequence[Letter]) -> None:
        deadline = time.monotonic() + _PATIENCE
        self.writer.begin()
        offsets: dict[int, list[int]] = {}
        for letter in letters:
            refused = self.writer.send(self.target.name, letter.value, letter.key, self._partition(letter), self._headers(letter))
            if refused is not None:
                raise ChunkAbortedError(kafka_error(refused, "writing"), refused=True)
            offsets.setdefault(letter.partition, []).append(letter.offset)
        record = ReplayRecord(
            self.ledger.pipeline, self.facts.id, self.target.name, offsets, time.time_ns() // 1_000_000, letters[0].position
        )
        self.ledger.produce(self.writer.producer, [record])
        self.writer.flush(deadline)
        self.writer.commit(deadline)

    def _partition(self, letter: Letter) -> int:
        own = letter.why.topic == self.target.name and 0 <= letter.why.partition < self.target.partitions
        return letter.why.partition if own else choose_partition(letter.key, max(0, letter.why.partition), self.target.partitions)

    def _headers(self, letter: Letter) -> list[tuple[str, Any]]:
        """The event's own headers, and a writer that says which letter it came from."""
        return [*letter.headers, (WRITER_HEADER, f"replay/{self.facts.name}-{letter.position}/0".encode())]
