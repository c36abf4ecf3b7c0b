"""Writes in transactions: what is produced becomes visible together with the ledger record that speaks of it, or not at all."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from factory_agents import failpoints
from factory_agents.errors import DeadlineError, FactoryError, FencedError
from factory_agents.kafka.config import KafkaConfig, kafka_error

__all__ = ["ChunkAbortedError", "TransactionalWriter", "choose_partition"]

_REFUSED = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.INVALID_RECORD,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_MSG,
}
_TIMEOUT_MS = 60_000


class ChunkAbortedError(Exception):
    """The transaction was aborted and may be tried again; ``refused`` says that the broker refused a record in it."""

    def __init__(self, cause: FactoryError, *, refused: bool) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.refused = refused


def choose_partition(key: bytes | None, fallback: int, partitions: int) -> int:
    """The output partition: CRC32 of the key (librdkafka's ``consistent``), or without one the input's number, so that re-runs agree."""
    return (zlib.crc32(key) if key else fallback) % partitions


class TransactionalWriter:
    """One transactional producer at a time under one transactional id; a new one after every abort.

    Raises FencedError when a newer producer of the same id has taken over, ChunkAbortedError where the same chunk may be tried again, and UnavailableError or
    DeadlineError else.
    """

    def __init__(self, config: KafkaConfig, transactional_id: str, *, timeout_ms: int = 0) -> None:
        self._config = config
        self._id = transactional_id
        self.timeout_ms = timeout_ms or int(config.values.get("transaction.timeout.ms", _TIMEOUT_MS))
        self._producer: Producer | None = None
        self._errors: list[KafkaError] = []
        self.open_since: float | None = None

    def open(self, deadline: float) -> None:
        """A new producer that fences every older one of this id and ends the transaction it left open."""
        self.close()
        self._errors = []
        self._producer = self._config.producer(self._id, transaction_timeout_ms=self.timeout_ms, on_delivery=self._delivered)
        doing = f"starting transactional id {self._id!r}"
        until = min(deadline, time.monotonic() + 60.0)
        while True:
            try:
                self._producer.init_transactions(min(15.0, max(1.0, until - time.monotonic())))
                return
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > until:
                    raise kafka_error(error, doing) from error

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._errors.append(error)

    @property
    def producer(self) -> Producer:
        """The producer, for the hot path; a transaction is begun on demand by ``begin``."""
        if self._producer is None:
            raise FencedError(f"transactional id {self._id!r}: not open")
        return self._producer

    def begin(self) -> None:
        """Begin a transaction unless one is open."""
        if self.open_since is None:
            try:
                self.producer.begin_transaction()
            except KafkaException as error:
                raise self._failure(error, "beginning a transaction") from error
            self.open_since = time.monotonic()

    def send(
        self, topic: str, value: bytes | None, key: bytes | None, partition: int, headers: Sequence[tuple[str, Any]]
    ) -> KafkaError | None:
        """Put one record into the transaction; what the client refuses of it (its size) is returned."""
        while True:
            try:
                self.producer.produce(topic, value, key, partition=partition, headers=headers)
                return None
            except BufferError:
                self.producer.poll(0.05)
            except KafkaException as error:
                if error.args[0].code() in _REFUSED:
                    refused: KafkaError = error.args[0]
                    return refused
                raise self._failure(error, f"writing to {topic}-{partition}") from error

    def flush(self, deadline: float) -> None:
        """Wait until all that was sent stands in the log (uncommitted); ChunkAbortedError where it doesn't."""
        while self.producer.flush(min(5.0, max(0.1, deadline - time.monotonic()))) > 0:
            if time.monotonic() > deadline:
                raise DeadlineError("out of time while writing; nothing of this chunk is committed, a retry resumes before it")
        if self._errors:
            error = self._errors[0]
            failure = kafka_error(error, "writing")
            if isinstance(failure, FencedError):
                raise failure
            refused = next((e for e in self._errors if e.code() in _REFUSED), None)
            raise ChunkAbortedError(kafka_error(refused or error, "writing"), refused=refused is not None)

    def commit(self, deadline: float) -> None:
        """Commit; asked again while the answer is retriable, until the deadline."""
        failpoints.hit("chunk.before-commit")
        while True:
            try:
                self.producer.commit_transaction(min(30.0, max(1.0, deadline - time.monotonic())))
                break
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise self._failure(error, "committing") from error
                if time.monotonic() > deadline:
                    raise DeadlineError(
                        "out of time while committing: whether this chunk is committed is not known here, a retry reads it from the ledger"
                    ) from error
        self.open_since = None
        failpoints.hit("chunk.after-commit")

    def _failure(self, error: KafkaException, doing: str) -> Exception:
        cause = error.args[0]
        failure = kafka_error(error, doing)
        if isinstance(failure, FencedError) or cause.fatal():
            return (
                failure
                if isinstance(failure, FencedError)
                else FencedError(f"{doing}: {cause.str()} ({cause.name()}): this attempt cannot go on; a retry resumes")
            )
        if cause.txn_requires_abort():
            refused = next((e for e in self._errors if e.code() in _REFUSED), None)
            if refused is not None:
                failure = kafka_error(refused, doing)
            return ChunkAbortedError(failure, refused=refused is not None)
        return failure

    def abort(self) -> None:
        """Give the open transaction up (best effort: a successor's ``open`` ends it in any case) and drop the producer."""
        if self._producer is not None and self.open_since is not None:
            try:
                self._producer.purge()
                self._producer.abort_transaction(10.0)
            except KafkaException:
                pass  # the next init_transactions of this id aborts it
        self.close()

    def close(self) -> None:
        """Drop the producer."""
        self._producer = None
        self._errors = []
        self.open_since = None
