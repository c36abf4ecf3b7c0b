"""``DeletesConformance``: tries whether a sink that takes deletes makes them exactly, in whatever order windows are published."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from factory_agents.kafka.messages import Message
from factory_agents.protocol import Shard
from factory_agents.runtime.agents import SinkOutcome
from factory_agents.testing.conformance import APART, Publishers, SinkConformance, SinkTarget, dies
from factory_agents.testing.records import CONTRACT, W1, W2, W3, at, event, gone, record

__all__ = ["DeletesConformance"]


def _counts(outcome: SinkOutcome) -> dict[str, int]:
    names = ("written", "duplicates", "older", "deleted")
    assert outcome.rows == sum(getattr(outcome, name) for name in names)
    return {name: getattr(outcome, name) for name in names if getattr(outcome, name)}


class DeletesConformance:
    """Subclass it, like ``SinkConformance`` or beside it, for a sink with ``deletes``."""

    DELETE_HISTORIES = 20
    """Random histories of publications that are compared with the model."""

    @pytest.fixture
    def deletes(self, target: SinkTarget) -> Iterator[Publishers]:
        """Publishers whose contract has deletes."""
        publishers = Publishers(target)
        publishers.contract = CONTRACT | {"deletes": True}
        yield publishers
        publishers.close()

    def test_a_record_without_a_value_removes_its_keys_row(self, deletes: Publishers) -> None:
        deletes.publish(at([event("a"), event("b"), event("it's")]))
        outcome = deletes.publish([gone("a"), gone("it's"), gone(b'{"id": "never there"}', 1)], W2)
        assert _counts(outcome) == {"deleted": 3}
        assert deletes.rows() == {"b": "x"}

    def test_within_a_window_the_records_order_counts(self, deletes: Publishers) -> None:
        rows = [record(event("a", "1", 5), 0, 0), gone("a", 1), record(event("a", "2", 1), 0, 2), record(event("b"), 0, 3), gone("b", 4)]
        outcome = deletes.publish([*rows, gone("c", 5), record(event("c"), 0, 6), gone("c", 7)])
        assert _counts(outcome) == {"written": 1, "duplicates": 5, "deleted": 2}
        assert deletes.rows() == {"a": "2"}

    def test_a_delete_outweighs_any_version_before_it_and_none_after(self, deletes: Publishers) -> None:
        deletes.publish(at([event("a", "old", 9, "2030-01-01T00:00:00Z")]))
        deletes.publish([gone("a", 1), record(event("a", "new", 1), 0, 2)], W2)
        assert deletes.rows() == {"a": "new"}

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
    def test_windows_leave_the_same_in_whatever_order_they_land(self, deletes: Publishers, order: Sequence[int]) -> None:
        publications: list[tuple[list[Message], str]] = [
            (at([event("a", "first", 1), event("b", "first", 1)]), W1),
            ([gone("a", 2), gone("b", 3)], W2),
            ([record(event("a", "third", 1), 0, 4)], W3),
        ]
        for i in order:
            deletes.publish(*publications[i])
        assert deletes.rows() == {"a": "third"}

    def test_deletes_of_a_window_that_is_published_again_go_with_it(self, deletes: Publishers) -> None:
        first = at([event("a", "1"), event("b", "1")])
        deletes.publish(first)
        for generation in (1, 2):
            assert deletes.publish([gone("a", 5)], W2, input_generation=generation).deleted == 1
        assert deletes.rows() == {"b": "1"}
        deletes.publish([record(event("b", "2"), 0, 6)], W2, input_generation=3)
        assert deletes.publish(first, input_generation=2).older == 1
        assert deletes.rows() == {"a": "1", "b": "2"}

    def test_a_delete_replaces_what_its_own_window_had_written(self, deletes: Publishers) -> None:
        deletes.publish(at([event("a", "1", 9), event("b")]))
        assert _counts(deletes.publish([gone("a")], input_generation=2)) == {"deleted": 1}
        assert deletes.rows() == {}
        deletes.publish(at([event("a", "2", 1)]), input_generation=3)
        assert deletes.rows() == {"a": "2"}

    def test_a_delete_that_is_older_than_what_is_there_is_older(self, deletes: Publishers) -> None:
        deletes.publish([*at([event("a")]), gone("b", 9)], W2)
        assert _counts(deletes.publish([gone("a"), record(event("b"), 0, 1), gone("b", 2)])) == {"older": 2, "duplicates": 1}
        assert deletes.rows() == {"a": "x"}

    def test_a_key_that_says_nothing_is_a_dead_letter(self, deletes: Publishers) -> None:
        deletes.contract = {"name": "n", "key": ["n", "id"], "deletes": True, "columns": {"n": "bigint", "id": "text", "value": "text"}}
        sink = deletes.sink()
        sink.claim(deletes.claim())
        rejected = sink.write([gone(None), gone("a", 1), gone(b'{"n": 1}', 2), gone(b'{"n": "one", "id": "a"}', 3), gone(b'[1, "a"]', 4)])
        assert (sorted(rejected), {each.rule for each in rejected.values()}) == ([0, 1, 2, 3], {"key"})
        assert _counts(sink.commit(rejected=4)) == {"deleted": 1}

    def test_an_event_that_the_contract_marks_as_a_delete_is_one_and_its_key_alone_counts(self, deletes: Publishers) -> None:
        deletes.contract = CONTRACT | {"deletes": {"field": "value", "values": ["gone", "g"]}}
        deletes.publish(at([event(key, "x", 9) for key in ("a", "b", "it's", "d")]))
        unfit = {"id": "it's", "value": "g", "version": "none", "at": [0]}
        rows = [event("a", "gone", 1), unfit, event("d", "gone"), event("d", "back", 1), event("b", "Gone", 10), event("never", "gone")]
        assert _counts(deletes.publish([*at(rows), gone("c", 6)], W2)) == {"written": 2, "duplicates": 1, "deleted": 4}
        assert deletes.rows() == {"b": "Gone", "d": "back"}
        sink = deletes.sink()
        sink.claim(deletes.claim(W3))
        rejected = sink.write(at([{"value": "gone"}, {"id": None, "value": "gone"}, b'{"value": "gone", ', event("b", "gone")]))
        assert {i: reject.rule for i, reject in rejected.items()} == {0: "key", 1: "key", 2: "decode"}
        assert _counts(sink.commit(rejected=3)) == {"deleted": 1}

    def test_hostile_keys_are_deleted_as_they_were_written(self, deletes: Publishers) -> None:
        keys = [text[:500] for text in SinkConformance.HOSTILE] + ["5", "null", "{", "[1]", '{"id"', " a ", "ａ", "A", "a"]
        deletes.publish(at([event(key) for key in [*keys, "b"]]))
        assert deletes.publish([gone(key, i) for i, key in enumerate(keys)], W2).deleted == len(keys)
        assert deletes.rows() == {"b": "x"}

    def test_a_key_of_several_columns_is_deleted_as_they_are_compared(self, deletes: Publishers) -> None:
        columns = {"n": "numeric", "at": "timestamptz", "day": "date", "id": "text", "value": "text"}
        deletes.contract = {"name": "n", "key": ["n", "at", "day", "id"], "deletes": True, "columns": columns}
        row = {"n": "10.50", "at": "2026-11-01T00:00:00+00:00", "day": "2026-11-01", "id": "a"}
        deletes.publish(at([{**row, "value": "x"}, {**row, "id": "b", "value": "x"}]))
        key = json.dumps({**row, "n": 10.5, "at": "2026-11-01T01:00:00+01:00"}).encode()
        assert deletes.publish([gone(key)], W2).deleted == 1
        assert deletes.rows() == {"b": "x"}

    def test_columns_that_are_never_null_don_t_matter_to_a_delete(self, deletes: Publishers) -> None:
        kinds = {"value": "text", "n": "bigint", "d": "numeric(20,4)", "ok": "boolean", "t": "timestamptz", "day": "date", "j": "json"}
        columns, types = {"id": "text", **kinds}, {"n": "integer", "ok": "boolean", "j": "object"}
        schema = {"type": "object", "required": [*columns], "properties": {n: {"type": types.get(n, "string")} for n in columns}}
        order = {"id": "id", "version_field": "n", "time": "t"}
        deletes.contract = {"name": "n", **order, "deletes": True, "schema": schema, "columns": columns}
        row = {"value": "x", "n": 1, "d": "1.5", "ok": True, "t": "2026-11-01T00:00:00Z", "day": "2026-11-01", "j": {"a": [None, "ü"]}}
        deletes.publish(at([{"id": "a", **row}, {"id": "b", **row}]))
        assert deletes.publish([gone("a")], W2).deleted == 1
        assert deletes.publish(at([{"id": "a", **row}]), W1, input_generation=2).older == 1
        assert deletes.rows() == {}, "b is no longer in its window, and a was deleted after it"

    def test_shards_planned_again_take_their_deletes_along(self, deletes: Publishers) -> None:
        deletes.publish(at([event(key) for key in "abcd"]))
        for i, key in enumerate("abc"):
            deletes.publish([gone(key, 9, i)], W2, Shard(i, 3), plan="three")
        assert deletes.rows() == {"d": "x"}
        for i, key in enumerate("ad"):
            deletes.publish([gone(key, 9, i)], W2, Shard(i, 2), plan="two", input_generation=2)
        deletes.publish(at([event(key) for key in "abcd"]), input_generation=2)
        assert deletes.rows() == {"b": "x", "c": "x"}

    def test_a_window_and_an_older_one_at_once_leave_what_was_deleted_deleted(self, deletes: Publishers) -> None:
        deletes.publish([], W3)  # the table is there
        work: list[tuple[list[Message], str]] = [(at([event("a"), event("b")]), W1), ([gone("a")], W2)]
        claims = [deletes.claim(window) for _, window in work]

        def attempt(i: int) -> None:
            with deletes.attempt() as sink:
                sink.claim(claims[i])
                assert sink.write(work[i][0]) == {}
                sink.commit(rejected=0)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(attempt, range(2)))
        assert deletes.rows() == {"b": "x"}

    @pytest.mark.parametrize("first", range(APART))
    def test_a_publisher_of_deletes_that_dies_at_any_step_is_completed_by_the_next_one(
        self, deletes: Publishers, monkeypatch: pytest.MonkeyPatch, first: int
    ) -> None:
        older = at([event("k", "1"), event("gone"), event("stays")])
        step, died = first, True
        while died:
            deletes.publish(older, input_generation=1 + step)
            rows = [gone("gone", 7), gone("k", 8), record(event("k", str(step)), 0, 9), gone("never", 10)]
            same: dict[str, Any] = {"window": W2, "fingerprint": f"step {step}", "input_generation": 2 + step}
            died = dies(deletes, monkeypatch, step, rows, same)
            outcome = deletes.publish(rows, **same)
            assert _counts(outcome) == {"written": 1, "duplicates": 1, "deleted": 2}, f"step {step}"
            assert deletes.publish(older, input_generation=2 + step).older == 2, f"step {step}"
            assert deletes.rows() == {"k": str(step), "stays": "x"}, f"step {step}"
            step += APART

    def test_any_history_with_deletes_leaves_what_the_rules_say(self, deletes: Publishers) -> None:
        for seed in range(self.DELETE_HISTORIES):
            if seed:
                deletes.target.drop()
            deletes.generation, model, chance = 0, _Model(), random.Random(seed)
            for generation in range(1, chance.randint(2, 9)):
                window = f"{chance.choice((W1, W2, W3))}{seed}"
                records = [_random_record(chance, offset) for offset in range(chance.randint(0, 6))]
                outcome = deletes.publish(records, window, input_generation=generation)
                expected = model.publish(window, generation, records)
                assert (outcome.written, outcome.older, outcome.deleted) == expected, f"history {seed}, publication {generation}"
                assert deletes.rows() == {key: row["value"] for key, row in model.table.items()}, f"history {seed}"


def _random_record(chance: random.Random, offset: int) -> Message:
    key, timestamp = chance.choice("abc"), chance.randint(0, 2)
    if chance.random() < 0.4:
        return gone(key, offset, timestamp=timestamp)
    return record(event(key, chance.choice("xyz"), chance.choice((None, 0, 1))), 0, offset, timestamp)


class _Model:
    """The table and the deletes that are remembered, by the rules, in dictionaries."""

    def __init__(self) -> None:
        self.table: dict[str, dict[str, Any]] = {}
        self.deleted: dict[str, dict[str, Any]] = {}

    def publish(self, window: str, generation: int, records: Sequence[Message]) -> tuple[int, int, int]:
        """(written, older, deleted)."""
        tombstones: dict[str, tuple[Any, ...]] = {}
        rows: dict[str, dict[str, Any]] = {}
        for each in records:
            place = (window, each.timestamp()[1], each.partition(), each.offset())
            if each.value() is None:
                key = (each.key() or b"").decode()
                tombstones[key] = max(tombstones.get(key, place), place)
        for each in records:
            place = (window, each.timestamp()[1], each.partition(), each.offset())
            value = each.value()
            if value is None:
                continue
            e = json.loads(value)
            row = {"value": e["value"], "rank": (e["version"] is not None, e["version"] or 0, *place), "place": place}
            key = e["id"]
            if (key not in tombstones or place > tombstones[key]) and (key not in rows or row["rank"] > rows[key]["rank"]):
                rows[key] = row
        keys = {*tombstones, *(json.loads(v)["id"] for each in records if (v := each.value()) is not None)}
        self._forgets(window, tombstones, rows)
        owner = {"window": window, "generation": generation}
        self._deletes(tombstones, owner)
        written = self._writes(rows, owner)
        gone_ = sum(key not in rows and key not in self.table for key in tombstones)
        for held in (self.table, self.deleted):
            for key in [k for k, each in held.items() if each["window"] == window and each["generation"] != generation]:
                del held[key]
        return written, len(keys) - written - gone_, gone_

    def _forgets(self, window: str, tombstones: dict[str, Any], rows: dict[str, Any]) -> None:
        """Leave out what deletes of other windows outweigh."""
        for key, known in self.deleted.items():
            if known["window"] == window:
                continue
            if key in tombstones and known["place"] > tombstones[key]:
                del tombstones[key]
            if key in rows and rows[key]["place"] <= known["place"]:
                del rows[key]

    def _deletes(self, tombstones: dict[str, Any], owner: dict[str, Any]) -> None:
        for key, place in tombstones.items():
            there = self.table.get(key)
            if there is not None and (there["window"] == owner["window"] or there["place"] <= place):
                del self.table[key]
            self.deleted[key] = {"place": place, **owner}

    def _writes(self, rows: dict[str, Any], owner: dict[str, Any]) -> int:
        written = 0
        for key, row in rows.items():
            there = self.table.get(key)
            if there is None or there["window"] == owner["window"] or row["rank"] >= there["rank"]:
                self.table[key] = {**row, **owner}
                written += 1
        return written
