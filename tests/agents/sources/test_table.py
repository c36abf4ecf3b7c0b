"""PostgreSQL tables and queries as sources: every row in exactly one interval, in one order, in one snapshot."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.protocol import Interval
from factory_agents.sources.rows import ReadOptions
from factory_agents.sources.table import TableSource
from tests.agents.sources.reading import EPOCH, hour, read, seconds
from tests.support.databases import end_sessions

TIMED = ReadOptions(time_field="t")


@pytest.fixture
def database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection]:
    """A connection to an empty schema that DATABASE_URL leads to as well."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS source CASCADE; CREATE SCHEMA source")
        monkeypatch.setenv("DATABASE_URL", f"{database_url}?options=-c%20search_path%3Dsource")
        connection.execute("SET search_path = source")
        yield connection


@pytest.fixture
def table() -> Iterator[type[TableSource]]:
    """Table sources that are closed in the end."""
    made: list[TableSource] = []

    class Closing(TableSource):
        def __init__(self, name: str = "", options: ReadOptions = TIMED, *, query: str = "", env: str = "DATABASE_URL") -> None:
            super().__init__(name, query, env, options)
            made.append(self)

    yield Closing
    for source in made:
        source.close()


def test_the_rows_of_an_interval_come_as_json_by_time_then_id(database: psycopg.Connection, table: type[TableSource]) -> None:
    database.execute("CREATE TABLE e (event_id int, t timestamptz, a numeric, b bytea, at timestamp, tags text[], doc jsonb)")
    database.execute(
        """INSERT INTO e VALUES
        (2, 'epoch'::timestamptz + '59 min', 1.50, '\\xff00', '2018-06-05 08:00', '{x,"y z"}', '{"k": [1]}'),
        (1, 'epoch'::timestamptz + '59 min', 'NaN', null, null, null, null),
        (3, 'epoch'::timestamptz + '60 min', 0, '', null, '{}', 'null'),
        (4, 'epoch'::timestamptz, 0, null, 'infinity', null, null)"""
    )
    records = read(table("e"), hour(0))
    assert [(r.key, r.where) for r in records] == [(b"4", "table 'e':1"), (b"1", "table 'e':2"), (b"2", "table 'e':3")]
    assert json.loads(records[2].value) == {
        "event_id": 2, "t": "1970-01-01T00:59:00+00:00", "a": "1.50", "b": "/wA=", "at": "2018-06-05T08:00:00+00:00",
        "tags": ["x", "y z"], "doc": {"k": [1]},
    }  # fmt: skip
    assert json.loads(records[1].value)["a"] == "NaN"
    assert [r.key for r in read(table("e"), hour(1))] == [b"3"]
    assert len(read(table("source.e"), None)) == 4


def test_lists_are_written_as_their_elements_are(database: psycopg.Connection, table: type[TableSource]) -> None:
    database.execute("CREATE TABLE lists (event_id int, b bytea[], n numeric[], t timestamp[])")
    database.execute(
        r"""INSERT INTO lists VALUES
        (1, ARRAY['\xff00'::bytea, null, repeat('ab', 60)::bytea], ARRAY[12345678901234567.89, null], ARRAY['2018-06-05 08:00'::timestamp]),
        (2, '{}', ARRAY[[1.50], [2]], null),
        (3, ARRAY[['\xff'::bytea], ['\x00'::bytea]], null, null),
        (4, null, null, null)"""
    )
    rows = [json.loads(record.value) for record in read(table("lists", options=ReadOptions(id_field="event_id")), None)]
    assert base64.b64decode(rows[0]["b"][2]) == b"ab" * 60  # no line breaks in it
    assert rows[0]["b"][:2] == ["/wA=", None]
    assert rows[0]["n"] == ["12345678901234567.89", None]
    assert rows[0]["t"] == ["2018-06-05T08:00:00+00:00"]
    assert (rows[1]["b"], rows[1]["n"], rows[1]["t"]) == ([], [["1.50"], ["2"]], None)
    assert rows[2]["b"] == [["\\xff"], ["\\x00"]]
    assert rows[3]["b"] is None


@pytest.mark.parametrize(
    ("kind", "expression"),
    [
        ("timestamptz", "to_timestamp(s)"),
        ("timestamp", "to_timestamp(s) AT TIME ZONE 'UTC'"),
        ("bigint", "s::bigint"),
        ("double precision", "s"),
        ("numeric", "s::numeric"),
        ("bigint", "(s * 1000)::bigint + 200000000000"),
        ("bigint", "(s * 1e6)::bigint + 200000000000000"),
    ],
)
def test_every_row_is_in_exactly_one_interval(database: psycopg.Connection, table: type[TableSource], kind: str, expression: str) -> None:
    database.execute("SET timezone = 'Europe/Berlin'")
    database.execute(f"CREATE TABLE e (event_id text, t {kind})")
    database.execute(
        f"INSERT INTO e SELECT 'e' || n, {expression} FROM (SELECT n, n * 0.5::float8 AS s FROM generate_series(0, 40) AS n) AS r"
    )
    database.execute("INSERT INTO e VALUES ('none', null)")
    offset = 200_000_000 if "2000000" in expression else 0
    parts = [read(table("e"), seconds(offset + a, offset + b)) for a, b in ((0, 3), (3, 4), (4, 15), (15, 60))]
    if kind == "bigint" and expression.startswith("s::"):
        assert sum(map(len, parts)) == 42
    else:
        assert [len(part) for part in parts] == [7, 2, 22, 11]
    assert [r.key for part in parts for r in part if r.reject] == [b"none"]
    assert parts[0][0].key == b"none"
    assert len({r.key for part in parts for r in part}) == 42


def test_dates_are_midnights_in_utc(database: psycopg.Connection, table: type[TableSource]) -> None:
    database.execute("CREATE TABLE e (t date); INSERT INTO e VALUES ('1970-01-01'), ('1970-01-02')")
    assert [len(read(table("e"), hour(n))) for n in (0, 1, 23, 24, 25)] == [1, 0, 0, 1, 0]
    assert len(read(table("e"), Interval(EPOCH, datetime.max.replace(tzinfo=UTC)))) == 2


def test_a_query_is_a_source_too(database: psycopg.Connection, table: type[TableSource]) -> None:
    database.execute("CREATE TABLE e (event_id text, at text); INSERT INTO e VALUES ('a', '1970-01-01T00:10:00Z')")
    records = read(table(query="SELECT *, at::timestamptz AS t FROM e;"), hour(0))
    assert [(r.key, r.where) for r in records] == [(b"a", "query:1")]


def test_reading_again_sees_the_same_snapshot_in_the_same_order(database: psycopg.Connection, table: type[TableSource]) -> None:
    database.execute("CREATE TABLE e (n int, t timestamptz); INSERT INTO e SELECT n, 'epoch' FROM generate_series(1, 12000) AS n")
    source = table("e")
    batches = source.read(hour(0), 0)
    first = list(next(batches))
    assert len(first) == 5_000
    database.execute("INSERT INTO e SELECT -n, 'epoch' FROM generate_series(1, 9) AS n; UPDATE e SET n = n + 100000 WHERE n < 100")
    rest = [record for batch in batches for record in batch]
    assert len(rest) == 7_000
    again = read(source, hour(0), skip=5_000)
    assert [(r.value, r.where) for r in again] == [(r.value, r.where) for r in rest]
    assert len(read(table("e"), hour(0))) == 12_009


def test_a_table_is_always_read_again(table: type[TableSource]) -> None:
    assert table("e").identity["volatile"] is True


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nothing", TIMED, r'table \'nothing\': relation "nothing" does not exist'),
        ("e", ReadOptions(time_field="tt"), r"table 'e': time_field 'tt' is not there; did you mean 't'\?"),
        ("e", ReadOptions(time_field="note"), "the time column 'note' is not a time, date or number; give a query"),
        ("n", TIMED, "every row's time 't' is null"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(
    database: psycopg.Connection, table: type[TableSource], name: str, options: ReadOptions, message: str
) -> None:
    database.execute("CREATE TABLE e (t timestamptz, note text); CREATE TABLE n (t timestamptz); INSERT INTO n VALUES (null)")
    with pytest.raises(ConfigurationError, match=message):
        read(table(name, options), hour(0))


def test_a_column_twice_in_a_query_is_an_error(database: psycopg.Connection, table: type[TableSource]) -> None:
    with pytest.raises(ConfigurationError, match="a column's name is there twice"):
        read(table(query="SELECT now() AS t, 1 AS a, 2 AS a"), None)


def test_an_empty_table_has_no_rows(database: psycopg.Connection, table: type[TableSource]) -> None:
    database.execute("CREATE TABLE e (t timestamptz)")
    assert read(table("e"), hour(0)) == []


def test_a_database_that_is_not_there_may_come_back_and_a_wrong_name_does_not(
    database_url: str, table: type[TableSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(ConfigurationError, match="DATABASE_URL is not set"):
        read(table("e"), hour(0))
    monkeypatch.setenv("ELSEWHERE", "postgresql://127.0.0.1:1/x")
    with pytest.raises(UnavailableError, match=r"/x does not answer.*ELSEWHERE"):
        read(table("e", env="ELSEWHERE"), hour(0))
    monkeypatch.setenv("ELSEWHERE", database_url.rpartition("/")[0] + "/no_such_database")
    with pytest.raises(ConfigurationError, match="correct ELSEWHERE"):
        read(table("e", env="ELSEWHERE"), hour(0))
    monkeypatch.setenv("ELSEWHERE", "not a url")
    with pytest.raises(ConfigurationError, match="ELSEWHERE is not a database URL"):
        read(table("e", env="ELSEWHERE"), hour(0))


def test_a_connection_that_breaks_while_reading_may_be_tried_again(database: psycopg.Connection, table: type[TableSource]) -> None:
    database.execute("CREATE TABLE e (t timestamptz); INSERT INTO e SELECT to_timestamp(n) FROM generate_series(1, 30000) AS n")
    batches = table("e").read(seconds(0, 40_000), 0)
    next(batches)
    end_sessions(database)
    with pytest.raises(UnavailableError, match="table 'e': the connection was lost"):
        for _ in batches:
            pass


def test_an_interval_before_its_time_zone_is_taken_as_utc(database: psycopg.Connection, table: type[TableSource]) -> None:
    database.execute("CREATE TABLE e (t timestamp); INSERT INTO e VALUES ('1970-01-01 00:30')")
    berlin = hour(0)
    shifted = type(berlin)((EPOCH).astimezone(), (EPOCH + timedelta(hours=1)).astimezone())
    assert len(read(table("e"), shifted)) == 1


UNREADABLE = [
    ("timestamptz", ["null", "'infinity'", "'-infinity'", "'10000-01-01'", "'0044-03-15 BC'"], "to_timestamp(n)"),
    ("timestamp", ["null", "'infinity'", "'-infinity'", "'10000-01-01'", "'0044-03-15 BC'"], "to_timestamp(n) AT TIME ZONE 'UTC'"),
    ("date", ["null", "'infinity'", "'-infinity'", "'10000-01-01'", "'0044-03-15 BC'"], "date '1970-01-01'"),
    ("double precision", ["null", "'NaN'", "'Infinity'", "'-Infinity'", "1e30", "-1e30"], "n"),
    ("numeric", ["null", "'NaN'", "'Infinity'", "'-Infinity'", "1e30", "-1e30", "20240102", "20240102030405678901"], "n"),
    ("bigint", ["null", "20240102", "2024", "20240102030405", "20240102030405678", "31122024"], "n"),
]


@pytest.mark.parametrize(("kind", "times", "expression"), UNREADABLE, ids=[kind for kind, _, _ in UNREADABLE])
def test_a_row_whose_time_cannot_be_read_is_rejected_in_just_one_interval(
    database: psycopg.Connection, table: type[TableSource], kind: str, times: list[str], expression: str
) -> None:
    database.execute(f"CREATE TABLE e (event_id text, t {kind})")
    database.execute(f"INSERT INTO e SELECT 'good' || n, {expression} FROM generate_series(0, 5400, 1800) AS n")
    for i, time in enumerate(times):
        database.execute(f"INSERT INTO e VALUES ('bad{i}', {time})")
    parts = [read(table("e"), hour(n)) for n in (-1, 0, 1, 2)]
    everything = [r for part in parts for r in part]
    assert len(everything) == 4 + len(times)
    bad = [r for r in everything if r.reject is not None]
    assert sorted(r.key or b"" for r in bad) == [b"bad%d" % i for i in range(len(times))]
    assert bad == [r for r in parts[1] if r.reject is not None], "they belong to the interval of the first time"
    assert all(r.reject is not None and r.reject.rule == "time" and r.reject.reason.startswith("the time 't' is ") for r in bad)
    assert [r.reject is None for r in read(table("e"), None)] == [False] * len(times) + [True] * 4


@pytest.mark.parametrize(
    ("kind", "time", "message"),
    [
        ("bigint", "20240102", "the first is 20240102, which looks like a date: set time_format to its form, such as %Y%m%d, or time_unit"),
        ("timestamptz", "'infinity'", "the first is Infinity, not a time"),
        ("timestamptz", "'10000-01-01'", "the first is 10000-01-01 00:00:00+00, outside of the years 1 to 9999"),
        ("timestamptz", "null", "every row's time 't' is null"),
    ],
)
def test_a_table_without_any_readable_time_is_an_error(
    database: psycopg.Connection, table: type[TableSource], kind: str, time: str, message: str
) -> None:
    database.execute(f"CREATE TABLE e (t {kind}); INSERT INTO e VALUES ({time})")
    with pytest.raises(ConfigurationError, match="no row has a readable time in 't'; ") as caught:
        read(table("e"), hour(0))
    assert message in str(caught.value)


def test_a_number_that_looks_like_a_date_is_a_time_by_its_unit(database: psycopg.Connection, table: type[TableSource]) -> None:
    database.execute("CREATE TABLE e (t bigint); INSERT INTO e VALUES (20240102)")
    (record,) = read(table("e", ReadOptions(time_field="t", time_unit="s")), seconds(20240102, 20240103))
    assert record.reject is None
    with pytest.raises(ConfigurationError, match="time_format is for files; give a query"):
        table("e", ReadOptions(time_field="t", time_format="%Y%m%d"))


@pytest.mark.parametrize("end", [" -- by hand", ";", "; -- by hand\n", " /* by hand */ ;"])
def test_a_query_may_end_as_people_end_them(database: psycopg.Connection, table: type[TableSource], end: str) -> None:
    database.execute("CREATE TABLE e (t timestamptz); INSERT INTO e VALUES ('epoch')")
    assert len(read(table(query=f"SELECT * FROM e{end}"), hour(0))) == 1


def test_a_table_is_named_as_publish_takes_it(database: psycopg.Connection, table: type[TableSource]) -> None:
    database.execute('CREATE TABLE "Mixed Case" (t timestamptz); INSERT INTO "Mixed Case" VALUES (\'epoch\')')
    for name in ('source."Mixed Case"', '"source"."Mixed Case"', "source.Mixed Case", '"Mixed Case"'):
        assert len(read(table(name), hour(0))) == 1


def test_json_and_numeric_columns_keep_their_digits(database: psycopg.Connection, table: type[TableSource]) -> None:
    database.execute("CREATE TABLE e (t timestamptz, n numeric, j json, jb jsonb)")
    number = "100000000000000000000000.5"
    database.execute(f"INSERT INTO e VALUES ('epoch', {number}, '[{number}]', '[{number}]')")
    (record,) = read(table("e"), hour(0))
    assert f'"n":"{number}"'.encode() in record.value
    assert record.value.count(b"[100000000000000000000000.5]") == 2


def test_a_session_is_left_as_it_was_found(database: psycopg.Connection, database_url: str) -> None:
    """Behind a transaction pooler the next one who gets it would find what was set or prepared."""
    from factory_agents.sources.table import connect, describe, in_one_form

    database.execute("CREATE TABLE e (t timestamptz); INSERT INTO e VALUES ('epoch')")
    with connect("DATABASE_URL") as connection:
        before = connection.execute("SHOW timezone").fetchone()
        connection.commit()
        for _ in range(10):
            in_one_form(connection)
            connection.execute(describe(connection, "e", "").as_json).fetchall()
            connection.commit()
        assert connection.execute("SHOW timezone").fetchone() == before
        assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


@pytest.mark.parametrize("name", ["c", "q", "r", "e", "factory_row", "factory_row_", "share %", "%s", 'Mixed "Case"', "select", "größe"])
@pytest.mark.parametrize("kind", ["numeric", "point2"])
def test_a_column_may_have_any_name(database: psycopg.Connection, table: type[TableSource], name: str, kind: str) -> None:
    database.execute("CREATE TYPE point2 AS (x int, y int)")
    database.execute(f"CREATE TABLE e (event_id int, t timestamptz, {sql.Identifier(name).as_string(database)} {kind})")
    database.execute(f"INSERT INTO e VALUES (1, 'epoch', {'1.5' if kind == 'numeric' else '(1, 2)'})")
    (record,) = read(table("e"), hour(0))
    value = "1.5" if kind == "numeric" else {"x": 1, "y": 2}
    assert json.loads(record.value) == {"event_id": 1, "t": "1970-01-01T00:00:00+00:00", name: value}


def test_a_row_is_written_alike_whatever_the_session_is_told(
    database: psycopg.Connection, table: type[TableSource], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the connection's options, or the database's and the role's settings."""
    database.execute("CREATE TABLE e (event_id date, f float8, r real[], i interval, b bytea[], t text)")
    database.execute(r"INSERT INTO e VALUES ('2026-11-01', 0.1::float8 + 0.2, '{0.1}', '-1 day 2:03:04', '{{\\x00ff}}', 'naïve 日本')")
    options = ReadOptions(id_field="event_id")
    [usual] = read(table("e", options=options), None)
    settings = {
        "search_path": "source",
        "extra_float_digits": "-5",
        "datestyle": "SQL,DMY",
        "intervalstyle": "sql_standard",
        "bytea_output": "escape",
        "client_encoding": "latin1",
    }
    monkeypatch.setenv("DATABASE_URL", f"{database_url}?options={quote(' '.join(f'-c {n}={v}' for n, v in settings.items()))}")
    [told] = read(table("e", options=options), None)
    assert (usual.key, usual.value) == (told.key, told.value)
    row = json.loads(told.value)
    assert (told.key, row["f"], row["b"], row["t"]) == (b"2026-11-01", 0.1 + 0.2, [["\\x00ff"]], "naïve 日本")
