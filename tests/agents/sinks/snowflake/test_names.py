"""Names of Snowflake's tables and columns: upper case where they are plain, literal where they are quoted."""

from __future__ import annotations

import pytest

from factory_agents.errors import ConfigurationError
from factory_agents.sinks.snowflake.names import TableName, column_name, listed, quoted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("events", ("", "", "EVENTS")),
        ("public.events", ("", "PUBLIC", "EVENTS")),
        ('db."My Schema"."a""b"', ("DB", "My Schema", 'a"b')),
        ('"a.b"', ("", "", "a.b")),
    ],
)
def test_a_table_is_read_as_sql_reads_it(text: str, expected: tuple[str, str, str]) -> None:
    assert TableName.parse(text) == TableName(*expected)


@pytest.mark.parametrize("text", ["", "a.b.c.d", "my events", "a.", ".a", '""', "x" * 201, "1a"])
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"expected table, schema\.table or database\.schema\.table"):
        TableName.parse(text)


def test_names_are_quoted_in_sql() -> None:
    assert quoted('a"b') == '"a""b"'
    assert listed(["A", "b c"]) == '"A", "b c"'


def test_a_plain_field_is_found_unquoted() -> None:
    assert [column_name(name) for name in ("event_id", "a b", "Ä")] == ["EVENT_ID", "a b", "Ä"]
