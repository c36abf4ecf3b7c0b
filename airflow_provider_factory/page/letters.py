"""Dead letters for the page, read in the background: a request takes what is there, orders what is not, and comes again."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from heapq import heappush, heappushpop
from typing import TYPE_CHECKING, cast

from airflow_provider_factory.page.snapshot import Snapshot
from factory_agents.errors import ConfigurationError, DeadlineError, FactoryError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.ledger import StageRecord
from factory_agents.protocol import PartitionRange
from factory_agents.runtime.dead_letters import Letter, LetterGroup, LetterTopic, Selection, group_letters, place_of_letter
from factory_agents.runtime.letter_values import LetterReader, Shown

if TYPE_CHECKING:
    from factory_agents.codecs.registry import RegistryConfig

__all__ = ["SHOWN", "LetterPage", "LetterQuery", "Letters", "SeenLetter", "look_up"]

SHOWN = 200
"""Most letters on one page."""

_MOST_READ, _MOST_BYTES = 20_000, 64 * 1024 * 1024
"""Most letters, and bytes of them, that one question reads: what it leaves out is said."""

_PATIENCE = 20.0
_ASK_SECONDS = 5.0
_FRESH_SECONDS = 10.0
_MOST_PAGES, _MOST_WAITING = 32, 16
_LISTED, _WHOLE = 1000, 256 * 1024
"""Bytes of a value, key or header that are kept of a listed letter, and of one that is shown whole."""
_MOST_HEADERS, _MOST_GROUPS = 100, 50
_MOST_DECODED = 1024 * 1024
"""Bytes of the largest value that is decoded by its schema: to do so holds up the process."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LetterQuery:
    """Which letters of a pipeline in a topic: the newest that fit, or the one at ``position``. ``text`` is looked for in both."""

    topic: str
    pipeline: str
    window: str = ""
    stage: str = ""
    rule: str = ""
    text: str = ""
    position: str = ""

    @property
    def selection(self) -> Selection:
        """All of it but the text. Raises ConfigurationError for a mistyped position."""
        positions = frozenset({self.position} if self.position else ())
        return Selection(self.rule, self.stage, self.pipeline, self.window, attempt="all", positions=positions)


@dataclass(frozen=True)
class SeenLetter:
    """A letter with what is too long cut off; ``size`` is the whole value's, in bytes (-1: it has none).

    ``value`` and ``key`` are as a person reads them; ``cut`` where only the value's beginning is here.
    """

    letter: Letter
    size: int
    value: Shown | None
    key: Shown | None
    cut: bool = False


@dataclass(frozen=True)
class LetterPage:
    """What was found: the newest letters, counts by reason, how many records were read of how many.

    ``state``: ``pending`` (ordered, nothing known yet), ``ready`` or ``failed`` (with ``error``; older letters may still be there).
    """

    state: str
    letters: tuple[SeenLetter, ...] = ()
    groups: tuple[LetterGroup, ...] = ()
    found: int = 0
    read: int = 0
    held: int = 0
    error: str = ""
    taken_at: datetime | None = None


class Letters:
    """Answers from what was read before; one thread reads what is ordered, the oldest order first."""

    def __init__(self, read: Callable[[LetterQuery, Snapshot], LetterPage] | None = None) -> None:
        self._read = read or _look_up
        self._pages: OrderedDict[LetterQuery, tuple[float, LetterPage]] = OrderedDict()
        self._orders: OrderedDict[LetterQuery, Snapshot] = OrderedDict()
        self._more = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def page(self, query: LetterQuery, snapshot: Snapshot) -> LetterPage:
        """What is known, at once; what is unknown or not fresh is ordered."""
        with self._more:
            at, known = self._pages.get(query, (0.0, None))
            if (known is None or time.monotonic() - at > _FRESH_SECONDS) and not self._order(query, snapshot) and known is None:
                return LetterPage("failed", error="too many questions are waiting for an answer; try again in some seconds")
            return known or LetterPage("pending")

    def close(self) -> None:
        """End the thread; a read under way is left to end by itself."""
        with self._more:
            self._closed = True
            self._more.notify_all()

    def _order(self, query: LetterQuery, snapshot: Snapshot) -> bool:
        if query not in self._orders and len(self._orders) >= _MOST_WAITING:
            return False
        self._orders[query] = snapshot
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._work, name="factory-letters", daemon=True)
            self._thread.start()
        self._more.notify_all()
        return True

    def _work(self) -> None:
        while True:
            with self._more:
                self._more.wait_for(lambda: self._orders or self._closed)
                if self._closed:
                    return
                query, snapshot = next(iter(self._orders.items()))
            try:
                found = self._read(query, snapshot)
            except Exception as error:
                if not isinstance(error, FactoryError):
                    log.exception("unexpected error while reading dead letters of %s", query.topic)
                said = (
                    str(error)
                    if isinstance(error, FactoryError)
                    else f"unexpected error ({type(error).__name__}); see the API server's log"
                )
                known = self._pages.get(query, (0.0, LetterPage("failed")))[1]
                found = replace(known, state="failed", error=said)
            with self._more:
                self._orders.pop(query, None)
                self._pages[query] = (time.monotonic(), found)
                self._pages.move_to_end(query)
                while len(self._pages) > _MOST_PAGES:
                    self._pages.popitem(last=False)


def _look_up(query: LetterQuery, snapshot: Snapshot) -> LetterPage:
    from airflow_provider_factory.hooks.kafka import FactoryKafkaHook
    from airflow_provider_factory.settings import option

    return look_up(FactoryKafkaHook(option("kafka_conn_id")).config(), query, snapshot, prefix=option("prefix"), registry=_registry)


def _registry() -> RegistryConfig:
    """The registry that agents are given, asked once and for not so long: whoever looks waits for it."""
    from airflow_provider_factory.hooks.schema_registry import SchemaRegistryHook
    from airflow_provider_factory.settings import option

    config = SchemaRegistryHook(option("registry_conn_id")).config()
    return replace(
        config, values={**config.values, "timeout": min(_ASK_SECONDS, config.values.get("timeout", _ASK_SECONDS)), "max.retries": 0}
    )


def look_up(
    config: KafkaConfig,
    query: LetterQuery,
    snapshot: Snapshot,
    *,
    prefix: str = "factory",
    registry: Callable[[], RegistryConfig] = _registry,
) -> LetterPage:
    """Read a query's letters: a window's where the ledger says that they lie, else the topic's newest. Raises a FactoryError."""
    selection = query.selection
    details = snapshot.figures.details
    stages = [r for (pipeline, _), of in details.items() if pipeline == query.pipeline for r in of.stages]
    topic = LetterTopic(config, query.topic, prefix=prefix, stages=stages, timeout=_ASK_SECONDS)
    try:
        ranges = topic.ranges()
        held = sum(r.end - r.start for r in ranges)
        if query.position:
            wanted = _at(query.position, ranges)
        elif query.window:
            of_window = [r for r in stages if r.window == query.window and query.stage in ("", r.stage)]
            wanted = _inside(_written(of_window, topic.facts.id), ranges)
        else:
            wanted = ranges
        wanted = _last(wanted, _MOST_READ)
        found = _collect(topic, wanted, selection, query.text, LetterReader(registry, most=_MOST_DECODED))
        return replace(found, held=held, taken_at=datetime.now(UTC))
    finally:
        topic.cluster.close()


def _at(position: str, ranges: Sequence[PartitionRange]) -> list[PartitionRange]:
    partition, offset = place_of_letter(position)
    held = next((r for r in ranges if r.partition == partition), None)
    if held is None or not held.start <= offset < held.end:
        raise ConfigurationError(f"letter {position}: it is not there (any more); retention may have taken it away")
    return [PartitionRange(partition, offset, offset + 1)]


def _written(records: Iterable[StageRecord], topic_id: str) -> Iterator[PartitionRange]:
    """Where the ledger says that a window's letters lie, of every attempt that it remembers."""
    for record in records:
        last = record.result.dead_letters if record.result is not None else None
        for manifest in (*record.earlier, *([last] if last is not None else [])):
            if manifest.topic_id == topic_id:
                yield from manifest.ranges
        if record.progress is not None:
            yield from (PartitionRange(p, start, end) for p, (start, end, _) in record.progress.dead.items())


def _inside(ranges: Iterable[PartitionRange], held: Sequence[PartitionRange]) -> list[PartitionRange]:
    """For each partition the span that holds all ranges, as far as it is still there."""
    spans: dict[int, tuple[int, int]] = {}
    for r in ranges:
        start, end = spans.get(r.partition, (r.start, r.end))
        spans[r.partition] = (min(start, r.start), max(end, r.end))
    return [
        PartitionRange(r.partition, max(r.start, spans[r.partition][0]), min(r.end, spans[r.partition][1]))
        for r in held
        if r.partition in spans
    ]


def _last(ranges: Sequence[PartitionRange], most: int) -> list[PartitionRange]:
    """The last offsets of each partition, so many of all together."""
    some = [r for r in ranges if r.start < r.end]
    each = max(1, most // max(1, len(some)))
    return [PartitionRange(r.partition, max(r.start, r.end - each), r.end) for r in some]


def _collect(topic: LetterTopic, ranges: Sequence[PartitionRange], selection: Selection, text: str, reader: LetterReader) -> LetterPage:
    """The letters that fit, in short, and the newest of them to be read: to decode a value holds up the process, so none that isn't shown
    is decoded, unless a text is looked for in it.
    """
    fitting: list[Letter] = []
    newest: list[tuple[tuple[datetime, int, int], Letter]] = []
    read = weight = 0
    with closing(cast("Generator[Letter]", topic.read(ranges, patience=_PATIENCE))) as letters:
        try:
            for letter in letters:
                read += 1
                weight += sum(len(data or b"") for data in (letter.key, letter.value, *(data for _, data in letter.headers)))
                if selection.fits(letter) and (not text or text in letter.why.error or _holds(reader.value(letter), text)):
                    fitting.append(replace(letter, key=None, value=None, headers=()))
                    place = (letter.written, letter.partition, letter.offset)
                    (heappushpop if len(newest) >= SHOWN else heappush)(newest, (place, letter))
                if weight > _MOST_BYTES:
                    break
        except DeadlineError:
            if not read:
                raise
    keep = _WHOLE if selection.positions else _LISTED
    shown = [_cut(letter, reader.value(letter), reader.key(letter), keep) for _, letter in sorted(newest, reverse=True)]
    return LetterPage("ready", tuple(shown), tuple(group_letters(fitting)[:_MOST_GROUPS]), len(fitting), read)


def _holds(value: Shown | None, text: str) -> bool:
    return value is not None and text in value.text


def _cut(letter: Letter, value: Shown | None, key: Shown | None, most: int) -> SeenLetter:
    headers = tuple((name[:_LISTED], data and data[:_LISTED]) for name, data in letter.headers[:_MOST_HEADERS])
    short = replace(letter, key=None, value=letter.value and letter.value[:most], headers=headers)
    size = -1 if letter.value is None else len(letter.value)
    cut = value is not None and len(value.text) > most
    return SeenLetter(short, size, value and replace(value, text=value.text[:most]), key and replace(key, text=key.text[:_LISTED]), cut)
