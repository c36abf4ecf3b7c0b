"""Numbers that a float holds, and others."""

from __future__ import annotations

from decimal import Decimal

import msgspec
import pytest

from factory_agents.digits import exact_number, only_same


@pytest.mark.parametrize(
    "text", ["0.1", "0.10", "1e2", "-0.0", "5e-324", "9007199254740992.0", "1.7976931348623157e308", "0.30000000000000004"]
)
def test_a_float_that_is_the_same_number_is_taken(text: str) -> None:
    assert exact_number(text) == only_same(text) == float(text)
    assert type(exact_number(text)) is float


@pytest.mark.parametrize("text", ["0.10000000000000000001", "9007199254740993.0", "1e-400", "99999999999999999.99"])
def test_where_a_float_is_another_number_a_decimal_is_the_same(text: str) -> None:
    assert exact_number(text) == Decimal(text)
    with pytest.raises(msgspec.ValidationError):
        only_same(text)


def test_exponents_beyond_all_bounds_are_refused() -> None:
    assert exact_number("1e400") == float("inf")
    with pytest.raises(ValueError, match="exponent"):
        exact_number("1e-99999999999999999999")
    with pytest.raises(msgspec.ValidationError, match="out of range"):
        only_same("1e400")
