"""Writes to topics as producers do (in order or not, in transactions that are left open), and reads windows of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from confluent_kafka import Producer

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.reader import WindowReader
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import Interval, PartitionRange, Window

HOUR = timedelta(hours=1)
_THIS_HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


def hours_ago(hours: float) -> datetime:
    """A time so many hours before the full hour in which the tests began."""
    return _THIS_HOUR - hours * HOUR


def hour(ago: float) -> Interval:
    """The full hour that began so many hours before the current one: ``hour(1)`` is the last complete one."""
    return Interval(hours_ago(ago), hours_ago(ago - 1))


class Writer:
    """A producer on one topic; values tell what they are."""

    def __init__(self, bootstrap: str, topic: str, **settings: object) -> None:
        self._topic = topic
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "log_level": 0, "linger.ms": 0, **{k.replace("_", "."): v for k, v in settings.items()}}
        )

    def write(
        self,
        values: Iterable[str],
        at: datetime | None = None,
        *,
        partition: int = 0,
        key: str = "",
        headers: list[tuple[str, str]] | None = None,
    ) -> None:
        """Write values with one timestamp (now by default), and wait until they stand in the log."""
        failed: list[object] = []
        for value in values:
            self._producer.produce(
                self._topic,
                value.encode(),
                key.encode() or None,
                partition=partition,
                timestamp=round(at.timestamp() * 1000) if at else 0,
                headers=headers or [],
                on_delivery=lambda error, _: failed.append(error) if error else None,
            )
        assert self._producer.flush(60) == 0
        assert not failed


class Transaction(Writer):
    """A transaction that is open until it is ended; the broker ends it after ``timeout`` seconds."""

    def __init__(self, bootstrap: str, topic: str, name: str, *, timeout: float = 60.0, **settings: object) -> None:
        settings |= {"transactional_id": f"{topic}.{name}", "transaction_timeout_ms": round(timeout * 1000)}
        super().__init__(bootstrap, topic, **settings)
        self._producer.init_transactions(10)
        self._producer.begin_transaction()

    def commit(self, *, again: bool = False, patience: float = 10) -> None:
        self._producer.commit_transaction(patience)
        if again:
            self._producer.begin_transaction()

    def abort(self) -> None:
        self._producer.abort_transaction(10)


@contextmanager
def reading(config: KafkaConfig, window: Window, *, accept_loss: bool = False) -> Iterator[WindowReader]:
    """A reader of a window, not yet placed."""
    reader = WindowReader(config, Cluster(config), window, accept_loss=accept_loss)
    try:
        yield reader
    finally:
        reader.close()


def drain(reader: WindowReader, patience: float = 20.0) -> list[str]:
    """The values of all that is left, sorted; checks at the end that the topic is still the window's."""
    values: list[str] = []
    until = time.monotonic() + patience
    while not reader.done:
        values += [(m.value() or b"").decode() for m in reader.batch(10_000, until, lambda: False)]
    reader.check_topic()
    return sorted(values)


def values_of(config: KafkaConfig, window: Window, *, patience: float = 20.0) -> list[str]:
    """The values of a window's records, sorted."""
    with reading(config, window) as reader:
        reader.seek({}, {})
        return drain(reader, patience)


def window_over(config: KafkaConfig, topic: str, ends: Mapping[int, int], **more: object) -> Window:
    """A window from offset 0 up to these offsets, as if it had been planned."""
    ranges = tuple(PartitionRange(p, 0, end) for p, end in sorted(ends.items()))
    facts = Cluster(config).topic(topic)
    return Window("test", topic, facts.id, ranges, name="test", **more)  # type: ignore[arg-type]
