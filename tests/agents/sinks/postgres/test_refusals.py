"""Rows that the database refuses by themselves: found, named, and left out, so that the others land."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from psycopg import sql

from factory_agents.errors import SinkError, UnavailableError
from factory_agents.runtime.agents import Reject, RowsRefused, SinkOutcome
from factory_agents.sinks.postgres import merge, refusals
from tests.support.sink_bench import W1, W2, Bench, event, record

COLUMNS = "id text PRIMARY KEY, value text, version int8, at timestamptz"
OWN = "_factory_window timestamptz, _factory_publication integer, _factory_partition integer, _factory_offset bigint, "
OWN += "_factory_timestamp bigint"


def create(bench: Bench, definition: str, *, tracked: bool = True, more: str = "") -> None:
    for statement in (f"CREATE TABLE {{t}} ({COLUMNS}{', ' + OWN if tracked else ''}{definition}", *filter(None, more.split(";; "))):
        bench.admin.execute(sql.SQL(statement).format(t=sql.Identifier(bench.name)))  # type: ignore[arg-type]


def publish(bench: Bench, events: Sequence[dict[str, Any]], window: str = W1) -> tuple[SinkOutcome, dict[int, Reject]]:
    """What landed, and why what else didn't, by offset."""
    refused: dict[int, Reject] = {}
    sink = bench.sink()
    assert sink.claim(bench.claim(window)) is None
    for i, one in enumerate(events):
        assert sink.write([record(one, 0, i)]) == {}
    while True:
        try:
            outcome = sink.commit(rejected=len(refused))
            break
        except RowsRefused as answer:
            refused |= {offset: reject for (_, offset), reject in answer.rows.items()}
    sink.close()
    assert outcome.rows + len(refused) == len(events)
    assert outcome.rows == outcome.written + outcome.duplicates + outcome.older + outcome.dropped
    assert outcome.rejected == len(refused)
    return outcome, refused


GOOD = [event(f"k{i}", "fine") for i in range(7)]
BAD = event("k3b", "bad")


class TestOneRow:
    @pytest.mark.parametrize("tracked", [True, False], ids=["straight in", "merged"])
    @pytest.mark.parametrize("place", [0, 3, 7])
    def test_against_a_check_is_named_and_the_others_land(self, bench: Bench, tracked: bool, place: int) -> None:
        create(bench, ", CONSTRAINT not_bad CHECK (value <> 'bad'))", tracked=tracked)
        outcome, refused = publish(bench, [*GOOD[:place], BAD, *GOOD[place:]])
        assert list(refused) == [place]
        assert refused[place].rule == "not_bad"
        assert "violates check constraint" in refused[place].reason
        assert outcome.written == 7
        assert set(bench.rows()) == {e["id"] for e in GOOD}

    @pytest.mark.parametrize("deferred", ["", " DEFERRABLE INITIALLY DEFERRED"])
    def test_against_a_foreign_key(self, bench: Bench, deferred: str) -> None:
        name = bench.name
        bench.admin.execute(f"CREATE TABLE known_{name} (value text PRIMARY KEY)")  # type: ignore[arg-type]
        bench.admin.execute(f"INSERT INTO known_{name} VALUES ('fine')")  # type: ignore[arg-type]
        create(bench, f", CONSTRAINT known FOREIGN KEY (value) REFERENCES known_{name}{deferred})")
        _, refused = publish(bench, [*GOOD, BAD])
        assert {o: r.rule for o, r in refused.items()} == {7: "known"}
        assert "(value)=(bad) is not present" in refused[7].reason

    @pytest.mark.parametrize("piece", [1000, 2])
    def test_that_a_trigger_gives_the_key_of_another_is_named(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
        """The database could take neither beside the other, whatever the order."""
        monkeypatch.setattr(refusals, "_PIECE", piece)
        lower = f"CREATE FUNCTION lower_{bench.name}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.id := lower(NEW.id); RETURN NEW; END'"
        trigger = f"CREATE TRIGGER lower BEFORE INSERT ON {{t}} FOR EACH ROW EXECUTE FUNCTION lower_{bench.name}()"
        create(bench, ")", more=f"{lower};; {trigger}")
        outcome, refused = publish(bench, [event(key, key) for key in ("A", "B", "C", "a", "b", "d")])
        assert {o: r.rule for o, r in refused.items()} == {3: "trigger", 4: "trigger"}
        assert "the key of another row of its window" in refused[3].reason
        assert outcome.written == 4
        assert bench.rows() == {"a": "A", "b": "B", "c": "C", "d": "d"}

    @pytest.mark.parametrize("deferred", ["", " DEFERRABLE INITIALLY DEFERRED"])
    def test_against_a_second_unique_constraint(self, bench: Bench, deferred: str) -> None:
        create(bench, f", CONSTRAINT each_{bench.name} UNIQUE (version){deferred})")
        events = [event("a", version=1), event("b", version=2), event("c", version=1), event("d", version=3)]
        outcome, refused = publish(bench, events)
        assert {o: r.rule for o, r in refused.items()} == {2: f"each_{bench.name}"}
        assert set(bench.rows()) == {"a", "b", "d"}
        assert outcome.written == 3
        assert list(publish(bench, [event("e", version=2), event("f", version=9)], W2)[1]) == [0]

    def test_without_a_partition(self, bench: Bench) -> None:
        create(bench, ") PARTITION BY LIST (id)")
        for key in ("a", "b"):
            bench.admin.execute(f"CREATE TABLE {bench.name}_{key} PARTITION OF {bench.name} FOR VALUES IN ('{key}')")  # type: ignore[arg-type]
        _, refused = publish(bench, [event("a"), event("none"), event("b")])
        assert {o: r.rule for o, r in refused.items()} == {1: "partition"}
        assert "(id) = (none)" in refused[1].reason
        assert set(bench.rows()) == {"a", "b"}

    def test_against_a_domains_check(self, bench: Bench) -> None:
        bench.admin.execute(f"CREATE DOMAIN d_{bench.name} AS text CONSTRAINT short CHECK (length(VALUE) < 4)")  # type: ignore[arg-type]
        create(bench, ")")
        bench.admin.execute(f"ALTER TABLE {bench.name} ALTER value TYPE d_{bench.name}")  # type: ignore[arg-type]
        for window in (W1, W2):
            _, refused = publish(bench, [event("a", "ok"), event("b", "too long"), event("c", "ok")], window)
            assert {o: r.rule for o, r in refused.items()} == {1: "short"}

    @pytest.mark.parametrize("tracked", [True, False], ids=["straight in", "merged"])
    @pytest.mark.parametrize("column", ["{d}[]", "{n}"], ids=["a list of a domain", "a domain of such lists"])
    def test_against_the_check_of_a_lists_elements(self, bench: Bench, tracked: bool, column: str) -> None:
        name = bench.name
        bench.admin.execute(f"CREATE DOMAIN p_{name} AS integer")  # type: ignore[arg-type]
        bench.admin.execute(f"CREATE DOMAIN d_{name} AS p_{name} CONSTRAINT positive CHECK (VALUE > 0)")  # type: ignore[arg-type]
        bench.admin.execute(f"CREATE DOMAIN n_{name} AS d_{name}[] CONSTRAINT few CHECK (array_length(VALUE, 1) < 4)")  # type: ignore[arg-type]
        create(bench, ", numbers " + column.format(d=f"d_{name}", n=f"n_{name}") + ")", tracked=tracked)
        bench.contract = {"name": "lists", "id": "id", "columns": {"id": "text", "numbers": "integer[]"}}
        lists: list[list[int | None]] = [[1, 2], [3, -1], [], [None, 4], [1, 2, 3, 4]]
        _, refused = publish(bench, [event(str(i)) | {"numbers": numbers} for i, numbers in enumerate(lists)])
        few = {4: "few"} if column == "{n}" else {}
        assert {o: r.rule for o, r in refused.items()} == {1: "positive"} | few
        assert dict(bench.query("SELECT id, numbers::text FROM {t}"))["3"] == "{NULL,4}"

    def test_against_not_null_of_a_partition_or_a_trigger(self, bench: Bench) -> None:
        create(bench, ") PARTITION BY LIST (id)")
        bench.admin.execute(f"CREATE TABLE {bench.name}_a PARTITION OF {bench.name} (version NOT NULL) FOR VALUES IN ('a')")  # type: ignore[arg-type]
        bench.admin.execute(f"CREATE TABLE {bench.name}_b PARTITION OF {bench.name} DEFAULT")  # type: ignore[arg-type]
        _, refused = publish(bench, [event("a"), event("b")])
        assert list(refused) == [0]
        assert "null value in column" in refused[0].reason

    def test_that_a_trigger_refuses(self, bench: Bench) -> None:
        create(bench, ")")
        trigger(bench, "IF NEW.value = 'bad' THEN RAISE EXCEPTION 'no bad values here'; END IF; RETURN NEW;")
        _, refused = publish(bench, [*GOOD, BAD])
        assert {o: (r.rule, r.reason) for o, r in refused.items()} == {7: ("trigger", "the database refuses it: no bad values here")}

    @pytest.mark.parametrize("code", ["check_violation", "no_data_found", "45000", "MY001", "raise_exception", "insufficient_privilege"])
    def test_that_a_trigger_refuses_with_a_code_of_its_own(self, bench: Bench, code: str) -> None:
        create(bench, ")")
        trigger(bench, f"IF NEW.value = 'bad' THEN RAISE 'no bad values' USING ERRCODE = '{code}'; END IF; RETURN NEW;")
        _, refused = publish(bench, [*GOOD, BAD])
        assert {o: (r.rule, r.reason) for o, r in refused.items()} == {7: ("trigger", "the database refuses it: no bad values")}

    def test_for_which_a_trigger_finds_nothing(self, bench: Bench) -> None:
        create(bench, ")")
        trigger(bench, f"SELECT id INTO STRICT NEW.value FROM {bench.name} WHERE NEW.value <> 'bad' LIMIT 1; RETURN NEW;")
        bench.admin.execute(f"ALTER TABLE {bench.name} DISABLE TRIGGER USER")  # type: ignore[arg-type]
        publish(bench, [GOOD[0]])
        bench.admin.execute(f"ALTER TABLE {bench.name} ENABLE TRIGGER USER")  # type: ignore[arg-type]
        _, refused = publish(bench, [GOOD[1], BAD], W2)
        assert list(refused) == [1]

    def test_for_which_a_trigger_finds_several(self, bench: Bench) -> None:
        create(bench, ")")
        trigger(bench, "NEW.value := (SELECT v FROM (VALUES ('fine'), ('bad'), ('bad')) AS known (v) WHERE v = NEW.value); RETURN NEW;")
        _, refused = publish(bench, [*GOOD, BAD])
        assert list(refused) == [7]
        assert "more than one row" in refused[7].reason

    @pytest.mark.parametrize("code", ["serialization_failure", "disk_full", "query_canceled"])
    def test_that_a_trigger_has_no_time_or_place_for_fails_as_a_whole(self, bench: Bench, code: str) -> None:
        create(bench, ")")
        trigger(bench, f"RAISE 'not now' USING ERRCODE = '{code}';")
        with pytest.raises(UnavailableError, match="not now"):
            publish(bench, GOOD)

    @pytest.mark.parametrize("name", ["n", "newest", "refused", "p", "o", "s", "t", "excluded"])
    def test_of_a_column_of_any_name(self, bench: Bench, name: str) -> None:
        bench.contract = {"name": "n", "id": "id", "columns": {"id": "text", name: "integer"}}
        bench.publish([])
        bench.admin.execute(sql.SQL("ALTER TABLE {} ADD CHECK ({} < 5)").format(sql.Identifier(bench.name), sql.Identifier(name)))
        outcome, refused = publish(bench, [{"id": "a", name: 1}, {"id": "b", name: 7}])
        assert (outcome.written, list(refused)) == (1, [1])

    def test_whose_key_is_too_large_for_the_index(self, bench: Bench) -> None:
        bench.contract = {"name": "n", "id": "id", "columns": {"id": "text[]", "value": "text"}}
        long = [f"{i:032x}" for i in range(2000)]
        sink = bench.sink()
        sink.claim(bench.claim())
        sink.write([record({"id": ["a"], "value": "x"}, 0, 0), record({"id": long, "value": "x"}, 0, 1)])
        with pytest.raises(RowsRefused) as answer:
            sink.commit(rejected=0)
        assert list(answer.value.rows) == [(0, 1)]
        assert sink.commit(rejected=1).written == 1

    def test_that_is_the_newest_of_its_key_leaves_the_one_before(self, bench: Bench) -> None:
        create(bench, ", CONSTRAINT not_bad CHECK (value <> 'bad'))")
        events = [event("a", "first", 1), event("a", "bad", 3), event("a", "bad", 4), event("a", "second", 2), event("b")]
        outcome, refused = publish(bench, events)
        assert sorted(refused) == [1, 2]
        assert (outcome.written, outcome.duplicates) == (2, 1)
        assert bench.rows() == {"a": "second", "b": "x"}

    def test_whose_parent_comes_later_in_the_window_is_not_refused(self, bench: Bench) -> None:
        create(bench, ", CONSTRAINT parent FOREIGN KEY (value) REFERENCES {t})")
        events = [event("a", "z"), event("b", "none"), event("y", None), event("z", "y")]
        _, refused = publish(bench, events)
        assert {o: r.rule for o, r in refused.items()} == {1: "parent"}
        assert set(bench.rows()) == {"a", "y", "z"}

    def test_does_not_undo_an_earlier_publication_of_its_key(self, bench: Bench) -> None:
        create(bench, ", CONSTRAINT not_bad CHECK (value <> 'bad'))")
        publish(bench, [event("a", "good")], W1)
        publish(bench, [event("a", "bad"), event("b")], W2)
        assert bench.rows() == {"a": "good", "b": "x"}


class TestManyRows:
    @pytest.mark.parametrize("share", [2, 50])
    def test_are_all_found(self, bench: Bench, share: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(merge, "_MOST_REFUSED", 100)
        create(bench, ", CONSTRAINT not_bad CHECK (value <> 'bad'))")
        events = [event(f"k{i:05}", "bad" if i % share == 0 else "fine") for i in range(300)]
        sink = bench.sink()
        sink.claim(bench.claim())
        sink.write([record(e, 0, i) for i, e in enumerate(events)])
        refused: set[int] = set()
        answers = 0
        while True:
            try:
                outcome = sink.commit(rejected=len(refused))
                break
            except RowsRefused as answer:
                answers += 1
                refused |= {offset for _, offset in answer.rows}
        assert refused == set(range(0, 300, share))
        assert outcome.written == 300 - len(refused)
        assert answers <= 3

    def test_cost_a_few_statements_each_and_leave_no_savepoint(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """Savepoints that are kept make each later statement slower than the one before."""
        create(bench, ", CONSTRAINT not_bad CHECK (value <> 'bad'))")
        sent: list[str] = []
        execute = psycopg.Connection.execute

        def note(connection: Any, query: Any, *args: Any, **more: Any) -> Any:
            sent.append(query if isinstance(query, str) else query.as_string(connection))
            return execute(connection, query, *args, **more)

        monkeypatch.setattr(psycopg.Connection, "execute", note)
        events = [event(f"k{i:05}", "bad" if i % 10 == 5 else "fine") for i in range(2000)]
        _, refused = publish(bench, events)
        assert sorted(refused) == list(range(5, 2000, 10))
        tries = [query for query in sent if "factory_try" in query]
        assert len(tries) < 6 * len(refused)
        assert all("RELEASE SAVEPOINT factory_try" in query for query in tries)

    def test_that_only_the_last_step_refuses_fail_as_a_whole(self, bench: Bench) -> None:
        """A row that others refer to can't be swept: no row of this window is at fault."""
        create(bench, ")")
        publish(bench, [event("a"), event("b")])
        bench.admin.execute(f"CREATE TABLE child_{bench.name} (id text REFERENCES {bench.name})")  # type: ignore[arg-type]
        bench.admin.execute(f"INSERT INTO child_{bench.name} VALUES ('a')")  # type: ignore[arg-type]
        sink = bench.sink()
        sink.claim(bench.claim(W1, fingerprint="changed"))
        sink.write([record(event("b"), 0, 0)])
        with pytest.raises(SinkError, match="foreign key"):
            sink.commit(rejected=0)
        assert set(bench.rows()) == {"a", "b"}


def trigger(bench: Bench, body: str, when: str = "BEFORE INSERT OR UPDATE") -> None:
    name = bench.name
    bench.admin.execute(f"CREATE FUNCTION f_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$")  # type: ignore[arg-type]
    bench.admin.execute(f"CREATE TRIGGER t {when} ON {name} FOR EACH ROW EXECUTE FUNCTION f_{name}()")  # type: ignore[arg-type]


class TestTriggersAndRules:
    SKIP = "IF NEW.value = 'skip' THEN RETURN NULL; END IF; RETURN NEW;"

    @pytest.mark.parametrize("tracked", [True, False])
    def test_rows_that_a_trigger_drops_are_counted_as_dropped(self, bench: Bench, tracked: bool) -> None:
        create(bench, ")", tracked=tracked)
        trigger(bench, self.SKIP)
        outcome, _ = publish(bench, [event("a"), event("b", "skip"), event("c", "skip"), event("a"), event("d", "x", 5)])
        assert (outcome.written, outcome.duplicates, outcome.older, outcome.dropped) == (2, 1, 0, 2)
        outcome, _ = publish(bench, [event("a", "skip"), event("d", "older", 4), event("d", "skip", 3), event("e")], W2)
        assert (outcome.written, outcome.duplicates, outcome.older, outcome.dropped) == (1, 1, 1, 1)
        assert bench.rows() == {"a": "x", "d": "x", "e": "x"}

    def test_rows_that_a_trigger_changes_are_changed_once_and_written(self, bench: Bench) -> None:
        create(bench, ")")
        trigger(bench, "NEW.value := NEW.value || '!'; RETURN NEW;", "BEFORE INSERT")
        outcome, _ = publish(bench, [event("a"), event("b"), event("a", "y")])
        assert (outcome.written, outcome.duplicates, outcome.dropped) == (2, 1, 0)
        assert bench.rows() == {"a": "y!", "b": "x!"}

    def test_a_partitions_trigger_counts_too(self, bench: Bench) -> None:
        create(bench, ") PARTITION BY LIST (id)")
        bench.admin.execute(f"CREATE TABLE {bench.name}_a PARTITION OF {bench.name} DEFAULT")  # type: ignore[arg-type]
        whole, bench.name = bench.name, f"{bench.name}_a"
        trigger(bench, self.SKIP)
        bench.name = whole
        outcome, _ = publish(bench, [event("a"), event("b", "skip")])
        assert (outcome.written, outcome.dropped) == (1, 1)

    @pytest.mark.parametrize("when", ["AFTER INSERT", "BEFORE DELETE"])
    def test_others_leave_new_keys_their_straight_way(self, bench: Bench, when: str) -> None:
        create(bench, ")")
        trigger(bench, "RETURN NULL;" if when.startswith("AFTER") else "RETURN OLD;", when)
        assert publish(bench, [event("a"), event("b")])[0].written == 2

    @pytest.mark.parametrize(
        "rule", ["INSERT DO INSTEAD NOTHING", "UPDATE DO INSTEAD NOTHING", "INSERT DO ALSO NOTHING", "DELETE DO INSTEAD NOTHING"]
    )
    def test_rules_are_refused_before_anything_is_written(self, bench: Bench, rule: str) -> None:
        create(bench, ")")
        bench.admin.execute(f"CREATE RULE mine AS ON {rule.replace(' DO', f' TO {bench.name} DO')}")  # type: ignore[arg-type]
        with pytest.raises(SinkError, match=r"has rules \(mine\).*make them triggers"):
            bench.sink().claim(bench.claim())
