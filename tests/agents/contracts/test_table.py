"""The table that a contract describes: types as they are written, and what rows are compared by."""

from __future__ import annotations

import pytest

from factory_agents.contracts.table import COLUMN_TYPES, ColumnSpec, ColumnType, TableSpec
from factory_agents.errors import ConfigurationError


@pytest.mark.parametrize("text", [*COLUMN_TYPES, "numeric(10)", "numeric(10,2)", "char(3)", "varchar(200)[]", "json[]"])
def test_a_type_reads_as_it_is_written(text: str) -> None:
    parsed = ColumnType.parse(text)
    assert parsed is not None
    assert parsed.text == text


@pytest.mark.parametrize("text", ["", "string", "text(3)", "numeric(1,2,3)", "char(-1)", "text[][]", "numeric(10", "numeric(123456789)"])
def test_anything_else_is_no_type(text: str) -> None:
    assert ColumnType.parse(text) is None


def test_spaces_between_arguments_dont_matter() -> None:
    assert ColumnType.parse("numeric ( 10 , 2 )") == ColumnType("numeric", (10, 2))


def table(**more: object) -> TableSpec:
    columns = (ColumnSpec("id", ColumnType("bigint"), False), ColumnSpec("at", ColumnType("json"), True))
    return TableSpec(columns, **{"key": ("id",), **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"key": ()}, "names no key"),
        ({"time": "at"}, "time 'at' has no order"),
        ({"version": "nr"}, "version_field 'nr' is not among its columns"),
        ({"key": ("id", "at")}, "key 'at' has no order"),
    ],
)
def test_rows_are_compared_by_what_has_an_order(more: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        table(**more).check_order()


def test_a_table_without_columns_of_its_own_says_nothing_of_order() -> None:
    table().check_order()
    TableSpec().check_order()
    assert table().column("id") == ColumnSpec("id", ColumnType("bigint"), False)
    assert table().column("nr") is None
