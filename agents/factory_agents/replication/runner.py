"""``run_replication``: a table's changes from PostgreSQL's log into a topic, once, in windows or for as long as it runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NoReturn

import msgspec

from factory_agents import __version__, failpoints
from factory_agents.databases.postgres import Database
from factory_agents.errors import (
    AccountingError,
    ConfigurationError,
    DataLossError,
    DeadlineError,
    StoppedError,
    UnavailableError,
)
from factory_agents.kafka.cuts import plan_source
from factory_agents.kafka.ledger import StreamRecord
from factory_agents.kafka.records import TableCopy, microseconds
from factory_agents.kafka.writer import ChunkAbortedError
from factory_agents.protocol import AgentResult, AgentRun
from factory_agents.replication.envelope import Envelopes, Pair, Place, Table, fill
from factory_agents.replication.log import LogReader
from factory_agents.replication.pgoutput import UNCHANGED, Begin, Change, Commit, Described, Truncate, parse
from factory_agents.replication.session import StreamSession
from factory_agents.replication.slot import DatabaseGoneError, Server, SourceTable, lost, lsn_text
from factory_agents.runtime.session import RunContext
from factory_agents.telemetry import Batch, fields

__all__ = ["LIVE", "Replication", "run_replication"]

log = logging.getLogger(__name__)

LIVE = "live"
"""Names the work of a reader that has no window."""

_PATIENCE = 60.0  # seconds without a database before the attempt ends
_WAIT = 0.2
_LOOK_SECONDS = 10.0
_ADVANCE_SECONDS, _ADVANCE_BYTES = 30.0, 16 * 1024 * 1024
_COPY_BATCH = 1_000


class Replication(msgspec.Struct, frozen=True):
    """What is to be replicated, from where, and how: see ``replicate.ReplicateParams``."""

    database: Database
    table: str
    slot: str
    publication: str
    snapshot: bool
    truncate: str
    max_lag: int
    identity: dict[str, Any]
    name: str = "replicate"
    version: str = "1"


def run_replication(context: RunContext, run: AgentRun, make: Callable[[], Replication]) -> AgentResult:
    """Write the table's changes to the output topic: those of the run's interval, or (a run named ``live``) until it is told to stop.

    The result is then in the ledger. Raises a FactoryError; what was committed before stays, and the next attempt goes on behind it.
    """
    if not run.output_topic:
        raise ConfigurationError(f"stage {run.stage!r}: replicate needs a topic to write to (--topic, OUTPUT_TOPIC or output_topic)")
    if run.dry_run or run.shard.of > 1:
        raise ConfigurationError(f"stage {run.stage!r}: a log is read once, by one reader: replicate takes no dry run and no shards")
    if run.interval is None and run.name != LIVE:
        raise ConfigurationError(f"stage {run.stage!r}: replicate needs an interval, or is run live (factory replicate run)")
    wanted = make()
    session = StreamSession(context, run, wanted.name, wanted.version, wanted.identity)
    server = Server(wanted.database)
    try:
        done = session.start()
        if done is not None:
            return session.reused(done)
        if run.interval is not None:
            plan_source(context.config, run.work, run.interval, prefix=run.prefix, output_topic=run.output_topic, keep=run.keep_windows)
        return _Reading(session, wanted, server).to_end()
    finally:
        server.close()
        session.close()


class _WindowEnds(Exception):  # noqa: N818  # nothing failed
    """All that belongs to the window is read. ``lsn``: all transactions committed before are in the topic."""

    def __init__(self, lsn: int, note: str = "") -> None:
        super().__init__(note)
        self.lsn = lsn
        self.note = note


class _Reading:
    """The loop of one attempt: copy the table if that isn't done, then read the log to the window's end."""

    def __init__(self, session: StreamSession, wanted: Replication, server: Server) -> None:
        self.session, self.wanted, self.server = session, wanted, server
        self.run = session.run
        self.live = self.run.interval is None
        self.end = microseconds(self.run.interval.end) if self.run.interval is not None else 0
        self.rows = session.progress.rows
        self.table: SourceTable
        self.envelopes: Envelopes
        self.shape: Table | None = None
        self.log: LogReader | None = None
        self.begin: Begin | None = None
        self.changes = 0
        self.skip = 0
        self.notes: list[str] = []
        self._looked = 0.0
        self._advanced = time.monotonic()
        self._down_since = 0.0
        self._handlers: dict[type, Callable[[Any, int], None]] = {
            Begin: self._on_begin,
            Commit: self._on_commit,
            Described: self._on_described,
            Change: self._on_change,
            Truncate: self._on_truncate,
        }

    @property
    def stream(self) -> StreamRecord:
        """How far the log is in the topic, with what is in the open chunk."""
        found = self.session.stream
        if found is None:
            raise AccountingError(f"stage {self.run.stage!r}: nothing is known of the log")
        return found

    def _set(self, **changes: Any) -> None:
        self.session.stream = msgspec.structs.replace(self.stream, **changes)

    # The whole of it

    def to_end(self) -> AgentResult:
        """Until the window is read, or told to stop."""
        try:
            return self._tried()
        finally:
            self._close_log()

    def _tried(self) -> AgentResult:
        while True:
            try:
                if not self._prepare():
                    return self._finish("its changes were read by a later window")
                if self.stream.copying is not None:
                    self._copy(self.stream.copying)
                return self._read_log()
            except StoppedError:
                if not self.live:
                    raise
                return self._stopped()
            except ChunkAbortedError as aborted:
                self._close_log()
                self.session.retry_chunk(aborted)
                self.rows = self.session.progress.rows
            except DatabaseGoneError as error:
                self._close_log()
                if not self._may_wait():
                    raise
                log.warning("the database is gone, trying again", extra=fields(reason=str(error)))
                self._settle()
                self._pause(1.0)

    def _stopped(self) -> AgentResult:
        """What was done; it is committed already."""
        if self.log is not None:
            self.log.finish()
            self.log = None
        return self.session.result_so_far()

    def _may_wait(self) -> bool:
        now = time.monotonic()
        self._down_since = self._down_since or now
        return now - self._down_since < _PATIENCE

    def _settle(self) -> None:
        """Commit what is read before the log is read on: whoever was fenced meanwhile must not take the slot back."""
        if self.session.stream is not None:
            self._set_place()
            self._seal()

    def _close_log(self) -> None:
        if self.log is not None:
            self.log.close()
            self.log = None

    def _pause(self, seconds: float = _WAIT) -> None:
        self._check_time()
        time.sleep(seconds)

    def _check_time(self) -> None:
        session = self.session
        if session.context.stop():
            raise StoppedError(f"stage {self.run.stage!r}: asked to stop; what is committed stays, a retry resumes")
        if time.monotonic() > session.deadline:
            raise DeadlineError(f"stage {self.run.stage!r}: out of time; what is committed stays, a retry resumes")

    # Table, publication and slot

    def _prepare(self) -> bool:
        """Have all there that is needed, and the slot free; False where the window has nothing left to read."""
        server = self.server
        system, database = server.identity()
        self.table = server.table(self.wanted.table)
        self.envelopes = Envelopes(Place(self.run.pipeline, database, __version__))
        self.shape, self.begin = None, None
        if self.session.stream is not None and not self._enter_window():
            return False
        try:
            if self.session.stream is not None:
                self._check_same(system, database)
            self.table = server.publish(self.wanted.publication, self.table)
            if self.session.stream is not None:
                self._check_published()
            self._ready_slot(system, database)
        except DataLossError as error:
            if not self.run.accept_loss or self.session.stream is None:
                raise
            self._begin_again(error)
            self.table = server.publish(self.wanted.publication, self.table)
            self._ready_slot(system, database)
        self._note_condition()
        return True

    def _check_published(self) -> None:
        """The table must not have been out of the publication meanwhile; other columns or rows are put into it in one step."""
        if not self.stream.membership:
            return  # not known yet
        publication, place, names = self.stream.membership.split()
        publication_now, place_now, names_now = self.table.membership.split()
        asks_the_same = (names, self.stream.condition) == (names_now, self.table.condition)
        if publication != publication_now or (place != place_now and asks_the_same):
            raise DataLossError(
                f"publication {self.wanted.publication!r} was made again, or table {self.table.text} was taken out of it and put back: "
                f"changes in between are not in the log; begin again with a snapshot (factory replicate drop, then run)"
            )

    def _note_condition(self) -> None:
        """Say it where other rows are published than before: those that aren't any more stay in copies, and no change tells of others."""
        before, now = self.stream.condition, self.table.condition
        if before is not None and before != now:
            note = (
                f"publication {self.wanted.publication!r} lets other rows through than before (now: {now or 'all'}; before: "
                f"{before or 'all'}); those that do not change from now on stay in copies, or are missing there"
            )
            self.notes.append(note)
            log.warning("other rows are published than before", extra=fields(table=self.table.text, before=before, now=now))
        self._set(condition=now, membership=self.table.membership)

    def _enter_window(self) -> bool:
        stream, run = self.stream, self.run
        if run.interval is None or stream.window == run.key:
            return True
        if stream.end > microseconds(run.interval.start):
            return False
        if stream.window and stream.open:
            raise UnavailableError(
                f"stage {run.stage!r}: window {stream.window} is begun and not finished, and its changes come first; run it to its end "
                f"(clear its task), one window at a time (max_active_runs=1)"
            )
        self._set(window=run.key, end=self.end, until=0, timed=True, open=True)
        return True

    def _check_same(self, system: str, database: str) -> None:
        stream, table = self.stream, self.table
        if (stream.slot, stream.publication) != (self.wanted.slot, self.wanted.publication):
            raise ConfigurationError(
                f"stage {self.run.stage!r}: the log is read from slot {stream.slot!r} by publication {stream.publication!r}, not from "
                f"{self.wanted.slot!r} by {self.wanted.publication!r}; keep them, or drop them first (factory replicate drop)"
            )
        if (stream.system, stream.database) != (system, database):
            raise DataLossError(
                f"slot {stream.slot!r}: the database {self.server.address} is not the one that was read before (system {stream.system}, "
                f"database {stream.database}), but {system}, {database}; begin again with a snapshot (factory replicate drop, then run)"
            )
        if stream.table != table.oid:
            raise DataLossError(
                f"table {table.text} was deleted and created again: its old rows are in the topic, and no change says that they are gone; "
                f"empty the copies, then begin again with a snapshot (factory replicate drop, then run)"
            )
        if table.identity == "f" and stream.key_columns and set(table.key) != set(stream.key_columns):
            raise self._key_changed(table.key_columns)  # the log doesn't tell
        topic = self.session.outputs.output
        if topic is not None and stream.topic_id != topic.id:
            if self.session.progress.counts.consumed:
                raise DataLossError(
                    f"topic {topic.name!r} was deleted and created again, and a part of window {self.run.key} was in it; begin again "
                    f"with a snapshot (factory replicate drop, then run)"
                )
            self._set(topic=topic.name, topic_id=topic.id)

    def _begin_again(self, why: DataLossError) -> None:
        self.notes.append(f"began again with a snapshot: rows that were deleted since are still in copies ({why})")
        log.warning("beginning again with a snapshot", extra=fields(reason=str(why)))
        self.server.drop(self.stream.slot, self.stream.publication)
        self.session.stream = None

    def _ready_slot(self, system: str, database: str) -> None:
        name = self.wanted.slot
        slot = self.server.slot(name)
        if self.session.stream is None:
            if slot is not None:
                raise ConfigurationError(
                    f"slot {name!r} is there, but the ledger of pipeline {self.run.pipeline!r} knows nothing of it: it is another "
                    f"reader's, or the ledger was lost; give another name (slot), or drop it (SELECT pg_drop_replication_slot('{name}'))"
                )
            self._announce(system, database)
            failpoints.hit("replicate.announced")
        if not self.stream.lsn:
            start = slot.confirmed if slot is not None else self.server.make_slot(name)
            failpoints.hit("replicate.slot-made")
            copying = TableCopy(self.server.horizon()) if self.wanted.snapshot else None
            self._set(lsn=start, copying=copying)
            self._commit()
            return
        if slot is None:
            raise lost(name, "is gone")
        if slot.state == "lost":
            raise lost(name, "was given up by the server, as it held back more of the log than max_slot_wal_keep_size allows")
        if slot.confirmed > self.stream.lsn:
            raise lost(
                name,
                f"was read by somebody else up to {lsn_text(slot.confirmed)}, and the ledger holds all up to {lsn_text(self.stream.lsn)}",
            )
        self.server.free(name, slot)

    def _announce(self, system: str, database: str) -> None:
        """Say in the ledger that the slot is ours before it is made, so that one that is found later is nobody else's."""
        run, topic = self.run, self.session.outputs.output
        if topic is None:
            raise ConfigurationError(f"stage {run.stage!r}: no output topic")
        self.session.stream = StreamRecord(
            pipeline=run.pipeline,
            stage=run.stage,
            scope=run.work.scope,
            slot=self.wanted.slot,
            publication=self.wanted.publication,
            system=system,
            database=database,
            table=self.table.oid,
            name=self.table.text,
            topic=topic.name,
            topic_id=topic.id,
            window="" if self.live else run.key,
            end=self.end,
            open=not self.live,
        )
        self._commit()

    # The table's rows

    def _copy(self, copying: TableCopy) -> None:
        """Every row as it is now, by key, behind those that are in already. What changes meanwhile is in the log, and comes after."""
        told = False
        while not self.server.all_ended(copying.horizon):
            if not told:
                log.info("the copy waits for transactions that are open", extra=fields(transactions=self.server.running()))
            told = True
            self._pause()
        found = self.table
        table = self._table(Described(found.oid, found.schema, found.name, found.identity, self.server.columns_of(found)))
        stream = self.stream
        self.envelopes.begin(Begin(stream.lsn, time.time_ns() // 1000, 0), table, snapshot=True)
        key_at = [self.table.columns.index(name) for name in self.table.key]
        began = time.monotonic()
        try:
            with closing(self.server.read_rows(self.table, copying.after)) as rows:
                for row in rows:
                    self._put([self.envelopes.row(table, row, stream.lsn)])
                    copying = TableCopy(copying.horizon, tuple(str(row[i]) for i in key_at), copying.rows + 1)
                    if copying.rows % _COPY_BATCH == 0:
                        self.session.observer.batch(self.session.subject, Batch(_COPY_BATCH, time.monotonic() - began))
                        self._set(copying=copying)
                        self._commit_if_due()
                        self._check_leaving()
                        began = time.monotonic()
        except DatabaseGoneError:
            self._set(copying=copying)  # what is put is committed before it is gone on with
            raise
        self._set(copying=None, until=self.server.flush(), timed=False)
        self._commit()
        log.info("the table is copied", extra=fields(table=self.table.text, rows=copying.rows))

    def _table(self, described: Described) -> Table:
        named = () if described.identity == "f" else tuple(c.name for c in described.columns if c.key)
        known = self.stream.key_columns
        key = named or known or self.table.key_columns
        if known and (key != known or not {column.name for column in described.columns}.issuperset(key)):
            self._other_key(named or self.table.key_columns)
        self._set(key_columns=key)
        return Table(described, self.server.converters(described.columns, key), key)

    def _other_key(self, named: Sequence[str]) -> NoReturn:
        """Rows are told apart by other columns from here on: the records that are there can't be deleted or replaced."""
        error, begin = self._key_changed(named), self.begin
        if not self.live and begin is not None and not self.changes and not self.skip and self.rows:
            raise _WindowEnds(begin.lsn, f"the window ends at {lsn_text(begin.lsn)}: {error}")
        raise error

    def _key_changed(self, named: Sequence[str]) -> DataLossError:
        return DataLossError(
            f"table {self.table.text}: its key was ({', '.join(self.stream.key_columns)}), and is ({', '.join(named)}) now: later "
            f"changes can neither replace nor delete rows that are in the topic under the old key; empty the copies, then begin again "
            f"with a snapshot (factory replicate drop, then run)"
        )

    # The log

    def _read_log(self) -> AgentResult:
        if not self.live and not self.stream.until:
            self._set(until=self.server.here())
        self.log = reader = LogReader(self.wanted.database, self.wanted.slot, self.wanted.publication, self.stream.lsn)
        handlers, waited = self._handlers, 0
        try:
            while True:
                message = reader.next(_WAIT if waited else 0)
                if message is None:
                    waited = self._nothing_came(reader, waited)
                    continue
                waited = 0
                lsn, body = message
                parsed = parse(body)
                if parsed is not None:
                    handlers[type(parsed)](parsed, lsn)
        except _WindowEnds as ends:
            self._set(lsn=max(ends.lsn, self.stream.lsn), transaction=0, done=0)
            return self._finish(ends.note)

    def _nothing_came(self, reader: LogReader, waited: int) -> int:
        """Between two messages: end the window, commit what is old, answer the server, or leave. How often nothing came by now."""
        self._down_since = 0.0
        if self.begin is None and reader.seen >= self.stream.lsn:
            if not self.live and reader.seen >= self.stream.until:
                raise _WindowEnds(reader.seen)
            self._advance(reader)
        if waited and not self.live:
            reader.confirm(reader.confirmed, ask=True)
        self._commit_if_due()
        self._check_leaving()
        return waited + 1

    def _advance(self, reader: LogReader) -> None:
        """What others write into the log is none of ours: let the server forget it, too."""
        ahead = reader.seen - self.stream.lsn
        due = time.monotonic() - self._advanced > _ADVANCE_SECONDS or ahead > _ADVANCE_BYTES
        if ahead > 0 and due and not self.session.chunk.records:
            self._set(lsn=reader.seen)
            self._commit()

    def _on_begin(self, begin: Begin, _: int) -> None:
        stream = self.stream
        resumed = stream.transaction == begin.lsn
        if stream.transaction and not resumed:
            raise DataLossError(
                f"slot {stream.slot!r}: expected the transaction at {lsn_text(stream.transaction)}, of which {stream.done} changes are in "
                f"the topic, got the one at {lsn_text(begin.lsn)}: the log is not the one that was read; begin again with a snapshot"
            )
        if not self.live and not resumed and (begin.lsn >= stream.until or (stream.timed and begin.micros >= self.end)):
            raise _WindowEnds(begin.lsn)
        self.begin, self.changes, self.skip = begin, 0, stream.done if resumed else 0
        self.envelopes.begin(begin, self.shape)

    def _on_commit(self, commit: Commit, _: int) -> None:
        begin, self.begin = self.begin, None
        self.envelopes.ended(commit.end)
        self._set(lsn=commit.end, transaction=0, done=0, changed=begin.micros // 1000 if begin is not None else self.stream.changed)
        self._commit_if_due()
        if self.session.context.stop():
            self._check_leaving()

    def _on_described(self, described: Described, _: int) -> None:
        if described.oid != self.table.oid:
            return
        before, self.shape = self.shape, self._table(described)
        self.envelopes.describe(self.shape)
        if before is not None and before.names != self.shape.names:
            log.info("the table's columns changed", extra=fields(table=self.table.text, before=before.names, now=self.shape.names))

    def _on_change(self, change: Change, lsn: int) -> None:
        table = self.shape
        if change.oid != self.table.oid or table is None:
            return
        self.changes += 1
        if self.changes <= self.skip:
            return
        if change.op == "u" and UNCHANGED in (change.new or ()):
            whole = self._filled(table, change)
            if whole is None:
                self._filter()
                return
            change = whole
        self._put(self.envelopes.made(table, change, lsn))
        if self.session.chunk.is_full:
            self._commit_within()

    def _filled(self, table: Table, change: Change) -> Change | None:
        """The change with what it left unchanged: from the log, else from the row as it is now.

        Where that row is gone, a later change tells of it: what is left is that the old key is gone, or (None) nothing.
        """
        change = fill(change, table.logged(change))
        new = change.new or []
        missing = [i for i, value in enumerate(new) if value is UNCHANGED]
        if not missing:
            return change
        key = table.key_texts(new)
        row = self.server.row_now(self.table, [table.names[i] for i in missing], dict(zip(table.key, map(str, key), strict=True)))
        if row is not None:
            return fill(change, dict(zip(missing, row, strict=True)))
        if change.old is not None and table.key_texts(change.old) != key:
            return msgspec.structs.replace(change, op="d", new=None)
        return None

    def _on_truncate(self, truncate: Truncate, lsn: int) -> None:
        if self.table.oid not in truncate.oids:
            return
        self.changes += 1
        if self.changes <= self.skip:
            return
        if self.wanted.truncate == "pass":
            if self.shape is not None:
                self._put([self.envelopes.truncated(lsn)])
            return
        begin = self.begin
        if not self.live and self.changes == 1 and begin is not None and self.rows:
            raise _WindowEnds(begin.lsn, f"table {self.table.text} was truncated at {lsn_text(begin.lsn)}; the window ends before that")
        self.changes -= 1
        self._commit_within()
        raise DataLossError(
            f"table {self.table.text} was truncated at {lsn_text(lsn)}, and no topic can empty a copy in order: publish all that is in the "
            f"topic, empty the copy, then go on with truncate=pass"
        )

    # Records and commits

    def _put(self, pairs: Sequence[Pair]) -> None:
        """A change's records, and counts it once."""
        counts, write = self.session.counts, self.session.outputs.write_new
        self.session.chunk.add(1)
        for key, value in pairs:
            reject = write(key, value, self.rows)
            if reject is not None:
                counts.rejected += 1
                self.session.outputs.reject(reject, value=value, key=key, where=f"{self.table.text}@{self.rows}", row=self.rows)
                break
        else:
            counts.forwarded += 1
            counts.produced += len(pairs)
        counts.consumed += 1
        self.rows += 1
        failpoints.hit("replicate.put")

    def _filter(self) -> None:
        """A change that a later one supersedes."""
        self.session.chunk.add(1)
        self.session.counts.consumed += 1
        self.session.counts.filtered += 1
        self.rows += 1

    def _commit_within(self) -> None:
        """Commit, maybe in the middle of a transaction: an attempt that follows skips as many of its changes."""
        self._set_place()
        self._commit()

    def _set_place(self) -> None:
        if self.begin is not None and self.changes:
            self._set(transaction=self.begin.lsn, done=max(self.changes, self.skip))

    def _commit_if_due(self) -> None:
        chunk = self.session.chunk
        limit = 1.0 if self.live else self.session.chunk_seconds
        if chunk.is_full or chunk.age > limit:
            self._commit_within()

    def _commit(self, *, finished: bool = False, **more: Any) -> AgentResult | None:
        """Commit the chunk and the place in the log; only then is it confirmed to the server."""
        self._look()
        return self._seal(finished=finished, **more)

    def _seal(self, *, finished: bool = False, **more: Any) -> AgentResult | None:
        """The same without a look at the database."""
        result = self.session.commit({}, {}, rows=self.rows, finished=finished, **more)
        self._advanced = time.monotonic()
        failpoints.hit("replicate.committed")
        if self.log is not None:
            self.log.confirm(self.stream.lsn)
        return result

    def _look(self) -> None:
        """Now and then, how far behind we are; raises where that is more than is allowed."""
        if time.monotonic() - self._looked < _LOOK_SECONDS or not self.stream.lsn:
            return
        self._looked = time.monotonic()
        slot = self.server.slot(self.wanted.slot)
        if slot is None:
            raise lost(self.wanted.slot, "is gone")
        self._set(behind=max(0, slot.confirmed + slot.behind - self.stream.lsn))
        limit = self.wanted.max_lag
        if limit and slot.held > limit:
            raise ConfigurationError(
                f"slot {self.wanted.slot!r} holds back {slot.held:,} bytes of the log, more than max_lag={limit:,}: raise it to catch up, "
                f"or give the slot up and begin again with a snapshot (factory replicate drop, then run)"
            )

    def _check_leaving(self) -> None:
        """When it is time to go: commit what there is first."""
        session = self.session
        if session.context.stop() or time.monotonic() > session.deadline:
            self._commit_within()
            self._check_time()

    def _finish(self, note: str) -> AgentResult:
        notes = (*self.notes, *([note] if note else []))
        if self.stream.window == self.run.key:
            self._set(open=False)
        result = self._commit(finished=True, notes=notes, report={"lsn": lsn_text(self.stream.lsn), "behind": self.stream.behind})
        if self.log is not None:
            self.log.finish()
            self.log = None
        if result is None:
            raise AccountingError(f"stage {self.run.stage!r}: finished without a result")
        return result
