"""Writes in transactions: what is produced becomes visible together with the ledger record that speaks of it, or not at all."""

from __future__ import annotations

import contextlib
import threading
import time
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from factory_agents import failpoints
from factory_agents.errors import DeadlineError, FactoryError, FencedError, StoppedError, UnavailableError
from factory_agents.kafka.config import KafkaConfig, connect, kafka_error, unauthorized
from factory_agents.kafka.topics import Cluster

__all__ = ["ChunkAbortedError", "RefusedRecord", "TransactionalWriter", "choose_partition"]

_REFUSED = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.INVALID_RECORD,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_MSG,
}
_CONSEQUENCES = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT, KafkaError._INVALID_DIFFERENT_RECORD}
"""What becomes of records because another one was refused."""
_TIMEOUT_MS = 60_000
_BATCH_BYTES = 1_000_000
_LINGER_MS = 100  # a commit waits for none of it; with less the client's thread is busy all the time with batches of a few records
_OPEN_SECONDS = 60.0
_OFFSETS_SECONDS, _MOST_OFFSETS_SECONDS = 3.0, 30.0
_LONGEST_WAIT = 900.0  # the longest transaction that brokers allow by default: after that no answer can still mean success
_STOP_SECONDS = 10.0
_ANSWERS_SECONDS = 1.0  # after the first error: what is on its way is answered within that


@dataclass(frozen=True)
class RefusedRecord:
    """A record in a batch that the broker refused. ``alone``: it is the culprit itself, not another record of its batch."""

    topic: str
    key: bytes | None
    value: bytes | None
    reason: str
    alone: bool
    too_large: bool = False


class ChunkAbortedError(Exception):
    """The transaction must be aborted and may be tried again.

    ``refused`` says that a record in it was refused; ``records`` are those that it may be.
    """

    def __init__(self, cause: FactoryError, *, refused: bool, records: Sequence[RefusedRecord] = ()) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.refused = refused
        self.records = tuple(records)


def choose_partition(key: bytes | None, fallback: int, partitions: int) -> int:
    """The output partition: CRC32 of the key (librdkafka's ``consistent``), or without one the input's number, so that re-runs agree."""
    return (zlib.crc32(key) if key else fallback) % partitions


class TransactionalWriter:
    """One transactional producer at a time under one transactional id; a new one after every abort.

    ``stop`` shortens waits for the broker once it says so; ``known_topic``, one that exists, shortens the start. Set ``batch_bytes`` before
    ``open`` where a topic takes less than a megabyte: a record that is too large then fails alone. One that ``lingers`` waits for fuller
    batches; not for live agents, which answer later then. Raises FencedError when a newer producer of the same id has taken over (or the
    transaction outlived its timeout, which looks the same), ChunkAbortedError where a chunk may be tried again, and UnavailableError,
    StoppedError or DeadlineError else.
    """

    def __init__(
        self,
        config: KafkaConfig,
        transactional_id: str,
        *,
        known_topic: str = "",
        timeout_ms: int = 0,
        stop: Callable[[], bool] = lambda: False,
        lingers: bool = False,
    ) -> None:
        self._config = config
        self._lingers = lingers and "linger.ms" not in config.values
        self._id = transactional_id
        self._known_topic = known_topic
        self._stop = stop
        self._stopping = 0.0
        self._patience = _OFFSETS_SECONDS
        self.timeout_ms = timeout_ms or int(config.values.get("transaction.timeout.ms", _TIMEOUT_MS))
        self.batch_bytes = _BATCH_BYTES
        self._producer: Producer | None = None
        self._errors: list[tuple[KafkaError, Message]] = []
        self.open_since: float | None = None

    def open(self, deadline: float) -> None:
        """A new producer that fences every older one of this id and ends the transaction it left open."""
        self.close()
        extra: dict[str, Any] = {} if self.batch_bytes >= _BATCH_BYTES else {"batch_size": self.batch_bytes}
        if self._lingers:
            extra["linger_ms"] = _LINGER_MS
        self._producer = self._config.producer(self._id, transaction_timeout_ms=self.timeout_ms, on_delivery=self._delivered, **extra)
        if self._known_topic:
            connect(self._producer, self._known_topic)
        doing = f"starting transactional id {self._id!r}"
        until = min(deadline, time.monotonic() + _OPEN_SECONDS)
        while True:
            try:
                self._producer.init_transactions(min(15.0, max(1.0, until - time.monotonic())))
                return
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > until or self._stop():
                    raise kafka_error(error, doing, **self._needed()) from error

    def _needed(self, topics: Collection[str] = ()) -> dict[str, str]:
        """The rights that writing to these topics takes, of those that may be missing (see ``kafka_error``)."""
        needed = {"transactional_id": f"WRITE on transactional id {self._id!r}"}
        return needed | ({"topic": f"WRITE on topic {' and '.join(map(repr, sorted(topics)))}"} if topics else {})

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._errors.append((error, message))

    @property
    def producer(self) -> Producer:
        """The producer, for the hot path; a transaction is begun on demand by ``begin``."""
        if self._producer is None:
            raise FencedError(f"transactional id {self._id!r}: not open")
        return self._producer

    @property
    def is_open(self) -> bool:
        """Whether there is a producer; there is none after an abort."""
        return self._producer is not None

    @property
    def age(self) -> float:
        """Seconds since the open transaction began; 0 where none is open."""
        return 0.0 if self.open_since is None else time.monotonic() - self.open_since

    def begin(self) -> None:
        """Begin a transaction unless one is open."""
        if self.open_since is None:
            try:
                self.producer.begin_transaction()
            except KafkaException as error:
                raise self._failure(error, "beginning a transaction") from error
            self.open_since = time.monotonic()

    def send(self, topic: str, value: bytes | None, key: bytes | None, partition: int, headers: list[tuple[str, Any]]) -> KafkaError | None:
        """Put one record into the transaction; what the client refuses of it (its size) is returned."""
        while True:
            try:
                self.producer.produce(topic, value, key, partition=partition, headers=headers)
                return None
            except BufferError:
                self._check_time(time.monotonic(), float("inf"), "writing")
                self._serve(lambda: self.producer.poll(0.05))
            except KafkaException as error:
                if error.args[0].code() in _REFUSED:
                    refused: KafkaError = error.args[0]
                    return refused
                raise self._failure(error, f"writing to {topic}-{partition}") from error

    def flush(self, deadline: float) -> None:
        """Wait until all that was sent is in the log (uncommitted); ChunkAbortedError where it doesn't."""
        began = time.monotonic()
        while self._serve(lambda: self.producer.flush(0.2)) > 0 and not self._errors:  # after an error the rest only waits for its end
            self._check_time(began, deadline, "writing; nothing of this chunk is committed, a retry resumes before it")
        if self._errors:
            raise self._aborted(self._errors[0][0], "writing")

    def send_offsets(self, offsets: Sequence[TopicPartition], group: str, membership: Any) -> None:
        """Put a consumer group's positions into the transaction.

        The client may wait for ever for a group's coordinator that has died (librdkafka #5456, #5511), whatever time-out it is given. So a
        thread asks it, which is left behind with its producer after some seconds: twice as many each time, since the coordinator may be
        slow, and at most half the time that the transaction has. (The producer is no variable here: an error would keep it, with its
        threads and its sockets, until the next garbage collection.)
        """
        patience = min(self._patience, self.timeout_ms / 2000)
        failed: list[BaseException] = []
        asking = threading.Thread(
            target=_send_offsets, args=(self.producer, list(offsets), membership, patience, failed), name="offsets", daemon=True
        )
        asking.start()
        asking.join(patience + 1)
        if asking.is_alive():
            self._patience = min(2 * self._patience, _MOST_OFFSETS_SECONDS)
            self.close()  # its answer comes too late for this transaction, which the next producer of this id ends
            cause = UnavailableError(f"committing positions: the coordinator of group {group!r} has not answered for {patience + 1:.0f} s")
            raise ChunkAbortedError(cause, refused=False)
        try:
            if failed:
                raise failed.pop()
            self._patience = _OFFSETS_SECONDS
        except KafkaException as error:
            if unauthorized(error):
                topics = " and ".join(sorted({repr(tp.topic) for tp in offsets}))
                raise kafka_error(
                    error,
                    "committing positions",
                    **self._needed() | {"group": f"READ on group {group!r}", "topic": f"READ on topic {topics}"},
                ) from error
            if error.args[0].retriable():
                raise ChunkAbortedError(kafka_error(error, "committing positions"), refused=False) from error
            raise self._failure(error, "committing positions") from error

    def commit(self, deadline: float) -> None:
        """Commit; asked again while the answer is retriable, until the deadline."""
        failpoints.hit("chunk.before-commit")
        began = time.monotonic()
        while True:
            try:
                self.producer.commit_transaction(min(5.0, max(1.0, deadline - time.monotonic())))
                break
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise self._failure(error, "committing") from error
                self._check_time(began, deadline, "committing: whether this chunk is committed a retry reads from the ledger")
        self.open_since = None
        failpoints.hit("chunk.after-commit")

    def _serve(self, serve: Callable[[], int]) -> int:
        """Let the client call its callbacks.

        It raises a fatal error out of any such call; where a callback runs after that, a SystemError comes instead.
        """
        try:
            return serve()
        except KafkaException as error:
            raise self._failure(error, "writing") from error
        except SystemError as error:
            reason = self._reason()
            if reason is None:
                raise
            raise self._failure(KafkaException(reason), "writing") from error

    def _poll(self) -> None:
        with contextlib.suppress(KafkaException, SystemError):
            self.producer.poll(0)

    def _check_time(self, began: float, deadline: float, doing: str) -> None:
        now = time.monotonic()
        if now > min(deadline, began + _LONGEST_WAIT):
            raise DeadlineError(f"out of time while {doing}")
        if self._stop():
            self._stopping = self._stopping or now
            if now - self._stopping > _STOP_SECONDS:
                raise StoppedError(f"asked to stop while {doing}")

    def _failure(self, error: KafkaException, doing: str) -> Exception:
        cause: KafkaError = error.args[0]
        if cause.code() in (KafkaError._STATE, KafkaError._FATAL):
            cause = self._reason() or cause
        if cause.fatal() or cause.code() == KafkaError._FATAL:
            return self._fenced(cause, doing)
        if cause.txn_requires_abort():
            return self._aborted(cause, doing)
        return kafka_error(cause, doing, **self._needed())

    def _reason(self) -> KafkaError | None:
        """Why the transaction is in error: ``produce`` says only that it is, ``begin_transaction`` tells."""
        self._poll()
        try:
            self.producer.begin_transaction()
        except KafkaException as error:
            reason: KafkaError = error.args[0]
            return reason
        return None

    def _fenced(self, cause: KafkaError, doing: str) -> FactoryError:
        failure = kafka_error(cause, doing, **self._needed())
        if isinstance(failure, FencedError):
            return self._outlived(failure, doing)
        if unauthorized(cause):
            return failure
        return FencedError(f"{doing}: {cause.str()} ({cause.name()}): this attempt cannot go on; a retry resumes")

    def _outlived(self, fenced: FencedError, doing: str) -> FencedError:
        """The same, but of a transaction that was open for so long that the broker gave it up, which looks like a newer producer."""
        age = self.age
        if age * 1000 < self.timeout_ms:
            return fenced
        return FencedError(
            f"{doing}: the transaction was open for {age:.0f} s, longer than transaction.timeout.ms={self.timeout_ms} allows: the broker "
            "gave it up, or a newer attempt took over; this one stops without committing, a retry resumes"
        )

    def _aborted(self, cause: KafkaError, doing: str) -> Exception:
        failure = kafka_error(cause, doing)
        if isinstance(failure, FencedError):
            return self._outlived(failure, doing)
        if cause.code() in _REFUSED | _CONSEQUENCES:
            self._wait_for_answers()
        self._poll()
        refused = [(e, m) for e, m in self._errors if e.code() in _REFUSED]
        reason = refused[0][0] if refused else cause
        if not refused and cause.code() in _CONSEQUENCES:
            reason = self._reason() or cause
        if unauthorized(reason):
            return self._unauthorized(reason, doing)
        records = [self._refused(e, m, alone=self._is_culprit(m, refused)) for e, m in refused]
        return ChunkAbortedError(kafka_error(reason, doing), refused=bool(records) or cause.code() in _REFUSED, records=records)

    def _unauthorized(self, cause: KafkaError, doing: str) -> FactoryError:
        """What the user lacks; the client doesn't say of which topic, so the broker is asked."""
        written = {topic for _, message in self._errors if (topic := message.topic()) is not None}
        if len(written) > 1:
            with Cluster(self._config) as cluster:
                written = set(cluster.not_writable(written)) or written
        return kafka_error(cause, doing, **self._needed(written))

    def _wait_for_answers(self) -> None:
        """The more refused records are known, the fewer times the chunk is tried again."""
        until = time.monotonic() + _ANSWERS_SECONDS
        with contextlib.suppress(KafkaException, SystemError):
            while self.producer.flush(0.05) > 0 and time.monotonic() < until:
                pass

    def _is_culprit(self, message: Message, refused: Sequence[tuple[KafkaError, Message]]) -> bool:
        """Whether the broker means this very record, not the batch that it is in: it was the only one, or others are told apart from it."""
        where = message.topic(), message.partition()
        told_apart = any(e.code() == KafkaError._INVALID_DIFFERENT_RECORD and (m.topic(), m.partition()) == where for e, m in self._errors)
        return told_apart or sum((m.topic(), m.partition()) == where for _, m in refused) == 1

    def _refused(self, error: KafkaError, message: Message, *, alone: bool) -> RefusedRecord:
        key, value = _bytes(message.key()), _bytes(message.value())
        fills_a_batch = len(key or b"") + len(value or b"") >= self.batch_bytes
        too_large = error.code() in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE)
        return RefusedRecord(str(message.topic()), key, value, error.str(), alone or fills_a_batch, too_large)

    def abort(self) -> None:
        """Give the open transaction up and drop the producer. What fails here the next ``open`` of this id mends, unless it is fenced.

        Raises FencedError when a newer producer of the same id has taken over: opening again would fence that one.
        """
        producer, is_open = self._producer, self.open_since is not None
        try:
            if producer is not None and is_open:
                producer.abort_transaction(10.0)
        except (KafkaException, SystemError) as error:
            cause = error.args[0] if isinstance(error, KafkaException) else self._reason()
            if cause is not None and cause.fatal():
                raise self._fenced(cause, "aborting") from error
        finally:
            self.close()

    def close(self) -> None:
        """Drop the producer."""
        self._producer = None
        self._errors = []
        self.open_since = None


def _send_offsets(producer: Producer, offsets: list[TopicPartition], membership: Any, patience: float, failed: list[BaseException]) -> None:
    try:
        producer.send_offsets_to_transaction(offsets, membership, patience)
    except BaseException as error:
        failed.append(error.with_traceback(None))


def _bytes(value: Any) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
