"""What is taken for a ``traceparent``: whoever writes records can write anything there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_agents.telemetry import TraceContext, parse_traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize("value", [GOOD, GOOD.encode(), f"cc-{TRACE}-{SPAN}-01-what-may-come"])
def test_one_names_a_span(value: str | bytes) -> None:
    assert parse_traceparent(value) == TraceContext(TRACE, SPAN, True)


def test_one_may_say_that_it_is_not_recorded() -> None:
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-02") == TraceContext(TRACE, SPAN, False)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        b"",
        "00",
        GOOD.upper(),
        GOOD + "-",
        GOOD + "\n",
        f" {GOOD}",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00-{TRACE[:-1]}٣-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01-" + "x" * 10_000_000,
        b"\xff" * 55,
    ],
)
def test_anything_else_is_none(value: str | bytes | None) -> None:
    assert parse_traceparent(value) is None


@given(st.binary(max_size=80) | st.text(max_size=80))
def test_nothing_raises(value: str | bytes) -> None:
    assert parse_traceparent(value) is None


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_what_is_written_is_read(trace: int, span: int, sampled: bool) -> None:
    context = TraceContext(f"{trace:032x}", f"{span:016x}", sampled)
    assert parse_traceparent(context.text) == context
