"""Tombstones as deletes: a record without a value removes its key's row, exactly, whatever order windows are published in."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import sql

from factory_agents.errors import SinkError
from factory_agents.kafka.messages import Message
from factory_agents.protocol import Shard
from factory_agents.publish import build
from factory_agents.reject import Reject
from factory_agents.runtime.agents import RowsRefused, Sink, SinkOutcome
from factory_agents.sinks.postgres.deletes import memory_of
from factory_agents.sinks.postgres.live import PostgresLive
from factory_agents.testing.records import gone
from tests.support.sink_bench import CONTRACT, W1, W2, W3, WHOLE, Bench, at, event, record
from tests.support.soak import examples

DELETES = CONTRACT | {"deletes": True}
PLAIN = {"name": "n", "id": "id", "deletes": True, "columns": {"id": "text", "value": "text"}}


def counts(outcome: SinkOutcome) -> dict[str, int]:
    names = ("written", "duplicates", "older", "deleted", "dropped")
    assert outcome.rows == sum(getattr(outcome, name) for name in names)
    return {name: getattr(outcome, name) for name in names if getattr(outcome, name)}


@pytest.fixture
def deletes(bench: Bench) -> Bench:
    bench.contract = DELETES
    return bench


class TestATombstone:
    def test_removes_its_keys_row(self, deletes: Bench) -> None:
        deletes.publish(at([event("a"), event("b")]), W1)
        assert counts(deletes.publish([gone("a", offset=9), gone("never there", offset=10)], W2)) == {"deleted": 2}
        assert deletes.rows() == {"b": "x"}

    def test_deletes_by_its_key_alone_whatever_the_key_says(self, deletes: Bench) -> None:
        hostile = ["a' OR '1'='1", "'; DROP TABLE factory_publishes; --", "%", "_", "$1", "a\\", '"', "\u202e"]
        deletes.publish(at([event(name, "1") for name in (*hostile, "a")]), W1)
        assert deletes.rows() == dict.fromkeys((*hostile, "a"), "1")
        assert counts(deletes.publish([gone(name, offset=20 + i) for i, name in enumerate(hostile)], W2)) == {"deleted": len(hostile)}
        assert deletes.rows() == {"a": "1"}

    def test_counts_within_its_window_by_the_records_order(self, deletes: Bench) -> None:
        rows = [record(event("a", "1", 5), 0, 0), gone("a", offset=1), record(event("a", "2", 1), 0, 2)]
        rows += [record(event("b"), 0, 3), gone("b", offset=4), gone("c", offset=5), record(event("c"), 0, 6), gone("c", offset=7)]
        assert counts(deletes.publish(rows, W1)) == {"written": 1, "duplicates": 5, "deleted": 2}
        assert deletes.rows() == {"a": "2"}

    def test_outweighs_any_version_before_it_and_none_after(self, deletes: Bench) -> None:
        deletes.publish(at([event("a", "old", 9, "2030-01-01T00:00:00Z")]), W1)
        deletes.publish([gone("a", offset=1), record(event("a", "new", 1), 0, 2)], W2)
        assert deletes.rows() == {"a": "new"}

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
    def test_leaves_the_same_in_whatever_order_windows_are_published(self, deletes: Bench, order: tuple[int, ...]) -> None:
        publications = [
            ([record(event("a", "first", 1), 0, 0), record(event("b", "first", 1), 0, 1)], W1),
            ([gone("a", offset=2), gone("b", offset=3)], W2),
            ([record(event("a", "third", 1), 0, 4)], W3),
        ]
        for i in order:
            deletes.publish(publications[i][0], publications[i][1])
        assert deletes.rows() == {"a": "third"}

    def test_of_a_window_published_again_goes_with_it(self, deletes: Bench) -> None:
        first = at([event("a", "1"), event("b", "1")])
        deletes.publish(first, W1)
        deletes.publish([gone("a", offset=5)], W2)
        assert deletes.publish([gone("a", offset=5)], W2).deleted == 1
        assert deletes.rows() == {"b": "1"}
        deletes.publish([record(event("b", "2"), 0, 6)], W2)
        assert deletes.publish(first, W1).older == 1
        assert deletes.rows() == {"a": "1", "b": "2"}

    def test_replaces_what_its_window_had_written(self, deletes: Bench) -> None:
        deletes.publish(at([event("a", "1", 9)]), W1)
        assert counts(deletes.publish([gone("a")], W1, input_generation=2)) == {"deleted": 1}
        assert deletes.rows() == {}
        deletes.publish(at([event("a", "2", 1)]), W1, input_generation=3)
        assert deletes.rows() == {"a": "2"}

    def test_of_a_table_that_is_made_again_is_forgotten(self, deletes: Bench) -> None:
        deletes.publish(at([event("a", "1")]))
        deletes.publish([gone("a", 5)], W2)
        deletes.admin.execute(f"DROP TABLE {deletes.name}")  # type: ignore[arg-type]
        deletes.publish([], W2)  # its delete is no longer there
        assert deletes.publish(at([event("a", "1")])).written == 1
        assert deletes.rows() == {"a": "1"}

    def test_older_than_what_the_table_has_is_older(self, deletes: Bench) -> None:
        deletes.publish(at([event("a")]), W2)
        assert counts(deletes.publish([gone("a")], W1)) == {"older": 1}
        assert deletes.rows() == {"a": "x"}

    def test_older_than_another_one_is_older(self, deletes: Bench) -> None:
        deletes.publish([gone("a")], W2)
        assert counts(deletes.publish([record(event("a"), 0, 0), gone("a", offset=1)], W1)) == {"duplicates": 1, "older": 1}

    def test_in_another_partition_counts_by_its_timestamp(self, bench: Bench) -> None:
        bench.contract = PLAIN
        rows = [record({"id": "a", "value": "x"}, 3, 0, timestamp=5), gone("a", 0, 0, timestamp=6), gone("b", 1, 3, timestamp=5)]
        bench.publish([*rows, record({"id": "b", "value": "x"}, 0, 1, timestamp=6)])
        assert bench.rows() == {"b": "x"}

    def test_of_shards_in_parallel_and_of_windows_at_once(self, deletes: Bench) -> None:
        """A delete and an older row of its key that are published at the same moment: neither sees the other before it commits."""
        deletes.publish([], W3)
        started = threading.Barrier(2)

        def publish(rows: list[Message], window: str) -> None:
            sink = build({"table": deletes.name, "contract": DELETES})
            try:
                sink.claim(deletes.claim(window, fingerprint=secrets.token_hex(4)))
                sink.write(rows)
                started.wait()
                sink.commit(rejected=0)
            finally:
                sink.close()

        keys = [f"k{i}" for i in range(50)]
        with ThreadPoolExecutor(2) as pool:
            older = pool.submit(publish, at([event(k) for k in keys]), W1)
            newer = pool.submit(publish, [gone(k, offset=i) for i, k in enumerate(keys)], W2)
            older.result()
            newer.result()
        assert deletes.rows() == {}

    def test_is_written_to_a_table_without_our_columns_too(self, deletes: Bench) -> None:
        deletes.admin.execute(f"CREATE TABLE {deletes.name} (id text PRIMARY KEY, value text, version integer, at timestamptz)")  # type: ignore[arg-type]
        deletes.publish(at([event("a"), event("b")]), W1)
        assert counts(deletes.publish([gone("a")], W2)) == {"deleted": 1}
        assert deletes.publish(at([event("a")]), W1).older == 1
        assert deletes.rows() == {"b": "x"}

    def test_beside_a_row_that_the_database_refuses(self, deletes: Bench) -> None:
        deletes.publish(at([event("a"), event("b")]), W1)
        deletes.admin.execute(f"ALTER TABLE {deletes.name} ADD CONSTRAINT good CHECK (value <> 'bad')")  # type: ignore[arg-type]
        sink = deletes.sink()
        sink.claim(deletes.claim(W2))
        bad = [record(event("c", "bad"), 0, 1), record(event("b", "bad"), 0, 3)]
        sink.write([gone("a"), bad[0], gone("b", offset=2), bad[1], record(event("d"), 0, 4)])
        with pytest.raises(RowsRefused) as answer:
            sink.commit(rejected=0)
        assert sorted(answer.value.rows) == [(0, 1), (0, 3)]
        assert counts(sink.commit(rejected=2)) == {"written": 1, "deleted": 2}
        assert deletes.rows() == {"d": "x"}

    def test_beside_a_trigger_that_drops_rows(self, deletes: Bench) -> None:
        deletes.publish(at([event("a"), event("b")]), W1)
        name = deletes.name
        deletes.admin.execute(f"CREATE FUNCTION f_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$")  # type: ignore[arg-type]
        deletes.admin.execute(f"CREATE TRIGGER t BEFORE INSERT ON {name} FOR EACH ROW EXECUTE FUNCTION f_{name}()")  # type: ignore[arg-type]
        assert counts(deletes.publish([gone("a"), record(event("c"), 0, 1), record(event("c"), 0, 2)], W2)) == {
            "duplicates": 1,
            "deleted": 1,
            "dropped": 1,
        }

    def test_without_deletes_is_rejected_as_what_is_no_event(self, bench: Bench) -> None:
        sink = bench.sink()
        sink.claim(bench.claim())
        assert {i: r.rule for i, r in sink.write([gone("a")]).items()} == {0: "decode"}

    def test_the_agents_parameter_says_more_than_the_contract(self, bench: Bench) -> None:
        for contract, param, takes in ((CONTRACT, True, True), (DELETES, False, False), (DELETES, None, True)):
            bench.contract = contract
            sink = bench.sink(deletes=param)
            sink.claim(bench.claim())
            assert (sink.write([gone("a")]) == {}) == takes
            sink.close()
        assert bench.sink(deletes=True).identity["deletes"]
        assert "deletes" not in bench.sink(deletes=False).identity

    def test_of_a_table_with_a_long_name_is_remembered(self, deletes: Bench) -> None:
        deletes.name = "t" * 40 + secrets.token_hex(10)
        assert len(memory_of(deletes.name)) <= 63
        deletes.publish([gone("a")], W2)
        assert deletes.publish(at([event("a")]), W1).older == 1

    @pytest.mark.parametrize("collation", ['"C"', '"POSIX"', '"default"'])
    def test_of_a_key_in_any_collation(self, deletes: Bench, collation: str) -> None:
        columns = f"id text COLLATE {collation} PRIMARY KEY, value text, version integer, at timestamptz"
        deletes.admin.execute(f"CREATE TABLE {deletes.name} ({columns})")  # type: ignore[arg-type]
        deletes.publish(at([event("ä"), event("b")]), W1)
        deletes.publish([gone("ä")], W2)
        assert deletes.rows() == {"b": "x"}

    @pytest.mark.parametrize("searched", [True, False])
    def test_of_a_key_that_an_extension_compares(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, searched: bool) -> None:
        """Its operators may be in a schema that the session doesn't search: the key of citext is not one of text then."""
        schema = f"s_{bench.name}"
        bench.admin.execute(f"CREATE SCHEMA {schema}")
        try:
            bench.admin.execute("".join(_citext(schema)))  # type: ignore[arg-type]
            bench.admin.execute(f"CREATE DOMAIN {schema}.email AS {schema}.citext")
            bench.admin.execute(f"CREATE TABLE {bench.name} (id {schema}.email PRIMARY KEY, value text)")
            if searched:
                monkeypatch.setenv("DATABASE_URL", f"{bench.url}?options=-csearch_path%3Dpublic,{schema}")
            bench.contract = PLAIN
            rows = [event("abc", "1"), event("ABC", "2"), event("d", "3")]
            assert counts(bench.publish(at(rows), W1)) == {"written": 2, "duplicates": 1}
            assert counts(bench.publish([gone("aBc", offset=9)], W2)) == {"deleted": 1}
            assert bench.rows() == {"d": "3"}
        finally:
            bench.admin.execute(f"DROP SCHEMA {schema} CASCADE")


def _citext(schema: str) -> Iterator[str]:
    """What makes a type like the extension's, which not every server has."""
    type_, of_c = f"{schema}.citext", "LANGUAGE internal IMMUTABLE STRICT"
    yield f"CREATE TYPE {type_};"
    for name, takes, gives in (("in", "cstring", type_), ("out", type_, "cstring"), ("recv", "internal", type_), ("send", type_, "bytea")):
        yield f"CREATE FUNCTION {type_}{name}({takes}) RETURNS {gives} AS 'text{name}' {of_c};"
    parts = ", ".join(
        f"{part} = {type_}{name}" for part, name in (("INPUT", "in"), ("OUTPUT", "out"), ("RECEIVE", "recv"), ("SEND", "send"))
    )
    yield f"CREATE TYPE {type_} ({parts}, INTERNALLENGTH = VARIABLE, STORAGE = extended, COLLATABLE = true);"
    yield f"CREATE CAST ({type_} AS text) WITHOUT FUNCTION AS IMPLICIT; CREATE CAST (text AS {type_}) WITHOUT FUNCTION AS ASSIGNMENT;"
    function = f"CREATE FUNCTION {schema}.{{}}({type_}, {type_}) RETURNS {{}} IMMUTABLE STRICT LANGUAGE sql AS 'SELECT {{}}';"
    yield function.format("cmp", "integer", "btarraycmp(ARRAY[lower($1::text)], ARRAY[lower($2::text)])")
    operators = {"lt": "<", "le": "<=", "eq": "=", "ge": ">=", "gt": ">"}
    for name, sign in operators.items():
        yield function.format(name, "boolean", f"lower($1::text) {sign} lower($2::text)")
        yield f"CREATE OPERATOR {schema}.{sign} (LEFTARG = {type_}, RIGHTARG = {type_}, FUNCTION = {schema}.{name});"
    parts = ", ".join(f"OPERATOR {n} {schema}.{sign}" for n, sign in enumerate(operators.values(), 1))
    yield f"CREATE OPERATOR CLASS {type_} DEFAULT FOR TYPE {type_} USING btree AS {parts}, FUNCTION 1 {schema}.cmp({type_}, {type_});"


@contextmanager
def claimed(bench: Bench, rows: list[Message]) -> Iterator[Sink]:
    """A sink over the second window, to which these records are written."""
    sink = bench.sink()
    sink.claim(bench.claim(W2))
    assert sink.write(rows) == {}
    yield sink
    sink.close()


def refused(sink: Sink) -> dict[int, str]:
    """The rules by which the database refuses records, by their offsets."""
    with pytest.raises(RowsRefused) as answer:
        sink.commit(rejected=0)
    return {offset: reject.rule for (_, offset), reject in answer.value.rows.items()}


class TestOneThatTheDatabaseRefuses:
    @pytest.mark.parametrize("deferred", ["", " DEFERRABLE INITIALLY DEFERRED"])
    def test_for_a_row_that_others_refer_to_is_named_and_the_others_are_made(self, deletes: Bench, deferred: str) -> None:
        deletes.publish(at([event(key) for key in "abc"]), W1)
        deletes.admin.execute(f"CREATE TABLE child_{deletes.name} (id text CONSTRAINT child REFERENCES {deletes.name}{deferred})")  # type: ignore[arg-type]
        deletes.admin.execute(f"INSERT INTO child_{deletes.name} VALUES ('a')")  # type: ignore[arg-type]
        with claimed(deletes, [record(event("a", "before"), 0, 0), *(gone(k, offset=i) for i, k in enumerate("ab", 1))]) as sink:
            assert refused(sink) == {1: "child"}
            assert counts(sink.commit(rejected=1)) == {"written": 1, "deleted": 1}
        assert deletes.rows() == {"a": "before", "c": "x"}

    def test_by_a_trigger_is_named(self, deletes: Bench) -> None:
        deletes.publish(at([event("a"), event("b")]), W1)
        self.trigger(deletes, "IF OLD.id = 'a' THEN RAISE 'stays'; END IF; RETURN OLD;")
        with claimed(deletes, [gone("a"), gone("b", offset=1)]) as sink:
            assert refused(sink) == {0: "trigger"}
            assert counts(sink.commit(rejected=1)) == {"deleted": 1}
        assert deletes.rows() == {"a": "x"}

    def test_is_named_live_too(self, deletes: Bench) -> None:
        live = PostgresLive(deletes.sink().target, {}, "g", "t")
        assert live.process([record(event("a"), 0, 0)]) == [[]]
        self.trigger(deletes, "RAISE 'stays';")
        assert [isinstance(output, Reject) for output in live.process([gone("a", offset=1), record(event("c"), 0, 2)])] == [True, False]
        live.close()
        assert deletes.rows() == {"a": "x", "c": "x"}

    @pytest.mark.parametrize("deferred", ["", " DEFERRABLE INITIALLY DEFERRED"])
    def test_is_not_one_of_rows_that_go_together(self, bench: Bench, deferred: str) -> None:
        bench.contract = {"name": "n", "id": "id", "deletes": True, "columns": {"id": "text", "parent": "text"}}
        bench.admin.execute(
            f"CREATE TABLE {bench.name} (id text PRIMARY KEY, parent text CONSTRAINT tree REFERENCES {bench.name}{deferred})"
        )  # type: ignore[arg-type]
        bench.publish(at([{"id": "a"}, {"id": "b", "parent": "a"}, {"id": "c", "parent": "b"}]), W1)
        lost = record({"id": "d", "parent": "nobody"}, 0, 3)
        with claimed(bench, [*(gone(k, offset=i) for i, k in enumerate("abc")), lost]) as sink:
            assert refused(sink) == {3: "tree"}
            assert counts(sink.commit(rejected=1)) == {"deleted": 3}

    def test_is_not_one_of_a_row_that_comes_again_before_a_deferred_constraint_is_looked_at(self, deletes: Bench) -> None:
        deletes.publish(at([event("a", "old", 9)]), W1)
        name = deletes.name
        deletes.admin.execute(f"ALTER TABLE {name} ADD CONSTRAINT good CHECK (value <> 'bad')")  # type: ignore[arg-type]
        deletes.admin.execute(f"CREATE TABLE child_{name} (id text REFERENCES {name} DEFERRABLE INITIALLY DEFERRED)")  # type: ignore[arg-type]
        deletes.admin.execute(f"INSERT INTO child_{name} VALUES ('a')")  # type: ignore[arg-type]
        with claimed(deletes, [gone("a"), record(event("a", "new", 1), 0, 1), record(event("b", "bad"), 0, 2)]) as sink:
            assert refused(sink) == {2: "good"}
            assert counts(sink.commit(rejected=1)) == {"written": 1, "duplicates": 1}
        assert deletes.rows() == {"a": "new"}

    @pytest.mark.parametrize("tracked", [True, False])
    def test_in_silence_is_counted_as_dropped(self, deletes: Bench, tracked: bool) -> None:
        if not tracked:
            deletes.admin.execute(f"CREATE TABLE {deletes.name} (id text PRIMARY KEY, value text, version integer, at timestamptz)")  # type: ignore[arg-type]
        deletes.publish(at([event("a"), event("b")]), W1)
        self.trigger(deletes, f"UPDATE {deletes.name} SET value = 'deleted' WHERE id = OLD.id; RETURN NULL;")
        assert counts(deletes.publish([gone("a"), gone("never there", offset=1)], W2)) == {"deleted": 1, "dropped": 1}
        assert deletes.rows() == {"a": "deleted", "b": "x"}

    @staticmethod
    def trigger(bench: Bench, body: str) -> None:
        name = bench.name
        bench.admin.execute(f"CREATE FUNCTION f_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$")  # type: ignore[arg-type]
        bench.admin.execute(f"CREATE TRIGGER t BEFORE DELETE ON {name} FOR EACH ROW EXECUTE FUNCTION f_{name}()")  # type: ignore[arg-type]


class TestAKeyThatChanged:
    def test_to_a_wider_type_is_remembered_in_it(self, bench: Bench) -> None:
        bench.contract = {"name": "n", "id": "id", "deletes": True, "columns": {"id": "integer", "value": "text"}}
        bench.publish([gone("1")], W2)
        bench.admin.execute(f"ALTER TABLE {bench.name} ALTER id TYPE bigint")  # type: ignore[arg-type]
        bench.contract = bench.contract | {"columns": {"id": "bigint", "value": "text"}}
        big = 5_000_000_000
        assert counts(bench.publish([record({"id": 1, "value": "x"}, 0, 0), record({"id": big, "value": "x"}, 0, 1)], W1)) == {
            "written": 1, "older": 1,
        }  # fmt: skip
        assert counts(bench.publish([gone(str(big), 0, 5)], W3)) == {"deleted": 1}
        assert bench.rows() == {}

    @pytest.mark.parametrize(
        ("key", "says"),
        [
            ({"id": "bigint"}, 'by the key (id text), which is (id bigint) now: column "id" cannot be cast automatically'),
            (
                {"ident": "text"},
                "by the key (id text), which is (ident text) now: they are other columns; drop it, and publish",
            ),
            ({"id": "text", "more": "text"}, "which is (id text, more text) now"),
        ],
        ids=["to another type", "by name", "by a column more"],
    )
    def test_otherwise_is_said_at_the_claim(self, bench: Bench, key: dict[str, str], says: str) -> None:
        bench.contract = PLAIN
        bench.publish([gone("a")])
        bench.admin.execute(f"DROP TABLE {bench.name}")  # type: ignore[arg-type]
        bench.contract = {"name": "n", "key": list(key), "deletes": True, "columns": {**key, "value": "text"}}
        with pytest.raises(SinkError, match=re.escape(says)):
            bench.sink().claim(bench.claim(W2))


class TestItsKey:
    @pytest.mark.parametrize(
        ("type_", "value", "keys"),
        [
            ("text", "5", [b"5", b'{"id": "5"}', b'{"schema": {}, "payload": {"id": "5"}}']),
            ("text", '{"x": 1}', [b'{"x": 1}']),
            ("text", "ä", ["ä".encode()]),
            ("bigint", 5, [b"5", b"5.0", b'{"id": 5}', b'{"id": 5, "more": 1}']),
            (
                "uuid",
                "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
                [b"A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", b'"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"'],
            ),
            ("timestamptz", "2026-11-01T00:00:00Z", [b"2026-11-01T01:00:00+01:00", b'{"id": "2026-11-01 00:00:00"}']),
            ("numeric", 1.5, [b"1.50", b'"1.5"']),
            ("date", "2026-11-01", [b"2026-11-01"]),
        ],
    )
    def test_of_one_column_is_its_text_or_json(self, bench: Bench, type_: str, value: Any, keys: list[bytes]) -> None:
        bench.contract = PLAIN | {"columns": {"id": type_, "value": "text"}}
        for i, key in enumerate(keys):
            window = f"2026-11-01T{i:02}:00:00.000Z/2026-11-01T{i + 1:02}:00:00.000Z p"
            bench.publish([record({"id": value, "value": "x"}, 0, 0)], window)
            assert bench.publish([gone(key, offset=1)], f"{window}2").deleted == 1, key
            assert bench.query("SELECT count(*) FROM {t}") == [(0,)], key

    @pytest.mark.parametrize(
        ("key", "found"),
        [
            (b'{"b": "x", "a": 1}', True),
            (b'[1, "x"]', True),
            (b'{"payload": [1, "x"]}', True),
            (b'{"payload": 1}', False),
            (b'{"a": 1}', False),
            (b"1", False),
            (b"[1]", False),
        ],
    )
    def test_of_several_columns_is_an_object_or_a_list(self, bench: Bench, key: bytes, found: bool) -> None:
        bench.contract = {"name": "n", "key": ["a", "b"], "deletes": True, "columns": {"b": "text", "a": "bigint", "value": "text"}}
        bench.publish([record({"a": 1, "b": "x", "value": "y"}, 0, 0)], W1)
        sink = bench.sink()
        sink.claim(bench.claim(W2))
        rejected = sink.write([gone(key, offset=1)])
        assert (rejected == {}) == found
        sink.commit(rejected=len(rejected))
        assert bench.query("SELECT count(*) FROM {t}") == [(0 if found else 1,)]

    @pytest.mark.parametrize(
        ("type_", "key", "says"),
        [
            ("bigint", None, "without a key"),
            ("bigint", b"x", "expected bigint"),
            ("bigint", b'{"id": null}', "missing or null"),
            ("text", b"\xff", "utf-8"),
            ("text", b"k" * 3000, "3000 bytes"),
            ("bigint", b"", "expected bigint"),
            ("uuid", b"no", "expected uuid"),
        ],
    )
    def test_that_says_no_row_is_rejected_by_name(self, bench: Bench, type_: str, key: bytes | None, says: str) -> None:
        bench.contract = PLAIN | {"columns": {"id": type_, "value": "text"}}
        sink = bench.sink()
        sink.claim(bench.claim())
        rejected = sink.write([gone(key)])
        assert rejected[0].rule == "key"
        assert says in rejected[0].reason
        assert len(rejected[0].reason) < 400

    def test_beside_events_good_and_bad(self, deletes: Bench) -> None:
        sink = deletes.sink()
        sink.claim(deletes.claim())
        rejected = sink.write(
            [
                gone("a"),
                record(event("b"), 0, 1),
                gone(None, offset=2),
                record(b"{", 0, 3),
                record(event("c"), 0, 4),
            ]
        )
        assert {i: r.rule for i, r in rejected.items()} == {2: "key", 3: "decode"}
        assert counts(sink.commit(rejected=2)) == {"written": 2, "deleted": 1}


WINDOWS = [W1, W2, W3]
RECORDS = st.lists(
    st.tuples(
        st.sampled_from(WINDOWS), st.sampled_from("ab"), st.sampled_from([None, "x", "y", "z"]), st.integers(0, 2), st.integers(0, 1)
    ),
    max_size=10,
)


@settings(max_examples=examples(15, 40), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(records=RECORDS, order=st.permutations(WINDOWS), shards=st.sampled_from([1, 2]))
@example(records=[(W1, "a", "x", 0, 0), (W2, "a", None, 0, 0)], order=[W2, W1, W3], shards=1)
def test_whatever_the_order_of_windows_and_shards_the_last_record_of_a_key_decides(
    bench: Bench, records: list[Any], order: list[str], shards: int
) -> None:
    bench.contract = PLAIN
    bench.name = f"d_{secrets.token_hex(6)}"
    placed = [(window, timestamp, partition, i, key, value) for i, (window, key, value, timestamp, partition) in enumerate(records)]
    total = 0
    for window in order:
        for shard in range(shards):
            rows = [
                gone(key, o, p, t) if value is None else record({"id": key, "value": value}, p, o, t)
                for w, t, p, o, key, value in placed
                if w == window and p % shards == shard
            ]
            outcome = bench.publish(rows, window, Shard(shard, shards) if shards > 1 else WHOLE, fingerprint="f")
            counts(outcome)
            total += outcome.rows
    assert total == len(records)
    expected = {key: value for *_, key, value in sorted(placed)}
    assert bench.rows() == {key: value for key, value in expected.items() if value is not None}
    for name in (bench.name, memory_of(bench.name)):
        bench.admin.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)))
