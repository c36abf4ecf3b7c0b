"""The answer log: what a model said is committed with the outputs that it went into, and is never asked again.

One compacted topic. A record's key is what was asked of whom: the digest of model, revision, prompt, parameters and output schema (which
chooses the partition, so that a reader reads one), and that of the values of the fields that the prompt uses.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgspec
from confluent_kafka import KafkaError, TopicPartition

from factory_agents.errors import ConfigurationError, DeadlineError, UnavailableError
from factory_agents.inference.money import Spent
from factory_agents.kafka.config import KafkaConfig, is_transient, kafka_error
from factory_agents.kafka.messages import Message
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import Counts
from factory_agents.runtime.agents import SideRecord

__all__ = [
    "ANSWER_PARTITIONS",
    "ANSWER_SETTINGS",
    "Answer",
    "AnswerLog",
    "answer_key",
    "answers_topic",
    "current_answers",
    "decode_answer",
    "decode_said",
    "forget_answers",
    "read_answers",
    "subject_hash",
]

ANSWER_PARTITIONS = 12
ANSWER_SETTINGS = {
    "cleanup.policy": "compact",
    "segment.bytes": "67108864",
    "segment.ms": "86400000",
    "min.compaction.lag.ms": "86400000",  # a day's spending can be counted until the day is over
    "max.compaction.lag.ms": "172800000",  # and what is to be forgotten is gone after two more days at the latest
}
_READ_SECONDS = 900.0
_DAY_MS = 86_400_000
_LOOK_SECONDS = 0.05
_AT_ONCE = 500  # keys in one question to the index
_INDEX_BYTES = 64 * 1024 * 1024  # of answers in memory
_ROW_BYTES = 200  # what an answer takes in memory beside its own bytes, about


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a model said: ``text`` is JSON that keeps the contract, or else what it said, and ``fault`` why that is no good.

    ``at`` is in milliseconds, ``cost`` in billionths; ``by`` is the pipeline and stage that paid, ``run`` the run that asked. ``calls``,
    tokens and cost are of all calls that it took (a question again after a wrong answer is one). ``prompt``, ``model`` and ``subject`` (a
    hash of whose data it is about) are for people. One with neither ``text`` nor ``fault`` is still to come, by the ``batch`` of that name.
    """

    at: int
    text: str
    fault: str = ""
    by: str = ""
    run: str = ""
    calls: int = 1
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost: int = 0
    prompt: str = ""
    model: str = ""
    subject: str = ""
    batch: str = ""


class Said(msgspec.Struct, frozen=True, gc=False):
    """What of an answer goes into an event, or why nothing does."""

    text: str
    fault: str = ""

    @property
    def is_there(self) -> bool:
        """Whether the model has answered yet."""
        return bool(self.text or self.fault)


_decode_answer = msgspec.json.Decoder(Answer).decode
decode_said = msgspec.json.Decoder(Said).decode
_encode_values = msgspec.json.Encoder(order="deterministic").encode


def decode_answer(value: bytes) -> Answer:
    """An answer as it is in the log. A record that is none says nothing, as if the model hadn't answered: the question is asked again."""
    try:
        return _decode_answer(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Answer(0, "", calls=0)


def answers_topic(prefix: str) -> str:
    """The answer log's topic for a prefix: ``factory.answers`` by default."""
    return f"{prefix}.answers"


def partition_of(question: bytes, partitions: int) -> int:
    """In which partition all answers to one question (of whatever values) lie; partitions that are added to the topic change nothing."""
    return zlib.crc32(question) % min(partitions, ANSWER_PARTITIONS)


def answer_key(question: bytes, values: Sequence[Any]) -> bytes:
    """The record key: the question's digest and that of the fields' values."""
    return question + b"|" + hashlib.sha256(_encode_values(values)).hexdigest().encode()


class _Index:
    """Answers by key, of one question: in memory up to a bound, then in a file that is nowhere. For one thread."""

    def __init__(self, most_bytes: int = _INDEX_BYTES) -> None:
        self._known: dict[bytes, bytes] = {}
        self._room = most_bytes
        self._database: sqlite3.Connection | None = None

    def put(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Take answers, the newest last; None deletes."""
        last = dict(rows)
        if self._database is not None:
            self._write(self._database, last)
            return
        for key, value in last.items():
            if value is None:
                self._known.pop(key, None)
            else:
                self._known[key] = value
                self._room -= len(key) + len(value) + _ROW_BYTES
        if self._room < 0:
            self._database = sqlite3.connect("", isolation_level=None)
            self._database.execute("PRAGMA journal_mode = OFF")
            self._database.execute("PRAGMA synchronous = OFF")
            self._database.execute("CREATE TABLE answers (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
            self._write(self._database, self._known)
            self._known = {}

    @staticmethod
    def _write(database: sqlite3.Connection, rows: Mapping[bytes, bytes | None]) -> None:
        database.execute("BEGIN")
        database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", ((k, v) for k, v in rows.items() if v is not None))
        database.executemany("DELETE FROM answers WHERE key = ?", ((k,) for k, v in rows.items() if v is None))
        database.execute("COMMIT")

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Those of the keys that are there."""
        if self._database is None:
            known = self._known
            return {key: known[key] for key in keys if key in known}
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), _AT_ONCE):
            part = keys[start : start + _AT_ONCE]
            found.update(self._database.execute(f"SELECT key, value FROM answers WHERE key IN ({','.join('?' * len(part))})", part))
        return found

    def close(self) -> None:
        """Free it."""
        self._known = {}
        if self._database is not None:
            self._database.close()


class _Pending(NamedTuple):
    key: bytes
    answer: Answer
    value: bytes
    since: float
    replaced: tuple[Answer, ...] = ()
    """Answers in whose place it came before they were committed: they were paid for, too."""

    def in_place_of(self, other: _Pending | None) -> _Pending:
        return self if other is None else self._replace(since=other.since, replaced=(*other.replaced, other.answer, *self.replaced))


class AnswerLog:
    """The answers to one question: those in the topic, and those that are to go there with the next transaction.

    Opened, asked and added to in the agent's thread; the runtime takes what is new from its own (see ``SideLog``).
    """

    def __init__(self, question: bytes, spender: str, *, daily: bool = False) -> None:
        self._question = question
        self._index: _Index | None = None
        self._lock = threading.Lock()
        self._new: dict[bytes, _Pending] = {}
        self._taken: dict[bytes, _Pending] = {}
        self._settled: list[_Pending] = []
        self._topic, self._partition = "", -1
        self._spender, self._daily = spender, daily
        self.left = threading.Event()
        """Set when the run ends."""
        self.spent_on_window = self.spent_today = self.spent_today_before = Spent()
        self._today = 0
        self._is_awaited = False

    def open(self, config: KafkaConfig, cluster: Cluster, prefix: str, counts: Counts, deadline: float, stop: Callable[[], bool]) -> None:
        """Read what was answered before, up to the topic's end of now; it waits for transactions that are open below it.

        Raises ConfigurationError where the topic deletes what it holds; DeadlineError, UnavailableError.
        """
        self._topic = answers_topic(prefix)
        facts = cluster.ensure(self._topic, ANSWER_PARTITIONS, settings=ANSWER_SETTINGS)
        policy = cluster.settings(self._topic).get("cleanup.policy", "compact")
        if "compact" not in policy:
            raise ConfigurationError(
                f"topic {self._topic!r} has cleanup.policy={policy}; the answer log needs compact (or compact,delete with a retention): "
                f"what was answered would be asked, and paid for, again"
            )
        self._partition = partition_of(self._question, facts.partitions)
        self._index = _Index()
        until = min(deadline, time.monotonic() + _READ_SECONDS)
        rows: list[tuple[bytes, bytes | None]] = []
        for key, value in _records(config, cluster, self._topic, [self._partition], until, stop):
            if key.startswith(self._question):
                rows.append((key, value))
                if len(rows) >= 20_000:
                    self._index.put(rows)
                    rows.clear()
        self._index.put(rows)
        self.spent_on_window = Spent(counts.nanocost, counts.prompt_tokens + counts.completion_tokens)
        self._today = _today()
        if self._daily:
            since = self._today * _DAY_MS
            self.spent_today_before = _spending(config, cluster, self._topic, facts.partitions, self._spender, since, until, stop)

    def find(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The answers that are known, as they are in the log, committed or not."""
        with self._lock:
            settled, self._settled = self._settled, []
            uncommitted = self._taken | self._new
        if self._index is not None and settled:
            self._index.put((entry.key, entry.value) for entry in settled)
        known = self._index.get(keys) if self._index is not None else {}
        if uncommitted:
            known.update((key, uncommitted[key].value) for key in keys if key in uncommitted)
        return known

    def add(self, key: bytes, answer: Answer) -> None:
        """An answer that was just given; it goes into the next transaction."""
        value = msgspec.json.encode(answer)
        tokens = answer.prompt_tokens + answer.completion_tokens
        self.spent_on_window = self.spent_on_window.plus(answer.cost, tokens)
        self.turn_day()
        self.spent_today = self.spent_today.plus(answer.cost, tokens)
        with self._lock:
            self._new[key] = _Pending(key, answer, value, time.monotonic()).in_place_of(self._new.pop(key, None))

    def wait_committed(self) -> bool:
        """Wait until all that was added is committed, which is for the runtime to do; false where the run ends before."""
        self._is_awaited = self._index is not None
        while self._is_awaited and not self.left.wait(_LOOK_SECONDS):
            with self._lock:
                self._is_awaited = bool(self._new or self._taken)
        return not self._is_awaited

    def turn_day(self) -> None:
        """On a new day (UTC) nothing has been spent yet."""
        if self._today != (today := _today()):
            self._today, self.spent_today, self.spent_today_before = today, Spent(), Spent()

    def leave(self) -> None:
        """See ``SideLog``."""
        self.left.set()

    @property
    def age(self) -> float:
        """See ``SideLog``."""
        with self._lock:
            first = next(iter(self._new.values()), None)
        if first is None:
            return 0.0
        return math.inf if self._is_awaited else time.monotonic() - first.since

    def take(self, counts: Counts) -> list[SideRecord]:
        """See ``SideLog``."""
        with self._lock:
            taken, self._new = self._new, {}
            self._taken |= taken
        for answer in (answer for entry in taken.values() for answer in (*entry.replaced, entry.answer)):
            counts.asked += answer.calls
            counts.prompt_tokens += answer.prompt_tokens
            counts.cached_tokens += answer.cached_tokens
            counts.completion_tokens += answer.completion_tokens
            counts.nanocost += answer.cost
        return [SideRecord(self._topic, self._partition, entry.key, entry.value) for entry in taken.values()]

    def settle(self, *, committed: bool) -> None:
        """See ``SideLog``."""
        with self._lock:
            taken, self._taken = self._taken, {}
            if committed:
                self._settled += taken.values()
            else:
                self._new = taken | {key: entry.in_place_of(taken.get(key)) for key, entry in self._new.items()}

    def close(self) -> None:
        """Free the index."""
        if self._index is not None:
            self._index.close()
            self._index = None


def read_answers(config: KafkaConfig, *, prefix: str, seconds: float = _READ_SECONDS) -> Iterator[tuple[bytes, Answer | None]]:
    """Every committed record of the answer log of now, oldest first within a partition: its key, and None for one that was forgotten."""
    with Cluster(config) as cluster:
        topic = answers_topic(prefix)
        facts = cluster.find(topic)
        if facts is None:
            return
        until = time.monotonic() + seconds
        for key, value in _records(config, cluster, topic, range(facts.partitions), until, lambda: False):
            yield key, None if value is None else decode_answer(value)


def current_answers(config: KafkaConfig, *, prefix: str) -> dict[str, Answer]:
    """The answers in the log, by key."""
    found: dict[str, Answer] = {}
    for key, answer in read_answers(config, prefix=prefix):
        found.pop(key.decode(errors="replace"), None)
        if answer is not None:
            found[key.decode(errors="replace")] = answer
    return found


def forget_answers(config: KafkaConfig, *, prefix: str, keys: Sequence[str], subjects: Sequence[str]) -> int:
    """Delete answers by key, and those about these subjects; how many there were. Raises ConfigurationError for a key that isn't there."""
    current = current_answers(config, prefix=prefix)
    for key in keys:
        if key not in current:
            raise ConfigurationError(f"no answer has the key {key!r}; see: factory answers list")
    about = {subject_hash(subject) for subject in subjects}
    gone = [key for key, answer in current.items() if key in keys or (answer.subject and answer.subject in about)]
    topic, failed = answers_topic(prefix), list[KafkaError]()
    if not gone:
        return 0
    with Cluster(config) as cluster:
        partitions = cluster.topic(topic).partitions
    producer = config.plain_producer()
    for key in gone:
        partition = partition_of(key.partition("|")[0].encode(), partitions)
        producer.produce(topic, None, key.encode(), partition, on_delivery=lambda error, _: failed.append(error) if error else None)
        producer.poll(0)
    if producer.flush(60.0) or failed:
        raise UnavailableError(f"topic {topic!r}: not all answers could be deleted: {failed[0].str() if failed else 'no answer in time'}")
    return len(gone)


def subject_hash(value: Any) -> str:
    """Whose data an answer is about, without saying it."""
    return hashlib.sha256(str(value).encode(errors="replace")).hexdigest()[:32] if value is not None else ""


def _spending(
    config: KafkaConfig, cluster: Cluster, topic: str, partitions: int, spender: str, since: int, until: float, stop: Callable[[], bool]
) -> Spent:
    found = cluster.at_time(topic, range(partitions), since)
    ends = cluster.high_watermark(topic, range(partitions))
    starts = {p: offset if offset >= 0 else ends[p] for p, (offset, _) in found.items()}
    spent = Spent()
    for _, value in _records(config, cluster, topic, range(partitions), until, stop, starts):
        if value is not None:
            answer = decode_answer(value)
            if answer.by == spender and answer.at >= since:
                spent = spent.plus(answer.cost, answer.prompt_tokens + answer.completion_tokens)
    return spent


def _today() -> int:
    return int(time.time() * 1000) // _DAY_MS


def _records(
    config: KafkaConfig,
    cluster: Cluster,
    topic: str,
    partitions: Sequence[int],
    until: float,
    stop: Callable[[], bool],
    starts: dict[int, int] | None = None,
) -> Iterator[tuple[bytes, bytes | None]]:
    """Committed records up to the high watermarks of now."""
    ends = cluster.high_watermark(topic, partitions)
    begins = cluster.log_start(topic, partitions) | (starts or {})
    todo = {p: end for p, end in ends.items() if begins[p] < end}
    if not todo:
        return
    consumer = config.consumer(auto_offset_reset="earliest")
    try:
        consumer.assign([TopicPartition(topic, p, begins[p]) for p in todo])
        while todo:
            for message in cast("list[Message]", consumer.consume(10_000, 0.05)):
                error, partition, offset = message.error(), message.partition(), message.offset()
                end = todo.get(partition)
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    if not is_transient(error):
                        raise kafka_error(error, f"reading {topic}-{partition}", topic=f"READ on topic {topic!r}")
                    continue
                if end is None:
                    continue
                if error is None and offset < end:
                    yield message.key() or b"", message.value()
                if offset >= (end if error is not None else end - 1):
                    del todo[partition]
            if todo and (stop() or time.monotonic() > until):
                raise DeadlineError(f"the answer log {topic} could not be read to its end in time; a retry begins again")
    finally:
        consumer.close()
