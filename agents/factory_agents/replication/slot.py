"""What replication needs in the database: a table with a key, a publication of it, and a slot; and what the server tells of them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents.databases.postgres import Database, explain
from factory_agents.databases.statements import table_name
from factory_agents.errors import ConfigurationError, DataLossError, UnavailableError
from factory_agents.replication.pgoutput import Column
from factory_agents.replication.values import SETTINGS, converters, known, own_types
from factory_agents.telemetry import fields

if TYPE_CHECKING:
    import psycopg

    from factory_agents.replication.values import Convert

__all__ = ["DatabaseGoneError", "Server", "Slot", "SourceTable", "asking", "lost", "lsn_text", "session"]

log = logging.getLogger(__name__)

_PLUGIN = "pgoutput"
_OLDEST = 140000


def lsn_text(lsn: int) -> str:
    """A place in the log as PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


class DatabaseGoneError(UnavailableError):
    """The database, not the broker, doesn't answer: a reader waits for it, and goes on by itself."""


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Turn psycopg's errors into ours; DatabaseGoneError where a retry may help."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        told = explain(error, what, ConfigurationError, right="SELECT")
        raise DatabaseGoneError(str(told)) if isinstance(told, UnavailableError) else told from error


def session(database: Database, *, replication: bool = False) -> psycopg.Connection[Any]:
    """A session whose texts ``values`` reads: for questions, or (``replication``) for the log."""
    options = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items() if name != "client_encoding")
    own = f"{database.parameters.get('options', '')} {options} -c statement_timeout=0 -c idle_session_timeout=0".strip()
    parameters = database.parameters | {"options": own, "client_encoding": "UTF8"}
    if replication:
        parameters["replication"] = "database"
    try:
        connection = msgspec.structs.replace(database, parameters=parameters).connect("factory-replicate")
    except UnavailableError as error:
        raise DatabaseGoneError(str(error)) from error
    connection.autocommit = True
    return connection


class SourceTable(msgspec.Struct, frozen=True):
    """The table whose changes are read. ``key`` are the columns that tell its rows apart, in their index's order; ``identity`` as in
    ``pgoutput.Described``; ``condition`` is SQL that holds for the rows that are published; ``membership`` are the publication's oid, that
    of the table's place in it, and the columns that it names, or ``-``.
    """

    oid: int
    schema: str
    name: str
    identity: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    condition: str = ""
    membership: str = ""

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The key's columns in the table's order, as the log has them."""
        return tuple(name for name in self.columns if name in self.key)

    @property
    def text(self) -> str:
        """How messages speak of it."""
        return f"{self.schema}.{self.name}"


class Slot(msgspec.Struct, frozen=True):
    """What the server says of a slot: up to where it was confirmed, whose process reads it, and how much log it holds back (bytes).

    ``state`` is wal_status: reserved, extended, unreserved, or lost; ``left`` is how much more may be written before it is lost (-1: no
    limit is set). ``behind`` is how much was written behind what is confirmed.
    """

    confirmed: int
    reader: int
    state: str
    held: int
    behind: int
    left: int = -1


class Server:
    """One database, asked."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: psycopg.Connection[Any] | None = None

    @property
    def address(self) -> str:
        """Where it is."""
        return self._database.address

    def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _session(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = session(self._database)
        return self._connection

    def run(self, what: str, query: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[tuple[Any, ...]]:
        """A statement's rows."""
        with asking(f"{what} ({self.address})"):
            cursor = self._session().execute(query, parameters or None)
            return cursor.fetchall() if cursor.description is not None else []

    def identity(self) -> tuple[str, str]:
        """What tells this database from others: the server's system identifier, and the database's name.

        Raises ConfigurationError for a server from which nothing can be replicated.
        """
        ((version, level, standby, system, name),) = self.run(
            "looking at the server",
            "SELECT current_setting('server_version_num')::int, current_setting('wal_level'), pg_is_in_recovery(),"
            " (SELECT system_identifier::text FROM pg_control_system()), current_database()",
        )
        if version < _OLDEST:
            raise ConfigurationError(f"the database {self.address} is of PostgreSQL {version // 10000}: replication needs 14 or newer")
        if level != "logical":
            raise ConfigurationError(
                f"the database {self.address} has wal_level={level}: replication needs ALTER SYSTEM SET wal_level = 'logical' and a restart"
            )
        if standby:
            raise ConfigurationError(f"the database {self.address} is a standby: give the address of its primary")
        return system, name

    def table(self, text: str) -> SourceTable:
        """The table of a name. Raises ConfigurationError where there is none, or where its rows can't be told apart."""
        parts = table_name(text)
        rows = self.run(
            f"looking for table {text!r}",
            "SELECT c.oid::bigint, n.nspname, c.relname, c.relreplident::text, c.relkind::text, c.relpersistence::text,"
            " array(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
            "  AND a.attgenerated = '' ORDER BY a.attnum),"
            " coalesce((SELECT array_agg(a.attname::text ORDER BY k.n) FROM pg_index i, unnest(i.indkey) WITH ORDINALITY AS k(attnum, n),"
            "  pg_attribute a WHERE i.indrelid = c.oid AND k.n <= i.indnkeyatts AND a.attrelid = c.oid AND a.attnum = k.attnum"
            "  AND CASE c.relreplident WHEN 'i' THEN i.indisreplident"
            "   ELSE i.indisprimary AND (i.indimmediate OR c.relreplident = 'f') END), '{}')"
            " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.oid = to_regclass(%s) AND c.relkind IN ('r', 'p')",
            [".".join('"' + part.replace('"', '""') + '"' for part in parts)],
        )
        if not rows:
            raise ConfigurationError(f"table {text!r} is not there ({self.address}), or is no table; give schema.table")
        ((oid, schema, name, identity, _, persistence, columns, key),) = rows
        table = SourceTable(oid, schema, name, identity, tuple(key), tuple(columns))
        if persistence != "p":
            raise ConfigurationError(f"table {table.text} is unlogged or temporary: its changes are in no log")
        if not key or identity == "n":
            raise ConfigurationError(
                f"table {table.text} has no key by which its changes name a row; add a primary key (not a deferrable one), or "
                f"ALTER TABLE … REPLICA IDENTITY USING INDEX a unique one of columns that are NOT NULL"
            )
        return table

    def publish(self, publication: str, table: SourceTable) -> SourceTable:
        """Make the publication of the table, if it isn't there; the table as it is published (a part of its columns, or of its rows).

        Raises ConfigurationError where the publication lacks the table or some changes.
        """
        from psycopg import sql

        found = self._publication(publication, table)
        if found is None:
            statement = sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)").format(
                sql.Identifier(publication), sql.Identifier(table.schema, table.name)
            )
            try:
                self.run(f"making publication {publication!r} (this takes the table's owner, and CREATE on the database)", statement)  # type: ignore[arg-type]
            except ConfigurationError:
                if (found := self._publication(publication, table)) is None:
                    raise
            else:
                found = self._publication(publication, table) or (True, True, True)
        there, every, root = found
        if not there:
            raise DataLossError(
                f"publication {publication!r} does not hold table {table.text}: it was dropped from it, or the table was deleted and "
                f"created again, and changes since are not in the log; add it (ALTER PUBLICATION … ADD TABLE …), and begin again with a "
                f"snapshot (factory replicate drop, then run)"
            )
        if not every or not root:
            raise ConfigurationError(
                f"publication {publication!r} leaves changes out; ALTER PUBLICATION … SET (publish = 'insert, update, delete, truncate', "
                f"publish_via_partition_root = true)"
            )
        return self._published(publication, table)

    def _published(self, publication: str, table: SourceTable) -> SourceTable:
        rows = self.run(  # as JSON: PostgreSQL 14 has neither
            f"looking at what publication {publication!r} holds of table {table.text}",
            "SELECT to_jsonb(t) -> 'attnames', to_jsonb(t) ->> 'rowfilter',"
            " concat_ws(' ', p.oid, coalesce(r.oid, p.oid), coalesce(replace(to_jsonb(r) ->> 'prattrs', ' ', ','), '-'))"
            " FROM pg_publication p LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = %s::oid"
            " LEFT JOIN pg_publication_tables t ON t.pubname = p.pubname AND schemaname = %s AND tablename = %s WHERE p.pubname = %s",
            [table.oid, table.schema, table.name, publication],
        )
        ((names, condition, membership),) = rows or [(None, None, "")]
        published = msgspec.structs.replace(table, columns=tuple(names or table.columns), condition=condition or "", membership=membership)
        if missing := [name for name in table.key if name not in published.columns]:
            raise ConfigurationError(
                f"publication {publication!r} leaves out {', '.join(missing)} of table {table.text}: publish all columns of the key"
            )
        return published

    def _publication(self, publication: str, table: SourceTable) -> tuple[bool, bool, bool] | None:
        rows = self.run(
            f"looking for publication {publication!r}",
            "SELECT p.puballtables OR EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = %s::oid)"
            "  OR EXISTS (SELECT FROM pg_publication_tables t WHERE t.pubname = p.pubname AND t.schemaname = %s AND t.tablename = %s),"
            " p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate,"
            " p.pubviaroot OR (SELECT relkind <> 'p' FROM pg_class WHERE oid = %s::oid) FROM pg_publication p WHERE p.pubname = %s",
            [table.oid, table.schema, table.name, table.oid, publication],
        )
        return (rows[0][0], rows[0][1], rows[0][2]) if rows else None

    def slot(self, name: str) -> Slot | None:
        """What the server says of a slot of this database; raises ConfigurationError for one of another kind."""
        rows = self.run(
            f"looking for slot {name!r}",
            "SELECT plugin, database = current_database(), coalesce(confirmed_flush_lsn - '0/0', 0)::bigint, coalesce(active_pid, 0),"
            " coalesce(wal_status, 'lost'), coalesce(pg_current_wal_lsn() - restart_lsn, 0)::bigint,"
            " coalesce(pg_current_wal_lsn() - confirmed_flush_lsn, 0)::bigint, coalesce(safe_wal_size, -1)::bigint"
            " FROM pg_replication_slots WHERE slot_name = %s",
            [name],
        )
        if not rows:
            return None
        ((plugin, ours, confirmed, reader, state, held, behind, left),) = rows
        if plugin != _PLUGIN or not ours:
            raise ConfigurationError(f"slot {name!r} ({self.address}) is another database's, or not of {_PLUGIN}; give another name (slot)")
        return Slot(confirmed, reader, state, held, behind, left)

    def make_slot(self, name: str) -> int:
        """Make the slot; where its changes begin. It waits for the transactions that are running, in whichever database of the server."""
        if waits_for := self.running():
            log.warning(
                "making the slot waits for transactions that are open; where one stays open, end its session (pg_terminate_backend), or "
                "commit it or roll it back where it is prepared",
                extra=fields(slot=name, transactions=waits_for),
            )
        ((lsn,),) = self.run(
            f"making slot {name!r}",
            "SELECT (lsn - '0/0')::bigint FROM pg_create_logical_replication_slot(%s, %s)",
            [name, _PLUGIN],
        )
        return int(lsn)

    def running(self) -> list[str]:
        """The oldest transactions of the server that write or are prepared, for a message."""
        rows = self.run(
            "looking for transactions",
            "SELECT format('%s (%s), since %s', who, datname, since::timestamptz(0)) FROM ("
            " SELECT concat_ws(' ', pid::text, application_name), datname::text, xact_start"
            "  FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()"
            " UNION ALL SELECT format('prepared %L', gid), database::text, prepared FROM pg_prepared_xacts"
            ") AS t (who, datname, since) ORDER BY since LIMIT 3",
        )
        return [text for (text,) in rows]

    def drop(self, slot: str, publication: str) -> list[str]:
        """Drop the slot and the publication; what was there."""
        from psycopg import sql

        gone = []
        if (found := self.slot(slot)) is not None:
            self.free(slot, found)
            self.run(f"dropping slot {slot!r}", "SELECT pg_drop_replication_slot(%s)", [slot])
            gone.append(f"slot {slot}")
        if self.run(f"looking for publication {publication!r}", "SELECT FROM pg_publication WHERE pubname = %s", [publication]):
            self.run(f"dropping publication {publication!r}", sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(publication)))  # type: ignore[arg-type]
            gone.append(f"publication {publication}")
        return gone

    def free(self, name: str, slot: Slot) -> None:
        """End whoever reads the slot: an earlier attempt, which is fenced already."""
        if slot.reader:
            self.run(f"ending the process that reads slot {name!r}", "SELECT pg_terminate_backend(%s, 10000)", [slot.reader])

    def here(self) -> int:
        """Up to where the log is written and flushed."""
        ((lsn,),) = self.run("asking where the log ends", "SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint")
        return int(lsn)

    def flush(self) -> int:
        """Flush all that other sessions may see by now; where the log ends then."""
        self.run("writing a mark into the log", "SELECT pg_logical_emit_message(true, 'factory', '')")
        return self.here()

    def horizon(self) -> int:
        """A number of transactions: those below it may still be running, later ones have a greater one."""
        # One of its own: a snapshot's xmax is that behind the last one that ended, and running ones may be newer.
        ((xid,),) = self.run("asking for running transactions", "SELECT pg_current_xact_id()::text::bigint")
        return int(xid)

    def all_ended(self, horizon: int) -> bool:
        """Whether every transaction below the horizon is over, and seen by whoever looks from now on."""
        query = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint >= %s"
        return bool(self.run("asking for running transactions", query, [horizon])[0][0])

    def converters(self, columns: Sequence[Column], key: Collection[str]) -> list[Convert | None]:
        """What reads the columns' texts; ``key`` names those of the key."""
        own = {column.type for column in columns if not known(column.type)}
        if not own:
            return converters({}, columns, key)
        with asking(f"asking for types ({self.address})"):
            return converters(own_types(self._session(), own), columns, key)

    def read_rows(self, table: SourceTable, after: Sequence[str] | None) -> Generator[tuple[str | None, ...]]:
        """The rows behind a key, by key, all of one moment: their values as text."""
        from psycopg import sql

        columns, key = (sql.SQL(", ").join(map(sql.Identifier, names)) for names in (table.columns, table.key))
        wanted: list[sql.Composable] = [sql.SQL("({})").format(sql.SQL(table.condition or "true"))]
        if after is not None:
            wanted.append(sql.SQL("({}) > ({})").format(key, sql.SQL(", ").join(map(sql.Literal, after))))
        where = sql.SQL("WHERE ") + sql.SQL(" AND ").join(wanted)
        query = sql.SQL("COPY (SELECT {} FROM {} {} ORDER BY {}) TO STDOUT").format(
            columns, sql.Identifier(table.schema, table.name), where, key
        )
        connection = session(self._database)
        try:
            with asking(f"reading table {table.text} ({self.address})"), connection.cursor().copy(query) as copy:
                yield from copy.rows()
        finally:
            connection.close()

    def columns_of(self, table: SourceTable) -> tuple[Column, ...]:
        """The columns, in the order of ``SourceTable.columns``."""
        rows = self.run(
            f"looking at table {table.text}",
            "SELECT attname::text, atttypid::bigint, atttypmod FROM pg_attribute"
            " WHERE attrelid = %s::oid AND attname = ANY (%s) AND attnum > 0 ORDER BY attnum",
            [table.oid, list(table.columns)],
        )
        return tuple(Column(name, type_, False, modifier) for name, type_, modifier in rows)

    def row_now(self, table: SourceTable, columns: Sequence[str], key: Mapping[str, str]) -> list[str | None] | None:
        """Columns of a row as it is now, by its key: values as text; None where there is no such row.

        Raises DataLossError where the table has these columns no more.
        """
        from psycopg import errors, sql

        query = sql.SQL("COPY (SELECT {} FROM {} WHERE ({}) = ({})) TO STDOUT").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            sql.Identifier(table.schema, table.name),
            sql.SQL(", ").join(map(sql.Identifier, key)),
            sql.SQL(", ").join(map(sql.Literal, key.values())),
        )
        try:
            with asking(f"looking a row of {table.text} up ({self.address})"), self._session().cursor().copy(query) as copy:
                rows = list(copy.rows())
        except ConfigurationError as error:
            if not isinstance(error.__cause__, errors.UndefinedColumn):
                raise
            raise DataLossError(
                f"table {table.text}: an update left {', '.join(columns)} as it was, and a column was dropped or renamed since, so that "
                f"the value is not known; begin again with a snapshot (factory replicate drop, then run); REPLICA IDENTITY FULL prevents it"
            ) from error
        return list(rows[0]) if rows else None


def lost(slot: str, why: str) -> DataLossError:
    """The error of a slot that can't be gone on from."""
    return DataLossError(
        f"slot {slot!r} {why}: changes that are not in the topic are gone; begin again with a snapshot (factory replicate drop, then run)"
    )
