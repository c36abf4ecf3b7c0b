"""Codecs as users write them: ``tests.support.codecs:Pairs``."""

from __future__ import annotations

from typing import Any

from factory_agents.codecs import Codec
from factory_agents.reject import Reject


class Pairs(Codec):
    """``event_id=1;text=event 1``; its records carry a header that says so."""

    headers = (("pairs", b"1"),)

    def __init__(self, separator: str = ";") -> None:
        self._separator = separator

    def decode(self, value: bytes, headers: list[tuple[str, bytes | None]]) -> dict[str, Any]:
        pairs = [pair.partition("=") for pair in value.decode().split(self._separator)]
        if not all(equals for _, equals, _ in pairs):
            raise Reject("expected name=value", rule="pairs")
        return {name: int(text) if text.isdecimal() else text for name, _, text in pairs}

    def encode(self, event: dict[str, Any]) -> bytes:
        if any(isinstance(value, dict) for value in event.values()):
            raise Reject("a value in a value", rule="pairs")
        return self._separator.join(f"{name}={value}" for name, value in event.items()).encode()


class Pinned(Pairs):
    """Finds something out when it is made, once for a piece of work."""

    found = 0

    def __init__(self, pinned: dict[str, Any]) -> None:
        super().__init__()
        Pinned.found += not pinned
        self.pinned = pinned or {"found": Pinned.found}
        self.identity = self.pinned


class Unfinished(Codec):
    """Can neither read nor write."""


class Broken(Pairs):
    """Raises what no codec should."""

    def decode(self, value: bytes, headers: list[tuple[str, bytes | None]]) -> dict[str, Any]:
        raise KeyError("not today")


class NoCodec:
    """Is none."""
