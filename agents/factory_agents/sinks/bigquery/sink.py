"""BigQuery as a sink: parts staged by load jobs, and landed by one transaction with the ledger's entry."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from factory_agents.contracts import TableSpec
from factory_agents.errors import ConfigurationError, SinkError, UnavailableError
from factory_agents.runtime.ledger_sink import ChangedError, Landing, LedgerSink, Part
from factory_agents.runtime.rank import window_start
from factory_agents.runtime.sink_ledger import Figures
from factory_agents.sinks.bigquery import statements
from factory_agents.sinks.bigquery.rows import DELETED, POSITION, Field, RowReader
from factory_agents.sinks.bigquery.table import (
    Partitioning,
    TableName,
    TargetTable,
    WantedTable,
    check_memory,
    look_at_table,
    open_memory,
    open_table,
    schema_field,
)
from factory_agents.sinks.bigquery.warehouse import Account, Load, NotFoundError, Warehouse
from factory_agents.telemetry import fields

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["BigQuerySink", "BigQueryTarget"]

log = logging.getLogger(__name__)

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


class BigQuerySink(LedgerSink):
    """One table of BigQuery.

    Rows go as Parquet into staging tables, one a part. One transaction lands them: it replaces what gives way and writes the ledger's
    entry, if that is still the one that we know. Every table has a ledger of its own beside it: BigQuery lets one transaction at a time
    change a table. BigQuery is not spoken to before ``open``.
    """

    system = "bigquery"
    deletes = True

    def __init__(self, target: BigQueryTarget) -> None:
        self._target = target
        self._warehouse: Warehouse | None = None
        self._found: TargetTable | None = None
        self._load: Load | None = None
        self._landings = 0

    def open(self, table: TableSpec) -> None:
        """See ``LedgerSink.open``; what is wanted of the table is in the target, in BigQuery's own types.

        Raises SinkError where it doesn't fit, ConfigurationError or UnavailableError where BigQuery refuses or doesn't answer.
        """
        target, name = self._target, self._target.table
        if self._warehouse is None:
            self._warehouse = Warehouse(target.account, name.project, name.dataset, timeout=target.timeout, labels=target.labels)
        self._found = open_table(
            self._warehouse, name.table, target.wanted, target.layout, create=target.create_table, add_columns=target.add_columns
        )
        self.table, self.notes = self._found.text, self._found.notes
        own = [Field(name, "INT64") for name in POSITION] + ([Field(DELETED, "BOOL")] if self._found.deletes else [])
        self._schema = [schema_field(f) for f in (*map(_staged, self._found.fields), *own)]
        if self._found.deletes:
            open_memory(self._warehouse, self._memory, self._found, target.layout.kms_key)

    def check(self, table: TableSpec) -> list[str]:
        """See ``LedgerSink.check``."""
        target, name = self._target, self._target.table
        warehouse = Warehouse(target.account, name.project, name.dataset, timeout=target.timeout, labels=target.labels)
        try:
            found, missing = look_at_table(
                warehouse, name.table, target.wanted, target.layout, create=target.create_table, add_columns=target.add_columns
            )
            warehouse.dry_run("SELECT 1")
            lines = [f"BigQuery answers, and runs jobs in the project {warehouse.project}", *found.notes]
            columns = ", ".join(f"{f.name} {f.limited}" for f in found.fields)
            if found.made:
                warehouse.dry_run(statements.try_rights(found, missing))
                lines += [f"{found.text} is there, and takes the columns: {columns}", "its rows may be changed"]
                lines += [f"column {f.name} {f.limited} would be added" for f in missing]
            else:
                lines.append(f"{found.text} would be created: {columns}")
            for own in (f"factory_publishes_{name.table}", *([f"factory_deleted_{name.table}"] if found.deletes else [])):
                if warehouse.table(own) is None:
                    lines.append(f"{warehouse.name(own)} would be created")
                elif found.made and own.startswith("factory_deleted_"):
                    check_memory(warehouse, own, found)
            return lines
        finally:
            warehouse.close()

    @property
    def _opened(self) -> tuple[Warehouse, TargetTable]:
        if self._warehouse is None or self._found is None:
            raise SinkError("nothing is claimed: claim first")
        return self._warehouse, self._found

    @property
    def _ledger(self) -> str:
        warehouse, table = self._opened
        return warehouse.name(f"factory_publishes_{table.name}")

    @property
    def _memory(self) -> str:
        return f"factory_deleted_{self._opened[1].name}"

    def _key(self, key: str) -> str:
        """An entry speaks of one making of the table: one that is made again holds nothing of the old one."""
        return f"{key} @ {self._opened[1].made}"

    def read(self, key: str) -> str | None:
        """See ``LedgerSink.read``."""
        warehouse, _ = self._opened
        try:
            found = dict(warehouse.rows(statements.read_entry(self._ledger), window=self._key(key)))
        except NotFoundError:
            warehouse.rows(statements.create_ledger(self._ledger))
            return None
        if "" not in found:
            raise SinkError(f"table {self.table}: its ledger {self._ledger} has lost its first row; drop the ledger, and publish again")
        return found.get(self._key(key))

    def change(self, key: str, old: str | None, new: str) -> bool:
        """See ``LedgerSink.change``."""
        warehouse, _ = self._opened
        return warehouse.change(statements.change_entry(self._ledger), window=self._key(key), old=old or "", new=new) == _HEAD_AND_ENTRY

    def entries(self) -> list[tuple[str, str]]:
        """See ``LedgerSink.entries``."""
        warehouse, _ = self._opened
        suffix = self._key("")
        rows = warehouse.rows(statements.entries(self._ledger), suffix=suffix)
        return [(key.removesuffix(suffix), entry) for key, entry in rows]

    def forget(self, entries: Mapping[str, str]) -> int:
        """See ``LedgerSink.forget``."""
        warehouse, _ = self._opened
        held = [f"{self._key(key)}\n{entry}" for key, entry in entries.items()]
        return warehouse.change(statements.forget(self._ledger), held=held)

    def reader(self, table: TableSpec, window: str) -> RowReader:
        """See ``LedgerSink.reader``: the table itself says more of its types than a contract."""
        _, found = self._opened
        return RowReader(found.fields, found.key if found.deletes else ())

    def holds(self, publication: int) -> bool:
        """See ``LedgerSink.holds``."""
        warehouse, table = self._opened
        return warehouse.rows(statements.holds(table.text), publication=publication) == [(1,)]

    def stage(self, part: Part, rows: pa.Table) -> None:
        """See ``LedgerSink.stage``: begins to load, while the next part is made; the part before is waited for."""
        from google.cloud import bigquery

        self._finish_load()
        warehouse, target = self._opened
        if part.number == _MOST_PARTS:
            raise ConfigurationError(f"table {target.text}: more than {_MOST_PARTS} parts in one window; plan it in more shards")
        name = _staging(part)
        table = bigquery.Table(warehouse.name(name), schema=self._schema)
        table.description = f"Part {part.number} of a publication to {target.text}"
        table.expires = datetime.now(UTC) + _STAGED_FOR
        if kms_key := self._target.layout.kms_key:
            table.encryption_configuration = bigquery.EncryptionConfiguration(kms_key_name=kms_key)
        warehouse.create(table)
        self._load = warehouse.load(rows, name, self._schema, name)

    def _finish_load(self) -> None:
        load, self._load = self._load, None
        if load is not None:
            load.finish()

    def land(self, landing: Landing) -> Figures | None:
        """See ``LedgerSink.land``: one script under a job id of its own. Which figures it had, the entry says."""
        self._finish_load()
        self._check_unchanged()
        warehouse, table = self._opened
        self._landings += 1
        staged = [warehouse.name(_staging(part)) for part in landing.parts]
        try:
            read = warehouse.run(
                statements.landing(table, self._ledger, warehouse.name(self._memory), staged, sweep=bool(landing.stale)),
                f"publishing to {table.text}",
                f"factory_land_{landing.publication:016x}-{self._landings}",
                window=self._key(landing.key),
                old=landing.old,
                new=landing.entry(statements.FIGURES),
                publication=landing.publication,
                window_start=_EPOCH + timedelta(microseconds=window_start(landing.window)),
                past=landing.past,
                stale=landing.stale,
            )
        except SinkError as error:
            if statements.MOVED in str(error):
                return None
            try:
                self._check_unchanged()
            except UnavailableError as unasked:  # the table may have changed: a retry finds out
                raise UnavailableError(f"{error}; and then its table could not be looked at: {unasked}") from error
            except ConfigurationError:  # it says nothing of why the landing failed
                raise error from None
            raise
        log.info("landed", extra=fields(table=table.text, bytes_read=read))
        return statements.FIGURES

    def _check_unchanged(self) -> None:
        """Raise ChangedError for a table that isn't the one that was opened: the entry that we claimed fences nobody in another."""
        target, (warehouse, table) = self._target, self._opened
        now, missing = look_at_table(warehouse, table.name, target.wanted, target.layout, create=True, add_columns=True)
        if now.made != table.made:
            raise ChangedError(table.text, "it was recreated" if now.made else "it was dropped")
        if missing or now.fields != table.fields:
            raise ChangedError(table.text, "its columns were changed")

    def discard(self, parts: Sequence[Part]) -> None:
        """Drop the staging tables; those that stay expire."""
        warehouse, _ = self._opened
        for part in parts:
            warehouse.drop(_staging(part))

    def close(self) -> None:
        """See ``LedgerSink.close``."""
        warehouse, self._warehouse, self._found, self._load = self._warehouse, None, None, None
        if warehouse is not None:
            warehouse.close()


def _staging(part: Part) -> str:
    return f"factory_stage_{part.name}"


def _staged(field: Field) -> Field:
    """A column as it is staged: nothing required, JSON as text."""
    type_ = "STRING" if field.type == "JSON" else field.type
    return Field(field.name, type_, field.repeated, fields=tuple(map(_staged, field.fields)))
