"""The sink: claims, parts on their way into staging tables, and landings, tried again while others are in the way."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from factory_agents import failpoints
from factory_agents.errors import ConfigurationError, FactoryError, SinkError, UnavailableError
from factory_agents.kafka.messages import Message
from factory_agents.runtime.agents import Claim, Reject, SinkOutcome
from factory_agents.sinks.bigquery import ledger, statements
from factory_agents.sinks.bigquery.rows import POSITION, Field, RowReader
from factory_agents.sinks.bigquery.table import Partitioning, TableName, TargetTable, WantedTable, open_table, schema_field
from factory_agents.sinks.bigquery.warehouse import Account, ConflictError, Load, NotFoundError, Warehouse, pauses
from factory_agents.telemetry import fields

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["BigQuerySink", "BigQueryTarget"]

_T = TypeVar("_T")
log = logging.getLogger(__name__)

_PART_BYTES = 64 * 1024 * 1024
"""Arrow memory that is gathered for one load job."""
_MOST_PARTS = 900
"""One query reads up to 1,000 tables."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HEAD_AND_ENTRY = 2
"""Rows of the ledger that a change of an entry changes."""
_STAGED_FOR = timedelta(days=1)
"""Then BigQuery drops what a killed publisher left."""


class BigQueryTarget(msgspec.Struct, frozen=True):
    """Where and what to publish; ``timeout`` are the seconds that one job may take, and that others are waited for."""

    account: Account
    table: TableName
    wanted: WantedTable = WantedTable()
    layout: Partitioning = Partitioning()
    create_table: bool = True
    add_columns: bool = True
    labels: Mapping[str, str] = {}
    timeout: float = 900.0


class BigQuerySink:
    """A ``Sink`` over one table.

    Rows go as Parquet into staging tables, one a part, named by the publication, which is the claim's own number, and the part's.
    ``commit`` lands them: one transaction replaces what gives way and writes the ledger's entry, if that is still the one that we know.
    Whether it did is read from the entry, whatever the answer was. ``identity`` enters the fingerprint.
    BigQuery is not spoken to before ``claim``.
    """

    name = "publish"
    version = "1"

    def __init__(self, target: BigQueryTarget, identity: dict[str, Any]) -> None:
        self.identity = identity
        self._target = target
        self._warehouse: Warehouse | None = None
        self._publication: _Publication | None = None

    def claim(self, claim: Claim) -> SinkOutcome | None:
        """See ``Sink.claim``. The table is created, or compared with the contract, here.

        Raises SinkError where it doesn't fit or holds a newer manifest's rows, ConfigurationError or UnavailableError where BigQuery
        refuses or doesn't answer.
        """
        self.close()
        target = self._target
        name = target.table
        warehouse = self._warehouse = Warehouse(target.account, name.project, name.dataset, timeout=target.timeout, labels=target.labels)
        table = open_table(warehouse, name.table, target.wanted, target.layout, create=target.create_table, add_columns=target.add_columns)
        entries = _Entries(warehouse, table, claim, target.timeout)
        publication = secrets.randbits(62) or 1
        taken = entries.change(lambda entry: ledger.take(entry, claim, publication, table.text))
        failpoints.hit("bigquery.claimed")
        if taken.done is not None and not self._is_there(table, taken.done):
            anew = replace(claim, reuse=False)
            taken = entries.change(lambda entry: ledger.take(entry, anew, publication, table.text))
        if taken.done is not None:
            return taken.done.outcome(table.text, reused=True)
        self._publication = _Publication(warehouse, table, claim, publication, entries, target)
        return None

    def _is_there(self, table: TargetTable, done: ledger.Landed) -> bool:
        """Whether what a finished publication wrote is still there; else somebody truncated, emptied or restored the table."""
        if not done.written or self._warehouse is None:
            return True
        return self._warehouse.rows(statements.holds(table.text), publication=done.publication) == [(1,)]

    def write(self, messages: Sequence[Message]) -> dict[int, Reject]:
        """See ``Sink.write``."""
        return self._claimed().write(messages)

    def commit(self, *, rejected: int) -> SinkOutcome:
        """See ``Sink.commit``. A landing that met another one is tried again here, with the rows still staged."""
        publication = self._claimed()
        outcome = publication.land(rejected)
        self._publication = None
        publication.drop()
        return outcome

    def close(self) -> None:
        """See ``Sink.close``."""
        publication, self._publication = self._publication, None
        warehouse, self._warehouse = self._warehouse, None
        if publication is not None:
            publication.drop()
        if warehouse is not None:
            warehouse.close()

    def _claimed(self) -> _Publication:
        if self._publication is None:
            raise SinkError("nothing is claimed (or it was committed already): claim first")
        return self._publication


class _Entries:
    """The ledger's entry of one window, read, and changed by compare and set.

    Every table has a ledger of its own beside it: BigQuery lets one transaction at a time change a table.
    """

    def __init__(self, warehouse: Warehouse, table: TargetTable, claim: Claim, timeout: float) -> None:
        self.name = warehouse.name(f"factory_publishes_{table.name}")
        self.key = {"pipeline": claim.pipeline, "stage": claim.stage, "window": claim.window}
        self._warehouse = warehouse
        self._made = table.made
        self._timeout = timeout
        self.known = (0, ledger.Entry(self._made))

    def read(self) -> tuple[int, ledger.Entry]:
        """The token that a change must name, and the entry; ``known`` from now on."""
        self.known = self._read()
        return self.known

    def _read(self) -> tuple[int, ledger.Entry]:
        try:
            rows = self._warehouse.rows(statements.read_entry(self.name), **self.key)
        except NotFoundError:
            self._warehouse.rows(statements.create_ledger(self.name))
            rows = []
        if not rows:
            return 0, ledger.Entry(self._made)
        token, text = rows[0]
        entry = msgspec.json.decode(text, type=ledger.Entry)
        return token, entry if entry.made == self._made else ledger.Entry(self._made)

    def change(self, work: Callable[[ledger.Entry], ledger.Taken]) -> ledger.Taken:
        """Change the entry, again from what it is then while others do so too."""
        return self._tried(lambda: self._changed(work))

    def _changed(self, work: Callable[[ledger.Entry], ledger.Taken]) -> ledger.Taken:
        token, entry = self.read()
        taken = work(entry)
        if taken.entry == entry:
            return taken
        new = new_token()
        text = msgspec.json.encode(taken.entry).decode()
        changed = self._warehouse.change(statements.change_entry(self.name), **self.key, old=token, new=new, entry=text)
        if changed != _HEAD_AND_ENTRY and self.read()[0] != new:
            raise ConflictError(f"{self.name}: others keep changing the entry of window {self.key['window']}; retry")
        self.known = (new, taken.entry)
        return taken

    def _tried(self, work: Callable[[], _T]) -> _T:
        for pause in pauses(self._timeout):
            try:
                return work()
            except ConflictError:
                if pause is None:
                    raise
                time.sleep(pause)
        raise UnavailableError(f"{self.name}: others kept being in the way; retry")


class _Publication:
    """One claimed shard: its rows on their way, and what makes them visible."""

    def __init__(
        self, warehouse: Warehouse, table: TargetTable, claim: Claim, publication: int, entries: _Entries, target: BigQueryTarget
    ) -> None:
        self._warehouse = warehouse
        self._table = table
        self._claim = claim
        self._publication = publication
        self._entries = entries
        self._timeout = target.timeout
        self._kms_key = target.layout.kms_key
        self._reader = RowReader(table.fields)
        self._schema = [schema_field(_staged(f)) for f in table.fields] + [schema_field(Field(name, "INT64")) for name in POSITION]
        self._rows = 0
        self._gathered: list[pa.RecordBatch] = []
        self._parts: list[str] = []
        self._load: Load | None = None

    def write(self, messages: Sequence[Message]) -> dict[int, Reject]:
        """Make rows of records, and keep those that fit; a part that is large enough is sent on."""
        batches, rejected = self._reader.read(messages)
        self._gathered += batches
        self._rows += len(messages) - len(rejected)
        if sum(batch.nbytes for batch in self._gathered) >= _PART_BYTES:
            self._stage()
        return rejected

    def _stage(self) -> None:
        """Begin to load what is gathered, while the next part is made; the part before is waited for."""
        import pyarrow as pa
        from google.cloud import bigquery

        self._finish_load()
        if len(self._parts) == _MOST_PARTS:
            raise ConfigurationError(
                f"window {self._claim.window}: more than {_MOST_PARTS} parts of {_PART_BYTES >> 20} MiB; plan it in more shards"
            )
        number = len(self._parts)
        name = f"factory_stage_{self._publication:016x}_{number}"
        table = bigquery.Table(self._warehouse.name(name), schema=self._schema)
        table.description = f"Part {number} of {self._table.text}, window {self._claim.window}, shard {self._claim.shard.key}"
        table.expires = datetime.now(UTC) + _STAGED_FOR
        if self._kms_key:
            table.encryption_configuration = bigquery.EncryptionConfiguration(kms_key_name=self._kms_key)
        self._parts.append(name)
        self._warehouse.create(table)
        rows, self._gathered = pa.Table.from_batches(self._gathered), []
        self._load = self._warehouse.load(rows, name, self._schema, name)
        failpoints.hit("bigquery.staging")

    def _finish_load(self) -> None:
        load, self._load = self._load, None
        if load is not None:
            load.finish()

    def land(self, rejected: int) -> SinkOutcome:
        """Make it visible. Raises FencedError for a claim that was taken over."""
        if self._gathered:
            self._stage()
        self._finish_load()
        failpoints.hit("bigquery.staged")
        token, entry = self._entries.known  # others may have landed since: the first try finds out
        for number, pause in enumerate(pauses(self._timeout), 1):
            failure = self._try(number, token, entry, rejected)
            token, entry = self._entries.read()
            done = ledger.landed(entry, self._publication)
            if done is not None:
                return replace(done.outcome(self._table.text), notes=self._table.notes)
            ledger.check_claim(entry, self._claim, self._publication, self._table.text)
            if pause is None or not _may_pass(failure):
                raise failure
            time.sleep(pause)
        raise UnavailableError(f"publishing to {self._table.text}: others kept being in the way; retry")

    def _try(self, number: int, token: int, entry: ledger.Entry, rejected: int) -> FactoryError:
        """One landing under a job id of its own; what went wrong if the ledger says that it wasn't made."""
        gives_way = ledger.give_way(entry, self._claim)
        after = ledger.land(entry, self._claim, self._publication, gives_way.stale, rows=self._rows, rejected=rejected)
        staged = [self._warehouse.name(part) for part in self._parts]
        failpoints.hit("bigquery.before-landing")
        try:
            read = self._warehouse.run(
                statements.landing(self._table, self._entries.name, staged, sweep=bool(gives_way.stale)),
                f"publishing to {self._table.text}",
                f"factory_land_{self._publication:016x}-{number}",
                **self._entries.key,
                old=token,
                new=new_token(),
                entry=msgspec.json.encode(after).decode(),
                publication=self._publication,
                window_start=_window_start(self._claim.window),
                past=gives_way.past,
                stale=gives_way.stale,
            )
        except FactoryError as error:
            return error
        failpoints.hit("bigquery.landed")
        log.info("landed", extra=fields(table=self._table.text, bytes_read=read))
        return SinkError(f"publishing to {self._table.text}: BigQuery says that it was done, and the ledger doesn't have it")

    def drop(self) -> None:
        """Drop the staging tables; those that stay expire."""
        parts, self._parts = self._parts, []
        with suppress(FactoryError):
            for part in parts:
                self._warehouse.drop(part)


def _may_pass(failure: FactoryError) -> bool:
    """Whether the same landing may succeed a little later, or from the entry as it is now."""
    return isinstance(failure, UnavailableError) or statements.MOVED in str(failure)


def new_token() -> int:
    """A number that no other change of an entry has."""
    return secrets.randbits(62) | 1


def _staged(field: Field) -> Field:
    """A column as it is staged: nothing required, JSON as text."""
    type_ = "STRING" if field.type == "JSON" else field.type
    return Field(field.name, type_, field.repeated, fields=tuple(map(_staged, field.fields)))


def _window_start(window: str) -> datetime:
    """When an interval's window starts; 1970 for one that isn't of an interval."""
    first, between, _ = window.partition("/")
    try:
        start = datetime.fromisoformat(first) if between else _EPOCH
    except ValueError:
        return _EPOCH
    return start if start.tzinfo is not None else start.replace(tzinfo=UTC)
