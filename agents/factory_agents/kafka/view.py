"""What a reader keeps of the ledger's records that it has passed, and where it stands, so that it can go on from there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TypeAlias, TypeVar, cast

import msgspec

from factory_agents.errors import ConfigurationError
from factory_agents.kafka.records import KINDS, LedgerRecord, decode_record, kind_of

__all__ = ["ABOUT_PLANS", "EVERYTHING", "Follower", "LedgerView", "Wanted"]

Wanted: TypeAlias = tuple[bytes, ...]
"""Which records a reader needs: what their keys begin with."""

EVERYTHING: Wanted = (b"",)

ABOUT_PLANS: Wanted = tuple(f"{kind}|".encode() for kind in KINDS if kind not in ("stage", "failure", "attempt", "alert", "verdict"))
"""What planners need: cuts and plans, not what stages did, which are most of a ledger."""

_Record = TypeVar("_Record", bound=LedgerRecord)


class Follower(ABC):
    """Takes a ledger's records one after the other, each once; ``Ledger.read`` goes on where it stands.

    ``positions`` are by partition, of the topic with this id: of another one it begins again. ``begins`` is what the keys begin with of
    which it may need the records: it need not be given others.
    """

    begins: Wanted = EVERYTHING

    def __init__(self) -> None:
        self.topic_id = ""
        self.positions: dict[int, int] = {}
        self.read_at = 0.0
        self.end = 0

    @abstractmethod
    def take(self, offset: int, key: bytes, value: bytes | None) -> None:
        """The next record, of whatever pipeline; ``value`` None: it was deleted."""

    @abstractmethod
    def forget(self) -> None:
        """Begin with nothing again."""

    def restart(self, topic_id: str) -> None:
        """Begin again, with a topic."""
        self.forget()
        self.topic_id, self.positions, self.end = topic_id, {}, 0


class LedgerView(Follower):
    """The last record of each key with its offset, of one pipeline (of all, without a name), and the end of the read.

    A record is decoded when it is asked for: one that a newer release meant to be read by none before it is refused then, and one of a
    kind that isn't known is passed over.
    """

    def __init__(self, pipeline: str = "", wanted: Wanted = EVERYTHING, records: Iterable[LedgerRecord] = ()) -> None:
        super().__init__()
        self.pipeline = pipeline
        self._name = pipeline.encode()
        self._wanted = wanted
        kinds = [f"{kind}|" for kind in KINDS if f"{kind}|".encode().startswith(tuple(key[: len(kind) + 1] for key in wanted))]
        self.begins = tuple(f"{kind}{pipeline}".encode() for kind in kinds)
        self._kinds: dict[str, dict[str, tuple[int, LedgerRecord | bytes]]] = {}
        self.add(*records)

    def take(self, offset: int, key: bytes, value: bytes | None) -> None:
        """See ``Follower.take``."""
        parts = key.split(b"|", 2)
        if len(parts) < 2 or (self._name and parts[1] != self._name):
            return
        try:
            text = key.decode()
        except UnicodeDecodeError:
            return
        kind = kind_of(text)
        if not kind:
            return
        if kind == "stage" and text.count("|") == 4:  # of the first version, which had no scope
            text = "{}|{}|{}||{}|{}".format(*text.split("|"))
            key = text.encode()
        if key.startswith(self._wanted):
            self._put(kind, text, offset, value)

    def _put(self, kind: str, key: str, offset: int, value: LedgerRecord | bytes | None) -> None:
        """The last one comes last, so that each kind is in the order of offsets."""
        of_kind = self._kinds.setdefault(kind, {})
        of_kind.pop(key, None)
        if value is not None:
            of_kind[key] = (offset, value)

    def forget(self) -> None:
        """See ``Follower.forget``."""
        self._kinds.clear()

    def add(self, *records: LedgerRecord) -> None:
        """Put records behind those that are there, as if they had been written."""
        for record in records:
            self.put(record, self.end)
            self.end += 1

    def put(self, record: LedgerRecord, offset: int) -> None:
        """Put a record at an offset, behind those that are there."""
        self._put(kind_of(type(record)), record.key(), offset, record)

    def keys(self) -> list[str]:
        """The keys of all records."""
        return [key for of_kind in self._kinds.values() for key in of_kind]

    def of(self, type_: type[_Record]) -> list[_Record]:
        """All records of one type, oldest first."""
        kind = kind_of(type_)
        return [cast("_Record", self._decoded(kind, key)) for key in list(self._kinds.get(kind, ()))]

    def get(self, key: str) -> LedgerRecord | None:
        """The last record of a key."""
        kind = kind_of(key)
        return self._decoded(kind, key) if key in self._kinds.get(kind, ()) else None

    def offset(self, key: str) -> int | None:
        """Where the last record of a key lies."""
        found = self._kinds.get(kind_of(key), {}).get(key)
        return None if found is None else found[0]

    def _decoded(self, kind: str, key: str) -> LedgerRecord:
        offset, found = self._kinds[kind][key]
        record = self._decode(kind, key, offset, found)
        if record is not found:
            self._kinds[kind][key] = (offset, record)
        return record

    @staticmethod
    def _decode(kind: str, key: str, offset: int, record: LedgerRecord | bytes) -> LedgerRecord:
        if not isinstance(record, bytes):
            return record
        try:
            return decode_record(kind, record)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ConfigurationError(
                f"ledger record {key!r} at offset {offset}: not one that this version can read ({error}); was it written by a newer "
                f"release?"
            ) from error
