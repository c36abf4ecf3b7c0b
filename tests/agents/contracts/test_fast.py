"""The fast path takes nothing that the schema and the rules refuse, and the report doesn't tell which path an event took."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory_agents.contracts import load_contract
from factory_agents.contracts.fast import NotFast
from factory_agents.protocol import AgentRef, AgentRun, Counts
from factory_agents.runtime.agents import Reject
from factory_agents.validate import ValidateTransform
from tests.support.soak import examples

NAMES = ("a", "b", "user id")


class Record(NamedTuple):
    data: bytes
    place: int

    def value(self) -> bytes:
        return self.data

    def topic(self) -> str:
        return "t"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.place


def outcome(contract: dict[str, Any], values: list[bytes], *, fast: bool) -> tuple[list[Any], dict[str, Any]]:
    """What the agent makes of events, and its report."""
    run = AgentRun("p", "validate", AgentRef("validate"))
    agent = ValidateTransform(load_contract(contract), run)
    if not fast:
        agent._fast = None
    records: list[Any] = [Record(value, i) for i, value in enumerate(values)]
    outputs = [(output.rule, output.reason) if isinstance(output, Reject) else output for output in agent.process(records)]
    report = agent.finish(Counts(consumed=len(values)))
    agent.close()
    return outputs, report


bounds = st.sampled_from([0, 1, 2, -1, 0.5, 3.0, 2**40])
small = st.sampled_from([0, 1, 2, 3])
strings = st.fixed_dictionaries(
    {"type": st.sampled_from(["string", ["string", "null"]])},
    optional={
        "minLength": small,
        "maxLength": small,
        "pattern": st.sampled_from(["^a+$", "b", "^[a-c]{1,3}$"]),
        "format": st.sampled_from(["date-time", "uuid"]),
    },
)
numbers = st.fixed_dictionaries(
    {"type": st.sampled_from(["integer", "number", ["integer", "null"], ["number", "null"], ["integer", "string"]])},
    optional={"minimum": bounds, "maximum": bounds, "exclusiveMinimum": bounds, "exclusiveMaximum": bounds, "multipleOf": st.just(2)},
)
enums = st.one_of(
    st.fixed_dictionaries({"enum": st.lists(st.sampled_from(["a", "b", 1, 2, None, 1.0, True]), min_size=1, max_size=4)}),
    st.fixed_dictionaries({"const": st.sampled_from(["a", 1, None])}),
    st.just({"type": "string", "enum": ["a", "b"]}),
    st.just({"type": ["integer", "null"], "enum": ["a", 1, None]}),
)
others = st.sampled_from(
    [True, {}, {"type": "boolean"}, {"type": "null"}, {"type": "object"}, {"type": "array"}, {"type": ["array", "object"]}]
)
leaves = st.one_of(strings, numbers, enums, others)
properties = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.fixed_dictionaries(
            {"type": st.sampled_from(["array", ["array", "null"]]), "items": inner},
            optional={"minItems": small, "maxItems": small, "uniqueItems": st.booleans()},
        ),
        st.fixed_dictionaries(
            {"type": st.sampled_from(["object", ["object", "null"]]), "properties": st.dictionaries(st.sampled_from(NAMES), inner)},
            optional={"required": st.lists(st.sampled_from(NAMES), unique=True), "additionalProperties": st.booleans()},
        ),
        st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=2)}),
        st.just({"$ref": "#/$defs/short"}),
    ),
    max_leaves=4,
)
schemas = st.fixed_dictionaries(
    {
        "type": st.just("object"),
        "properties": st.dictionaries(st.sampled_from(NAMES), properties, min_size=1),
        "$defs": st.just({"short": {"type": "string", "maxLength": 2}}),
    },
    optional={"required": st.lists(st.sampled_from(NAMES), unique=True), "additionalProperties": st.booleans()},
)
texts = [
    *(b'""', b'"a"', b'"ab"', b'"abc"', b'"aaaa"', b'"\\u0061"', b'"a\\n"', b'"\xf0\x9f\x98\x80"', b'"\xff"', b'"2026-11-01T04:00:00Z"'),
    *(b"0", b"1", b"2", b"3", b"-1", b"-0", b"1.0", b"0.5", b"1e0", b"2.5", b"1e999", b"123456789012345678901234567890", b"1099511627777"),
    *(b"253402300799", b"253402300800", b"-62135596800", b"-62135596801", b"253402300799.5", b"9007199254740993"),
    *(
        b"true",
        b"false",
        b"null",
        b"{}",
        b"[]",
        b"NaN",
        b"tru",
        b'["a","a"]',
        b"[1,2,3,4]",
        b'{"a":1}',
        b'{"b":"a"}',
        b"9223372036854775808",
    ),
]
values = st.recursive(
    st.sampled_from(texts),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: b"[" + b",".join(items) + b"]"),
        st.lists(st.tuples(st.sampled_from(NAMES), inner), max_size=3).map(lambda pairs: document(pairs)),
    ),
    max_leaves=4,
)
rules = st.sampled_from([
    *("a != b", 'a is None or field("user id") is None', "a > 1", "len(b) < 3", 'a["b"] == 1', "b[0] == 1", 'a.matches("^a")'),
    'a in ["a", "ab", "abc", "aaaa", "b", "c", "d", "e", "f"]',
])  # fmt: skip
times = st.sampled_from(
    [
        None,
        ("s", {"type": "integer"}),
        ("ms", {"type": ["integer", "null"], "minimum": 0.5}),
        ("us", {"type": "integer", "maximum": 2}),
        ("s", {"type": ["number", "null"]}),
        ("s", {"type": "integer", "exclusiveMinimum": 0}),
        ("iso", {"type": "string"}),
    ]
)
NAMED = (*NAMES, "t")


def document(pairs: list[tuple[str, bytes]]) -> bytes:
    return b"{" + b",".join(msgspec.json.encode(name) + b":" + value for name, value in pairs) + b"}"


events = st.one_of(
    st.fixed_dictionaries({}, optional=dict.fromkeys(NAMED, values)).map(lambda event: document(list(event.items()))),
    st.lists(st.tuples(st.sampled_from([*NAMED, "other"]), values), max_size=4).map(document),
    values,
)


def check(schema: dict[str, Any], rule: str, id_: str | None, time: tuple[str, Any] | None, batch: list[bytes]) -> None:
    declared = schema["properties"]
    schema = schema | {"properties": declared | {name: True for name in NAMES if name not in declared}}
    contract = {"name": "c", "id": id_, "key": ["a"], "schema": schema, "rules": {"rule": rule}}
    del contract["key"]
    if id_ is not None:
        schema["required"] = [*schema.get("required", ()), *([id_] if id_ not in schema.get("required", ()) else ())]
        schema["properties"][id_] = {"type": "string"}
    if time is not None:
        schema["properties"]["t"] = time[1]
        contract |= {"time": "t", "time_unit": time[0]}
    assert outcome(contract, batch, fast=True) == outcome(contract, batch, fast=False)


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\x00b"])
def test_odd_names_of_fields_are_checked_as_others_are(name: str) -> None:
    inner = {"type": "object", "properties": {name: {"type": "integer"}}}
    for schema in (inner, {"type": "object", "properties": {"o": inner}}):
        contract = {"name": "c", "id": None, "schema": schema}
        batch = [msgspec.json.encode(value) for one in ({name: 1}, {name: "x"}) for value in (one, {"o": one})] * 5
        assert outcome(contract, batch, fast=True) == outcome(contract, batch, fast=False)


@pytest.mark.parametrize("depth", [0, 1])
def test_a_required_field_that_is_forbidden_is_never_taken(depth: int) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {}, "required": ["b"], "additionalProperties": False}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"b": schema}}
    contract = {"name": "c", "id": None, "schema": schema}
    batch = [b'{"b":{"b":""}}', b'{"b":""}', b"{}"] * 10
    assert outcome(contract, batch, fast=True) == outcome(contract, batch, fast=False)


@pytest.mark.slow
@settings(max_examples=examples(50, 150))
@given(schemas, rules, st.sampled_from([None, "b"]), times, st.lists(events, min_size=20, max_size=40))
def test_both_paths_agree(schema: dict[str, Any], rule: str, id_: str | None, time: tuple[str, Any] | None, batch: list[bytes]) -> None:
    check(schema, rule, id_, time, batch)


@pytest.mark.soak
@settings(max_examples=examples(400, 1500))
@given(schemas, rules, st.sampled_from([None, "b"]), times, st.lists(events, min_size=20, max_size=40))
def test_both_paths_agree_on_tens_of_thousands(
    schema: dict[str, Any], rule: str, id_: str | None, time: tuple[str, Any] | None, batch: list[bytes]
) -> None:
    check(schema, rule, id_, time, batch)


def contract_of(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "c", "id": None, "schema": {"type": "object", "properties": properties, **more}}


@pytest.mark.parametrize(
    ("contract", "why"),
    [
        (contract_of({"a": {}}, patternProperties={"^x": {"type": "string"}}), "patternProperties"),
        (contract_of({"a": {"not": {"type": "null"}}}), "'a' takes anything but null"),
        ({"name": "c", "id": None}, ""),
    ],
)
def test_what_has_no_fast_path_says_why(contract: dict[str, Any], why: str) -> None:
    loaded = load_contract(contract)
    if not why:
        loaded.fast_path()
        return
    with pytest.raises(NotFast, match=why):
        loaded.fast_path()


def test_the_usual_fields_are_taken_by_it() -> None:
    """A change that sends them all the slow way would be seen by nobody else."""
    fast = load_contract(
        contract_of(
            {
                "id": {"type": "string", "minLength": 1},
                "price": {"type": ["number", "null"], "exclusiveMinimum": 0},
                "at": {"type": "string", "format": "date-time"},
                "kind": {"enum": ["a", "b"]},
                "tags": {"type": "array", "items": {"type": "string"}},
                "user": {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}},
            },
            required=["id", "at"],
        )
    ).fast_path()
    event = fast.decode(b'{"id":"x","price":1.5,"at":"2026-11-01T04:00:00Z","kind":"a","tags":["t"],"user":{"id":1}}')
    assert fast.failing([event], []) == []
    assert getattr(event, fast.names["price"]) == 1.5
    assert fast.failing([event, fast.decode(b'{"id":"x","at":"yesterday"}')], []) == [1]
    for bad in (
        b'{"id":"","at":""}',
        b'{"at":""}',
        b'{"id":"x","at":"","price":0}',
        b'{"id":"x","at":"","user":{}}',
        b'{"id":"x","at":"","n":1}',
    ):
        with pytest.raises(msgspec.ValidationError):
            fast.decode(bad)


def test_events_with_other_fields_are_not_tried_twice_for_ever_and_one_of_them_decides_nothing() -> None:
    agent = ValidateTransform(load_contract(contract_of({"a": {"type": "integer"}})), None)
    odd: Any = Record(b'{"a":1,"other":2}', 0)
    assert agent.process([odd]) == [odd.value()]
    assert agent._fast is not None
    assert agent.process([odd] * 1_000) == [odd.value()] * 1_000
    assert agent._fast is None


@pytest.mark.parametrize(("rule", "event", "valid"), [
    ('id == a + ":" + b', {"id": "x:y", "a": "x", "b": "y"}, True),
    ('id == a + ":" + b + "" + "{}"', {"id": "x:{y}{}", "a": "x", "b": "{y}"}, True),
    ('id == a + ":" + b', {"id": "x:", "a": "x", "b": ""}, True),
    ('id == a + ":" + c', {"id": "x:None", "a": "x", "b": "", "c": None}, False),
    ('id == a + ":" + c', {"id": "x:z", "a": "x", "b": "", "c": "z"}, True),
    ('n + n == 4 and id == "p" + a', {"id": "px", "a": "x", "b": "", "n": 2}, True),
    ('id == (a + b).upper() + a', {"id": "XYx", "a": "x", "b": "y"}, True),
])  # fmt: skip
def test_a_sum_of_texts_is_what_it_is_one_by_one(rule: str, event: dict[str, Any], valid: bool) -> None:
    texts = {name: {"type": "string"} for name in ("id", "a", "b")}
    more = {"c": {"type": ["string", "null"]}, "n": {"type": "integer"}}
    contract = load_contract({
        "name": "sums", "id": None, "rules": {"sum": rule},
        "schema": {"type": "object", "required": list(texts), "properties": {**texts, **more}},
    })  # fmt: skip
    fast = contract.fast_path()
    taken = not fast.failing([fast.decode(msgspec.json.encode(event))], [])
    assert (taken, contract.checker()(event)) == (valid, valid)


def test_of_more_events_than_are_checked_at_once_each_keeps_its_place() -> None:
    contract = contract_of({"n": {"type": "integer", "minimum": 0}, "t": {"type": "integer"}})
    contract |= {"rules": {"odd": "n % 2 == 1 or n > 9"}, "time": "t", "time_unit": "s"}
    events = [{"n": i % 13 - 1, "t": 9**12 if i % 101 == 0 else i} for i in range(2_500)]
    events[1_234]["more"] = 1
    batch = [msgspec.json.encode(event) for event in events]
    (taken, report), plain = outcome(contract, batch, fast=True), outcome(contract, batch, fast=False)
    assert (taken, report) == plain
    good = [e["n"] >= 0 and (e["n"] % 2 == 1 or e["n"] > 9) and e["t"] < 9**12 for e in events]
    assert [output == value for output, value in zip(taken, batch, strict=True)] == good
    assert report["last_event"] == "1970-01-01T00:41:38.000000Z"
