"""What a record's own key says of a table's key: how a record that deletes names its row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from factory_agents.reject import Reject

__all__ = ["KeyColumn", "KeyReader"]

_UNFIT = (msgspec.MsgspecError, ValueError, TypeError, ArithmeticError, RecursionError)


class KeyColumn(msgspec.Struct, frozen=True):
    """A column of a table's key: ``read`` makes its value of JSON, and raises a Reject or a ValueError for what is none."""

    name: str
    shown: str
    text: bool
    read: Callable[[msgspec.Raw], Any]


class KeyReader:
    """Reads keys of records.

    A key is the one column's value, as text or JSON (a column of text takes it as it stands), or a JSON object or list of the columns'
    values. Each may be the ``payload`` of Kafka Connect's converter, beside its ``schema``.
    """

    def __init__(self, columns: Sequence[KeyColumn]) -> None:
        self._columns = tuple(columns)

    def read(self, key: bytes | None) -> list[Any]:
        """One value a column of the key; raises Reject for a key that doesn't say which row is meant."""
        if key is None:
            raise Reject("a record without a value and without a key: nothing says which row to delete", rule="key")
        try:
            return self._values(key)
        except (Reject, *_UNFIT) as error:
            why = error.reason if isinstance(error, Reject) else error
            said = f"expected {self._expected()}, got {key[:60]!r} ({why})"
            raise Reject(f"the key of a record that deletes: {said}", rule="key") from error

    def _values(self, key: bytes) -> list[Any]:
        parts = _parts(key)
        names = [c.name for c in self._columns]
        payload: msgspec.Raw | None = None
        if isinstance(parts, dict) and "payload" in parts and not set(names) <= parts.keys():
            payload = parts["payload"] if "schema" in parts else None
            parts = _parts(bytes(parts["payload"]))
        if isinstance(parts, dict) and set(names) <= parts.keys():
            return [c.read(parts[c.name]) for c in self._columns]
        if len(self._columns) > 1:
            if isinstance(parts, list) and len(parts) == len(names):
                return [c.read(part) for c, part in zip(self._columns, parts, strict=True)]
            raise ValueError("it is neither")
        return [self._only_value(key) if payload is None else self._columns[0].read(payload)]

    def _only_value(self, key: bytes) -> Any:
        column = self._columns[0]
        as_text = msgspec.Raw(msgspec.json.encode(key.decode()))
        if not column.text:
            try:
                return column.read(msgspec.Raw(key))
            except (Reject, *_UNFIT):
                pass
        return column.read(as_text)

    def _expected(self) -> str:
        names = ", ".join(c.name for c in self._columns)
        return self._columns[0].shown if len(self._columns) == 1 else f"a JSON object or list of {names}"


def _parts(key: bytes) -> Any:
    """A JSON object or list by its parts, None for anything else."""
    types: dict[bytes, Any] = {b"{": dict[str, msgspec.Raw], b"[": list[msgspec.Raw]}
    try:
        return msgspec.json.decode(key, type=types[key[:1]])
    except (KeyError, *_UNFIT):
        return None
