"""A pipeline's ledger as a file of JSON lines: written from one cluster, read into another one, or into the same one to restore it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
from confluent_kafka import KafkaException, Producer

from factory_agents import failpoints
from factory_agents.errors import ConfigurationError
from factory_agents.kafka.config import KafkaConfig, connect, kafka_error
from factory_agents.kafka.ledger import Ledger
from factory_agents.kafka.places import Place, Places
from factory_agents.kafka.topics import Cluster
from factory_agents.kafka.translation import Move, Noter, OffsetMaps
from factory_agents.kafka.view import Follower
from factory_agents.protocol import transactional_id

__all__ = ["Imported", "OffsetMaps", "export_ledger", "import_ledger", "read_lines", "read_offset_maps", "write_lines"]

FORMAT_VERSION = 1
_FORMAT = "factory-ledger"
_PAD = b"pad|"
_PAD_CHUNK = 50_000
_TRANSACTION_MS = 120_000


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a file: whose ledger it is, where its partition ended, and the topics that it speaks of.

    ``topics`` are their ids, ``places`` what lay at the offsets in them, by partition.
    """

    format: str
    version: int
    pipeline: str
    end: int
    records: int
    topics: dict[str, str]
    exported_at: int
    places: dict[str, dict[int, list[Place]]] = {}


class _Line(msgspec.Struct, frozen=True):
    key: str
    value: msgspec.Raw


class Imported(msgspec.Struct, frozen=True):
    """What an import did, or would do: records written (0 where all were there already), and those of them that were translated.

    ``left_out`` counts records of unfinished work on topics that moved: that work begins again.
    """

    pipeline: str
    records: int
    translated: int = 0
    left_out: int = 0
    topics: tuple[str, ...] = ()
    dry_run: bool = False


class _Raw(Follower):
    """The last record of each key of one pipeline as it lies there, in the order of offsets."""

    def __init__(self, pipeline: str) -> None:
        super().__init__()
        self._pipeline = pipeline.encode()
        self.records: dict[bytes, bytes] = {}

    def take(self, offset: int, key: bytes, value: bytes | None) -> None:
        """See ``Follower.take``."""
        parts = key.split(b"|", 2)
        if len(parts) > 1 and parts[1] == self._pipeline:
            self.records.pop(key, None)
            if value is not None:
                self.records[key] = value

    def forget(self) -> None:
        """See ``Follower.forget``."""
        self.records.clear()


def export_ledger(
    config: KafkaConfig,
    pipeline: str,
    *,
    prefix: str = "factory",
    places: bool = True,
    progress: Callable[[int, int], None] = lambda done, of: None,
    timeout: float = 600.0,
) -> Iterator[bytes]:
    """A pipeline's ledger, line by line; ConfigurationError where there is nothing of it.

    With ``places`` it also notes which records lie at the offsets that it speaks of, so that an import finds them in copies of the topics.
    """
    with Cluster(config) as cluster:
        ledger = Ledger(config, cluster, prefix=prefix, pipeline=pipeline)
        raw = _Raw(pipeline)
        if cluster.find(ledger.topic) is not None:
            ledger.follow(raw, deadline=time.monotonic() + timeout)
        if not raw.records:
            raise ConfigurationError(f"pipeline {pipeline!r}: the ledger {ledger.topic!r} at {config.bootstrap} holds nothing of it")
        noter = Noter()
        for key, value in raw.records.items():
            noter.note(key, value)
        found = {name: facts.id for name in sorted(noter.names) if (facts := cluster.find(name)) is not None}
        noted = _places(config, cluster, {name: noter.offsets[id_] for name, id_ in found.items()}, progress) if places else {}
    header = _Header(
        format=_FORMAT,
        version=FORMAT_VERSION,
        pipeline=pipeline,
        end=raw.end,
        records=len(raw.records),
        topics=found,
        exported_at=int(time.time() * 1000),
        places=noted,
    )
    yield msgspec.json.encode(header) + b"\n"
    for key, value in raw.records.items():
        yield msgspec.json.encode(_Line(key.decode(), msgspec.Raw(value))) + b"\n"


def _places(
    config: KafkaConfig, cluster: Cluster, offsets: Mapping[str, Mapping[int, set[int]]], progress: Callable[[int, int], None]
) -> dict[str, dict[int, list[Place]]]:
    """What lies at offsets, by topic and partition."""
    noted: dict[str, dict[int, list[Place]]] = {}
    done, total = 0, sum(len(of) for partitions in offsets.values() for of in partitions.values())
    for topic, partitions in offsets.items():
        with Places(config, cluster, topic) as places:
            for partition, of in partitions.items():
                noted.setdefault(topic, {})[partition] = list(places.note(partition, of))
                progress(done := done + len(of), total)
    return noted


def write_lines(path: str, lines: Iterable[bytes]) -> int:
    """Lines into a file (``-``: standard output), which is there only once it is whole; how many. Raises ConfigurationError."""
    count = 0

    def counted() -> Iterator[bytes]:
        nonlocal count
        for line in lines:
            count += 1
            yield line

    if path == "-":
        sys.stdout.buffer.writelines(counted())
        sys.stdout.flush()
        return count
    unfinished = Path(f"{path}.part")
    try:
        with unfinished.open("wb") as file:
            file.writelines(counted())
        unfinished.replace(path)
        return count
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def read_lines(path: str) -> list[bytes]:
    """The lines of a file (``-``: standard input). Raises ConfigurationError."""
    try:
        return (sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()).splitlines()
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None


def read_offset_maps(path: str) -> OffsetMaps:
    """A JSON file of offsets there and here: ``{"raw_events": {"0": [[0, 0], [500, 480]]}}``. Raises ConfigurationError."""
    try:
        found = msgspec.json.decode(Path(path).read_bytes(), type=dict[str, dict[int, list[tuple[int, int]]]])
    except OSError as error:
        raise ConfigurationError(f"--offsets {path}: cannot be read: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise ConfigurationError(f'--offsets {path}: expected {{"topic": {{"0": [[there, here], …]}}}}: {error}') from None
    for topic, partitions in found.items():
        for partition, pairs in partitions.items():
            if any(a >= c or b > d for (a, b), (c, d) in pairwise(pairs)):
                raise ConfigurationError(f"--offsets {path}: {topic}-{partition}: expected pairs in order of their offsets")
    return found


def import_ledger(
    config: KafkaConfig,
    lines: Sequence[bytes],
    *,
    prefix: str = "factory",
    offsets: OffsetMaps | None = None,
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
    timeout: float = 600.0,
) -> Imported:
    """Write an exported ledger into this cluster's, all of it or nothing; what is there already, of an import before, is not written again.

    Topics that have other ids here than they had there moved: their offsets are translated by ``offsets``, and where that says nothing, to
    where the records lie here that the file says were there. Generations and windows' places
    in the ledger are its offsets, so its partition is filled up to where the other one ended. Raises ConfigurationError where the file is
    none of ours, a topic is missing, or the ledger has other work of the pipeline, DataLossError for an offset that can't be translated.
    """
    header, records = _read(lines)
    with Cluster(config) as cluster:
        ledger = Ledger(config, cluster, prefix=prefix, pipeline=header.pipeline)
        with Move(config, cluster, header.topics, offsets or {}, header.places) as move:
            wanted, left_out = move.all(records)
        done = Imported(header.pipeline, len(wanted), move.translated, left_out, tuple(sorted(move.moved)), dry_run)
        if dry_run:
            if cluster.find(ledger.topic) is not None:
                _check_there(ledger, wanted, time.monotonic() + timeout)
            return done
        ledger.ensure()
        producer = config.producer(transactional_id(prefix, "plan", header.pipeline), transaction_timeout_ms=_TRANSACTION_MS)
        connect(producer, ledger.topic)
        try:
            return _write(producer, ledger, header, wanted, done, time.monotonic() + timeout, progress)
        except KafkaException as error:
            raise kafka_error(error, f"importing the ledger of {header.pipeline!r}") from error
        finally:
            del producer  # an error's traceback would keep it, with its threads and sockets


def _write(
    producer: Producer,
    ledger: Ledger,
    header: _Header,
    wanted: Mapping[bytes, bytes],
    done: Imported,
    deadline: float,
    progress: Callable[[int, int], None],
) -> Imported:
    producer.init_transactions(max(1.0, deadline - time.monotonic()))
    there, end = _check_there(ledger, wanted, deadline)
    if there:
        return msgspec.structs.replace(done, records=0)
    for at in range(end, header.end, _PAD_CHUNK):
        progress(at, header.end)
        pads = [(_PAD, None)] * min(_PAD_CHUNK, header.end - at)
        _commit(producer, ledger, pads, deadline)
    _commit(producer, ledger, list(wanted.items()), deadline, "import.before-commit")
    return done


def _commit(
    producer: Producer, ledger: Ledger, records: Sequence[tuple[bytes, bytes | None]], deadline: float, failpoint: str = ""
) -> None:
    producer.begin_transaction()
    for key, value in records:
        while True:
            try:
                producer.produce(ledger.topic, value, key, partition=ledger.partition)
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush(max(1.0, deadline - time.monotonic()))
    failpoints.hit(failpoint)
    while True:
        try:
            producer.commit_transaction(max(1.0, deadline - time.monotonic()))
            return
        except KafkaException as error:
            if not error.args[0].retriable() or time.monotonic() > deadline:
                raise


def _check_there(ledger: Ledger, wanted: Mapping[bytes, bytes], deadline: float) -> tuple[bool, int]:
    """Whether all of it is there already, and where the partition ends; ConfigurationError where something else is."""
    raw = _Raw(ledger.pipeline)
    ledger.follow(raw, deadline=deadline)
    other = next((key for key, value in raw.records.items() if wanted.get(key) != value), None)
    if other is not None or 0 < len(raw.records) < len(wanted):
        what = other.decode(errors="replace") if other is not None else "an earlier part of it"
        raise ConfigurationError(
            f"pipeline {ledger.pipeline!r}: the ledger {ledger.topic!r} has work of it already ({what}), which an import would mix with "
            f"its own; import into a ledger without it, such as one of another --prefix"
        )
    return bool(raw.records), raw.end


def _read(lines: Sequence[bytes]) -> tuple[_Header, list[tuple[bytes, bytes]]]:
    try:
        header = msgspec.json.decode(lines[0] if lines else b"", type=_Header)
    except msgspec.MsgspecError as error:
        raise ConfigurationError(f"line 1: not the first line of an exported ledger: {error}") from None
    if header.format != _FORMAT or header.version != FORMAT_VERSION:
        raise ConfigurationError(
            f"line 1: expected {_FORMAT} of version {FORMAT_VERSION}, got {header.format} {header.version}; use the release that wrote it"
        )
    records = []
    for number, line in enumerate(lines[1:], 2):
        try:
            found = msgspec.json.decode(line, type=_Line)
        except msgspec.MsgspecError as error:
            raise ConfigurationError(f"line {number}: not a record of an exported ledger: {error}; was the file cut off?") from None
        records.append((found.key.encode(), bytes(found.value)))
    if len(records) != header.records:
        raise ConfigurationError(f"the file holds {len(records):,} records, its first line says {header.records:,}: was it cut off?")
    return header, records
