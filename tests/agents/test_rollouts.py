"""All groups of live agents, looked at again and again from outside."""

from __future__ import annotations

import time

import pytest
from confluent_kafka import Producer

from factory_agents.kafka.control import Control, control_topic
from factory_agents.kafka.lag import Lags
from factory_agents.kafka.routes import Limits, first_route, started
from factory_agents.rollouts import GroupSummary, LiveGroup, LiveGroups, live_groups
from tests.agents.runtime.test_live import live, wait_written
from tests.agents.runtime.test_versions import control_of, rollouts, version
from tests.support.runs import Runs, events
from tests.support.topics import recreate
from tests.support.waiting import wait_for


@pytest.fixture
def groups(runs: Runs) -> LiveGroups:
    return LiveGroups(runs.config, runs.cluster, Lags(runs.config, runs.cluster), prefix=runs.prefix)


def test_without_a_control_topic_there_are_none(groups: LiveGroups) -> None:
    assert groups.look() == []


def test_holders_members_and_lag_are_those_of_the_rollout(runs: Runs, groups: LiveGroups) -> None:
    source, out, name = runs.topic("in"), runs.topic("out"), f"{runs.prefix}.group"
    runs.produce(source, events(40))

    def looked() -> LiveGroup:
        found = {group.name: group for group in groups.look()}
        return found[name]

    with version(runs, source, out, "v1") as one, control_of(runs) as control:
        wait_for(lambda: len(runs.everything(out)) == 40, "the first events")
        with version(runs, source, out, "v2") as two:
            wait_for(lambda: {m.version for m in looked().status.members} == {"v1", "v2"}, "both versions' members")
            control.order(lambda r: started(r, "v2", (0.5,), hold=0, limits=Limits()) if r else r)
            wait_for(lambda: (status := looked().status).is_settled and status.held == 2, "the partitions")
            seen, expected = looked(), rollouts(runs).status()
            assert (seen.error, seen.status.partitions, seen.status.verdict) == ("", expected.partitions, "rolling")
            assert all(time.time() - m.at < 30 for m in seen.status.members)
            two.end()
        one.end()
    wait_for(lambda: looked().status.members == (), "the end of the members")
    runs.produce(source, events(6, 100))
    assert looked().status.lag == 6


def test_live_agents_without_versions_are_listed_beside_those_with_them(runs: Runs) -> None:
    source, other, out = runs.topic("in"), runs.topic("other"), runs.topic("out")
    runs.produce(source, events(20))
    with live(runs, source, out) as plain:
        wait_written(runs, out, 20)
        plain.end()
    control = Control(runs.config, runs.cluster, prefix=runs.prefix, group=f"{runs.prefix}.versions")
    try:
        control.order(lambda _: first_route(control.group, other, 4, "v1", {}))
    finally:
        control.close()
    runs.produce(source, events(5), partition=0)
    found = {g.group: g for g in live_groups(runs.config, prefix=runs.prefix) if g.group.startswith(runs.prefix)}
    assert found == {
        f"{runs.prefix}.group": GroupSummary(f"{runs.prefix}.group", (source,), "", "", "steady", 0, 4, 5),
        f"{runs.prefix}.versions": GroupSummary(f"{runs.prefix}.versions", (other,), "v1", "", "steady", 0, 4, 0),
    }


def test_what_cannot_be_read_is_passed_over_and_a_new_control_topic_begins_again(runs: Runs, groups: LiveGroups) -> None:
    topic = control_topic(runs.prefix)
    runs.cluster.ensure(topic, 12)
    producer = Producer({"bootstrap.servers": runs.bootstrap})
    deep = b'{"group": ' + b"[" * 100_000
    for key, value in {
        "route|g": b"{",
        "route|deep": deep,
        "route|much": b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "member|g|m": b"\xff",
        "|": b"",
        "route|h": b'{"group": 7}',
        "\ud7ff|": None,
    }.items():
        producer.produce(topic, value, key.encode())
    producer.flush(60)
    assert groups.look() == []
    gone = f"{runs.prefix}.gone"
    with control_of(runs) as control:
        control.order(lambda r: first_route(control.group, gone, 2, "v1", {}))
    wait_for(lambda: groups.look() != [], "the order")
    (found,) = groups.look()
    assert (found.error, [(p.lag, p.holder) for p in found.status.partitions]) == ("", [(0, "v1"), (0, "v1")])
    recreate(runs.cluster.admin, topic, 12)
    assert groups.look() == []
