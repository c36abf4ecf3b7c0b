"""SQL over the valid events of a window."""

from __future__ import annotations

import resource
import sys
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from factory_agents.contracts import WindowStatistics, judge, load_contract, merge_reports
from factory_agents.contracts.sql import WindowTable
from factory_agents.errors import ConfigurationError, ContractError
from factory_agents.validate import ValidateTransform
from tests.agents.test_validate import RUN, message

TYPES: dict[str, Any] = {
    "id": {"type": "string"},
    "n": {"type": ["integer", "null"]},
    "x": {"type": "number"},
    "ok": {"type": "boolean"},
    "seen": {"type": "string", "format": "date-time"},
    "day": {"type": "string", "format": "date"},
    "tags": {"type": "array", "items": {"type": "string"}},
    "user": {"type": "object", "properties": {"name": {"type": "string"}}},
    "Straße 1": {"type": "string"},
}
EVENTS: list[dict[str, Any]] = [
    {"id": "a", "n": 1, "x": 0.5, "ok": True, "seen": "2026-11-01T04:00:00Z", "day": "2026-11-01", "tags": ["x"], "user": {"name": "Ann"}},
    {"id": "b", "n": 2.0, "x": 2, "ok": False, "seen": "2026-11-01T07:00:00+02:00", "day": "2026-11-02", "tags": [], "Straße 1": "y"},
    {"id": "b", "n": 12345678901234567890123456789, "x": 1e300},
    {"id": "c", "n": None},
]


def report(sql: dict[str, Any], events: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    """What the validate agent tells of these events."""
    schema = {"type": "object", "required": ["id"], "properties": TYPES}
    contract = load_contract({"name": "e", "id": "id", "schema": schema, "window": {"sql": sql, **more}})
    agent = ValidateTransform(contract, RUN)
    try:
        agent.process([message(msgspec.json.encode(event), i) for i, event in enumerate(EVENTS if events is None else events)])
        return agent.report()
    finally:
        agent.close()


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("SELECT count(*) FROM events", 4),
        ("SELECT count(*) FROM events;", 4),
        ("SELECT count(*) - count(DISTINCT id) FROM events -- a remark", 1),
        ("SELECT max(n) FROM events WHERE n < 100", 2),
        ("SELECT count(*) FROM events WHERE n = 12345678901234567890123456789", 1),
        ("SELECT avg(x) FROM events WHERE x < 10", 1.25),
        ("SELECT bool_or(ok) FROM events", 1),
        ("SELECT count(*) FROM events WHERE seen = TIMESTAMPTZ '2026-11-01 04:00:00+00'", 1),
        ("SELECT date_diff('hour', min(seen), max(seen)) FROM events", 1),
        ("SELECT max(day) - min(day) FROM events", 1),
        ("SELECT count(*) FROM events WHERE tags->>0 = 'x' AND \"user\"->>'name' = 'Ann'", 1),
        ('SELECT count("Straße 1") FROM events', 1),
        ("SELECT count(*) FROM (SELECT * FROM events WHERE id = 'b')", 2),
        ("SELECT count(*) FROM (SELECT DISTINCT e FROM events e)", 4),
        ("WITH last AS (SELECT id, count(*) n FROM events GROUP BY ALL) SELECT max(n) FROM last", 2),
        ("SELECT count(*) FROM events a JOIN events b USING (id)", 6),
        ("SELECT 1.50::DECIMAL(5,2)", 1.5),
    ],
)
def test_a_query_sees_the_events_as_they_are(query: str, answer: float) -> None:
    found = report({"q": query})
    assert (found["sql"], found["sql_unknown"]) == ({"q": answer}, {})


def test_a_condition_judges_what_a_query_gives() -> None:
    found = report({"twice": "SELECT count(*) - count(DISTINCT id) FROM events"}, fail_if=["sql(twice) > 0"], warn_if=["sql(twice) > 1"])
    verdict = judge(found, "sql(twice) between 0.5 and 1.5")
    assert [(c["level"], c["observed"], c["outcome"]) for c in verdict.checks] == [
        ("fail", 1, "fail"),
        ("warn", 1, "pass"),
        ("fail", 1, "fail"),
    ]
    assert "broken: sql(twice) 1 (fails above 0)" in [line.text.strip() for line in verdict.lines]


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("SELECT sum(n) FROM events WHERE n < 0", "the query gave null"),
        ("SELECT n FROM events", "the query gave several rows"),
        ("SELECT n FROM events WHERE false", "the query gave no row"),
        ("SELECT 1e308::DOUBLE * 100", "no finite number"),
    ],
)
def test_what_has_no_answer_warns_and_says_why(query: str, why: str) -> None:
    found = report({"q": query}, fail_if="sql(q) > 0")
    assert found["sql"] == {"q": None}
    (check,) = judge(found).checks
    assert (check["outcome"], why in check["note"]) == ("warn", True), check


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) FROM read_csv('/etc/passwd')",
        "SELECT count(*) FROM '/etc/passwd'",
        "SELECT length(content) FROM read_text('/etc/passwd')",
        "SELECT count(*) FROM glob('/*')",
        "SELECT count(*) FROM 'https://127.0.0.1/x.parquet'",
        "SELECT count(*) FROM sqlite_scan('/tmp/x.db', 't')",
        "SELECT count(*) FROM EVENTS_",
        "SELECT count(*) FROM sys",
        "SELECT nothing FROM events",
        "SELECT id FROM events",
        "SELECT 1, 2",
        "SELECT getenv('HOME')",
        "COPY events TO '/tmp/stolen.csv'",
        "ATTACH '/tmp/stolen.db' AS d",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET memory_limit = '100GB'",
        "PRAGMA database_list",
        "DROP TABLE events",
        "DELETE FROM events",
        "SELECT 1; DROP TABLE events",
        "SELEC 1",
        "",
        "--",
    ],
)
def test_a_query_reaches_nothing_but_the_events_and_only_reads(query: str) -> None:
    with pytest.raises(ContractError, match=r"inline contract: window\.sql") as caught:
        report({"q": query})
    assert "\n" not in str(caught.value)
    if query:  # where it is another engine's, its answer isn't known, and the others go on
        found = report({"q": {"query": query, "required": False}, "n": "SELECT count(*) FROM events"})
        assert found["sql"] == {"q": None, "n": 4}


def test_of_several_shards_no_answer_is_told() -> None:
    found = merge_reports([report({"q": "SELECT 1"}, fail_if="sql(q) > 0")] * 2)
    (check,) = judge(found).checks
    assert check["outcome"] == "warn"
    assert "plan it with shards=1" in check["note"]
    assert merge_reports([report({"q": "SELECT 7"})])["sql"] == {"q": 7}


def test_live_events_are_no_window() -> None:
    contract = load_contract({"name": "e", "id": None, "schema": {"properties": TYPES}, "window": {"sql": {"q": "SELECT 1"}}})
    agent = ValidateTransform(contract, None)
    agent.process([message(b"{}")])
    assert agent.report()["sql"] == {"q": None}


def test_an_empty_window_is_no_failure() -> None:
    found = report({"n": "SELECT count(*) FROM events", "sum": "SELECT sum(n) FROM events"}, [], fail_if=["sql(sum) > 0", "sql(n) < 1"])
    assert [(c["observed"], c["outcome"]) for c in judge(found).checks] == [(None, "pass"), (0, "fail")]


def test_fields_that_differ_in_case_alone_are_refused() -> None:
    schema = {"properties": {"a": {"type": "string"}, "A": {"type": "string"}}}
    contract = load_contract({"name": "e", "id": None, "schema": schema, "window": {"sql": {"q": "SELECT 1"}}})
    with pytest.raises(ContractError, match="already exists"):
        WindowStatistics(contract)


def test_a_value_that_a_column_cannot_hold_is_no_guess() -> None:
    found = report({"q": "SELECT sum(n) FROM events"}, [{"id": "a", "n": 10**40}])
    assert found["sql"] == {"q": None}
    assert "a value of 'n' is no HUGEINT" in found["sql_unknown"]["q"]


def test_the_engine_missing_is_one_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'factory-agents\[sql\]'"):
        report({"q": "SELECT 1"})
    assert "[sql]" in report({"q": {"query": "SELECT 1", "required": False}})["sql_unknown"]["q"]


def test_a_large_window_fits_a_small_memory_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    schema = {"properties": {"id": {"type": "string"}}}
    contract = load_contract({"name": "e", "id": None, "schema": schema, "window": {"sql": {"q": "SELECT count(DISTINCT id) FROM events"}}})
    table = contract.window_table()
    table.open(memory_mb=16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for start in range(0, 200_000, 20_000):
        table.add([{"id": f"{n:032}-{n:032}-{n:032}"} for n in range(start, start + 20_000)], lambda name: lambda event: event.get(name))
    assert any(tmp_path.glob("factory-sql-*/*"))
    table.answers()
    table.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000
    assert list(tmp_path.iterdir()) == []


def test_the_meaning_of_a_query_enters_the_digest() -> None:
    def digest(text: str) -> str:
        return load_contract({"name": "e", "window": {"sql": {"q": text}}}).digest

    assert digest("SELECT 1") == digest("SELECT\n  1")
    assert digest("SELECT 1") != digest("SELECT 2")


def test_decimals_and_great_numbers_are_json() -> None:
    found = report({"d": "SELECT 1.10::DECIMAL(3,2)", "h": "SELECT 170141183460469231731687303715884105727::HUGEINT"})
    assert found["sql"] == {"d": float(Decimal("1.1")), "h": pytest.approx(1.7e38, rel=0.01)}
    msgspec.json.encode(found)


def test_only_the_columns_that_a_query_names_are_kept() -> None:
    contract = load_contract(
        {"name": "e", "id": None, "schema": {"properties": TYPES}, "window": {"sql": {"q": "SELECT sum(n) FROM events WHERE ok"}}}
    )
    table: WindowTable = contract.window_table()
    table.open()
    assert table.columns == ("n", "ok")
    table.close()
