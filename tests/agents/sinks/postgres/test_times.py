"""Times into columns: each as PostgreSQL's own parser has it, to the microsecond, or rejected with the reason; no chunk fails for one."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from decimal import Decimal

import pytest
from confluent_kafka import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.sink_bench import Bench

PARSED = {
    "instant": "timestamptz",
    "moment": "timestamp",
    "day": "date",
    "at": "time",
    "zoned": "timetz",
}
"""Columns, all of a table that no contract describes, by their types."""

AS_UTC = {
    "instant": "({} AT TIME ZONE 'UTC')::text",
    "moment": "{}::text",
    "day": "{}::text",
    "at": "{}::text",
    "zoned": "{}::text",
}


@pytest.fixture
def times(bench: Bench) -> Bench:
    """A table with a column of each type, beside an id; all that is in it came from the events as they stand."""
    columns = ", ".join(f"{name} {type_}" for name, type_ in PARSED.items())
    bench.admin.execute(f"CREATE TABLE {bench.name} (id text PRIMARY KEY, {columns})")  # type: ignore[arg-type]
    bench.admin.execute("SET TIME ZONE 'UTC'")
    bench.contract = None
    return bench


def publish(bench: Bench, column: str, values: Sequence[object]) -> tuple[list[str | None], dict[int, str]]:
    """What is in the column for each value (raw JSON, where it is bytes), and why the rejected ones are, by index."""
    window = secrets.token_hex(8)
    rows = [
        b'{"id": "%s-%d", "%s": %s}' % (window.encode(), i, column.encode(), v if isinstance(v, bytes) else json.dumps(v).encode())
        for i, v in enumerate(values)
    ]
    sink = bench.sink()
    assert sink.claim(bench.claim(window, fingerprint=window)) is None
    rejected = sink.write([Message(value=row, partition=0, offset=i) for i, row in enumerate(rows)])
    assert sink.commit(rejected=len(rejected)).written == len(values) - len(rejected)
    sink.close()
    found = dict(bench.query(f"SELECT id, {AS_UTC[column].format(column)} FROM {{t}} WHERE id LIKE {{w}}", w=f"{window}-%"))
    return [found.get(f"{window}-{i}") for i in range(len(values))], {i: r.reason for i, r in rejected.items()}


def parsed(bench: Bench, column: str, texts: Sequence[str]) -> list[str | None]:
    """What PostgreSQL itself reads, a text without a zone as of UTC; None for what it refuses."""
    type_ = "timestamptz" if column in ("instant", "moment") else PARSED[column]
    shown = "(t::timestamptz AT TIME ZONE 'UTC')::text" if type_ == "timestamptz" else f"t::{type_}::text"
    query = (
        f"SELECT CASE WHEN pg_input_is_valid(t, '{type_}') THEN {shown} END FROM unnest(%s::text[]) WITH ORDINALITY AS x(t, n) ORDER BY n"
    )
    return [row[0] for row in bench.admin.execute(query, [list(texts)]).fetchall()]  # type: ignore[arg-type]


FIRST_YEARS = ["0001-01-01", "0001-01-02", "0004-02-29", "1900-02-28"]
LAST_YEARS = ["9999-12-30", "9999-12-31", "2000-02-29", "2262-04-12"]
DAYS = st.one_of(
    st.dates().map(str),
    st.sampled_from([*FIRST_YEARS, *LAST_YEARS, "1969-12-31", "1970-01-01", "1999-12-31", "2000-01-01", "2023-02-29", "2100-02-29"]),
    st.sampled_from(["0000-01-01", "10000-01-01", "-0001-01-01", "2024-13-01", "2024-04-31", "infinity", "-infinity", "epoch"]),
)
CLOCKS = st.one_of(
    st.tuples(st.integers(0, 23), st.integers(0, 59), st.integers(0, 59)).map(lambda t: "{:02}:{:02}:{:02}".format(*t)),
    st.sampled_from(["00:00:00", "23:59:59", "24:00:00", "24:00", "24:00:01", "12:34", "25:00:00", "12:60:00"]),
)
FRACTIONS = st.one_of(
    st.just(""),
    st.from_regex(r"\.[0-9]{1,6}", fullmatch=True),
    st.from_regex(r"\.[0-9]{6}[1-46-9][0-9]{0,6}", fullmatch=True),  # past the sixth digit, and not right between two
    st.sampled_from([".9999999", ".0000001", ".999999"]),
)
OFFSETS = st.one_of(
    st.sampled_from(["", "Z", "+00:00", "-00:00", "+14:00", "-12:00", "+05:30", "+15:59", "-15:59", "+16:00", "-23:59", "+24:00"]),
    st.tuples(st.sampled_from("+-"), st.integers(0, 15), st.integers(0, 59)).map(lambda t: "{}{:02}:{:02}".format(*t)),
)
MOMENTS = st.builds(
    lambda d, s, c, f, o: f"{d}{s}{c}{f if c.count(':') == 2 else ''}{o}", DAYS, st.sampled_from("T "), CLOCKS, FRACTIONS, OFFSETS
)
TIMES = st.builds(lambda c, f, o: f"{c}{f if c.count(':') == 2 else ''}{o}", CLOCKS, FRACTIONS, OFFSETS)

LENIENT = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def refusable(text: str) -> bool:
    """Whether PostgreSQL takes what this project says no to: years that Python doesn't have, words, offsets of a day."""
    return not re.match(r"\d{4}-", text) or not "0001-01-03" <= text[:10] <= "9999-12-29"


class TestAgainstPostgresOwnParser:
    @pytest.mark.parametrize("column", ["instant", "moment"])
    @LENIENT
    @given(texts=st.lists(MOMENTS, min_size=1, max_size=40))
    def test_moments(self, times: Bench, column: str, texts: list[str]) -> None:
        written, rejected = publish(times, column, texts)
        for i, (text, theirs) in enumerate(zip(texts, parsed(times, column, texts), strict=True)):
            if i in rejected:
                assert theirs is None or refusable(text), f"{text}: rejected ({rejected[i]}), PostgreSQL has {theirs}"
            elif theirs is not None:
                assert written[i] == theirs, text
            else:
                assert text[-6:-3] in ("+16", "-23"), f"{text}: {written[i]}, PostgreSQL refuses it"  # instants all the same

    @pytest.mark.parametrize("column", ["at", "zoned"])
    @LENIENT
    @given(texts=st.lists(TIMES, min_size=1, max_size=40))
    def test_times_of_the_day(self, times: Bench, column: str, texts: list[str]) -> None:
        written, rejected = publish(times, column, texts)
        for i, (text, theirs) in enumerate(zip(texts, parsed(times, column, texts), strict=True)):
            if i in rejected:
                zoned = column == "at" and re.search(r"[Z+-]", text)  # which PostgreSQL passes over in silence
                assert theirs is None or zoned, f"{text}: rejected ({rejected[i]}), PostgreSQL has {theirs}"
            else:
                assert written[i] == theirs, text

    @LENIENT
    @given(texts=st.lists(DAYS, min_size=1, max_size=40))
    def test_days(self, times: Bench, texts: list[str]) -> None:
        written, rejected = publish(times, "day", texts)
        for i, (text, theirs) in enumerate(zip(texts, parsed(times, "day", texts), strict=True)):
            assert written[i] == theirs if i not in rejected else theirs is None or refusable(text), text


class TestNumbersSince1970:
    @pytest.mark.parametrize("unit", ["s", "ms", "us"])
    @LENIENT
    @given(data=st.data())
    def test_are_exact_to_the_microsecond_or_rejected(self, bench: Bench, unit: str, data: st.DataObject) -> None:
        if bench.contract is None or bench.contract.get("name") != "numbers":
            columns = {"id": "text", "instant": "timestamptz"}
            bench.contract = {"name": "numbers", "id": "id", "time": "instant", "time_unit": unit, "columns": columns}
        per_second = {"s": 1, "ms": 1_000, "us": 1_000_000}[unit]
        digits = {"s": 6, "ms": 3, "us": 0}[unit]
        low, high = -62_135_596_800 * per_second, 253_402_300_800 * per_second - 1
        edges = [low, high, low - 1, high + 1, 0, -1, 2**31 * per_second, 2**33 * per_second]
        whole = st.one_of(st.integers(low, high), st.sampled_from(edges))
        numbers = data.draw(st.lists(st.tuples(whole, st.integers(0, 10**digits - 1)), min_size=1, max_size=40))
        texts = [f"{n}.{f:0{digits}}" if digits and f else str(n) for n, f in numbers]
        written, rejected = publish(bench, "instant", [t.encode() for t in texts])
        micros = [int(Decimal(text) * 1_000_000 / per_second) for text in texts]
        since = (
            "SELECT (timestamp '1970-01-01' + (m || ' microseconds')::interval)::text"
            " FROM unnest(%s::bigint[]) WITH ORDINALITY AS x(m, n) ORDER BY n"
        )
        theirs = bench.admin.execute(since, [micros]).fetchall()
        for i, text in enumerate(texts):
            if i in rejected:
                assert not low <= Decimal(text) < high + 1, f"{text}: {rejected[i]}"
            else:
                assert written[i] == theirs[i][0], text


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("instant", "infinity", "isoformat"),
        ("instant", "9999-12-31T23:59:59.9999999Z", "between the years 1 and 9999"),
        ("moment", "9999-12-31T23:59:59-01:00", "between the years 1 and 9999"),
        ("moment", "0001-01-01T00:00:00+01:00", "between the years 1 and 9999"),
        ("day", "infinity", "date"),
        ("day", "2023-02-29", "date"),
        ("zoned", "12:00:00+16:00", "below 16 hours"),
        ("zoned", "12:00:00-23:59", "below 16 hours"),
        ("at", "12:00:00Z", "without a zone"),
        ("at", "23:59:60", "second must be in 0..59"),
        ("at", 12, "expected `str`"),
    ],
)
def test_what_has_no_place_is_rejected_with_the_reason_and_the_rest_lands(times: Bench, column: str, value: object, reason: str) -> None:
    good = {"instant": "2024-01-01T00:00:00Z", "moment": "2024-01-01T00:00:00", "day": "2024-01-01"}.get(column, "12:00:00")
    written, rejected = publish(times, column, [good, value, good])
    assert list(rejected) == [1]
    assert reason in rejected[1]
    assert written[0] == written[2]


@pytest.mark.parametrize(
    ("column", "value", "stored"),
    [
        ("instant", "0001-01-01T00:00:00Z", "0001-01-01 00:00:00"),
        ("instant", "9999-12-31T23:59:59.999999Z", "9999-12-31 23:59:59.999999"),
        ("instant", "2024-12-31T24:00:00Z", "2025-01-01 00:00:00"),
        ("instant", "2024-01-02T03:04:05.1234567", "2024-01-02 03:04:05.123457"),
        ("instant", "2024-01-02T03:04:05.1234567Z", "2024-01-02 03:04:05.123457"),
        ("instant", "2016-12-31T23:59:60Z", "2016-12-31 23:59:59"),  # a leap second, as contracts have it
        ("at", "24:00", "24:00:00"),
        ("at", "23:59:59.9999999", "24:00:00"),
        ("zoned", "24:00:00+15:59", "24:00:00+15:59"),
        ("zoned", "12:00:00-05:30:15", "12:00:00-05:30:15"),
        ("day", "0001-01-01", "0001-01-01"),
    ],
)
def test_the_edges_are_kept(times: Bench, column: str, value: str, stored: str) -> None:
    assert publish(times, column, [value]) == ([stored], {})


def test_lists_of_times_too(bench: Bench) -> None:
    bench.admin.execute(f"CREATE TABLE {bench.name} (id text PRIMARY KEY, at time[], zoned timetz[])")  # type: ignore[arg-type]
    bench.contract = None
    rows = [b'{"id": "a", "at": ["24:00", null, "01:02:03.5"], "zoned": ["12:00+15:59"]}', b'{"id": "b", "zoned": ["12:00+16:00"]}']
    sink = bench.sink()
    sink.claim(bench.claim())
    assert list(sink.write([Message(value=row, partition=0, offset=i) for i, row in enumerate(rows)])) == [1]
    sink.commit(rejected=1)
    assert bench.query("SELECT at::text, zoned::text FROM {t}") == [("{24:00:00,NULL,01:02:03.5}", "{12:00:00+15:59}")]
