"""How a codec is named, and what its events may hold."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from factory_agents.codecs import codec_ref
from factory_agents.codecs.base import to_json
from factory_agents.errors import ConfigurationError
from factory_agents.protocol import CodecRef
from factory_agents.reject import Reject


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("json", None),
        ({"name": "json"}, None),
        ("avro", CodecRef("avro")),
        ("avro?version=3&subject=a-value", CodecRef("avro", {"version": "3", "subject": "a-value"})),
        ({"name": "avro", "version": 3}, CodecRef("avro", {"version": 3})),
        ("my.codecs:Xml?root=%3B", CodecRef("my.codecs:Xml", {"root": ";"})),
    ],
)
def test_a_codec_is_named_by_a_text_or_a_mapping(given: Any, named: CodecRef | None) -> None:
    assert codec_ref(given) == named


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("", "--input-codec: the codec has no name; expected json, avro or your own as module:Class, got ''"),
        ({"version": 3}, "--input-codec: the codec has no name"),
        (7, "--input-codec: expected a codec's name, such as avro, or a mapping with name and options, got 7"),
        ("json?a=b", "--input-codec: json takes no options, got a"),
        ("avro?", r"--input-codec: expected name\?option=value&option=value, got 'avro\?'"),
    ],
)
def test_what_names_no_codec_is_one_line(given: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        codec_ref(given, "--input-codec")


def test_decimals_times_ids_and_bytes_are_json_with_all_their_digits() -> None:
    event = {
        "price": Decimal("12345678901234567890.10"),
        "at": datetime(2026, 11, 1, 4, tzinfo=UTC),
        "day": date(2026, 11, 1),
        "id": UUID(int=1),
        "raw": b"\x00\xff",
        "none": None,
    }
    text = to_json(event)
    assert b'"price":12345678901234567890.10' in text
    assert json.loads(text) | {"price": 0} == {
        "price": 0,
        "at": "2026-11-01T04:00:00Z",
        "day": "2026-11-01",
        "id": "00000000-0000-0000-0000-000000000001",
        "raw": "AP8=",
        "none": None,
    }


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [lambda n: {"a": n}, lambda n: {"a": {"b": [1, {"c": n}]}}])
def test_a_number_that_is_none_is_no_null(number: float, place: Any) -> None:
    with pytest.raises(Reject, match=f"a number is {number}, which JSON cannot say"):
        to_json(place(number))


@pytest.mark.parametrize("event", [[], None, "x", {"a": object()}])
def test_what_json_cannot_say_is_rejected(event: Any) -> None:
    with pytest.raises(Reject):
        to_json(event)
