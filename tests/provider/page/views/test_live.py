"""Live agents on the page: what isn't as it should be comes first and is said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from airflow_provider_factory.page.snapshot import Figures, Live, Snapshot
from airflow_provider_factory.page.views.live import live_group, live_groups
from factory_agents.kafka.control import Member
from factory_agents.rollouts import LiveGroup
from tests.support.pages import live

NOW = datetime(2026, 11, 1, 6, tzinfo=UTC)
HEARD = (NOW - timedelta(seconds=3)).timestamp()
V1 = Member("factory.enrich.raw", "v1", "m1", held=(0, 1, 2, 3), records=1200, host="pod-1", at=HEARD)
V2 = Member("factory.enrich.raw", "v2", "m2", breakers={"geo": "open"}, host="pod-2", waiting=2.4, at=HEARD)


def shot(*groups: LiveGroup) -> Snapshot:
    return Snapshot(Figures(live=Live(groups)), NOW)


def test_a_group_that_is_as_it_should_be_says_so() -> None:
    ((row,), more) = live_groups(shot(live(members=[V1])))
    assert (row.verdict, row.state, row.lag, row.members, more) == ("steady", "whole", "6 records", 1, 0)
    assert row.sentence == "v1 handles all of 4 partitions."


def test_a_rollout_says_who_holds_what_and_what_is_in_its_way() -> None:
    group = live(moved=2, held=1, steps=(0.75, 1.0), members=[V1, V2])
    view = live_group(shot(group), group.name, NOW)
    assert view is not None
    assert view.row.sentence == (
        "v2 holds 1 of 4 partitions, v1 is the base; steps to come: 75%, 100%; 1 partition still to change hands; "
        "1 member with an open breaker."
    )
    assert [(p.partition, p.holder, p.wanted, p.lag) for p in view.partitions] == [
        (1, "v1", "v2", "1"), (3, "v1", "", "3"), (2, "v1", "", "2"), (0, "v2", "", "0"),
    ]  # fmt: skip
    assert [(m.version, m.name, m.host, m.partitions, m.records, m.breakers, m.waiting, m.heard) for m in view.members] == [
        ("v1", "m1", "pod-1", 4, "1,200", "", "0 s", "3 s ago"),
        ("v2", "m2", "pod-2", 0, "0", "geo: open", "2 s", "3 s ago"),
    ]


def test_a_member_that_was_heard_of_long_ago_is_told_in_one_unit() -> None:
    old = msgspec.structs.replace(V1, at=(NOW - timedelta(days=3)).timestamp())
    view = live_group(shot(live(members=[old])), "factory.enrich.raw", NOW)
    assert view is not None
    assert [m.heard for m in view.members] == ["3 d ago"]


def test_a_member_that_was_never_heard_of_says_so() -> None:
    view = live_group(shot(live(members=[msgspec.structs.replace(V1, at=0.0)])), "factory.enrich.raw", NOW)
    assert view is not None
    assert [m.heard for m in view.members] == ["never"]


def test_a_version_without_members_is_named() -> None:
    ((row,), _) = live_groups(shot(live(moved=2, members=[V1])))
    assert "no member of v2 is there" in row.sentence
    rows, _ = live_groups(shot(live(name="a", members=[V1]), live(name="z")))
    assert [(row.name, row.verdict, row.state) for row in rows] == [("z", "steady", "open"), ("a", "steady", "whole")]


def test_a_version_that_was_rolled_back_says_why_and_comes_first() -> None:
    back = live(name="z", verdict="rolled back", new="v2", reason="3 % errors", members=[V1])
    rows, _ = live_groups(shot(live(name="a", members=[V1]), back))
    assert [(row.name, row.state) for row in rows] == [("z", "failed"), ("a", "whole")]
    assert rows[0].sentence == "v2 was rolled back to v1: 3 % errors."


def test_positions_that_cannot_be_seen_are_not_made_up() -> None:
    group = live(error="expected DESCRIBE on group 'g'")
    view = live_group(shot(group), group.name, NOW)
    assert view is not None
    assert (view.row.verdict, view.row.lag, view.row.sentence) == ("unknown", "", "expected DESCRIBE on group 'g'")
    assert {(p.position, p.lag, p.holder) for p in view.partitions} == {("?", "?", "?")}


def test_pages_are_bounded() -> None:
    rows, more = live_groups(shot(*(live(1, name=f"g{n:03}") for n in range(230))))
    assert (len(rows), more) == (200, 30)
    members = [Member("g", "v1", f"m{n}", at=HEARD) for n in range(230)]
    view = live_group(shot(live(600, name="g", members=members)), "g", NOW)
    assert view is not None
    assert (len(view.partitions), view.more_partitions, len(view.members), view.more_members) == (500, 100, 200, 30)


def test_a_group_that_nobody_knows_is_none() -> None:
    assert live_group(shot(), "x", NOW) is None
