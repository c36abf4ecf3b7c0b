"""Where an agent's records go: the output topic and its dead letters, each record with its writer in one header."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import methodcaller
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from confluent_kafka import KafkaError, KafkaException

from factory_agents.errors import ConfigurationError, DataLossError, UnavailableError
from factory_agents.kafka.fetch import Digest, LargeMessage
from factory_agents.kafka.messages import UNREADABLE_HEADERS, Message, drop_headers, headers_of, readable_headers
from factory_agents.kafka.reader import WRITER_HEADER
from factory_agents.kafka.topics import Cluster, TopicInfo
from factory_agents.kafka.writer import ChunkAbortedError, TransactionalWriter, choose_partition
from factory_agents.protocol import Counts, Manifest, PartitionRange
from factory_agents.reject import Reject
from factory_agents.runtime.agents import Output, Record
from factory_agents.runtime.codecs import OpenCodec
from factory_agents.runtime.reasons import Reasons
from factory_agents.runtime.refusals import NOWHERE, Place, Refusals, place_of
from factory_agents.text import printable

if TYPE_CHECKING:
    from factory_agents.telemetry.spans import RunTrace

__all__ = ["DEAD_LETTER_HEADER", "DEAD_SETTINGS", "Bounds", "DeadLetter", "Origin", "Outputs", "reject_large"]

DEAD_LETTER_HEADER = "factory-dead-letter"
"""The header of a dead letter that says why, as JSON (``DeadLetter``)."""

_LONGEST_REASON = 2000
_LONGEST_KEY, _LONGEST_WRITER = 1000, 1000
_BATCH_OVERHEAD = 100  # what a batch, and its compression, may take beside the records
_partition = methodcaller("partition")

DEAD_SETTINGS = {"cleanup.policy": "delete", "max.message.bytes": "20971520", "retention.ms": "2592000000"}
"""How a topic for dead letters is made, whatever the broker's defaults are."""

Bounds = dict[int, tuple[int, int, int]]
"""Per partition: first offset, one past the last, records written between them."""


class DeadLetter(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why an event was rejected and where it came from; the event itself is the record's key, value and other headers.

    An event that doesn't fit into a record of the dead-letter topic stays where it was: then the letter has no value, and ``size`` (in
    bytes), ``sha256`` and ``prefix`` tell what the event's was.
    """

    error: str
    rule: str
    pipeline: str
    stage: str
    agent: str
    version: str
    window: str = ""
    topic: str = ""
    partition: int = -1
    offset: int = -1
    timestamp: int = -1
    where: str = ""
    topic_id: str = ""
    source: str = ""
    writer: str = ""
    size: int = -1
    sha256: str = ""
    prefix: bytes = b""


@dataclass(frozen=True)
class Origin:
    """Who writes: what dead letters and errors say of it. ``input_topic`` is empty where none is read; ``source`` tells what one held."""

    pipeline: str
    stage: str
    agent: str
    version: str
    window: str = ""
    input_topic: str = ""
    input_topic_id: str = ""
    input_partitions: int = 0
    source: str = ""


class Figures(NamedTuple):
    """What a chunk has sent: records, the bytes of their values, and dead letters among them by rule."""

    written: int
    bytes: int
    rejected: Mapping[str, int]


class Outputs:
    """Puts an agent's outputs and dead letters into a writer's transaction and keeps count of them.

    ``show`` (a dry run) is called with topic, key and value of what would be written instead; of rejected events ``reasons`` keeps so many
    ``examples``. Topics are looked up by ``resolve``; the dead-letter topic is made
    when first needed. An event whose record was refused (``mark_refused``) is dead-lettered when its turn comes again, whatever the agent
    makes of it then. Set ``trace`` to what is to follow those events that carry one.
    """

    def __init__(
        self,
        cluster: Cluster,
        writer: TransactionalWriter,
        origin: Origin,
        *,
        output: str,
        dead: str,
        show: Callable[[str, bytes | None, bytes | None], None] | None = None,
        examples: int = 0,
    ) -> None:
        self._cluster = cluster
        self._writer = writer
        self._origin = origin
        self._show = show
        self._output_name = output
        self._dead_name = dead
        self._own_headers: list[tuple[str, Any]] = []
        self._headers: list[tuple[str, Any]] = []
        self._replaced = frozenset((WRITER_HEADER, DEAD_LETTER_HEADER))
        self.codec: OpenCodec | None = None
        self.trace: RunTrace | None = None
        self._starts: dict[str, dict[int, int]] = {}
        self._sent: dict[str, dict[int, int]] = {}
        self._bytes = 0
        self._rejected: Counter[str] = Counter()
        self.refusals = Refusals()
        self.reasons = Reasons(examples)
        self._limits: dict[str, int] = {}
        self._keyed = False
        self.input_topic_id = origin.input_topic_id
        self.output: TopicInfo | None = None
        self.dead: TopicInfo | None = None

    def resolve(self) -> None:
        """Look the output topic up; ConfigurationError where it does not exist, or where dead letters would be taken for events."""
        for what, name in (("output", self._output_name), ("input", self._origin.input_topic)):
            if name and name == self._dead_name:
                raise ConfigurationError(
                    f"stage {self._origin.stage!r}: dead-letter topic {name!r} is its {what} topic too: rejected events would be read as "
                    f"good ones; name another one, or none (then it is <topic>.dead)"
                )
        if self._output_name:
            self.output = self._cluster.topic(self._output_name)
            settings = self._cluster.settings(self._output_name)
            self._keyed = "compact" in settings.get("cleanup.policy", "")
            if self._show is None:
                self._heed_limit(settings)

    def _heed_limit(self, settings: Mapping[str, str]) -> None:
        """Have the next producer make no batch of several records that the output topic may not take: one that is refused is alone."""
        limit = int(settings.get("max.message.bytes") or self._writer.batch_bytes)
        self._limits[self._output_name] = limit
        self._writer.batch_bytes = max(1, min(self._writer.batch_bytes, int(limit * 0.99) - _BATCH_OVERHEAD))

    def set_writer(self, writer_id: str) -> None:
        """Set what every record carries in its writer header from now on."""
        self._own_headers = [(WRITER_HEADER, writer_id.encode())]
        self._headers = [*self._own_headers, *(self.codec.headers if self.codec is not None else ())]

    def use_codecs(self, reading: OpenCodec | None, writing: OpenCodec | None) -> None:
        """Set what writes the events, and which headers of what was read speak of its own codec: they don't go on."""
        self.codec = writing
        self._replaced = self._replaced.union(*(codec.header_names for codec in (reading, writing) if codec is not None))

    @property
    def dead_name(self) -> str:
        """Where rejected events go: as told, else ``<output>.dead``, else ``<input>.dead``."""
        base = self._output_name or self._origin.input_topic
        if not self._dead_name and not base:
            raise ConfigurationError(
                f"stage {self._origin.stage!r}: an event was rejected, but no output topic and no dead-letter topic is named"
            )
        return self._dead_name or f"{base}.dead"

    def put(
        self, messages: Sequence[Message], outputs: Sequence[Output], counts: Counts, *, carriers: Sequence[Message] | None = None
    ) -> None:
        """What became of a batch of input records: forwards, filters, rejects, and counts each of them once.

        ``carriers`` are the few of them that have headers of their own to be passed on, in their order; None where it may be any.
        """
        if self.codec is not None:
            outputs = self._encoded(self.codec, messages, outputs)
        begin = 0
        if carriers is not None and self._is_plain():
            for end in (*map(messages.index, carriers), len(messages)):
                done = self._put_plain(messages[begin:end], outputs[begin:end], counts)
                if begin + done < end:
                    begin += done
                    break
                self._put_each(messages[end : end + 1], outputs[end : end + 1], counts)
                begin = end + 1
        if begin < len(messages):
            self._put_each(messages[begin:], outputs[begin:], counts)

    def _encoded(self, codec: OpenCodec, messages: Sequence[Message], outputs: Sequence[Output]) -> list[Output]:
        """The same outputs as the topic's codec writes them; an event that it can't write is rejected whole.

        A dry run keeps them as JSON, which is what it shows.
        """

        def encoded(message: Message, record: Record) -> Record:
            key, text = record if isinstance(record, tuple) else (None, record)
            value = codec.write(text)
            if self._show is not None:
                return record
            if isinstance(record, tuple):
                return key, value
            return (_key(message, text), value) if self._keyed else value

        result: list[Output] = []
        for message, output in zip(messages, outputs, strict=True):
            try:
                if output is None or isinstance(output, Reject):
                    result.append(output)
                elif isinstance(output, list):
                    result.append([encoded(message, record) for record in output])
                else:
                    result.append(encoded(message, output))
            except Reject as reject:
                result.append(reject)
        return result

    def _is_plain(self) -> bool:
        """Whether a record goes to the partition that it came from, under its own key."""
        output = self.output
        return (
            output is not None
            and output.partitions == self._origin.input_partitions
            and self._show is None
            and not self._keyed
            and not self.refusals.active
        )

    def _put_plain(self, messages: Sequence[Message], outputs: Sequence[Output], counts: Counts) -> int:
        """The usual batch with as few steps a record as can be: one output each, as long as the client takes them. How many were put."""
        output = self._needed_output()
        sent = self._begin(output)
        produce, topic, headers = self._writer.producer.produce, output.name, self._headers
        done = 0
        for message, value in zip(messages, outputs, strict=True):
            if type(value) is not bytes:
                break
            try:
                produce(topic, value, message.key(), message.partition(), headers=headers)
            except (BufferError, KafkaException):
                break  # the record's turn comes again, with all care
            done += 1
        for p, n in Counter(map(_partition, messages[:done])).items():
            sent[p] = sent.get(p, 0) + n
        self._bytes += sum(map(len, outputs[:done]))  # type: ignore[arg-type]  # all of these are bytes
        counts.consumed += done
        counts.forwarded += done
        counts.produced += done
        return done

    def _put_each(self, messages: Sequence[Message], outputs: Sequence[Output], counts: Counts) -> None:
        write, keyed = self._write, self._keyed
        for message, output in zip(messages, outputs, strict=True):
            if type(output) is bytes:
                refused = write(message, _key(message, output) if keyed else message.key(), output)
                if refused is None:
                    counts.forwarded += 1
                    counts.produced += 1
                    continue
                output = refused
            if output is None:
                counts.filtered += 1
                if self.trace is not None:
                    self.trace.follow(message, readable_headers(message), "filtered")
            elif isinstance(output, Reject):
                counts.rejected += 1
                self.reject(output, message=message)
            else:
                self._put_several(message, output if isinstance(output, list) else [output], counts)
        counts.consumed += len(messages)

    def _put_several(self, message: Message, records: Sequence[bytes | tuple[bytes | None, bytes] | Any], counts: Counts) -> None:
        """All outputs of one event, or none of them: the event is rejected whole."""
        own = _key if self._keyed else _own_key
        pairs = [record if isinstance(record, tuple) else (own(message, record), record) for record in records]
        refused = self._refused_before(message, pairs) if self.refusals.active else None
        for n, (key, value) in enumerate(pairs if refused is None else ()):
            refused = self._write(message, key, value)
            if refused is not None and n:  # those before it are in the transaction already
                self.refusals.add(self._needed_output().name, place_of(message), refused.reason)
                raise ChunkAbortedError(UnavailableError(refused.reason), refused=True)
            if refused is not None:
                break
        if refused is not None:
            counts.rejected += 1
            self.reject(refused, message=message)
            return
        counts.forwarded += 1
        counts.produced += len(pairs)

    def _refused_before(self, message: Message, pairs: Sequence[tuple[bytes | None, bytes]]) -> Reject | None:
        """Why one of an event's records is refused, as far as that is known beforehand."""
        topic, place = self._needed_output().name, place_of(message)
        reason = next(filter(None, (self.refusals.known(topic, key, value, place) for key, value in pairs)), "")
        return Reject(reason, rule="refused") if reason else None

    def mark_refused(self, aborted: ChunkAbortedError, *, alone: bool) -> bool:
        """Take note of the events whose records were refused; whether any were found. See ``Refusals.learn``."""
        if any(record.too_large and record.topic == self._output_name for record in aborted.records):
            self._heed_limit(self._cluster.settings(self._output_name))  # it may have been lowered
        return self.refusals.learn(aborted, alone=alone, limits=self._limits)

    def _write(self, message: Message, key: bytes | None, value: bytes) -> Reject | None:
        """One output of an input record.

        The input's partition is kept where both topics have as many and the key is the same; else the key decides.
        """
        fallback = message.partition()
        output = self._needed_output()
        if output.partitions == self._origin.input_partitions > fallback and key == message.key():
            partition = fallback
        else:
            partition = choose_partition(key, fallback, output.partitions)
        headers = self._headers
        try:
            own = headers_of(message)
        except UNREADABLE_HEADERS:
            drop_headers(message)
            return Reject("the name of a header is no UTF-8: the event can't be passed on with its headers", rule="headers")
        if own and (len(own) > 1 or own[0][0] != WRITER_HEADER):
            if self.trace is not None:
                own = self.trace.follow(message, own)
            headers = [h for h in own if h[0] not in self._replaced] + headers
        return self._send(output, value, key, partition, headers, place_of(message) if self.refusals.active else NOWHERE)

    def write_new(self, key: bytes | None, value: bytes | None, row: int, *, traced: bool = False) -> Reject | None:
        """One record that comes from no topic; without a key the row's number chooses the partition. Why it is refused, if it is. Without a
        value (a tombstone) it needs a key.

        ``traced``: its trace begins here.
        """
        output = self._needed_output()
        if key is None and value is not None and self._keyed:
            key = (_id(value) or f"{self._origin.window}-{row}").encode()
        if self.codec is not None and value is not None:
            try:
                encoded = self.codec.write(value)
            except Reject as reject:
                return reject
            value = value if self._show is not None else encoded
        headers = self._headers
        if traced and self.trace is not None:
            if self._show is None:
                self._begin(output)  # what that waits for is no part of the event's way
            headers = [*self.trace.begin(), *headers]
        return self._send(output, value, key, choose_partition(key, row, output.partitions), headers, (-1, row))

    def traces_due(self) -> int:
        """For how many of the records that come now a trace is to be begun."""
        return self.trace.due() if self.trace is not None else 0

    def _needed_output(self) -> TopicInfo:
        if self.output is None:
            raise ConfigurationError(
                f"stage {self._origin.stage!r}: agent {self._origin.agent!r} gives events, but no output topic is named"
            )
        return self.output

    def _send(
        self, topic: TopicInfo, value: bytes | None, key: bytes | None, partition: int, headers: list[tuple[str, Any]], place: Place
    ) -> Reject | None:
        if self._show is not None:
            self._show(topic.name, key, value)
            return None
        refusals = self.refusals
        if refusals.active and (reason := refusals.known(topic.name, key, value, place)):
            return Reject(reason, rule="refused")
        sent = self._begin(topic)
        error: KafkaError | None = self._writer.send(topic.name, value, key, partition, headers)
        if error is not None:
            return Reject(f"refused by the client: {error.str()}", rule="refused")
        if refusals.active:
            refusals.sent(topic.name, key, value, place)
        sent[partition] = sent.get(partition, 0) + 1
        self._bytes += len(value or b"")
        return None

    def _begin(self, topic: TopicInfo) -> dict[int, int]:
        """Before a record goes to a topic: a transaction is open and the topic's bounds are known. Records sent by partition."""
        if self._writer.open_since is None:
            self._writer.begin()
        sent = self._sent.get(topic.name)
        if sent is None:
            sent = self._sent[topic.name] = {}
            if topic.name not in self._starts:
                self._starts[topic.name] = self._cluster.high_watermark(topic.name, range(topic.partitions))
        return sent

    def reject(
        self,
        reject: Reject,
        *,
        message: Message | None = None,
        value: bytes | None = None,
        key: bytes | None = None,
        where: str = "",
        row: int = -1,
        tolerated: bool = False,
    ) -> None:
        """Send one event to the dead-letter topic with the reason: whole, or a pointer to it where that topic doesn't take it whole.

        ``tolerated``: it doesn't count against ``max_rejected``.

        Raises ConfigurationError where it doesn't take the pointer either.
        """
        reject.forget_frames()
        self._rejected[reject.rule] += 1
        origin = self._origin
        letter = DeadLetter(
            error=_text(reject.reason),
            rule=_text(reject.rule),
            pipeline=origin.pipeline,
            stage=origin.stage,
            agent=origin.agent,
            version=origin.version,
            window=origin.window,
            where=where,
            source=origin.source,
        )
        headers: list[tuple[str, Any]] = []
        if message is not None:
            value, key = message.value(), message.key()
            letter, headers = _of_message(letter, message, self.input_topic_id)
            if self.trace is not None:
                headers = self.trace.follow(message, headers, "rejected")
        self.reasons.add(letter.rule, letter.error, _where(letter), key, value, tolerated=tolerated)
        if self._show is not None:
            return
        if self.dead is None:
            self.dead = self._dead_topic()
            self._check_kept(self.dead.name)
        partition = choose_partition(key, max(letter.partition, 0), self.dead.partitions)
        if isinstance(message, LargeMessage):
            digest = message.digest
        else:
            place = (-1, row) if message is None else place_of(message)
            whole = [*headers, *self._own_headers, (DEAD_LETTER_HEADER, msgspec.json.encode(letter))]
            if self._send(self.dead, value, key, partition, whole, place) is None:
                return
            digest = Digest(value or b"")
        letter = msgspec.structs.replace(letter, size=digest.size, sha256=digest.sha256, prefix=digest.prefix)
        pointer = [*self._own_headers, (DEAD_LETTER_HEADER, msgspec.json.encode(letter))]
        key = key if len(key or b"") <= _LONGEST_KEY else None
        refused = self._send(self.dead, None, key, partition, pointer, NOWHERE)
        if refused is not None:
            raise ConfigurationError(
                f"a dead letter does not fit the topic {self.dead.name!r}: {refused.reason}; raise its max.message.bytes"
            )

    def _dead_topic(self) -> TopicInfo:
        partitions = self.output.partitions if self.output else self._origin.input_partitions
        return self._cluster.ensure(self.dead_name, max(1, partitions), settings=DEAD_SETTINGS)

    def _check_kept(self, dead: str) -> None:
        """Refuse a dead-letter topic that is compacted: letters have their events' keys."""
        try:
            policy = self._cluster.settings(dead).get("cleanup.policy", "delete")
        except ConfigurationError:  # it may not be ours to ask
            return
        if "compact" in policy:
            raise ConfigurationError(
                f"dead-letter topic {dead!r} has cleanup.policy={policy}: compaction leaves only the newest letter of each key; set it to "
                f"delete, or name another topic"
            )

    def bounds(self, topic: TopicInfo | None, have: Bounds) -> Bounds:
        """``have`` and what this chunk has sent to a topic, once it is flushed."""
        sent = self._sent.get(topic.name) if topic is not None else None
        if topic is None or not sent:
            return have
        if topic is self.output and self._cluster.topic(topic.name).id != topic.id:
            raise DataLossError(f"output topic {topic.name!r} was deleted and created again during the run; run the stage again")
        ends, starts = self._cluster.high_watermark(topic.name, sent), self._starts[topic.name]
        merged = dict(have)
        for p, n in sent.items():
            start, _, count = merged.get(p, (starts[p], 0, 0))
            merged[p] = (start, ends[p], count + n)
        return merged

    def forget(self, *, committed: bool = False) -> None:
        """A chunk has ended, committed or aborted: begin counting the next."""
        self._sent = {}
        self._bytes = 0
        self._rejected = Counter()
        if self.trace is not None:
            self.trace.settle(committed=committed)
        self.reasons.end_chunk(committed=committed)
        self.refusals.forget(committed=committed)

    @property
    def followed(self) -> Sequence[tuple[int, str]]:
        """When the chunk's traced events were written, in milliseconds since 1970, and their traces' ids."""
        return self.trace.followed if self.trace is not None else ()

    def figures(self) -> Figures:
        """What this chunk has sent so far."""
        return Figures(sum(sum(sent.values()) for sent in self._sent.values()), self._bytes, self._rejected)

    def manifest(self, bounds: Bounds, writer_id: str) -> Manifest | None:
        """What was written to the output topic, or None where there is no output topic or nothing is written for real."""
        if self.output is None or self._show is not None:
            return None
        codec = self.codec.ref if self.codec is not None else None
        return Manifest(self.output.name, self.output.id, writer_id, _ranges(bounds), codec)

    def dead_manifest(self, bounds: Bounds, writer_id: str) -> Manifest | None:
        """What was written to the dead-letter topic, or None for nothing."""
        if not bounds:
            return None
        dead = self.dead or self._dead_topic()
        return Manifest(dead.name, dead.id, writer_id, _ranges(bounds))


def reject_large(messages: Sequence[Message]) -> Reject | None:
    """Why a batch is nothing for an agent or a sink: it is one record that is too large for any."""
    message = messages[0] if messages else None
    if not isinstance(message, LargeMessage):
        return None
    return Reject(f"a record of {message.digest.size:,} bytes, more than message.max.bytes allows", rule="too-large")


def _text(reason: object) -> str:
    """A reason of bounded length that can be encoded: it may quote a hostile event."""
    text = printable(str(reason))
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "…"


def _where(letter: DeadLetter) -> str:
    """Where the event was read."""
    return f"{letter.topic}-{letter.partition}@{letter.offset}" if letter.topic else letter.where


def _own_key(message: Message, _: bytes) -> bytes | None:
    return message.key()


def _key(message: Message, value: bytes) -> bytes:
    """The input's key, else the event's id: a compacted topic takes no record without a key."""
    key = message.key()
    return key if key is not None else (_id(value) or f"{message.topic()}-{message.partition()}-{message.offset()}").encode()


def _id(value: bytes) -> str:
    try:
        return msgspec.json.decode(value, type=_Identified).event_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


class _Identified(msgspec.Struct):
    event_id: str = ""


def _of_message(letter: DeadLetter, message: Message, topic_id: str) -> tuple[DeadLetter, list[tuple[str, Any]]]:
    own = readable_headers(message)
    return msgspec.structs.replace(
        letter,
        topic=message.topic(),
        topic_id=topic_id,
        partition=message.partition(),
        offset=message.offset(),
        timestamp=message.timestamp()[1],
        writer=next(((v or b"")[:_LONGEST_WRITER].decode(errors="replace") for n, v in own if n == WRITER_HEADER), ""),
    ), [h for h in own if h[0] not in (WRITER_HEADER, DEAD_LETTER_HEADER)]


def _ranges(bounds: Bounds) -> tuple[PartitionRange, ...]:
    return tuple(PartitionRange(p, start, end, count) for p, (start, end, count) in sorted(bounds.items()))
