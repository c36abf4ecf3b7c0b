"""The transactional writer: how long it asks, and what it makes of a client's errors."""

from __future__ import annotations

import gc
import random
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from factory_agents.errors import DeadlineError, FencedError, StoppedError, UnavailableError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.writer import ChunkAbortedError, TransactionalWriter, choose_partition
from tests.support.process_resources import tasks_and_sockets
from tests.support.runs import Runs
from tests.support.waiting import wait_for

RETRIABLE = KafkaException(KafkaError(KafkaError._TIMED_OUT, "not yet", False, True, False))
FATAL = KafkaException(KafkaError(KafkaError._FENCED, "fenced", True, False, False))
OTHER_FATAL = KafkaException(KafkaError(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, "gap", True, False, False))
ABORTABLE = KafkaException(KafkaError(KafkaError._MSG_TIMED_OUT, "late", False, False, True))
REFUSED = KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE, "large", False, False, True))
ODD = KafkaException(KafkaError(KafkaError._CONFLICT, "odd", False, False, False))
STATE = KafkaException(KafkaError(KafkaError._STATE, "erroneous state", False, False, False))

METHODS: dict[str, tuple[str, Callable[[TransactionalWriter], Any]]] = {
    "commit": ("commit_transaction", lambda w: w.commit(soon())),
    "begin": ("begin_transaction", lambda w: w.begin()),
    "flush": ("flush", lambda w: w.flush(soon())),
    "offsets": ("send_offsets_to_transaction", lambda w: w.send_offsets([], "g", None)),
}


class Client:
    """A producer that answers as it is told: each method its list of errors, then success."""

    def __init__(self, **errors: list[Exception]) -> None:
        self.errors = errors
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def answer(*_: Any, **__: Any) -> int:
            self.calls.append(name)
            if self.errors.get(name):
                raise self.errors[name].pop(0)
            return 0

        return answer


def writer(client: Client, stop: Callable[[], bool] = lambda: False) -> TransactionalWriter:
    made = TransactionalWriter(KafkaConfig("nowhere:1"), "id", stop=stop)
    made._producer = client  # type: ignore[assignment]
    return made


def soon() -> float:
    return time.monotonic() + 30


@pytest.mark.slow
def test_a_coordinator_that_never_answers_is_not_waited_for_longer_than_the_transaction_lasts() -> None:
    """As librdkafka does where the group's coordinator has died: it ignores the time-out. The next producer works."""
    answered = threading.Event()
    client = Client()
    client.send_offsets_to_transaction = lambda *_: answered.wait(60)  # type: ignore[attr-defined]
    stuck = writer(client)
    stuck.timeout_ms = 100
    with pytest.raises(ChunkAbortedError, match="the coordinator of group 'g' has not answered") as aborted:
        stuck.send_offsets([], "g", None)
    assert not aborted.value.refused
    assert not stuck.is_open
    stuck.abort()
    assert client.calls == []  # what is stuck is not asked anything more
    answered.set()


def test_a_commit_is_asked_for_again_while_the_answer_is_retriable() -> None:
    client = Client(commit_transaction=[RETRIABLE] * 5)
    made = writer(client)
    made.begin()
    made.commit(soon())
    assert client.calls.count("commit_transaction") == 6
    assert made.open_since is None


def test_a_commit_without_an_answer_ends_at_the_deadline_and_says_that_nothing_is_known() -> None:
    made = writer(Client(commit_transaction=[RETRIABLE] * 5))
    with pytest.raises(DeadlineError, match="a retry reads from the ledger"):
        made.commit(time.monotonic() - 1)


def test_a_stop_ends_a_commit_without_an_answer_after_some_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory_agents.kafka.writer._STOP_SECONDS", 0.0)
    with pytest.raises(StoppedError):
        writer(Client(commit_transaction=[RETRIABLE] * 50), lambda: True).commit(soon())


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (FATAL, FencedError),
        (OTHER_FATAL, FencedError),
        (ABORTABLE, ChunkAbortedError),
        (REFUSED, ChunkAbortedError),
        (ODD, UnavailableError),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_errors_of_the_client_are_told_apart(method: str, error: KafkaException, raised: type[Exception]) -> None:
    fails, use = METHODS[method]
    with pytest.raises(raised) as caught:
        use(writer(Client(**{fails: [error]})))
    if isinstance(caught.value, ChunkAbortedError):
        assert caught.value.refused == (error is REFUSED)


@pytest.mark.parametrize(("reason", "raised"), [(FATAL, FencedError), (ABORTABLE, ChunkAbortedError), (REFUSED, ChunkAbortedError)])
def test_where_the_client_says_only_that_it_is_in_error_the_reason_is_asked_for(reason: KafkaException, raised: type[Exception]) -> None:
    with pytest.raises(raised):
        writer(Client(produce=[STATE], begin_transaction=[reason])).send("t", b"v", None, 0, [])


def test_a_fatal_error_that_comes_as_a_system_error_of_a_callback_is_understood() -> None:
    with pytest.raises(FencedError):
        writer(Client(flush=[SystemError("returned NULL")], begin_transaction=[FATAL])).flush(soon())


def test_a_record_that_the_client_refuses_is_returned() -> None:
    refused = writer(Client(produce=[REFUSED])).send("t", b"v", None, 0, [])
    assert refused is not None
    assert refused.code() == KafkaError.MSG_SIZE_TOO_LARGE


def test_a_full_queue_is_waited_for() -> None:
    client = Client(produce=[BufferError(), BufferError()])
    assert writer(client).send("t", b"v", None, 0, []) is None
    assert client.calls.count("produce") == 3


def test_aborting_tells_a_fenced_producer_and_passes_over_what_the_next_one_mends() -> None:
    made = writer(Client(abort_transaction=[FATAL]))
    made.begin()
    with pytest.raises(FencedError):
        made.abort()
    made = writer(Client(abort_transaction=[RETRIABLE]))
    made.begin()
    made.abort()
    writer(Client(abort_transaction=[FATAL])).abort()  # no transaction is open: nothing is asked


def test_keys_choose_the_partition_as_librdkafkas_consistent_partitioner_does() -> None:
    assert [choose_partition(k, 7, 12) for k in (b"a", b"b", b"", None)] == [
        zlib.crc32(b"a") % 12,
        zlib.crc32(b"b") % 12,
        7,
        7,
    ]


def refusal(runs: Runs, topic: str, records: Sequence[tuple[bytes | None, bytes]]) -> ChunkAbortedError:
    made = TransactionalWriter(runs.config, f"{runs.prefix}.t")
    made.batch_bytes = 1000
    made.open(soon())

    def write() -> None:
        made.begin()
        for key, value in records:
            made.send(topic, value, key, 0, [])
        made.flush(soon())

    try:
        with pytest.raises(ChunkAbortedError) as caught:
            write()
        return caught.value
    finally:
        made.abort()


def test_what_the_broker_says_of_a_refused_record_is_the_reason_not_what_became_of_the_others(runs: Runs) -> None:
    topic = runs.topic("t", max_message_bytes=1000)
    large = random.Random(1).randbytes(5000)
    aborted = refusal(runs, topic, [(b"k", b"small"), (b"large", large), *[(b"k", random.Random(n).randbytes(900)) for n in range(200)]])
    assert aborted.refused
    assert "Message size too large" in str(aborted)
    assert [(r.key, r.value, r.alone) for r in aborted.records if r.key == b"large"] == [(b"large", large, True)]
    assert all("too large" in r.reason for r in aborted.records)


def test_the_records_that_the_broker_names_are_the_culprits_however_many_are_in_their_batch(runs: Runs) -> None:
    topic = runs.topic("t", cleanup_policy="compact")  # takes no record without a key
    aborted = refusal(runs, topic, [(b"a", b"1"), (None, b"2"), (b"b", b"3"), (None, b"4")])
    assert [(r.value, r.alone) for r in aborted.records] == [(b"2", True), (b"4", True)]
    assert "validate" in str(aborted)


@pytest.mark.slow
def test_an_unreachable_broker_is_given_up_on_stop() -> None:
    stop = threading.Event()
    stop.set()
    made = TransactionalWriter(KafkaConfig("127.0.0.1:1"), "id", stop=stop.is_set)
    with pytest.raises(UnavailableError):
        made.open(time.monotonic() + 1)


def test_positions_that_are_refused_keep_no_producer(runs: Runs) -> None:
    """Not until the next garbage collection: brokers that come and go would leave one behind each time."""
    topic, group = runs.topic("in", partitions=1), f"{runs.prefix}.group"
    consumer = runs.config.consumer(group_id=group)
    consumer.subscribe([topic])
    wait_for(lambda: (consumer.poll(0.1), consumer.assignment())[1], "the consumer to join")
    membership = consumer.consumer_group_metadata()
    consumer.close()
    gc.collect()
    gc.disable()
    try:
        before = tasks_and_sockets()
        for _ in range(3):
            writer = TransactionalWriter(runs.config, runs.prefix, known_topic=topic)
            writer.open(time.monotonic() + 30)
            writer.begin()
            with pytest.raises((ChunkAbortedError, FencedError)):
                writer.send_offsets([TopicPartition(topic, 0, 1)], group, membership)
            writer.close()
        wait_for(lambda: tasks_and_sockets() <= before, "the producers' threads to end")
    finally:
        gc.enable()
