"""Names of PostgreSQL's tables are taken literally, and refused where PostgreSQL would cut them."""

from __future__ import annotations

import pytest

from factory_agents.errors import ConfigurationError
from factory_agents.sinks.postgres.names import TableName, check_name, compose, identifier, names


@pytest.mark.parametrize(
    ("text", "expected"),
    [("events", TableName("", "events")), ("shop.Events", TableName("shop", "Events")), ('"a.b"."c d"', TableName("a.b", "c d"))],
)
def test_a_table_has_a_name_and_perhaps_a_schema(text: str, expected: TableName) -> None:
    assert TableName.parse(text) == expected


@pytest.mark.parametrize("text", ["", "a.b.c", "x" * 64, "ä" * 32, '"a\0b"', "a."])
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        TableName.parse(text)


def test_a_names_limit_is_in_bytes() -> None:
    check_name("ä" * 31, "column")
    with pytest.raises(ConfigurationError, match=r"column .* 1 to 63 bytes"):
        check_name("ä" * 32, "column")


def test_a_query_quotes_names_and_takes_values_literally() -> None:
    query = compose("SELECT {columns} FROM {table} WHERE a = {value}", columns=names(["a", 'b"c']), table=identifier("T%s"), value="100%")
    assert query.as_string(None) == """SELECT "a", "b""c" FROM "T%s" WHERE a = '100%'"""
