"""The compiled plans make of Protobuf messages and events what Protobuf's own JSON code makes of them, or refuse what it guesses."""

from __future__ import annotations

import base64
import json
import math
import struct
from decimal import Decimal
from typing import Any

import pytest
from confluent_kafka.schema_registry.confluent.type import decimal_pb2
from confluent_kafka.schema_registry.confluent.type.decimal_utils import from_proto_decimal
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from factory_agents.codecs.base import from_json
from factory_agents.codecs.protobuf_types import WRAPPERS, map_parts, plain
from factory_agents.codecs.protobuf_writing import parser
from tests.support.protobuf import class_of, field, file, map_entry, message
from tests.support.soak import examples

IMPORTS = [f"google/protobuf/{name}.proto" for name in ("timestamp", "duration", "struct", "wrappers")]
SCALARS = ("double", "float", "int32", "int64", "uint32", "uint64", "sint32", "sint64", "fixed32", "sfixed64", "bool", "string", "bytes")
WRAPPED = ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
_FIELDS = [
    *((name, name) for name in SCALARS),
    *((f"maybe_{name}", name) for name in ("int64", "string", "bool")),
    *((f"wrapped_{name}", f".google.protobuf.{name}Value") for name in WRAPPED),
    ("kind", "enum .shop.Kind"),
    ("inner", ".shop.Every.Inner"),
    ("at", ".google.protobuf.Timestamp"),
    ("took", ".google.protobuf.Duration"),
    ("more", ".google.protobuf.Struct"),
    ("any_value", ".google.protobuf.Value"),
    ("nothing", "enum .google.protobuf.NullValue"),
    ("next", ".shop.Every"),
]
_LISTS = [
    *(("many_" + name, name) for name in ("int64", "string", "bytes", "float")),
    *(("kinds", "enum .shop.Kind"), ("inners", ".shop.Every.Inner"), ("ats", ".google.protobuf.Timestamp")),
]
_MAPS = [
    *(("Texts", "string", "string"), ("Numbers", "int32", "uint64"), ("Flags", "bool", "int64"), ("Kinds", "string", "enum .shop.Kind")),
    *(("Inners", "int64", ".shop.Every.Inner"), ("Ats", "string", ".google.protobuf.Timestamp")),
]
_NUMBERED = [
    *(field(name, n, type_, optional=name.startswith("maybe_")) for n, (name, type_) in enumerate(_FIELDS, 1)),
    *(field(name, n, type_, repeated=True) for n, (name, type_) in enumerate(_LISTS, 101)),
    *(field(f"map{name}", n, f".shop.Every.Map{name}Entry", repeated=True) for n, (name, _, _) in enumerate(_MAPS, 201)),
]
_EITHER = [field("this", 301, "int32"), field("that", 302, ".shop.Every.Inner"), field("other", 303, ".google.protobuf.Struct")]
_MADE = message(
    "Every",
    *_NUMBERED,
    *_EITHER,
    nested=[
        message("Inner", field("a", 1, "sint32"), field("from", 2, "bytes"), field("at", 3, ".google.protobuf.Timestamp")),
        *(map_entry(f"Map{name}Entry", key, value) for name, key, value in _MAPS),
    ],
    either=["this", "that", "other"],
)
EVERY = class_of(file(_MADE, imports=IMPORTS, Kind=["A", "B"]), "shop.Every")
CLOSED = class_of(
    file(
        message(
            "Old",
            field("id", 1, "int32", required=True),
            field("kind", 2, "enum .shop.Kind"),
            field("kinds", 3, "enum .shop.Kind", repeated=True),
        ),
        syntax="proto2",
        Kind=["A", "B"],
    ),
    "shop.Old",
)

numbers = st.one_of(
    st.sampled_from(
        [0, 1, -1, 1.0, 1.5, -0.0, 2**31 - 1, 2**31, -(2**31) - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30]
    ),
    st.sampled_from([3.4028234663852886e38, 3.4028235677973366e38, 3.5e38, 1e-45, 5e-324, 1.7976931348623157e308]),
    st.integers(-(2**63), 2**64),
    st.floats(allow_nan=False, allow_infinity=False),
)
texts = st.one_of(
    st.sampled_from(
        ["", "A", "B", "Z", "1", "-1", "1.0", "1.5", "1_0", " 1", "1e3", "NaN", "nan", "inf", "Infinity", "-Infinity", "true", "\0", "é😀"]
    ),
    st.sampled_from(["AP8=", "AP8", "AP9=", "-_8=", "+/8=", "a", "====", "hello wörld!", "!!!!", "YQ==YQ==", "YQ=a"]),
    st.sampled_from(["2026-11-01T04:00:00Z", "2026-11-01T04:00:00.1Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z"]),
    st.sampled_from(
        ["2026-11-01T04:00:00+01:00", "0000-01-01T00:00:00Z", "2026-13-01T00:00:00Z", "2026-11-01T23:59:60Z", "2026-11-01 04:00:00Z"]
    ),
    st.sampled_from(["1.5s", "1969-12-31T23:59:59.000000001Z", "2026-11-01T04:00:00.1234567891Z"]),
    st.text(max_size=3),
    st.binary(max_size=5).map(lambda b: base64.b64encode(b).decode()),
)
anything = st.recursive(
    st.one_of(numbers, texts, st.booleans(), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["a", "from", "at", "b", "true", "1", "01", "-1", "int64", "next", "any_value"]), inner, max_size=3
        ),
    ),
    max_leaves=5,
)
_instants = st.builds(
    lambda s, n: {"seconds": s, "nanos": n}, st.integers(-62135596800, 253402300799), st.sampled_from([0, 1, 10, 10**6, 123000, 10**9 - 1])
)
_inners = st.fixed_dictionaries({}, optional={"a": st.integers(-9, 9), "from": st.binary(max_size=3), "at": _instants})
_ranges = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1), "uint32": (0, 2**32 - 1), "uint64": (0, 2**64 - 1)}
_of_scalar: dict[str, st.SearchStrategy[Any]] = {
    **{kind: st.integers(*limits) for kind, limits in _ranges.items()},
    **{
        kind: st.integers(*_ranges[as_])
        for kind, as_ in {"sint32": "int32", "sint64": "int64", "fixed32": "uint32", "sfixed64": "int64"}.items()
    },
    "double": st.floats(),
    "float": st.floats(width=32),
    "bool": st.booleans(),
    "string": st.text(max_size=3),
    "bytes": st.binary(max_size=4),
}


def _given(type_: str) -> st.SearchStrategy[Any]:
    """What a message's class takes for a field."""
    if type_ in _of_scalar:
        return _of_scalar[type_]
    known = {"enum .shop.Kind": st.integers(0, 3), ".shop.Every.Inner": _inners, ".google.protobuf.Timestamp": _instants}
    if type_ in known:
        return known[type_]
    name = type_.rpartition(".")[2].removesuffix("Value").lower()
    return _of_scalar[name].map(lambda value: {"value": value})


_skipped = ("took", "more", "any_value", "nothing", "next")
messages = st.fixed_dictionaries(
    {},
    optional={
        **{name: _given(type_) for name, type_ in _FIELDS if name not in _skipped},
        **{name: st.lists(_given(type_), max_size=2) for name, type_ in _LISTS},
        **{f"map{name}": st.dictionaries(_given(key), _given(value), max_size=2) for name, key, value in _MAPS},
        "took": _instants.map(lambda t: {"seconds": t["seconds"] // 10, "nanos": 0}),
        "next": st.fixed_dictionaries({"int64": _of_scalar["int64"]}),
    },
)


def expected(descriptor: Descriptor, shown: dict[str, Any]) -> dict[str, Any]:
    """An event as the documents promise it, of what Protobuf's own JSON code shows."""
    return {of.name: _expected_field(of, shown[of.name]) if of.name in shown else None for of in descriptor.fields}


def _expected_field(of: FieldDescriptor, value: Any) -> Any:
    if parts := map_parts(of):
        return {key: _expected_one(parts[1], one) for key, one in value.items()}
    return [_expected_one(of, one) for one in value] if of.is_repeated else _expected_one(of, value)


def _expected_one(of: FieldDescriptor, value: Any) -> Any:
    if of.message_type is not None and of.message_type.full_name in WRAPPERS:
        of = of.message_type.fields_by_name["value"]
    if of.message_type is not None:
        return value if of.message_type.full_name.startswith("google.protobuf.") else expected(of.message_type, value)
    if of.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64):
        return int(value)
    if of.cpp_type == FieldDescriptor.CPPTYPE_FLOAT:  # shown with as few digits as tell it from its neighbours of 32 bits
        return struct.unpack("f", struct.pack("f", float(value)))[0]
    if of.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        return float(value)
    return "NULL_VALUE" if value is None else value


def comparable(value: Any) -> Any:
    """Numbers that are none are equal, zeros only with the same sign, and bytes are as in JSON."""
    if isinstance(value, dict):
        return {key: comparable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [comparable(one) for one in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return repr(value) if isinstance(value, float) else value


@settings(max_examples=examples(40, 1_000))
@given(messages)
def test_a_message_is_read_as_protobufs_own_json_says_with_numbers_for_numbers(fields: dict[str, Any]) -> None:
    made = EVERY.FromString(EVERY(**fields).SerializeToString())
    shown = MessageToDict(made, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    event = plain(EVERY.DESCRIPTOR)(made)
    assert list(event) == [of.name for of in EVERY.DESCRIPTOR.fields]
    assert comparable(event) == comparable(expected(EVERY.DESCRIPTOR, shown))


def outcome(parse: Any, text: bytes) -> Any:
    try:
        return parse(text)
    except (ParseError, TypeError) as error:
        return str(error)


every, closed = parser(EVERY), parser(CLOSED)
GUESSED = ("expected base64", "expected a number", "expected an object", "Invalid enum value", "it is given twice")


@settings(max_examples=examples(100, 3_000))
@given(
    st.one_of(
        st.dictionaries(st.sampled_from([of.name for of in EVERY.DESCRIPTOR.fields]), anything, max_size=3),
        st.dictionaries(st.sampled_from([of.json_name for of in EVERY.DESCRIPTOR.fields] + ["[x]", "é"]), anything, max_size=3),
        messages.map(lambda fields: {k: v for k, v in plain(EVERY.DESCRIPTOR)(EVERY(**fields)).items() if v is not None}),
        anything,
    )
)
@example({"more": [], "took": []})
def test_what_an_event_becomes_is_what_protobufs_own_reader_makes_of_it_or_refused(event: Any) -> None:
    text = json.dumps(event, default=lambda raw: base64.b64encode(raw).decode()).encode()
    try:
        given_ = from_json(text)
    except ValueError:  # a number that is none
        return
    for class_, parse in ((EVERY, every), (CLOSED, closed)):
        theirs = outcome(lambda _, class_=class_: ParseDict(given_, class_()), text)
        ours = outcome(parse, text)
        if isinstance(ours, str) and any(why in ours for why in GUESSED):
            continue
        assert ours == theirs
        if not isinstance(ours, str):  # which NaN, and whether 0 has a sign, the comparison does not see
            assert ours.SerializePartialToString(deterministic=True) == theirs.SerializePartialToString(deterministic=True)


@pytest.mark.parametrize(
    ("event", "says"),
    [
        ({"kind": 1.7}, "Invalid enum value 1.7 for enum type shop.Kind"),
        ({"kind": True}, "Invalid enum value True"),
        ({"kinds": ["A", 1.0]}, "Invalid enum value 1.0"),
        ({"mapKinds": {"x": "1_0"}}, "Invalid enum value 1_0"),
        ({"bytes": "hello world!"}, "bytes field: expected base64, got 'hello world!'"),
        ({"wrapped_Bytes": "!!!!"}, "expected base64"),
        ({"inners": [{"from": "a !!b c"}]}, "expected base64"),
        ({"int64": "1_0"}, "expected a number, got '1_0'"),
        ({"double": "inf"}, "expected a number"),
        ({"manyInt64": ["1"], "many_int64": [2]}, "it is given twice, as manyInt64 and as many_int64"),
        ({"inner": []}, "inner field: expected an object, got '[]'"),
        ({"inners": [""]}, "inners field: expected an object, got ''"),
        ([], "expected an object, got '[]'"),
    ],
)
def test_what_protobufs_reader_would_guess_is_refused(event: Any, says: str) -> None:
    ParseDict(event, EVERY())
    with pytest.raises(ParseError) as refused:
        every(json.dumps(event).encode())
    assert says in str(refused.value)


def test_what_the_plan_does_not_take_goes_on_to_protobufs_reader_as_before() -> None:
    event = {
        "manyInt64": ["1"],
        "maybe_int64": "-5",
        "double": "NaN",
        "bytes": "-_8",
        "any_value": None,
        "mapFlags": {"true": 1},
        "at": "2026-11-01T04:00:00+01:00",
    }
    made = every(json.dumps(event).encode())
    assert (list(made.many_int64), made.maybe_int64, made.bytes, made.any_value.WhichOneof("kind")) == ([1], -5, b"\xfb\xff", "null_value")
    assert (made.mapFlags[True], made.at.seconds, math.isnan(made.double)) == (1, 1793502000, True)
    with pytest.raises(ParseError, match="oneof"):
        every(b'{"this": 1, "other": {}}')
    assert every(b'{"this": 1, "other": null}').WhichOneof("either") == "this"


_DECIMAL_FILE = FileDescriptorProto.FromString(decimal_pb2.DESCRIPTOR.serialized_pb)
PRICED = class_of(
    file(
        message(
            "Priced",
            field("price", 1, ".confluent.type.Decimal"),
            field("prices", 2, ".confluent.type.Decimal", repeated=True),
            field("by_name", 3, ".shop.Priced.ByNameEntry", repeated=True),
            field("n", 4, "int64"),
            nested=[map_entry("ByNameEntry", "string", ".confluent.type.Decimal")],
        ),
        imports=[_DECIMAL_FILE.name],
    ),
    "shop.Priced",
    _DECIMAL_FILE,
)
priced = parser(PRICED)
decimals = st.builds(lambda digits, exponent: Decimal(f"{digits}E{exponent}"), st.integers(-(10**40), 10**40), st.integers(-50, 5))


@settings(max_examples=examples(40, 1_000))
@given(st.lists(decimals, min_size=1, max_size=3), st.booleans(), st.booleans())
def test_a_decimal_keeps_every_digit_both_ways_as_confluents_own(numbers: list[Decimal], as_text: bool, planned: bool) -> None:
    shown = [f'"{number}"' if as_text else str(number) for number in numbers]
    n = "5" if planned else '"5"'
    event = f'{{"price": {shown[0]}, "prices": [{", ".join(shown)}], "by_name": {{"a": {shown[-1]}}}, "n": {n}}}'
    made = priced(event.encode())
    assert [from_proto_decimal(one).as_tuple() for one in made.prices] == [number.as_tuple() for number in numbers]
    read = plain(PRICED.DESCRIPTOR)(PRICED.FromString(made.SerializeToString()))
    assert [one.as_tuple() for one in read["prices"]] == [number.as_tuple() for number in numbers]
    assert (read["price"], read["by_name"], read["n"]) == (numbers[0], {"a": numbers[-1]}, 5)


@pytest.mark.parametrize("value", ['"x"', '"NaN"', "true", "[1]", '{"value": "!!"}', '{"value": "AA==", "digits": 2}'])
def test_what_is_no_decimal_is_refused(value: str) -> None:
    with pytest.raises(ParseError, match=r"(price|value) field"):
        priced(f'{{"price": {value}}}'.encode())
    assert priced(b'{"price": {"value": "AQ==", "scale": 1}}').price.scale == 1
