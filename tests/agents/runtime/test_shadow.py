"""A version in the shadow: all events, in a group and topics of its own, beside the official one, which it never touches."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from factory_agents.reject import Reject
from factory_agents.runtime.agents import agent
from factory_agents.trial import last_records, records_of
from factory_agents.version_diff import compare
from tests.agents.runtime.test_live import live
from tests.agents.runtime.test_versions import rollouts, version, wait_members
from tests.support.runs import Runs, events
from tests.support.waiting import wait_for


def official(event: dict[str, Any]) -> dict[str, Any]:
    return event | {"segment": "a"}


def shadow(event: dict[str, Any]) -> dict[str, Any] | None:
    if event["event_id"] % 10 == 0:
        raise Reject("no segment", rule="segment")
    if event["event_id"] % 10 == 1:
        return None
    return event | {"segment": "b" if event["event_id"] % 10 == 2 else "a"}


def test_a_shadow_touches_nothing_of_the_official_version_and_the_comparison_adds_up(runs: Runs) -> None:
    source, out, aside = runs.topic("in"), runs.topic("out"), runs.topic("shadow")
    dead, aside_dead = runs.topic("out.dead"), runs.topic("shadow.dead")
    runs.produce(source, events(200))
    with version(runs, source, out, "v1", official) as one:
        wait_members(runs, "v1")
        with live(runs, source, aside, shadow, group=f"{runs.prefix}.shadow") as beside:
            wait_for(lambda: len(runs.everything(aside)) == 160 and len(runs.everything(aside_dead)) == 20, "the shadow")
            beside.end()
        wait_for(lambda: rollouts(runs).status().lag == 0, "the official version")
        status = rollouts(runs).status()
        one.end()
    assert (status.verdict, status.base, {p.holder for p in status.partitions}) == ("steady", "v1", {"v1"})
    assert sorted(record.id for record in runs.everything(out)) == list(range(200))
    assert {record.event["segment"] for record in runs.everything(out)} == {"a"}
    assert runs.everything(dead) == []

    with closing(records_of(runs.config, last_records(runs.config, source, 10_000))) as batches:
        found = compare(agent(version="1")(official).bind({}), agent(version="2")(shadow).bind({}), batches)
    assert (found.records, found.same) == (200, 140)
    assert found.kinds == {"forwarded → rejected": 20, "forwarded → filtered": 20, "changed": 20}
    assert found.fields == {"segment": 20}
