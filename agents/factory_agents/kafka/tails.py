"""Where the last record of a partition lies that a committed reader sees: behind it there are only transactions' markers and ends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple, cast

from confluent_kafka import KafkaError, TopicPartition

from factory_agents.kafka.config import KafkaConfig, is_transient, kafka_error
from factory_agents.kafka.fetch import UNREADABLE, fetch_limits
from factory_agents.kafka.messages import Message

__all__ = ["Span", "Tails"]

_FIRST_STEP = 16
_STEP_FACTOR = 16
_SECONDS = 5.0
_ANSWER_BYTES = 16_384  # of which only offsets are looked at, and which may expand ten-thousandfold


class Span(NamedTuple):
    """Offsets ``[start, end)`` of a partition; ``end`` is its last stable offset."""

    start: int
    end: int


class _Tail(NamedTuple):
    """Nothing can be seen in ``[visible, end)``; whether something is at ``visible - 1`` is known only where it is ``found``."""

    visible: int
    end: int
    found: bool


class Tails:
    """Finds visible ends by reading backwards from the end, in steps that grow; keeps what was found. Thread-safe.

    No offset tells a record from a marker, and no question to a broker does: it has to be read. As a rule that is the last few offsets.
    """

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._known: dict[tuple[str, int], _Tail] = {}

    def visible_ends(self, topic: str, topic_id: str, spans: Mapping[int, Span]) -> dict[int, int]:
        """For each partition one past its last record in the span that can be seen, or the span's start where there is none.

        A partition that cannot be read in time has its end. Raises FactoryError.
        """
        tails = {p: self._tail(topic_id, p, span) for p, span in spans.items()}
        todo = {p for p, tail in tails.items() if not tail.found and tail.visible > spans[p].start}
        if todo:
            self._search(topic, spans, tails, todo)
            self._known.update({(topic_id, p): tail for p, tail in tails.items()})
        return {p: span.end if p in todo else max(span.start, tails[p].visible) for p, span in spans.items()}

    def _tail(self, topic_id: str, partition: int, span: Span) -> _Tail:
        known = self._known.get((topic_id, partition))
        return known if known is not None and known.end == span.end else _Tail(span.end, span.end, found=False)

    def _search(self, topic: str, spans: Mapping[int, Span], tails: dict[int, _Tail], todo: set[int]) -> None:
        """Take partitions out of ``todo`` as their tails become known down to the span's start."""
        bounds = fetch_limits({**self._config.values, "fetch.max.bytes": str(_ANSWER_BYTES)}, 0)
        consumer = self._config.consumer(auto_offset_reset="earliest", queued_max_messages_kbytes=4096, **bounds)
        until, step = time.monotonic() + _SECONDS, _FIRST_STEP
        try:
            while todo and time.monotonic() < until:
                ranges = {p: (max(spans[p].start, tails[p].visible - step), tails[p].visible) for p in todo}
                consumer.assign([TopicPartition(topic, p, start) for p, (start, _) in ranges.items()])
                last: dict[int, int] = {}
                unread = set(ranges)
                while unread and time.monotonic() < until:
                    for message in cast("list[Message]", consumer.consume(1000, 0.05)):
                        _note(message, ranges, last, unread)
                for p in ranges.keys() - unread:
                    start = ranges[p][0]
                    tails[p] = _Tail(last.get(p, start - 1) + 1, spans[p].end, found=p in last)
                    if p in last or start <= spans[p].start:
                        todo.discard(p)
                step *= _STEP_FACTOR
        finally:
            consumer.close()


def _note(message: Message, ranges: Mapping[int, tuple[int, int]], last: dict[int, int], unread: set[int]) -> None:
    """Take a partition out of ``unread`` once its range is read; ``last`` keeps the last record in it."""
    error, partition, offset = message.error(), message.partition(), message.offset()
    if error is not None and error.code() in UNREADABLE:  # there is something: nearer than the end nobody can tell
        if partition in unread:
            last[partition] = ranges[partition][1] - 1
            unread.discard(partition)
        return
    if error is not None and error.code() != KafkaError._PARTITION_EOF:
        if is_transient(error):
            return
        raise kafka_error(error, f"reading {message.topic()}-{partition}", topic=f"READ on topic {message.topic()!r}")
    if partition not in unread:
        return
    end = ranges[partition][1]
    if error is None and offset < end:
        last[partition] = offset
    if offset >= (end if error is not None else end - 1):
        unread.discard(partition)
