"""What any history of publications leaves in a table by the rules, whatever sink made it."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.support.sink_bench import W1, W2, W3, event


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
        current = self.windows[window]["current"]
        whole = len(current) == shard[1]

        def stale(row: dict[str, Any]) -> bool:
            if row["window"] != window:
                return False
            if whole:
                return bool(current.get(row["shard"]) != row["generation"])
            return again and bool(row["shard"] == shard and row["generation"] != current[shard])

        gone = [k for k, row in self.table.items() if stale(row)]
        for k in gone:
            del self.table[k]
        return len(gone)


EVENTS = st.builds(
    event,
    st.sampled_from("abcdef"),
    st.text("xyz", max_size=2),
    st.sampled_from([None, 0, 1, 2]),
    st.sampled_from([None, "2026-11-01T00:00:00Z", "2026-11-01T00:30:00Z"]),
)
PUBLICATIONS = st.tuples(
    st.sampled_from([W1, W2, W3]),
    st.integers(1, 3).flatmap(lambda of: st.tuples(st.integers(0, of - 1), st.just(of))),
    st.integers(1, 3),
    st.lists(st.tuples(EVENTS, st.integers(0, 1), st.integers(0, 2)), max_size=8),
)
