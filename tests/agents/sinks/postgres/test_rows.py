"""Events into rows: what fits is written as it is, what does not is rejected alone."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from confluent_kafka import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.sink_bench import ALL_TYPES, Bench, at
from tests.support.soak import examples


class TestValues:
    def test_values_that_postgresql_cannot_hold_are_rejected_with_column_and_reason(self, bench: Bench) -> None:
        bench.contract = ALL_TYPES
        cases: list[tuple[str, Any, str]] = [
            ("text", "a\0b", "NUL"),
            ("text", 5, "got `int`"),
            ("id", "k" * 3000, "3000 bytes"),
            ("id", None, "missing"),
            ("bigint", 2**63, "<= 9223372036854775807"),
            ("bigint", 1.5, "got `float`"),
            ("bigint", True, "got `bool`"),
            ("double", 10**400, "double"),
            ("boolean", "true", "got `str`"),
            ("timestamptz", "yesterday", "timestamptz"),
            ("timestamptz", "infinity", "timestamptz"),
            ("timestamptz", 12, "timestamptz"),
            ("json", {"a": ["\0"]}, "NUL"),
            ("numeric", "NaN", "numeric"),
            ("numeric", "1e9999", "numeric"),
            ("numeric", [1], "numeric"),
            ("numeric", "0." + "1" * 3000, "numeric"),
            ("numeric", 10**4000, "numeric"),
            ("date", "2026-13-01", "date"),
        ]
        sink = bench.sink()
        sink.claim(bench.claim())
        rejected = sink.write(at([{"id": f"k{i}"} | {name: value} for i, (name, value, _) in enumerate(cases)]))
        for i, (name, _, reason) in enumerate(cases):
            assert f"column {name!r}" in rejected[i].reason
            assert reason in rejected[i].reason, rejected[i].reason
            assert len(rejected[i].reason) < 300
        assert sink.commit(rejected=len(cases)).rows == 0

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (None, "no value"),
            (b"[]", "got `array`"),
            (b'{"id": "a", "text": "\xff"}', "utf-8"),
            (b'{"id": "a", "unknown": "\xff"}', "utf-8"),
            (b'{"id": "a", "text": "\\ud800 and more"}', "half a character (\\ud800)"),
            (b'{"id": "a", "unknown": "\\ud800 and more"}', "half a character (\\ud800)"),
            (b'{"id": "a", "double": Infinity}', "malformed"),
            (b'{"id": "a", "json": ' + b"[" * 3000 + b"]" * 3000 + b"}", "recursion"),
            (b'{"id": "a"} {}', "trailing"),
        ],
    )
    def test_what_is_no_event_is_rejected_alone(self, bench: Bench, value: bytes | None, reason: str) -> None:
        bench.contract = ALL_TYPES
        sink = bench.sink()
        sink.claim(bench.claim())
        good = [Message(value=b'{"id": "%d"}' % i, partition=0, offset=i) for i in range(2)]
        rejected = sink.write([good[0], Message(value=value, partition=0, offset=2), good[1]])
        assert {i: r.rule for i, r in rejected.items()} == {1: "decode"}
        assert reason in rejected[1].reason
        assert sink.commit(rejected=1).written == 2

    def test_values_that_look_hostile_arrive_as_they_are(self, bench: Bench) -> None:
        bench.contract = ALL_TYPES
        texts = [
            "\t\n\r\b\f\\",
            "\\N",
            "\\.",
            "",
            '"',
            "null",
            "\\u0000",
            "é😀\u2028\x01\x7f",
            "'; DROP TABLE x; --",
            "x" * 2_000_000,
            "{}",
            ",",
        ]
        times = [
            "2026-11-01T04:00:00Z",
            "2026-11-01T04:00:00",
            "2026-11-01 04:00:00.123456+05:30",
            "2016-12-31T23:59:60Z",
            "0001-01-01T00:00:00Z",
        ]
        nested: Any = "leaf"
        for _ in range(200):
            nested = {"a": [nested, "\\u0000", "\\", '"\n']}
        rows: list[dict[str, Any]] = [{"id": f"t{i}", "text": t, "json": {"v": t}} for i, t in enumerate(texts)]
        rows += [{"id": f"z{i}", "timestamptz": t} for i, t in enumerate(times)]
        rows += [{"id": "j", "json": nested}, {"id": "n", "numeric": "12345678901234567890.123456789"}, {"id": "m", "numeric": 10**30}]
        rows += [
            {"id": "i", "bigint": -(2**63), "double": -1.7976931348623157e308, "boolean": False, "date": "9999-12-31"},
            {"id": "f", "bigint": 3.0, "double": 3},
        ]
        sink = bench.sink()
        sink.claim(bench.claim())
        assert sink.write(at(rows)) == {}
        sink.commit(rejected=0)
        found = {r[0]: r for r in bench.query("SELECT id, text, json, numeric::text, bigint, double, boolean, date::text FROM {t}")}
        assert [found[f"t{i}"][1] for i in range(len(texts))] == texts
        assert [found[f"t{i}"][2] for i in range(len(texts))] == [{"v": t} for t in texts]
        assert found["j"][2] == nested
        assert (found["n"][3], found["m"][3]) == ("12345678901234567890.123456789", str(10**30))
        assert found["i"][4:] == (-(2**63), -1.7976931348623157e308, False, "9999-12-31")
        assert found["f"][4:6] == (3, 3.0)
        at_utc = dict(bench.query("SELECT id, (timestamptz AT TIME ZONE 'UTC')::text FROM {t} WHERE id LIKE 'z%'"))
        assert [at_utc[f"z{i}"] for i in range(4)] == [
            "2026-11-01 04:00:00",
            "2026-11-01 04:00:00",
            "2026-10-31 22:30:00.123456",
            "2016-12-31 23:59:59",
        ]


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(st.characters(codec=None), max_size=20),
    st.sampled_from(["2026-11-01T00:00:00Z", "2026-11-01", "1e5", "\0", "\ud800", "infinity"]),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec=None), max_size=5), inner, max_size=3)
)


@settings(max_examples=examples(25, 60), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(events=st.lists(st.dictionaries(st.sampled_from(list(ALL_TYPES["columns"])), VALUES, max_size=5), max_size=8))
def test_any_event_is_written_or_rejected_and_the_window_lands(bench: Bench, events: list[dict[str, Any]]) -> None:
    bench.contract = ALL_TYPES
    events = [{"id": f"k{i}"} | e for i, e in enumerate(events)]
    sink = bench.sink()
    sink.claim(bench.claim(window=secrets.token_hex(8)))
    rejected = sink.write(at(events))
    outcome = sink.commit(rejected=len(rejected))
    sink.close()
    assert outcome.rows + len(rejected) == len(events)
    assert outcome.rows == outcome.written + outcome.duplicates + outcome.older
