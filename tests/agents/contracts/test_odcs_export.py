"""Contracts go into the standard's notation and back, and mean the same."""

# ruff: noqa: E501  (tables of cases)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory_agents.contracts import Contract, load_contract, pack_contract
from factory_agents.contracts.diff import diff_contracts
from factory_agents.contracts.documents import dump_yaml, parse_document
from factory_agents.contracts.odcs import standard_errors
from factory_agents.contracts.odcs_export import export_odcs, short_form
from tests.support.soak import examples

EXAMPLES = sorted((Path(__file__).parent / "odcs_examples").glob("*.odcs.yaml"))
ROOT = Path(__file__).resolve().parents[3]

NAMES = ["a", "b", "user id", "naïve", "on", "c_1", "select", "x.y", "None"]


def schema_of(kind: str, options: dict[str, Any], nullable: bool) -> dict[str, Any]:
    return {"type": [kind, "null"] if nullable else kind, **options}


scalars = st.one_of(
    st.builds(schema_of, st.just("string"), st.sampled_from([{}, {"minLength": 1}, {"pattern": "^a"}, {"format": "date"}, {"format": "date-time"}, {"format": "uuid"}]), st.booleans()),
    st.builds(schema_of, st.just("integer"), st.sampled_from([{}, {"minimum": 0}, {"exclusiveMaximum": 5, "multipleOf": 2}, {"minimum": 1.5}]), st.booleans()),
    st.builds(schema_of, st.just("number"), st.sampled_from([{}, {"maximum": 1e300}]), st.booleans()),
    st.builds(schema_of, st.just("boolean"), st.just({}), st.booleans()),
    st.sampled_from([{"enum": ["x", "no", "12:30:00"]}, {"type": "string", "enum": ["x"]}, {"type": ["string", "null"], "enum": ["x", None]}, {"const": 1}, {}, True, {"type": ["integer", "string"]}]),
)  # fmt: skip
parts = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.builds(lambda items, nullable: schema_of("array", {"items": items}, nullable), inner, st.booleans()),
        st.builds(
            lambda properties, nullable: schema_of("object", {"properties": properties}, nullable),
            st.dictionaries(st.sampled_from(NAMES), inner, max_size=2),
            st.booleans(),
        ),
        st.builds(lambda one, two: {"anyOf": [one, two]}, inner, inner),
    ),
    max_leaves=3,
)
conditions = st.lists(
    st.sampled_from(
        ["rows < 1", "rows not between 10 and 20.50", "rejected > 1 %", "rejected(rule) > 0", "nulls(a) > 5", "null_rate(a) > 5 %", "nulls(a) between 1 and 2 %",
         "missing(a) > 0", "missing(strict) >= 1.5 %", "invalid(a) == 0", "duplicates(a) > 0", "duplicates(a, b) != 3", "duplicates > 0", "valid < 1_000",
         "sql(ours) > 0", "sql(standard) not between 1 and 2.5", "keys(a, b) < 3", "most_per(a) > 100", "drift(rows, 24) > 50 %", "drift(null_rate(a), 3) > 20 %",
         "rejected(schema:a) > 1", "rejected(reference:b) > 0", "rejected(second-one) > 0 %"]
    ),
    max_size=6,
)  # fmt: skip


@st.composite
def contracts(draw: st.DrawFn) -> dict[str, Any]:
    """A contract in the short form that can be loaded."""
    properties: dict[str, Any] = {"a": {"type": "string"}, "b": {"type": "integer"}} | draw(
        st.dictionaries(st.sampled_from(NAMES[2:]), parts, max_size=4)
    )
    required = ["a", "b", *(n for n in properties if n not in "ab" and draw(st.booleans()))]
    required = draw(st.permutations(required)) if draw(st.booleans()) else [n for n in properties if n in required]
    schema: dict[str, Any] = {"type": "object", "required": required, "properties": properties}
    schema |= draw(st.sampled_from([{}, {"additionalProperties": False}, {"minProperties": 1}]))
    keys: dict[str, Any] = draw(
        st.sampled_from(
            [{"id": "a"}, {"id": None}, {"id": "a", "key": ["b"]}, {"id": None, "key": ["b", "a"]}, {"id": "b", "key": ["a", "b"]}]
        )
    )
    times: dict[str, Any] = draw(
        st.sampled_from(
            [
                {},
                {"time": "b", "time_unit": "ms"},
                {"version_field": "b"},
                {"deletes": True},
                {"deletes": {"field": "a", "values": ["d", "x"]}},
            ]
        )
    )
    window = {"fail_if": draw(conditions), "warn_if": draw(conditions)}
    if draw(st.booleans()):
        window["nulls"] = ["a"]
    window |= {
        "missing": {"a": ["", None, 0, True], "strict": {"field": "a", "values": ["x"]}},
        "invalid": {"a": {"values": ["x"], "pattern": "^x"}},
        "sql": {
            "ours": "SELECT count(*) FROM events",
            "standard": {"query": "SELECT max(b) FROM orders.v1", "table": "orders.v1", "required": False},
        },
    }
    others: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "masked": st.sampled_from([["a"], ["b", "a"]]),
                "duplicate_keys": st.sampled_from(["last", "refuse"]),
                "description": st.sampled_from(["Orders", "two\nlines: 'quoted'", "no"]),
                "owner": st.just("team-a"),
            },
        )
    )
    columns: dict[str, Any] = draw(
        st.sampled_from([{}, {"columns": {"b": "numeric(10,2)", "a": None}}, {"columns": {"a": "varchar(3)", "b": None}}])
    )
    rules = {"rule": "a != 'x'", "second-one": draw(st.sampled_from(["b is None or\n  b > 0", 'a.matches("^x") and  b in [1, 2]']))}
    references = {
        "b": draw(st.sampled_from([{"table": "shops", "column": "id"}, {"table": "s.shops", "database_env": "DWH"}, {"file": "shops.csv"}]))
    }
    return {
        "name": "orders.v1",
        "version": draw(st.sampled_from([1, "1.2.0"])),
        **keys,
        **times,
        "schema": schema,
        "rules": rules,
        "references": references,
        "window": window,
        **columns,
        **others,
    }


@pytest.mark.slow
@settings(max_examples=examples(25, 80), deadline=None)
@given(contracts())
def test_a_contract_that_goes_there_and_back_means_the_same(data: dict[str, Any]) -> None:
    contract = load_contract(data)
    exported = dump_yaml(export_odcs(contract))
    assert standard_errors(parse_document(exported, "e.yaml")) == []
    again = load_contract(exported)
    assert again.digest == contract.digest
    short = load_contract(dump_yaml(short_form(again)))
    assert short.digest == contract.digest
    assert [c.text for c in short.fail_if] == [c.text for c in contract.fail_if]
    assert (short.rules, short.not_run) == (contract.rules, ())
    kept = short_form(again)
    assert [kept.get(remark) for remark in ("description", "owner")] == [data.get(remark) for remark in ("description", "owner")]
    assert diff_contracts(contract, short) == []


values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(allow_nan=False, allow_infinity=False), st.text(),
        st.sampled_from(["no", "on", "012", "12:30:00", "1e5", "1_000", "0x10", ".5", "+1", "~", "=", "<<", "2026-01-01", "null", "True", " x", "a: b", "- x", "#", "\n", "x\n\n", "\x85"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=5,
)  # fmt: skip


@given(values)
def test_yaml_that_is_written_is_read_back(value: Any) -> None:
    assert parse_document(dump_yaml({"a": value}), "f.yaml").data == {"a": value}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name.removesuffix(".odcs.yaml"))
def test_the_standards_examples_go_through_the_short_form_and_back(path: Path) -> None:
    names = [schema["name"] for schema in parse_document(path.read_text(), path.name).data.get("schema", ())]
    contract = load_contract(f"{path}#{names[0]}" if names else path)
    assert load_contract(dump_yaml(short_form(contract))).digest == contract.digest
    exported = export_odcs(contract)
    assert exported["apiVersion"] == "v3.2.0"
    assert load_contract(dump_yaml(exported)).digest == contract.digest


def exported(text: str) -> tuple[Contract, dict[str, Any]]:
    contract = load_contract(text)
    return contract, export_odcs(contract)["schema"][0]


def test_what_the_standard_has_words_for_is_said_in_them() -> None:
    _, schema = exported("""
name: orders
id: order_id
description: Orders, as they are placed
schema:
  type: object
  required: [order_id]
  properties:
    order_id: {type: string}
    amount: {type: [number, "null"], minimum: 0}
    state: {type: [string, "null"], enum: [new, paid, null]}
window:
  missing: {state: ["", null]}
  fail_if: [nulls(amount) >= 1 %, missing(state) > 3, "duplicates(order_id, state) > 0"]
  warn_if: [rows < 1]
""")
    assert "customProperties" not in schema
    assert schema["properties"] == [
        {"name": "order_id", "logicalType": "string", "required": True, "physicalType": "text", "primaryKey": True},
        {"name": "amount", "logicalType": "number", "logicalTypeOptions": {"minimum": 0}, "physicalType": "double",
         "quality": [{"metric": "nullValues", "mustBeLessThan": 1, "unit": "percent", "severity": "error"}]},
        {"name": "state", "logicalType": "string", "enum": [{"value": "new"}, {"value": "paid"}], "physicalType": "text",
         "quality": [{"metric": "missingValues", "mustBeLessOrEqualTo": 3, "arguments": {"missingValues": ["", None]}, "severity": "error"}]},
    ]  # fmt: skip
    assert schema["quality"] == [
        {"metric": "duplicateValues", "mustBeLessOrEqualTo": 0, "arguments": {"properties": ["order_id", "state"]}, "severity": "error"},
        {"metric": "rowCount", "mustBeGreaterOrEqualTo": 1, "severity": "warning"},
    ]


def test_sql_stays_what_it_was() -> None:
    contract, schema = exported("""
name: orders
id: null
schema: {type: object, properties: {a: {type: string}}}
window:
  sql:
    ours: SELECT count(*) FROM events
    standard: {query: SELECT count(*) FROM orders, table: orders, required: false}
  fail_if: [sql(ours) < 1, sql(standard) > 5]
""")
    assert load_contract(dump_yaml(export_odcs(contract))).digest == contract.digest
    assert {
        "type": "sql",
        "name": "standard",
        "query": "SELECT count(*) FROM orders",
        "mustBeLessOrEqualTo": 5,
        "severity": "error",
    } in schema["quality"]


def test_a_contract_with_a_schema_in_another_file_goes_there_and_back(tmp_path: Path) -> None:
    (tmp_path / "event.json").write_text('{"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}}')
    (tmp_path / "c.yaml").write_text("name: c\nid: id\nschema: event.json\n")
    contract = load_contract(tmp_path / "c.yaml")
    (tmp_path / "c.odcs.yaml").write_text(dump_yaml(export_odcs(contract, tmp_path)))
    assert load_contract(tmp_path / "c.odcs.yaml").digest == contract.digest
    packed = load_contract(pack_contract(load_contract(tmp_path / "c.odcs.yaml")))
    assert packed.digest == contract.digest
    assert export_odcs(packed)["schema"][0]["name"] == "c"


def test_the_demos_contract_goes_there_and_back() -> None:
    contract = load_contract(ROOT / "include/contracts/events.yaml")
    assert load_contract(dump_yaml(export_odcs(contract))).digest == contract.digest
