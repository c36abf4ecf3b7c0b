"""Names and queries as people write them."""

from __future__ import annotations

import pytest

from factory_agents.databases.statements import one_statement, table_name
from factory_agents.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("events", ("events",)),
        ("Mixed Case", ("Mixed Case",)),
        ("s.events", ("s", "events")),
        ('s."Mixed Case"', ("s", "Mixed Case")),
        ('"a.b"."c""d"', ("a.b", 'c"d')),
        ('"s".t', ("s", "t")),
    ],
)
def test_a_table_is_named_with_or_without_its_schema(text: str, parts: tuple[str, ...]) -> None:
    assert table_name(text) == parts


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a..b", "a.b.c", 'a"b', '"a', '""', 'a."b"c', '"a"b'])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"expected table or schema\.table"):
        table_name(text)


@pytest.mark.parametrize(
    ("query", "statement"),
    [
        ("SELECT 1", "SELECT 1"),
        ("SELECT 1;", "SELECT 1"),
        ("SELECT 1 ; ;\n", "SELECT 1"),
        ("SELECT 1 -- the last", "SELECT 1"),
        ("SELECT 1; -- the last\n/* and\n this */", "SELECT 1"),
        ("SELECT ';--' ", "SELECT ';--'"),
        ("SELECT 'it''s; -- no comment'", "SELECT 'it''s; -- no comment'"),
        (r"SELECT E'it\'s; -- none'", r"SELECT E'it\'s; -- none'"),
        ('SELECT 1 AS "a;--b" -- c', 'SELECT 1 AS "a;--b"'),
        ("SELECT $$;--$$ -- c", "SELECT $$;--$$"),
        ("SELECT $q$ $$;-- $q$;", "SELECT $q$ $$;-- $q$"),
        ("SELECT 1 -- in the middle\n, 2", "SELECT 1 -- in the middle\n, 2"),
        ("/* first */ SELECT 1", "/* first */ SELECT 1"),
        ("SELECT 1 -- a line of an old Mac's\r, 2", "SELECT 1 -- a line of an old Mac's\r, 2"),
        ("SELECT 4 - -1", "SELECT 4 - -1"),
        ("SELECT 1 /* in /* one */ another; */;", "SELECT 1"),
        ("/* a /* b */ c */ SELECT /* /**/ */ 2 /* end */", "/* a /* b */ c */ SELECT /* /**/ */ 2"),
        ("SELECT '/*' -- */", "SELECT '/*'"),
        ("SELECT 6 / 3 * 2", "SELECT 6 / 3 * 2"),
    ],
)
def test_what_follows_a_query_is_left_out(query: str, statement: str) -> None:
    assert one_statement(query) == statement


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT 1; DROP TABLE t", "got another statement"),
        ("-- nothing", "expected a SELECT"),
        (";", "expected a SELECT"),
        ("SELECT 1 /* /* */", "a comment has no end"),
        ("/* x */; SELECT 1; /* y */ z", "another"),
    ],
)
def test_one_query_is_expected(query: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        one_statement(query)
