"""Schemas: offline, strict about mistakes, readable about events."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from factory_agents.contracts import Contract, load_contract, pack_contract
from factory_agents.errors import ContractError
from tests.support.bounded import cost_of


def contract(properties: str, more: str = "") -> Contract:
    return load_contract(f"name: e\nschema:\n  required: [event_id]\n  properties:\n    event_id: {{type: string}}\n{properties}{more}")


@pytest.mark.parametrize(
    ("field", "where", "message"),
    [
        ("{type: strin}", "6:15: schema.properties.a.type", "unknown type 'strin'; did you mean 'string'?"),
        ("{tpye: string}", "6:9: schema.properties.a.tpye", "did you mean 'type'?"),
        ("{format: date-tiem}", "6:17: schema.properties.a.format", "did you mean 'date-time'?"),
        ("{pattern: '(('}", "6:18: schema.properties.a.pattern", "regex"),
        ("{minimum: x}", "6:18: schema.properties.a.minimum", 'got "x"'),
        ("{$ref: 'https://example.org/a.json'}", "6:15: schema.properties.a.$ref", "nothing is fetched from the network"),
        ("{$ref: '#/$defs/a'}", "6:15: schema.properties.a.$ref", "leads nowhere: there is no '$defs'"),
        ("{$ref: 'missing.yaml'}", "6:15: schema.properties.a.$ref", "expected a file, got 'missing.yaml'"),
        ("{anyOf: [{type: string}, {typ: integer}]}", "6:34: schema.properties.a.anyOf.1.typ", "did you mean 'type'?"),
        ("{$schema: 'http://example.org/own'}", "6:18: schema.properties.a.$schema", "unknown dialect"),
        ("[1]", "6:8: schema.properties.a", "not JSON Schema"),
        ("{type: string, nullable: true}", "6:23: schema.properties.a.nullable", "no keyword of JSON Schema (but of OpenAPI 3.0)"),
        ("{type: number, divisibleBy: 2}", "6:23: schema.properties.a.divisibleBy", "(but of its draft 3): expected multipleOf"),
        ("{extends: {type: string}}", "6:9: schema.properties.a.extends", "(but of its draft 3): expected allOf"),
        ("{pattern: '(?<=a)b'}", "6:18: schema.properties.a.pattern", "look-around"),
        ("{patternProperties: {'^(?!x)': true}}", "6:29: schema.properties.a.patternProperties.^(?!x)", "look-around"),
        ("{$ref: 'file:///etc/hostname'}", "6:15: schema.properties.a.$ref", "expected a reference to a file, relative to this one"),
        ("{$ref: '/etc/hostname'}", "6:15: schema.properties.a.$ref", "expected a reference to a file, relative to this one"),
        ("{$ref: '//host/a.json'}", "6:15: schema.properties.a.$ref", "expected a reference to a file, relative to this one"),
        ("{$ref: '#nowhere'}", "6:15: schema.properties.a.$ref", "leads nowhere: there is no 'nowhere'"),
    ],
)
def test_a_mistake_in_a_schema_is_said_at_its_place(field: str, where: str, message: str) -> None:
    with pytest.raises(ContractError) as caught:
        contract(f"    a: {field}\n")
    assert str(caught.value).startswith(f"inline contract:{where}: ")
    assert message in str(caught.value)


def test_nothing_opens_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket, "socket", refuse)
    for field in ("{$ref: 'http://127.0.0.1:9/a.json'}", "{$schema: 'http://127.0.0.1:9/a'}", "{$dynamicRef: 'http://127.0.0.1:9/a'}"):
        with pytest.raises(ContractError):
            contract(f"    a: {field}\n")


def test_own_annotations_and_open_api_s_example_are_let_through() -> None:
    assert contract("    a: {x-owner: me, example: 3, title: A, internal: true}\n").violations({"event_id": "1"}) == ()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "event.yaml").write_text(
        "$id: https://example.org/event\ntype: object\nrequired: [event_id, size]\nproperties:\n"
        "  size: {$ref: 'types.json#/definitions/size'}\n  event_id: {type: string}\n  parent: {$ref: '#'}\n"
    )
    (tmp_path / "schemas" / "types.json").write_text('{"definitions": {"size": {"type": "integer", "minimum": 0}}}')
    (tmp_path / "events.yaml").write_text("name: events\nschema: schemas/event.yaml\n")
    return tmp_path


def test_references_are_relative_to_the_file_they_stand_in(folder: Path) -> None:
    events = load_contract(folder / "events.yaml")
    assert [(c.name, c.type) for c in events.columns()] == [("size", "bigint"), ("event_id", "text"), ("parent", "json")]
    assert events.violations({"event_id": "1", "size": 1, "parent": {"event_id": "0", "size": 0}}) == ()
    (broken,) = events.violations({"event_id": "1", "size": 1, "parent": {"event_id": "0", "size": -1}})
    assert broken == ("schema:parent", "parent.size: expected at least 0, got -1")


@pytest.mark.parametrize("name", ["a b.json", "größe.json", "a+b.json", "a%20b.json"])
def test_a_file_of_any_name_is_referred_to(tmp_path: Path, name: str) -> None:
    (tmp_path / unquote(name)).write_text('{"type": "integer"}')
    (tmp_path / "c.yaml").write_text(f'{{name: e, id: null, schema: {{properties: {{a: {{$ref: "{name}"}}}}}}}}')
    contract = load_contract(tmp_path / "c.yaml")
    for one in (contract, load_contract(pack_contract(contract))):
        assert [v.rule for v in one.violations({"a": "x"})] == ["schema:a"]


def test_a_mistake_in_a_referenced_file_names_that_file(folder: Path) -> None:
    (folder / "schemas" / "types.json").write_text('{"definitions": {"size": {"type": "integer",\n "minimun": 0}}}')
    with pytest.raises(ContractError, match=r"^schemas/types\.json:2:2: definitions\.size\.minimun: .* did you mean 'minimum'\?"):
        load_contract(folder / "events.yaml")


def test_the_digest_sees_referenced_files_but_not_where_they_lie(folder: Path, tmp_path: Path) -> None:
    before = load_contract(folder / "events.yaml").digest
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("events.yaml", "schemas"):
        (folder / name).rename(moved / name)
    assert load_contract(moved / "events.yaml").digest == before
    (moved / "schemas" / "types.json").write_text('{"definitions": {"size": {"type": "integer", "minimum": 1}}}')
    assert load_contract(moved / "events.yaml").digest != before


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("{type: [integer, 'null']}", "x", 'a: expected integer or null, got "x"'),
        ("{enum: [small, 1]}", "big", 'a: expected one of "small", 1, got "big"'),
        ("{const: 3}", 4, "a: expected 3, got 4"),
        ("{minimum: 0}", -1, "a: expected at least 0, got -1"),
        ("{exclusiveMaximum: 5}", 5, "a: expected less than 5, got 5"),
        ("{minLength: 2}", "x", 'a: expected at least 2 characters, got "x"'),
        ("{pattern: '^a'}", "b", 'a: expected text matching ^a, got "b"'),
        ("{format: date-time}", "yesterday", 'a: expected the format date-time, got "yesterday"'),
        ("{format: email}", "me", 'a: expected the format email, got "me"'),
        ("{multipleOf: 5}", 7, "a: expected a multiple of 5, got 7"),
        ("{anyOf: [{type: string}, {type: 'null'}]}", 4, "a: expected string or null, got 4"),
        ("{items: {type: integer}}", [1, "z"], 'a[1]: expected integer, got "z"'),
        ("{properties: {b: {type: string}}}", {"b": 1}, "a.b: expected string, got 1"),
        ("{required: [b]}", {}, "a.b: expected a value, got none (the field is missing)"),
        ("{type: string}", list(range(1000)), "a: expected string, got [0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22…"),
    ],
)
def test_a_broken_event_is_told_by_path_expected_and_got(field: str, value: Any, reason: str) -> None:
    (violation,) = contract(f"    a: {field}\n").violations({"event_id": "1", "a": value})
    assert violation == ("schema:a", reason)


@pytest.mark.parametrize("items", ["{type: string}", "{anyOf: [{type: string}, {pattern: '^a{1,50}$', minimum: 5}]}"])
def test_an_event_of_very_many_wrong_values_is_told_at_once(items: str) -> None:
    code = """
from factory_agents.contracts import load_contract
checked = load_contract("name: e\\nid: null\\nschema:\\n  properties:\\n    l: {type: array, items: " + sys.argv[1] + "}")
event = {"l": [1] * 1_000_000}
assert not checked.checker()(event)
answer = [[v.rule, v.reason] for v in checked.violations(event)]
"""
    cost = cost_of(code, items)
    ((rule, reason),) = cost.answer
    assert (rule, "more than 2,000 values" in reason) == ("schema", True)
    assert cost.seconds < 5
    assert cost.mebibytes < 400


def test_rules_are_named_by_declared_fields_only() -> None:
    strict = contract("    a: {type: integer}\n", "  additionalProperties: {type: integer}\n")
    assert [v.rule for v in strict.violations({"a": "x"})] == ["schema:event_id", "schema:a"]
    assert [v.rule for v in strict.violations({"event_id": "1", "made up by the sender": "x"})] == ["schema"]
    closed = contract("", "  additionalProperties: false\n")
    assert closed.violations({"event_id": "1", "b": 1}) == (("schema", 'the event: expected only declared fields, got also "b"'),)


@pytest.mark.parametrize(
    ("field", "type_", "nullable"),
    [
        ("{type: string}", "text", False),
        ("{type: integer}", "bigint", False),
        ("{type: number}", "double", False),
        ("{type: [number, integer]}", "double", False),
        ("{type: boolean}", "boolean", False),
        ("{type: [boolean, 'null']}", "boolean", True),
        ("{type: string, format: date-time}", "timestamptz", False),
        ("{type: string, format: date}", "date", False),
        ("{type: string, format: uuid}", "text", False),
        ("{type: object}", "json", False),
        ("{type: array}", "json", False),
        ("{type: [string, integer]}", "json", False),
        ("{}", "json", True),
        ("true", "json", True),
        ("{enum: [a, b]}", "text", False),
        ("{enum: [a, null]}", "text", True),
        ("{const: 1}", "bigint", False),
        ("{anyOf: [{type: string, format: date-time}, {type: 'null'}]}", "timestamptz", True),
        ("{allOf: [{type: integer}, {minimum: 1}]}", "bigint", False),
        ("{$ref: '#/$defs/a'}", "bigint", False),
    ],
)
def test_columns_follow_the_schema(field: str, type_: str, nullable: bool) -> None:
    more = "  $defs: {a: {type: integer}}\n  allOf: [{required: [a]}]\n"
    column = contract(f"    a: {field}\n", more).columns()[1]
    assert (column.name, column.type, column.nullable, column.primary_key) == ("a", type_, nullable, False)


def test_what_is_not_required_is_nullable() -> None:
    assert contract("    a: {type: integer}\n").columns()[1].nullable


def test_fields_of_branches_are_declared_too() -> None:
    both = contract("", "  oneOf:\n    - {properties: {a: {type: integer}}, required: [a]}\n    - {properties: {b: {type: string}}}\n")
    assert [(c.name, c.type, c.nullable) for c in both.columns()] == [
        ("event_id", "text", False),
        ("a", "bigint", True),
        ("b", "text", True),
    ]


def wild(schema: dict[str, Any]) -> Contract:
    """A contract of a schema as other tools write it."""
    return load_contract({"name": "e", "id": None, "schema": schema})


@pytest.mark.parametrize(
    "dialect",
    [
        "https://json-schema.org/draft-07/schema",
        "https://json-schema.org/draft-07/schema#",
        "http://json-schema.org/draft-07/schema#",
        "https://json-schema.org/draft/2019-09/schema",
        "https://json-schema.org/draft/2019-09/schema#",
        "http://json-schema.org/draft/2020-12/schema",
        "http://json-schema.org/draft-04/schema#",
        "http://json-schema.org/schema#",
    ],
)
def test_a_dialect_is_known_by_any_of_its_addresses(dialect: str) -> None:
    ours = wild({"$schema": dialect, "properties": {"a": {"type": "integer"}}})
    assert [v.rule for v in ours.violations({"a": "x"})] == ["schema:a"]


DRAFT_7 = "http://json-schema.org/draft-07/schema#"
ID = "https://example.org/schemas/order.json"


@pytest.mark.parametrize(
    ("more", "reference"),
    [
        ({"$id": ID}, f"{ID}#/$defs/size"),
        ({"$id": ID}, "order.json#/$defs/size"),
        ({"$id": ID}, "/schemas/order.json#/$defs/size"),
        ({"$id": f"{ID}#"}, f"{ID}#/$defs/size"),
        ({"$id": "urn:example:order"}, "#/$defs/size"),
        ({"$id": "urn:example:order"}, "urn:example:order#/$defs/size"),
        ({}, "#/%24defs/size"),
        ({"$id": ID, "$defs": {"size": {"$anchor": "s", "minimum": 1}}}, "#s"),
        ({"$id": ID, "$defs": {"size": {"$anchor": "s", "minimum": 1}}}, f"{ID}#s"),
        ({"$schema": DRAFT_7, "$defs": {"size": {"$id": "#s", "minimum": 1}}}, "#s"),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "id": ID}, f"{ID}#/$defs/size"),
        ({"$id": ID, "$defs": {"size": {"$id": "size.json", "minimum": 1}}}, "size.json"),
        ({"$id": ID, "$defs": {"size": {"$id": "size.json", "minimum": 1}}}, "https://example.org/schemas/size.json"),
        ({"$id": ID, "$defs": {"size": {"$id": "https://example.com/size", "minimum": 1}}}, "https://example.com/size"),
        ({"$defs": {"size": {"$id": "https://example.com/size", "$ref": "#/$defs/n", "$defs": {"n": {"minimum": 1}}}}}, "#/$defs/size"),
        ({"$schema": DRAFT_7, "$defs": {"size": {"$id": "#/p", "$ref": "#/$defs/n"}, "n": {"minimum": 1}}}, "#/$defs/size"),
        ({"$defs": {"size": {"$id": "/properties/size", "$ref": "#/$defs/n"}, "n": {"minimum": 1}}}, "#/$defs/size"),
    ],
)
def test_a_schema_refers_to_itself_and_to_what_it_bundles_by_any_address(more: dict[str, Any], reference: str) -> None:
    ours = wild({"$defs": {"size": {"minimum": 1}}, "properties": {"a": {"$ref": reference}}} | more)
    assert ours.violations({"a": 1}) == ()
    assert [v.reason for v in ours.violations({"a": 0})] == ["a: expected at least 1, got 0"]


@pytest.mark.parametrize(
    "part",
    [
        {"$ref": "#/$defs/other"},
        {"allOf": [{"$ref": "#/$defs/n"}]},
        {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/n"}]},
        {"not": {"$ref": "#/$defs/n"}},
        {"if": {"type": "string"}, "then": {"$ref": "#/$defs/n"}},
        {"dependentSchemas": {"x": {"$ref": "#/$defs/n"}}},
    ],
)
def test_a_schema_that_is_part_of_itself_for_the_same_value_is_refused(part: dict[str, Any]) -> None:
    """Validators let such a part pass, without a word."""
    with pytest.raises(ContractError, match="it is part of itself, for the same value: that checks nothing"):
        wild({"properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": part, "other": {"$ref": "#/$defs/n"}}})
    tree = {"type": "object", "properties": {"of": {"$ref": "#/$defs/n"}}}
    assert not wild({"properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": tree}}).checker()({"a": {"of": {"of": 1}}})


@pytest.mark.parametrize(("how", "levels"), [("allOf", 40), ("anyOf", 14), ("oneOf", 300)])
def test_a_schema_that_doubles_with_each_reference_is_refused_at_once(how: str, levels: int) -> None:
    parts = {f"n{i}": {how: [{"$ref": f"#/$defs/n{i + 1}"}] * 2} for i in range(levels)}
    with pytest.raises(ContractError, match=r"one value would be tried against more than 10,000 schemas"):
        wild({"properties": {"a": {"$ref": "#/$defs/n0"}}, "$defs": {**parts, f"n{levels}": {"type": "string"}}})


def test_a_chain_of_references_without_end_is_an_error() -> None:
    parts = {f"n{i}": {"$ref": f"#/$defs/n{i + 1}"} for i in range(5_000)}
    with pytest.raises(ContractError, match="its references lead too deep"):
        wild({"properties": {"a": {"$ref": "#/$defs/n0"}}, "$defs": {**parts, "n5000": {}}})


def test_a_name_for_people_is_no_address_of_files(folder: Path) -> None:
    """``$id: https://…`` in a file leaves its relative references to the files beside it."""
    (folder / "schemas" / "types.json").write_text(
        '{"$id": "https://example.org/v1/types.json", "definitions": {"size": {"$ref": "more.json"}}}'
    )
    (folder / "schemas" / "more.json").write_text('{"$id": "https://example.org/v1/more.json", "type": "integer", "minimum": 0}')
    (broken,) = load_contract(folder / "events.yaml").violations({"event_id": "1", "size": -1})
    assert broken.reason == "size: expected at least 0, got -1"


def test_formats_that_nobody_checks_are_passed_over_with_a_note() -> None:
    ours = contract("    a: {type: integer, format: int64}\n    b: {type: number, format: double}\n    c: {format: colour}\n")
    assert ours.notes == (
        "inline contract:6:32: the format 'int64' checks nothing",
        "inline contract:7:31: the format 'double' checks nothing",
        "inline contract:8:17: the format 'colour' checks nothing",
    )
    assert ours.violations({"event_id": "1", "a": 2**70, "b": 1.5, "c": "x"}) == ()


def test_a_format_that_is_newer_than_the_dialect_is_noted_too() -> None:
    old = wild({"$schema": "http://json-schema.org/draft-04/schema#", "properties": {"a": {"format": "uuid"}}})
    assert len(old.notes) == 1
    assert old.violations({"a": "x"}) == ()


def test_a_pattern_with_look_ahead_keeps_its_reason() -> None:
    ours = contract("    a: {pattern: '^(?!x-)[a-z-]+$', allOf: [{maxLength: 4}]}\n")
    assert ours.violations({"event_id": "1", "a": "y-x"}) == ()
    assert ours.violations({"event_id": "1", "a": 3}) == ()
    reasons = [v.reason for v in ours.violations({"event_id": "1", "a": "x-abc"})]
    assert reasons == ['a: expected at most 4 characters, got "x-abc"', 'a: expected text not matching ^(?:x-), got "x-abc"']
