"""Numbers of events that a float cannot hold: agents see floats, and what they leave as it was keeps its digits.

What it costs, as measured: nothing where events hold no fractions, a call in Python for each where they are few, one look at the bytes
(some nanoseconds for three of them) where they are many, and about a microsecond a number of more digits than a float holds for certain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, TypeAlias

import msgspec

from factory_agents.digits import SURE_LEAST, SURE_LENGTH, SURE_MOST, differs

__all__ = ["Digits", "Kept", "decode_exact", "hold_long_numbers", "whole_number"]

Kept: TypeAlias = "dict[int, tuple[float, str]]"
"""Floats that are not what stood in the JSON, and that, by their identity."""

_ALIKE = bytes(
    ord("0") if chr(c) in "0123456789." else ord("e") if chr(c) in "eE" else c if chr(c) == "-" else ord(" ") for c in range(256)
)
"""Makes the characters of numbers alike: a float holds no more than 15 digits for certain, and no exponent of three."""
_PLAIN = frozenset({str, int, bool, type(None)})
_MANY = 2
"""From so many fractions a record on, a look at the bytes costs less than a call for each of them."""
_LONGEST_WHOLE = 30
"""Digits that no whole number of a column has."""

decode_exact = msgspec.json.Decoder(float_hook=Decimal).decode
"""JSON with every number that is no integer as a decimal: no digit passes through a float."""


def whole_number(value: Any) -> Any:
    """A decimal without a fraction as an integer (1.0, 1e2), anything else as it is; ValidationError for one that has a fraction."""
    if type(value) is not Decimal:
        return value
    if not value:
        return 0
    if abs(value.adjusted()) > _LONGEST_WHOLE or (whole := int(value)) != value:
        raise msgspec.ValidationError("Expected `int`, got `float`")
    return whole


class Digits:
    """Decodes events, and encodes them with the digits of the numbers that were left as they came.

    A float that an agent passes on, wherever it puts it, is known by its identity; one that it computes is a new one.
    """

    def __init__(self) -> None:
        self.kept: Kept = {}
        self._plain = msgspec.json.Decoder().decode
        self._exact = msgspec.json.Decoder(float_hook=self._float).decode
        self._encode = msgspec.json.Encoder().encode
        self._fractions = self._records = 0

    def decoder(self, values: Sequence[bytes | None]) -> Callable[[Any], Any]:
        """What decodes these values. What was kept of earlier ones is forgotten."""
        self.kept.clear()
        if self._fractions > _MANY * self._records and not hold_long_numbers(values):
            return self._plain
        self._records += len(values)
        return self._exact

    def decode(self, value: bytes | str) -> Any:
        """One value; what has to be kept of it is added to what is."""
        return self._exact(value)

    def exact(self, value: bytes, event: Any) -> Any:
        """A value with decimals in the place of floats, where one that was decoded as floats has other numbers; else None."""
        again = self._encode(event)
        if again == value or again == value.replace(b", ", b",").replace(b": ", b":"):
            return None
        self.kept.clear()
        self.decode(value)
        return decode_exact(value) if self.kept else None

    def taken(self) -> Kept:
        """What was kept so far, for whoever keeps the values; nothing is from here on."""
        kept, self.kept = self.kept, {}
        return kept

    def copy(self, value: Any) -> Any:
        """A copy of a value, made new in all its parts."""
        return self.decode(self.encode(value)) if self.kept else self._plain(self._encode(value))

    def encode(self, value: Any) -> bytes:
        """JSON, with the digits that were kept."""
        return self._encode(self._restored(value) if self.kept else value)

    def _float(self, text: str) -> float:
        self._fractions += 1
        number = float(text)
        if len(text) < SURE_LENGTH and SURE_LEAST < abs(number) < SURE_MOST:
            return number
        if repr(number) != text and differs(text, number):
            self.kept[id(number)] = (number, text)
        return number

    def _restored(self, value: Any) -> Any:
        kind = type(value)
        if kind is float:
            kept = self.kept.get(id(value))
            return value if kept is None else msgspec.Raw(kept[1].encode())
        if kind is dict:
            return {key: self._restored(item) for key, item in value.items()}
        if kind is list:
            return [self._restored(item) for item in value]
        return value if kind in _PLAIN else self._restored_of(value)

    def _restored_of(self, value: Any) -> Any:
        """The same of what agents seldom give: dataclasses, structs, tuples, sets, and kinds of dicts of their own."""
        if isinstance(value, msgspec.Struct) or hasattr(type(value), "__dataclass_fields__"):
            value = msgspec.to_builtins(value)
        if isinstance(value, dict):
            return self._restored(dict(value))
        if isinstance(value, (list, tuple, set, frozenset)):
            return self._restored(list(value))
        return value


def hold_long_numbers(values: Sequence[bytes | None]) -> bool:
    """Whether there may be numbers in some JSON that a float doesn't hold for certain."""
    alike = b"\n".join(filter(None, values)).translate(_ALIKE)
    if b"0" * 16 in alike and (b"0" * 17 in alike or b"0" * 16 + b"e" in alike):
        return True
    return b"e-000" in alike
