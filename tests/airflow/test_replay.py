"""A replay in a whole Airflow whose scheduler is killed meanwhile: each letter once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from confluent_kafka.admin import AdminClient

from factory_agents.reject import Reject
from tests.conftest import TopicFactory
from tests.support.airflow_components import RunningAirflow
from tests.support.runs import Runs
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LETTERS = 40


@pytest.fixture
def runs(airflow_running: RunningAirflow, bootstrap: str, topic: TopicFactory, admin: AdminClient) -> Iterator[Runs]:
    """A pipeline over the ledger of this Airflow."""
    own = Runs(bootstrap, airflow_running.topics, topic, admin)
    yield own
    for attempt in own._attempts:
        attempt.end()


def refuse(event: dict[str, int]) -> dict[str, int]:
    raise Reject("no", rule="no")


@pytest.mark.soak
def test_each_letter_goes_once_when_the_scheduler_is_killed_half_way(airflow_running: RunningAirflow, runs: Runs) -> None:
    source = runs.topic("in", partitions=2)
    runs.produce(source, [b'{"event_id": %d}' % i for i in range(LETTERS)])
    result = runs.transform(runs.run(runs.window(source, "killed"), runs.topic("out", partitions=2), max_rejected="100 %"), refuse)
    assert result.dead_letters is not None
    target = runs.topic("again", partitions=2)
    airflow_running.unpause("factory_replay")
    run = airflow_running.trigger("factory_replay", topic=result.dead_letters.topic, to=target, pipeline=runs.prefix, rate=4)
    wait_for(lambda: runs.everything(target), "the first letters", 120)
    airflow_running.crash("scheduler")
    assert len(runs.everything(target)) < LETTERS
    airflow_running.wait_run("factory_replay", run)
    assert airflow_running.task("factory_replay", run, "replay")["try_number"] > 1
    assert sorted(r.id for r in runs.everything(target)) == list(range(LETTERS))
