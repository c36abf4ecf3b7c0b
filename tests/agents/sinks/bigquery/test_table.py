"""The table: created, compared with the contract by name, given the nullable columns that it lacks; every type into it."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from google.cloud.bigquery import SchemaField, Table
from google.cloud.bigquery.table import PrimaryKey, TableConstraints

from factory_agents.contracts import load_contract
from factory_agents.errors import ConfigurationError, SinkError
from factory_agents.publish import build
from factory_agents.sinks.bigquery import TableName, wanted_table
from tests.support.bigquery import Bench
from tests.support.sink_bench import CONTRACT, W2, at, event, record, write_and_commit


def types(bench: Bench) -> dict[str, str]:
    return {f.name: f"{f.field_type} {f.mode}" for f in bench.emulator.table("t").schema}


class TestCreated:
    def test_as_the_contract_has_it_with_layout_and_labels(self, bench: Bench) -> None:
        bench.params = {"partition_by": "at", "partition_unit": "month", "cluster_by": ["value", "id"], "labels": {"team": "data"}}
        bench.publish(at([event("a")]))
        assert types(bench) == {
            "id": "STRING REQUIRED",
            "version": "INTEGER NULLABLE",
            "at": "TIMESTAMP NULLABLE",
            "value": "STRING NULLABLE",
            "_factory_window": "TIMESTAMP NULLABLE",
            "_factory_publication": "INTEGER NULLABLE",
            "_factory_partition": "INTEGER NULLABLE",
            "_factory_offset": "INTEGER NULLABLE",
            "_factory_timestamp": "INTEGER NULLABLE",
        }
        table = bench.emulator.table("t")
        assert (table.time_partitioning.field, table.time_partitioning.type_) == ("at", "MONTH")
        assert table.clustering_fields == ["value", "id"]
        assert table.labels == {"factory": "publish", "team": "data"}
        assert table.table_constraints.primary_key.columns == ["id"]

    def test_clustered_by_the_key_where_nothing_is_said(self, bench: Bench) -> None:
        bench.publish([])
        assert bench.emulator.table("t").clustering_fields == ["id"]
        assert bench.emulator.table("t").time_partitioning is None

    @pytest.mark.parametrize(
        ("params", "says"),
        [
            ({"partition_by": "value"}, "partition_by 'value': expected a timestamptz or date among the contract's columns"),
            ({"cluster_by": ["nope"]}, "cluster_by nope: expected up to 4 columns"),
            ({"create_table": False}, "does not exist, and create_table is off"),
            ({"contract": None}, "does not exist: create it, or give a contract"),
            ({"table": "nowhere.t"}, "create it, or correct the table's name"),
        ],
    )
    def test_what_cannot_be_created_says_why(self, bench: Bench, params: dict[str, Any], says: str) -> None:
        with pytest.raises(ConfigurationError, match=says):
            bench.sink(**params).claim(bench.claim())
        assert bench.emulator.tables() == []

    @pytest.mark.parametrize(
        ("columns", "key", "says"),
        [
            ({"id": "text", "_factory_x": "text"}, "id", "column '_factory_x': names that begin so are BigQuery's or the sink's own"),
            ({"id": "text", "_PARTITIONTIME": "text"}, "id", "column '_PARTITIONTIME': names that begin so"),
            ({"id": "text", "a b": "text"}, "id", "column 'a b': BigQuery takes names of letters, digits and _"),
            ({"id": "text", "a`; DROP": "text"}, "id", "column 'a`; DROP': BigQuery takes names of letters"),
            ({"id": "text", "Id": "text"}, "id", "columns 'id' and 'Id': BigQuery's names don't differ by case alone"),
            ({"id": "json"}, "id", "the contract's key 'id' has no order"),
        ],
    )
    def test_names_and_keys_that_no_table_has_are_refused_at_once(self, bench: Bench, columns: dict[str, str], key: str, says: str) -> None:
        with pytest.raises(ConfigurationError, match=says):
            bench.sink(contract={"name": "c", "key": key, "columns": columns})

    def test_limits_and_lists_of_the_contract_become_the_tables(self, bench: Bench) -> None:
        columns = {
            "id": "varchar(8)",
            "code": "char(3)",
            "price": "numeric(10,2)",
            "wei": "numeric(38,18)",
            "n": "integer",
            "tags": "text[]",
            "sums": "numeric(5,1)[]",
        }
        bench.contract = {"name": "c", "id": "id", "columns": columns}
        sink = bench.sink()
        sink.claim(bench.claim())
        rows = [{"id": "a", "price": 1.25, "wei": "0.000000000000000001", "tags": ["x", "y"], "sums": [1.5]}, {"id": "b", "code": "äöüß"}]
        rejected = sink.write(at(rows))
        assert rejected[1].reason == "column 'code': expected `str` of length <= 3: 'äöüß' (the column is STRING)"
        assert sink.commit(rejected=1).written == 1
        assert bench.query("id, price, wei, tags, sums") == [("a", Decimal("1.25"), Decimal("1e-18"), ["x", "y"], [Decimal("1.5")])]
        made = {f.name: (f.field_type, f.mode, f.max_length, f.precision, f.scale) for f in bench.emulator.table("t").schema}
        assert made["id"] == ("STRING", "REQUIRED", 8, None, None)
        assert made["price"] == ("NUMERIC", "NULLABLE", None, 10, 2)
        assert made["wei"] == ("BIGNUMERIC", "NULLABLE", None, 38, 18)
        assert made["tags"] == ("STRING", "REPEATED", None, None, None)

    @pytest.mark.parametrize("type_", ["timestamp", "time", "interval", "uuid", "bytea", "inet", "numeric(80,2)"])
    def test_types_that_are_not_written_are_refused_by_name(self, type_: str) -> None:
        with pytest.raises(ConfigurationError, match="column 'x': "):
            wanted_table(load_contract({"name": "c", "id": "id", "columns": {"id": "text", "x": type_}}))


class TestExisting:
    def test_nullable_columns_are_added_and_older_rows_stay(self, bench: Bench) -> None:
        bench.emulator.query("CREATE TABLE {d}.t (id STRING NOT NULL, value STRING)")
        bench.emulator.query("INSERT INTO {d}.t VALUES ('a', 'by hand'), ('b', 'by hand')")
        outcome = bench.publish(at([event("a", "ours", 1, "2026-11-01T00:00:00Z")]))
        assert outcome.written == 1
        assert bench.query("id, value, version", "ORDER BY id") == [("a", "ours", 1), ("b", "by hand", None)]

    def test_columns_are_not_added_where_that_is_off(self, bench: Bench) -> None:
        bench.emulator.query("CREATE TABLE {d}.t (id STRING NOT NULL, value STRING, version INT64)")
        with pytest.raises(SinkError, match=r"it lacks at TIMESTAMP, _factory_window TIMESTAMP, .*, and add_columns is off"):
            bench.sink(add_columns=False).claim(bench.claim())
        assert list(types(bench)) == ["id", "value", "version"]

    def test_all_else_is_refused_by_name_and_nothing_is_changed(self, bench: Bench) -> None:
        bench.emulator.query(
            "CREATE TABLE {d}.t (id BYTES, value INT64, version ARRAY<INT64>, at DATE, needed STRING NOT NULL, _factory_window STRING)"
        )
        bench.contract = {**CONTRACT, "schema": {**CONTRACT["schema"]}}
        properties = {**CONTRACT["schema"]["properties"], "must": {"type": "string"}}
        bench.contract["schema"] |= {"properties": properties, "required": ["id", "must"]}
        before = types(bench)
        with pytest.raises(SinkError) as raised:
            bench.sink().claim(bench.claim())
        assert str(raised.value).splitlines()[1:] == [
            "  column 'id': expected STRING, found BYTES",
            "  column 'version': expected INT64, found ARRAY<INT64>",
            "  column 'at': expected TIMESTAMP, found DATE",
            "  column 'value': expected STRING, found INT64",
            "  column 'must': expected STRING and never null, found no such column; add it",
            "  column '_factory_window': expected TIMESTAMP, found STRING",
            "  column 'needed': REQUIRED without a default, and no event has it",
        ]
        assert types(bench) == before

    def test_a_view_is_refused(self, bench: Bench) -> None:
        bench.emulator.query("CREATE VIEW {d}.t AS SELECT 'a' AS id")
        with pytest.raises(SinkError, match="expected a table, found a view"):
            bench.sink().claim(bench.claim())

    def test_without_a_contract_the_table_says_columns_and_key(self, bench: Bench) -> None:
        bench.contract = None
        fields = [
            SchemaField("id", "STRING", "REQUIRED"),
            SchemaField("n", "NUMERIC", precision=5, scale=2),
            SchemaField("raw", "BYTES"),
            SchemaField("made", "STRING", default_value_expression="'x'"),
        ]
        table = Table(f"local.{bench.table}", schema=fields)
        table.table_constraints = TableConstraints(PrimaryKey(["id"]), None)
        bench.emulator.client.create_table(table)
        sink = bench.sink()
        sink.claim(bench.claim())
        rejected = sink.write([record({"id": "a", "n": "123.45"}, 0, 0), record({"id": "b", "n": "1234.5"}, 0, 1)])
        assert {i: r.reason for i, r in rejected.items()} == {
            1: "column 'n': 3 digits fit before the point: '1234.5' (the column is NUMERIC)"
        }
        outcome = sink.commit(rejected=1)
        assert bench.query("id, n") == [("a", Decimal("123.45"))]
        (note,) = outcome.notes
        assert note.endswith("without a contract these columns are not written: raw (BYTES), made (STRING)")

    def test_without_a_contract_there_must_be_a_key(self, bench: Bench) -> None:
        bench.contract = None
        bench.emulator.query("CREATE TABLE {d}.t (id STRING)")
        with pytest.raises(SinkError, match="no primary key to upsert by, and no contract that names one"):
            bench.sink().claim(bench.claim())


WRITTEN = {
    "name": "types",
    "id": "id",
    "columns": {
        "id": "text",
        **{type_: type_ for type_ in ("text", "bigint", "double", "boolean", "timestamptz", "json", "numeric", "date")},
    },
}


class TestTypes:
    def test_every_type_of_a_contract_lands_as_it_is(self, bench: Bench) -> None:
        bench.contract = WRITTEN
        values = {
            "id": "a",
            "text": "ü\0🎉 'quoted' `ticked` \\ @param --",
            "bigint": -(2**63),
            "double": 1e-300,
            "boolean": False,
            "timestamptz": "2026-10-25T02:30:00.000001+02:00",
            "json": {"a": [1, 2.5, None, "ü\0"], "b": {}, "big": 18446744073709551615},
            "numeric": "-12345678901234567890123456789.123456789",
            "date": "0001-01-01",
        }
        bench.publish(at([values, {"id": "nulls"}]))
        columns = "id, text, bigint, double, boolean, timestamptz, TO_JSON_STRING(json), numeric, date"
        full, nulls = bench.query(columns, "ORDER BY id")
        assert full[:6] == ("a", values["text"], -(2**63), 1e-300, False, datetime(2026, 10, 25, 0, 30, 0, 1, tzinfo=UTC))
        assert full[6] == '{"a":[1,2.5,null,"ü\\u0000"],"b":{},"big":18446744073709551615}'
        assert full[7:] == (Decimal("-12345678901234567890123456789.123456789"), date(1, 1, 1))
        assert nulls == ("nulls", *[None] * 5, "null", None, None)  # TO_JSON_STRING of SQL's NULL

    def test_nested_and_repeated_columns_of_a_table_are_filled_as_they_are(self, bench: Bench) -> None:
        bench.contract = {"name": "n", "id": "id", "columns": {"id": "text", "tags": "json", "who": "json", "lines": "json"}}
        bench.emulator.query(
            "CREATE TABLE {d}.t (id STRING NOT NULL, tags ARRAY<STRING>, who STRUCT<name STRING, at TIMESTAMP, extra JSON>,"
            " lines ARRAY<STRUCT<sku STRING, price NUMERIC, notes ARRAY<STRING>>>)"
        )
        rows = [
            {
                "id": "a",
                "tags": ["ü", ""],
                "who": {"name": "n", "at": "2026-11-01T00:00:00Z", "extra": {"k": [1]}},
                "lines": [{"sku": "s", "price": "1.10", "notes": ["x"]}, {"sku": None, "price": None, "notes": []}],
            },
            {"id": "b", "tags": None, "who": None, "lines": []},
        ]
        sink = bench.sink()
        sink.claim(bench.claim())
        rejected = sink.write([*at(rows), record({"id": "bad", "lines": [{"sku": 1}]}, 0, 9)])
        assert rejected[2].reason.startswith("column 'lines': sku: expected `str`, got `int`: 1")
        assert sink.commit(rejected=1).written == 2
        full, nulls = bench.query("id, tags, who, lines", "ORDER BY id")
        who = {"name": "n", "at": datetime(2026, 11, 1, tzinfo=UTC), "extra": {"k": [1]}}
        assert full[:3] == ("a", ["ü", ""], who)
        assert full[3] == [
            {"sku": "s", "price": Decimal("1.1"), "notes": ["x"]},
            {"sku": None, "price": None, "notes": []},
        ]
        assert nulls == ("b", [], None, [])

    def test_rows_that_do_not_fit_are_rejected_by_column_and_the_rest_lands(self, bench: Bench) -> None:
        bench.contract = WRITTEN
        sink = bench.sink()
        sink.claim(bench.claim(W2))
        rejected = sink.write(at([{"id": "a"}, {"id": "b", "numeric": 0.1234567891}, {"bigint": 1}, {"id": "c", "date": "soon"}]))
        assert {i: (r.rule, r.reason) for i, r in rejected.items()} == {
            1: ("column", "column 'numeric': 9 digits fit after the point: 0.1234567891 (the column is NUMERIC)"),
            2: ("missing", "column 'id': missing or null, expected STRING"),
            3: ("column", "column 'date': expected a date such as 2026-11-01: 'soon' (the column is DATE)"),
        }
        assert sink.commit(rejected=3).written == 1

    def test_a_time_as_a_number_is_read_in_the_contracts_unit(self, bench: Bench) -> None:
        bench.contract = {
            "name": "n",
            "id": "id",
            "time": "at",
            "time_unit": "ms",
            "columns": {"id": "text", "at": "timestamptz", "value": "text"},
        }
        sink = bench.sink()
        sink.claim(bench.claim())
        write_and_commit(sink, at([{"id": "a", "at": 1762000000123}]))
        assert bench.query("at") == [(datetime.fromtimestamp(1762000000.123, UTC),)]


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("d.t", TableName("", "d", "t")),
        ("my-project.d.t", TableName("my-project", "d", "t")),
        ("example.com:my-project.d.t", TableName("example.com:my-project", "d", "t")),
    ],
)
def test_a_tables_name(text: str, parsed: TableName) -> None:
    assert TableName.parse(text) == parsed


@pytest.mark.parametrize("text", ["t", "", "d.", "d.t`", "p.d.t.x y", "d.t; DROP TABLE x", "P.d.t"])
def test_what_is_no_tables_name(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"expected dataset.table or project.dataset.table"):
        TableName.parse(text)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"sink": "bigqery"}, "sink 'bigqery': there is no such sink; did you mean 'bigquery'?"),
        ({"sink": "bigquery", "table": "d.t", "lock_timeout": 3}, "unknown parameter 'lock_timeout'"),
        ({"sink": "bigquery", "table": "d.t", "partition_unit": "week"}, "one of: hour, day, month, year; found 'week'"),
        ({"sink": "bigquery", "table": "d.t", "timeout": 0}, "timeout must be more than 0 seconds"),
        ({"sink": "bigquery"}, "parameter 'table' is required: the table to publish to, such as analytics.events"),
        ({"table": "d.t", "add_columns": True}, "unknown parameter 'add_columns'"),
    ],
)
def test_a_mistaken_parameter_is_one_clear_line(params: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        build(params)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
