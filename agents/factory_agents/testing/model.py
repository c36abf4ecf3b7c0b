"""What any history of publications leaves in a table by the rules, whatever sink made it."""

from __future__ import annotations

import random
from typing import Any, TypeAlias

from factory_agents.testing.records import W1, W2, W3, event

__all__ = ["Model", "Publication", "random_history"]


class Model:
    """The table as the rules have it, kept in dictionaries."""

    def __init__(self) -> None:
        self.table: dict[str, dict[str, Any]] = {}
        self.windows: dict[str, dict[str, Any]] = {}

    def publish(
        self, window: str, shard: tuple[int, int], input_generation: int, generation: int, rows: list[tuple[dict[str, Any], int, int, int]]
    ) -> tuple[int, int, int, int] | None:
        """(written, duplicates, older, removed), or None where it is refused."""
        state = self.windows.setdefault(window, {"plan": None, "turn": 0, "newest": 0, "current": {}})
        if state["newest"] > input_generation:
            return None
        plan = (input_generation, shard[1])
        if state["plan"] != plan:
            state |= {"plan": plan, "turn": state["turn"] + 1, "current": {}}
        best: dict[str, tuple[Any, ...]] = {}
        for e, partition, offset, timestamp in rows:
            rank = (*self.rank(e), timestamp, partition, offset)
            if e["id"] not in best or rank >= best[e["id"]][0]:
                best[e["id"]] = (rank, e, (timestamp, partition, offset))
        owner = {"window": window, "shard": shard, "turn": state["turn"], "generation": generation}
        written = sum(self.put(e, place, owner) for _, e, place in best.values())
        before = state["current"].get(shard)
        state["current"][shard] = generation
        state["newest"] = input_generation
        return written, len(rows) - len(best), len(best) - written, self.sweep(window, shard, before is not None)

    @staticmethod
    def rank(e: dict[str, Any]) -> tuple[Any, ...]:
        return (e["version"] is not None, e["version"] or 0, e["at"] is not None, e["at"] or "")

    def put(self, e: dict[str, Any], place: tuple[int, int, int], owner: dict[str, Any]) -> bool:
        there = self.table.get(e["id"])
        row = {"event": e, "place": place, **owner}
        if there is not None:
            past = there["window"] == owner["window"] and (there["shard"] == owner["shard"] or there["turn"] != owner["turn"])
            newer = (*self.rank(e), owner["window"], place) >= (*self.rank(there["event"]), there["window"], there["place"])
            if not (past or newer):
                return False
        self.table[e["id"]] = row
        return True

    def sweep(self, window: str, shard: tuple[int, int], again: bool) -> int:
        current, turn = self.windows[window]["current"], self.windows[window]["turn"]
        whole = len(current) == shard[1]

        def stale(row: dict[str, Any]) -> bool:
            if row["window"] != window:
                return False
            if whole:
                return bool(current.get(row["shard"]) != row["generation"])
            return again and bool(row["shard"] == shard and row["turn"] == turn and row["generation"] != current[shard])

        gone = [k for k, row in self.table.items() if stale(row)]
        for k in gone:
            del self.table[k]
        return len(gone)


Publication: TypeAlias = "tuple[str, tuple[int, int], int, list[tuple[dict[str, Any], int, int]]]"
"""A window, the shard (index, of), the generation of the input, and events with the partition (of the shard's) and timestamp of each."""


def random_history(chance: random.Random) -> list[Publication]:
    """Up to twelve publications of three windows, over six keys."""
    times = (None, "2026-11-01T00:00:00Z", "2026-11-01T00:30:00Z")

    def publication() -> Publication:
        of = chance.randint(1, 3)
        events = [
            (
                event(chance.choice("abcdef"), chance.choice(("", "x", "y", "zz")), chance.choice((None, 0, 1, 2)), chance.choice(times)),
                chance.randint(0, 1),
                chance.randint(0, 2),
            )
            for _ in range(chance.randint(0, 8))
        ]
        return chance.choice((W1, W2, W3)), (chance.randrange(of), of), chance.randint(1, 3), events

    return [publication() for _ in range(chance.randint(1, 12))]
