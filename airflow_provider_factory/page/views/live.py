"""Live agents: which version holds which partitions of a group, how far behind it is, and what its members say of themselves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from airflow_provider_factory.page.snapshot import Snapshot
from airflow_provider_factory.page.views.common import Chart, chart, link
from factory_agents.kafka.control import Member
from factory_agents.kafka.windows import age_text
from factory_agents.rollouts import LiveGroup, PartitionStatus, Status
from factory_agents.text import count, shortened

__all__ = ["GroupRow", "GroupView", "MemberRow", "PartitionRow", "live_group", "live_groups"]

_MOST_GROUPS, _MOST_PARTITIONS, _MOST_MEMBERS = 200, 500, 200
_LONGEST = 500
_STATES = {"steady": "whole", "rolling": "open", "rolled out": "whole", "rolled back": "failed"}
"""How a verdict is coloured: as the windows' state that is as good or bad."""


@dataclass(frozen=True)
class GroupRow:
    """A group in a line; ``state`` colours the verdict."""

    name: str
    path: str
    topic: str
    verdict: str
    state: str
    sentence: str
    lag: str
    members: int


@dataclass(frozen=True)
class PartitionRow:
    """A partition: where the group stands, how far behind, whose it is; ``wanted`` is who is to have it, where that's another version."""

    partition: int
    position: str
    lag: str
    holder: str
    wanted: str


@dataclass(frozen=True)
class MemberRow:
    """A member, and what it handled in the last window of its judge."""

    version: str
    name: str
    host: str
    partitions: int
    records: str
    errors: str
    rejected: str
    waiting: str
    breakers: str
    heard: str


@dataclass(frozen=True)
class GroupView:
    """A group with its partitions, those that wait for a version or are far behind first, and its members."""

    row: GroupRow
    lag: Chart | None
    partitions: tuple[PartitionRow, ...]
    more_partitions: int
    members: tuple[MemberRow, ...]
    more_members: int


def live_groups(snapshot: Snapshot) -> tuple[tuple[GroupRow, ...], int]:
    """All groups, those first that aren't as they should be; and how many more there are than a page holds."""
    found = sorted((_row(group) for group in snapshot.figures.live.groups), key=lambda row: (row.state == "whole", row.name))
    return tuple(found[:_MOST_GROUPS]), max(0, len(found) - _MOST_GROUPS)


def live_group(snapshot: Snapshot, name: str, at: datetime) -> GroupView | None:
    """One group, or None where no version has run in it."""
    group = next((group for group in snapshot.figures.live.groups if group.name == name), None)
    if group is None:
        return None
    status = group.status
    partitions = sorted(status.partitions, key=lambda p: (p.holder == p.owner, -p.lag, p.partition))
    members = status.members
    return GroupView(
        _row(group),
        chart(snapshot.figures.trend(group.name, status.topic)),
        tuple(_partition(p, known=not group.error) for p in partitions[:_MOST_PARTITIONS]),
        max(0, len(partitions) - _MOST_PARTITIONS),
        tuple(_member(m, at) for m in members[:_MOST_MEMBERS]),
        max(0, len(members) - _MOST_MEMBERS),
    )


def _row(group: LiveGroup) -> GroupRow:
    status = group.status
    verdict, state = ("unknown", "failed") if group.error else (status.verdict, _STATES[status.verdict])
    if state == "whole" and _faults(status):
        state = "open"
    lag = "" if group.error else count(status.lag, "record")
    return GroupRow(group.name, link("group", name=group.name), status.topic, verdict, state, _sentence(group), lag, len(status.members))


def _sentence(group: LiveGroup) -> str:
    status = group.status
    if group.error:
        return shortened(group.error, _LONGEST)
    all_of = count(len(status.partitions), "partition")
    said = f"{status.base} handles all of {all_of}"
    if status.verdict in ("rolling", "rolled out"):
        said = f"{status.new} holds {status.held:,} of {all_of}, {status.base} is the base"
    elif status.verdict == "rolled back":
        said = f"{status.new} was rolled back to {status.base}: {shortened(status.reason, _LONGEST)}"
    if status.steps:
        said += f"; steps to come: {', '.join(f'{step:.0%}' for step in status.steps)}"
    return said + _faults(status) + "."


def _faults(status: Status) -> str:
    """What needs somebody: partitions that nobody or the wrong version holds, versions without members, open breakers."""
    said = []
    if waiting := sum(p.holder != p.owner for p in status.partitions):
        said.append(f"{count(waiting, 'partition')} still to change hands")
    there = {m.version for m in status.members}
    said += [f"no member of {version} is there" for version in sorted({p.owner for p in status.partitions} - there)]
    if broken := sum(bool(m.breakers) for m in status.members):
        said.append(f"{count(broken, 'member')} with an open breaker")
    return "".join(f"; {text}" for text in said)


def _partition(p: PartitionStatus, *, known: bool) -> PartitionRow:
    if not known:
        return PartitionRow(p.partition, "?", "?", "?", p.owner)
    position = "none" if p.position is None else f"{p.position:,}"
    return PartitionRow(p.partition, position, f"{p.lag:,}", p.holder or "nobody", p.owner if p.owner != p.holder else "")


def _member(m: Member, at: datetime) -> MemberRow:
    breakers = ", ".join(f"{shortened(name, 60)}: {state}" for name, state in list(m.breakers.items())[:5])
    return MemberRow(
        m.version,
        m.id,
        m.host,
        len(m.held),
        f"{m.records:,}",
        f"{m.errors:,}",
        f"{m.rejected:,}",
        f"{m.waiting:.0f} s",
        breakers,
        f"{age_text(datetime.fromtimestamp(m.at, UTC), at)} ago" if m.at > 0 else "never",
    )
