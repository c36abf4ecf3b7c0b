"""Translates a ledger's records for another cluster, where the topics that they speak of have other ids and other offsets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Self

import msgspec

from factory_agents.errors import ConfigurationError, DataLossError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.places import Place, Places
from factory_agents.kafka.records import (
    AlertRecord,
    AttemptRecord,
    CutRecord,
    FailureRecord,
    LedgerRecord,
    MarkRecord,
    PipelineRecord,
    PlanRecord,
    ReplayRecord,
    StageRecord,
    StreamRecord,
    VerdictRecord,
    decode_record,
    encode_record,
    kind_of,
)
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import Manifest, PartitionRange

__all__ = ["Move", "Noter", "OffsetMaps"]

OffsetMaps = Mapping[str, Mapping[int, Sequence[tuple[int, int]]]]
"""By topic and partition, offsets there and here that mean the same place, in order."""


class _Translator(ABC):
    """What becomes of a topic's id and of an offset in it."""

    @abstractmethod
    def topic(self, topic: str, topic_id: str) -> str:
        """A topic's id here."""

    @abstractmethod
    def offset(self, topic: str, topic_id: str, partition: int, offset: int) -> int:
        """An offset here."""


class Move(_Translator):
    """Translates records that speak of topics which have other ids here than they had there (``topics``).

    An offset is translated by ``offsets``, and where that says nothing about it, to where the record lies here that lay there (``places``).
    Raises ConfigurationError for a topic that isn't here, or is another one and nobody says anything about its offsets.
    """

    def __init__(
        self,
        config: KafkaConfig,
        cluster: Cluster,
        topics: Mapping[str, str],
        offsets: OffsetMaps,
        places: Mapping[str, Mapping[int, Sequence[Place]]],
    ) -> None:
        self._offsets = offsets
        self._noted = {(name, p): {place.offset: place for place in of} for name, found in places.items() for p, of in found.items()}
        self._here: defaultdict[tuple[str, int], dict[int, int]] = defaultdict(dict)
        self.ids: dict[str, str] = {}
        self.moved: set[str] = set()
        self.translated = 0
        for name, old in topics.items():
            facts = cluster.find(name)
            if facts is None:
                raise ConfigurationError(f"topic {name!r}: the pipeline's ledger speaks of it, and it isn't there; copy it first")
            if facts.id == old:
                continue
            if name not in offsets and name not in places:
                raise ConfigurationError(
                    f"topic {name!r}: it is another one here (id {facts.id}) than there ({old}), and the file doesn't say what lay at its "
                    f"offsets; say which offsets are the same (--offsets FILE)"
                )
            self.ids[old] = facts.id
            self.moved.add(name)
        self._open = ExitStack()
        self._places = {name: self._open.enter_context(Places(config, cluster, name)) for name in self.moved}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def all(self, records: Sequence[tuple[bytes, bytes]]) -> tuple[dict[bytes, bytes], int]:
        """Records by key, and how many were left out."""
        wanted: dict[bytes, bytes] = {}
        left_out = 0
        for key, value in records:
            record = _decoded(key, value) if self.ids else None
            if not self.ids:
                wanted[key] = value
            elif record is None:
                raise ConfigurationError(
                    f"ledger record {key.decode()!r}: of a kind that this release doesn't know, so that it can't be translated"
                )
            else:
                new = _translated(record, self)
                if isinstance(new, StageRecord) and new.result is None:
                    left_out += 1
                    continue
                self.translated += new != record
                wanted[new.key().encode() if new != record else key] = encode_record(new) if new != record else value
        self._check_order()
        return wanted, left_out

    def topic(self, topic: str, topic_id: str) -> str:
        return self.ids.get(topic_id, topic_id)

    def offset(self, topic: str, topic_id: str, partition: int, offset: int) -> int:
        if topic_id not in self.ids:
            return offset
        known = self._here[topic, partition]
        if offset not in known:
            paired = self._paired(topic, partition, offset)
            known[offset] = self._found(topic, partition, offset) if paired is None else paired
        return known[offset]

    def _paired(self, topic: str, partition: int, offset: int) -> int | None:
        """At a pair, or between two that are as far apart there as here."""
        pairs = self._offsets.get(topic, {}).get(partition, ())
        for (a, b), (c, d) in zip(pairs, (*pairs[1:], (None, None)), strict=False):
            if offset == a or (c is not None and d is not None and a < offset < c and c - a == d - b):
                return b + offset - a
        return None

    def _found(self, topic: str, partition: int, offset: int) -> int:
        """Where the record lies here that lay there."""
        place = self._noted.get((topic, partition), {}).get(offset)
        where = f"topic {topic!r}, partition {partition}"
        pair = f"or give the pair [{offset}, …] (--offsets)"
        if place is None:
            raise DataLossError(
                f"{where}: nothing says which offset here is {offset} there (its record was gone when the ledger was exported, or can't be "
                f"told by its time); prune the windows whose records are gone (factory windows prune) and export again, {pair}"
            )
        found = self._places[topic].find(partition, place)
        if found is None:
            raise DataLossError(
                f"{where}: the record at offset {offset} there, of {_shown(place.time)}, isn't here, or others lie before it; copy the "
                f"topic whole, with its records' times, {pair}"
            )
        return found

    def _check_order(self) -> None:
        for (topic, partition), known in self._here.items():
            for (a, b), (c, d) in pairwise(sorted(known.items())):
                if d < b:
                    raise DataLossError(
                        f"topic {topic!r}, partition {partition}: offset {a} there is {b} here, and {c} is {d}: the records lie in another "
                        f"order; copy the topic in its order, or give the pairs (--offsets)"
                    )


class Noter(_Translator):
    """Changes nothing, and notes which topics are spoken of, and by the id of each which offsets."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.offsets: defaultdict[str, defaultdict[int, set[int]]] = defaultdict(lambda: defaultdict(set))

    def note(self, key: bytes, value: bytes) -> None:
        """Take in what a record speaks of."""
        record = _decoded(key, value)
        if record is not None:
            _translated(record, self)

    def topic(self, topic: str, topic_id: str) -> str:
        if topic and topic_id:
            self.names.add(topic)
        return topic_id

    def offset(self, topic: str, topic_id: str, partition: int, offset: int) -> int:
        self.offsets[topic_id][partition].add(offset)
        return offset


def _translated(record: LedgerRecord, move: _Translator) -> LedgerRecord:
    match record:
        case CutRecord():
            offsets = tuple(move.offset(record.topic, record.topic_id, p, o) for p, o in enumerate(record.offsets))
            return msgspec.structs.replace(record, topic_id=move.topic(record.topic, record.topic_id), offsets=offsets)
        case PlanRecord():
            if not record.topic:
                return record
            ranges, lost = (_ranges(of, record.topic, record.topic_id, move) for of in (record.ranges, record.lost))
            return msgspec.structs.replace(record, topic_id=move.topic(record.topic, record.topic_id), ranges=ranges, lost=lost)
        case StageRecord():
            return _stage(record, move)
        case ReplayRecord():
            topic = record.pipeline.removeprefix("replay.")
            replayed = {p: [move.offset(topic, record.topic_id, p, o) for o in of] for p, of in record.offsets.items()}
            return msgspec.structs.replace(record, topic_id=move.topic(topic, record.topic_id), offsets=replayed)
        case StreamRecord():
            return msgspec.structs.replace(record, topic_id=move.topic(record.topic, record.topic_id))
        case PipelineRecord() | MarkRecord() | FailureRecord() | AttemptRecord() | AlertRecord() | VerdictRecord():
            return record


def _stage(record: StageRecord, move: _Translator) -> StageRecord:
    earlier = tuple(_manifest(m, move) for m in record.earlier)
    result = record.result
    if result is not None:
        manifests: dict[str, Any] = {
            name: _manifest(found, move) for name in ("input", "manifest", "dead_letters") if (found := getattr(result, name)) is not None
        }
        result = msgspec.structs.replace(result, **manifests)
    return msgspec.structs.replace(record, result=result, earlier=earlier)


def _manifest(manifest: Manifest, move: _Translator) -> Manifest:
    ranges = _ranges(manifest.ranges, manifest.topic, manifest.topic_id, move)
    return msgspec.structs.replace(manifest, topic_id=move.topic(manifest.topic, manifest.topic_id), ranges=ranges)


def _ranges(ranges: Sequence[PartitionRange], topic: str, topic_id: str, move: _Translator) -> tuple[PartitionRange, ...]:
    return tuple(
        PartitionRange(
            r.partition, move.offset(topic, topic_id, r.partition, r.start), move.offset(topic, topic_id, r.partition, r.end), r.count
        )
        for r in ranges
    )


def _decoded(key: bytes, value: bytes) -> LedgerRecord | None:
    kind = kind_of(key.decode())
    try:
        return decode_record(kind, value) if kind else None
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigurationError(f"ledger record {key.decode()!r}: not one that this version can read ({error})") from error


def _shown(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
