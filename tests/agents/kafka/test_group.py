"""Where a member of a group begins to read: from its word, as long as that is about this topic and what it names is there."""

from __future__ import annotations

import threading

import pytest

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.group import GroupReader, Start, decide_start
from factory_agents.sandbox.processes import wait_until
from tests.support.runs import Runs
from tests.support.waiting import wait_for

THIS, OTHER = "topic-id:this", "topic-id:other"


@pytest.mark.parametrize(
    ("offset", "metadata", "log_start", "more", "start"),
    [
        (-1001, "", 0, {}, Start(0)),
        (-1001, "", 7, {}, Start(7)),  # nothing was read before, so nothing is lost
        (5, THIS, 0, {}, Start(5, committed=5)),
        (5, "", 0, {}, Start(5)),  # by an older release, or set by hand
        (5, "a note of somebody else's", 0, {}, Start(5)),
        (5, THIS, 5, {}, Start(5, committed=5)),
        (5, THIS, 9, {}, Start(9, lost="offsets 5 to 9 were deleted by retention", records=4)),
        (5, OTHER, 0, {}, Start(0, lost="the topic was deleted and created again")),
        (5, OTHER, 9, {}, Start(9, lost="the topic was deleted and created again")),
        (5, "", 0, {"replaced": True}, Start(0, lost="the topic was deleted and created again")),
        (5, THIS, 0, {"replaced": True}, Start(5, committed=5)),
        (5, THIS, 0, {"end": 5}, Start(5, committed=5)),
        (5, THIS, 0, {"end": 3}, Start(3, lost="the log ends at 3, the group stands at 5")),
        (5, "", 1, {"end": 3}, Start(1, lost="the log ends at 3, the group stands at 5")),
    ],
)
def test_a_partition_is_read_from_where_the_group_stands(
    offset: int, metadata: str, log_start: int, more: dict[str, int], start: Start
) -> None:
    assert decide_start(offset, metadata, "this", log_start, **more) == start  # type: ignore[arg-type]


@pytest.mark.parts
def test_a_member_without_partitions_that_closes_while_the_group_forms_has_left_it(runs: Runs) -> None:
    config, topic, group = runs.configured(session_timeout_ms=45_000), runs.topic("in", partitions=2), f"{runs.prefix}.g"

    def stable() -> bool:
        found = runs.cluster.group(group)
        return found is not None and found.members == 1 and len(found.assigned) == 2

    first = member(config, runs, topic, group)
    ended = threading.Event()

    def poll() -> None:
        while not ended.is_set():
            first.idle(0.05)

    polling = threading.Thread(target=poll)
    polling.start()
    try:
        for seconds in (0.2, 0.4, 0.6, 0.8):  # a client that is told its id joins with it a second later at most
            wait_for(stable, "the group to be the first one's")
            second = member(config, runs, topic, group)
            wait_until(lambda of=second: of.idle(0.02) or of.joined, 30)
            second.idle(seconds)
            second.close()
        wait_for(stable, "the group to be the first one's", 20)
    finally:
        ended.set()
        polling.join()
        first.close()


def member(config: KafkaConfig, runs: Runs, topic: str, group: str) -> GroupReader:
    reader = GroupReader(config, runs.cluster, topic, group)
    reader.subscribe(came=lambda _: None, going=lambda _: None, gone=lambda _: None)
    return reader
