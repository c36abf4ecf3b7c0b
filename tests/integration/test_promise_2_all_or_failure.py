"""Promise 2: all of a window's records or a failure: nothing in a log makes a reader stop early, wait for ever or take less."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from factory_agents.errors import DataLossError, DeadlineError, ForgedRecordError, UnavailableError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.reader import WRITER_HEADER
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import PartitionRange, Window, merge_results
from factory_agents.sandbox import Sandbox
from factory_agents.sandbox.processes import free_port
from tests.conftest import TopicFactory
from tests.support.log import Transaction, Writer, drain, hour, hours_ago, reading, values_of, window_over
from tests.support.runs import Runs
from tests.support.topics import create_topic
from tests.support.waiting import wait_for


@pytest.fixture
def config(bootstrap: str) -> KafkaConfig:
    return KafkaConfig(bootstrap)


@pytest.fixture
def one(topic: TopicFactory) -> str:
    """A topic of one partition."""
    return topic(partitions=1)


def end_of(config: KafkaConfig, topic: str, partition: int = 0) -> int:
    return Cluster(config).high_watermark(topic, [partition])[partition]


def delete_records(admin: AdminClient, topic: str, before: int, partition: int = 0) -> None:
    for future in admin.delete_records([TopicPartition(topic, partition, before)]).values():
        future.result(30)


def recreate(admin: AdminClient, topic: str, partitions: int = 1) -> None:
    admin.delete_topics([topic])[topic].result()
    wait_for(lambda: topic not in admin.list_topics(timeout=10).topics, "the topic to be gone")
    create_topic(admin, topic, partitions)


class TestARangeEnds:
    def test_at_its_last_record(self, config: KafkaConfig, bootstrap: str, one: str) -> None:
        Writer(bootstrap, one).write("abcdef")
        assert values_of(config, window_over(config, one, {0: 3})) == ["a", "b", "c"]

    def test_at_control_records(self, config: KafkaConfig, bootstrap: str, one: str) -> None:
        transaction = Transaction(bootstrap, one, "t")
        transaction.write("ab")
        transaction.commit()
        assert end_of(config, one) == 3
        assert values_of(config, window_over(config, one, {0: 3})) == ["a", "b"]

    def test_at_several_control_records(self, config: KafkaConfig, bootstrap: str, one: str) -> None:
        transactions = [Transaction(bootstrap, one, name) for name in "xyz"]
        for n, transaction in enumerate(transactions):
            transaction.write([f"{n}"])
        for transaction in transactions:
            transaction.commit()
        assert end_of(config, one) == 6
        assert values_of(config, window_over(config, one, {0: 6})) == ["0", "1", "2"]
        assert values_of(config, window_over(config, one, {0: 4})) == ["0", "1", "2"]

    def test_in_a_range_of_nothing_but_aborted_records(self, config: KafkaConfig, bootstrap: str, one: str) -> None:
        transaction = Transaction(bootstrap, one, "t")
        transaction.write("abc")
        transaction.abort()
        assert values_of(config, window_over(config, one, {0: end_of(config, one)})) == []

    def test_inside_an_aborted_transaction(self, config: KafkaConfig, bootstrap: str, one: str) -> None:
        Writer(bootstrap, one).write("a")
        transaction = Transaction(bootstrap, one, "t")
        transaction.write("xyz")
        transaction.abort()
        assert values_of(config, window_over(config, one, {0: 3})) == ["a"]
        Writer(bootstrap, one).write("b")
        assert values_of(config, window_over(config, one, {0: 3})) == ["a"]

    def test_inside_a_committed_transaction(self, config: KafkaConfig, bootstrap: str, one: str) -> None:
        transaction = Transaction(bootstrap, one, "t")
        transaction.write("abc")
        transaction.commit()
        assert values_of(config, window_over(config, one, {0: 2})) == ["a", "b"]

    def test_at_once_where_it_is_empty(self, config: KafkaConfig, one: str, topic: TopicFactory) -> None:
        with reading(config, window_over(config, one, {0: 0})) as reader:
            reader.seek({}, {})
            assert reader.done
        with reading(config, window_over(config, topic(partitions=2), {})) as reader:
            reader.seek({}, {})
            assert reader.done

    def test_though_some_partitions_hold_nothing_but_markers(self, config: KafkaConfig, bootstrap: str, topic: TopicFactory) -> None:
        several = topic(partitions=4)
        transaction = Transaction(bootstrap, several, "t")
        for p in (1, 3):
            transaction.write([f"{p}"], partition=p)
        transaction.abort()
        Writer(bootstrap, several).write(["kept"], partition=2)
        ends = Cluster(config).high_watermark(several, range(4))
        assert values_of(config, window_over(config, several, ends)) == ["kept"]

    def test_where_the_tail_is_compacted_away(self, config: KafkaConfig, bootstrap: str, topic: TopicFactory) -> None:
        compacted = topic(
            partitions=1,
            cleanup_policy="compact,delete",
            min_compaction_lag_ms=0,
            min_cleanable_dirty_ratio=0.01,
            segment_ms=100,
            delete_retention_ms=0,
        )
        writer = Writer(bootstrap, compacted)
        for value in "abc":
            writer.write([value], key="k")
        end = end_of(config, compacted)

        def compacted_away() -> bool:
            writer.write(["later"], key="k")  # rolls the segment, so that it can be cleaned
            values = values_of(config, window_over(config, compacted, {0: end_of(config, compacted)}))
            return "a" not in values and "c" not in values

        wait_for(compacted_away, "the cleaner")
        assert values_of(config, window_over(config, compacted, {0: end})) == []

    def test_where_a_resumed_reader_stands_at_its_end_already(self, config: KafkaConfig, bootstrap: str, one: str) -> None:
        Writer(bootstrap, one).write("abc")
        with reading(config, window_over(config, one, {0: 3})) as reader:
            reader.seek({0: 3}, {0: 3})
            assert reader.done
            assert drain(reader) == []

    def test_in_the_middle_for_a_resumed_reader(self, config: KafkaConfig, bootstrap: str, one: str) -> None:
        Writer(bootstrap, one).write("abcdef")
        with reading(config, window_over(config, one, {0: 5})) as reader:
            reader.seek({0: 3}, {0: 3})
            assert drain(reader) == ["d", "e"]
            assert reader.positions == {0: 5}
            assert reader.read == {0: 5}

    def test_in_every_one_of_500_partitions(self, config: KafkaConfig, bootstrap: str, topic: TopicFactory) -> None:
        wide = topic(partitions=500)
        writer = Writer(bootstrap, wide)
        for p in range(500):
            writer._producer.produce(wide, f"{p:03}".encode(), partition=p)
        writer.write([])
        ends = Cluster(config).high_watermark(wide, range(500))
        assert values_of(config, window_over(config, wide, ends), patience=60) == [f"{p:03}" for p in range(500)]


class TestAnOpenTransaction:
    @pytest.mark.parametrize("committed", [True, False], ids=["committed", "aborted"])
    def test_across_the_edge_is_waited_for(self, config: KafkaConfig, bootstrap: str, one: str, committed: bool) -> None:
        Writer(bootstrap, one).write("a")
        transaction = Transaction(bootstrap, one, "open")
        transaction.write("bc")
        Writer(bootstrap, one).write("d")
        with ThreadPoolExecutor() as pool, reading(config, window_over(config, one, {0: 4})) as reader:
            reader.seek({}, {})
            assert [m.value() for m in reader.batch(10, time.monotonic() + 10, lambda: False)] == [b"a"]
            rest = pool.submit(drain, reader)
            assert reader.batch(10, time.monotonic() + 10, lambda: True) == []
            assert not rest.done()
            transaction.commit() if committed else transaction.abort()
            assert rest.result(20) == (["b", "c", "d"] if committed else ["d"])

    def test_that_its_producer_leaves_is_waited_for_until_the_broker_ends_it(self, config: KafkaConfig, bootstrap: str, one: str) -> None:
        transaction = Transaction(bootstrap, one, "left", timeout=1)
        transaction.write("a")
        Writer(bootstrap, one).write("b")
        assert values_of(config, window_over(config, one, {0: 2})) == ["b"]

    def test_that_outlasts_the_deadline_is_named(self, config: KafkaConfig, bootstrap: str, one: str) -> None:
        Writer(bootstrap, one).write("a")
        transaction = Transaction(bootstrap, one, "open")
        transaction.write("b")
        with reading(config, window_over(config, one, {0: 2})) as reader:
            reader.seek({}, {})
            with pytest.raises(DeadlineError) as caught:
                drain(reader, patience=0.5)
        assert re.search(rf"{one}-0 stands at 1 of 2, waiting for the transaction .* open since offset 1", str(caught.value))
        assert caught.value.retriable
        transaction.abort()

    def test_in_one_partition_does_not_hold_up_the_others(self, config: KafkaConfig, bootstrap: str, topic: TopicFactory) -> None:
        two = topic(partitions=2)
        transaction = Transaction(bootstrap, two, "open")
        transaction.write("x")
        Writer(bootstrap, two).write("abc", partition=1)
        with reading(config, window_over(config, two, {0: 1, 1: 3})) as reader:
            reader.seek({}, {})
            assert [m.value() for m in reader.batch(10, time.monotonic() + 10, lambda: False)] == [b"a", b"b", b"c"]
            transaction.abort()
            assert drain(reader) == []

    def test_is_waited_for_no_longer_than_any_may_last(self, own_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
        """What no transaction explains: a log that ends below the window's end."""
        config = KafkaConfig(own_sandbox.info().bootstrap)
        create_topic(AdminClient({"bootstrap.servers": config.bootstrap}), "t", 1)
        Writer(config.bootstrap, "t").write("a")
        monkeypatch.setattr("factory_agents.kafka.reader._MARGIN", 0.0)
        monkeypatch.setattr("factory_agents.kafka.reader._LEAST_WAIT", 0.0)
        with reading(config, window_over(config, "t", {0: 2})) as reader:
            monkeypatch.setattr(reader, "_longest", 0.5)
            reader.seek({}, {})
            with pytest.raises(DeadlineError, match=r"t-0 stands at [01] of 2, but its log ends at 1.*longer than any transaction"):
                drain(reader, patience=60)


class TestDeletedRecords:
    @pytest.fixture
    def ten(self, bootstrap: str, one: str) -> str:
        Writer(bootstrap, one).write("abcdefghij")
        return one

    def test_before_the_read_are_an_error(self, config: KafkaConfig, admin: AdminClient, ten: str) -> None:
        window = window_over(config, ten, {0: 8})
        delete_records(admin, ten, 3)
        with pytest.raises(DataLossError, match=rf"{ten}-0 offsets 0 to 3 are gone \(deleted by retention\).*--accept-loss"):
            values_of(config, window)

    def test_after_what_a_resumed_reader_has_read_are_none(self, config: KafkaConfig, admin: AdminClient, ten: str) -> None:
        window = window_over(config, ten, {0: 8})
        delete_records(admin, ten, 3)
        with reading(config, window) as reader:
            reader.seek({0: 3}, {0: 3})
            assert drain(reader) == list("defgh")

    def test_are_recorded_where_the_loss_is_accepted(self, config: KafkaConfig, admin: AdminClient, ten: str) -> None:
        window = window_over(config, ten, {0: 8})
        delete_records(admin, ten, 3)
        with reading(config, window, accept_loss=True) as reader:
            reader.seek({}, {})
            assert drain(reader) == list("defgh")
            assert reader.lost == [PartitionRange(0, 0, 3)]
            assert reader.lost_records == 3
            lost, positions, read = list(reader.lost), dict(reader.positions), dict(reader.read)
            reader.seek(positions, read, lost)
            assert reader.lost == lost, "a retry still knows what was lost"

    def test_all_of_them_are_recorded_too(self, config: KafkaConfig, admin: AdminClient, ten: str) -> None:
        window = window_over(config, ten, {0: 8})
        delete_records(admin, ten, 9)
        with reading(config, window, accept_loss=True) as reader:
            reader.seek({}, {})
            assert drain(reader) == []
            assert reader.lost == [PartitionRange(0, 0, 8)]

    @pytest.mark.parametrize("accept_loss", [False, True])
    def test_during_the_read_are_an_error_or_recorded(self, bootstrap: str, admin: AdminClient, one: str, accept_loss: bool) -> None:
        config = KafkaConfig(bootstrap, {"fetch.max.bytes": "1000", "message.max.bytes": "1000", "fetch.message.max.bytes": "1000",
                                         "queued.min.messages": "1", "queued.max.messages.kbytes": "1"})  # fmt: skip
        values = [f"{n:03}" + "x" * 500 for n in range(60)]
        writer = Writer(bootstrap, one, batch_num_messages=1)
        writer.write(values)
        with reading(config, window_over(config, one, {0: 50}), accept_loss=accept_loss) as reader:
            reader.seek({}, {})
            first = reader.batch(1, time.monotonic() + 10, lambda: False)
            delete_records(admin, one, 40)
            if not accept_loss:
                with pytest.raises(DataLossError, match="deleted while being read"):
                    drain(reader)
                return
            rest = drain(reader)
            assert rest[-10:] == values[40:50]
            assert len(first) + len(rest) + reader.lost_records == 50
            assert reader.lost[0].end == 40


class TestATopic:
    def test_that_was_recreated_before_the_read_is_an_error(
        self, config: KafkaConfig, bootstrap: str, admin: AdminClient, one: str
    ) -> None:
        Writer(bootstrap, one).write("abc")
        window = window_over(config, one, {0: 3})
        recreate(admin, one)
        Writer(bootstrap, one).write("xyz")
        with pytest.raises(DataLossError, match=r"deleted and created again since the window was planned.*--accept-loss"):
            values_of(config, window)

    def test_that_was_recreated_before_the_read_is_recorded_as_lost_and_nothing_of_it_is_read(
        self, config: KafkaConfig, bootstrap: str, admin: AdminClient, one: str
    ) -> None:
        Writer(bootstrap, one).write("abc")
        window = window_over(config, one, {0: 3})
        recreate(admin, one)
        Writer(bootstrap, one).write("xyz")
        with reading(config, window, accept_loss=True) as reader:
            reader.check_topic()  # before the start: what is lost is for seek to say
            reader.seek({0: 1}, {0: 1})
            assert drain(reader) == []
            assert reader.lost == [PartitionRange(0, 1, 3)]

    @pytest.mark.parametrize("accept_loss", [False, True])
    def test_that_is_recreated_during_the_read_is_an_error(
        self, config: KafkaConfig, bootstrap: str, admin: AdminClient, one: str, accept_loss: bool
    ) -> None:
        """Also where the loss is accepted: what this attempt read last may be of the other topic, the next one begins without."""
        Writer(bootstrap, one).write("abc")
        transaction = Transaction(bootstrap, one, "open")
        transaction.write("d")
        with reading(config, window_over(config, one, {0: 4}), accept_loss=accept_loss) as reader:
            reader.seek({}, {})
            assert len(reader.batch(10, time.monotonic() + 10, lambda: False)) == 3
            recreate(admin, one)
            Writer(bootstrap, one).write("uvwxyz")
            with pytest.raises(DataLossError, match="deleted and created again"):
                drain(reader)

    def test_that_is_deleted_during_the_read_is_an_error(self, config: KafkaConfig, bootstrap: str, admin: AdminClient, one: str) -> None:
        Writer(bootstrap, one).write("abc")
        with reading(config, window_over(config, one, {0: 3})) as reader:
            reader.seek({}, {})
            assert len(reader.batch(10, time.monotonic() + 10, lambda: False)) == 3
            admin.delete_topics([one])[one].result()
            wait_for(lambda: one not in admin.list_topics(timeout=10).topics, "the topic to be gone")
            with pytest.raises(DataLossError, match="does not exist any more"):
                drain(reader)


class TestAManifest:
    def write(self, bootstrap: str, topic: str, writer: str, values: str) -> None:
        Writer(bootstrap, topic).write(values, headers=[(WRITER_HEADER, writer)])

    def test_gives_its_own_writers_records_where_runs_interleave(self, config: KafkaConfig, bootstrap: str, one: str) -> None:
        for writer, value in (("s/a/1", "a"), ("s/b/2", "x"), ("s/a/1", "b"), ("s/a/0", "old"), ("s/b/2", "y"), ("s/c/1", "c")):
            Writer(bootstrap, one).write([value], headers=[("other", "s/a/1"), (WRITER_HEADER, writer)])
        Writer(bootstrap, one).write(["foreign"])
        window = window_over(config, one, {0: 7}, writers=("s/a/1", "s/c/1"))
        with reading(config, window) as reader:
            reader.seek({}, {})
            assert drain(reader) == ["a", "b", "c"]
            assert reader.skipped == 4

    def test_with_fewer_records_than_it_says_is_an_error(self, config: KafkaConfig, bootstrap: str, admin: AdminClient, one: str) -> None:
        self.write(bootstrap, one, "w", "abcdef")
        window = window_over(config, one, {}, writers=("w",))
        short = _with_ranges(window, PartitionRange(0, 0, 6, 7))
        with pytest.raises(DataLossError, match=rf"{one}-0 offsets 0 to 6 hold 6 records of their writer, its manifest says 7: 1 are gone"):
            values_of(config, short)
        assert values_of(config, _with_ranges(window, PartitionRange(0, 0, 6, 6))) == list("abcdef")
        delete_records(admin, one, 2)
        with pytest.raises(DataLossError, match="gone"):
            values_of(config, _with_ranges(window, PartitionRange(0, 0, 6, 6)))

    @pytest.mark.parametrize("accept_loss", [False, True])
    def test_with_more_records_than_it_says_is_an_error_whatever_loss_is_accepted(
        self, config: KafkaConfig, bootstrap: str, one: str, accept_loss: bool
    ) -> None:
        self.write(bootstrap, one, "w", "abcdef")
        window = _with_ranges(window_over(config, one, {}, writers=("w",)), PartitionRange(0, 0, 6, 5))
        told = rf"{one}-0 offsets 0 to 6 hold 6 records that name their writer, its manifest says 5: 1 are somebody else's"
        with reading(config, window, accept_loss=accept_loss) as reader:
            reader.seek({}, {})
            with pytest.raises(ForgedRecordError, match=told):
                drain(reader)

    def test_with_fewer_records_is_counted_exactly_where_the_loss_is_accepted(
        self, config: KafkaConfig, bootstrap: str, admin: AdminClient, topic: TopicFactory
    ) -> None:
        two = topic(partitions=2)
        self.write(bootstrap, two, "w", "ab")
        self.write(bootstrap, two, "v", "xyz")
        self.write(bootstrap, two, "w", "cdef")
        Writer(bootstrap, two).write("ghi", partition=1, headers=[(WRITER_HEADER, "w")])
        window = _with_ranges(window_over(config, two, {}, writers=("w",)), PartitionRange(0, 0, 9, 6), PartitionRange(1, 0, 3, 3))
        delete_records(admin, two, 6)
        delete_records(admin, two, 3, partition=1)
        with reading(config, window, accept_loss=True) as reader:
            reader.seek({}, {})
            assert drain(reader) == ["d", "e", "f"]
            assert reader.lost_records == 3 + 3

    def test_is_complete_for_a_reader_that_resumes(self, config: KafkaConfig, bootstrap: str, one: str) -> None:
        self.write(bootstrap, one, "w", "abcdef")
        window = _with_ranges(window_over(config, one, {}, writers=("w",)), PartitionRange(0, 0, 6, 6))
        with reading(config, window) as reader:
            reader.seek({0: 2}, {0: 2})
            assert drain(reader) == list("cdef")
        with reading(config, window) as reader:
            reader.seek({0: 2}, {0: 1})
            with pytest.raises(DataLossError, match="hold 5 records"):
                drain(reader)


class TestARun:
    """What the runtime makes of it, in its result."""

    def test_fails_where_a_manifest_is_read_after_retention_took_some_of_it(self, runs: Runs) -> None:
        window = runs.filled(20, partitions=2)
        first = runs.transform(runs.run(window, runs.topic("mid", partitions=2)))
        assert first.counts.produced == 20
        delete_records(runs.admin, first.manifest.topic, 3)  # type: ignore[union-attr]
        again = runs.run(merge_results([first]), runs.topic("out"), stage="next")
        with pytest.raises(DataLossError, match="are gone"):
            runs.transform(again)
        result = runs.transform(msgspec.structs.replace(again, accept_loss=True))
        assert (result.counts.consumed, result.counts.lost) == (17, 3)
        assert any(note.startswith("lost: ") for note in result.notes)

    @pytest.mark.parametrize("accept_loss", [False, True])
    def test_over_a_recreated_topic_fails_or_says_what_is_lost(self, runs: Runs, accept_loss: bool) -> None:
        window = runs.filled(12, partitions=2)
        recreate(runs.admin, window.topic, 2)
        runs.produce(window.topic, [b'{"event_id": "another"}'] * 12)
        run = runs.run(window, runs.topic("out"), accept_loss=accept_loss)
        if not accept_loss:
            with pytest.raises(DataLossError, match="deleted and created again"):
                runs.transform(run)
            return
        result = runs.transform(run)
        assert (result.counts.consumed, result.counts.lost) == (0, 12)

    def test_that_resumes_still_says_what_its_first_attempt_lost(self, runs: Runs) -> None:
        window = runs.filled(30, partitions=1)
        delete_records(runs.admin, window.topic, 5)
        run = runs.run(window, runs.topic("out"), accept_loss=True, chunk_records=10)
        runs.killed(run, "chunk.after-commit=kill@1")
        result = runs.finished(run)
        assert result.resumed
        assert (result.counts.consumed, result.counts.lost) == (25, 5)

    def test_out_of_time_is_a_failure_and_no_partial_success(self, runs: Runs, bootstrap: str) -> None:
        window = runs.filled(3, partitions=1)
        transaction = Transaction(bootstrap, window.topic, "open")
        transaction.write(['{"event_id": 4}'])
        run = runs.run(runs.window(window.topic), runs.topic("out"), deadline_seconds=1.0)
        with pytest.raises(DeadlineError, match="waiting for the transaction to end"):
            runs.transform(run)
        transaction.commit()
        assert runs.transform(msgspec.structs.replace(run, deadline_seconds=30.0)).counts.consumed == 4


def test_records_before_the_intervals_start_are_counted_as_late(config: KafkaConfig, bootstrap: str, topic: TopicFactory) -> None:
    name = topic(partitions=1, message_timestamp_type="CreateTime")
    writer = Writer(bootstrap, name)
    writer.write("ab", hours_ago(0.5))
    writer.write("c", hours_ago(5))
    with reading(config, window_over(config, name, {0: 3}, interval=hour(1))) as reader:
        reader.seek({}, {})
        assert drain(reader) == ["a", "b", "c"]
        assert reader.take_figures() == (1, 0)


def test_being_asked_to_stop_ends_a_batch_without_an_error(config: KafkaConfig, bootstrap: str, one: str) -> None:
    Writer(bootstrap, one).write("a")
    with reading(config, window_over(config, one, {0: 5})) as reader:
        reader.seek({}, {})
        assert reader.batch(10, time.monotonic() + 10, lambda: True) == []
        assert not reader.done


@pytest.mark.slow
def test_a_broker_that_cannot_be_reached_is_one_clear_line() -> None:
    address = f"127.0.0.1:{free_port('127.0.0.1')}"
    with pytest.raises(UnavailableError, match=rf"no broker answered at {address} within 1 s; is it up"):
        Cluster(KafkaConfig(address), timeout=1).topic("t")


def _with_ranges(window: Window, *ranges: PartitionRange) -> Window:
    return msgspec.structs.replace(window, ranges=ranges)
