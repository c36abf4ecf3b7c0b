"""What a sink of your own has to do, so that the runtime makes it exact: ``LedgerSink``, and what its methods are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from factory_agents.contracts import TableSpec
from factory_agents.errors import SinkError
from factory_agents.kafka.messages import Message
from factory_agents.runtime.agents import Reject
from factory_agents.runtime.sink_ledger import Figures

__all__ = ["RANK", "Capability", "ChangedError", "Landing", "LedgerSink", "Part", "Reader", "Rows"]

Capability = Literal["transactional", "idempotent"]
"""What a landing is: one transaction with the ledger's entry, or something that may be done again."""

RANK = "_factory_rank"
"""The last column of every row: bytes that compare as rows of one key do, by version, time, window and record; the greater one wins."""


class Rows(msgspec.Struct, frozen=True):
    """A batch of typed rows: tuples of values in the order of ``columns``, which are the contract's and then ``RANK``.

    Values are of Python's own types: str, int, float, bool, bytes, ``datetime`` (with UTC, for timestamptz), ``date``, ``time``,
    ``Decimal``, ``UUID``, lists of them, and None. ``json``, ``interval`` and ``inet`` are texts. ``deleted`` are keys of records without
    a value, for a sink with ``deletes``: the key's columns, and the place of the record, which is what the rank of a row ends with.

    :param columns: the contract's, then ``RANK``.
    :param rows: a tuple of values for each record.
    :param nbytes: bytes of the records that they were read from.
    :param deleted: keys of rows to delete.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    nbytes: int
    deleted: list[tuple[Any, ...]] = []


class Part(msgspec.Struct, frozen=True):
    """Some of the rows that are to land together: part ``number`` (from 0) of a publication. No two publications have one number.

    :param publication: whose part it is.
    :param number: its number, from 0.
    """

    publication: int
    number: int

    @property
    def name(self) -> str:
        """A name that no other part has."""
        return f"{self.publication:016x}_{self.number}"


class Landing(msgspec.Struct, frozen=True):
    """What makes a publication visible. All of it is done, or nothing, in one transaction of the sink.

    1. Of the rows of ``parts``, the one with the greatest ``RANK`` of each key goes into the table, with ``publication`` beside it; unless
       the table has a row of that key with a greater rank, whose publication isn't among ``past``.
    2. Rows of the publications ``stale`` are deleted.
    3. The ledger's entry ``key`` is changed from ``old`` to ``entry(figures)``.

    With deletes: a delete outweighs every row of its key that lies before it (the last ``PLACE`` bytes of its rank are no greater), and
    none after it. Of the parts' deletes of a key the last one counts, unless a later one is remembered. It removes such rows from the
    parts and from the table, where those of ``past`` go whatever their place. It is remembered with ``publication``, and does the same to
    rows that land later, unless their landing has its publication among ``past``. Deletes of the publications ``stale`` are forgotten.

    :param key: the ledger's entry.
    :param old: what it has to be.
    :param publication: the number that the rows bear.
    :param window: the window's name, for a column or a partition.
    :param parts: what was staged.
    :param past: publications that this one replaces or knows.
    :param stale: publications whose rows go.
    :param entry: what the entry becomes, by what was done.
    """

    key: str
    old: str
    publication: int
    window: str
    parts: tuple[Part, ...]
    past: tuple[int, ...]
    stale: tuple[int, ...]
    entry: Callable[[Figures], str]


class Reader(Protocol):
    """Makes batches of a sink's own form of records."""

    def read(self, messages: Sequence[Message]) -> tuple[list[Any], dict[int, Reject]]:
        """Batches (each with ``nbytes``) of the records that fit, in order, and why the others can't be written, by their index."""
        ...

    def join(self, batches: Sequence[Any]) -> Any:
        """The batches as one, as ``LedgerSink.stage`` takes it."""
        ...


class ChangedError(SinkError):
    """Somebody changed the table under a publication, so that its rows may not fit any more; a retry begins again."""

    retriable = True

    def __init__(self, table: str, what: str) -> None:
        super().__init__(f"table {table}: {what} while we published to it; a retry begins again")


class LedgerSink:
    """A sink of your own, exact by the runtime: it keeps the ledger's texts, takes typed rows in parts, and lands them at once.

    Whatever a method raises, the ledger is asked what was done, and nothing is done blindly again. Raise SinkError for what no retry mends,
    UnavailableError for what may be tried again at once, SinkBackpressureError where nothing of it was kept and the sink wants to be given
    it later, for as long as that takes; every other exception ends the attempt, and a retry may help.

    ``transactional``: ``land`` is one transaction, rows and entry together. ``idempotent``: there is none; ``land`` upserts by key and
    rank, may be called twice with the same rows, and no entry is kept here: ``read`` and ``change`` are not called, ``old`` is "", ``past``
    and ``stale`` are empty. What a window no longer produces, or gives a lower version, stays then.
    """

    capability: Capability = "transactional"
    table: str = ""
    """What it writes to, for results and messages."""
    system: str = ""
    """What keeps the table, for lineage: by default the name that ``publish`` was given for the sink."""
    address: str = ""
    """Where that is, without credentials."""
    deletes: bool = False
    """Whether it takes deletes; without, a contract that has them is refused."""
    notes: tuple[str, ...] = ()
    """Lines for a person, in every result."""

    def read(self, key: str) -> str | None:
        """The ledger's entry of this key, or None."""
        raise NotImplementedError

    def change(self, key: str, old: str | None, new: str) -> bool:
        """Put ``new`` in the place of ``old`` (None: where there is none), unless somebody else changed it; whether it was done."""
        raise NotImplementedError

    def stage(self, part: Part, rows: Any) -> None:
        """Keep the rows (``Rows``, or the batch of a reader of your own) where nobody sees them until they land."""
        raise NotImplementedError

    def land(self, landing: Landing) -> Figures | None:
        """Make the publication visible, as ``Landing`` says. Do nothing and return None where the entry isn't ``landing.old`` any more."""
        raise NotImplementedError

    # What it may do besides

    def open(self, table: TableSpec) -> None:
        """Connect, and create the table or compare it with the contract's. Called before anything else, maybe again."""

    def check(self, table: TableSpec) -> list[str]:
        """What ``open`` would find and do, in lines for a person, with nothing changed. It raises as ``open`` does."""
        raise NotImplementedError

    def reader(self, table: TableSpec, window: str) -> Reader | None:
        """What makes rows of records in place of the runtime's own reader."""
        return None

    def holds(self, publication: int) -> bool:
        """Whether rows of a publication that landed are still in the table: where somebody emptied it, the window lands again."""
        return True

    def entries(self) -> Iterable[tuple[str, str]]:
        """All keys of the ledger with their entries. With this and ``forget`` windows are forgotten as in the pipeline's ledger."""
        raise NotImplementedError

    def forget(self, entries: Mapping[str, str]) -> int:
        """Delete the keys (some hundreds at most) that still have these entries; how many those were."""
        raise NotImplementedError

    def discard(self, parts: Sequence[Part]) -> None:
        """Forget parts that have landed, or never will."""

    def close(self) -> None:
        """Disconnect."""
