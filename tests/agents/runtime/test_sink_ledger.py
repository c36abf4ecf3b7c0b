"""The ledger's rules as they are: pure functions, against the model of what any history leaves. Needs no sink."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from factory_agents.errors import FencedError, SinkError
from factory_agents.protocol import Shard
from factory_agents.runtime import sink_ledger as ledger
from factory_agents.runtime.agents import Claim
from tests.support.publication_model import PUBLICATIONS, Model
from tests.support.sink_bench import W1, WHOLE, event
from tests.support.soak import examples

EMPTY = ledger.Entry()


def claim(shard: Shard = WHOLE, window: str = W1, **changes: Any) -> Claim:
    values = {"plan": "plan", "fingerprint": "f", "input_generation": 1, "generation": 1} | changes
    return Claim("p", "publish", window, shard, **values)


def landed(entry: ledger.Entry, c: Claim, publication: int, **figures: int) -> ledger.Entry:
    """Claim and land."""
    entry = ledger.take(entry, c, publication, "t").entry
    stale = ledger.give_way(entry, c).stale
    rows = figures.pop("rows", 1)
    return ledger.land(entry, c, publication, stale, ledger.Figures(**({"distinct": 1, "written": 1} | figures)), rows=rows, rejected=0)


def test_an_entry_survives_its_text() -> None:
    entry = landed(EMPTY, claim(), 7, rows=5, distinct=4, written=3, removed=2)
    assert ledger.read_entry(ledger.entry_text(entry), "t") == entry
    assert ledger.read_entry(None, "t") == EMPTY
    with pytest.raises(SinkError, match="table t: its ledger holds an entry that cannot be read"):
        ledger.read_entry("{", "t")
    with pytest.raises(SinkError, match="expected the ledger's entry as the text that was stored, got dict"):
        ledger.read_entry({}, "t")  # type: ignore[arg-type]
    outcome = entry.landed[0].outcome("t")
    assert (outcome.rows, outcome.written, outcome.duplicates, outcome.older, outcome.removed) == (5, 3, 1, 1, 2)


def test_every_window_of_every_stage_has_an_entry_of_its_own() -> None:
    names = [("w p", "p", "s"), ("w", "p p", "s"), ("w | p", "", "s"), ("w", "p | s", ""), ("w", "p", "s"), ("w", "p ", "| s")]
    keys = {ledger.entry_key(Claim(pipeline, stage, window, WHOLE, "", "", 0, 0)) for window, pipeline, stage in names}
    assert len(keys) == len(names)
    assert all(key.startswith("w") for key in keys)  # sorted by their windows


def test_a_claim_fences_earlier_ones_of_its_shard_and_all_of_other_plans() -> None:
    entry = EMPTY
    for publication, c in ((1, claim(Shard(0, 2))), (2, claim(Shard(1, 2))), (3, claim(Shard(0, 2)))):
        entry = ledger.take(entry, c, publication, "t").entry
    assert [c.publication for c in entry.claims] == [2, 3]
    with pytest.raises(FencedError, match="shard 0of2: a newer attempt took over; this one stops and publishes nothing"):
        ledger.check_claim(entry, claim(Shard(0, 2)), 1, "t")
    ledger.check_claim(entry, claim(Shard(0, 2)), 3, "t")
    other = ledger.take(entry, claim(Shard(0, 2), plan="other"), 4, "t").entry
    assert [c.publication for c in other.claims] == [4]


def test_shards_of_one_plan_may_have_inputs_of_their_own() -> None:
    entry = landed(EMPTY, claim(Shard(1, 2), input_generation=7), 1)
    entry = landed(entry, claim(Shard(0, 2), input_generation=5), 2)
    for older in (claim(Shard(1, 2), input_generation=6), claim(Shard(0, 2), plan="other", input_generation=5), claim(input_generation=6)):
        with pytest.raises(SinkError, match="older generation"):
            ledger.take(entry, older, 3, "t")


def test_only_a_whole_plan_is_reused() -> None:
    entry = landed(landed(EMPTY, claim(Shard(0, 2), plan="a"), 1), claim(Shard(1, 2), plan="a"), 2)
    assert ledger.take(entry, claim(Shard(0, 2), plan="a"), 9, "t").done is not None
    half = landed(entry, claim(Shard(0, 2), plan="b"), 3)
    assert ledger.take(half, claim(Shard(0, 2), plan="a"), 9, "t").done is None
    assert ledger.take(half, claim(Shard(0, 2), plan="b"), 9, "t").done is not None


@pytest.mark.parametrize(
    ("changes", "reused"),
    [({}, True), ({"plan": "another"}, True), ({"fingerprint": "g"}, False), ({"epoch": 1}, False), ({"reuse": False}, False)],
)
def test_what_is_reused(changes: dict[str, Any], reused: bool) -> None:
    assert (ledger.take(landed(EMPTY, claim(), 1), claim(**changes), 2, "t").done is not None) == reused


def test_a_reused_result_fences_whoever_was_about_to_replace_it() -> None:
    entry = ledger.take(landed(EMPTY, claim(), 1), claim(fingerprint="g"), 2, "t").entry
    taken = ledger.take(entry, claim(), 3, "t")
    assert taken.done is not None
    assert taken.entry.claims == ()


class Table:
    """What the landing transaction does, in dictionaries."""

    def __init__(self) -> None:
        self.entries: dict[str, ledger.Entry] = {}
        self.rows: dict[str, tuple[tuple[Any, ...], int]] = {}
        self.publication = 0

    def publish(self, c: Claim, rows: list[tuple[dict[str, Any], int, int, int]]) -> tuple[int, int, int, int]:
        self.publication += 1
        mine = self.publication
        entry = ledger.take(self.entries.get(c.window, EMPTY), c, mine, "t").entry
        gives_way = ledger.give_way(entry, c)
        ranks = [((*Model.rank(e), c.window, timestamp, partition, offset), e["id"]) for e, partition, offset, timestamp in rows]
        newest = {id_: rank for rank, id_ in sorted(ranks)}
        put = {
            id_: rank
            for id_, rank in newest.items()
            if id_ not in self.rows or self.rows[id_][1] in gives_way.past or rank >= self.rows[id_][0]
        }
        self.rows |= {id_: (rank, mine) for id_, rank in put.items()}
        gone = [id_ for id_, (_, publication) in self.rows.items() if publication in gives_way.stale]
        for id_ in gone:
            del self.rows[id_]
        figures = ledger.Figures(len(newest), len(put), len(gone))
        self.entries[c.window] = ledger.land(entry, c, mine, gives_way.stale, figures, rows=len(rows), rejected=0)
        return len(put), len(rows) - len(newest), len(newest) - len(put), len(gone)


@settings(max_examples=examples(100, 300))
@example([(W1, (0, 2), 1, [(event("a"), 0, 0)]), (W1, (0, 2), 2, []), (W1, (0, 2), 2, [])])
@given(history=st.lists(PUBLICATIONS, min_size=1, max_size=16))
def test_any_history_of_publications_leaves_what_the_rules_say(history: list[Any]) -> None:
    model, table = Model(), Table()
    for generation, (window, (index, of), input_generation, events) in enumerate(history, 1):
        rows = [(e, index + of * p, offset, timestamp) for offset, (e, p, timestamp) in enumerate(events)]
        expected = model.publish(window, (index, of), input_generation, generation, rows)
        c = claim(
            Shard(index, of), window, plan=f"{input_generation}/{of}", fingerprint=f"f{generation}", input_generation=input_generation
        )
        if expected is None:
            with pytest.raises(SinkError, match="older generation"):
                table.publish(c, rows)
            continue
        assert table.publish(c, rows) == expected
        assert sorted(table.rows) == sorted(model.table)
        for entry in table.entries.values():  # it stays small: what is swept is forgotten
            assert len(entry.landed) <= 9
