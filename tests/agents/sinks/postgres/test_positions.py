"""Where a live publish stands, whoever moves what lies under it: the table, its positions, the group, the topic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import NewPartitions

from factory_agents.errors import ConfigurationError, DataLossError
from factory_agents.kafka.group import tag_of
from factory_agents.launch import run_agent_live
from factory_agents.options import AgentSettings
from factory_agents.runtime.session import RunContext
from factory_agents.sinks.postgres.positions import Stand, decide_table_start
from tests.agents.sinks.postgres.test_live import Table
from tests.support.databases import own_database
from tests.support.live_work import LiveWork, ending
from tests.support.runs import Runs, events
from tests.support.topics import create_topic
from tests.support.waiting import wait_for

_LOST = "DELETE FROM {t} WHERE event_id >= 10; UPDATE factory_positions SET position = 5 WHERE table_name = '{t}'"
"""Table and positions as they were after ten events in two partitions: restored from a dump of that time."""

_NOW = tag_of("id", "postgres:public.t:h%3A5432%2Fd@10")

STARTS = {
    "a new group": (-1, "", None, 3, 3, ""),
    "set by somebody before anything is published": (7, "", None, 3, 7, ""),
    "nothing published, past a marker": (7, tag_of("id", "postgres:public.t:h%3A5432%2Fd@0"), None, 7, 7, ""),
    "the positions are gone": (11, _NOW, None, 3, 3, ""),
    "the positions are gone, and records": (11, _NOW, None, 12, 12, "11 to 12"),
    "the group follows": (8, _NOW, Stand("id", 10, {}), 3, 8, ""),
    "past a marker that retention took": (12, _NOW, Stand("id", 10, {}), 12, 12, ""),
    "past a marker, the rows are gone": (12, _NOW, Stand("id", 10, {}, same=False), 12, 12, ""),
    "the rows are gone": (12, _NOW, Stand("id", 10, {}, same=False), 3, 3, ""),
    "the rows are gone, and records": (9, _NOW, Stand("id", 10, {}, same=False), 11, 11, "10 to 11"),
    "set back": (12, _NOW, Stand("id", 9, {}), 3, 9, ""),
    "set back before what is there": (12, _NOW, Stand("id", 9, {}), 10, 10, "9 to 10"),
    "the group was set forward": (19, "", Stand("id", 10, {}), 3, 10, ""),
    "the group was set back": (4, "", Stand("id", 10, {}), 3, 4, ""),
    "the group is forgotten": (-1, "", Stand("id", 10, {}), 3, 3, ""),
    "the group is forgotten, and records are gone": (-1, "", Stand("id", 10, {}), 11, 11, "10 to 11"),
    "the log ends before": (-1, "", Stand("id", 21, {}), 3, 3, "ends at 20"),
    "the log ends before, and before the group": (21, _NOW, Stand("id", 21, {}), 3, 20, "ends at 20"),
    "the log ends before, not before the group": (12, _NOW, Stand("id", 21, {}), 3, 12, "ends at 20"),
    "another topic": (-1, "", Stand("former", 10, {}), 0, 0, "created again"),
}


@pytest.mark.parametrize("case", STARTS)
def test_the_table_says_where_a_group_reads_on(case: str) -> None:
    offset, metadata, stand, log_start, start, lost = STARTS[case]
    decided = decide_table_start(offset, metadata, stand, "id", log_start, end=20)
    assert decided.offset == start
    assert (lost in decided.lost) if lost else not decided.lost


CHANGES = {
    "dropped": "DROP TABLE {t}",
    "truncated": "TRUNCATE {t}",
    "replaced by an empty one": "CREATE TABLE {t}_n (LIKE {t} INCLUDING ALL); DROP TABLE {t}; ALTER TABLE {t}_n RENAME TO {t}",
    "restored alone": (
        "CREATE TABLE {t}_n (LIKE {t} INCLUDING ALL); INSERT INTO {t}_n SELECT * FROM {t} WHERE event_id < 10; DROP TABLE {t};"
        "ALTER TABLE {t}_n RENAME TO {t}"
    ),
    "restored with its positions": _LOST,
    "without positions": "DELETE FROM factory_positions WHERE table_name = '{t}'; DELETE FROM {t}",
    "without the positions' table": "DROP TABLE factory_positions; DELETE FROM {t}",
}


@pytest.fixture
def table(runs: Runs, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    with own_database(database_url, "positions") as url:
        monkeypatch.setenv("DATABASE_URL", url)
        own = Table(runs, url)
        yield own
        own.connection.close()


def change(table: Table, statements: str) -> None:
    table.connection.execute(f"BEGIN; {statements}; COMMIT".replace("{t}", table.name).encode())


def published(runs: Runs, table: Table) -> str:
    """A topic of two partitions with thirty events, which a publisher has written to the table and then ended."""
    source = runs.topic("in", partitions=2)
    runs.produce(source, events(30))
    with table.publisher(source) as publisher:
        wait_for(all_of(table, 30), "the first rows")
        publisher.end()
    return source


def all_of(table: Table, n: int) -> Callable[[], bool]:
    return lambda: table.ids() == list(range(n))


def left_group(runs: Runs) -> str:
    """The group, once it has no members."""
    name = f"{runs.prefix}.group"
    wait_for(lambda: (group := runs.cluster.group(name)) is not None and not group.members, "the group to be empty")
    return name


def reset(runs: Runs, source: str, offset: int) -> None:
    """As kafka-consumer-groups --reset-offsets does."""
    group = left_group(runs)
    to = [TopicPartition(source, p, offset) for p in range(runs.cluster.topic(source).partitions)]
    runs.admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, to)])[group].result()


@pytest.mark.parametrize("how", CHANGES)
def test_a_table_that_was_changed_while_live_gets_all_its_rows_again_though_nothing_arrives(runs: Runs, table: Table, how: str) -> None:
    source = runs.topic("in", partitions=2)
    runs.produce(source, events(30))
    with table.publisher(source) as publisher:
        wait_for(all_of(table, 30), "the first rows")
        change(table, CHANGES[how])
        wait_for(lambda: publisher.error or all_of(table, 30)(), "all rows again")
        assert publisher.error is None, publisher.error
        runs.produce(source, events(10, 30))
        wait_for(all_of(table, 40), "and what came since")
        publisher.end()


@pytest.mark.parametrize("how", CHANGES)
def test_a_table_that_was_changed_between_two_starts_gets_all_its_rows_again(runs: Runs, table: Table, how: str) -> None:
    source = published(runs, table)
    change(table, CHANGES[how])
    with table.publisher(source) as second:
        wait_for(all_of(table, 30), "all rows again")
        second.end()


@pytest.mark.parametrize("offset", [0, 20])
def test_a_group_whose_offsets_were_reset_goes_on_where_the_table_stands(runs: Runs, table: Table, offset: int) -> None:
    source = published(runs, table)
    runs.produce(source, events(20, 30))
    table.connection.execute(f"UPDATE {table.name} SET text = 'changed'".encode())
    reset(runs, source, offset)
    with table.publisher(source) as second:
        wait_for(all_of(table, 50), "all rows")
        second.end()
    assert table.query("SELECT count(*) FROM {t} WHERE text = 'changed'") == [(30,)], "nothing was written twice"


def test_a_group_that_was_set_before_its_first_start_begins_there(runs: Runs, table: Table) -> None:
    source = published(runs, table)
    change(table, CHANGES["without positions"])
    reset(runs, source, 10)
    with table.publisher(source) as second:
        wait_for(lambda: table.ids() == list(range(20, 30)), "what lies past that")
        second.end()


def test_rows_that_are_deleted_stay_deleted(runs: Runs, table: Table) -> None:
    source = runs.topic("in", partitions=2)
    runs.produce(source, events(30))
    with table.publisher(source) as first:
        wait_for(all_of(table, 30), "the first rows")
        change(table, "DELETE FROM {t} WHERE event_id < 20")
        table.connection.execute(f"VACUUM FULL {table.name}".encode())
        runs.produce(source, events(10, 30))
        wait_for(lambda: table.ids() == list(range(20, 40)), "what came since")
        first.end()
    with table.publisher(source) as second:
        runs.produce(source, events(10, 40))
        wait_for(lambda: table.ids() == list(range(20, 50)), "what came since")
        second.end()


def start_to_fail(table: Table, source: str) -> BaseException:
    with table.publisher(source) as publisher:
        publisher.wait()
        assert publisher.error is not None
        return publisher.error


def test_a_position_past_the_logs_end_is_an_error_and_once_accepted_hides_no_record_that_comes(runs: Runs, table: Table) -> None:
    """A broker may lose the end of its log, and give the offsets to others."""
    source = published(runs, table)
    change(table, "UPDATE factory_positions SET position = 40")
    runs.produce(source, events(10, 30))
    error = start_to_fail(table, source)
    assert isinstance(error, DataLossError)
    assert "the log ends at 20, the table stands at 40" in str(error)
    with table.publisher(source, accept_loss=True) as second:
        wait_for(all_of(table, 40), "what came since")
        runs.produce(source, events(10, 40))
        wait_for(all_of(table, 50), "what comes")
        second.end()


@pytest.mark.parametrize("has_group", [True, False])
def test_records_that_retention_took_before_they_were_published_are_an_error(runs: Runs, table: Table, has_group: bool) -> None:
    """Also where Kafka has forgotten the group, or it stands further on than the table."""
    source = published(runs, table)
    if has_group:
        change(table, CHANGES["restored with its positions"])
    else:
        runs.produce(source, events(10, 30))
        group = left_group(runs)
        runs.admin.delete_consumer_groups([group])[group].result()
    for p in range(2):
        runs.delete_before(source, p, 8 if has_group else 18)
    error = start_to_fail(table, source)
    assert isinstance(error, DataLossError)
    assert ("offsets 5 to 8" if has_group else "offsets 15 to 18") in str(error)


def test_a_topic_that_was_created_again_between_two_starts_is_an_error(runs: Runs, table: Table) -> None:
    """Kafka forgets a group's offsets with the topic, the table does not."""
    source = published(runs, table)
    runs.admin.delete_topics([source])[source].result()
    wait_for(lambda: runs.cluster.find(source) is None, "the topic to be gone")
    create_topic(runs.admin, source, 2)
    runs.produce(source, events(10, 30))
    error = start_to_fail(table, source)
    assert isinstance(error, DataLossError)
    assert "created again" in str(error)


def test_partitions_that_are_added_while_live_are_published_too(runs: Runs, table: Table) -> None:
    source = runs.topic("in", partitions=2)
    runs.produce(source, events(30))
    with table.publisher(source) as publisher:
        wait_for(all_of(table, 30), "the first rows")
        runs.admin.create_partitions([NewPartitions(source, 4)])[source].result()
        wait_for(lambda: runs.cluster.topic(source).partitions == 4, "the partitions")
        runs.produce(source, events(20, 30))
        wait_for(all_of(table, 50), "what came since", 30)
        publisher.end()


@pytest.mark.parametrize("live", ["records", "windows"])
def test_one_group_publishes_to_one_table(runs: Runs, table: Table, live: str) -> None:
    """Two publishers of one group share what arrives: each of two tables would get a part of the rows."""
    source = runs.topic("in", partitions=2)
    runs.produce(source, events(30))
    other = Table(runs, table.url)
    other.name = f"{table.name}_other"
    table.params["live"] = live
    other.params = table.params | {"table": other.name}
    with table.publisher(source) as first:
        wait_for(all_of(table, 30), "the first rows")
        error = start_to_fail(other, source)
        assert isinstance(error, ConfigurationError)
        assert "--group" in str(error)
        first.end()
    other.connection.close()


def test_an_agent_that_writes_to_a_topic_is_refused_in_a_group_that_publishes(runs: Runs, table: Table) -> None:
    """It would have a part of the records, and the table the others."""
    source = runs.topic("in", partitions=2)
    runs.produce(source, events(30))
    group = f"{runs.prefix}.group"
    with table.publisher(source) as publisher:
        wait_for(lambda: len(runs.cluster.committed(group, [source])) == 2, "its positions")
        publisher.end()
    given = AgentSettings(in_topic=source, out_topic=runs.topic("out"), group=group, prefix=runs.prefix)
    with ending(LiveWork(lambda stop: run_agent_live(RunContext(runs.config, stop=stop), "enrich", given).counts)) as agent:
        agent.wait()
    assert isinstance(agent.error, ConfigurationError)
    assert "publishes to a table" in str(agent.error)


def test_one_group_publishes_to_one_database_unless_the_positions_move_with_the_table(
    runs: Runs, table: Table, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = runs.topic("in", partitions=2)
    runs.produce(source, events(30))
    with table.publisher(source) as first, own_database(database_url, "other") as url:
        wait_for(all_of(table, 30), "the first rows")
        other = Table(runs, url)
        monkeypatch.setenv("DATABASE_URL", url)
        error = start_to_fail(other, source)
        assert isinstance(error, ConfigurationError)
        assert f"in {urlsplit(url).path.removeprefix('/')}" in str(error).replace(f"{urlsplit(url).hostname}:{urlsplit(url).port}/", "")
        first.end()
        positions = table.query("SELECT partition, topic_id, position FROM factory_positions")
        for partition, topic_id, position in positions:
            other.connection.execute(
                "INSERT INTO factory_positions VALUES (%s, %s, %s, %s, %s, %s, '{}')",
                [other.name, f"{runs.prefix}.group", source, partition, topic_id, position],
            )
        with other.publisher(source) as second:
            wait_for(all_of(other, 30), "all rows")
            second.end()
        other.connection.close()


def test_what_ends_at_a_transactions_marker_is_not_lost_when_retention_takes_it(runs: Runs, table: Table) -> None:
    """The group stands past the marker, the table at the last record before it."""
    source = runs.topic("in", partitions=1)
    producer = runs.config.producer(f"{runs.prefix}.tx")
    producer.init_transactions(20)

    def send(start: int) -> None:
        producer.begin_transaction()
        for value in events(10, start):
            producer.produce(source, value)
        producer.commit_transaction(20)

    send(0)
    with table.publisher(source) as first:
        wait_for(all_of(table, 10), "the first rows")
        wait_for(lambda: runs.cluster.committed(f"{runs.prefix}.group", [source]).get((source, 0)) == 11, "the group's position")
        first.end()
    runs.delete_before(source, 0, 11)
    with table.publisher(source) as second:
        send(10)
        wait_for(all_of(table, 20), "what came since")
        second.end()
