"""What exactly-once in a consumer group stands on, asked of the client and the broker as they are: it may change with either's version."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from tests.support.runs import Runs, events
from tests.support.waiting import wait_for


class Member:
    """A member of a group, as this project's are."""

    def __init__(self, runs: Runs, topic: str, group: str) -> None:
        self.mine: set[int] = set()
        self.client: Consumer = runs.configured(session_timeout_ms=6000, heartbeat_interval_ms=200).consumer(
            group_id=group, partition_assignment_strategy="cooperative-sticky"
        )

        def came(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            consumer.incremental_assign([])  # taken, and not read
            self.mine |= {tp.partition for tp in partitions}

        def went(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            consumer.incremental_unassign([])  # else the client takes away what was never read, and fails
            self.mine -= {tp.partition for tp in partitions}

        self.client.subscribe([topic], on_assign=came, on_revoke=went, on_lost=went)

    def serve(self) -> None:
        assert not [m for m in self.client.consume(10, 0.02) if m.error() is None], "nothing is read before it is assigned"


class Group:
    """Two members that share a topic's two partitions, and a producer with transactions."""

    def __init__(self, runs: Runs) -> None:
        self.runs, self.topic, self.name = runs, runs.topic("in", partitions=2), f"{runs.prefix}.group"
        runs.produce(self.topic, events(20))
        self.members = [Member(runs, self.topic, self.name) for _ in range(2)]
        self.until(lambda: [len(m.mine) for m in self.members] == [1, 1], "a partition for each")
        self.producer = runs.config.producer(f"{runs.prefix}.writer")
        self.producer.init_transactions(30)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        def served() -> bool:
            for member in self.members:
                member.serve()
            return condition()

        wait_for(served, what)

    def place(self, partition: int, offset: int = -1001) -> TopicPartition:
        return TopicPartition(self.topic, partition, offset)

    def stands(self, group: str = "", partition: int = 0) -> int:
        asking = self.runs.config.consumer(group_id=group or self.name)
        try:
            return max(-1, asking.committed([self.place(partition)], timeout=10)[0].offset)
        finally:
            asking.close()

    def commit(self, places: list[TopicPartition], of: Consumer) -> None:
        """Positions in a transaction of their own."""
        self.producer.begin_transaction()
        self.producer.send_offsets_to_transaction(places, of.consumer_group_metadata(), 10)
        self.producer.commit_transaction(10)

    def close(self) -> None:
        for member in self.members:
            member.client.close()


@pytest.fixture
def group(runs: Runs) -> Iterator[Group]:
    own = Group(runs)
    yield own
    own.close()


def test_positions_are_fenced_by_membership_and_by_nothing_else(group: Group) -> None:
    one, two = group.members
    theirs = next(iter(two.mine))
    # Whose a partition is the broker doesn't look at: a member forgets what it read of one that goes, before it commits anything.
    group.commit([group.place(theirs, 3)], one.client)
    assert group.stands(partition=theirs) == 3
    # Nor does it refuse one that says nothing of a membership, though the group has members.
    outsider = group.runs.config.consumer(group_id=group.name)
    group.commit([group.place(theirs, 5)], outsider)
    assert group.stands(partition=theirs) == 5
    # Without a transaction it does.
    with pytest.raises(KafkaException) as refused:
        outsider.commit(offsets=[group.place(theirs, 7)], asynchronous=False)
    assert refused.value.args[0].code() == KafkaError.UNKNOWN_MEMBER_ID
    outsider.close()
    # One of an earlier generation is refused, in a way that only the transaction is lost.
    before = one.client.consumer_group_metadata()
    two.client.close()
    group.members = [one]
    group.until(lambda: len(one.mine) == 2, "all partitions")
    group.producer.begin_transaction()
    with pytest.raises(KafkaException) as stale:
        group.producer.send_offsets_to_transaction([group.place(theirs, 9)], before, 10)
    assert stale.value.args[0].txn_requires_abort()
    assert not stale.value.args[0].fatal()
    group.producer.abort_transaction(10)
    assert group.stands(partition=theirs) == 5


def test_positions_of_two_groups_move_together_and_are_hidden_until_it_is_known_whether_they_do(group: Group) -> None:
    member, other = group.members[0].client, f"{group.name}.other"
    outsider = group.runs.config.consumer(group_id=other)
    reader = group.runs.config.consumer(group_id=group.name)
    onlooker = group.runs.config.onlooker(group.name)
    group.commit([group.place(0, 1)], member)
    for ended, stands in ((group.producer.abort_transaction, (1, -1)), (group.producer.commit_transaction, (4, 4))):
        group.producer.begin_transaction()
        group.producer.send_offsets_to_transaction([group.place(0, 4)], outsider.consumer_group_metadata(), 10)
        group.producer.send_offsets_to_transaction([group.place(0, 4)], member.consumer_group_metadata(), 10)
        with pytest.raises(KafkaException):
            reader.committed([group.place(0)], timeout=0.3)
        assert onlooker.committed([group.place(0)], timeout=10)[0].offset == 1, "who reads uncommitted waits for nobody"
        ended(10)
        assert (group.stands(), group.stands(other)) == stands
    for client in (outsider, reader, onlooker):
        client.close()


def test_reading_goes_on_at_once_and_where_it_was_after_a_pause_that_ends_with_a_seek(runs: Runs) -> None:
    topic = runs.topic("in", partitions=1)
    runs.produce(topic, events(2000))
    consumer = runs.config.consumer(auto_offset_reset="earliest")
    place, at, took = TopicPartition(topic, 0), 0, []
    consumer.assign([TopicPartition(topic, 0, 0)])

    def read(count: int) -> None:
        nonlocal at
        until = at + count
        while at < until:
            for message in consumer.consume(until - at, 10):
                assert message.error() is None
                assert message.offset() == at
                at += 1

    read(10)
    for _ in range(5):
        consumer.pause([place])
        assert consumer.consume(100, 0.05) == [], "what was fetched is thrown away"
        began = time.monotonic()
        consumer.resume([place])
        consumer.seek(TopicPartition(topic, 0, at))
        read(100)
        took.append(time.monotonic() - began)
    consumer.close()
    assert min(took) < 0.3, f"{took}: resuming alone takes a second"


def test_who_opens_a_transactional_id_ends_what_was_left_open_under_it(runs: Runs) -> None:
    topic, settings = runs.topic("out", partitions=1), {"bootstrap.servers": runs.bootstrap, "log_level": 0}
    zombie = Producer({**settings, "transactional.id": f"{runs.prefix}.id", "transaction.timeout.ms": 60_000})
    zombie.init_transactions(30)
    zombie.begin_transaction()
    zombie.produce(topic, b"{}", partition=0)
    assert zombie.flush(60) == 0
    assert runs.cluster.stable_offset(topic, [0])[0] == 0
    successor = Producer({**settings, "transactional.id": f"{runs.prefix}.id"})
    successor.init_transactions(30)
    wait_for(lambda: runs.cluster.stable_offset(topic, [0])[0] > 0, "its end")
    with pytest.raises(KafkaException) as fenced:
        zombie.commit_transaction(30)
    assert fenced.value.args[0].fatal()
    assert runs.everything(topic) == []
