"""Live agents as the seed design starts them: in a consumer group, exactly once, until they are told to stop."""

from __future__ import annotations

import json
import signal
import sys
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Producer, TopicPartition

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.lag import group_lag
from tests.support.commands import ROOT, Command, clean_environment
from tests.support.runs import Rec, Runs, events
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from factory_agents.sandbox import Sandbox

ENRICH = (sys.executable, "-m", "factory_agents.enrich")
PATIENCE = ("-X", "session.timeout.ms=6000", "-X", "heartbeat.interval.ms=1000", "-X", "transaction.timeout.ms=6000")


def ids(records: list[Rec]) -> list[int]:
    return sorted(r.id for r in records)


def topics(runs: Runs, partitions: int = 4) -> tuple[str, str, str]:
    """Input, output, and a group of this test's own."""
    return runs.topic("in", partitions=partitions), runs.topic("out", partitions=partitions), f"{runs.prefix}.group"


@pytest.mark.slow
def test_the_seed_designs_smoke_test(own_sandbox: Sandbox) -> None:
    info = own_sandbox.info()
    factory = Command(ROOT, clean_environment(**info.env()))
    factory.ok("topics", "apply")
    live = factory.start("--in-topic", "raw_events", "--out-topic", "enriched_events", program=ENRICH)
    live.wait_assigned()
    producer = Producer({"bootstrap.servers": info.bootstrap})
    producer.produce("raw_events", b'{"event_id":"test-123","payload":"sample"}')
    assert producer.flush(60) == 0
    reader = KafkaConfig(info.bootstrap).consumer(auto_offset_reset="earliest")
    reader.subscribe(["enriched_events"])
    found: list[bytes] = []

    def appeared() -> bool:
        message = reader.poll(0.1)
        if message is not None and message.error() is None:
            found.append(message.value() or b"")
        return bool(found)

    wait_for(appeared, "the enriched event")
    reader.close()
    assert [json.loads(value) for value in found] == [{"event_id": "test-123", "payload": "sample", "enriched": True}]
    stopped = live.stop(signal.SIGTERM)
    assert stopped.code == 0, stopped.err
    assert stopped.data["counts"] == {"consumed": 1, "forwarded": 1, "produced": 1}
    factory.close()


def test_a_live_agent_ends_at_sigterm_with_its_group_at_the_end(factory: Command, runs: Runs) -> None:
    source, target, group = topics(runs)
    runs.produce(source, [*events(100), b"no json"])
    live = factory.start("--group", group, program=ENRICH, INPUT_TOPIC=source, OUTPUT_TOPIC=target)
    wait_for(lambda: len(runs.everything(target)) == 100, "the enriched events")
    stopped = live.stop(signal.SIGINT)
    assert stopped.code == 0, stopped.err
    assert stopped.data["counts"] == {"consumed": 101, "forwarded": 100, "rejected": 1, "produced": 100}
    assert all(row["lag"] == 0 for row in factory.ok("lag", group).data)
    (letter,) = runs.everything(f"{target}.dead")
    assert letter.value == b"no json"


@pytest.mark.slow
@pytest.mark.parametrize(
    "failpoint",
    [
        "live.before-offsets=kill@2",
        pytest.param("chunk.before-commit=kill@2", marks=pytest.mark.soak),
        pytest.param("chunk.after-commit=kill@2", marks=pytest.mark.soak),
    ],
)
def test_a_live_agent_that_was_killed_goes_on_exactly_once(factory: Command, runs: Runs, failpoint: str) -> None:
    source, target, group = topics(runs)
    command = ("--in-topic", source, "--out-topic", target, "--group", group, *PATIENCE)
    killed = factory.start(*command, program=ENRICH, FACTORY_FAILPOINTS=failpoint)
    killed.wait_assigned()
    for start in range(0, 1000, 100):
        runs.produce(source, events(100, start=start))
        if killed.process.poll() is None:
            wait_for(lambda: killed.process.poll() is not None or not lag(runs, group), "the events so far")
    assert killed.wait().code == -signal.SIGKILL
    again = factory.start(*command, program=ENRICH)
    wait_for(lambda: len(runs.everything(target)) >= 1000, "all events", patience=60)
    assert again.stop().code == 0
    assert ids(runs.everything(target)) == list(range(1000))


def lag(runs: Runs, group: str) -> int:
    return sum(r.lag for r in group_lag(runs.config, group))


@pytest.mark.slow
def test_two_live_members_share_the_partitions_and_one_takes_over_when_the_other_leaves(factory: Command, runs: Runs) -> None:
    source, target, group = topics(runs)
    command = ("--in-topic", source, "--out-topic", target, "--group", group, *PATIENCE)
    one = factory.start(*command, program=ENRICH)
    one.wait_assigned({0, 1, 2, 3})
    runs.produce(source, events(500))
    two = factory.start(*command, program=ENRICH)
    two.wait_assigned()
    wait_for(lambda: len(two.partitions) == 2, "the second member's share")
    runs.produce(source, events(500, start=500))
    wait_for(lambda: len(runs.everything(target)) >= 1000, "the events of both")
    left = one.stop()
    assert left.code == 0, left.err
    two.wait_assigned({0, 1, 2, 3})
    runs.produce(source, events(500, start=1000))
    wait_for(lambda: len(runs.everything(target)) >= 1500, "the rest")
    rest = two.stop()
    assert rest.code == 0, rest.err
    assert ids(runs.everything(target)) == list(range(1500))
    shares = [done.data["counts"]["consumed"] for done in (left, rest)]
    assert sum(shares) == 1500
    assert min(shares) >= 500


def test_validate_runs_live_and_dead_letters_what_breaks_the_contract(factory: Command, runs: Runs) -> None:
    source, target, group = topics(runs)
    contract = "name: c\nid: event_id\nschema: {type: object, properties: {event_id: {type: integer, maximum: 3}}, required: [event_id]}\n"
    (factory.cwd / "c.yaml").write_text(contract)
    runs.produce(source, events(6))
    module = (sys.executable, "-m", "factory_agents.validate")
    live = factory.start("--in-topic", source, "--out-topic", target, "--group", group, "--contract", "c.yaml", program=module)
    wait_for(lambda: len(runs.everything(target)) == 4, "the valid events")
    stopped = live.stop()
    assert stopped.code == 0, stopped.err
    assert stopped.data["counts"] == {"consumed": 6, "forwarded": 4, "rejected": 2, "produced": 4}
    assert ids(runs.everything(f"{target}.dead")) == [4, 5]


def test_events_without_a_key_go_into_a_compacted_topic_under_their_id(factory: Command, runs: Runs) -> None:
    source, group = runs.topic("in", partitions=2), f"{runs.prefix}.group"
    target = runs.topic("out", partitions=2, cleanup_policy="compact,delete", min_compaction_lag_ms=604_800_000)
    runs.produce(source, [b'{"event_id":"a"}', b'{"other":1}'], partition=1)
    live = factory.start("--in-topic", source, "--out-topic", target, "--group", group, program=ENRICH)
    wait_for(lambda: len(runs.everything(target)) == 2, "the events")
    assert live.stop().code == 0
    assert {r.key for r in runs.everything(target)} == {b"a", f"{source}-1-1".encode()}


@pytest.mark.slow
def test_what_one_of_three_live_publishers_planned_before_it_was_killed_a_peer_publishes(
    factory: Command, runs: Runs, database_url: str, prefix: str
) -> None:
    source, _, group = topics(runs)
    (factory.cwd / "c.yaml").write_text(PUBLISHED)
    table = prefix.replace("-", "_")
    module = (sys.executable, "-m", "factory_agents.publish")
    command = ("--in-topic", source, "--group", group, "--contract", "c.yaml", "--param", f"table={table}", "-X", "session.timeout.ms=6000")
    runs.produce(source, events(100))
    killed = factory.start(*command, program=module, DATABASE_URL=database_url, FACTORY_FAILPOINTS="plan.after-commit=kill")
    peers = [factory.start(*command, program=module, DATABASE_URL=database_url) for _ in range(2)]
    written = 0
    while killed.process.poll() is None:  # until it is its turn
        wait_for(lambda: killed.process.poll() is not None or rows(database_url, table) == list(range(100 + written)), "the events")  # noqa: B023
        written += 10
        runs.produce(source, events(10, start=90 + written))
    assert killed.wait().code == -signal.SIGKILL
    wait_for(lambda: rows(database_url, table) == list(range(100 + written)), "all events", patience=60)
    for peer in peers:
        stopped = peer.stop()
        assert stopped.code == 0, stopped.err


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["enrich", "publish"])
def test_a_live_agent_down_for_longer_than_retention_goes_on_with_the_flag_that_its_error_names(
    factory: Command, runs: Runs, database_url: str, prefix: str, agent: str
) -> None:
    source, target, group = topics(runs, partitions=1)
    (factory.cwd / "c.yaml").write_text(PUBLISHED)
    table = prefix.replace("-", "_")
    more = ("--out-topic", target) if agent == "enrich" else ("--contract", "c.yaml", "--param", f"table={table}")
    command = ("--in-topic", source, "--group", group, *more)
    module = (sys.executable, "-m", f"factory_agents.{agent}")

    def done() -> list[int]:
        return ids(runs.everything(target)) if agent == "enrich" else rows(database_url, table)

    runs.produce(source, events(20))
    first = factory.start(*command, program=module, DATABASE_URL=database_url)
    wait_for(lambda: done() == list(range(20)), "the first events")
    assert first.stop().code == 0
    runs.produce(source, events(40, start=20))
    runs.admin.delete_records([TopicPartition(source, 0, 30)])[TopicPartition(source, 0)].result()
    refused = factory.start(*command, program=module, DATABASE_URL=database_url).wait()
    assert refused.code == 1
    assert "--accept-loss" in refused.err
    again = factory.start(*command, "--accept-loss", program=module, DATABASE_URL=database_url)
    wait_for(lambda: len(done()) >= 50 or again.process.poll() is not None, "the rest")
    stopped = again.stop()
    assert stopped.code == 0, stopped.err
    assert stopped.data["counts"]["lost"] == 10
    assert done() == [*range(20), *range(30, 60)]


PUBLISHED = (
    "name: c\nid: event_id\nschema: {type: object, properties: {event_id: {type: integer}, text: {type: string}}, required: [event_id]}\n"
)


def rows(database_url: str, table: str) -> list[int]:
    import psycopg

    with psycopg.connect(database_url) as connection:
        if connection.execute("SELECT to_regclass(%s)", [table]).fetchone() == (None,):
            return []
        return [row[0] for row in connection.execute(f"SELECT event_id FROM {table} ORDER BY 1").fetchall()]  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    "failpoint", ["plan.after-commit=kill@2", pytest.param("sink.before-commit=kill@2", marks=pytest.mark.soak), "sink.after-commit=kill@2"]
)
def test_a_live_publisher_that_was_killed_goes_on_exactly_once(
    factory: Command, runs: Runs, database_url: str, prefix: str, failpoint: str
) -> None:
    source, _, group = topics(runs)
    (factory.cwd / "c.yaml").write_text(PUBLISHED)
    table = prefix.replace("-", "_")
    module = (sys.executable, "-m", "factory_agents.publish")
    command = ("--in-topic", source, "--group", group, "--contract", "c.yaml", "--param", f"table={table}")
    killed = factory.start(*command, program=module, DATABASE_URL=database_url, FACTORY_FAILPOINTS=failpoint)
    runs.produce(source, events(100))
    wait_for(lambda: len(rows(database_url, table)) == 100, "the first events")
    runs.produce(source, events(100, start=100))
    assert killed.wait().code == -signal.SIGKILL
    again = factory.start(*command, program=module, DATABASE_URL=database_url)
    again.wait_logged('"live"')
    wait_for(lambda: len(rows(database_url, table)) == 200, "all events", patience=60)
    assert again.stop().code == 0
    assert rows(database_url, table) == list(range(200))
