"""Numbers with a fraction or an exponent, of which a float may not hold every digit."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

__all__ = ["SURE_LEAST", "SURE_LENGTH", "SURE_MOST", "differs", "exact_number", "only_same", "to_json", "whole_bound", "with_floats"]

SURE_LENGTH, SURE_LEAST, SURE_MOST = 17, 1e-290, 1e290
"""A shorter text of a number of such a size is the same number after float and back."""

to_json = msgspec.json.Encoder(decimal_format="number").encode
"""Decimals become numbers, with all their digits."""


def differs(text: str, number: float) -> bool:
    """Whether the float is another number than the text; ValidationError where it is none at all."""
    if number in (float("inf"), float("-inf")):
        raise msgspec.ValidationError("Number out of range")
    try:
        return Decimal(text) != Decimal(repr(number))
    except InvalidOperation:  # an exponent beyond all bounds
        return True


def only_same(text: str) -> float:
    """The float that is the same number as a text; ValidationError where there is none."""
    number = float(text)
    if len(text) < SURE_LENGTH and SURE_LEAST < abs(number) < SURE_MOST:
        return number
    if repr(number) != text and differs(text, number):
        raise msgspec.ValidationError("more digits than a float holds")
    return number


def with_floats(value: Any) -> Any:
    """The same data with floats for decimals."""
    if isinstance(value, dict):
        return {key: with_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_floats(item) for item in value]
    return float(value) if isinstance(value, Decimal) else value


def exact_number(text: str) -> float | Decimal:
    """A float where one is the same number as a text (or is infinite), else a decimal. ValueError for an exponent beyond all bounds."""
    number = float(text)
    if len(text) < SURE_LENGTH and SURE_LEAST < abs(number) < SURE_MOST:
        return number
    try:
        return Decimal(text) if abs(number) < float("inf") and differs(text, number) else number
    except InvalidOperation as error:
        raise ValueError("an exponent beyond all bounds") from error


def whole_bound(value: Any) -> Any:
    """A number of a schema as an integer, where it has no fraction: the validator compares every digit with an integer alone.

    One past 2^53 stays as it is: of these it sees as much as a float holds.
    """
    return int(value) if type(value) is float and value.is_integer() and abs(value) <= 2**53 else value
