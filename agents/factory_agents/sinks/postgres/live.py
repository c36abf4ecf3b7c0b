"""Publishing record by record: rows, and up to where they go, in one transaction of the database.

A database has no place in a consumer group's transaction. So each partition's position is a row beside the table. Whoever publishes locks
it, writes what lies past it, and moves it: one that was away, and comes back with records that others have published, writes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from factory_agents import failpoints
from factory_agents.databases.postgres import cut_after
from factory_agents.errors import UnavailableError
from factory_agents.kafka.messages import Message
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import Counts, Shard
from factory_agents.runtime.agents import Claim, Output, Reject, RowsRefused, SinkOutcome, Undecoded
from factory_agents.runtime.dependencies import InterruptedBatchError
from factory_agents.runtime.live import LiveAgent, LiveSettings, awaiting, check_live
from factory_agents.runtime.session import RunContext
from factory_agents.sinks.postgres.deletes import Deletes
from factory_agents.sinks.postgres.ledger import Acquired
from factory_agents.sinks.postgres.merge import Publication
from factory_agents.sinks.postgres.names import compose
from factory_agents.sinks.postgres.positions import POSITIONS, Positions, Stand, TableReader
from factory_agents.sinks.postgres.publication_numbers import pass_borne
from factory_agents.sinks.postgres.rights import check_rights
from factory_agents.sinks.postgres.sink import PostgresSink, PostgresTarget
from factory_agents.sinks.postgres.table import TargetTable, find_table, open_table
from factory_agents.telemetry import fields

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)

__all__ = ["PostgresLive", "PostgresRecords"]

_WINDOW = "live"
"""Rows that are published like this are of no window of an interval, so that the newer record of a key wins."""

_POLL, _COMMIT_SECONDS, _LOOK_SECONDS = 0.03, 1.0, 5.0
_IDLE = "10s"
"""A publisher that stops dead in the middle holds the positions no longer than this."""


class _Batch(Publication):
    """Rows that are merged, and nobody's that they replace."""

    def begin(self) -> None:
        """Nothing was claimed."""

    def _past(self) -> list[int]:
        return []

    def _forgotten(self) -> list[int]:
        return []

    def judge(self, messages: Sequence[Message]) -> dict[int, Reject]:
        """What is rejected of records that are published already."""
        return self._reader.read(messages)[1]

    def apply(self, rejected: int) -> SinkOutcome:
        """Everything but the position. Raises UnavailableError where the table was altered since it was opened."""
        if not self._rows:
            return SinkOutcome(self.table.text)
        merged = self._merge()
        if self.is_altered():
            raise self.altered()
        return self._outcome(merged, rejected)


class PostgresLive(PostgresSink):
    """A transform for a live agent: it writes an event's row, and gives an output for none but rejected ones.

    Positions of the consumer group follow those in the database, with the dead letters that lie before them. Where the former were not
    committed any more, records come again: their rows are there, and their dead letters are made again. ``topic_id`` tells the topic that
    is read now, ``committed`` where the group stands on a partition. ``seen`` is up to where each partition was published when it was last
    looked at, ``totals`` say what became of the rows.
    """

    stateful = False
    at_once = 1000  # a transaction costs what it costs, with few rows or many

    def __init__(self, target: PostgresTarget, identity: dict[str, Any], group: str, topic: str) -> None:
        super().__init__(target, identity)
        self._group, self._topic = group, topic
        self._claim = Claim(group, _WINDOW, _WINDOW, Shard(0, 1), "", "", 0, 0)
        self._table: TargetTable | None = None
        self._number = 0
        self.seen: dict[int, int] = {}
        self.topic_id: Callable[[], str] = lambda: ""
        self.committed: Callable[[int], int] = lambda _: -1
        self.totals = Counts()

    def load(self) -> None:
        """Open the table, or create it. Raises as ``claim`` does."""
        with self._explained(f"opening table {self.target.table.name}"):
            self._open()

    @property
    def table(self) -> str:
        """The table's schema and name; empty while it isn't open."""
        return self._table.text if self._table is not None else ""

    def compare(self, earlier: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        """See ``Transform.compare``."""

    def finish(self, counts: Counts) -> dict[str, Any] | None:
        """See ``Transform.finish``."""
        return None

    def close(self) -> None:
        """See ``Transform.close``."""
        super().close()
        self._table = None

    def stands(self, partitions: Collection[int]) -> dict[int, Stand]:
        """Up to where these partitions are published, as far as they are. Raises as ``process`` does."""
        with self._publishing() as (connection, publication):
            found = self._look(publication, partitions)
            connection.commit()
        now = self.topic_id()
        self.seen |= {p: s.position if (s := found.get(p)) is not None and s.topic_id == now and s.same else 0 for p in partitions}
        return found

    def look(self, partitions: Collection[int]) -> None:
        """Whether these partitions are published up to where they were. Raises UnavailableError where they are not, and as ``process``."""
        with self._publishing() as (connection, publication):
            self._compare(publication, partitions, self._look(publication, partitions))
            connection.commit()

    def set_back(self, partition: int, to: int) -> None:
        """Let the table stand no further on than there. Raises as ``process`` does."""
        with self._publishing() as (connection, publication):
            self._positions(publication).set_back(partition, to)
            connection.commit()
        self.seen[partition] = min(self.seen.get(partition, 0), to)

    def process(self, messages: Sequence[Message]) -> list[Output]:
        """Write the rows; see ``Transform.process``. Raises UnavailableError where the database isn't there, or the table or its positions
        are not as they were: nothing is written then.
        """
        outcome, rejects = None, dict[int, Reject]()
        with self._publishing() as (connection, publication):
            positions, partitions = self._positions(publication), {m.partition() for m in messages}
            stands = positions.hold(partitions)
            self._compare(publication, partitions, stands)
            now = self.topic_id()
            stands = {p: s if s.same and s.topic_id == now else Stand(now, 0, {}) for p, s in stands.items()}
            new = [n for n, m in enumerate(messages) if m.offset() >= stands[m.partition()].position]
            rejects = self._read(publication, messages, new)
            if new:
                self._send(publication, publication.finish)
                outcome = self._merge(publication, stands)
                self._move(publication, stands, [messages[n] for n in new])
            failpoints.hit("postgres.before-commit")
            connection.commit()
            failpoints.hit("postgres.committed")
        self.seen |= {p: stand.position for p, stand in stands.items()}
        for n, message in enumerate(messages):
            if refused := stands[message.partition()].refused.get(str(message.offset())):
                rejects[n] = Reject(refused[1], rule=refused[0])
        if outcome is not None:
            for name in ("written", "duplicates", "older", "deleted", "dropped"):
                setattr(self.totals, name, getattr(self.totals, name) + getattr(outcome, name))
        return [rejects.get(n, []) for n in range(len(messages))]

    @contextmanager
    def _publishing(self) -> Iterator[tuple[psycopg.Connection[Any], _Batch]]:
        """The open table's connection, in a transaction, and what to publish with."""
        with self._explained(f"publishing to {self.target.table.name}"):
            connection, table = self._open()
            publication = self._publication = _Batch(connection, table, self._claim, Acquired(0, self._number, False))
            with cut_after(connection, self._patience):
                self._open_transaction(connection, _IDLE)
                yield connection, publication
        self._publication = None

    def _look(self, publication: _Batch, partitions: Collection[int]) -> dict[int, Stand]:
        positions = self._positions(publication)
        if not positions.are_kept():
            raise publication.altered()
        return positions.look(partitions)

    def _positions(self, publication: _Batch) -> Positions:
        return Positions(publication.connection, publication.table, self._group, self._topic)

    def _compare(self, publication: _Batch, partitions: Collection[int], stands: Mapping[int, Stand]) -> None:
        """Raise UnavailableError where a partition is published less far than it was: what lies between is read again."""
        now = self.topic_id()
        for p in partitions:
            stand = stands.get(p)
            at = stand.position if stand is not None and stand.same and stand.topic_id == now else 0
            if at < self.seen.get(p, 0):
                raise UnavailableError(
                    f"table {publication.table.text}: {self._topic}-{p} was published up to offset {self.seen[p]}, and is up to {at} now:"
                    " the table was restored or replaced, or its position was changed, and is published again from there"
                )

    def _was_taken_over(self, publication: Publication) -> bool:
        """Nobody claims what is published like this."""
        return False

    def _was_altered(self, publication: Publication) -> bool:
        """Whether the table is not as it was opened, or its positions are gone; ends the transaction."""
        table = publication.table
        return super()._was_altered(publication) or find_table(publication.connection, table.schema, POSITIONS) is None

    def _open(self) -> tuple[psycopg.Connection[Any], TargetTable]:
        connection, target = self._connection or self._connect(f"factory {self._group}/live"), self.target
        if self._table is None:
            self._open_transaction(connection)
            table = self._retried(connection, lambda: open_table(connection, target.table, target.wanted, create=target.create_table))
            if table.deletes:
                self._retried(connection, Deletes(connection, table).open)
            positions = Positions(connection, table, self._group, self._topic)
            positions.create()
            check_rights(connection, table, [POSITIONS])
            self._number = self._publication_number(connection, table)
            if not positions.keep_up(self._number):
                log.warning(
                    "the table was emptied or replaced: it is published again from the earliest records",
                    extra=fields(table=table.text, group=self._group),
                )
            connection.commit()
            self._table = table
        return connection, self._table

    def _publication_number(self, connection: psycopg.Connection[Any], table: TargetTable) -> int:
        """What all rows of this group bear."""
        of: dict[str, Any] = {"publications": table.publications, "table": table.name, "group": self._group, "window": _WINDOW}
        row = connection.execute(
            compose(
                "SELECT min(publication) FROM {publications}"
                " WHERE table_name = {table} AND pipeline = {group} AND stage = {window} AND window_key = {window}",
                **of,
            )
        ).fetchone()
        if row is None or row[0] is None:
            pass_borne(connection, table)
            row = connection.execute(
                compose(
                    "INSERT INTO {publications}"
                    " (table_name, pipeline, stage, window_key, shard, shards, generation, published_at)"
                    " VALUES ({table}, {group}, {window}, {window}, 0, 1, 0, now()) RETURNING publication",
                    **of,
                )
            ).fetchone()
        return int(row[0]) if row is not None else 0

    def _merge(self, publication: _Batch, stands: Mapping[int, Stand]) -> SinkOutcome:
        """Merge the rows but those that the database refuses."""
        while True:
            try:
                return self._apply(publication, 0)
            except RowsRefused as refused:
                for (partition, offset), reject in refused.rows.items():
                    stands[partition].refused[str(offset)] = (reject.rule, reject.reason)

    def _move(self, publication: _Batch, stands: Mapping[int, Stand], messages: Sequence[Message]) -> None:
        """Put the positions past these records, with the refused ones whose dead letters may not be out."""
        moved = {m.partition(): stands[m.partition()] for m in messages}
        for message in messages:
            moved[message.partition()].position = message.offset() + 1
        for partition, stand in moved.items():
            committed = self.committed(partition)
            stand.refused = {offset: why for offset, why in stand.refused.items() if int(offset) >= committed}
        if not self._positions(publication).move(moved):
            raise publication.altered()

    def _read(self, publication: _Batch, messages: Sequence[Message], new: Sequence[int]) -> dict[int, Reject]:
        """Take the new records' rows; what is rejected of all records, by index."""
        rejects = {n: value.reject for n, m in enumerate(messages) if type(value := m.value()) is Undecoded}
        for places, read in ((new, publication.read), (sorted(set(range(len(messages))) - set(new)), publication.judge)):
            readable = [n for n in places if n not in rejects]
            found = read(self._deletes.read([messages[n] for n in readable])) if readable else {}
            rejects |= {readable[i]: reject for i, reject in found.items()}
        return rejects


class _Agent(LiveAgent):
    """Rows don't wait for its commits, so these are few, and it looks often for what has come."""

    poll = _POLL
    committed_at = 0.0

    def __init__(self, context: RunContext, transform: PostgresLive, settings: LiveSettings) -> None:
        cluster = Cluster(context.config)
        reader = TableReader(context.config, cluster, settings.in_topic, settings.group, accept_loss=settings.accept_loss)
        super().__init__(context, transform, settings, cluster=cluster, reader=reader)
        transform.topic_id = lambda: reader.topic.id
        transform.committed = reader.stands_at
        reader.seen, reader.address = transform.seen, transform.address
        reader.ask, reader.set_back = self._ask, self._set_back
        self._rows, self._table = transform, reader
        self._look_at = 0.0

    def _ask(self, partitions: Collection[int]) -> Mapping[int, Stand]:
        """Up to where these are published; the group is answered meanwhile."""
        stands = self.thread.call(lambda: self._rows.stands(partitions), self._meanwhile)
        self._table.table = self._rows.table
        return stands

    def _set_back(self, partition: int, to: int) -> None:
        self.thread.call(lambda: self._rows.set_back(partition, to), self._meanwhile)

    def _next_batch(self, room: int) -> bool:
        """Handle what has come; now and then see to the table, of which nothing would tell otherwise where nothing comes."""
        is_idle = super()._next_batch(room)
        if not self.reader.waiting and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_SECONDS
            reading = set(self._table.reading)
            try:
                self.thread.call(lambda: awaiting(lambda: self._rows.look(reading)), self._meanwhile)
            except InterruptedBatchError as interrupted:
                self._wait([], interrupted)
        return is_idle

    def _is_due(self, *, is_idle: bool) -> bool:
        return time.monotonic() - self.committed_at > _COMMIT_SECONDS

    def _commit_now(self) -> None:
        super()._commit_now()
        self.committed_at = time.monotonic()


class PostgresRecords(PostgresSink):
    """A ``PostgresSink`` that publishes live record by record; see ``LiveSink``."""

    def run_live(self, context: RunContext, settings: LiveSettings) -> Counts:
        """See ``LiveSink.run_live``: from where the table stands. Dead letters and the group's positions follow in Kafka's transactions."""
        transform = PostgresLive(self.target, self.identity, settings.group, settings.in_topic)
        check_live(transform, settings)
        counts = _Agent(context, transform, settings).run_until_stopped()
        counts.add(transform.totals)
        return counts
