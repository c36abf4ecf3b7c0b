"""Dead letters replayed into a topic, each exactly once: as they were, or through an agent that was mended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from math import ceil, inf
from typing import Any, NamedTuple

import msgspec

from factory_agents.errors import ConfigurationError, FencedError, StoppedError, UnavailableError
from factory_agents.kafka.config import KafkaConfig, kafka_error
from factory_agents.kafka.ledger import Ledger, ReplayRecord
from factory_agents.kafka.messages import Headers, Message
from factory_agents.kafka.reader import WRITER_HEADER
from factory_agents.kafka.writer import ChunkAbortedError, TransactionalWriter, choose_partition
from factory_agents.protocol import CodecRef, Counts, PartitionRange, transactional_id
from factory_agents.reject import Reject
from factory_agents.runtime.agents import Output, Transform
from factory_agents.runtime.codecs import OpenCodec
from factory_agents.runtime.dead_letters import READ_SECONDS, STOPPED, Letter, LetterTopic, Names, Selection
from factory_agents.runtime.letter_states import replayed_offsets
from factory_agents.runtime.reasons import error_kind
from factory_agents.runtime.window import process
from factory_agents.telemetry import Commit, Observer, Subject
from factory_agents.text import count

__all__ = ["ReplayResult", "ReplayedBeforeError", "Through", "replay_letters"]

_OFFERED: frozenset[str] = frozenset({"finished", "live"})
_CHUNK, _CHUNK_BYTES = 10_000, 16 << 20
_TRANSACTION_MS = 20_000
"""How long what a killed replay leaves open holds up who reads the target or the ledger, at most."""
_CANARY, _THROUGH_CHUNK = 100, 1_000
"""Letters in the first and in every later chunk that passes an agent: little is done where the agent wasn't mended after all."""
_TRIES, _PATIENCE = 5, 60.0
_TICK = 0.2
_DAYS = 30 * 86_400.0
_BIG = 1 << 30
_MOST_REASONS = 20
_STOPPED_AGAIN = (
    "asked to stop; what was committed stays. --again starts from the first letter; with --again-as NAME, a stopped replay continues"
)


@dataclass(frozen=True)
class Through:
    """An agent or contract that events pass before they are written, what reads those of a topic, and what writes its outputs.

    What it rejects stays a letter. With ``stop_above``, nothing more is written once more per cent of the events come back.
    """

    transform: Transform
    reading: Callable[[str], OpenCodec | None] = lambda _: None
    writing: OpenCodec | None = None
    stop_above: float = inf


class ReplayedBeforeError(ConfigurationError):
    """Every letter that was meant has been replayed before; ``count`` is how many those are."""

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message)
        self.count = count


class ReplayResult(msgspec.Struct, frozen=True):
    """What a replay did: letters replayed, those replayed before, older letters about an event that was rejected again since.

    ``returned`` are events that the agent on the way rejected again, ``reasons`` why, the commonest first; they are letters as before.
    ``stopped`` says why it ended early.

    ``refused`` says which events the target did not take, and why. ``others`` are letters that would fit, of attempts that are not meant;
    ``foreign`` are records in the topic that are no letters.
    """

    topic: str
    to: str
    replayed: int
    before: int
    superseded: int
    dry_run: bool
    refused: tuple[str, ...] = ()
    others: int = 0
    foreign: int = 0
    returned: int = 0
    reasons: dict[str, int] = {}
    stopped: str = ""


def replay_letters(
    config: KafkaConfig,
    topic: str,
    to: str,
    selection: Selection,
    *,
    prefix: str = "factory",
    again: bool | str = False,
    dry_run: bool = False,
    rate: float = 0.0,
    through: Through | None = None,
    codec_of: Callable[[str], CodecRef | None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    observer: Observer | None = None,
) -> ReplayResult:
    """Write the events of the letters meant to a topic, each once: key, value, headers, and the partition if it is the topic they were in.

    The ledger says which letters were replayed, in the same transactions as the events; so a second replay, or one that goes on after a
    crash, takes only the others (all, with ``again``; under a name, those not replayed under it). Of several letters about one event the
    last counts. With a ``rate`` at most so many events a second are written. ``through`` an agent, its outputs are written instead, and
    what it rejects stays a letter. Without one, events stay the bytes that they were: ``codec_of`` tells the codecs of topics, and a target
    that would read them by another is refused.

    Raises ConfigurationError for unknown topics, for such a target and where no letter is meant, ReplayedBeforeError where all were
    replayed before.
    """
    if to == topic:
        raise ConfigurationError(f"{to!r} is the dead-letter topic itself: events there would be read by nobody; replay into another one")
    if not 0 <= rate < inf:
        raise ConfigurationError(f"rate {rate}: expected events a second, such as 500, or 0 for no limit")
    replay = _Replay(config, topic, to, prefix, again=again, rate=rate, through=through, codec_of=codec_of, stop=stop)
    try:
        return replay.run(selection, dry_run=dry_run, observer=observer or Observer())
    finally:
        with suppress(FencedError):  # of a failure before it
            replay.writer.abort()


@dataclass(frozen=True)
class _Chosen:
    """What is to be replayed, and how many letters are not: superseded ones, events that were replayed before, others' letters.

    ``unmet`` is what was asked for and no letter has.
    """

    places: set[tuple[int, int]]
    superseded: int
    before: int
    others: int
    unmet: str = ""


class _Replay:
    """One attempt at a replay; a later attempt between the same topics fences it."""

    def __init__(
        self,
        config: KafkaConfig,
        topic: str,
        to: str,
        prefix: str,
        *,
        again: bool | str,
        rate: float,
        through: Through | None,
        codec_of: Callable[[str], CodecRef | None],
        stop: Callable[[], bool],
    ) -> None:
        self.name = again if isinstance(again, str) else ""
        self.again, self.rate, self.through, self.codec_of, self.stop = again, rate, through, cache(codec_of), stop
        self.letters = LetterTopic(config, topic, prefix=prefix)
        self.cluster, self.facts = self.letters.cluster, self.letters.facts
        self.target = self.cluster.topic(to)
        self.ledger = Ledger(config, self.cluster, prefix=prefix, pipeline=f"replay.{topic}")
        lasts = int(config.values.get("transaction.timeout.ms", _TRANSACTION_MS))
        self.writer = TransactionalWriter(config, transactional_id(prefix, "replay", topic), known_topic=topic, timeout_ms=lasts)
        self.writer.batch_bytes = min(self.writer.batch_bytes, int(self.cluster.settings(to).get("max.message.bytes") or _BIG))
        self.counts = Counts()
        self.start = 0
        self.notes: set[str] = set()
        self.refused: list[str] = []
        self.passed = self.returned = 0
        self.reasons: Counter[str] = Counter()

    def run(self, selection: Selection, *, dry_run: bool, observer: Observer) -> ReplayResult:
        if not dry_run:
            self.ledger.ensure()
            self.writer.open(time.monotonic() + _PATIENCE)
            self.start = self.cluster.high_watermark(self.ledger.topic, [self.ledger.partition])[self.ledger.partition]
        ranges = self.letters.ranges()
        chosen = self._choose(ranges, selection)
        if not chosen.places and not self.refused:
            why = f"{self.facts.name}: {self._nothing(chosen)}{chosen.unmet and f': {chosen.unmet}'}"
            raise ReplayedBeforeError(why, chosen.before) if chosen.before else ConfigurationError(why)
        foreign = self.letters.foreign
        stopped = ""
        if not dry_run or self.through is not None:
            try:
                self._write(ranges, chosen.places, observer, dry_run=dry_run)
            except _TooManyReturnedError as error:
                stopped = str(error)
        replayed = len(chosen.places) if dry_run and self.through is None else self.counts.consumed
        return ReplayResult(
            self.facts.name,
            self.target.name,
            replayed,
            chosen.before,
            chosen.superseded,
            dry_run,
            tuple(self.refused),
            chosen.others,
            foreign,
            self.returned,
            dict(self.reasons.most_common(_MOST_REASONS)),
            stopped,
        )

    def _nothing(self, chosen: _Chosen) -> str:
        if chosen.before and self.name:
            return f"all matching letters ({chosen.before:,}) were replayed by the repetition {self.name!r}; another name repeats them"
        if chosen.before:
            return f"all matching letters ({chosen.before:,}) were replayed before; --again replays them again"
        if chosen.others:
            return (
                f"the {chosen.others:,} matching letters are from attempts that failed or haven't finished, or are unknown to the ledger "
                f"(is --prefix right?): a retry sees their events again; --attempt all includes them"
            )
        return "no dead letter matches these filters"

    def _choose(self, ranges: Sequence[PartitionRange], selection: Selection) -> _Chosen:
        """Where the letters lie that are to be replayed: of each event the last one, unless any letter about it was replayed before."""
        replayed = replayed_offsets(self.letters)
        repeated = replayed_offsets(self.letters, self.name) if self.name else {}
        latest: dict[tuple[Any, ...], tuple[datetime, int, int, str]] = {}
        done: set[tuple[Any, ...]] = set()
        left_out: set[tuple[Any, ...]] = set() if self.again else done
        pointers: dict[tuple[int, int], str] = {}
        unlike: dict[tuple[int, int], str] = {}
        meant = others = 0
        live: set[str] = set()
        names = Names()
        for letter in self.letters.read(ranges, self.stop):
            names.add(letter)
            event = letter.event
            if letter.offset in replayed.get(letter.partition, ()):
                done.add(event)
            if letter.offset in repeated.get(letter.partition, ()):
                left_out.add(event)
            if not selection.fits(letter):
                continue
            if not selection.takes(letter.attempt, _OFFERED):
                others += 1
                continue
            meant += 1
            live |= {letter.why.topic} if letter.attempt == "live" else set()
            place = (letter.written, letter.partition, letter.offset, letter.writer)
            latest[event] = max(place, latest.get(event, place))
            if letter.is_pointer:
                pointers[letter.partition, letter.offset] = self._pointer(letter)
            if self.through is None and (codec := self._other_codec(letter.why.topic)):
                unlike[letter.partition, letter.offset] = codec
        forged = set() if selection.attempt == "all" else self.letters.known.forged()
        new = sorted(place for event, place in latest.items() if event not in left_out)
        chosen = [place for place in new if (place[3], place[1]) not in forged]
        chosen = chosen[: selection.limit] if selection.limit else chosen
        self._check_target({(writer, p) for _, p, _, writer in chosen}, read_live=self.target.name in live)
        places = {(p, offset) for _, p, offset, _ in chosen}
        if found := sorted(places & unlike.keys()):
            raise ConfigurationError(
                f"{self.facts.name}: {count(len(found), 'event')} (the first at {found[0][0]}@{found[0][1]}) would go unchanged, in "
                f"{unlike[found[0]]}, into {self.target.name!r}, which has the codec {_codec_name(self.codec_of(self.target.name))}: "
                "nobody could read them there; --through an agent (validate, or your own) writes events by the topic's codec"
            )
        self.refused += [pointers[place] for place in sorted(places & pointers.keys())]
        before = len(latest.keys() & done)
        others += sum((w, p) in forged for _, p, _, w in new)
        return _Chosen(places - pointers.keys(), meant - len(latest), before, others, selection.unmet(names) if not meant else "")

    def _other_codec(self, topic: str) -> str:
        """The codec of another topic's records, where the target's readers read by another; "" where they are alike."""
        own, target = _codec_name(self.codec_of(topic)), _codec_name(self.codec_of(self.target.name))
        return own if topic != self.target.name and own != target else ""

    def _pointer(self, letter: Letter) -> str:
        why = letter.why
        where = why.where or f"{why.topic}-{why.partition}@{why.offset}"
        return f"{self.facts.name} {letter.position}: the event ({why.size:,} bytes) didn't fit a letter and stayed at {where}"

    def _check_target(self, writers: Iterable[tuple[str, int]], *, read_live: bool) -> None:
        """Refuse a topic that a stage reads by a manifest: what is put there by hand is in no window.

        One that somebody else reads whole (live, or by windows that are planned on it) is refused only where the letters' own stage is the
        one that reads it so.
        """
        known = self.letters.known
        own = {id(record) for record in map(known.record_of, writers)}
        read = [
            (r, r.result.input.writer) for r in known.records if r.result and r.result.input and r.result.input.topic == self.target.name
        ]
        read_whole = self.through is None and (read_live or not all(writer for _, writer in read))
        for record, writer in read:
            if not writer or (read_whole and id(record) not in own):
                continue
            origin = record.result.origin if record.result else ""
            first = f" (--to {origin})" if origin and origin != self.target.name else ""
            raise ConfigurationError(
                f"{self.facts.name}: stage {record.stage!r} reads only what the stage before it wrote to "
                f"{self.target.name!r}: it would never see these events there. Replay into the pipeline's first topic{first}, "
                f"or into a new one, and run {record.stage!r} over that"
            )

    def _write(self, ranges: Sequence[PartitionRange], places: set[tuple[int, int]], observer: Observer, *, dry_run: bool) -> None:
        subject = Subject(self.ledger.pipeline, "replay", total=len(places))
        chunk: list[Letter] = []
        size = 0
        started = time.monotonic()
        patience = READ_SECONDS + (len(places) / self.rate if self.rate else 0)
        if self.through is not None:
            patience = _DAYS  # an agent takes what it takes
        most = self._most()
        for letter in self.letters.read(ranges, self.stop, patience):
            if (letter.partition, letter.offset) not in places:
                continue
            chunk.append(letter)
            size += len(letter.value or b"")
            if len(chunk) >= most or size >= _CHUNK_BYTES:
                began = time.monotonic()
                self._handle(chunk, dry_run=dry_run)
                observer.committed(subject, Commit(len(chunk), len(chunk), size, time.monotonic() - began, done=self.counts.consumed))
                chunk, size = [], 0
                most = self._most()
                self._pace(started)
                if self.stop():
                    raise StoppedError(STOPPED if self.name or not self.again else _STOPPED_AGAIN)
        if chunk:
            self._handle(chunk, dry_run=dry_run)

    def _most(self) -> int:
        """How many letters the next chunk may have."""
        most = _CHUNK if self.through is None else _THROUGH_CHUNK if self.passed else _CANARY
        return min(most, ceil(self.rate)) if self.rate else most

    def _handle(self, letters: Sequence[Letter], *, dry_run: bool) -> None:
        events = [_Event(letter, [(letter.key, letter.value)]) for letter in letters] if self.through is None else self._pass(letters)
        if dry_run:
            self.counts.consumed += len(events)
        elif events:
            self._chunk(events)

    def _pass(self, letters: Sequence[Letter]) -> list[_Event]:
        """What the agent makes of the letters' events, but for those that it rejects."""
        through: Any = self.through
        events = []
        outputs = process(through.transform, self._read(through, letters))
        for letter, output in zip(letters, outputs, strict=True):
            try:
                events.append(_Event(letter, _records(letter, output, through.writing)))
            except Reject as reject:
                reject.forget_frames()
                self.returned += 1
                self.reasons[f"{reject.rule}: {error_kind(str(reject.reason))}"] += 1
        self.passed += len(letters)
        if self.returned * 100 > through.stop_above * self.passed:
            raise _TooManyReturnedError(
                f"{self.returned:,} of the first {self.passed:,} events came back, more than {through.stop_above:g} %"
            )
        return events

    def _pace(self, started: float) -> None:
        """Wait until no more than ``rate`` events a second were written, or the stop."""
        due = started + self.counts.consumed / self.rate if self.rate else started
        while (left := due - time.monotonic()) > 0 and not self.stop():
            time.sleep(min(left, _TICK))

    @staticmethod
    def _read(through: Through, letters: Sequence[Letter]) -> list[Message]:
        """The events as their own topics' codecs read them."""
        found: list[Message] = []
        for letter in letters:
            codec, record = through.reading(letter.why.topic), _Again(letter)
            found += [record] if codec is None else codec.read([record])
        return found

    def _chunk(self, events: Sequence[_Event]) -> None:
        """One transaction: events, and the note of which letters they were; halves of it where the broker refuses an event."""
        for attempt in range(1, _TRIES + 1):
            try:
                self._try(events)
                self.counts.consumed += len(events)
                return
            except ChunkAbortedError as aborted:
                self._reopen()
                if aborted.refused:
                    self._halve(events, aborted.cause)
                    return
                if attempt == _TRIES:
                    raise UnavailableError(f"replay into {self.target.name!r}: {aborted.cause}") from None

    def _reopen(self) -> None:
        """A new producer. Raises FencedError where another replay wrote something since this one chose its letters: maybe the same ones."""
        self.writer.abort()
        self.writer.open(time.monotonic() + _PATIENCE)
        notes = self.ledger.read(start=self.start, deadline=time.monotonic() + _PATIENCE).of(ReplayRecord)
        if any(note.topic_id == self.facts.id and note.key() not in self.notes for note in notes):
            raise FencedError(f"{self.facts.name}: another replay of these letters ran meanwhile; repeat this one for those that are left")

    def _halve(self, events: Sequence[_Event], cause: Exception) -> None:
        if len(events) == 1:
            self.refused.append(f"{self.facts.name} {events[0].letter.position}: {cause}")
            return
        half = len(events) // 2
        self._chunk(events[:half])
        self._chunk(events[half:])

    def _try(self, events: Sequence[_Event]) -> None:
        deadline = time.monotonic() + _PATIENCE
        self.writer.begin()
        offsets: dict[int, list[int]] = {}
        for letter, records in events:
            headers = self._headers(letter)
            for key, value in records:
                refused = self.writer.send(self.target.name, value, key, self._partition(letter, key), headers)
                if refused is not None:
                    raise ChunkAbortedError(kafka_error(refused, "writing"), refused=True)
            offsets.setdefault(letter.partition, []).append(letter.offset)
        record = ReplayRecord(
            self.ledger.pipeline,
            self.facts.id,
            self.target.name,
            offsets,
            time.time_ns() // 1_000_000,
            events[0].letter.position,
            again=self.name,
        )
        self.ledger.produce(self.writer.producer, [record])
        self.writer.flush(deadline)
        self.writer.commit(deadline)
        self.notes.add(record.key())

    def _partition(self, letter: Letter, key: bytes | None) -> int:
        own = key == letter.key and letter.why.topic == self.target.name and 0 <= letter.why.partition < self.target.partitions
        return letter.why.partition if own else choose_partition(key, max(0, letter.why.partition), self.target.partitions)

    def _headers(self, letter: Letter) -> list[tuple[str, Any]]:
        """The event's own headers, and a writer that says which letter it came from."""
        writer = (WRITER_HEADER, f"replay/{self.facts.name}-{letter.position}/0".encode())
        through = self.through
        if through is None:
            return [*letter.headers, writer]
        codecs = filter(None, (through.reading(letter.why.topic), through.writing))
        replaced = frozenset[str]().union(*(codec.header_names for codec in codecs))
        own = [header for header in letter.headers if header[0] not in replaced]
        return [*own, writer, *(through.writing.headers if through.writing is not None else ())]


def _codec_name(codec: CodecRef | None) -> str:
    """Codecs of one name write records alike."""
    if codec is None:
        return "json"
    over = codec.options.get("over")
    return f"{codec.name} over {over}" if over else codec.name


class _TooManyReturnedError(Exception):
    """More events came back than may."""


class _Event(NamedTuple):
    """A letter, and the records that are written for it."""

    letter: Letter
    records: Sequence[tuple[bytes | None, bytes | None]]


def _records(letter: Letter, output: Output, codec: OpenCodec | None) -> list[tuple[bytes | None, bytes | None]]:
    """The records of an agent's output. Raises Reject where it is one, or the codec can't write it."""
    if isinstance(output, Reject):
        raise output
    if output is None:
        return []
    pairs = [record if isinstance(record, tuple) else (letter.key, record) for record in (output if isinstance(output, list) else [output])]
    return [(key, value if codec is None else codec.write(value)) for key, value in pairs]


class _Again:
    """The rejected event as the record that it was (see ``Message``)."""

    def __init__(self, letter: Letter) -> None:
        self._letter = letter
        self._headers: Headers = list(letter.headers)

    def __len__(self) -> int:
        return len(self._letter.value or b"")

    def topic(self) -> str:
        return self._letter.why.topic

    def partition(self) -> int:
        return self._letter.why.partition

    def offset(self) -> int:
        return self._letter.why.offset

    def key(self) -> bytes | None:
        return self._letter.key

    def value(self) -> bytes | None:
        return self._letter.value

    def headers(self) -> Headers | None:
        return self._headers

    def set_headers(self, value: Headers) -> None:
        self._headers = value

    def timestamp(self) -> tuple[int, int]:
        return 1, self._letter.why.timestamp

    def error(self) -> None:
        return None
