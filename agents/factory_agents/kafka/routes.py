"""Which version of a live agent handles which partition: the order that is given (``Route``), and who holds it (``Token``).

The order may be late, or lost; the token is what counts. It lies in the metadata of the official group's committed position, so that it and
the position change in one transaction, and only its holder's own group fences who may change it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from factory_agents.errors import ConfigurationError

__all__ = [
    "Limits",
    "Route",
    "Spell",
    "Token",
    "check_version",
    "finished",
    "first_route",
    "grown",
    "holder",
    "is_shadow",
    "read_token",
    "rolled_back",
    "shadow_group",
    "shifted",
    "started",
    "steps_of",
    "version_group",
    "without_versions",
]

_VERSION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_MOST_SPELLS = 40  # brokers take 4,096 bytes of metadata; a spell is about 30


class Spell(msgspec.Struct, frozen=True, array_like=True):
    """Offsets ``[start, end)`` that a version handled, and the order under which it got them."""

    version: str
    epoch: int
    start: int
    end: int


class Token(msgspec.Struct, frozen=True, array_like=True):
    """Who holds a partition: a version, by which order, since which offset, and what others handled ``before``, the newest last."""

    version: str
    epoch: int = 0
    start: int = 0
    before: tuple[Spell, ...] = ()

    def spells(self, position: int) -> tuple[Spell, ...]:
        """What was handled so far, this holder's own part included; the group stands at ``position``."""
        now = Spell(self.version, self.epoch, self.start, position)
        return (*self.before, now) if position > self.start else self.before

    def passed_to(self, version: str, epoch: int, position: int) -> Token:
        """The token as another version holds it from a position on."""
        spells = self.spells(position)[-_MOST_SPELLS:]
        while len(msgspec.json.encode(spells)) > 3_500:
            spells = spells[1:]
        return Token(version, epoch, position, spells)


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a new version may do worse before it is rolled back. Shares are of records, times in seconds.

    A share counts from ``least`` bad records on, and where it is greater than the limit and ``times`` the old version's. ``dearer``: how
    many times as much a call of its model may cost (or take, in tokens).
    """

    errors: float = 0.01
    rejected: float = 0.05
    times: float = 3.0
    slower: float = 4.0
    dearer: float = 3.0
    least: int = 10
    hang: float = 30.0
    waiting: float = 0.5


class Route(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which version is to handle each partition of a group.

    ``base`` handles all while there is no rollout, ``new`` is the version that is being rolled out (or was rolled back), ``replaced`` was
    the base before this one. ``initial`` says who holds a partition whose token was never passed on. ``back``: what is not committed of
    the old owner's is not wanted. ``steps`` are the shares still to come, each after ``hold`` seconds.
    """

    group: str
    topic: str
    epoch: int
    base: str
    owners: tuple[str, ...]
    initial: tuple[str, ...]
    state: Literal["steady", "rolling", "rolled-back"] = "steady"
    new: str = ""
    since: int = 0
    back: bool = False
    reason: str = ""
    steps: tuple[float, ...] = ()
    hold: float = 0.0
    at: float = 0.0
    by: str = ""
    limits: Limits = Limits()
    replaced: str = ""

    @property
    def moved(self) -> int:
        """How many partitions the new version is to have."""
        return sum(owner == self.new for owner in self.owners) if self.new else 0

    def owner(self, partition: int) -> str:
        """Which version is to handle a partition; nobody where it isn't known yet."""
        return self.owners[partition] if partition < len(self.owners) else ""


def version_group(group: str, version: str) -> str:
    """The consumer group of one version's members."""
    return f"{group}~{version}"


def shadow_group(group: str, version: str) -> str:
    """The consumer group of a version that runs in the shadow of a group."""
    return f"{group}~shadow~{version}"


def is_shadow(group: str) -> bool:
    """Whether a consumer group is a shadow's: nobody waits for what it makes."""
    return "~shadow~" in group


def without_versions(groups: Sequence[str]) -> list[str]:
    """Consumer groups without those of versions, whose positions are no more than a fence: the official group's are what was handled."""
    known = set(groups)
    return [group for group in groups if "~" not in group or group.rpartition("~")[0] not in known]


def check_version(version: str) -> str:
    """The version, or ConfigurationError for what no group name and no label can hold."""
    if not _VERSION.fullmatch(version):
        raise ConfigurationError(f"version {version!r}: expected up to 63 letters, digits, '.', '_' and '-', such as v2 or 2026-11-01")
    return version


def read_token(metadata: str) -> Token | None:
    """The token in a committed position's metadata, behind the topic's id; None where there is none."""
    _, found, text = metadata.partition("|")
    if not found:
        return None
    try:
        return msgspec.json.decode(text, type=Token)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def holder(route: Route, partition: int, token: Token | None) -> str:
    """Who holds a partition; nobody where neither its token nor the route says so."""
    if token is not None:
        return token.version
    return route.initial[partition] if partition < len(route.initial) else ""


def first_route(group: str, topic: str, partitions: int, version: str, tokens: Mapping[int, Token]) -> Route:
    """The order where there is none: the first version that runs handles all, or who holds most where the order was lost."""
    held = [token.version for token in tokens.values()]
    base = max(sorted(set(held)), key=held.count) if held else version
    epoch = max((token.epoch for token in tokens.values()), default=0) + 1
    return Route(group, topic, epoch, base, (base,) * partitions, (base,) * partitions)


def steps_of(texts: Sequence[str], partitions: int) -> tuple[float, ...]:
    """Shares from texts such as ``1`` (one partition), ``25%`` and ``100%``, in growing order.

    A step that moves no partition, as 25 % after one of four, is left out.
    """
    steps: list[float] = []
    moved = 0
    for text in texts:
        number, _, percent = text.strip().partition("%")
        try:
            share = float(number) / (100 if text.strip().endswith("%") else partitions)
        except ValueError:
            share = -1.0
        if percent or not 0 < share <= 1 or (count := _count(share, partitions)) < moved:
            raise ConfigurationError(
                f"step {text!r}: expected a number of partitions (up to {partitions}) or a share such as 25%, no fewer than the one before"
            )
        if count > moved:
            steps.append(share)
        moved = count
    return tuple(steps)


def _count(share: float, partitions: int) -> int:
    return min(partitions, math.ceil(share * partitions - 1e-9))


def _owners(route: Route, new: str, share: float) -> tuple[str, ...]:
    count = _count(share, len(route.owners))
    return tuple(new if p < count else route.base for p in range(len(route.owners)))


def started(route: Route, version: str, steps: Sequence[float], *, hold: float, limits: Limits, now: float = 0.0, by: str = "") -> Route:
    """A rollout begins: the new version gets the first step's partitions. Raises ConfigurationError where another one is under way."""
    if route.state == "rolling":
        raise ConfigurationError(
            f"group {route.group!r}: version {route.new!r} is being rolled out; finish it or roll it back before {version!r} is"
        )
    if version == route.base:
        raise ConfigurationError(f"group {route.group!r}: version {version!r} handles all partitions already")
    first, *rest = steps or (1.0,)
    return msgspec.structs.replace(
        route,
        epoch=route.epoch + 1,
        since=route.epoch + 1,
        new=version,
        state="rolling",
        owners=_owners(route, version, first),
        steps=tuple(rest),
        hold=hold,
        limits=limits,
        back=False,
        reason="",
        at=now,
        by=by,
    )


def shifted(route: Route, share: float, *, steps: Sequence[float] = (), now: float = 0.0, by: str = "") -> Route:
    """The new version gets this share of the partitions, more or fewer than it has. Raises ConfigurationError without a rollout."""
    _check_rolling(route, "shifted")
    return msgspec.structs.replace(
        route,
        epoch=route.epoch + 1,
        owners=_owners(route, route.new, share),
        steps=tuple(steps),
        back=False,
        at=now,
        by=by,
    )


def rolled_back(route: Route, reason: str, *, now: float = 0.0, by: str = "") -> Route:
    """All goes back to the base version, and what the new one has not committed is not wanted."""
    _check_rolling(route, "rolled back")
    return msgspec.structs.replace(
        route,
        epoch=route.epoch + 1,
        state="rolled-back",
        owners=(route.base,) * len(route.owners),
        steps=(),
        back=True,
        reason=reason,
        at=now,
        by=by,
    )


def finished(route: Route, holders: Sequence[str], *, now: float = 0.0, by: str = "") -> Route:
    """The new version is the base from now on. Raises ConfigurationError while another one holds a partition."""
    _check_rolling(route, "finished")
    others = [p for p, version in enumerate(holders) if version != route.new]
    if others or any(owner != route.new for owner in route.owners):
        raise ConfigurationError(
            f"group {route.group!r}: version {route.new!r} does not have all partitions yet (not {others or 'all ordered'}); shift it to "
            f"100% first, and wait until it holds them"
        )
    return msgspec.structs.replace(
        route,
        epoch=route.epoch + 1,
        base=route.new,
        replaced=route.base,
        new="",
        state="steady",
        initial=(route.new,) * len(route.owners),
        steps=(),
        back=False,
        reason="",
        at=now,
        by=by,
    )


def grown(route: Route, partitions: int) -> Route:
    """The order of a topic that has more partitions now: they are the base version's. The same where there are none."""
    more = (route.base,) * (partitions - len(route.owners))
    if not more:
        return route
    return msgspec.structs.replace(route, epoch=route.epoch + 1, owners=route.owners + more, initial=route.initial + more)


def _check_rolling(route: Route, done: str) -> None:
    if route.state != "rolling":
        raise ConfigurationError(
            f"group {route.group!r}: nothing can be {done}: "
            + (f"version {route.new!r} was rolled back: {route.reason}" if route.state == "rolled-back" else "there is no rollout")
        )
