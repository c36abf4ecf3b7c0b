"""The window reader over random logs: ranges that tile give each committed record exactly once, resumed anywhere."""

from __future__ import annotations

import itertools
import random
import time

import msgspec
import pytest

from factory_agents.errors import WindowError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.reader import WRITER_HEADER, WindowReader
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import PartitionRange
from tests.conftest import TopicFactory
from tests.support.log import Transaction, Writer, drain, reading, window_over


@pytest.fixture
def config(bootstrap: str) -> KafkaConfig:
    return KafkaConfig(bootstrap)


def random_log(bootstrap: str, topic: str, chance: random.Random) -> list[str]:
    """Single records and transactions that commit, abort and interleave, over two partitions; what is committed of it."""
    committed: list[str] = []
    plain = Writer(bootstrap, topic)
    open_ones: list[tuple[Transaction, list[str]]] = []
    for step in range(14):
        values = [f"{step}.{n}" for n in range(chance.randint(1, 3))]
        what = chance.random()
        if what < 0.3:
            plain.write(values, partition=chance.randint(0, 1))
            committed += values
        elif what < 0.6 or not open_ones:
            transaction = Transaction(bootstrap, topic, f"{step}")
            transaction.write(values, partition=chance.randint(0, 1))
            open_ones.append((transaction, values))
        else:
            transaction, theirs = open_ones.pop(chance.randrange(len(open_ones)))
            transaction.write(values, partition=chance.randint(0, 1))
            if chance.random() < 0.5:
                transaction.commit()
                committed += theirs + values
            else:
                transaction.abort()
    for transaction, _ in open_ones:
        transaction.abort()
    return sorted(committed)


@pytest.mark.parametrize("seed", range(3))
def test_ranges_that_tile_give_each_committed_record_exactly_once(
    seed: int, config: KafkaConfig, bootstrap: str, topic: TopicFactory
) -> None:
    chance, name = random.Random(seed), topic(partitions=2)
    committed = random_log(bootstrap, name, chance)
    ends = Cluster(config).high_watermark(name, [0, 1])
    cuts = [{p: min(end, chance.randint(0, end)) for p, end in ends.items()} for _ in range(4)]
    edges = [{p: sorted([0, end, *(cut[p] for cut in cuts)])[i] for p, end in ends.items()} for i in range(6)]
    got: list[str] = []
    for start, end in itertools.pairwise(edges):
        ranges = tuple(PartitionRange(p, start[p], end[p]) for p in ends if start[p] < end[p])
        window = msgspec.structs.replace(window_over(config, name, {}), ranges=ranges)
        with reading(config, window) as reader:
            reader.seek({}, {})
            while not reader.done:  # a few records, then a new attempt from there
                batch = reader.batch(chance.randint(1, 4), time.monotonic() + 20, lambda: False)
                got += [(m.value() or b"").decode() for m in batch]
                reader.seek(dict(reader.positions), dict(reader.read))
    assert sorted(got) == committed


def test_a_batch_is_no_larger_than_asked_for(config: KafkaConfig, bootstrap: str, topic: TopicFactory) -> None:
    name = topic(partitions=1)
    Writer(bootstrap, name).write("abcdefg")
    with reading(config, window_over(config, name, {0: 7})) as reader:
        reader.seek({}, {})
        sizes = []
        while not reader.done:
            sizes.append(len(reader.batch(3, time.monotonic() + 20, lambda: False)))
    assert max(sizes) <= 3
    assert sum(sizes) == 7


@pytest.mark.parametrize(
    ("headers", "mine"),
    [
        ([], False),
        ([(WRITER_HEADER, "me")], True),
        ([(WRITER_HEADER, "them")], False),
        ([("other", "me")], False),
        ([("a", "b"), (WRITER_HEADER, "me"), ("c", "d")], True),
        ([(WRITER_HEADER, "me and more")], False),
    ],
)
def test_a_manifests_reader_takes_a_record_by_its_one_header(
    config: KafkaConfig, bootstrap: str, topic: TopicFactory, headers: list[tuple[str, str]], mine: bool
) -> None:
    name = topic(partitions=1)
    Writer(bootstrap, name).write(["x"], headers=headers)
    with reading(config, window_over(config, name, {0: 1}, writers=("me",))) as reader:
        reader.seek({}, {})
        assert drain(reader) == (["x"] if mine else [])
        assert reader.take_figures() == (0, 0 if mine else 1)
        assert reader.take_figures() == (0, 0), "figures are of the time since they were last taken"


def test_seek_comes_first(config: KafkaConfig, topic: TopicFactory) -> None:
    reader = WindowReader(config, Cluster(config), window_over(config, topic(), {0: 1}))
    assert reader.done
    reader._todo = {0: PartitionRange(0, 0, 1)}
    with pytest.raises(WindowError, match=r"seek\(\) comes before batch\(\)"):
        reader.batch(1, time.monotonic() + 1, lambda: False)
