"""The sink: sessions, transactions, retries and what to do when an answer doesn't come."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from factory_agents import failpoints
from factory_agents.contracts import TableSpec
from factory_agents.databases.postgres import Database, cut_after, explain, lost
from factory_agents.errors import FactoryError, SinkError, UnavailableError
from factory_agents.kafka.messages import Message
from factory_agents.kafka.records import MarkRecord
from factory_agents.runtime.agents import Claim, Reject, RowsRefused, SinkOutcome
from factory_agents.runtime.delete_markers import DeletesReader
from factory_agents.sinks.postgres.catalog import relations
from factory_agents.sinks.postgres.deletes import Deletes, memory_of
from factory_agents.sinks.postgres.horizon import Horizon
from factory_agents.sinks.postgres.ledger import Ledger
from factory_agents.sinks.postgres.merge import Publication
from factory_agents.sinks.postgres.names import TableName, compose
from factory_agents.sinks.postgres.rights import check_rights
from factory_agents.sinks.postgres.table import HORIZONS, LEDGER, PUBLICATIONS, TargetTable, check_wanted, open_table

if TYPE_CHECKING:
    import psycopg

__all__ = ["PostgresSink", "PostgresTarget"]

_T = TypeVar("_T")
_TRIES = 6
_IN_EACH_OTHERS_WAY = ("40001", "40P01")
_LOCKED = "55P03"
_MISTAKEN = "42"
"""What a statement names is not there, or of another type: it was, when the table was claimed."""
_ON_THE_WAY = 60.0
"""Seconds that an answer may take beyond the server's own limits."""
_APPLY_IDLE = "60s"
"""A publisher that stops dead between its last row and its commit holds its locks no longer than this."""
_RECONNECTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses, in seconds, before each question whether a commit was made: a restarting server takes some."""


class PostgresTarget(msgspec.Struct, frozen=True):
    """Where and what to publish. Timeouts are seconds: of one statement (0: none), and of waiting for another's lock."""

    database: Database
    table: TableName
    wanted: TableSpec = TableSpec()
    create_table: bool = True
    statement_timeout: float = 900.0
    lock_timeout: float = 60.0


class PostgresSink:
    """A ``Sink`` over one table.

    ``claim`` commits by itself, and ends sessions that still publish what it takes over. ``write`` copies rows in the transaction that
    ``commit`` ends. While the window's keys are new, and nobody is in the way, they go straight into the table. Else they go into a
    temporary one, in a new session that takes over what was copied so far: there duplicates are removed by key, and the rest is merged in
    key order (so that publishers don't deadlock). At last what the window no longer produces is deleted, and the ledger row is written.
    ``identity`` enters the fingerprint. The database is not spoken to before ``claim``.
    """

    name = "publish"
    version = "1"
    system = "postgres"

    def __init__(self, target: PostgresTarget, identity: dict[str, Any]) -> None:
        check_wanted(target.wanted)
        self._deletes = DeletesReader(target.wanted)
        self.identity = identity
        self.address = target.database.address
        self.target = target
        self._connection: psycopg.Connection[Any] | None = None
        self._publication: Publication | None = None
        self._claimed_last: tuple[TargetTable, Claim] | None = None

    def check(self) -> list[str]:
        """What a claim would find, create and alter, in lines for a person: it is done, looked at, and rolled back.

        Raises as ``claim`` does.
        """
        target = self.target
        connection = self._connect("factory check")
        with self._explained(f"checking table {target.table.name}"):
            self._open_transaction(connection)
            named = (target.table.name, LEDGER, PUBLICATIONS, HORIZONS, memory_of(target.table.name))
            before = relations(connection, target.table.schema, named)
            table = self._retried(connection, lambda: open_table(connection, target.table, target.wanted, create=target.create_table))
            if table.deletes:
                self._retried(connection, Deletes(connection, table).open)
            check_rights(connection, table)
            after = relations(connection, target.table.schema, named)
            connection.rollback()
        self.close()
        columns = ", ".join(f"{c.name} {type_}" for c, type_ in zip(table.columns, table.staged, strict=True))
        return [
            f"the database {self.address} answers",
            f"{table.text} {'is there, and takes the columns' if table.name in before else 'would be created'}: {columns}",
            *(f"{table.schema}.{name} would be created" for name in named[1:] if name in after and name not in before),
            *(f"{table.schema}.{name} would get another column" for name in named if before.get(name, after.get(name)) != after.get(name)),
            "the user has the rights that publish needs",
        ]

    def claim(self, claim: Claim) -> SinkOutcome | None:
        """See ``Sink.claim``. The table is created, or compared with the contract, here.

        Raises SinkError where it doesn't fit or holds a newer manifest's rows, ConfigurationError or UnavailableError where the database
        refuses or doesn't answer.
        """
        self.close()
        connection = self._connect(_application(claim))
        target = self.target
        with self._explained(f"claiming shard {claim.shard.key} of window {claim.window}"):
            self._open_transaction(connection)
            table = self._retried(connection, lambda: open_table(connection, target.table, target.wanted, create=target.create_table))
            if table.deletes:
                self._retried(connection, Deletes(connection, table).open)
            check_rights(connection, table)
            ledger = Ledger(connection, table, claim)
            acquired = self._retried(connection, ledger.acquire)
            connection.commit()
            ledger.evict()  # who began to publish since, not knowing of this claim
            connection.commit()
        failpoints.hit("postgres.claimed")
        self._claimed_last = table, claim
        if acquired.outcome is None:
            self._publication = Publication(connection, table, claim, acquired)
        return acquired.outcome

    def write(self, messages: Sequence[Message]) -> dict[int, Reject]:
        """See ``Sink.write``. Raises UnavailableError where the database is lost or cannot take more, FencedError after a newer claim."""
        publication = self._claimed()
        with self._explained(f"copying rows for {publication.table.text}"):
            self._begin(publication)
            rejected = publication.read(self._deletes.read(messages))
            self._send(publication, publication.flow)
        return rejected

    def commit(self, *, rejected: int) -> SinkOutcome:
        """See ``Sink.commit``. Deadlocks and serialization failures are tried again here, with the rows still staged."""
        publication = self._claimed()
        doing = f"publishing to {publication.table.text}"
        with self._explained(doing):
            self._begin(publication)
            self._send(publication, publication.finish)
            connection = publication.connection
            self._limit(connection, self.target.statement_timeout, _APPLY_IDLE)
            failpoints.hit("postgres.before-merge")
            outcome = self._apply(publication, rejected)
            failpoints.hit("postgres.before-commit")
        self._end(publication, doing)
        failpoints.hit("postgres.committed")
        self._publication = None
        return outcome

    def _apply(self, publication: Publication, rejected: int) -> SinkOutcome:
        """Raises RowsRefused where single rows can't be merged: they are not among the rows to be merged any more. UnavailableError where
        the table was altered since it was opened.
        """
        import psycopg

        connection = publication.connection
        try:
            return self._retried(connection, lambda: publication.apply(rejected))
        except psycopg.Error as error:
            if not publication.may_hold_refused(error):
                raise
            connection.execute("ROLLBACK TO SAVEPOINT factory")
            refused = self._retried(connection, publication.take_out_refused)
            if not refused:
                raise
            if publication.is_altered():  # it may not take any row as it is now, which opening it says
                raise publication.altered() from error
        raise RowsRefused(refused)

    def prune(self, mark: Callable[[], MarkRecord | None]) -> int:
        """See ``PrunedSink.prune``: once a day for each stage, in a transaction of its own."""
        if self._claimed_last is None:
            return 0
        table, claim = self._claimed_last
        connection = self._connection or self._connect(_application(claim))
        with self._explained(f"pruning {LEDGER} of {table.text}"):
            self._open_transaction(connection)
            horizon = Horizon(connection, table, claim)
            with cut_after(connection, self._patience):
                due = horizon.is_due()
            connection.commit()  # nothing is locked while the mark is looked up
            if not due:
                return 0
            found = mark()
            self._open_transaction(connection)
            with cut_after(connection, self._patience):
                gone = horizon.prune(found)
            failpoints.hit("postgres.before-prune")
            connection.commit()
        return gone

    def close(self) -> None:
        """See ``Sink.close``."""
        connection, self._connection = self._connection, None
        publication, self._publication = self._publication, None
        if connection is not None:
            connection.close()
        if publication is not None:
            publication.drop()

    def _claimed(self) -> Publication:
        if self._publication is None:
            raise SinkError("nothing is claimed (or it was committed, or failed, already): claim first")
        return self._publication

    def _connect(self, application: str) -> psycopg.Connection[Any]:
        connection = self.target.database.connect(application)
        self._connection = connection
        encoding = connection.info.parameter_status("server_encoding")
        if encoding not in (None, "UTF8"):
            raise SinkError(f"the database {self.target.database.address} is encoded in {encoding}; events need one in UTF8")
        return connection

    def _open_transaction(self, connection: psycopg.Connection[Any], idle: str = "0") -> None:
        """Begin a transaction with settings of its own (a connection pooler would lend a session's to others)."""
        self._limit(connection, self.target.statement_timeout, idle)
        connection.execute(
            "SELECT set_config('timezone', 'UTC', true),"
            # A commit that the machine's end may undo would leave Kafka's ledger ahead of the table.
            " CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END"
        )

    def _limit(self, connection: psycopg.Connection[Any], statement: float, idle: str) -> None:
        connection.execute(
            compose(
                "SELECT set_config('lock_timeout', {lock}, true), set_config('statement_timeout', {statement}, true),"
                " set_config('idle_in_transaction_session_timeout', {idle}, true)",
                lock=f"{max(1, round(self.target.lock_timeout * 1000))}ms",
                statement=f"{round(statement * 1000)}ms",
                idle=idle,
            )
        )

    def _begin(self, publication: Publication) -> None:
        """Begin to publish, unless that was done."""
        connection = publication.connection
        if connection.info.transaction_status.name != "IDLE":
            return
        with cut_after(connection, self._patience):
            self._open_transaction(connection)
            publication.begin()
            self._limit(connection, 0, "0")  # a COPY takes as long as its rows take to come

    def _send(self, publication: Publication, send: Callable[[], None]) -> None:
        """Send rows; where they cannot go straight into the table, all of them change over to a new session to be merged."""
        import psycopg

        try:
            with cut_after(publication.connection, self._patience):
                send()
            return
        except psycopg.Error as error:
            if not publication.may_change_over(error):
                raise
        with publication.connection as old, cut_after(old, self._patience):
            fresh = self._connect(_application(publication.claim))
            self._open_transaction(fresh)
            self._limit(fresh, 0, "0")
            publication.change_over(fresh)
            old.rollback()
        with cut_after(publication.connection, self._patience):
            send()

    def _retried(self, connection: psycopg.Connection[Any], work: Callable[[], _T]) -> _T:
        """Work within a savepoint, again while transactions get in each other's way."""
        import psycopg

        attempt = 0
        while True:
            connection.execute("SAVEPOINT factory")
            try:
                with cut_after(connection, self._patience):
                    return work()
            except psycopg.Error as error:
                attempt += 1
                if error.sqlstate not in _IN_EACH_OTHERS_WAY or attempt == _TRIES:
                    raise
                connection.execute("ROLLBACK TO SAVEPOINT factory")
                time.sleep(random.random() * 0.05 * 2**attempt)

    @property
    def _patience(self) -> float:
        """How long the answers of one step may take: some statements' time, and more for the way (0: no limit)."""
        return self.target.statement_timeout * 4 + _ON_THE_WAY if self.target.statement_timeout else 0

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Turn psycopg's errors into ours; after any of them nothing of the transaction, nor of the claim, is left."""
        import psycopg

        try:
            yield
        except psycopg.Error as error:
            publication = self._publication
            raised: FactoryError
            if error.sqlstate == _LOCKED:
                raised = self._locked(doing)
            elif publication is not None and lost(publication.connection, error) and self._was_taken_over(publication):
                raised = publication.fenced()
            elif publication is not None and (error.sqlstate or "").startswith(_MISTAKEN) and self._was_altered(publication):
                raised = publication.altered()
            else:
                raised = explain(error, f"{doing} ({self.target.database.address})")
            self.close()
            raise raised from error
        except RowsRefused:
            raise
        except BaseException:
            self.close()
            raise

    def _was_altered(self, publication: Publication) -> bool:
        """Whether the table is not as it was claimed; ends the transaction."""
        import psycopg

        try:
            with cut_after(publication.connection, self._patience):
                publication.connection.rollback()
                return publication.is_altered()
        except psycopg.Error:
            return False

    def _was_taken_over(self, publication: Publication) -> bool:
        """Whether a newer claim was made, which may have ended our session."""
        import psycopg

        self.close()
        try:
            connection = self._connect(_application(publication.claim))
            self._open_transaction(connection)
            with cut_after(connection, self.target.lock_timeout + _ON_THE_WAY):
                return Ledger(connection, publication.table, publication.claim).was_taken_over(publication.fence)
        except (psycopg.Error, UnavailableError):
            return False
        finally:
            self.close()

    def _locked(self, doing: str) -> UnavailableError:
        """The error for a lock that wasn't to be had, with who may hold it as far as the server tells."""
        import psycopg

        holders = ""
        if self._connection is not None:
            try:
                self._connection.rollback()
                holders = _holders(self._connection, [self.target.table.name, LEDGER])
            except psycopg.Error:
                holders = ""
        name = self.target.table.name
        return UnavailableError(
            f"{doing} ({self.target.database.address}): table {name!r} or rows of it stayed locked for"
            f" {self.target.lock_timeout:g} s{holders}; retry when it is free"
        )

    def _end(self, publication: Publication, doing: str) -> None:
        """Commit; where the answer doesn't come, ask the ledger whether it was done."""
        import psycopg

        connection = publication.connection
        address = self.target.database.address
        try:
            with cut_after(connection, self._patience):
                connection.commit()
        except psycopg.Error as error:
            gone = lost(connection, error)
            self.close()
            if not gone:
                raise explain(error, f"{doing} ({address})") from error
            if not self._was_committed(publication, doing):
                if self._was_taken_over(publication):
                    raise publication.fenced() from error
                raise UnavailableError(
                    f"{doing} ({address}): the connection was lost at the commit, which was not made; a retry publishes again"
                ) from error

    def _was_committed(self, publication: Publication, doing: str) -> bool:
        """Whether the ledger has this attempt's commit, asked over new sessions; a server process that is still at it is waited for."""
        import psycopg

        failure: Exception | None = None
        for pause in _RECONNECTS:
            time.sleep(pause)
            try:
                connection = self._connect(_application(publication.claim))
                self._open_transaction(connection)
                with cut_after(connection, self.target.lock_timeout + _ON_THE_WAY):
                    return Ledger(connection, publication.table, publication.claim).committed(publication.fence)
            except (psycopg.Error, UnavailableError) as error:
                failure = error
            finally:
                self.close()
        raise UnavailableError(
            f"{doing} ({self.target.database.address}): the connection was lost at the commit, and the database cannot be asked whether"
            " it was made; a retry finds out"
        ) from failure


def _application(claim: Claim) -> str:
    """What the database calls our sessions."""
    return f"factory {claim.pipeline}/{claim.stage}"


def _holders(connection: psycopg.Connection[Any], tables: Sequence[str]) -> str:
    """Sessions that hold more than a reader's lock on these tables, for a message."""
    rows = connection.execute(
        """
        SELECT DISTINCT a.pid, a.application_name, a.usename, a.state, date_trunc('second', now() - a.xact_start)::text
        FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_class c ON c.oid = l.relation JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
        WHERE l.granted AND l.locktype = 'relation' AND l.mode <> 'AccessShareLock' AND c.relname = ANY(%s) AND l.pid <> pg_backend_pid()
        ORDER BY a.pid LIMIT 5
        """,
        [list(tables)],
    ).fetchall()
    who = [f"process {pid} ({name or 'no application name'}, user {user}, {state}, for {since})" for pid, name, user, state, since in rows]
    return f", maybe by {'; '.join(who)}" if who else ""
