"""The drill of docs/scaling.md: a region is lost, and the one with the copies takes over. Two brokers; the database outlives the first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from confluent_kafka.admin import AdminClient

from factory_agents.kafka.transfer import OffsetMaps, export_ledger, import_ledger
from factory_agents.sandbox import Sandbox
from tests.compatibility.state import EACH, TOPICS, Pipeline
from tests.conftest import TopicFactory
from tests.support.databases import own_database
from tests.support.runs import Runs
from tests.support.topics import create_topic

GOOD = [n for n in range(4 * EACH) if n % 10 != 7]


def mirror(here: Pipeline, there: Pipeline) -> OffsetMaps:
    """Copies what is committed, as MirrorMaker does: markers and dropped records stay behind, so that offsets differ."""
    maps = {}
    for name in TOPICS:
        topic = here.name(name)
        create_topic(there.runs.admin, topic, 1, **{"retention.ms": "-1"})
        producer, pairs, at = there.runs.config.plain_producer(), {0: 0}, 0
        for record in here.runs.everything(topic):
            stamp = {}
            if name == "raw":
                stamp["timestamp"] = here.stamp(record.id)
            producer.produce(topic, record.value, record.key, 0, headers=list(record.headers.items()), **stamp)
            pairs |= {record.offset: at, record.offset + 1: at + 1}
            at += 1
        assert producer.flush(60) == 0
        pairs.setdefault(here.runs.cluster.high_watermark(topic, [0])[0], at)
        maps[topic] = {0: tuple(sorted(pairs.items()))}
    return maps


@pytest.fixture
def regions(
    bootstrap: str, prefix: str, topic: TopicFactory, admin: AdminClient, own_sandbox: Sandbox, database_url: str
) -> Iterator[tuple[Pipeline, Pipeline]]:
    """The pipeline in its region, and where it could go. Both publish into one database, which has its own replicas."""
    there = own_sandbox.info().bootstrap
    with ExitStack() as stack:
        url = stack.enter_context(own_database(database_url, "regions"))
        here = Pipeline(Runs(bootstrap, prefix, topic, admin), url)
        other = Pipeline(Runs(there, prefix, topic, AdminClient({"bootstrap.servers": there})), url)
        for name in TOPICS:
            topic(name, partitions=1, **{"retention.ms": "-1"})
        stack.callback(here.runs.close)
        stack.callback(other.runs.close)
        yield here, other


@pytest.mark.slow
def test_another_region_takes_over_and_every_event_is_in_the_table_once(regions: tuple[Pipeline, Pipeline]) -> None:
    here, there = regions
    here.hour(0)
    here.live(EACH)
    here.finished(here.publish(here.finished(here.size(0))))
    here.hour(1)
    here.finished(here.size(1))  # is not published any more
    exported = list(export_ledger(here.runs.config, here.runs.prefix, prefix=here.runs.prefix))
    position = here.position()[0]

    maps = mirror(here, there)
    imported = import_ledger(there.runs.config, exported, prefix=there.runs.prefix, offsets=maps)
    assert imported.translated
    there.stand(dict(maps[here.name("raw")][0])[position])

    # The hour that was left off, from its plan of the first region; then one of its own.
    again = there.finished(there.size(1))
    assert again.counts.consumed == EACH
    there.finished(there.publish(again))
    there.hour(2)
    (window,) = there.window(2).ranges
    assert (window.start, window.end) == (2 * EACH, 3 * EACH)
    there.finished(there.publish(there.finished(there.size(2))))
    there.live(3 * EACH)

    expected = [n for n in GOOD if n < 3 * EACH]
    assert [row[0] for row in there.rows()] == expected
    assert [r.id for r in there.runs.everything(there.name("live"))] == expected


@pytest.mark.slow
@pytest.mark.soak
def test_what_was_not_copied_is_an_error_and_never_a_guess(regions: tuple[Pipeline, Pipeline]) -> None:
    here, there = regions
    here.hour(0)
    maps = mirror(here, there)
    here.hour(1)  # after the last record that was copied
    here.finished(here.size(0))
    here.window(1)
    exported = list(export_ledger(here.runs.config, here.runs.prefix, prefix=here.runs.prefix))
    with pytest.raises(Exception, match=r"the record at offset \d+ there, of .*, isn't here, or others lie before it"):
        import_ledger(there.runs.config, exported, prefix=there.runs.prefix, offsets=maps)
