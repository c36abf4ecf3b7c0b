"""The values of a column that events refer to."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory_agents.contracts import ForeignKey
from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.sources.members import Members, read_members

SCALARS = st.one_of(st.text(max_size=4), st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False))


@pytest.fixture
def database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection]:
    """A database with a table of shops, which DATABASE_URL leads to as well."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "DROP TABLE IF EXISTS member_shops; CREATE TABLE member_shops (id bigint, code text, rate numeric(6,2), day date)"
        )
        connection.execute("INSERT INTO member_shops VALUES (1, 'a', 1.50, '2026-11-01'), (2, 'b', 2, null), (2, null, 2.00, null)")
        yield connection


def of_file(file: str, column: str, content: bytes | None = None) -> Members:
    return read_members(ForeignKey("shop", file, "", column, "", content=content))


def of_table(column: str, table: str = "member_shops") -> Members:
    return read_members(ForeignKey("shop", "", table, column, "DATABASE_URL"))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(SCALARS), st.lists(SCALARS), st.integers(1, 5))
def test_what_was_added_is_found_and_nothing_else_in_any_order(values: list[Any], others: list[Any], batches: int) -> None:
    """Numbers and texts are one where they are written the same."""
    members, again = Members(), Members()
    for i in range(batches):
        members.add(values[i::batches])
    again.add([*reversed(values), *values[:3]])
    for one in (members, again):
        one.tidy()
    contains = members.tester()

    def text(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

    known = {text(v) for v in values}
    assert len(members) == len(known)
    assert all(contains(v) for v in values)
    assert [contains(v) for v in others] == [text(v) in known for v in others]
    assert members.digest == again.digest
    assert not any(map(contains, ([], {}, None)))


@pytest.mark.soak
def test_a_million_values_take_eight_bytes_each() -> None:
    members = Members()
    tracemalloc.start()
    try:
        for start in range(0, 300_000, 10_000):
            members.add(f"shop-{i}" for i in range(start, start + 10_000))
        members.tidy()
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 300_000 * 10
    assert peak < 300_000 * 24
    assert members.tester()("shop-299999")
    assert not members.tester()("shop-300000")


def test_a_column_with_too_many_values_is_refused_but_copies_are_none() -> None:
    members = Members(most=10)
    for _ in range(5):
        members.add(range(10))
    with pytest.raises(ConfigurationError, match="more than 10 distinct values"):
        members.add([11])


@pytest.mark.parametrize(
    ("name", "text"),
    [("s.csv", "id,n\n1,x\n2,y\n,z\n"), ("s.tsv", "n\tid\nx\t1\ny\t2\n"), ("s.jsonl", '{"id": 1}\n{"id": "2"}\n{"id": null}\n')],
)
def test_files_of_every_kind(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    contains = of_file(str(tmp_path / name), "id").tester()
    assert [contains(v) for v in (1, "1", 2.0, 3, "x")] == [True, True, True, False, False]
    travelled = of_file(f"elsewhere/{name}", "id", text.encode())
    assert travelled.digest == of_file(str(tmp_path / name), "id").digest


def test_parquet(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"id": [1, 2, None], "code": ["a", "b", "c"]}), tmp_path / "s.parquet")
    assert len(of_file(str(tmp_path / "s.parquet"), "id")) == 2
    assert of_file("s.parquet", "code", (tmp_path / "s.parquet").read_bytes()).tester()("c")


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ('{"id": 1}\n', "ids", "column 'ids' is not there; did you mean 'id'"),
        ('{"id": null}\n', "id", "has no values: every event would be rejected"),
        ("", "id", "has no values"),
        ('{"id": 1}\n{"id": \n', "id", "correct this file"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_line(tmp_path: Path, text: str, column: str, message: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message) as raised:
        of_file(str(path), column)
    assert str(raised.value).startswith("reference:shop: column ")
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.csv"):
        of_file("nowhere.csv", "id")


def test_a_tables_values_are_compared_as_events_write_them(database: psycopg.Connection) -> None:
    contains = of_table("id").tester()
    assert [contains(v) for v in (1, "2", 3)] == [True, True, False]
    assert of_table("rate").tester()(2)
    assert of_table("rate").tester()(1.5)
    assert of_table("day").tester()("2026-11-01")
    assert len(of_table("code")) == 2


def test_the_digest_of_a_table_changes_with_its_values_alone(database: psycopg.Connection) -> None:
    before = of_table("code").digest
    database.execute("INSERT INTO member_shops VALUES (3, 'a', 9, null)")
    assert of_table("code").digest == before
    database.execute("UPDATE member_shops SET code = 'c' WHERE id = 3")
    assert of_table("code").digest != before


def test_a_table_or_column_that_is_not_there_is_an_error(database: psycopg.Connection) -> None:
    with pytest.raises(ConfigurationError, match="column 'nope' is not there"):
        of_table("nope")
    with pytest.raises(ConfigurationError, match="no_such"):
        of_table("id", "no_such")
    database.execute("TRUNCATE member_shops")
    with pytest.raises(ConfigurationError, match="has no values"):
        of_table("id")


def test_a_database_that_does_not_answer_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/none?connect_timeout=1")
    with pytest.raises(UnavailableError):
        of_table("id")
    assert os.environ["DATABASE_URL"]
