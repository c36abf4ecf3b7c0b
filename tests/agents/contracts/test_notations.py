"""Plain JSON Schemas and Avro schemas as contracts."""

# ruff: noqa: E501  (tables of cases)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from factory_agents.contracts import Contract, load_contract, pack_contract
from factory_agents.contracts.lint import lint_contract
from factory_agents.errors import ContractError


def avro(fields: list[dict[str, Any]], **more: Any) -> Contract:
    return load_contract(json.dumps({"type": "record", "name": "Order", "namespace": "shop", "fields": fields, **more}))


def test_a_json_schema_is_a_contract_named_as_it_says_or_as_its_file(tmp_path: Path) -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "required": ["id"],
        "properties": {"id": {"type": "string"}},
    }
    path = tmp_path / "page view.schema.json"
    path.write_text(json.dumps(schema))
    contract = load_contract(path)
    assert (contract.name, contract.id, contract.key, [c.name for c in contract.columns()]) == ("page_view", None, (), ["id"])
    assert not contract.checker()({})
    path.write_text(json.dumps(schema | {"title": "Page View", "description": "A page was seen"}))
    assert load_contract(path).name == "Page_View"
    iglu = "http://iglucentral.com/schemas/com.snowplowanalytics.self-desc/schema/jsonschema/1-0-0#"
    path.write_text(
        json.dumps(schema | {"$schema": iglu, "self": {"vendor": "com.acme", "name": "view", "format": "jsonschema", "version": "1-0-2"}})
    )
    assert (load_contract(path).name, load_contract(path).version) == ("view", "1-0-2")
    assert load_contract(pack_contract(contract)).digest == contract.digest


def test_references_within_and_beside_a_json_schema_lead_where_they_did(tmp_path: Path) -> None:
    (tmp_path / "id.json").write_text('{"type": "string", "minLength": 2}')
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"$ref": "id.json"}}, "$defs": {"n": {"type": "integer"}}}
    (tmp_path / "c.json").write_text(json.dumps(schema))
    check = load_contract(tmp_path / "c.json").checker()
    assert check({"a": 1, "b": "xx"})
    assert not check({"a": "1"})
    assert not check({"b": "x"})


def test_our_own_words_may_stand_in_a_json_schema() -> None:
    contract = load_contract(
        json.dumps(
            {
                "type": "object",
                "required": ["id"],
                "properties": {"id": {"type": "string"}, "at": {"type": "integer"}},
                "x-factory": {
                    "id": "id",
                    "time": "at",
                    "time_unit": "ms",
                    "rules": {"r": "at > 0"},
                    "window": {"fail_if": "rejected > 1 %"},
                },
            }
        )
    )
    assert (contract.id, contract.time, contract.rules[0].name, contract.fail_if[0].text) == ("id", "at", "r", "rejected > 1 %")


@pytest.mark.parametrize(
    ("type_", "good", "bad", "column"),
    [
        ("null", [None], [0], "json"),
        ("boolean", [True], [None, 0], "boolean"),
        ("int", [2**31 - 1], [2**31, 1.5], "integer"),
        ("long", [2**40], ["1"], "bigint"),
        ("float", [1.5, 1], ["x"], "real"),
        ("double", [1.5], ["x"], "double"),
        ("bytes", ["aGk="], [1], "bytea"),
        ("string", ["x"], [1, None], "text"),
        ({"type": "string", "avro.java.string": "String"}, ["x"], [1], "text"),
        ({"type": {"type": "string"}}, ["x"], [1], "text"),
        (["null", "string"], [None, "x"], [1], "text"),
        (["int", "string"], [1, "x"], [None, 1.5], "json"),
        (["null", {"type": "array", "items": "long"}, "string"], [None, [1], "x"], [1, ["x"]], "json"),
        ({"type": "enum", "name": "State", "symbols": ["NEW", "PAID"]}, ["NEW"], ["OLD", 1], "text"),
        (["null", {"type": "enum", "name": "State", "symbols": ["NEW"]}], ["NEW", None], ["OLD"], "text"),
        ({"type": "fixed", "name": "Hash", "size": 16}, ["x"], [1], "bytea"),
        ({"type": "array", "items": ["null", "int"]}, [[1, None]], [["x"]], "json"),
        ({"type": "map", "values": "int"}, [{"a": 1}], [{"a": "1"}], "json"),
        ({"type": "record", "name": "Inner", "fields": [{"name": "x", "type": "int"}]}, [{"x": 1}], [{}, {"x": "1"}], "json"),
        ({"type": "int", "logicalType": "date"}, ["2026-11-01"], [20000, "x"], "date"),
        ({"type": "long", "logicalType": "timestamp-millis"}, ["2026-11-01T04:00:00Z"], [5], "timestamptz"),
        ({"type": "long", "logicalType": "local-timestamp-micros"}, ["2026-11-01T04:00:00"], [5], "timestamp"),
        ({"type": "int", "logicalType": "time-millis"}, ["04:00:00"], [5], "time"),
        ({"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2}, [1.25], ["x"], "numeric(10,2)"),
        ({"type": "string", "logicalType": "uuid"}, ["7f8f6a20-3c4b-4c1d-9a55-0d6d3d0e7a11"], ["x"], "uuid"),
        ({"type": "long", "logicalType": "mystery"}, [5], ["x"], "bigint"),
    ],
)  # fmt: skip
def test_an_avro_type_is_what_its_values_are_in_json(type_: Any, good: list[Any], bad: list[Any], column: str) -> None:
    contract = avro([{"name": "a", "type": type_}])
    check = contract.checker()
    assert [value for value in good if not check({"a": value})] == []
    assert [value for value in bad if check({"a": value})] == []
    assert [c.type for c in contract.columns()] == [column]
    assert not check({})


def test_a_field_with_a_default_may_be_missing() -> None:
    contract = avro([{"name": "a", "type": "int", "default": 0}, {"name": "b", "type": ["null", "int"], "default": None}])
    assert contract.checker()({})
    assert not contract.checker()({"a": None})


def test_named_types_are_known_by_their_names_in_their_namespaces_and_may_hold_themselves() -> None:
    inner = {
        "type": "record",
        "name": "Node",
        "fields": [{"name": "next", "type": ["null", "Node"]}, {"name": "order", "type": ["null", "Order"]}],
    }
    contract = avro([{"name": "first", "type": inner}, {"name": "second", "type": "shop.Node"}])
    check = contract.checker()
    node = {"next": {"next": None, "order": None}, "order": None}
    assert check({"first": node, "second": node})
    assert check({"first": {"next": None, "order": {"first": node, "second": node}}, "second": node})
    assert not check({"first": node, "second": {"next": {}, "order": None}})


def test_names_that_repeat_do_not_explode() -> None:
    fields: list[dict[str, Any]] = []
    for i in range(60):
        before = [{"name": f"x{n}", "type": f"R{i - 1}"} for n in range(9)] if i else [{"name": "x", "type": "int"}]
        fields.append({"name": f"f{i}", "type": {"type": "record", "name": f"R{i}", "fields": before}})
    assert len(avro(fields).columns()) == 60


def test_of_several_records_one_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "all.avsc"
    one = {"type": "record", "name": "Line", "fields": [{"name": "n", "type": "int"}]}
    state = {"type": "enum", "name": "State", "symbols": ["NEW"]}
    lines = {"name": "lines", "type": {"type": "array", "items": "Line"}}
    two = {"type": "record", "name": "Order", "fields": [lines, {"name": "state", "type": "State"}]}
    path.write_text(json.dumps([state, one, two]))
    assert load_contract(f"{path}#Order").checker()({"lines": [{"n": 1}], "state": "NEW"})
    assert not load_contract(f"{path}#Order").checker()({"lines": [{"n": 1}], "state": "OLD"})
    assert load_contract(f"{path}#Line").checker()({"n": 1})
    with pytest.raises(ContractError, match=r"it holds 2 records: name one of Line, Order, such as .*all.avsc#Line"):
        load_contract(path)
    with pytest.raises(ContractError, match="there is no record 'X'; it holds Line, Order"):
        load_contract(f"{path}#X")
    assert lint_contract(str(path)) == []


def test_our_own_words_may_stand_in_an_avro_record() -> None:
    contract = avro(
        [{"name": "a", "type": "long"}], doc="Orders", factory={"id": "a", "time": "a", "time_unit": "ms", "rules": {"r": "a > 0"}}
    )
    assert (contract.name, contract.id, contract.time, contract.rules[0].text) == ("Order", "a", "a", "a > 0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type": "record", "name": "a", "fields": [{"name": "x", "type": "strng"}]}', "c.avsc:1:66: fields.0.type: unknown type 'strng'; did you mean 'string'?"),
        ('{"type": "record", "name": "a", "fields": [{"name": "x"}]}', "c.avsc:1:44: fields.0: expected a field with a name and a type"),
        ('{"type": "record", "name": "a", "fields": 5}', "c.avsc:1:43: fields: expected a list of fields, got 5"),
        ('{"type": "record", "fields": []}', "c.avsc:1:1: expected a name, got null"),
        ('{"type": "record", "name": "a", "fields": [{"name": "x", "type": 5}]}', "c.avsc:1:66: fields.0.type: expected an Avro type, got 5"),
        ('{"type": "record", "name": "a", "fields": [{"name": "x", "type": []}]}', "c.avsc:1:66: fields.0.type: expected types, got an empty union"),
        ('{"type": "record", "name": "a", "fields": [{"name": "x", "type": {"type": "enum", "name": "e"}}]}', "c.avsc:1:66: fields.0.type.symbols: expected a list of names"),
        ('{"type": "record", "name": "a", "fields": [{"name": "x", "type": "int"}, {"name": "x", "type": "int"}]}', "c.avsc:1:83: fields.1.name: two fields are called 'x'"),
        ('{"type": "record", "name": "a", "fields": [{"name": "x", "type": "int"}], "factory": {"time": "y"}}', "c.avsc:1:95: factory.time: the schema declares no field 'y'"),
        ('{"type": "record", "name": "a", "fields": [{"name": "x", "type": ' + '{"type": ' * 90 + '"int"' + "}" * 93, "c.avsc:1:"),
        ('{"$schema": "x", "type": "object"}', "c.avsc:1:13: $schema: unknown dialect"),
        ('{"type": "object", "properties": {"a": {"type": "strng"}}}', "c.avsc:1:49: properties.a.type: unknown type 'strng'"),
        ("dataContractSpecification: 1.1.0\nid: x\nmodels: {}\n", "c.avsc:1:1: dataContractSpecification: it is of the Data Contract Specification, which has given way"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_at_its_place(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.avsc").write_text(text)
    with pytest.raises(ContractError) as caught:
        load_contract("c.avsc")
    assert str(caught.value).startswith(message)
    assert [p.level for p in lint_contract("c.avsc")] == ["error"]
