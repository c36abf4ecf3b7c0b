"""Tries a contract on records that are there already: of a file, or of a topic. Nothing is written, planned or committed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from factory_agents.codecs.base import codec_ref
from factory_agents.contracts import Contract, WindowStatistics
from factory_agents.errors import ConfigurationError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.cuts import preview_window
from factory_agents.kafka.messages import Message
from factory_agents.kafka.reader import WindowReader
from factory_agents.kafka.topics import Cluster
from factory_agents.paths import resolve_path
from factory_agents.protocol import Interval, PartitionRange, Window
from factory_agents.runtime.codecs import open_codec
from factory_agents.topics_file import declared_codec
from factory_agents.validate import ValidateTransform

__all__ = ["last_records", "lines_of", "records_of", "try_contract", "window_of"]

_BATCH = 2_000
_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a file, as a record."""

    file: str
    number: int
    text: bytes

    def value(self) -> bytes:
        return self.text

    def topic(self) -> str:
        return self.file

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.number


def lines_of(path: str) -> Iterator[Sequence[Message]]:
    """The lines of a file (``-`` is standard input), each a JSON object, in batches; their offsets are line numbers."""
    name = path if path == "-" else str(resolve_path(path, "file"))
    try:
        with sys.stdin.buffer if path == "-" else open(name, "rb") as file:  # noqa: PTH123
            lines = (_Line(path, number, line) for number, line in enumerate(file, 1) if line.strip())
            while batch := list(islice(lines, _BATCH)):
                yield cast("Sequence[Message]", batch)
    except OSError as error:
        raise ConfigurationError(f"file {path!r}: cannot be read: {error.strerror or error}") from error


def last_records(config: KafkaConfig, topic: str, count: int) -> Window:
    """A window of the last records of a topic: as many of each partition, in all at least ``count`` where there are so many."""
    with closing(Cluster(config)) as cluster:
        facts = cluster.topic(topic)
        partitions = range(facts.partitions)
        starts, ends = cluster.log_start(topic, partitions), cluster.stable_offset(topic, partitions)
    share = -(-count // facts.partitions)
    ranges = tuple(PartitionRange(p, max(starts[p], ends[p] - share), ends[p]) for p in partitions if starts[p] < ends[p])
    return Window("contracts", topic, facts.id, ranges, name="last records", origin=topic)


def window_of(config: KafkaConfig, topic: str, interval: Interval, *, prefix: str) -> Window:
    """The window of an interval on a topic, as it would be planned now."""
    return preview_window(config, pipeline=f"contracts.{topic}", topic=topic, interval=interval, prefix=prefix)


def records_of(config: KafkaConfig, window: Window, codec: str = "") -> Iterator[Sequence[Message]]:
    """The records of a window, in batches; read by the ``codec``, by default what the topics file declares for the topic."""
    opened = open_codec(codec_ref(codec, "--input-codec") if codec else declared_codec(window.topic), window.topic, writing=False)
    cluster = Cluster(config)
    reader = WindowReader(config, cluster, window, accept_loss=True)  # retention may take records away meanwhile
    deadline = time.monotonic() + _SECONDS
    try:
        reader.seek({}, {})
        while not reader.done:
            batch = reader.batch(_BATCH, deadline, lambda: False)
            yield opened.read(batch) if opened is not None else batch
    finally:
        reader.close()
        cluster.close()
        if opened is not None:
            opened.close()


def try_contract(contract: Contract, batches: Iterator[Sequence[Message]], interval: Interval | None = None) -> dict[str, Any]:
    """The report on these records, as ``validate`` would give it of a window of them (see ``WindowStatistics.report``)."""
    transform = ValidateTransform(contract, None, WindowStatistics(contract, interval))
    with closing(transform):
        for batch in batches:
            transform.process(batch)
        return transform.report()
