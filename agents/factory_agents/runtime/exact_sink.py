"""Publishes to a ``LedgerSink`` exactly: claims, parts, landings, lost answers and retries, the same for every sink."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, get_args

from factory_agents import failpoints
from factory_agents.contracts import Contract, TableSpec
from factory_agents.errors import ConfigurationError, FactoryError, SinkBackpressureError, SinkError, UnavailableError, WindowError
from factory_agents.kafka.messages import Message
from factory_agents.kafka.records import MarkRecord
from factory_agents.protocol import digest
from factory_agents.runtime import sink_ledger as ledger
from factory_agents.runtime.agents import Claim, Reject, SinkOutcome
from factory_agents.runtime.delete_markers import DeletesReader
from factory_agents.runtime.ledger_sink import Capability, Landing, LedgerSink, Part
from factory_agents.runtime.loading import describe
from factory_agents.runtime.rows import RowReader
from factory_agents.runtime.sink_horizon import Horizons, horizons_key, is_below, read_horizons

__all__ = ["ExactSink", "exact", "pauses"]

_T = TypeVar("_T")
_PART_BYTES = 40 * 1024 * 1024
"""Memory that is gathered for one part."""
_PAUSE, _LONGEST_PAUSE = 0.1, 32.0
_FORGOTTEN_AT_ONCE = 200


def pauses(seconds: float, first: float = _PAUSE) -> Iterator[float | None]:
    """How long to wait after each try, twice as long each time and never the same; None after the last, when the time is over."""
    deadline = time.monotonic() + seconds
    pause = first
    while time.monotonic() + pause < deadline:
        yield pause * (0.5 + random.random())
        pause = min(pause * 2, _LONGEST_PAUSE)
    yield None


def exact(
    sink: LedgerSink, contract: Contract, identity: dict[str, Any] | None = None, version: str = "1", timeout: float = 900.0
) -> ExactSink:
    """A user's sink as the runtime drives it, with a contract's columns, key and order.

    Raises ConfigurationError for a sink that lacks a method, and a contract that gives no table or no order.
    """
    if sink.capability not in get_args(Capability):
        raise ConfigurationError(
            f"sink {type(sink).__name__}: capability: expected {' or '.join(get_args(Capability))}, got {sink.capability!r}"
        )
    needed = ("stage", "land") if sink.capability == "idempotent" else ("read", "change", "stage", "land")
    lacking = [name for name in needed if getattr(type(sink), name) is getattr(LedgerSink, name)]
    if lacking:
        raise ConfigurationError(f"sink {type(sink).__name__}: it lacks {', '.join(lacking)}")
    table = contract.table()
    table.check_order()
    if table.deletes and not sink.deletes:
        raise ConfigurationError(f"sink {type(sink).__name__}: it takes no deletes, and the contract has deletes: true; leave that out")
    if type(sink).reader is LedgerSink.reader:
        RowReader(table, "")
    return ExactSink(sink, table, identity or {}, version=version, timeout=timeout)


class ExactSink:
    """The ``Sink`` that the runtime drives, over one that a user writes.

    ``timeout``: seconds that others, who change the same entry or table, are waited for. ``identity`` enters the fingerprint. It
    ``forgets`` windows where the user's sink can.
    """

    def __init__(self, sink: LedgerSink, table: TableSpec, identity: dict[str, Any], *, version: str = "1", timeout: float = 900.0) -> None:
        self.name, self.version, self.identity = "publish", version, identity
        self._sink = sink
        self._table = table
        self._timeout = timeout
        self._publication: _Publication | None = None
        self._claimed_last: Claim | None = None
        self.forgets = sink.capability == "transactional" and type(sink).forget is not LedgerSink.forget

    @property
    def system(self) -> str:
        """See ``LedgerSink.system``."""
        return self._sink.system

    @property
    def address(self) -> str:
        """See ``LedgerSink.address``."""
        return self._sink.address

    def check(self) -> list[str]:
        """See ``LedgerSink.check``. Raises ConfigurationError for a sink that has none."""
        sink = self._sink
        if type(sink).check is LedgerSink.check:
            raise ConfigurationError(f"sink {type(sink).__name__}: it has no check(), so nothing can be said of it without publishing")
        return _asked(sink, lambda: sink.check(self._table))

    def claim(self, claim: Claim) -> SinkOutcome | None:
        """See ``Sink.claim``. The table is created, or compared with the contract, here."""
        self._end()
        self._claimed_last = claim
        sink = self._sink
        _asked(sink, lambda: sink.open(self._table))
        if sink.capability == "idempotent":
            return self._claim_idempotent(claim)
        number = secrets.randbits(62) or 1
        taken, text = self._take(claim, number)
        failpoints.hit("sink.claimed")
        self._refuse_forgotten(claim, taken.entry, text)
        done = taken.done
        if done is not None and done.written and not _asked(sink, lambda: sink.holds(done.publication)):
            taken, text = self._take(replace(claim, reuse=False), number)
        if taken.done is not None:
            return replace(taken.done.outcome(sink.table, reused=True), notes=sink.notes)
        self._publication = _Publication(sink, self._table, claim, number, self._timeout)
        self._publication.known = text
        return None

    def _claim_idempotent(self, claim: Claim) -> SinkOutcome | None:
        """Kafka's ledger alone says what is done; the same work has the same number whoever does it."""
        if claim.done and claim.reuse:
            return SinkOutcome(self._sink.table, reused=True)
        work = [ledger.entry_key(claim), claim.shard.key, claim.fingerprint, claim.epoch]
        self._publication = _Publication(self._sink, self._table, claim, int(digest(work), 16) >> 2, self._timeout)
        return None

    def _take(self, claim: Claim, number: int) -> tuple[ledger.Taken, str]:
        """Claim, again from what the entry is then while others change it too; what was claimed, and the entry's text."""
        sink, key = self._sink, ledger.entry_key(claim)
        for pause in pauses(self._timeout):
            old = _asked(sink, lambda: sink.read(key))
            taken = ledger.take(ledger.read_entry(old, sink.table), claim, number, sink.table)
            new = ledger.entry_text(taken.entry)
            if new == old:
                return taken, new
            failure: FactoryError | None = None
            try:
                changed = _asked(sink, partial(sink.change, key, old, new))
            except FactoryError as error:
                failure = error
                changed = _asked(sink, lambda: sink.read(key)) == new
            if changed:
                return taken, new
            _wait(pause, failure)
        raise UnavailableError(f"table {sink.table}: others keep changing the ledger's entry of window {claim.window}; retry")

    def write(self, messages: Sequence[Message]) -> dict[int, Reject]:
        """See ``Sink.write``."""
        return self._claimed().write(messages)

    def commit(self, *, rejected: int) -> SinkOutcome:
        """See ``Sink.commit``. A landing that met another one is tried again here, with the rows still staged."""
        outcome = self._claimed().land(rejected)
        self._end()
        return outcome

    def prune(self, mark: Callable[[], MarkRecord | None]) -> int:
        """See ``PrunedSink.prune``: once a day for each stage. What is below the mark is refused first, and then forgotten."""
        sink, claim, now = self._sink, self._claimed_last, time.time()
        if claim is None or not self.forgets:
            return 0
        horizons, old = self._horizons(claim)
        if not horizons.is_due(claim.origin, now):
            return 0
        found = mark()
        new = horizons.moved(claim.origin, found, now).text
        if not _asked(sink, lambda: sink.change(horizons_key(claim), old, new)):
            return 0  # another publish is at it
        failpoints.hit("sink.horizon-moved")
        return self._forget(claim, found) if found is not None else 0

    def _forget(self, claim: Claim, mark: MarkRecord) -> int:
        """Whoever has claimed what goes is fenced, as its entry isn't what it was."""
        sink = self._sink
        below: dict[str, str] = {}
        for key, text in _asked(sink, lambda: list(sink.entries())):
            window, *stage = ledger.parts_of(key)
            ours = stage == [claim.pipeline, claim.stage]
            if ours and is_below(window, ledger.read_entry(text, sink.table).generation, claim, mark):
                below[key] = text
        keys, gone = list(below), 0
        for start in range(0, len(keys), _FORGOTTEN_AT_ONCE):
            some = {key: below[key] for key in keys[start : start + _FORGOTTEN_AT_ONCE]}
            gone += _asked(sink, partial(sink.forget, some))
        return gone

    def _refuse_forgotten(self, claim: Claim, entry: ledger.Entry, text: str) -> None:
        """Raise WindowError for a window that was forgotten: of those nothing has landed, as far as the ledger knows.

        Asked after the claim: a prune that moves the horizon later finds the claim, and fences it.
        """
        if not self.forgets or entry.landed:
            return
        horizons, _ = self._horizons(claim)
        try:
            horizons.refuse(claim, self._sink.table)
        except WindowError:
            with suppress(FactoryError):
                _asked(self._sink, lambda: self._sink.forget({ledger.entry_key(claim): text}))
            raise

    def _horizons(self, claim: Claim) -> tuple[Horizons, str | None]:
        text = _asked(self._sink, lambda: self._sink.read(horizons_key(claim)))
        return read_horizons(text, self._sink.table), text

    def close(self) -> None:
        """See ``Sink.close``."""
        try:
            self._end()
        finally:
            self._sink.close()

    def _end(self) -> None:
        publication, self._publication = self._publication, None
        if publication is not None:
            publication.discard()

    def _claimed(self) -> _Publication:
        if self._publication is None:
            raise SinkError("nothing is claimed (or it was committed already): claim first")
        return self._publication


class _Publication:
    """One claimed shard: its rows on their way, and what makes them visible. ``known`` is the entry's text as we know it."""

    def __init__(self, sink: LedgerSink, table: TableSpec, claim: Claim, number: int, timeout: float) -> None:
        self._sink = sink
        self._claim = claim
        self._number = number
        self._timeout = timeout
        self._key = ledger.entry_key(claim)
        # Without a ledger of the sink's own, of two attempts at one window the newer one's rows have to win by themselves.
        generation = claim.generation if sink.capability == "idempotent" else 0
        self._deletes = DeletesReader(table)
        self._reader = _asked(sink, lambda: sink.reader(table, claim.window)) or RowReader(table, claim.window, generation)
        self._gathered: list[Any] = []
        self._bytes = 0
        self._rows = 0
        self._parts: list[Part] = []
        self.known = ""

    def write(self, messages: Sequence[Message]) -> dict[int, Reject]:
        """Make rows of records, and keep those that fit; a part that is large enough is staged before them.

        Raises SinkBackpressureError where it can't be: nothing of these records is kept then.
        """
        if self._bytes >= _PART_BYTES:
            self._stage()
        batches, rejected = self._reader.read(self._deletes.read(messages))
        self._gathered += batches
        self._bytes += sum(batch.nbytes for batch in batches)
        self._rows += len(messages) - len(rejected)
        return rejected

    def _stage(self) -> None:
        part = Part(self._number, len(self._parts))
        rows = self._reader.join(self._gathered)
        self._parts.append(part)
        try:
            _asked(self._sink, lambda: self._sink.stage(part, rows))
        except SinkBackpressureError:
            self._parts.pop()
            raise
        self._gathered, self._bytes = [], 0
        failpoints.hit("sink.staging")

    def land(self, rejected: int) -> SinkOutcome:
        """Make it visible. Raises FencedError for a claim that was taken over."""
        if self._gathered:
            self._stage()
        failpoints.hit("sink.staged")
        if self._sink.capability == "idempotent":
            return self._land_idempotent(rejected)
        sink, text = self._sink, self.known  # others may have landed since: the first try finds out
        for pause in pauses(self._timeout):
            failure = self._try(text, rejected)
            text = self._read_after(failure)
            entry = ledger.read_entry(text or None, sink.table)
            done = ledger.landed(entry, self._number)
            if done is not None:
                return replace(done.outcome(sink.table), notes=sink.notes)
            ledger.check_claim(entry, self._claim, self._number, sink.table)
            _wait(pause, failure)
        raise UnavailableError(f"publishing to {sink.table}: other publishers kept interfering; retry")

    def _read_after(self, failure: FactoryError | None) -> str:
        """The entry after a landing; where it cannot be read, why that one failed is told first."""
        try:
            return _asked(self._sink, lambda: self._sink.read(self._key)) or ""
        except (UnavailableError, RaisedError) as unasked:
            if failure is None:
                raise
            raise UnavailableError(f"{failure}; and then the ledger could not be asked whether it landed: {unasked}") from failure

    def _try(self, text: str, rejected: int) -> FactoryError | None:
        """One landing; what went wrong, if the ledger says that it wasn't made."""
        entry = ledger.read_entry(text, self._sink.table)
        gives_way = ledger.give_way(entry, self._claim)

        def after(figures: ledger.Figures) -> str:
            landed = ledger.land(entry, self._claim, self._number, gives_way.stale, figures, rows=self._rows, rejected=rejected)
            return ledger.entry_text(landed)

        landing = self._landing(text, gives_way, after)
        failpoints.hit("sink.before-landing")
        try:
            done = _asked(self._sink, lambda: self._sink.land(landing))
        except FactoryError as error:
            return error
        failpoints.hit("sink.landed")
        return None if done is None else SinkError(f"publishing to {self._sink.table}: it says that it landed, and its ledger doesn't")

    def _landing(self, old: str, gives_way: ledger.GivingWay, entry: Callable[[ledger.Figures], str]) -> Landing:
        return Landing(self._key, old, self._number, self._claim.window, tuple(self._parts), gives_way.past, gives_way.stale, entry)

    def _land_idempotent(self, rejected: int) -> SinkOutcome:
        sink = self._sink
        landing = self._landing("", ledger.GivingWay((), ()), lambda _: "")
        for pause in pauses(self._timeout):
            failpoints.hit("sink.before-landing")
            try:
                figures = _asked(sink, lambda: sink.land(landing))
            except UnavailableError as error:
                _wait(pause, error)
                continue
            failpoints.hit("sink.landed")
            if figures is None:
                raise SinkError(f"publishing to {sink.table}: land() returned None; expected its figures")
            after = ledger.land(ledger.Entry(), self._claim, self._number, (), figures, rows=self._rows, rejected=rejected)
            return replace(after.landed[0].outcome(sink.table), notes=sink.notes)
        raise UnavailableError(f"publishing to {sink.table}: it stayed unavailable; retry")

    def discard(self) -> None:
        """Let go of what was staged."""
        parts, self._parts = self._parts, []
        if parts:
            with suppress(Exception):
                self._sink.discard(parts)


class RaisedError(SinkError):
    """A sink raised an exception that isn't one of ours: it may pass, so a retry may help."""

    retriable = True


def _asked(sink: LedgerSink, ask: Callable[[], _T]) -> _T:
    """Ask a user's sink something."""
    failpoints.hit("sink.asking")
    try:
        answer = ask()
    except FactoryError:
        raise
    except Exception as error:
        raise RaisedError(f"sink {sink.table or type(sink).__name__}: {describe(error)}") from error
    failpoints.hit("sink.answered")
    return answer


def _wait(pause: float | None, failure: FactoryError | None) -> None:
    """Wait before the next try; raises the failure where there is none, or where trying again is of no use."""
    if failure is not None and (pause is None or not isinstance(failure, UnavailableError)):
        raise failure
    if pause is not None:
        time.sleep(max(pause, failure.retry_after) if isinstance(failure, SinkBackpressureError) else pause)
