"""The ledger that a sink keeps beside its rows, as pure functions: who may land a shard of a window, what was landed, what gives way.

One entry speaks of one window at one table. A sink stores it as a text that it doesn't look into, and changes it by compare and set: no
text comes back once it was changed, since every claim in it has a number of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from factory_agents.errors import FencedError, SinkError
from factory_agents.runtime.agents import Claim, SinkOutcome

__all__ = [
    "Entry",
    "Figures",
    "GivingWay",
    "Landed",
    "Taken",
    "check_claim",
    "entry_key",
    "entry_text",
    "give_way",
    "key_text",
    "land",
    "landed",
    "parts_of",
    "read_entry",
    "take",
]


class Figures(msgspec.Struct, frozen=True):
    """What a landing did: keys among its rows and deletes, those of them that were written, rows of earlier landings that it removed.

    ``deleted``: keys of which only the delete is left, in the parts and in the table.

    :param distinct: keys among the rows and deletes.
    :param written: of them those that were written.
    :param removed: rows of earlier landings that are gone.
    :param deleted: keys of which only the delete is left.
    """

    distinct: int
    written: int
    removed: int = 0
    deleted: int = 0


class Claimed(msgspec.Struct, frozen=True):
    """A shard that somebody is about to land; ``publication`` is the number that its rows bear."""

    publication: int
    shard: int
    shards: int
    plan: str
    generation: int = 0
    """The attempt's; 0 where an earlier release wrote it."""


class Landed(msgspec.Struct, frozen=True):
    """A shard whose rows may be in the table."""

    publication: int
    shard: int
    shards: int
    plan: str
    fingerprint: str
    epoch: int
    input_generation: int
    rows: int
    rejected: int
    distinct: int
    written: int
    removed: int
    generation: int = 0
    """The attempt's; 0 where an earlier release wrote it."""
    deleted: int = 0

    def outcome(self, table: str, *, reused: bool = False) -> SinkOutcome:
        """What the runtime is told of it."""
        return SinkOutcome(
            table=table,
            rows=self.rows,
            written=self.written,
            duplicates=self.rows - self.distinct,
            older=self.distinct - self.written - self.deleted,
            deleted=self.deleted,
            removed=self.removed,
            rejected=self.rejected,
            reused=reused,
        )


class Entry(msgspec.Struct, frozen=True):
    """One window: claims that may land, and what was landed, in the order of landing."""

    claims: tuple[Claimed, ...] = ()
    landed: tuple[Landed, ...] = ()

    @property
    def generation(self) -> int:
        """Of its last claim."""
        return max([each.generation for each in self.claims] + [each.generation for each in self.landed], default=0)


class Taken(msgspec.Struct, frozen=True):
    """The entry after a claim, and what was landed already where nothing is left to do."""

    entry: Entry
    done: Landed | None = None


class GivingWay(msgspec.Struct, frozen=True):
    """Publications whose rows give way to a landing: ``past`` by key whatever they hold, ``stale`` all of them."""

    past: tuple[int, ...]
    stale: tuple[int, ...]


def entry_key(claim: Claim) -> str:
    """What an entry is stored under: one text for each window of one stage."""
    return key_text(claim.window, claim.pipeline, claim.stage)


def key_text(*parts: str) -> str:
    """Parts as one text; ``parts_of`` takes it apart."""
    return " | ".join(part.replace("|", "||") for part in parts)


def parts_of(key: str) -> list[str]:
    """What ``key_text`` joined."""
    return [part.replace("||", "|") for part in key.split(" | ")]  # within a part no | is alone


def entry_text(entry: Entry) -> str:
    """An entry as a sink stores it."""
    return msgspec.json.encode(entry).decode()


def read_entry(text: str | None, table: str) -> Entry:
    """The entry that a sink stores, an empty one for None; raises SinkError for what is none."""
    if text is None:
        return Entry()
    if not isinstance(text, str):
        raise SinkError(f"table {table}: expected the ledger's entry as the text that was stored, got {type(text).__name__}")
    try:
        return msgspec.json.decode(text, type=Entry)
    except msgspec.MsgspecError as error:
        raise SinkError(f"table {table}: its ledger holds an entry that cannot be read: {error}; restore it, or delete it") from error


def take(entry: Entry, claim: Claim, publication: int, table: str) -> Taken:
    """Claim a shard: earlier claims of it, and those of the window's other plans, are fenced off.

    So two plans of a window never land beside each other. Raises SinkError where rows of a newer manifest of the window have landed.
    """
    newest = max((each.input_generation for each in entry.landed if not _is_beside(each, claim)), default=claim.input_generation)
    if newest > claim.input_generation:
        raise SinkError(
            f"table {table}, window {claim.window}: it holds generation {newest} of its input, this manifest is of the older generation"
            f" {claim.input_generation}; publish the newest one (clear the stages before, so that they run again)"
        )
    others = tuple(c for c in entry.claims if _is_ours(c, claim) and c.shard != claim.shard.index)
    done = _done(entry, claim) if claim.reuse else None
    if done is not None:
        return Taken(msgspec.structs.replace(entry, claims=others), done)
    mine = Claimed(publication, claim.shard.index, claim.shard.of, claim.plan, claim.generation)
    return Taken(msgspec.structs.replace(entry, claims=(*others, mine)))


def _is_ours(each: Claimed | Landed, claim: Claim) -> bool:
    """Whether it is of the claim's plan; one shard is a whole plan, whatever its name."""
    return each.shards == claim.shard.of and (each.plan == claim.plan or claim.shard.of == 1)


def _is_beside(each: Landed, claim: Claim) -> bool:
    """Whether it is another shard of the claim's plan: that one may have an input of its own, newer than ours."""
    return each.plan == claim.plan and each.shards == claim.shard.of and each.shard != claim.shard.index


def _done(entry: Entry, claim: Claim) -> Landed | None:
    found = next((each for each in _current(entry, claim) if each.shard == claim.shard.index), None)
    same = found is not None and found.fingerprint == claim.fingerprint and found.epoch >= claim.epoch
    return found if same else None


def _current(entry: Entry, claim: Claim) -> list[Landed]:
    """The last landing of each shard of the claim's plan since another plan landed."""
    current: dict[int, Landed] = {}
    for each in entry.landed:
        if _is_ours(each, claim):
            current[each.shard] = each
        else:
            current.clear()
    return list(current.values())


def check_claim(entry: Entry, claim: Claim, publication: int, table: str) -> None:
    """Raises FencedError where the claim was taken over."""
    if all(each.publication != publication for each in entry.claims):
        raise FencedError(
            f"table {table}, window {claim.window}, shard {claim.shard.key}: a newer attempt took over;"
            " this one stops and publishes nothing"
        )


def give_way(entry: Entry, claim: Claim) -> GivingWay:
    """What gives way to the claim's rows as the table is now.

    Partitions may move between the shards of two plans, so an earlier plan's rows go when the whole of this plan is there, not before: no
    reader misses a row on its way from one shard to another.
    """
    current = _current(entry, claim)
    peers = {each.publication for each in current if each.shard != claim.shard.index}
    past = tuple(each.publication for each in entry.landed if each.publication not in peers)
    if len(peers) + 1 == claim.shard.of:
        return GivingWay(past, past)
    return GivingWay(past, tuple(each.publication for each in current if each.shard == claim.shard.index))


def land(entry: Entry, claim: Claim, publication: int, stale: Sequence[int], figures: Figures, *, rows: int, rejected: int) -> Entry:
    """The entry that a landing writes."""
    mine = Landed(
        publication,
        claim.shard.index,
        claim.shard.of,
        claim.plan,
        claim.fingerprint,
        claim.epoch,
        claim.input_generation,
        rows,
        rejected,
        figures.distinct,
        figures.written,
        figures.removed,
        claim.generation,
        figures.deleted,
    )
    return msgspec.structs.replace(
        entry,
        claims=tuple(each for each in entry.claims if each.publication != publication),
        landed=(*(each for each in entry.landed if each.publication not in stale), mine),
    )


def landed(entry: Entry, publication: int) -> Landed | None:
    """What a publication landed, or None."""
    return next((each for each in entry.landed if each.publication == publication), None)
