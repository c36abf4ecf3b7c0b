"""Numbers that a float cannot hold keep their digits on their way through an agent that leaves them alone."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from factory_agents.runtime.agents import FunctionTransform, Output, Reject, agent
from factory_agents.runtime.numbers import Digits

LONG = [
    "12345678901234567.89",
    "100000000000000000000000.5",
    "-0.1234567890123456789",
    "0.10000000000000001",
    "9007199254740993e0",
    "9007199254740993.0",
    "1e-400",
    "4.9E-324",
    "1.7976931348623157e308",
    "123456789012345678901234567890",
]


def message(value: bytes | None) -> Any:
    return Message(topic="t", partition=0, offset=0, value=value)


def through(function: Callable[..., Any], values: Sequence[bytes], **options: Any) -> list[Output]:
    """What an agent makes of records, given twice: what the first batch holds decides how the second is looked at."""
    transform: FunctionTransform = agent(**options)(function).bind({})
    outputs = transform.process([message(value) for value in values])
    again = transform.process([message(value) for value in values])
    assert [str(output) for output in again] == [str(output) for output in outputs]
    return outputs


@pytest.mark.parametrize("number", LONG)
def test_a_number_that_is_left_alone_keeps_its_digits(number: str) -> None:
    value = b'{"a":%s,"b":[{"c":%s}],"d":1.5}' % (number.encode(), number.encode())
    assert through(lambda event: event, [b'{"x":0.5}', value]) == [b'{"x":0.5}', value]
    many = b'{"x":[0.5,0.25,0.125,1.5,2.5,3.5]}'
    assert through(lambda event: event, [many, value]) == [many, value]
    assert through(lambda events: events, [b'{"x":0.5}', value], batch=True) == [b'{"x":0.5}', value]
    plain = b'{"a":%s}' % number.encode()
    for form in ("numpy", "arrow") if not number.isdigit() else ():  # Arrow has no such integers
        assert through(lambda columns: {"a": columns["a"]}, [plain], batch=form) == [plain]
    assert through(lambda event: [event], [value]) == [[value]]
    assert through(lambda event: {"moved": event["b"], "n": 1}, [value]) == [b'{"moved":[{"c":%s}],"n":1}' % number.encode()]
    assert through(lambda event: event, [value], key="a") == [(number.encode(), value)]


@dataclass
class Point:
    a: float


class Place(msgspec.Struct):
    a: Any


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda event: OrderedDict(event), '{"a":%s}'),  # an agent needs a signature
        (lambda event: defaultdict(int, event), '{"a":%s}'),
        (lambda event: {"b": Point(event["a"])}, '{"b":{"a":%s}}'),
        (lambda event: {"b": Place([event["a"]])}, '{"b":{"a":[%s]}}'),
        (lambda event: {"b": (event["a"],)}, '{"b":[%s]}'),
        (lambda event: {"b": {event["a"]}}, '{"b":[%s]}'),
    ],
)
def test_it_does_so_in_whatever_the_agent_puts_it(make: Callable[[dict[str, Any]], Any], expected: str) -> None:
    number = "12345678901234567.89"
    assert through(make, [f'{{"a":{number}}}'.encode()]) == [(expected % number).encode()]


def test_the_agent_sees_floats_and_what_it_computes_is_its_own() -> None:
    seen = []

    def double(event: dict[str, Any]) -> dict[str, Any]:
        seen.append(type(event["a"]))
        return {"a": event["a"] * 1, "b": event["a"]}

    value = b'{"a":12345678901234567.89}'
    assert through(double, [value]) == [b'{"a":1.2345678901234568e16,"b":12345678901234567.89}']
    assert set(seen) == {float}


def test_a_batch_that_is_tried_again_in_halves_keeps_them_too() -> None:
    def picky(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if any(event.get("bad") for event in events):
            raise ValueError("bad")
        return events

    values = [b'{"a":12345678901234567.89}', b'{"bad":true}', b'{"a":0.10000000000000001}']
    first, bad, last = through(picky, values, batch=True)
    assert isinstance(bad, Reject)
    assert [first, last] == [values[0], values[2]]


def test_a_number_that_is_none_is_rejected_as_no_json() -> None:
    outputs = FunctionTransform(agent(lambda event: event), {}).process([message(b'{"a":1e400}'), message(b'{"a":-1e999}')])
    assert [output.rule for output in outputs if isinstance(output, Reject)] == ["decode", "decode"]


_DIGITS = st.text("0123456789", min_size=1, max_size=25)
_NUMBERS = st.builds(
    lambda minus, whole, fraction, exponent: f"{minus}{whole.lstrip('0') or '0'}{fraction}{exponent}",
    st.sampled_from(["", "-"]),
    _DIGITS,
    st.just("") | _DIGITS.map(".{}".format),
    st.just("") | st.integers(-330, 280).map("e{}".format) | st.integers(-9, 9).map("E{:+}".format),
)


@given(st.lists(_NUMBERS, max_size=8), st.booleans())
def test_no_digit_of_any_number_is_lost(numbers: list[str], seen_before: bool) -> None:
    value = f'{{"text":"e-7 12345678901234567","n":[{",".join(numbers)}]}}'.encode()
    digits = Digits()
    if seen_before:
        digits.decode(b"[0.5,0.5,0.5]")
    event = digits.decoder([b"{}", value, None])(value)
    assert event == json.loads(value)
    written = msgspec.json.Decoder(float_hook=Decimal).decode(digits.encode(event))
    assert [Decimal(n) for n in written["n"]] == [Decimal(n) for n in numbers]


@pytest.mark.parametrize(("numbers", "calls"), [([1], 0), ([0.25], 1), ([0.25] * 20, 0)], ids=["none", "few", "many"])
def test_a_record_costs_a_call_in_python_only_where_its_fractions_are_few(numbers: list[float], calls: int) -> None:
    values: list[bytes | None] = [json.dumps({"id": i, "n": numbers}).encode() for i in range(1000)]
    digits = Digits()
    for value in map(digits.decoder(values), values):  # by which it learns how many fractions there are
        assert value
    seen: list[str] = []
    look = digits.decoder(values)
    sys.setprofile(lambda frame, event, of: seen.append(frame.f_code.co_name) if event == "call" else None)
    try:
        for value in values:
            digits.encode(look(value))
    finally:
        sys.setprofile(None)
    assert seen.count("_float") == calls * len(values)
    assert set(seen) <= {"_float", "encode"}
