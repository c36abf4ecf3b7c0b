"""Publishing record by record: rows, and up to where they go, in one transaction of the database.

A database has no place in a consumer group's transaction. So each partition's position is a row beside the table. Whoever publishes locks
it, writes what lies past it, and moves it: one that was away, and comes back with records that others have published, writes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents import failpoints
from factory_agents.kafka.messages import Message
from factory_agents.protocol import Counts, Shard
from factory_agents.runtime.agents import Claim, Output, Reject, RowsRefused, SinkOutcome, Undecoded
from factory_agents.runtime.live import LiveAgent, LiveSettings, check_live
from factory_agents.runtime.session import RunContext
from factory_agents.sinks.postgres.deletes import Deletes
from factory_agents.sinks.postgres.ledger import Acquired
from factory_agents.sinks.postgres.merge import Publication
from factory_agents.sinks.postgres.names import compose
from factory_agents.sinks.postgres.rights import check_rights
from factory_agents.sinks.postgres.sink import PostgresSink, PostgresTarget
from factory_agents.sinks.postgres.table import TargetTable, begin_creation, find_table, open_table

if TYPE_CHECKING:
    import psycopg

__all__ = ["POSITIONS", "PostgresLive", "run_by_record"]

POSITIONS = "factory_positions"
"""Beside the table: up to where each partition of a topic is published, by table and consumer group."""

_COLUMNS = """
    table_name text COLLATE "C" NOT NULL,
    consumer_group text COLLATE "C" NOT NULL,
    topic text COLLATE "C" NOT NULL,
    partition integer NOT NULL,
    topic_id text NOT NULL,
    position bigint NOT NULL,
    refused jsonb NOT NULL,
    PRIMARY KEY (table_name, consumer_group, topic, partition)
"""
_MINE = "table_name = {table_name} AND consumer_group = {group} AND topic = {topic}"
_WINDOW = "live"
"""Rows that are published like this are of no window of an interval, so that the newer record of a key wins."""

_POLL, _COMMIT_SECONDS = 0.03, 1.0
_IDLE = "10s"
"""A publisher that stops dead in the middle holds the positions no longer than this."""


class _Stand(msgspec.Struct):
    """Up to where a partition is published. ``refused``: what the database refused before that, by offset, as dead letters' rules and
    reasons, until these are known to be out.
    """

    position: int
    refused: dict[str, tuple[str, str]]


class _Batch(Publication):
    """Rows that are merged, and nobody's that they replace."""

    def begin(self) -> None:
        """Nothing was claimed."""

    def _past(self) -> list[int]:
        return []

    def _delete(self, past: Sequence[int]) -> int:
        return Deletes(self.connection, self.table).apply([], []) if self.table.deletes else 0

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
        return SinkOutcome(
            table=self.table.text,
            rows=self._rows,
            written=merged.written,
            duplicates=self._rows - merged.keys,
            older=merged.keys - merged.written - merged.deleted - merged.dropped,
            deleted=merged.deleted,
            dropped=merged.dropped,
            rejected=rejected,
        )


class PostgresLive(PostgresSink):
    """A transform for a live agent: it writes an event's row, and gives an output for none but rejected ones.

    Positions of the consumer group follow those in the database, with the dead letters that lie before them. Where the former were not
    committed any more, records come again: their rows are there, and their dead letters are made again. ``topic_id`` tells the topic that
    is read now, ``committed`` where the group stands on a partition. ``totals`` say what became of the rows.
    """

    stateful = False
    at_once = 1000  # a transaction costs what it costs, with few rows or many

    def __init__(self, target: PostgresTarget, identity: dict[str, Any], group: str, topic: str) -> None:
        super().__init__(target, identity)
        self._group, self._topic = group, topic
        self._claim = Claim(group, _WINDOW, _WINDOW, Shard(0, 1), "", "", 0, 0)
        self._table: TargetTable | None = None
        self._number = 0
        self._known: set[int] = set()
        self.topic_id: Callable[[], str] = lambda: ""
        self.committed: Callable[[int], int] = lambda _: -1
        self.totals = Counts()

    def load(self) -> None:
        """Open the table, or create it. Raises as ``claim`` does."""
        with self._explained(f"opening table {self.target.table.name}"):
            self._open()

    def compare(self, earlier: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        """See ``Transform.compare``."""

    def finish(self, counts: Counts) -> dict[str, Any] | None:
        """See ``Transform.finish``."""
        return None

    def close(self) -> None:
        """See ``Transform.close``."""
        super().close()
        self._table = None

    def process(self, messages: Sequence[Message]) -> list[Output]:
        """Write the rows; see ``Transform.process``. Raises UnavailableError where the database isn't there: nothing is written then."""
        doing, outcome = f"publishing to {self.target.table.name}", None
        with self._explained(doing):
            connection, table = self._open()
            self._open_transaction(connection, _IDLE)
            stands = self._hold(connection, {m.partition() for m in messages})
            publication = self._publication = _Batch(connection, table, self._claim, Acquired(0, self._number, False))
        new = [n for n, m in enumerate(messages) if m.offset() >= stands[m.partition()].position]
        with self._explained(doing):
            rejects = self._read(publication, messages, new)
            if new:
                self._send(publication, publication.finish)
                outcome = self._merge(publication, stands)
                self._move(connection, stands, [messages[n] for n in new])
            failpoints.hit("postgres.before-commit")
            connection.commit()
            failpoints.hit("postgres.committed")
        for n, message in enumerate(messages):
            if refused := stands[message.partition()].refused.get(str(message.offset())):
                rejects[n] = Reject(refused[1], rule=refused[0])
        self._publication = None
        if outcome is not None:
            for name in ("written", "duplicates", "older", "deleted", "dropped"):
                setattr(self.totals, name, getattr(self.totals, name) + getattr(outcome, name))
        return [rejects.get(n, []) for n in range(len(messages))]

    def _was_taken_over(self, publication: Publication) -> bool:
        """Nobody claims what is published like this."""
        return False

    def _open(self) -> tuple[psycopg.Connection[Any], TargetTable]:
        connection, target = self._connection or self._connect(f"factory {self._group}/live"), self.target
        if self._table is None:
            self._open_transaction(connection)
            table = self._retried(connection, lambda: open_table(connection, target.table, target.wanted, create=target.create_table))
            if table.deletes:
                self._retried(connection, Deletes(connection, table).open)
            check_rights(connection, table)
            if find_table(connection, table.schema, POSITIONS) is None:
                begin_creation(connection, table.schema, POSITIONS)
                create = "CREATE TABLE IF NOT EXISTS {table} (" + _COLUMNS + ")"
                connection.execute(compose(create, table=table.beside(POSITIONS)))
            self._number = self._publication_number(connection, table)
            connection.commit()
            self._table, self._known = table, set()
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
            row = connection.execute(
                compose(
                    "INSERT INTO {publications}"
                    " (table_name, pipeline, stage, window_key, shard, shards, generation, published_at)"
                    " VALUES ({table}, {group}, {window}, {window}, 0, 1, 0, now()) RETURNING publication",
                    **of,
                )
            ).fetchone()
        return int(row[0]) if row is not None else 0

    def _run(self, connection: psycopg.Connection[Any], query: str, **more: Any) -> psycopg.Cursor[Any]:
        table = self._table
        if table is None:
            raise ValueError("the table is not open")
        mine = {"positions": table.beside(POSITIONS), "table_name": table.name, "group": self._group, "topic": self._topic}
        return connection.execute(compose(query, **mine, **more))

    def _hold(self, connection: psycopg.Connection[Any], partitions: set[int]) -> dict[int, _Stand]:
        """Up to where each partition is published, which nobody else changes until the transaction's end; what was refused before it."""
        if missing := partitions - self._known:
            self._run(
                connection,
                "INSERT INTO {positions} (table_name, consumer_group, topic, partition, topic_id, position, refused)"
                " SELECT {table_name}, {group}, {topic}, p, {id}, 0, '{{}}' FROM unnest({missing}::integer[]) AS p ORDER BY p"
                " ON CONFLICT DO NOTHING",
                id=self.topic_id(),
                missing=sorted(missing),
            )
        rows = self._run(
            connection,
            "SELECT partition, topic_id, position, refused FROM {positions} WHERE "
            + _MINE
            + " AND partition = ANY ({partitions}) ORDER BY partition FOR UPDATE",
            partitions=sorted(partitions),
        ).fetchall()
        self._known |= partitions
        now = self.topic_id()
        return {p: _Stand(at, self._waiting(p, refused)) if id_ == now else _Stand(0, {}) for p, id_, at, refused in rows}

    def _waiting(self, partition: int, refused: dict[str, Any]) -> dict[str, tuple[str, str]]:
        """Refused records whose dead letters may not be out."""
        committed = self.committed(partition)
        return {offset: (rule, reason) for offset, (rule, reason) in refused.items() if int(offset) >= committed}

    def _merge(self, publication: _Batch, stands: Mapping[int, _Stand]) -> SinkOutcome:
        """Merge the rows but those that the database refuses."""
        while True:
            try:
                return self._apply(publication, 0)
            except RowsRefused as refused:
                for (partition, offset), reject in refused.rows.items():
                    stands[partition].refused[str(offset)] = (reject.rule, reject.reason)

    def _move(self, connection: psycopg.Connection[Any], stands: Mapping[int, _Stand], messages: Sequence[Message]) -> None:
        ends = {m.partition(): m.offset() + 1 for m in messages}
        self._run(
            connection,
            "UPDATE {positions} AS t SET topic_id = {id}, position = n.position, refused = n.refused::jsonb"
            " FROM unnest({partitions}::integer[], {ends}::bigint[], {refused}::text[]) AS n(partition, position, refused)"
            " WHERE " + _MINE + " AND t.partition = n.partition",
            id=self.topic_id(),
            partitions=list(ends),
            ends=list(ends.values()),
            refused=[msgspec.json.encode(stands[p].refused).decode() for p in ends],
        )

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

    def _is_due(self, *, is_idle: bool) -> bool:
        return time.monotonic() - self.committed_at > _COMMIT_SECONDS

    def _commit_now(self) -> None:
        super()._commit_now()
        self.committed_at = time.monotonic()


def run_by_record(context: RunContext, sink: PostgresSink, settings: LiveSettings) -> Counts:
    """Publish what arrives as a member of a consumer group, from where the group stands, until ``context.stop`` says so.

    Rows become visible some milliseconds after their records were read; dead letters and the group's positions follow in transactions of
    Kafka's. Raises as ``run_live`` does.
    """
    transform = PostgresLive(sink.target, sink.identity, settings.group, settings.in_topic)
    check_live(transform, settings)
    agent = _Agent(context, transform, settings)
    transform.topic_id = lambda: agent.reader.topic.id
    transform.committed = agent.reader.stands_at
    counts = agent.run_until_stopped()
    counts.add(transform.totals)
    return counts
