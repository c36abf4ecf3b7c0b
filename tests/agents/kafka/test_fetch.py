"""Every record once and in order, in bounded pieces, whatever the batches in the log expand to."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_agents.errors import DataLossError, UnreadableBatchError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.fetch import LargeMessage, fetch_limits
from factory_agents.kafka.messages import Message
from factory_agents.kafka.reader import WindowReader
from factory_agents.protocol import PartitionRange, Window
from tests.conftest import TopicFactory
from tests.support.log import reading, window_over
from tests.support.raw_records import Raw, batch, put

MB = 1 << 20
AT_ONCE = 16 * MB


@pytest.fixture
def config(bootstrap: str) -> KafkaConfig:
    return KafkaConfig(bootstrap)


def batches_of(reader: WindowReader, size: int = 10_000) -> list[list[Message]]:
    found: list[list[Message]] = []
    reader.seek({}, {})
    until = time.monotonic() + 60
    while not reader.done:
        if got := reader.batch(size, until, lambda: False):
            found.append(got)
    reader.check_topic()
    return found


def flat(batches: Sequence[Sequence[Message]]) -> list[Message]:
    return [m for messages in batches for m in messages]


@pytest.mark.parametrize("seed", range(4))
def test_batches_of_every_size_give_each_record_once_and_in_order(
    seed: int, config: KafkaConfig, bootstrap: str, topic: TopicFactory
) -> None:
    chance = random.Random(seed)
    name = topic(partitions=2, max_message_bytes=4 * MB)
    expected: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    for n in range(60):
        partition = chance.randrange(2)
        sizes = [chance.choice((1, 1, 300, 20_000, 900_000, 3 * MB)) for _ in range(chance.choice((1, 1, 2, 15)))]
        records = [Raw(json.dumps([n, i]).encode().ljust(size)) for i, size in enumerate(sizes)]
        put(bootstrap, name, partition, batch(records, chance.choice(("zstd", "gzip", "none")) if sum(sizes) < 100_000 else "zstd"))
        expected[partition] += [(n, i) for i in range(len(sizes))]
    window = window_over(config, name, {p: len(there) for p, there in expected.items()})
    with reading(config, window) as reader:
        batches = batches_of(reader, chance.choice((7, 100, 10_000)))
    for p, there in expected.items():
        records_of = [m for m in flat(batches) if m.partition() == p]
        assert [m.offset() for m in records_of] == list(range(len(there)))
        assert [tuple(json.loads((m.value() or b"").strip())) for m in records_of] == there
    assert max(sum(map(len, messages)) for messages in batches) <= AT_ONCE


def test_a_record_larger_than_a_producer_could_write_comes_alone_and_without_its_value(
    config: KafkaConfig, bootstrap: str, topic: TopicFactory
) -> None:
    name = topic(partitions=1)
    large = b"x" * (40 * MB)
    headers = [(b"trace", b"1")]
    put(bootstrap, name, 0, batch([Raw(b"1"), Raw(large, b"k", headers), Raw(b"3"), Raw(b"4", b"k" * (20 * MB))], "zstd"))
    with reading(config, window_over(config, name, {0: 4})) as reader:
        batches = batches_of(reader)
    assert [len(messages) for messages in batches] == [1, 1, 1, 1]
    first, second = batches[1][0], batches[3][0]
    assert isinstance(first, LargeMessage)
    assert isinstance(second, LargeMessage)
    assert (first.offset(), first.key(), first.value(), first.headers()) == (1, b"k", b"", [("trace", b"1")])
    assert (first.digest.size, len(first.digest.sha256), first.digest.prefix) == (40 * MB, 64, b"x" * 1000)
    assert (second.offset(), second.key()) == (3, None)
    with reading(KafkaConfig(bootstrap, {"message.max.bytes": "50000000"}), window_over(config, name, {0: 4})) as reader:
        assert [m.value() == large for m in flat(batches_of(reader))] == [False, True, False, False]


@cache
def bomb() -> bytes:
    """Three records, one of 120 MB."""
    return batch([Raw(b"first"), Raw(b"x" * (120 * MB)), Raw(b"third")], "zstd")


@cache
def longer_bomb() -> bytes:
    """Ten records of 12 MB."""
    return batch([Raw(b"y" * (12 * MB))] * 10, "zstd")


class TestABatchThatCannotBeRead:
    @pytest.fixture
    def name(self, bootstrap: str, topic: TopicFactory) -> str:
        """Offsets 1 to 3 and 5 to 7 are bombs, 8 to 17 are one that a window may begin or end in."""
        name = topic(partitions=1)
        put(bootstrap, name, 0, batch([Raw(b"0")]), bomb(), batch([Raw(b"4")]), bomb(), longer_bomb(), batch([Raw(b"18")]))
        return name

    def test_is_told_by_its_offsets_and_what_to_do(self, config: KafkaConfig, name: str) -> None:
        began = time.monotonic()
        with (
            reading(config, window_over(config, name, {0: 19})) as reader,
            pytest.raises(
                UnreadableBatchError, match=r"-0 offsets 1 to 4 cannot be read: .* more than 100,000,000 bytes.*--accept-loss"
            ) as told,
        ):
            batches_of(reader)
        assert not told.value.retriable
        assert time.monotonic() - began < 10

    def test_is_passed_over_where_that_loss_is_accepted_and_recorded(self, config: KafkaConfig, name: str) -> None:
        with reading(config, window_over(config, name, {0: 19}), accept_loss=True) as reader:
            assert [m.value() for m in flat(batches_of(reader))] == [b"0", b"4", b"18"]
            assert reader.lost == [PartitionRange(0, 1, 4), PartitionRange(0, 5, 8), PartitionRange(0, 8, 18)]
            assert reader.lost_records == 16

    @pytest.mark.parametrize(("start", "end", "lost"), [(12, 19, (12, 18)), (4, 12, (8, 12)), (9, 11, (9, 11))])
    def test_is_lost_as_far_as_it_is_in_the_window(
        self, config: KafkaConfig, name: str, start: int, end: int, lost: tuple[int, int]
    ) -> None:
        window = window_over(config, name, {0: 19})
        window = Window(window.pipeline, window.topic, window.topic_id, (PartitionRange(0, start, end),), name="part")
        with reading(config, window, accept_loss=True) as reader:
            batches_of(reader)
            assert reader.lost[-1] == PartitionRange(0, *lost)

    def test_of_others_is_no_loss_where_a_manifest_counts(self, config: KafkaConfig, bootstrap: str, topic: TopicFactory) -> None:
        name = topic(partitions=1)
        own = [(b"factory-writer", b"s/f/1")]
        put(bootstrap, name, 0, batch([Raw(b"0", None, own)]), bomb(), batch([Raw(b"4", None, own)]))
        facts = window_over(config, name, {0: 5})
        window = Window("p", name, facts.topic_id, (PartitionRange(0, 0, 5, 2),), name="w", writers=("s/f/1",))
        with reading(config, window) as reader:
            assert [m.value() for m in flat(batches_of(reader))] == [b"0", b"4"]
        short = Window("p", name, facts.topic_id, (PartitionRange(0, 0, 5, 3),), name="w", writers=("s/f/1",))
        with reading(config, short) as reader, pytest.raises(DataLossError, match="its manifest says 3"):
            batches_of(reader)

    def test_is_read_where_the_limit_is_raised(self, bootstrap: str, name: str) -> None:
        config = KafkaConfig(bootstrap, {"receive.message.max.bytes": "200000000"})
        with reading(config, window_over(config, name, {0: 19})) as reader:
            assert [m.offset() for m in flat(batches_of(reader))] == list(range(19))


@given(
    largest=st.integers(0, 200 * MB),
    own=st.fixed_dictionaries({}, optional={k: st.integers(1000, 60 * MB) for k in ("fetch.max.bytes", "fetch.message.max.bytes")}),
)
def test_limits_fit_the_topic_and_each_other(largest: int, own: dict[str, int]) -> None:
    limits = fetch_limits({k: str(v) for k, v in own.items()}, largest)
    answer = limits["fetch_max_bytes"]
    assert limits["receive_message_max_bytes"] >= max(largest, answer + 512)
    assert limits["message_max_bytes"] <= answer
    assert answer == own.get("fetch.max.bytes", answer)
    assert ("fetch_message_max_bytes" in limits) == ("fetch.message.max.bytes" not in own)
    if not own:
        # an answer, and one batch, expanded as far as zstd can
        assert answer * (10_300 if limits["receive_message_max_bytes"] == 1_250_000 else 32_768) < 680 * MB
