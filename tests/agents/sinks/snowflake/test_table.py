"""The table: created by the contract, compared with it, given the columns that it lacks; names, types, and values that come back."""

from __future__ import annotations

from typing import Any

import pytest

from factory_agents.errors import ConfigurationError, SinkError
from factory_agents.sinks.snowflake import TableName
from factory_agents.sinks.snowflake.names import quoted
from tests.support.sink_bench import W2, at
from tests.support.snowflake import Bench

TYPES = {
    "id": "text",
    "short": "varchar(3)",
    "n": "bigint",
    "x": "double",
    "yes": "boolean",
    "at": "timestamptz",
    "local": "timestamp",
    "day": "date",
    "price": "numeric(10,2)",
    "rate": "numeric",
    "doc": "json",
}
FULL: dict[str, Any] = {
    "id": "a",
    "short": "éé",
    "n": -(2**63),
    "x": 1e-300,
    "yes": False,
    "at": "2026-11-01T04:00:00.123456+02:00",
    "local": "1999-12-31T23:59:59.999999",
    "day": "0001-01-01",
    "price": "12345678.90",
    "rate": 0.123456789,
    "doc": {"a": [1, None, "ü"]},
}


def contract(**columns: str) -> dict[str, Any]:
    return {"name": "n", "id": "id", "columns": {"id": "text", **columns}}


class TestValues:
    def test_come_back_as_they_were(self, bench: Bench) -> None:
        bench.contract = contract(**TYPES)
        bench.publish(at([FULL, {"id": "b"}]))
        texts = ", ".join(f'TO_VARCHAR("{name}")' for name in ("AT", "LOCAL", "DAY", "PRICE", "RATE"))
        own = f"ID, SHORT, N, X, YES, {texts}, TO_JSON(DOC)"
        (full, empty) = bench.query(own, "ORDER BY ID")
        assert full[:5] == ("a", "éé", -(2**63), 1e-300, False)
        # The emulator writes times its own way, and keeps an offset of zero.
        assert full[5].startswith("2026-11-01 02:00:00.123456")
        assert full[6].startswith("1999-12-31 23:59:59.999999")
        assert full[7:] == ("0001-01-01", "12345678.90", "0.123456789", '{"a":[1,null,"ü"]}')
        assert empty == ("b", *[None] * 10)

    @pytest.mark.parametrize(
        ("field", "value", "says"),
        [
            ("short", "four", "expected `str` of length <= 3"),
            ("n", 2**63, "expected `int` <= 9223372036854775807"),
            ("price", 1.005, "8 digits before the point and 2 after it"),
            ("price", 123456789, "8 digits before the point and 2 after it"),
            ("rate", "1e30", "29 digits before the point and 9 after it"),
            ("at", "soon", "Invalid isoformat string"),
            ("day", "2026-02-30", "encoded date"),
            ("doc", {"big": 10**40}, "has more digits than a VARIANT holds"),
        ],
    )
    def test_what_would_be_cut_is_a_dead_letter(self, bench: Bench, field: str, value: Any, says: str) -> None:
        bench.contract = contract(**TYPES)
        sink = bench.sink()
        sink.claim(bench.claim())
        rejected = sink.write(at([{"id": "good"}, {"id": "bad", field: value}, {"id": "fine"}]))
        assert list(rejected) == [1]
        assert rejected[1].reason.startswith(f"column {field!r}: ")
        assert says in rejected[1].reason
        assert sink.commit(rejected=1).written == 2


class TestFit:
    def test_missing_nullable_columns_are_added(self, bench: Bench) -> None:
        bench.contract = contract(a="text")
        bench.publish(at([{"id": "1", "a": "x"}]))
        bench.contract = contract(a="text", b="numeric(5,1)", **{"c d": "json"})
        bench.publish(at([{"id": "2", "b": 1.5, "c d": {}}]), W2)
        assert bench.query('ID, A, B IS NULL, TO_JSON("c d")', "ORDER BY ID") == [("1", "x", True, None), ("2", None, False, "{}")]
        bench.contract = contract(a="text", z="text")
        with pytest.raises(SinkError, match=r"table T: it lacks Z VARCHAR\(16777216\), and add_columns is off"):
            bench.sink(add_columns=False).claim(bench.claim())

    def test_everything_else_is_refused_by_name(self, bench: Bench) -> None:
        bench.schema.query("CREATE TABLE T (ID VARCHAR, A NUMBER(5,0), B VARCHAR, C TIMESTAMP_NTZ, D VARCHAR NOT NULL)")
        bench.contract = contract(a="bigint", b="json", c="timestamptz")
        with pytest.raises(SinkError) as raised:
            bench.publish(at([{"id": "a"}]))
        assert str(raised.value).splitlines() == [
            "table T does not fit:",
            "  column 'a': expected NUMBER(38,0), found NUMBER(5,0)",
            "  column 'b': expected VARIANT, found VARCHAR(16777216)",
            "  column 'c': expected TIMESTAMP_TZ(9), found TIMESTAMP_NTZ(9)",
            "  column 'D': NOT NULL without a default, and no event has it",
        ]

    def test_a_table_of_a_user_says_more_than_the_contract(self, bench: Bench) -> None:
        bench.schema.query("CREATE TABLE T (\"id\" VARCHAR(2), N NUMBER(20,0), P NUMBER(6,3), EXTRA VARCHAR DEFAULT 'filled')")
        bench.contract = contract(n="integer", p="numeric")
        sink = bench.sink()
        sink.claim(bench.claim())
        rejected = sink.write(at([{"id": "ab", "n": 1, "p": "123.456"}, {"id": "abc"}, {"id": "c", "p": 1234}]))
        assert list(rejected) == [1, 2]
        sink.commit(rejected=2)
        assert bench.query('"id", N, TO_VARCHAR(P), EXTRA') == [("ab", 1, "123.456", "filled")]

    def test_a_view_is_no_table(self, bench: Bench) -> None:
        bench.schema.query("CREATE VIEW T AS SELECT 'a' AS ID")
        bench.contract = contract()
        # The emulator's INFORMATION_SCHEMA has no views: Snowflake says "found view".
        with pytest.raises(SinkError, match="T: expected a table, found no table; give another name"):
            bench.publish(at([{"id": "a"}]))

    def test_a_missing_table_is_created_only_where_that_is_allowed(self, bench: Bench) -> None:
        with pytest.raises(ConfigurationError, match="table T does not exist, and create_table is off"):
            bench.sink(create_table=False).claim(bench.claim())

    @pytest.mark.parametrize(
        ("columns", "says"),
        [
            ({"t": "time"}, "column 't': publish to Snowflake doesn't write time"),
            ({"l": "text[]"}, r"column 'l': publish to Snowflake doesn't write text\[\]"),
            ({"p": "numeric(40,2)"}, r"Snowflake has no room for numeric\(40,2\): NUMBER holds 38 digits"),
            ({"_factory_rank": "text"}, "column '_factory_rank': this name is the sink's own; rename the field"),
            ({"a": "text", "A": "text"}, "columns 'a' and 'A' would both be A; rename one"),
        ],
    )
    def test_what_no_table_could_hold_is_refused(self, bench: Bench, columns: dict[str, str], says: str) -> None:
        bench.contract = contract(**columns)
        with pytest.raises(ConfigurationError, match=says):
            bench.publish(at([{"id": "a"}]))


class TestNames:
    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("events", ("", "", "EVENTS")),
            ("raw.events", ("", "RAW", "EVENTS")),
            ('Db."my.schema"."say ""hi"""', ("DB", "my.schema", 'say "hi"')),
            ("_a$1", ("", "", "_A$1")),
        ],
    )
    def test_are_read_as_sql_reads_them(self, text: str, parts: tuple[str, str, str]) -> None:
        assert TableName.parse(text) == TableName(*parts)

    @pytest.mark.parametrize(
        "text", ["", "a.b.c.d", "a b", '"a', 'a"b"', "a.", ".a", "1a", '""', "a;drop table b", "x" * 201, '"' + "x" * 300 + '".t']
    )
    def test_of_no_table_are_one_line(self, text: str) -> None:
        with pytest.raises(ConfigurationError, match=r"expected table, schema\.table or database\.schema\.table"):
            TableName.parse(text)

    def test_with_quotes_in_them_are_written(self, bench: Bench) -> None:
        bench.table = '"say hi; --"'  # and a number's column: the emulator itself puts a text column's name into SQL as it is
        assert quoted('say "hi"; --') == '"say ""hi""; --"'
        bench.contract = contract(**{"'; drop table t; --": "bigint"})
        assert bench.publish(at([{"id": "a", "'; drop table t; --": 5}])).written == 1
        assert bench.query('ID, "\'; drop table t; --"') == [("a", 5)]
