"""Leaves word in the ledger that an attempt failed, or of a verdict, for those who look; never in the way of the work itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from confluent_kafka import KafkaException

from factory_agents.errors import FactoryError, FencedError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.ledger import AttemptRecord, FailureRecord, Ledger, failure_key
from factory_agents.kafka.records import VerdictRecord, encode_record
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import Work
from factory_agents.text import printable

__all__ = ["forget_failure", "leave_failure", "leave_verdict"]

log = logging.getLogger(__name__)

_PATIENCE = 3.0
_LONGEST = 1000


def leave_failure(
    config: KafkaConfig,
    work: Work,
    *,
    error: Exception,
    began: float,
    agent: str = "",
    run_id: str = "",
    prefix: str = "factory",
) -> None:
    """Say in the ledger why an agent's attempt that began at ``began`` (seconds since 1970) failed; for those who count, that it did.

    Raises nothing: without a ledger, or a broker that answers soon, nothing is said. Nor is it where a newer attempt has taken over,
    whose word counts.
    """
    if isinstance(error, FencedError):
        return
    message = printable(str(error).partition("\n")[0])[:_LONGEST]
    retriable = isinstance(error, FactoryError) and error.retriable
    times = (int(began * 1000), int(time.time() * 1000))
    what = (work.pipeline, work.stage, work.window, work.shard, *times, type(error).__name__)
    failure = FailureRecord(*what, message, retriable, run_id, work.scope)
    attempt = AttemptRecord(*what, agent, retriable, work.scope)
    _leave(config, prefix, failure, attempt)


def leave_verdict(config: KafkaConfig, verdict: VerdictRecord, *, prefix: str = "factory") -> None:
    """Say in the ledger what a task found by conditions of its own, in place of what it found before. Raises nothing, as above."""
    _leave(config, prefix, verdict)


def forget_failure(config: KafkaConfig, work: Work, *, start: int = 0, prefix: str = "factory") -> None:
    """Take back what was left, for a stage that succeeds without a record of its own; ``start``: where to begin to look. Raises nothing."""
    key = failure_key(work)
    with _unheard(), Cluster(config, timeout=_PATIENCE) as cluster:
        ledger = Ledger(config, cluster, prefix=prefix, pipeline=work.pipeline)
        if cluster.find(ledger.topic) is not None:
            found = ledger.read(start=start, deadline=time.monotonic() + _PATIENCE, wanted=(key.encode(),))
            if found.get(key) is not None:
                _say(config, ledger, {key: None})


def _leave(config: KafkaConfig, prefix: str, *records: FailureRecord | AttemptRecord | VerdictRecord) -> None:
    with _unheard(), Cluster(config, timeout=_PATIENCE) as cluster:
        ledger = Ledger(config, cluster, prefix=prefix, pipeline=records[0].pipeline)
        if cluster.find(ledger.topic) is not None:
            _say(config, ledger, {record.key(): encode_record(record) for record in records})


def _say(config: KafkaConfig, ledger: Ledger, records: Mapping[str, bytes | None]) -> None:
    producer = config.plain_producer(message_timeout_ms=int(_PATIENCE * 1000))
    for key, value in records.items():
        producer.produce(ledger.topic, value, key.encode(), partition=ledger.partition)
    producer.flush(_PATIENCE)


@contextmanager
def _unheard() -> Iterator[None]:
    try:
        yield
    except (FactoryError, KafkaException) as error:
        log.debug("no word of it is left: %s", error)
