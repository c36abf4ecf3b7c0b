"""Snowflake as a sink: parts staged as Parquet in a table of the session's own, and landed by one transaction with the ledger's entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from factory_agents.contracts import TableSpec
from factory_agents.errors import SinkError
from factory_agents.runtime.ledger_sink import ChangedError, Landing, LedgerSink, Part
from factory_agents.runtime.sink_ledger import Figures
from factory_agents.sinks.arrow import ArrowReader, ArrowRows
from factory_agents.sinks.snowflake import statements
from factory_agents.sinks.snowflake.names import TableName
from factory_agents.sinks.snowflake.rows import open_reader, parquet
from factory_agents.sinks.snowflake.session import Account, LostSessionError, NotFoundError, Session
from factory_agents.sinks.snowflake.table import TargetTable, find_table, look_at_table, open_table

__all__ = ["SnowflakeSink", "SnowflakeTarget"]

_ROWS_LOADED = 3
"""The place of this count in what COPY says of a file."""


class SnowflakeTarget(msgspec.Struct, frozen=True):
    """Where and what to publish; ``timeout`` are the seconds that one statement may take, and that others are waited for."""

    account: Account
    table: TableName
    create_table: bool = True
    add_columns: bool = True
    cluster_by: tuple[str, ...] = ()
    query_tag: str = ""
    timeout: float = 900.0


class SnowflakeSink(LedgerSink):
    """One table of Snowflake.

    Every table has a ledger of its own beside it, whose head each transaction changes first: so all that change the table come one after
    the other, each seeing what the one before it left. Snowflake is not spoken to before ``open``.
    """

    system = "snowflake"
    deletes = True

    def __init__(self, target: SnowflakeTarget) -> None:
        self.address = target.account.name
        self._target = target
        self._session = Session(target.account, target.table, timeout=target.timeout, query_tag=target.query_tag)
        self._table: TargetTable | None = None
        self._wanted = TableSpec()
        self._staged_in = 0

    def open(self, table: TableSpec) -> None:
        """See ``LedgerSink.open``.

        Raises SinkError where it doesn't fit, ConfigurationError or UnavailableError where Snowflake refuses or doesn't answer.
        """
        target = self._target
        self._wanted = table
        self._table = open_table(
            self._session,
            target.table.table,
            table,
            cluster_by=target.cluster_by,
            create=target.create_table,
            add_columns=target.add_columns,
        )
        ((database, schema),) = self._session.rows("SELECT CURRENT_DATABASE(), CURRENT_SCHEMA()")
        self.table = f"{database}.{schema}.{target.table.table}"
        if table.deletes and find_table(self._session, self._memory) is None:
            self._session.run(statements.create_memory(self._memory, self._table))

    def check(self, table: TableSpec) -> list[str]:
        """See ``LedgerSink.check``. Rights are tried by statements that change nothing, in a transaction that is rolled back."""
        target, session = self._target, self._session
        name = target.table.table
        try:
            found, missing = look_at_table(
                session, name, table, cluster_by=target.cluster_by, create=target.create_table, add_columns=target.add_columns
            )
            ((database, schema, role),) = session.rows("SELECT CURRENT_DATABASE(), CURRENT_SCHEMA(), CURRENT_ROLE()")
            lines = [f"{self.address} answers to the role {role}"]
            columns = ", ".join(f"{n} {c.type.text}" for n, c in zip(found.names, found.spec.columns, strict=True))
            text = f"{database}.{schema}.{name}"
            if found.made:
                with session.attempt():
                    for statement in statements.try_rights(found, missing):
                        session.run(statement)
                lines += [f"{text} is there, and takes the columns: {columns}", "its rows may be changed"]
                lines += [f"column {column} {type_} would be added" for column, type_ in missing.items()]
            else:
                lines.append(f"{text} would be created: {columns}")
            own = (f"FACTORY_PUBLISHES_{name}", *([f"FACTORY_DELETED_{name}"] if table.deletes else []))
            return [*lines, *(f"{database}.{schema}.{each} would be created" for each in own if find_table(session, each) is None)]
        finally:
            session.close()

    @property
    def _opened(self) -> TargetTable:
        if self._table is None:
            raise SinkError("nothing is claimed: claim first")
        return self._table

    @property
    def _ledger(self) -> str:
        return f"FACTORY_PUBLISHES_{self._opened.name}"

    @property
    def _memory(self) -> str:
        return f"FACTORY_DELETED_{self._opened.name}"

    def _key(self, key: str) -> str:
        """An entry speaks of one making of the table: one that is made again holds nothing of the old one."""
        return f"{key} @ {self._opened.made}"

    def read(self, key: str) -> str | None:
        """See ``LedgerSink.read``."""
        try:
            rows = self._session.rows(statements.read_entry(self._ledger), self._key(key))
        except NotFoundError:
            self._session.run(statements.create_ledger(self._ledger))
            return None
        return rows[0][0] if rows else None

    def change(self, key: str, old: str | None, new: str) -> bool:
        """See ``LedgerSink.change``."""
        session, ledger, window = self._session, self._ledger, self._key(key)
        with session.transaction() as transaction:
            self._lock()
            if old is None:
                return session.run(statements.first_entry(ledger), window, new, window, transaction) == 1
            return session.run(statements.change_entry(ledger), new, window, old, transaction) == 1

    def _lock(self) -> None:
        if self._session.run(statements.lock_ledger(self._ledger)) != 1:
            raise SinkError(f"table {self.table}: its ledger {self._ledger} has lost its first row; drop the ledger, and publish again")

    def entries(self) -> list[tuple[str, str]]:
        """See ``LedgerSink.entries``."""
        suffix = self._key("")
        return [(key.removesuffix(suffix), entry) for key, entry in self._session.rows(statements.entries(self._ledger), suffix)]

    def forget(self, entries: Mapping[str, str]) -> int:
        """See ``LedgerSink.forget``."""
        held = [f"{self._key(key)}\n{entry}" for key, entry in entries.items()]
        with self._session.transaction() as transaction:
            self._lock()
            return self._session.run(statements.forget(self._ledger, len(held)), *held, transaction)

    def reader(self, table: TableSpec, window: str) -> ArrowReader:
        """See ``LedgerSink.reader``: the contract's columns, within what the table takes."""
        return open_reader(self._opened.spec, window)

    def holds(self, publication: int) -> bool:
        """See ``LedgerSink.holds``."""
        return bool(self._session.rows(statements.holds(self._opened.name, publication)))

    def stage(self, part: Part, rows: ArrowRows) -> None:
        """See ``LedgerSink.stage``."""
        table, staging, session = self._opened, _staging(part), self._session
        if part.number == 0:
            session.run(statements.create_staging(staging, table))
            self._staged_in = session.number
        self._check_session()
        file = f"part_{part.number}.parquet"
        session.put(parquet(rows, table.spec, statements.staged_names(table)), f"%{staging}", file)
        loaded = sum(int(row[_ROWS_LOADED]) for row in session.rows(statements.copy(staging, file, table)) if len(row) > _ROWS_LOADED)
        sent = rows.table.num_rows + len(rows.deleted)
        if loaded != sent:
            raise SinkError(f"publishing to {self.table}: COPY loaded {loaded:,} of {sent:,} rows; publish again")

    def _check_session(self) -> None:
        if self._staged_in != self._session.number:
            raise LostSessionError(f"publishing to {self.table}: the session was lost with the rows staged in it; a retry begins again")

    def land(self, landing: Landing) -> Figures | None:
        """See ``LedgerSink.land``."""
        session, table = self._session, self._opened
        newest, distinct = "", 0
        if landing.parts:
            self._check_session()
            staging = _staging(landing.parts[0])
            newest = f"{staging}_NEWEST"
            distinct = self._prepare(table, staging, landing.publication)
        try:
            with session.transaction() as transaction:
                return self._landed(landing, transaction, newest, distinct)
        except _MovedError:
            return None

    def _prepare(self, table: TargetTable, staging: str, publication: int) -> int:
        """Make the tables that the transaction works with; how many keys they have."""
        session, newest = self._session, f"{staging}_NEWEST"
        if table.spec.deletes:
            session.run(statements.create_rows(f"{staging}_ROWS", staging, table, publication))
            session.run(statements.create_newest(f"{staging}_DELETES", staging, table, publication, deletes=True))
            session.run(statements.create_empty(newest, f"{staging}_ROWS"))
            ((distinct,),) = session.rows(statements.count_keys(staging, table))
        else:
            session.run(statements.create_newest(newest, staging, table, publication))
            ((distinct,),) = session.rows(statements.count(newest))
        return int(distinct)

    def _landed(self, landing: Landing, transaction: str, newest: str, distinct: int) -> Figures:
        """What the transaction does; raises _MovedError where it may not be done."""
        session, table, window = self._session, self._opened, self._key(landing.key)
        self._lock()
        if session.rows(statements.read_entry(self._ledger), window) != [(landing.old,)]:
            raise _MovedError
        self._check_unchanged()
        written = removed = gone = 0
        deletes = newest.removesuffix("NEWEST") + "DELETES" if newest and table.spec.deletes else ""
        if deletes:
            self._delete(landing, transaction, newest, deletes)
        if newest:
            session.run(statements.delete_outdone(table, newest, landing.past), transaction)
            written = session.run(statements.insert_newest(table, newest), transaction)
        if landing.stale:
            removed = session.run(statements.delete_publications(table.name, landing.stale), transaction)
            if table.spec.deletes:
                session.run(statements.delete_publications(self._memory, landing.stale), transaction)
        if deletes:
            session.run(statements.remember(table, self._memory, deletes), transaction)
            ((gone,),) = session.rows(statements.count_gone(table, deletes))
        figures = Figures(distinct, written, removed, int(gone))
        if session.run(statements.change_entry(self._ledger), landing.entry(figures), window, landing.old, transaction) != 1:
            raise _MovedError
        return figures

    def _check_unchanged(self) -> None:
        """Raise ChangedError for a table that isn't the one that was opened: the entry that we claimed fences nobody in another."""
        target, table = self._target, self._opened
        now, missing = look_at_table(self._session, table.name, self._wanted, cluster_by=target.cluster_by, create=True, add_columns=True)
        if now.made != table.made:
            raise ChangedError(self.table, "it was recreated" if now.made else "it was dropped")
        if missing or now != table:
            raise ChangedError(self.table, "its columns were changed")

    def _delete(self, landing: Landing, transaction: str, newest: str, deletes: str) -> None:
        """Apply our deletes, and those that are remembered, to the table and to the staged rows; what they leave are the newest."""
        session, table, memory = self._session, self._opened, self._memory
        rows = newest.removesuffix("NEWEST") + "ROWS"
        session.run(statements.delete_outlived(table, deletes, memory, landing.past))
        session.run(statements.delete_outweighed(table, rows, deletes), transaction)
        session.run(statements.delete_outweighed(table, rows, memory, spared=landing.past), transaction)
        session.run(statements.fill_newest(table, newest, rows))
        session.run(statements.delete_outweighed(table, table.name, deletes, also=landing.past), transaction)
        session.run(statements.forget_deletes(table, memory, deletes), transaction)

    def discard(self, parts: Sequence[Part]) -> None:
        """Drop the staging tables, unless they ended with their session."""
        if self._staged_in == self._session.number:
            for suffix in ("", "_NEWEST", *(("_ROWS", "_DELETES") if self._opened.spec.deletes else ())):
                self._session.run(statements.drop(_staging(parts[0]) + suffix))

    def close(self) -> None:
        """See ``LedgerSink.close``."""
        self._table = None
        self._session.close()


class _MovedError(Exception):
    """The ledger's entry isn't the one that a landing was made for, or its transaction is over."""


def _staging(part: Part) -> str:
    """The staging table of a publication: all its parts go into one."""
    return f"FACTORY_STAGE_{part.publication:016X}"
