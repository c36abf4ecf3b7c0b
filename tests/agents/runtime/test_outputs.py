"""Where records go: the partition, the headers, the dead-letter topic and the manifest's bounds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka.admin import ConfigResource, ResourceType

from factory_agents.errors import ConfigurationError
from factory_agents.kafka.writer import TransactionalWriter
from factory_agents.protocol import Counts
from factory_agents.runtime.agents import Reject
from factory_agents.runtime.outputs import Origin, Outputs
from tests.support.runs import Runs


class Message:
    """An input record."""

    def __init__(self, partition: int = 0, key: bytes | None = None, headers: Any = None, value: bytes | None = b"{}") -> None:
        self._partition, self._key, self._headers, self._value = partition, key, headers, value

    def topic(self) -> str:
        return "in"

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return 5

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> Any:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return (1, 1000)


@pytest.fixture
def writer(runs: Runs) -> Iterator[TransactionalWriter]:
    made = TransactionalWriter(runs.config, f"{runs.prefix}.t")
    made.open(time.monotonic() + 60)
    yield made
    made.abort()


def outputs(runs: Runs, writer: TransactionalWriter, out: str, input_partitions: int = 4, **more: Any) -> Outputs:
    made = Outputs(
        runs.cluster,
        writer,
        Origin("p", "s", "a", "1", "w", "in", input_partitions=input_partitions),
        output=out,
        dead=f"{out}.dead" if out else "",
        **more,
    )
    made.resolve()
    made.set_writer("s/f/1")
    return made


def commit(writer: TransactionalWriter) -> None:
    writer.flush(time.monotonic() + 30)
    writer.commit(time.monotonic() + 30)


def test_as_many_partitions_keep_each_record_where_it_was(runs: Runs, writer: TransactionalWriter) -> None:
    made = outputs(runs, writer, runs.topic("out"))
    made.put([Message(p, b"same key") for p in range(4)], [b"{}"] * 4, Counts())  # type: ignore[misc]
    commit(writer)
    assert sorted(r.partition for r in runs.everything(f"{runs.prefix}.out")) == [0, 1, 2, 3]


def test_other_numbers_of_partitions_or_changed_keys_follow_the_key(runs: Runs, writer: TransactionalWriter) -> None:
    made = outputs(runs, writer, runs.topic("out"), input_partitions=3)
    made.put([Message(p, b"same key") for p in range(3)], [b"{}"] * 3, Counts())  # type: ignore[misc]
    made.put([Message(p) for p in range(3)], [[(b"another", b"{}")], (b"another", b"{}"), b"{}"], Counts())  # type: ignore[list-item]
    commit(writer)
    records = runs.everything(f"{runs.prefix}.out")
    assert len({r.partition for r in records if r.key == b"same key"}) == 1
    assert len({r.partition for r in records if r.key == b"another"}) == 1
    assert {r.partition for r in records if r.key is None} == {2}


def test_a_partition_that_only_the_input_has_is_no_error(runs: Runs, writer: TransactionalWriter) -> None:
    made = outputs(runs, writer, runs.topic("out"), input_partitions=4)
    made.put([Message(6)], [b"{}"], Counts())
    commit(writer)
    assert [r.partition for r in runs.everything(f"{runs.prefix}.out")] == [2]


def test_bounds_hold_what_was_sent_and_grow_with_each_chunk(runs: Runs, writer: TransactionalWriter) -> None:
    made = outputs(runs, writer, runs.topic("out"))
    bounds: Any = {}
    for n in (3, 2):
        made.put([Message(1)] * n, [b"{}"] * n, Counts())
        writer.flush(time.monotonic() + 30)
        bounds = made.bounds(made.output, bounds)
        writer.commit(time.monotonic() + 30)
        made.forget()
    assert bounds == {1: (0, 6, 5)}  # five records, and the first transaction's marker between them
    manifest = made.manifest(bounds, "s/f/1")
    assert len(runs.manifest(manifest)) == 5


def test_the_dead_letter_topic_is_made_when_it_is_first_needed(runs: Runs, writer: TransactionalWriter) -> None:
    out = runs.topic("out", partitions=3)
    made = outputs(runs, writer, out)
    assert runs.cluster.find(f"{out}.dead") is None
    counts = Counts()
    made.put([Message(2, b"k", [("a", b"1")])], [Reject("why", rule="r")], counts)
    commit(writer)
    assert (counts.rejected, counts.consumed) == (1, 1)
    facts = runs.cluster.topic(f"{out}.dead")
    assert facts.partitions == 3
    settings = runs.cluster.settings(facts.name)
    assert (settings["retention.ms"], settings["max.message.bytes"]) == ("2592000000", "20971520")
    resource = ConfigResource(ResourceType.TOPIC, facts.name)
    policy = runs.admin.describe_configs([resource])[resource].result()["cleanup.policy"]
    assert (policy.value, policy.is_default) == ("delete", False)  # the broker's own default may be another
    runs.admin.delete_topics([facts.name])[facts.name].result()


def test_a_dry_run_shows_and_writes_nothing(runs: Runs, writer: TransactionalWriter) -> None:
    shown: list[tuple[str, bytes | None, bytes | None]] = []
    out = runs.topic("out")
    made = outputs(runs, writer, out, show=lambda *record: shown.append(record))
    made.put([Message(0, b"k"), Message(0, b"p", value=b"poison")], [b"1", Reject("why")], Counts())
    assert shown == [(out, b"k", b"1")]
    assert [(r.error, r.first) for r in made.reasons.told()] == [("why", "in-0@5")]
    assert writer.open_since is None
    assert made.manifest({}, "w") is None


def test_an_event_without_an_output_topic_is_refused_with_the_agents_name(runs: Runs, writer: TransactionalWriter) -> None:
    made = outputs(runs, writer, "")
    with pytest.raises(ConfigurationError, match="agent 'a' gives events, but no output topic is named"):
        made.put([Message()], [b"{}"], Counts())


def test_dead_letters_need_some_topics_name(runs: Runs, writer: TransactionalWriter) -> None:
    made = Outputs(runs.cluster, writer, Origin("p", "s", "a", "1"), output="", dead="")
    with pytest.raises(ConfigurationError, match="no output topic and no dead-letter topic is named"):
        _ = made.dead_name
