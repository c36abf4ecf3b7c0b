"""Contracts of the Open Data Contract Standard, as they stand."""

# ruff: noqa: E501  (tables of cases)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from factory_agents.contracts import Contract, WindowStatistics, load_contract, merge_reports, pack_contract
from factory_agents.contracts.documents import read_document
from factory_agents.contracts.odcs import read_odcs, standard_errors
from factory_agents.contracts.odcs_types import column_type, date_pattern
from factory_agents.errors import ContractError

EXAMPLES = sorted((Path(__file__).parent / "odcs_examples").glob("*.odcs.yaml"))


def odcs(properties: list[dict[str, Any]], version: str = "v3.2.0", **more: Any) -> str:
    """A contract of one schema as text; ``more`` are keys of the schema."""
    schema = [{"name": "orders", "properties": properties, **more}]
    document = {"apiVersion": version, "kind": "DataContract", "id": "orders", "version": "1.0.0", "status": "active", "schema": schema}
    return json.dumps(document, indent=1)


def one(prop: dict[str, Any], version: str = "v3.2.0") -> Contract:
    """A contract of one property called ``a``."""
    return load_contract(odcs([{"name": "a", **prop}], version))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name.removesuffix(".odcs.yaml"))
def test_the_standards_own_examples_are_contracts_as_they_stand(path: Path) -> None:
    document = read_document(path)
    assert standard_errors(document) == []
    names = [schema["name"] for schema in document.data.get("schema", ())]
    for name in names[::15] or [""]:
        contract = load_contract(f"{path}#{name}" if name else path)
        assert contract.columns() or not any("properties" in s for s in document.data.get("schema", ()) if s["name"] == name)
    for name in names:
        read_odcs(document, name)


def test_there_are_eighteen_of_them() -> None:
    assert len(EXAMPLES) == 18


@pytest.mark.parametrize(
    ("prop", "good", "bad"),
    [
        ({"logicalType": "string", "required": True}, ["x", ""], [None, 1]),
        ({"logicalType": "string"}, ["x", None], [1]),
        ({"logicalType": "string", "logicalTypeOptions": {"minLength": 2, "maxLength": 3, "pattern": "^b"}}, ["bc", None], ["b", "bcde", "cc"]),
        ({"logicalType": "string", "logicalTypeOptions": {"format": "email"}}, ["a@example.com"], ["a"]),
        ({"logicalType": "integer", "logicalTypeOptions": {"minimum": 1, "exclusiveMaximum": 5, "multipleOf": 2}}, [2, 4, None], [0, 3, 6, 1.5, "2"]),
        ({"logicalType": "number", "logicalTypeOptions": {"maximum": 1.5}}, [1.5, -1], [1.6, "1"]),
        ({"logicalType": "boolean"}, [True, None], [0, "true"]),
        ({"logicalType": "date"}, ["2026-11-01"], ["2026-13-01", "01.11.2026", 5]),
        ({"logicalType": "date", "logicalTypeOptions": {"format": "dd/MM/yyyy"}}, ["01/11/2026"], ["2026-11-01"]),
        ({"logicalType": "timestamp"}, ["2026-11-01T04:00:00Z"], ["2026-11-01 04:00:00", "today"]),
        ({"logicalType": "timestamp", "logicalTypeOptions": {"timezone": False}}, ["2026-11-01T04:00:00"], ["2026-11-01T04:00:00Z"]),
        ({"logicalType": "timestamp", "logicalTypeOptions": {"format": "yyyy-MM-dd HH:mm:ss"}}, ["2026-11-01 04:00:00"], ["2026-11-01T04:00:00"]),
        ({"logicalType": "timestamp", "physicalType": "bigint"}, [1_760_000_000], ["2026-11-01T04:00:00Z"]),
        ({"logicalType": "time"}, ["08:30:00", "08:30:00Z"], ["8:30", "x"]),
        ({"logicalType": "array", "items": {"logicalType": "string", "required": True}, "logicalTypeOptions": {"minItems": 1, "uniqueItems": True}}, [["x"]], [[], ["x", "x"], [1], [None], "x"]),
        ({"logicalType": "array", "items": {"logicalType": "object", "properties": [{"name": "b", "logicalType": "integer", "required": True}]}}, [[{"b": 1}]], [[{}], [{"b": "1"}]]),
        ({"logicalType": "object", "properties": [{"name": "b", "logicalType": "integer"}], "logicalTypeOptions": {"required": ["b"], "maxProperties": 2}}, [{"b": 1}, {"b": None, "c": 1}, None], [{}, {"b": "1"}, {"b": 1, "c": 1, "d": 1}]),
        ({"logicalType": "map", "map": {"key": {"logicalType": "string", "logicalTypeOptions": {"maxLength": 2}}, "value": {"logicalType": "integer", "required": True}}}, [{"ab": 1}, {}], [{"abc": 1}, {"a": "1"}, {"a": None}]),
        ({"logicalType": "vector", "logicalTypeOptions": {"dimensions": 2}}, [[0.5, 1]], [[1], ["a", "b"]]),
        ({"logicalType": "string", "enum": [{"value": "new"}, {"value": "paid", "label": "Paid"}]}, ["new", "paid", None], ["x"]),
        ({"logicalType": "integer", "enum": [{"value": 1}], "required": True}, [1], [2, None]),
        ({"physicalType": "VARCHAR(20)"}, ["x", None], [1]),
        ({"physicalType": "STRUCT<x>"}, ["x", 1, None, []], []),
        ({"required": True}, ["x", 1, 1.5, {}, []], [None]),
        ({"primaryKey": True, "description": "no type"}, ["x", 1], [None]),
        ({"items": {"logicalType": "integer"}}, [[1, None]], [["x"]]),
    ],
)  # fmt: skip
def test_what_a_property_says_is_what_an_event_is_checked_against(prop: dict[str, Any], good: list[Any], bad: list[Any]) -> None:
    contract = one(prop)
    check = contract.checker()
    assert [value for value in good if not check({"a": value})] == []
    assert [value for value in bad if check({"a": value})] == []
    assert all(contract.violations({"a": value}) for value in bad)
    assert check({}) is not bool(prop.get("required") or prop.get("primaryKey"))


@pytest.mark.parametrize(
    ("prop", "version", "good", "bad"),
    [
        ({"logicalType": "date", "logicalTypeOptions": {"minimum": "2026-01-01"}}, "v3.1.0", ["2026-01-01"], ["2025-12-31"]),
        ({"logicalType": "date", "logicalTypeOptions": {"exclusiveMinimum": "2026-01-01"}}, "v3.1.0", ["2026-01-02"], ["2026-01-01"]),
        ({"logicalType": "date", "logicalTypeOptions": {"minimum": "2026-01-01", "exclusiveMinimum": True}}, "v3.0.2", ["2026-01-02"], ["2026-01-01"]),
        ({"logicalType": "integer", "logicalTypeOptions": {"maximum": 5, "exclusiveMaximum": True}}, "v3.0.2", [4], [5]),
        ({"logicalType": "integer", "logicalTypeOptions": {"maximum": 5, "exclusiveMaximum": False}}, "v3.0.2", [5], [6]),
        ({"logicalType": "timestamp", "logicalTypeOptions": {"maximum": "2026-01-01T00:00:00+02:00"}}, "v3.2.0", ["2025-12-31T22:00:00Z", None], ["2025-12-31T22:00:01Z"]),
        ({"logicalType": "time", "logicalTypeOptions": {"format": "HH:mm", "maximum": "12:00"}}, "v3.2.0", ["12:00"], ["12:01"]),
    ],
)  # fmt: skip
def test_bounds_of_times_are_rules(prop: dict[str, Any], version: str, good: list[Any], bad: list[Any]) -> None:
    contract = one(prop, version)
    check = contract.checker()
    assert contract.not_run == ()
    assert [value for value in good if not check({"a": value})] == []
    assert [value for value in bad if check({"a": value})] == []


def test_names_are_those_in_events_and_keys_follow_their_positions() -> None:
    contract = load_contract(
        odcs(
            [
                {"name": "second", "physicalName": "b", "logicalType": "string", "primaryKey": True, "primaryKeyPosition": 2},
                {"name": "first", "physicalName": "a-1", "logicalType": "date", "primaryKey": True, "primaryKeyPosition": 1,
                 "logicalTypeOptions": {"minimum": "2026-01-01"}},
                {"name": "total", "logicalType": "number", "semanticType": "measure", "unique": True, "transformLogic": "sum(x)"},
            ],
            quality=[{"metric": "duplicateValues", "arguments": {"properties": ["first", "second"]}, "mustBe": 0}],
        )
    )  # fmt: skip
    assert (contract.key, contract.id) == (("a-1", "b"), None)
    assert [(c.name, c.type, c.nullable) for c in contract.columns()] == [("b", "text", False), ("a-1", "date", False)]
    assert [c.text for c in contract.fail_if] == ["duplicates(a-1, b) != 0"]
    assert contract.checker()({"a-1": "2026-02-01", "b": "x"})
    assert [v.rule for v in contract.violations({"a-1": "2025-02-01", "b": "x"})] == ["a-1_minimum"]
    assert "not run: the measure total" in contract.not_run[0]


def test_one_key_is_the_id_and_a_sub_field_may_hold_a_dates_bound() -> None:
    inner = {"name": "on", "logicalType": "date", "logicalTypeOptions": {"maximum": "2026-01-01"}}
    contract = load_contract(
        odcs([{"name": "id", "logicalType": "string", "primaryKey": True}, {"name": "at", "logicalType": "object", "properties": [inner]}])
    )
    assert (contract.id, contract.key) == ("id", ("id",))
    assert contract.checker()({"id": "1", "at": {"on": "2026-01-01"}})
    assert not contract.checker()({"id": "1", "at": {"on": "2026-01-02"}})
    assert not contract.checker()({"at": None})


@pytest.mark.parametrize(
    ("prop", "column"),
    [
        ({"logicalType": "string", "physicalType": "VARCHAR(18)"}, "varchar(18)"),
        ({"logicalType": "string", "physicalType": "varchar(MAX)"}, "varchar"),
        ({"logicalType": "string", "physicalType": "uuid"}, "uuid"),
        ({"logicalType": "number", "physicalType": "decimal(10, 2)"}, "numeric(10,2)"),
        ({"logicalType": "number", "physicalType": "int"}, "double"),
        ({"logicalType": "integer", "physicalType": "int"}, "integer"),
        ({"logicalType": "integer", "physicalType": "varchar(3)"}, "bigint"),
        ({"logicalType": "integer", "logicalTypeOptions": {"format": "u64"}}, "numeric(20,0)"),
        ({"logicalType": "number", "logicalTypeOptions": {"format": "f32"}}, "real"),
        ({"logicalType": "timestamp"}, "timestamptz"),
        ({"logicalType": "timestamp", "physicalType": "TIMESTAMP_NTZ(9)"}, "timestamp"),
        ({"logicalType": "timestamp", "logicalTypeOptions": {"format": "yyyy-MM-dd HH:mm:ss"}}, "timestamptz"),
        ({"logicalType": "timestamp", "logicalTypeOptions": {"format": "dd.MM.yyyy HH:mm"}}, "text"),
        ({"logicalType": "timestamp", "physicalType": "long"}, "bigint"),
        ({"logicalType": "time"}, "time"),
        ({"logicalType": "date"}, "date"),
        ({"logicalType": "object"}, "json"),
        ({"logicalType": "array", "physicalType": "array<string>"}, "json"),
        ({}, "json"),
    ],
)
def test_columns_follow_the_logical_type_and_a_physical_one_that_fits_it(prop: dict[str, Any], column: str) -> None:
    assert [c.type for c in one(prop).columns()] == [column]


OPERATORS = [
    ("mustBe", 5, "!= 5"),
    ("mustNotBe", 5, "== 5"),
    ("mustBeGreaterThan", 5, "<= 5"),
    ("mustBeGreaterOrEqualTo", 5, "< 5"),
    ("mustBeLessThan", 5, ">= 5"),
    ("mustBeLessOrEqualTo", 5.25, "> 5.25"),
    ("mustBeBetween", [5, 1e6], "not between 5 and 1000000.0"),
    ("mustNotBeBetween", [-1, 0.5], "between -1 and 0.5"),
]
METRICS = [
    ("nullValues", {}, "nulls(a)"),
    ("missingValues", {"missingValues": [None, "", "N/A"]}, "missing(a)"),
    ("invalidValues", {"validValues": ["x"]}, "invalid(a)"),
    ("invalidValues", {"pattern": "^x"}, "invalid(a)"),
    ("invalidValues", {}, "rejected(schema:a)"),
    ("duplicateValues", {}, "duplicates(a)"),
]


@pytest.mark.parametrize(("operator", "limit", "condition"), OPERATORS, ids=[o[0] for o in OPERATORS])
@pytest.mark.parametrize(("metric", "arguments", "figure"), METRICS)
@pytest.mark.parametrize(("unit", "sign"), [(None, ""), ("rows", ""), ("percent", " %")])
def test_every_metric_operator_and_unit_of_the_library_is_a_condition(
    metric: str, arguments: dict[str, Any], figure: str, operator: str, limit: Any, condition: str, unit: str | None, sign: str
) -> None:
    check = {"metric": metric, operator: limit} | ({"unit": unit} if unit else {}) | ({"arguments": arguments} if arguments else {})
    contract = one({"logicalType": "string", "quality": [check]})
    assert [c.text for c in contract.fail_if] == [f"{figure} {condition}{sign}"]
    assert contract.not_run == ()


@pytest.mark.parametrize(("operator", "limit", "condition"), OPERATORS, ids=[o[0] for o in OPERATORS])
def test_so_is_the_row_count_which_has_no_per_cent(operator: str, limit: Any, condition: str) -> None:
    checks = [{"metric": "rowCount", operator: limit, "severity": "warning"}, {"metric": "rowCount", operator: limit, "unit": "percent"}]
    contract = load_contract(odcs([], quality=checks))
    assert [c.text for c in contract.warn_if] == [f"rows {condition}"]
    assert "no per cent" in contract.not_run[0]


def test_several_operators_must_all_hold_and_old_names_are_known() -> None:
    checks = [
        {"type": "library", "rule": "duplicateCount", "mustBeGreaterThan": 1, "mustBeLessThan": 9},
        {"type": "library", "rule": "rowCount", "mustBe": 3},
    ]
    contract = load_contract(odcs([{"name": "a", "logicalType": "string", "quality": checks[:1]}], "v3.0.2", quality=checks[1:]))
    assert [c.text for c in contract.fail_if] == ["duplicates(a) <= 1", "duplicates(a) >= 9", "rows != 3"]


def test_figures_are_counted_and_merged_over_shards() -> None:
    contract = load_contract(
        odcs(
            [
                {"name": "a", "logicalType": "string", "quality": [
                    {"metric": "missingValues", "arguments": {"missingValues": [None, "", "N/A"]}, "mustBe": 0},
                    {"metric": "missingValues", "arguments": {"missingValues": ["x"]}, "mustBeLessThan": 50, "unit": "percent"},
                    {"metric": "invalidValues", "arguments": {"validValues": ["x", "y", "", "N/A"]}, "mustBe": 0},
                    {"metric": "nullValues", "mustBe": 1},
                ]},
                {"name": "b", "logicalType": "integer", "unique": True, "quality": [
                    {"metric": "invalidValues", "arguments": {"validValues": [1, 2]}, "mustBe": 0}]},
            ],
            quality=[{"metric": "duplicateValues", "arguments": {"properties": ["a", "b"]}, "mustBe": 1}],
        )
    )  # fmt: skip
    parts = []
    for events in (
        [{"a": "x", "b": 1}, {"a": "x", "b": 1}, {"a": None, "b": 1}, {"b": 3}],
        [{"a": "N/A", "b": None}, {"a": "", "b": None}, {"a": "zz", "b": 2}],
    ):
        statistics = WindowStatistics(contract)
        statistics.add_valid(events)
        parts.append(statistics.report())
        statistics.close()
    report = merge_reports(parts)
    assert report["nulls"] == {"a": 2, "b": 2}
    assert report["missing"] == {"a": 4, "a_2": 2}
    assert report["invalid"] == {"a": 1, "b": 1}
    assert report["duplicates_of"] == {"b": 2, "a, b": 1}
    assert {c["rule"]: c["outcome"] for c in report["checks"]} == {
        "duplicates(b) > 0": "fail",
        "missing(a) != 0": "fail",
        "missing(a_2) >= 50 %": "pass",
        "invalid(a) != 0": "fail",
        "invalid(b) != 0": "fail",
        "nulls(a) != 1": "fail",
        "duplicates(a, b) != 1": "pass",
    }


def test_the_fast_path_counts_the_same() -> None:
    contract = load_contract(
        odcs(
            [
                {"name": "id", "logicalType": "string", "required": True},
                {
                    "name": "n",
                    "logicalType": "number",
                    "quality": [{"metric": "missingValues", "arguments": {"missingValues": [0, None]}, "mustBe": 0}],
                },
                {"name": "o", "logicalType": "object", "properties": [{"name": "x", "logicalType": "integer"}], "unique": True},
            ]
        )
    )
    events = [{"id": "a", "n": 0, "o": {"x": 1}}, {"id": "b", "n": 0.0, "o": {"x": 1}}, {"id": "c", "o": None}]
    fast = contract.fast_path()
    reports = []
    for given, reader in (
        (events, lambda name: lambda event: event.get(name)),
        ([fast.decode(json.dumps(e).encode()) for e in events], lambda name: lambda event: getattr(event, fast.names[name])),
    ):
        statistics = WindowStatistics(contract)
        statistics.add_valid(given, reader)
        reports.append(statistics.report())
    assert reports[0] == reports[1]
    assert (reports[0]["missing"], reports[0]["duplicates_of"]) == ({"n": 3}, {"o": 1})


def test_true_is_not_one_among_missing_and_valid_values() -> None:
    contract = load_contract("name: x\nid: null\nwindow: {missing: {a: [0]}, invalid: {a: {values: [1, true, [2]]}}}\n")
    statistics = WindowStatistics(contract)
    statistics.add_valid([{"a": value} for value in (0, False, 1, True, [2], [3], {"b": 1}, 0.0)])
    report = statistics.report()
    assert (report["missing"], report["invalid"]) == ({"a": 2}, {"a": 5})


def test_what_is_not_run_is_listed_by_name_and_place() -> None:
    checks = [
        {"type": "sql", "name": "not_null", "query": "SELECT 1", "mustBe": "one"},
        {"type": "custom", "engine": "soda", "implementation": "x", "description": "a soda check"},
        {"type": "text", "description": "Verified by hand."},
        {"metric": "nullValues", "mustBe": "none", "name": "words"},
        {"metric": "nullValues", "mustBe": 1, "unit": "furlongs"},
    ]
    nested = {
        "name": "n",
        "logicalType": "object",
        "properties": [{"name": "x", "unique": True, "quality": [{"metric": "nullValues", "mustBe": 0}]}],
    }
    text = odcs([{"name": "a", "logicalType": "string", "quality": checks}, nested])
    contract = load_contract(text)
    assert [line.partition(": not run: ")[2] for line in contract.not_run] == [
        'sql check "not_null" (what it is compared with is no number)',
        'custom check "a soda check" (it is for the engine "soda")',
        'text check "Verified by hand." (it is for people to read)',
        'library check "words" (what it is compared with is no number)',
        'library check "nullValues" (its unit is "furlongs"; rows and percent are known)',
        "unique of x (only top-level fields are counted)",
        'library check "nullValues" (only top-level fields are counted)',
    ]
    assert contract.not_run[0].startswith("inline contract:15:7: ")
    assert WindowStatistics(contract).report()["not_run"] == list(contract.not_run)


@pytest.mark.parametrize(
    "placeholders", [("{object}", "{property}"), ("${table}", "${column}"), ("${object}", "${property}"), ("orders", "a"), ("Events", "a")]
)
def test_sql_is_run_over_the_window(placeholders: tuple[str, str]) -> None:
    table, column = placeholders
    of_property = {"type": "sql", "query": f"SELECT count(*) FROM {table} WHERE {column} = 'x'", "mustBeLessThan": 2}
    of_all = {
        "type": "sql",
        "name": "an (odd) name",
        "query": f"SELECT count(*) FROM {table}",
        "mustBeBetween": [1, 2],
        "severity": "warning",
    }
    contract = load_contract(odcs([{"name": "a", "logicalType": "string", "quality": [of_property]}], quality=[of_all]))
    assert contract.not_run == ()
    statistics = WindowStatistics(contract)
    statistics.add_valid([{"a": "x"}, {"a": "x"}, {"a": None}])
    checks = statistics.report()["checks"]
    assert [(c["rule"], c["level"], c["observed"], c["outcome"]) for c in checks] == [
        ("sql(a) >= 2", "fail", 2, "fail"),
        ("sql(an _odd_ name) not between 1 and 2", "warn", 3, "warn"),
    ]
    statistics.close()


def test_sql_of_another_engine_or_over_other_tables_is_named_as_not_run_and_warns() -> None:
    checks = [
        {"type": "sql", "name": "joined", "query": "SELECT count(*) FROM orders JOIN customers USING (a)", "mustBe": 0},
        {"type": "sql", "name": "dialect", "query": "SELECT TOP 1 a FROM orders", "mustBe": 0},
    ]
    statistics = WindowStatistics(load_contract(odcs([{"name": "a", "logicalType": "string", "quality": checks}])))
    statistics.add_valid([{"a": "x"}])
    report = statistics.report()
    assert [(c["outcome"], c["observed"]) for c in report["checks"]] == [("warn", None)] * 2
    assert [line.partition(": not run: ")[2][:55] for line in report["not_run"]] == [
        "query joined (Catalog Error: Table with name customers ",
        "query dialect (expected one SELECT: syntax error at or ",
    ]
    statistics.close()


def test_a_report_names_the_first_of_very_many_checks_that_are_not_run() -> None:
    checks = [{"type": "text", "description": f"check {i}"} for i in range(5_000)]
    contract = load_contract(odcs([{"name": "a", "quality": checks}]))
    assert len(contract.not_run) == 5_000
    assert WindowStatistics(contract).report()["not_run"][19:] == [
        contract.not_run[19],
        "and 4,980 more: factory contracts show lists them",
    ]


def test_our_own_rules_and_conditions_stand_in_the_standards_places() -> None:
    contract = load_contract(
        odcs(
            [{"name": "id", "logicalType": "string", "primaryKey": True}, {"name": "at", "logicalType": "integer"},
             {"name": "n", "logicalType": "integer", "quality": [{"type": "custom", "engine": "factory", "name": "positive", "implementation": "n is None or n > 0"}]}],
            quality=[{"type": "custom", "engine": "factory", "implementation": {"warn_if": "freshness > 1 h", "fail_if": "rejected(positive) > 1 %"}}],
            customProperties=[{"property": "factory", "value": {"time": "at", "time_unit": "s", "deletes": True, "window": {"nulls": ["n"], "fail_if": "rows < 1"}}}],
        )
    )  # fmt: skip
    assert ([r.name for r in contract.rules], contract.time, contract.time_unit, contract.deletes) == (["positive"], "at", "s", True)
    assert [c.text for c in contract.fail_if] == ["rejected(positive) > 1 %", "rows < 1"]
    assert [c.text for c in contract.warn_if] == ["freshness > 1 h"]
    assert contract.nulls == ("n",)


def test_a_service_level_of_latency_is_freshness_where_it_names_the_time() -> None:
    document = json.loads(odcs([{"name": "at", "logicalType": "timestamp"}]))
    document["slaProperties"] = [
        {"property": "latency", "value": 4, "unit": "hours", "element": "orders.at"},
        {"property": "latency", "value": 4, "unit": "m", "element": "orders.at"},
        {"property": "retention", "value": 3, "unit": "y"},
    ]
    contract = load_contract(json.dumps(document))
    assert (contract.time, [c.text for c in contract.fail_if]) == ("at", ["freshness > 4 h"])
    assert [line.partition("not run: ")[2][:30] for line in contract.not_run] == [
        "the service level latency (exp",
        "the service level retention (i",
    ]


def several(tmp_path: Path) -> Path:
    path = tmp_path / "many.yaml"
    schema = "".join(
        f"- name: {name}\n  properties: [{{name: {name}_id, logicalType: string, primaryKey: true}}]\n" for name in ("orders", "lines")
    )
    path.write_text(f"apiVersion: v3.1.0\nkind: DataContract\nid: shop\nversion: 1.0.0\nstatus: active\nschema:\n{schema}")
    return path


def test_of_several_schemas_one_is_chosen_by_name(tmp_path: Path) -> None:
    path = several(tmp_path)
    contract = load_contract(f"{path}#lines")
    assert (contract.name, contract.key, contract.source) == ("lines", ("lines_id",), f"{path}#lines")
    with pytest.raises(ContractError, match=r"many.yaml:7:1: schema: it holds 2 schemas: name one of them, such as .*many.yaml#orders"):
        load_contract(path)
    with pytest.raises(ContractError, match=r"there is no schema 'line'; it holds orders, lines"):
        load_contract(f"{path}#line")
    (tmp_path / "own.yaml").write_text("name: x\nid: null\n")
    with pytest.raises(ContractError, match="expected a schema called 'y', but it holds only one, without a name"):
        load_contract(f"{tmp_path}/own.yaml#y")


def test_a_packed_contract_is_the_same_wherever_it_is_read(tmp_path: Path) -> None:
    contract = load_contract(f"{several(tmp_path)}#lines")
    assert load_contract(pack_contract(contract)).digest == contract.digest
    assert load_contract(pack_contract(contract)).source == contract.source


def test_words_and_numbers_are_those_of_yaml_1_2() -> None:
    text = """
apiVersion: v3.2.0
kind: DataContract
id: x
version: 1.0.0
schema:
- name: orders
  properties:
  - {name: country, logicalType: string, enum: [{value: NO}, {value: on}, {value: 12:30:00}]}
  - {name: code, logicalType: integer, enum: [{value: 012}]}
"""
    check = load_contract(text).checker()
    assert all(check({"country": value}) for value in ("NO", "on", "12:30:00"))
    assert check({"code": 12})
    assert not check({"country": False})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("apiVersion: v2.2.2\nkind: DataContract\n", "c.yaml:1:13: apiVersion: expected a version of the standard, one of v3.0.2, v3.1.0, v3.2.0"),
        ("kind: DataContract\n", "c.yaml:1:1: apiVersion: expected a version of the standard, one of v3.0.2, v3.1.0, v3.2.0, got no apiVersion"),
        ("apiVersion: v3.1.0\nkind: Contract\n", "c.yaml:2:7: kind: expected \"DataContract\", got \"Contract\""),
        ("schema: 5", "c.yaml:6:9: schema: expected array, got 5"),
        ("schema: [{name: a, propertys: []}]", "c.yaml:6:20: schema.0.propertys: v3.1.0 has no such key here; did you mean 'property'?"),
        ("schema: [{name: a, properties: [{name: b, logicalType: string, logicalTypeOptions: {minimum: 1}}]}]", "c.yaml:6:85: schema.0.properties.0.logicalTypeOptions.minimum: v3.1.0 has no such key here, only for other types or parts"),
        ("schema: [{properties: []}]", "c.yaml:6:10: schema.0: expected name, got none"),
        ("schema: [{name: a, properties: [{name: b, logicalType: text}]}]", "c.yaml:6:56: schema.0.properties.0.logicalType: expected one of"),
        ("schema: [{name: a, properties: [{name: b}, {name: b}]}]", "c.yaml:6:51: schema.0.properties.1.name: two properties are called"),
        ("schema: [{name: a, properties: [{name: b, logicalType: string, logicalTypeOptions: {pattern: '('}}]}]", "c.yaml:6:94: schema.0.properties.0.logicalTypeOptions.pattern: not a regular expression"),
        ("schema: [{name: a, properties: [{name: b, logicalType: string, logicalTypeOptions: {format: emial}}]}]", "c.yaml:6:93: schema.0.properties.0.logicalTypeOptions.format: unknown format 'emial'; did you mean 'email'?"),
        ("schema: [{name: a, properties: [{name: b, quality: [{type: custom, engine: factory, implementation: 'c > 1'}]}]}]", "c.yaml:6:102: schema.0.properties.0.quality.0.implementation: the schema declares no field 'c'"),
        ("schema: [{name: a, properties: [{name: b, quality: [{metric: nullCount, mustBe: 0}]}]}]", "c.yaml:6:62: schema.0.properties.0.quality.0.metric: expected one of"),
        ("schema: [{name: a, properties: [{name: b, quality: [{metric: nullValues}]}]}]", "c.yaml:6:53: schema.0.properties.0.quality.0: expected one of mustBe,"),
        ("schema: [{name: a, properties: [{name: b, logicalType: timestamp, logicalTypeOptions: {maximum: never}}]}]", "c.yaml:6:97: schema.0.properties.0.logicalTypeOptions.maximum: expected an ISO-8601 time"),
        ("schema: [{name: a, properties: [{name: b, enum: [{value: x, label: one}, {value: x, label: two}]}]}]", "c.yaml:6:82: schema.0.properties.0.enum.1.value: \"x\" stands here twice"),
        ("schema: [{name: a, properties: [{name: b, logicalType: vector}]}]", "c.yaml:6:33: schema.0.properties.0: expected logicalTypeOptions with dimensions"),
        ("schema: [{name: a, properties: [{name: b}], customProperties: [{property: factory, value: {tiem: b}}]}]", "c.yaml:6:92: schema.0.customProperties.0.value.tiem: unknown key; did you mean 'time'?"),
        ("schema: [{name: a, properties: [{name: b}], customProperties: [{property: factory, value: {time: bb}}]}]", "c.yaml:6:98: schema.0.customProperties.0.value.time: the schema declares no field 'bb'; did you mean 'b'?"),
        ("schema: [{name: a, properties: [{name: b}], quality: [{metric: duplicateValues, mustBe: 0, arguments: {properties: [c]}}]}]", "c.yaml:6:116: schema.0.quality.0.arguments.properties: there is no property 'c'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_at_its_place_in_the_file(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    head = "" if "kind:" in text else "apiVersion: v3.1.0\nkind: DataContract\nid: x\nversion: 1.0.0\nstatus: active\n"
    Path("c.yaml").write_text(head + text)
    with pytest.raises(ContractError) as caught:
        load_contract("c.yaml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_what_is_wrong_beside_the_schema_is_noted() -> None:
    document = json.loads(odcs([{"name": "a", "logicalType": "string"}], "v3.1.0"))
    del document["id"]
    document["servers"] = [{"server": "x", "type": "postgres"}]
    contract = load_contract(json.dumps(document))
    assert any("expected id, got none" in note for note in contract.notes)
    assert any("servers.0" in note for note in contract.notes)


def test_what_public_contracts_have_is_taken_or_refused_with_a_hint() -> None:
    text = odcs(
        [{"name": "a", "logicalType": "string", "description": None, "quality": None, "logicalTypeOptions": None, "tags": None}], "v3.1.0"
    )
    assert [c.name for c in load_contract(text).columns()] == ["a"]
    with pytest.raises(ContractError, match=r"properties.0.isNullable: v3\.0\.2 has no such key here; did you mean 'required'\?"):
        one({"isNullable": False}, "v3.0.2")
    document = json.loads(text)
    assert any("change_management" in note for note in load_contract(json.dumps({**document, "change_management": {}})).notes)
    with pytest.raises(ContractError, match=r"shcema: v3\.1\.0 has no such key here; did you mean 'schema'"):
        load_contract(json.dumps({("shcema" if key == "schema" else key): value for key, value in document.items()}))
    with pytest.raises(ContractError, match="apiVersion: expected a version of the standard"):
        load_contract(json.dumps({key: value for key, value in document.items() if key not in ("apiVersion", "kind")}))


def test_physical_types_and_formats() -> None:
    assert column_type("timestamp with time zone") == column_type("TIMESTAMPTZ")
    assert column_type("int; drop table") is column_type("x" * 1000) is column_type(5) is None
    assert date_pattern("yyyy-MM-dd'T'HH:mm:ss.SSSXXX") == (
        "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}(?:Z|[+-][0-9]{2}(?::?[0-9]{2})?)$"
    )
    assert date_pattern("EEE, d MMM") is date_pattern("yyyy'") is date_pattern("") is None
