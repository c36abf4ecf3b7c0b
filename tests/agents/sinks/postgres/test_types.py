"""Every type of column: what the contract may ask of it, which values it takes, and that no digit is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import pytest
from confluent_kafka import Message
from psycopg import sql

from factory_agents.contracts import ColumnType
from factory_agents.errors import SinkError
from tests.support.sink_bench import W1, W2, Bench, at


def existing(bench: Bench, type_: str, wanted: str | None = "text", more: str = "") -> None:
    """A table with a column of a type, which the contract says to be ``wanted`` (None: there is no contract)."""
    if more:
        bench.admin.execute(more)  # type: ignore[arg-type]
    bench.admin.execute(f"CREATE TABLE {bench.name} (id text PRIMARY KEY, value {type_})")  # type: ignore[arg-type]
    bench.contract = {"name": "n", "id": "id", "columns": {"id": "text", "value": wanted}} if wanted else None


def write(bench: Bench, values: list[Any], window: str = W1) -> dict[int, str]:
    """Publish values, given as Python's or as JSON (bytes); why the rejected ones are, by index."""
    rows = [b'{"id": "%d", "value": %b}' % (i, v if isinstance(v, bytes) else json.dumps(v).encode()) for i, v in enumerate(values)]
    sink = bench.sink()
    assert sink.claim(bench.claim(window, fingerprint=window)) is None
    rejected = sink.write([Message(value=row, partition=0, offset=i) for i, row in enumerate(rows)])
    sink.commit(rejected=len(rejected))
    sink.close()
    return {i: reject.reason for i, reject in rejected.items()}


def stored(bench: Bench) -> list[str]:
    return [row[0] for row in bench.query("SELECT value::text FROM {t} ORDER BY id::int")]


class TestDigits:
    NUMBERS = (b"12345678901234567.89", b"100000000000000000000000.5", b"0.1", b"-1.50", b"1e-7", b"123456789012345678901234567890")

    @pytest.mark.parametrize("created", [True, False])
    def test_numerics_keep_every_one(self, bench: Bench, created: bool) -> None:
        if created:
            bench.contract = {"name": "n", "id": "id", "columns": {"id": "text", "value": "numeric"}}
        else:
            existing(bench, "numeric", None)
        assert write(bench, [*self.NUMBERS, *(json.dumps(n.decode()).encode() for n in self.NUMBERS)]) == {}
        expected = [n.decode().replace("1e-7", "0.0000001") for n in self.NUMBERS]
        assert stored(bench) == expected * 2

    @pytest.mark.parametrize("wanted", ["double", "bigint", "numeric"])
    def test_an_existing_numeric_keeps_them_whatever_the_contract_calls_it(self, bench: Bench, wanted: str) -> None:
        existing(bench, "numeric", wanted)
        assert write(bench, [b"12345678901234567.89"]) == {}
        assert stored(bench) == ["12345678901234567.89"]

    @pytest.mark.parametrize("array", [False, True], ids=["one", "a list"])
    def test_whole_numbers_keep_them_whatever_their_notation(self, bench: Bench, array: bool) -> None:
        existing(bench, "bigint[]" if array else "bigint", "bigint[]" if array else "bigint")
        whole = [b"9007199254740993.0", b"9.007199254740993e15", b"9223372036854775807.0", b"1E+2", b"-0.0", b"0e400"]
        unfit = [b"9223372036854775808.0", b"1.0000000000000000000001", b"1e-400", b"1e400", b"1e30000"]
        rejected = write(bench, [b"[%b]" % n if array else n for n in whole + unfit])
        assert sorted(rejected) == [*range(len(whole), len(whole) + len(unfit))]
        found = ["9007199254740993"] * 2 + ["9223372036854775807", "100", "0", "0"]
        assert stored(bench) == [f"{{{n}}}" if array else n for n in found]

    @pytest.mark.parametrize("type_", ["json", "jsonb"])
    def test_documents_keep_them_at_every_depth(self, bench: Bench, type_: str) -> None:
        existing(bench, type_, "json")
        document = b'{"a": [%b, {"b": %b}]}' % self.NUMBERS[:2]
        assert write(bench, [document, self.NUMBERS[0], self.NUMBERS[1]]) == {}
        assert stored(bench) == [document.decode(), self.NUMBERS[0].decode(), self.NUMBERS[1].decode()]

    def test_beside_a_bad_event_too(self, bench: Bench) -> None:
        """The slower reader, which says what is wrong with one event, keeps the others' digits as well."""
        bench.contract = {"name": "n", "id": "id", "columns": {"id": "text", "value": "numeric", "data": "json", "b": "boolean"}}
        rows = [b'{"id": "a", "value": 12345678901234567.89, "data": {"x": 100000000000000000000000.5}}', b'{"id": "b", "b": "no"}']
        sink = bench.sink()
        sink.claim(bench.claim())
        assert list(sink.write([Message(value=row, partition=0, offset=i) for i, row in enumerate(rows)])) == [1]
        sink.commit(rejected=1)
        assert bench.query("SELECT value::text, data::text FROM {t}") == [("12345678901234567.89", '{"x": 100000000000000000000000.5}')]

    def test_a_name_that_json_has_to_escape_loses_none(self, bench: Bench) -> None:
        bench.contract = {"name": "n", "id": "id", "columns": {"id": "text", 'a"b': "numeric", "c\\d": "json"}}
        sink = bench.sink()
        sink.claim(bench.claim())
        value = rb'{"id": "a", "a\"b": 12345678901234567.89, "c\\d": [100000000000000000000000.5]}'
        assert sink.write([Message(value=value, partition=0, offset=0)]) == {}
        sink.commit(rejected=0)
        assert bench.query('SELECT "a""b"::text, "c\\d"::text FROM {t}') == [("12345678901234567.89", "[100000000000000000000000.5]")]

    def test_numbers_beyond_jsonbs_are_rejected_alone(self, bench: Bench) -> None:
        existing(bench, "jsonb", "json")
        rejected = write(bench, [b'{"a": 1e200000}', b"1e400", b'{"text": "1e200000"}', b"[1e-20000]"])
        assert sorted(rejected) == [0, 3]
        assert "1e200000" in rejected[0]
        assert [len(text) for text in stored(bench)] == [401, 20]

    def test_times_in_numbers_keep_every_microsecond(self, bench: Bench) -> None:
        for unit, values in {
            "us": [253402300799999999, -62135596800000000, 1793491200000001],
            "ms": [253402300799999, -62135596800000, 1793491200000.001],
            "s": [253402300799, -62135596800, 1793491200.000001],
        }.items():
            bench.name = f"{bench.name}_{unit}"
            bench.contract = {
                "name": "n",
                "id": "id",
                "time": "value",
                "time_unit": unit,
                "columns": {"id": "text", "value": "timestamptz"},
            }
            assert list(write(bench, [*values, values[0] + 10**16 if unit == "us" else 10**17])) == [3]
            fraction = {"us": ".999999", "ms": ".999", "s": ""}[unit]
            assert stored(bench) == [f"9999-12-31 23:59:59{fraction}+00", "0001-01-01 00:00:00+00", "2026-11-01 00:00:00.000001+00"]


UUID = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
CASES: dict[str, tuple[list[Any], list[str], list[Any]]] = {
    # type: values that fit, what the table then holds, values that are rejected
    "uuid": ([UUID, UUID.upper(), "{" + UUID + "}"], [UUID] * 3, ["no uuid", 5, "", UUID + "0"]),
    "timestamp": (
        ["2026-11-01T04:00:00", "2026-11-01T04:00:00Z", "2026-11-01 04:00:00.123456+05:30"],
        ["2026-11-01 04:00:00", "2026-11-01 04:00:00", "2026-10-31 22:30:00.123456"],
        ["yesterday", 12, "2026-13-01T00:00:00", "infinity"],
    ),
    "timestamp(0)": (["2026-11-01T04:00:00.6"], ["2026-11-01 04:00:01"], []),
    "char(3)": (["abc", "a", "äöü", ""], ["abc", "a", "äöü", ""], ["abcd", 5]),
    "varchar(3)": (["abc", "a"], ["abc", "a"], ["abcd"]),
    "name": (["a"], ["a"], ["x" * 64]),
    "real": ([1.5, 3, 3.4028234e38, -0.0], ["1.5", "3", "3.4028235e+38", "-0"], [1e39, "x", True]),
    "smallint": ([1, -32768, 5.0], ["1", "-32768", "5"], [32768, 1.5, "1"]),
    "integer": ([2**31 - 1], ["2147483647"], [2**31]),
    "bytea": (["aGVsbG8=", "aGVsbG8", "\\x68656c6c6f", ""], [*["\\x68656c6c6f"] * 3, "\\x"], ["not base64!", 5, "\\xzz"]),
    "inet": (
        ["10.0.0.1", "10.0.0.1/8", "::1", "fe80::/10"],
        ["10.0.0.1/32", "10.0.0.1/8", "::1/128", "fe80::/10"],
        ["10.0.0.256", 5, "x", "fe80::1%eth0"],
    ),
    "cidr": (["10.0.0.0/8", "10.0.0.1"], ["10.0.0.0/8", "10.0.0.1/32"], ["10.0.0.1/8"]),
    "time": (
        ["04:05:06.789", "04:05", "00:00:00"],
        ["04:05:06.789", "04:05:00", "00:00:00"],
        ["04:05:06+02", "25:00", 5, "12.50", "20261101", "04:05.5"],
    ),
    "timetz": (["04:05:06+02:00", "04:05:06"], ["04:05:06+02", "04:05:06+00"], ["x"]),
    "interval": (
        ["P1Y2M3DT4H5M6.7S", "1 mon 2 days 03:04:05.5", "-00:00:01", "PT90M", "P2W", "1 year -2 days", "3 hours", "-P1D", "00:00:00"],
        [
            *("1 year 2 mons 3 days 04:05:06.7", "1 mon 2 days 03:04:05.5", "-00:00:01", "01:30:00", "14 days", "1 year -2 days"),
            *("03:00:00", "-1 days", "00:00:00"),
        ],
        ["", "P", "PT", "soon", 5, "1", "1 fortnight", "P1.5D", "P9999999999D", "00:00:00 and more"],
    ),
    "date": (["2026-02-28"], ["2026-02-28"], ["2026-02-30", "infinity"]),
    "text[]": (
        [["a", None, 'é,"{}\\'], [], [["a", "b"], ["c", "d"]]],
        ['{a,NULL,"é,\\"{}\\\\"}', "{}", "{{a,b},{c,d}}"],
        ["a", [1], [["a"], ["b", "c"]], [["a"], "b"], ["a", ["b"]], ["\0"], {"a": 1}, [[]] * 2 + ["a"]],
    ),
    "integer[]": ([[1, None, 3.0]], ["{1,NULL,3}"], [[2**31], ["1"], 1]),
    "numeric(10,2)[]": ([[1.5, "2.25"]], ["{1.50,2.25}"], [[10**9], [1.239]]),
    "numeric(10,2)": ([1.2, "1.230", 0, -99999999.99], ["1.20", "1.23", "0.00", "-99999999.99"], [1.239, "0.001", 10**8, "1e-3"]),
    "numeric(3,0)": ([5, "7.000"], ["5", "7"], [5.5, 1000]),
    "uuid[]": ([[UUID]], ["{" + UUID + "}"], [["x"]]),
    "timestamptz[]": ([["2026-11-01T00:00:00Z"]], ['{"2026-11-01 00:00:00+00"}'], [["x"]]),
    "timestamp[]": ([["2026-11-01T00:00:00Z"]], ['{"2026-11-01 00:00:00"}'], [[1]]),
    "jsonb[]": ([[{"a": 1}, None, "x"]], ['{"{\\"a\\": 1}",NULL,"\\"x\\""}'], [{"a": 1}]),
    "bytea[]": ([["aGk="]], ['{"\\\\x6869"}'], [["!"]]),
    "interval[]": ([["P1D"]], ['{"1 day"}'], [["x"]]),
    "inet[]": ([["::1"]], ["{::1}"], [["x"]]),
    "char(2)[]": ([["a", "bc"]], ['{"a ",bc}'], [["abc"]]),
    "real[]": ([[1.5]], ["{1.5}"], [[1e39]]),
    "boolean[]": ([[True, False]], ["{t,f}"], [[1]]),
}


_NOT_AS_TEXT = ("real", "smallint", "integer", "numeric")
NAMED_OTHERWISE = {"timetz": "time", "cidr": "inet", "name": "text", "timestamp(0)": "timestamp", "jsonb[]": "json[]"}
CONTRACTS: dict[str, Callable[[str], str]] = {
    "of its name": lambda type_: NAMED_OTHERWISE.get(type_, type_),
    "as text or json": lambda type_: "json" if "[" in type_ else type_ if type_.startswith(_NOT_AS_TEXT) else "text",
}


class Columns:
    """A table with a column of each type, named for it; each event has a value in one of them."""

    def __init__(self, bench: Bench, types: Sequence[str]) -> None:
        self.bench, self.types = bench, types
        self.wrong = [(type_, value) for type_ in types for value in CASES[type_][2]]
        self.right = [(type_, value) for type_ in types for value in CASES[type_][0]]
        self.expected = [(type_, text) for type_ in types for text in CASES[type_][1]]

    def events(self, of: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
        return [{"id": str(i), type_: value} for i, (type_, value) in enumerate(of)]

    def stored(self) -> list[tuple[str, str]]:
        cases = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(type_)) for type_ in self.types)
        query = sql.SQL("SELECT {} FROM {} ORDER BY id::int").format(cases, sql.Identifier(self.bench.name))
        rows = self.bench.admin.execute(query).fetchall()
        return [next((type_, text) for type_, text in zip(self.types, row, strict=True) if text is not None) for row in rows]


class TestEachType:
    @pytest.mark.parametrize("contract", [*CONTRACTS, "none"])
    def test_of_an_existing_table_takes_what_fits_and_rejects_the_rest(self, bench: Bench, contract: str) -> None:
        table = Columns(bench, list(CASES))
        columns = ", ".join(f'"{type_}" {type_}' for type_ in CASES)
        bench.admin.execute(f"CREATE TABLE {bench.name} (id text PRIMARY KEY, {columns})")  # type: ignore[arg-type]
        names = CONTRACTS.get(contract)
        bench.contract = {"name": "n", "id": "id", "columns": {"id": "text"} | {t: names(t) for t in CASES}} if names else None
        sink = bench.sink()
        sink.claim(bench.claim())
        assert sink.write(at(table.events(table.right))) == {}
        rejected = sink.write(at(table.events(table.wrong)))
        fitting = [case for i, case in enumerate(table.wrong) if i not in rejected]
        assert fitting == []
        for i, (type_, _) in enumerate(table.wrong):
            assert rejected[i].reason.startswith(f"column {type_!r}: ")
            assert len(rejected[i].reason) < 300
        sink.commit(rejected=len(rejected))
        assert table.stored() == table.expected

    def test_of_a_created_table_is_what_the_contract_says_directly_and_merged(self, bench: Bench) -> None:
        types = [type_ for type_ in CASES if ColumnType.parse(type_) is not None]
        table = Columns(bench, types)
        bench.contract = {"name": "n", "id": "id", "columns": {"id": "text"} | {type_: type_ for type_ in types}}
        for window in (W1, W2):
            assert bench.publish(at(table.events(table.right)), window).written == len(table.right)
            assert table.stored() == table.expected

    def test_null_is_null_in_each(self, bench: Bench) -> None:
        types = [type_ for type_ in CASES if ColumnType.parse(type_) is not None]
        bench.contract = {"name": "n", "id": "id", "columns": {"id": "text"} | {type_: type_ for type_ in types}}
        bench.publish(at([{"id": "1"} | dict.fromkeys(types), {"id": "2"}]))
        nulls = sql.SQL(" AND ").join(sql.SQL("{} IS NULL").format(sql.Identifier(type_)) for type_ in types)
        query = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(sql.Identifier(bench.name), nulls)
        assert bench.admin.execute(query).fetchall() == [(2,)]

    def test_an_enum_takes_its_labels(self, bench: Bench) -> None:
        existing(bench, f"mood_{bench.name}", "text", f"CREATE TYPE mood_{bench.name} AS ENUM ('sad', 'it''s ok', 'ünï')")
        assert list(write(bench, ["it's ok", "ünï", "happy", 1])) == [2, 3]
        assert stored(bench) == ["it's ok", "ünï"]

    def test_a_list_of_enums_or_domains_takes_theirs(self, bench: Bench) -> None:
        name = bench.name
        existing(bench, f"mood_{name}[]", None, f"CREATE TYPE mood_{name} AS ENUM ('sad', 'ok')")
        assert list(write(bench, [["sad", None, "ok"], ["happy"]])) == [1]
        assert stored(bench) == ["{sad,NULL,ok}"]
        bench.name += "_d"
        existing(bench, f"short_{name}[]", None, f"CREATE DOMAIN short_{name} AS varchar(2)")
        assert list(write(bench, [["ab"], ["abc"]])) == [1]

    def test_a_domain_takes_what_its_base_does(self, bench: Bench) -> None:
        name = bench.name
        more = f"CREATE DOMAIN d1_{name} AS numeric(5,2); CREATE DOMAIN d2_{name} AS d1_{name}"
        existing(bench, f"d2_{name}", "numeric", more)
        for window in (W1, W2):
            assert list(write(bench, [999.99, 1000, "1.5"], window)) == [1]
            assert stored(bench) == ["999.99", "1.50"]

    def test_a_domain_that_is_not_null_needs_a_value(self, bench: Bench) -> None:
        existing(bench, f"d_{bench.name}", "text", f"CREATE DOMAIN d_{bench.name} AS text NOT NULL")
        assert "missing or null" in write(bench, ["a", None])[1]

    @pytest.mark.parametrize("type_", ["json", "jsonb"])
    def test_a_text_that_holds_a_document_becomes_one(self, bench: Bench, type_: str) -> None:
        existing(bench, type_, "text")
        rejected = write(bench, ['{"a": 12345678901234567.89}', "[1]", "not json", '{"a": "\\u0000"}', {"a": 1}, ""])
        assert sorted(rejected) == [2, 3, 4, 5]
        assert bench.query("SELECT value->'a' #>> '{{}}' FROM {t} WHERE id = '0'") == [("12345678901234567.89",)]

    def test_a_list_of_a_contract_fits_a_document(self, bench: Bench) -> None:
        existing(bench, "jsonb", "text[]")
        assert write(bench, [["a", 1]]) == {}

    @pytest.mark.parametrize(
        ("type_", "wanted"),
        [("integer", "text"), ("double precision", "numeric"), ("text", "uuid"), ("text", "text[]"), ("text[]", "integer[]")],
    )
    def test_what_would_lose_or_not_fit_is_refused(self, bench: Bench, type_: str, wanted: str) -> None:
        existing(bench, type_, wanted)
        with pytest.raises(SinkError, match="column 'value': expected"):
            bench.sink().claim(bench.claim())


class TestKeysAndOrder:
    @pytest.mark.parametrize(
        ("type_", "same"),
        [
            ("uuid", (UUID, UUID.upper())),
            ("inet", ("10.0.0.1", "10.0.0.1/32")),
            ("interval", ("P1D", "PT24H")),
            ("timestamp", ("2026-11-01T00:00:00", "2026-11-01T00:00:00Z")),
            ("bytea", ("aGk=", "\\x6869")),
            ("char(4)", ("ab", "ab  ")),
            ("smallint", (1, 1.0)),
            ("integer[]", ([1], [1.0])),
        ],
    )
    def test_a_key_of_any_type_is_compared_as_its_column_is(self, bench: Bench, type_: str, same: tuple[Any, Any]) -> None:
        bench.contract = {"name": "n", "id": "id", "columns": {"id": type_, "value": "text"}}
        outcome = bench.publish(at([{"id": same[0], "value": "first"}, {"id": same[1], "value": "second"}]))
        assert (outcome.written, outcome.duplicates) == (1, 1)
        bench.publish(at([{"id": same[0], "value": "third"}]), window=W2)
        assert bench.query("SELECT value FROM {t}") == [("third",)]

    @pytest.mark.parametrize(
        ("type_", "less", "more"),
        [
            ("uuid", UUID, "f" + UUID[1:]),
            ("timestamp", "2026-11-01T00:00:00", "2026-11-01T00:00:01"),
            ("interval", "PT23H", "P1D"),
            ("bytea", "", "aGk="),
            ("inet", "9.0.0.1", "10.0.0.1"),
            ("time", "09:00", "10:00"),
            ("real", 9, 10),
            ("smallint", 9, 10),
            ("char(2)", "9", "a"),
            ("integer[]", [9], [10]),
        ],
    )
    def test_a_version_of_any_type_orders_and_null_is_the_oldest(self, bench: Bench, type_: str, less: Any, more: Any) -> None:
        bench.contract = {"name": "n", "id": "id", "version_field": "v", "columns": {"id": "text", "value": "text", "v": type_}}
        bench.publish(at([{"id": "a", "v": more, "value": "more"}, {"id": "a", "v": less, "value": "less"}]), window=W2)
        for older in (less, None):
            assert bench.publish(at([{"id": "a", "v": older, "value": "old"}]), window=W1).older == 1
        assert bench.rows() == {"a": "more"}
        bench.publish(at([{"id": "b", "value": "null"}]), window=W2)
        assert bench.publish(at([{"id": "b", "v": less, "value": "less"}]), window=W1).written == 1

    def test_an_enum_orders_by_its_labels_places(self, bench: Bench) -> None:
        bench.admin.execute(f"CREATE TYPE e_{bench.name} AS ENUM ('new', 'done', 'closed')")  # type: ignore[arg-type]
        bench.admin.execute(f"CREATE TABLE {bench.name} (id text PRIMARY KEY, value text, v e_{bench.name})")  # type: ignore[arg-type]
        bench.contract = {"name": "n", "id": "id", "version_field": "v", "columns": {"id": "text", "value": "text", "v": "text"}}
        bench.publish(at([{"id": "a", "v": "done", "value": "done"}, {"id": "a", "v": "new", "value": "new"}]))
        assert bench.rows() == {"a": "done"}
        bench.publish(at([{"id": "a", "v": "closed", "value": "closed"}]))
        assert bench.rows() == {"a": "closed"}


def test_of_every_type_the_same_is_stored_whatever_the_session_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the connection's options, or the database's and the role's settings; directly and merged."""
    row = {"text": "naïve 日本", "date": "2026-02-01", "interval": "-1 day 02:03:04", "bytea": "/wA=", "double precision": 0.1 + 0.2}
    row |= {"timestamptz": "2026-02-01T04:05:06Z", "json": {"ö": "日"}, "date[]": ["2026-02-01"], "text[]": ["NULL", None]}
    columns = ", ".join(f'"{type_}" {type_}' for type_ in row)
    bench.admin.execute(f"CREATE TABLE {bench.name} (id text PRIMARY KEY, {columns})")  # type: ignore[arg-type]
    bench.contract = None
    told = "client_encoding=latin1 datestyle=SQL,DMY intervalstyle=sql_standard bytea_output=escape extra_float_digits=-5 array_nulls=off"
    for ids, settings in ("日", ""), ("本", told), ("本月", told):
        monkeypatch.setenv("DATABASE_URL", f"{bench.url}?options={quote(' '.join(f'-c {s}' for s in settings.split()))}")
        sink = bench.sink()
        assert sink.claim(bench.claim(ids[0], fingerprint=ids)) is None
        rows = [Message(value=json.dumps({"id": id_} | row).encode(), partition=0, offset=i) for i, id_ in enumerate(ids)]
        assert sink.write(rows) == {}
        sink.commit(rejected=0)
        sink.close()
    alike = "SELECT string_agg(id, '' ORDER BY id), text FROM {t} GROUP BY to_jsonb({t}) - 'id', text"
    assert bench.query(alike) == [("日月本", row["text"])]
