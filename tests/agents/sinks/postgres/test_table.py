"""The table is found and compared with the contract, or created."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg import sql

from factory_agents.errors import ConfigurationError, SinkError
from factory_agents.protocol import Shard
from factory_agents.publish import build
from factory_agents.runtime.agents import Claim
from tests.support.sink_bench import CONTRACT, W1, W2, Bench, at, event, record


class TestTables:
    def test_a_created_table_says_whose_its_rows_are(self, bench: Bench) -> None:
        outcome = bench.publish(at([event("a")], partition=3), shard=Shard(0, 1))
        assert outcome.table == f"public.{bench.name}"
        [row] = bench.query(
            "SELECT window_key, shard, shards, generation, _factory_window::text, _factory_partition, _factory_offset"
            " FROM {t} JOIN factory_publications ON publication = _factory_publication"
        )
        assert row == (W1, 0, 1, 1, "2026-11-01 00:00:00+00", 3, 0)

    def test_an_existing_table_that_fits_is_used_with_its_narrower_types_checked(self, bench: Bench) -> None:
        bench.contract = {
            "name": "n",
            "id": "id",
            "columns": {"id": "text", "small": "bigint", "short": "text", "price": "numeric", "data": "json"},
        }
        bench.admin.execute(
            f"CREATE TABLE {bench.name} (id varchar(40) PRIMARY KEY, small smallint NOT NULL, short varchar(3), price numeric(5,2),"
            " data json,"
            " extra text, stamped timestamptz NOT NULL DEFAULT now())"
        )
        good = {"id": "a", "small": 7, "short": "äöü", "price": 999.99, "data": [1]}
        wrong = [{"small": 40_000}, {"small": None}, {"short": "four"}, {"price": 1000}, {"price": "999.995"}, {"id": "x" * 41}]
        sink = bench.sink()
        sink.claim(bench.claim())
        rejected = sink.write(at([good, *(good | w for w in wrong)]))
        assert sorted(rejected) == [1, 2, 3, 4, 5, 6]
        assert "40000" in rejected[1].reason
        assert rejected[2].rule == "missing"
        sink.commit(rejected=6)
        assert bench.query("SELECT id, small, short, price::text, data FROM {t}") == [("a", 7, "äöü", "999.99", [1])]

    def test_every_column_that_does_not_fit_is_named(self, bench: Bench) -> None:
        bench.admin.execute(f"CREATE TABLE {bench.name} (id text, value integer, version timestamptz, must text NOT NULL)")
        with pytest.raises(SinkError) as caught:
            bench.sink().claim(bench.claim())
        message = str(caught.value)
        for part in (
            f"public.{bench.name} does not fit",
            "'value': expected text, found integer",
            "'version': expected bigint, found timestamp with time zone",
            "'at': expected timestamptz, found no such column",
            "'must': NOT NULL without a default",
            "no unique constraint on the key (id)",
        ):
            assert part in message

    @pytest.mark.parametrize(
        "definition",
        ["id text UNIQUE DEFERRABLE", "id text, UNIQUE (id, value)", "id text"],
        ids=["deferrable", "of more columns", "none"],
    )
    def test_a_key_needs_a_unique_constraint_of_exactly_its_columns(self, bench: Bench, definition: str) -> None:
        bench.admin.execute(f"CREATE TABLE {bench.name} (value text, version int8, at timestamptz, {definition})")
        with pytest.raises(SinkError, match="no unique constraint on the key"):
            bench.sink().claim(bench.claim())

    @pytest.mark.parametrize(
        ("definition", "says"),
        [
            ("id text UNIQUE DEFERRABLE", r"on the key \(id\); add one; t_\w+_id_key \(id\) is deferrable"),
            ("id text, UNIQUE (id, value)", r"on the key \(id\); add one; there is one on \(id, value\)"),
        ],
    )
    def test_what_the_keys_constraint_lacks_is_said(self, bench: Bench, definition: str, says: str) -> None:
        bench.admin.execute(f"CREATE TABLE {bench.name} (value text, version int8, at timestamptz, {definition})")
        with pytest.raises(SinkError, match=says):
            bench.sink().claim(bench.claim())

    @pytest.mark.parametrize(
        ("index", "says"), [("(id) WHERE value IS NULL", "is partial"), ("(lower(id))", "no unique constraint on the key")]
    )
    def test_an_index_that_an_upsert_cannot_go_by_is_named(self, bench: Bench, index: str, says: str) -> None:
        bench.admin.execute(f"CREATE TABLE {bench.name} (id text, value text, version int8, at timestamptz)")
        bench.admin.execute(f"CREATE UNIQUE INDEX ON {bench.name} {index}")
        with pytest.raises(SinkError, match=says):
            bench.sink().claim(bench.claim())

    @pytest.mark.parametrize(
        ("key", "says"),
        [
            ("id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY", "column 'id' of the key: PostgreSQL generates it, so no event has it"),
            ("id xml, k int GENERATED ALWAYS AS (1) STORED, PRIMARY KEY (k)", "column 'k' of the key: PostgreSQL generates it"),
            ("id macaddr PRIMARY KEY", "column 'id' of the key: a key of type macaddr is not written"),
            ("id int, UNIQUE (id) DEFERRABLE", "no primary key or single unique constraint to upsert by.*is deferrable"),
            ("id int UNIQUE, k int UNIQUE", r"no primary key or single unique constraint.*there is one on \(id\); there is one on \(k\)"),
            ("id jsonb PRIMARY KEY", "column 'id': expected a key that can be compared, found jsonb"),
        ],
    )
    def test_without_a_contract_what_the_key_lacks_is_said(self, bench: Bench, key: str, says: str) -> None:
        bench.contract = None
        bench.admin.execute(f"CREATE TABLE {bench.name} (value text, {key})")
        with pytest.raises(SinkError, match=says):
            bench.sink().claim(bench.claim())

    def test_a_table_without_our_columns_is_upserted_and_says_what_is_stale(self, bench: Bench) -> None:
        bench.admin.execute(f"CREATE TABLE {bench.name} (id text PRIMARY KEY, value text, version integer, at timestamptz)")
        assert bench.publish(at([event("a"), event("b"), event("c", "kept", 5)])).notes == ()
        outcome = bench.publish(at([event("a", "y"), event("c", "old", 4)]))
        assert (outcome.written, outcome.older, outcome.removed) == (1, 1, 0)
        assert "of 3 rows" in outcome.notes[0]
        assert "at least 1 are stale" in outcome.notes[0]
        assert bench.rows() == {"a": "y", "b": "x", "c": "kept"}
        assert "cannot be told" in bench.publish([], shard=Shard(0, 2), plan="two").notes[0]

    def test_without_a_contract_the_table_says_columns_and_key(self, bench: Bench) -> None:
        bench.contract = None
        bench.admin.execute(
            f"CREATE TABLE {bench.name} (id integer PRIMARY KEY, value text, at date, place point,"
            " created timestamptz NOT NULL DEFAULT now())"
        )
        sink = bench.sink()
        sink.claim(bench.claim())
        rejected = sink.write(
            at([{"id": 1, "value": "x", "at": "2026-11-01", "other": 1}, {"id": 2**40}, {"value": "no id"}, {"id": 1, "value": "last"}])
        )
        assert sorted(rejected) == [1, 2]
        outcome = sink.commit(rejected=2)
        assert (outcome.written, outcome.duplicates) == (1, 1)
        assert "place (point)" in outcome.notes[0]
        assert bench.query("SELECT id, value, at FROM {t}") == [(1, "last", None)]

    def test_without_a_contract_there_must_be_a_table_with_a_key(self, bench: Bench) -> None:
        bench.contract = None
        with pytest.raises(ConfigurationError, match="does not exist"):
            bench.sink().claim(bench.claim())
        bench.admin.execute(f"CREATE TABLE {bench.name} (id integer)")
        with pytest.raises(SinkError, match="no primary key"):
            bench.sink().claim(bench.claim())

    def test_a_table_is_not_created_where_that_is_off(self, bench: Bench) -> None:
        with pytest.raises(ConfigurationError, match="create_table is off"):
            bench.sink(create_table=False).claim(bench.claim())

    def test_none_is_created_before_one_of_its_name_that_the_session_searches_too(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SQL means the one that is there."""
        schema = f"s_{bench.name}"
        bench.publish(at([event("a")]))
        bench.admin.execute(f"CREATE SCHEMA {schema}")
        try:
            monkeypatch.setenv("DATABASE_URL", f"{bench.url}?options=-csearch_path%3D{schema},public")
            with pytest.raises(ConfigurationError, match=rf"{schema}.{bench.name} does not exist, and public.{bench.name} does"):
                bench.sink().claim(bench.claim())
            for table in (f"public.{bench.name}", f"{schema}.{bench.name}", bench.name):
                bench.sink(table=table).claim(bench.claim(W2))
        finally:
            bench.admin.execute(f"DROP SCHEMA {schema} CASCADE")

    def test_a_view_or_a_missing_schema_is_refused(self, bench: Bench) -> None:
        bench.admin.execute(f"CREATE VIEW {bench.name} AS SELECT 1 AS id")
        with pytest.raises(SinkError, match="found a view"):
            bench.sink().claim(bench.claim())
        with pytest.raises(ConfigurationError, match="schema does not exist"):
            bench.sink(table="nowhere.t").claim(bench.claim())

    def test_parallel_creation_makes_one_table_with_one_index(self, bench: Bench) -> None:
        started = threading.Barrier(8)

        def one(i: int) -> None:
            sink = build({"table": f"s_{bench.name}.t", "contract": CONTRACT})
            started.wait()
            sink.claim(Claim(bench.pipeline, "publish", W1, Shard(i, 8), "plan", "f", 1, 1))
            sink.close()

        bench.admin.execute(f"CREATE SCHEMA s_{bench.name}")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(8)))
        [count] = bench.query("SELECT count(*) FROM pg_indexes WHERE schemaname = {s} AND tablename = 't'", s=f"s_{bench.name}")
        assert count == (2,)

    def test_a_number_as_event_time_is_read_in_the_contracts_unit(self, bench: Bench) -> None:
        for unit, value in (("s", 1793491200.5), ("ms", 1793491200500), ("us", 1793491200500000)):
            bench.contract = {
                "name": "n",
                "id": "id",
                "time": "at",
                "time_unit": unit,
                "schema": {
                    "type": "object",
                    "required": ["id"],
                    "properties": {"id": {"type": "string"}, "at": {"type": ["number", "null"]}},
                },
                "columns": {"id": "text", "at": "timestamptz"},
            }
            sink = bench.sink()
            sink.claim(bench.claim(fingerprint=unit))
            assert list(sink.write(at([{"id": "a", "at": value}, {"id": "b", "at": 1e30}, {"id": "c"}, {"id": "d", "at": "x"}]))) == [1, 3]
            sink.commit(rejected=2)
            assert bench.query("SELECT id, (at AT TIME ZONE 'UTC')::text FROM {t} ORDER BY id") == [
                ("a", "2026-11-01 00:00:00.5"),
                ("c", None),
            ]


HOSTILE_NAMES = [
    'ev"il',
    "sp ace",
    "ünï",
    "semi;colon",
    "per%s cent%",
    "br{a}ce",
    "back\\slash",
    "quo'te",
    "--",
    "select",
    "CamelCase",
    "c0",
]


class TestNames:
    def test_identifiers_are_composed_never_formatted(self, bench: Bench) -> None:
        quoted = ['"{}"'.format(n.replace('"', '""')) for n in ('we"ird; %s.{x}', 'sch"ema. %')]
        bench.admin.execute(sql.SQL("DROP SCHEMA IF EXISTS {0} CASCADE; CREATE SCHEMA {0}").format(sql.Identifier('sch"ema. %')))
        properties = {n: {"type": "string"} for n in HOSTILE_NAMES} | {"version": {"type": "integer"}}
        bench.contract = {
            "name": "n",
            "id": 'ev"il',
            "version_field": "version",
            "key": ['ev"il', "per%s cent%"],
            "schema": {"type": "object", "required": ['ev"il', "per%s cent%"], "properties": properties},
        }
        one = {n: f"{n}'; DROP TABLE x; --" for n in HOSTILE_NAMES}
        for generation in (1, 2):
            sink = bench.sink(table=f"{quoted[1]}.{quoted[0]}")
            sink.claim(bench.claim(window="w'; --\\ %s {x}", input_generation=generation, fingerprint=f"f'{generation}"))
            assert sink.write([record(one | {"version": v}, 0, v) for v in range(3)]) == {}
            outcome = sink.commit(rejected=0)
            assert (outcome.written, outcome.duplicates) == (1, 2)
        query = sql.SQL("SELECT {}, version FROM {}").format(
            sql.SQL(", ").join(map(sql.Identifier, HOSTILE_NAMES)), sql.Identifier('sch"ema. %', 'we"ird; %s.{x}')
        )
        assert bench.admin.execute(query).fetchall() == [(*one.values(), 2)]

    @pytest.mark.parametrize("table", ["", "a.b.c", "a.", ".a", 'a"b', '"a', "x" * 64, "nul\0", "\ud800"])
    def test_a_table_name_that_is_none_is_refused(self, bench: Bench, table: str) -> None:
        with pytest.raises(ConfigurationError):
            bench.sink(table=table)

    def test_names_of_ours_or_too_long_are_refused(self, bench: Bench) -> None:
        for name in ("_factory_window", "_factory_deleted", "_factory_number", "x" * 64):
            bench.contract = {"name": "n", "id": "id", "columns": {"id": "text", name: "text"}}
            with pytest.raises(ConfigurationError, match=name):
                bench.sink()
