"""All that is wrong with a contract, in one go."""

# ruff: noqa: E501  (tables of cases)

from __future__ import annotations

import json
from pathlib import Path

import pytest

from factory_agents.contracts.lint import lint_contract, sarif
from tests.support.bounded import cost_of

OWN = """nmae: x
version: [1]
id: id
time: when
schema:
  type: object
  required: [id]
  properties:
    id: {type: strng, minlength: 3}
    a: {type: integer, pattern: "("}
    b: {type: string, format: emial}
rules:
  one: a >
  two: len(
window:
  fail_if: [rejected > x, rejected(one) > 1, nulls() > 0, freshness > 1 h]
  nulls: 5
columns: {a: tex}
deletes: maybe
"""

STANDARD = """apiVersion: v3.1.0
kind: DataContract
id: x
version: 1.0.0
servers: [{server: a, type: postgres, port: 1, database: b, schema: c}]
schema:
- name: orders
  properties:
  - {name: a, logicalType: string, logicalTypeOptions: {pattern: "("}, quality: [{type: custom, engine: factory, implementation: "b >"}]}
  - {name: a, logicalType: string}
  - {name: t, logicalType: timestamp, logicalTypeOptions: {minimum: never, maximum: never}}
  customProperties: [{property: factory, value: {time: tt, x: 1}}]
- name: lines
  properties: [{name: q, unique: true, quality: [{type: sql, query: x, mustBe: 1}]}]
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def lines(text: str, name: str = "c.yaml") -> list[str]:
    Path(name).write_text(text)
    return [problem.text.removeprefix(f"{name}:") for problem in lint_contract(name)]


def places(text: str, level: str = "error") -> list[str]:
    return [line.partition(f": {level}: ")[0] for line in lines(text) if f": {level}: " in line]


def test_every_error_of_the_short_form_is_listed_with_its_place() -> None:
    assert places(OWN) == [
        *("1:1", "1:1", "2:10"),  # an unknown key, no name, the version
        *("9:16", "9:23", "10:33", "11:31"),  # a type, a keyword, a pattern, a format
        *("13:11", "14:8"),  # rules
        *("16:13", "16:46", "17:10", "18:10", "18:14", "19:10"),
    ]


def test_every_error_of_a_contract_of_the_standard_is_listed_in_all_its_schemas() -> None:
    assert places(STANDARD) == ["5:11", "9:66", "9:134", "10:12", "11:69", "11:85", "12:56", "12:60"]
    assert places(STANDARD, "note") == ["14:16", "14:50"]


def test_what_the_standards_own_schema_says_is_all_listed() -> None:
    text = STANDARD.replace("logicalType: string", "logicalType: text").replace("name: q", "nmae: q")
    found = lines(text)
    assert [line.partition(": error: ")[2][:60] for line in found] == [
        "servers.0: expected host, got none",
        'schema.0.properties.0.logicalType: expected one of "string",',
        'schema.0.properties.1.logicalType: expected one of "string",',
        "schema.1.properties.0: expected name, got none",
        "schema.1.properties.0.nmae: v3.1.0 has no such key here; did",
    ]


def test_a_sound_contract_has_no_errors_and_says_what_it_does_not_check() -> None:
    assert lines("name: a\nid: null\nschema: {type: object, properties: {n: {type: integer, format: int64}}}\n") == [
        "3:64: note: the format 'int64' checks nothing"
    ]


def test_sql_is_tried_on_the_fields() -> None:
    sql = "window: {sql: {good: SELECT count(*) FROM events WHERE n > 0, bad: SELECT count(*) FROM events WHERE m > 0}}"
    found = lines(f"name: a\nid: null\nschema: {{properties: {{n: {{type: integer}}}}}}\n{sql}\n")
    assert len(found) == 1
    assert found[0].startswith('4:68: error: window.sql.bad: Binder Error: Referenced column "m" not found')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "2:1: error: not YAML"),
        ("", "1:1: error: expected a contract, got an empty file"),
        ("5", "1:1: error: expected a contract (a mapping with a name), got 5"),
        ("apiVersion: v9\n", "1:13: error: apiVersion: expected a version of the standard"),
        ("apiVersion: [v3.1.0]\n", "1:13: error: apiVersion: expected a version of the standard"),
        ("[" * 100_000, "1:202: error: not JSON: nested too deeply"),
        ('{"a":' * 100_000, "1:1006: error: not JSON: nested too deeply"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n" + "".join(f"{'c' * i}: &{'c' * i} [{', '.join([f'*{chr(99) * (i - 1)}'] * 9)}]\n" for i in range(2, 9)), "6:56: error: aliases repeat more than 10,000 values"),
        ("name: " + "x" * 300_000, "1:1: error: 300,006 characters are too many"),
        ('{"apiVersion": "v3.2.0", "kind": "DataContract", "kind": "DataContract"}', "1:50: error: not JSON: the key 'kind' stands here twice"),
    ],
    ids=["yaml", "empty", "number", "version", "list", "brackets", "braces", "bomb", "long", "twice"],
)  # fmt: skip
def test_hostile_files_are_one_clear_line(text: str, message: str) -> None:
    found = lines(text, "c.json" if text.startswith(("{", "[")) else "c.yaml")
    assert len(found) == 1
    assert found[0].startswith(message), found[0][:300]
    assert len(found[0]) < 400


@pytest.mark.slow
def test_hostile_properties_are_refused_or_read_and_never_a_traceback() -> None:
    """Whatever stands where a mapping, a list or a text is expected."""
    head = {"apiVersion": "v3.1.0", "kind": "DataContract", "id": "x", "version": "1.0.0", "status": "active"}
    odd: list[object] = [None, 5, "x", [], {}, [None], [5], ["x"], [[]], [{}], {"x": 1}, True, 1e300, [{"name": None}], [{"name": ""}]]
    tried = 0
    for value in odd:
        for document in (
            {**head, "schema": value},
            {**head, "slaProperties": value, "schema": []},
            {**head, "customProperties": value},
            {**head, "customProperties": [{"property": "factory", "value": value}], "schema": [{"name": "o"}]},
            *({**head, "schema": [{"name": "o", key: value}]} for key in ("properties", "quality", "customProperties", "relationships")),
            *(
                {**head, "schema": [{"name": "o", "properties": [{"name": "p", "logicalType": kind, key: value}]}]}
                for kind in ("array", "object", "timestamp")
                for key in ("properties", "items", "quality", "logicalTypeOptions", "enum", "required", "physicalType", "map", "physicalName")
            ),
            *(
                {**head, "schema": [{"name": "o", "properties": [{"name": "p", "quality": [{"metric": metric, key: value}]}]}]}
                for metric in ("invalidValues", "missingValues", "duplicateValues", "rowCount")
                for key in ("mustBe", "mustBeBetween", "arguments", "unit")
            ),
            *(
                {**head, "schema": [{"name": "o", "properties": [{"name": "p", "quality": [{"metric": metric, "mustBe": 0, "arguments": {key: value}}]}]}]}
                for metric, key in (("invalidValues", "validValues"), ("invalidValues", "pattern"), ("missingValues", "missingValues"), ("duplicateValues", "properties"))
            ),
            *(
                {**head, "schema": [{"name": "o", "properties": [{"name": "p"}], "customProperties": [{"property": "factory", "value": {key: value}}]}]}
                for key in ("id", "time", "time_unit", "key", "schema", "rules", "window", "columns", "deletes", "version_field")
            ),
            *(
                {**head, "schema": [{"name": "o", "customProperties": [{"property": "factory", "value": {"window": {key: value}}}]}]}
                for key in ("fail_if", "warn_if", "nulls", "missing", "invalid")
            ),
        ):  # fmt: skip
            lines(json.dumps(document), "c.json")
            tried += 1
    assert tried > 800


@pytest.mark.slow
@pytest.mark.parametrize(
    ("properties", "most"),
    [
        ([{"name": f"a{i}", "x": 1, "y": 2} for i in range(3_000)], 202),
        ([{"name": f"a{i}", "logicalType": "x"} for i in range(3_000)], 201),
        ([{"name": f"a{i}", "quality": [{"metric": "x", "y": 1}]} for i in range(3_000)], 202),
        ([{"name": f"a{i}", "description": None, "logicalType": "string"} for i in range(3_000)], 0),
        (
            [
                {
                    "name": "a",
                    "quality": [{"metric": "missingValues", "mustBe": 0, "arguments": {"missingValues": [i]}} for i in range(3_000)],
                }
            ],
            1,
        ),
        ([{"name": "a", "quality": [{"type": "custom", "engine": "factory", "implementation": "a != 1"}] * 3_000}], 1),
    ],
    ids=["keys", "types", "metrics", "nulls", "figures", "rules"],
)
def test_very_many_of_anything_take_no_minutes(properties: list[object], most: int) -> None:
    head = {"apiVersion": "v3.1.0", "kind": "DataContract", "id": "x", "version": "1.0.0", "status": "active"}
    Path("c.json").write_text(json.dumps({**head, "schema": [{"name": "o", "properties": properties}]}))
    cost = cost_of("from factory_agents.contracts.lint import lint_contract\nanswer = len(lint_contract('c.json'))")
    assert cost.seconds < 20
    assert (most > 0) <= cost.answer <= most


def test_very_many_errors_elsewhere_hide_none_of_what_events_are_checked_against() -> None:
    head = {"apiVersion": "v3.1.0", "kind": "DataContract", "id": "x", "version": "1.0.0", "status": "active"}
    servers = [{"server": f"s{i}", "type": "postgres"} for i in range(500)]
    found = lines(json.dumps({**head, "servers": servers, "schema": [{"nmae": "o", "properties": [5]}]}), "c.json")
    assert "there is more that is wrong: mend this first" in found[0]


def test_sarif_is_what_code_hosts_read() -> None:
    Path("c.yaml").write_text(OWN)
    report = sarif(lint_contract("c.yaml"))
    result = report["runs"][0]["results"][2]
    assert report["version"] == "2.1.0"
    assert result["level"] == "error"
    assert result["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "c.yaml"},
        "region": {"startLine": 2, "startColumn": 10},
    }
