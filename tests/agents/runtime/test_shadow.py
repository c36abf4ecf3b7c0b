"""A version in the shadow: all events, in a group and topics of its own, beside the official one, which it never touches."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from factory_agents.reject import Reject
from factory_agents.runtime.agents import agent
from factory_agents.runtime.backpressure import Downstream
from factory_agents.trial import last_records, records_of
from factory_agents.version_diff import compare
from tests.agents.runtime.test_backpressure import Reader
from tests.agents.runtime.test_live import live
from tests.agents.runtime.test_versions import rollouts, version, wait_members
from tests.support.commands import PROGRAM, ROOT, Command, Live
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


def shadowed(runs: Runs, source: str, out: str, factory: Command, agent: str = "mark_again", *more: str, version: str = "v2") -> Live:
    return factory.start(*_command(runs, source, out, agent), "--shadow", version, *more, program=PROGRAM)


def _command(runs: Runs, source: str, out: str, agent: str) -> tuple[str, ...]:
    name = f"tests.support.agents:{agent}"
    return ("agent", "run", name, "--in-topic", source, "--out-topic", out, "--group", f"{runs.prefix}.group", "--prefix", runs.prefix)


@pytest.fixture
def factory(factory: Command) -> Command:
    factory.environment["PYTHONPATH"] = ":".join([*filter(None, [factory.environment.get("PYTHONPATH", "")]), str(ROOT)])
    return factory


def test_a_shadow_begins_where_the_official_group_stands_and_has_a_group_and_topics_of_its_own(factory: Command, runs: Runs) -> None:
    source, out, group = runs.topic("in"), runs.topic("out", partitions=3, retention_ms=7_200_000), f"{runs.prefix}.group"
    runs.produce(source, events(20))
    with version(runs, source, out, "v1", official) as one:
        wait_for(lambda: len(runs.everything(out)) == 20 and rollouts(runs).status().lag == 0, "the official version")
        two = shadowed(runs, source, out, factory, "judge", "--dead-letter-topic", runs.topic("letters"))
        wait_for(lambda: len(runs.cluster.committed(f"{group}~shadow~v2", [source])) == 4, "the shadow to be there")
        runs.produce(source, events(20, 20))
        wait_for(lambda: len(runs.everything(f"{out}.shadow")) == 16, "it")  # of one in ten it makes two
        assert min(r.event["text"] for r in runs.everything(f"{out}.shadow")) == "event 20"
        assert {r.id for r in runs.everything(f"{runs.prefix}.letters.shadow")} == {25, 27, 35, 37}
        assert {r.headers["factory-writer"] for r in runs.everything(f"{out}.shadow")} == {f"live/{group}~shadow~v2/0".encode()}
        three = shadowed(runs, source, out, factory, version="v3")  # they may share the topic: the header tells them apart
        wait_for(lambda: len(runs.cluster.committed(f"{group}~shadow~v3", [source])) == 4, "another one")
        wait_for(lambda: len(runs.everything(out)) == 40, "the official version goes on")
        status = rollouts(runs).status()
        assert (status.verdict, status.base, {p.holder for p in status.partitions}) == ("steady", "v1", {"v1"})
        assert [two.stop().code, three.stop().code] == [0, 0]
        one.end()
    assert sorted(r.id for r in runs.everything(out)) == list(range(40))
    assert runs.everything(f"{runs.prefix}.letters") == []
    facts, kept = runs.cluster.topic(f"{out}.shadow"), runs.cluster.settings(f"{out}.shadow")
    assert (facts.partitions, kept["retention.ms"]) == (3, "7200000")


def test_who_would_write_the_official_topic_a_second_time_is_told_of_the_shadow(factory: Command, runs: Runs) -> None:
    source, out, group = runs.topic("in"), runs.topic("out.shadow"), f"{runs.prefix}.group"
    runs.produce(source, events(20))
    with live(runs, source, out, official, group=f"{runs.prefix}.other") as first:
        wait_for(lambda: len(runs.everything(out)) == 20, "the official version")
        first.end()
    second = factory(*_command(runs, source, out, "mark"))
    assert f"topic {out!r} is what group '{runs.prefix}.other' makes of {source!r}; group {group!r} would write all of it" in second.error
    assert f"in its shadow (--group {runs.prefix}.other --shadow V)" in second.error
    runs.topic("out")
    refused = factory(*_command(runs, source, f"{runs.prefix}.out", "mark"), "--shadow", "v2")
    assert f"group '{group}~shadow~v2' would write all of it a second time: give it another topic (--out-topic)\n" in f"{refused.error}\n"
    with version(runs, source, f"{runs.prefix}.out", "v1") as versions:
        wait_for(lambda: len(runs.everything(f"{runs.prefix}.out")) == 20, "the version's")
        versions.end()
    again = factory(*_command(runs, source, f"{runs.prefix}.out", "mark")[:-4], "--group", f"{runs.prefix}.new", "--prefix", runs.prefix)
    assert f"is what group {group!r} makes of" in again.error
    assert len(runs.everything(out)) == len(runs.everything(f"{runs.prefix}.out")) == 20


def test_nobody_waits_for_a_shadow(runs: Runs) -> None:
    out = runs.topic("out", partitions=1)
    runs.produce(out, events(100))
    reader = Reader(runs, out, f"{runs.prefix}.group~shadow~v2")
    reader.stands_at(0)
    downstream = Downstream(runs.config, out, 10, every=0.05)
    try:
        downstream.look(30)
        assert not downstream.is_behind
    finally:
        downstream.close()
        reader.consumer.close()
