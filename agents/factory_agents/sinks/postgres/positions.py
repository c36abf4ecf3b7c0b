"""Up to where each partition of a topic is published: rows beside the table, and where a consumer group reads on by them.

A group's offsets follow these positions, and say which ones. So whatever is set back alone (a table that is emptied or restored, the
offsets) is seen, and read again from where the table stands.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import msgspec
from confluent_kafka import TopicPartition

from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.group import TABLE_TAG, GroupReader, Start, decide_start, tag_of, topic_id_of, writes_of
from factory_agents.kafka.topics import Cluster
from factory_agents.sinks.postgres.ledger import RELATIONS
from factory_agents.sinks.postgres.names import compose
from factory_agents.sinks.postgres.table import TargetTable, begin_creation, find_table
from factory_agents.telemetry import fields

if TYPE_CHECKING:
    import psycopg

__all__ = ["POSITIONS", "Positions", "Stand", "TableReader", "decide_table_start"]

log = logging.getLogger(__name__)

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
    relations text[],
    PRIMARY KEY (table_name, consumer_group, topic, partition)
"""
# ``relations`` hold the rows that the position speaks of; NULL: they are gone with their table.
_OF_GROUP = "table_name = {table_name} AND consumer_group = {group}"
_MINE = "{of_group} AND topic = {topic}"
_SAME = "(relations IS NOT NULL AND relations <@ {relations})"
_STANDS = (
    "SELECT partition, topic_id, position, refused, relations IS NOT NULL FROM {positions} WHERE {mine} AND partition = ANY ({partitions})"
)
_AT = "@"
_LATER = 1.0


class Stand(msgspec.Struct):
    """Up to where a partition is published, by the id of its topic. ``refused``: what the database refused before that, by offset, as dead
    letters' rules and reasons, until these are known to be out. ``same``: the rows are still where they were published to.
    """

    topic_id: str
    position: int
    refused: dict[str, tuple[str, str]]
    same: bool = True


class Positions:
    """The positions of one group on one topic. All of it happens in the connection's open transaction; whoever opened it ends it."""

    def __init__(self, connection: psycopg.Connection[Any], table: TargetTable, group: str, topic: str) -> None:
        self._connection, self._table = connection, table
        self._parts: dict[str, Any] = {
            "positions": table.beside(POSITIONS),
            "table_name": table.name,
            "group": group,
            "topic": topic,
            "target": table.identifier,
            "relations": compose(RELATIONS, oid=table.oid),
        }
        for name, condition in (("of_group", _OF_GROUP), ("mine", _MINE), ("same", _SAME)):
            self._parts[name] = compose(condition, **self._parts)

    def _run(self, query: str, **more: Any) -> psycopg.Cursor[Any]:
        return self._connection.execute(compose(query, **self._parts, **more))

    def create(self) -> None:
        """Create the table of positions, where there is none. One member of the group at a time opens what it publishes to."""
        schema = self._table.schema
        self._run("SELECT pg_advisory_xact_lock(hashtextextended({lock}, 0))", lock=f"{POSITIONS}:{schema}.{self._parts['table_name']}")
        if find_table(self._connection, schema, POSITIONS) is None:
            begin_creation(self._connection, schema, POSITIONS)
            self._run("CREATE TABLE IF NOT EXISTS {positions} (" + _COLUMNS + ")")

    def are_kept(self) -> bool:
        """Whether the table's rows are still where they were published to, or known to be gone."""
        row = self._run("SELECT NOT EXISTS (SELECT FROM {positions} WHERE {of_group} AND relations IS NOT NULL AND NOT {same})").fetchone()
        return row is not None and bool(row[0])

    def keep_up(self, publication: int) -> bool:
        """Take note of the files that hold the table now, if they are others; False where the rows are gone that were in the former ones.

        Rows bear ``publication``, where the table keeps that. A table that was rewritten (VACUUM FULL) still has them, and a
        partition that was dropped is its owner's wish; one that was emptied has none, and one that was created again may lack some.
        """
        row = self._run(
            "SELECT bool_and(EXISTS (SELECT FROM unnest(relations) was, unnest({relations}) now"
            " WHERE split_part(was, '/', 1) = split_part(now, '/', 1))) FROM (SELECT relations FROM {positions}"
            " WHERE {of_group} AND relations IS NOT NULL AND NOT {same} ORDER BY topic, partition FOR UPDATE) AS others"
        ).fetchone()
        if row is None or row[0] is None:
            return True
        ours = " WHERE _factory_publication = {publication}" if self._table.tracked else ""
        found = self._run("SELECT EXISTS (SELECT FROM {target}" + ours + ")", publication=publication).fetchone()
        kept = bool(row[0]) and found is not None and bool(found[0])
        now = "{relations}" if kept else "NULL"
        self._run("UPDATE {positions} SET relations = " + now + " WHERE {of_group} AND relations IS NOT NULL AND NOT {same}")
        return kept

    def look(self, partitions: Collection[int]) -> dict[int, Stand]:
        """Those that there are."""
        return self._found(_STANDS, partitions)

    def hold(self, partitions: Collection[int]) -> dict[int, Stand]:
        """Those of all these partitions, which nobody else changes until the transaction's end."""
        query = _STANDS + " ORDER BY partition FOR UPDATE"
        found = self._found(query, partitions)
        if missing := set(partitions) - found.keys():
            self._run(
                "INSERT INTO {positions} (table_name, consumer_group, topic, partition, topic_id, position, refused, relations)"
                " SELECT {table_name}, {group}, {topic}, p, '', 0, '{{}}', {relations} FROM unnest({missing}::integer[]) AS p ORDER BY p"
                " ON CONFLICT DO NOTHING",
                missing=sorted(missing),
            )
            found = self._found(query, partitions)
        return found

    def _found(self, query: str, partitions: Collection[int]) -> dict[int, Stand]:
        rows = self._run(query, partitions=sorted(partitions)).fetchall()
        return {p: Stand(id_, at, {o: (rule, why) for o, (rule, why) in refused.items()}, same) for p, id_, at, refused, same in rows}

    def set_back(self, partition: int, to: int) -> None:
        """Let a partition stand no further on than there."""
        self._run("UPDATE {positions} SET position = {to} WHERE {mine} AND partition = {of} AND position > {to}", of=partition, to=to)

    def move(self, stands: Mapping[int, Stand]) -> bool:
        """Put them where these are; False where the table's rows are not where they were published to any more."""
        rows = self._run(
            "UPDATE {positions} AS t SET topic_id = n.topic_id, position = n.position, refused = n.refused::jsonb,"
            " relations = CASE WHEN relations IS NULL OR {same} THEN {relations} ELSE relations END"
            " FROM unnest({partitions}::integer[], {ids}::text[], {ends}::bigint[], {refused}::text[])"
            " AS n(partition, topic_id, position, refused) WHERE {mine} AND t.partition = n.partition RETURNING {same}",
            partitions=list(stands),
            ids=[s.topic_id for s in stands.values()],
            ends=[s.position for s in stands.values()],
            refused=[msgspec.json.encode(s.refused).decode() for s in stands.values()],
        ).fetchall()
        return len(rows) == len(stands) and all(same for (same,) in rows)


def decide_table_start(
    offset: int, metadata: str, stand: Stand | None, topic_id: str, log_start: int, *, end: int | None = None, replaced: bool = False
) -> Start:
    """Where to read on, as ``decide_start`` does, for a group that publishes to a table which stands there.

    The table decides: what it lacks is read again, though the group stands past it. Between its position and the group's offset there is no
    record, if that was committed while the table stood there. An offset that somebody else has set counts where the table stands nowhere.
    """
    said = topic_id_of(metadata) == topic_id
    then = _position_of(metadata) if said else None
    if stand is None and not then:
        return decide_start(offset, metadata, topic_id, log_start, end=end, replaced=replaced)
    if stand is not None and stand.topic_id != topic_id:
        return Start(log_start, lost="the topic was deleted and created again")
    position = stand.position if stand is not None else offset
    if then is not None and then <= position:
        position = max(position, offset)
    if position < log_start:
        return Start(log_start, lost=f"offsets {position} to {log_start} were deleted by retention", records=log_start - position)
    if stand is not None and end is not None and position > end:
        return Start(max(log_start, min(offset, end)), lost=f"the log ends at {end}, the table stands at {position}")
    if stand is None or not stand.same or offset < 0:
        return Start(log_start)
    if offset <= position:
        return decide_start(offset, metadata, topic_id, log_start, end=end, replaced=replaced)
    return Start(position, committed=position)


def _position_of(metadata: str) -> int:
    """Where the table stood when a group's offset was committed; a very large one where that isn't said."""
    _, found, position = writes_of(metadata).rpartition(_AT)
    return int(position) if found else sys.maxsize


def _target_of(metadata: str) -> tuple[str, str]:
    """What a group writes to, and the database's address if that is a table; empty where its offset doesn't say."""
    writes = writes_of(metadata)
    if not writes.startswith(TABLE_TAG):
        return writes, ""
    table, _, address = writes.removeprefix(TABLE_TAG).rpartition(_AT)[0].partition(":")
    return unquote(table), unquote(address)


class TableReader(GroupReader):
    """A member of a group that publishes to a table. It begins where the table stands, which ``ask`` tells of these partitions.

    ``set_back`` lets the table stand before records that are no more, so that others with their offsets are published.
    """

    def __init__(self, config: KafkaConfig, cluster: Cluster, topic: str, group: str, *, accept_loss: bool = False) -> None:
        super().__init__(config, cluster, topic, group, accept_loss=accept_loss)
        self.ask: Callable[[Collection[int]], Mapping[int, Stand]] = lambda _: {}
        self.set_back: Callable[[int, int], None] = lambda partition, to: None
        self.table = self.address = ""
        self.seen: Mapping[int, int] = {}
        """Up to where each partition was published when it was last looked at."""
        self._published: Mapping[int, Stand] = {}
        self._ends: Mapping[int, int] = {}

    def _stands(self, partitions: list[int]) -> list[TopicPartition]:
        stands = super()._stands(partitions)
        try:
            self._published = self.ask([tp.partition for tp in stands])
        except UnavailableError:
            self._begin_at = time.monotonic() + _LATER
            raise
        for tp in stands:
            self._refuse_other(tp)
        self._ends = self._cluster.high_watermark(self.topic.name, self._published.keys()) if self._published else {}
        return [tp for tp in stands if tp.partition in self.assigned]  # some may have gone meanwhile

    def _refuse_other(self, tp: TopicPartition) -> None:
        """Two that publish in one group share its records, so that each of two tables would get a part of them.

        A table that came to another database with its positions is the same one.
        """
        target, address = _target_of(tp.metadata or "")
        moved = address != self.address and tp.partition in self._published
        if target and (target != self.table or not (address == self.address or moved)):
            raise ConfigurationError(
                f"group {self.group!r} writes to {target!r}{f' in {address}' if address else ''}, and would share its records with table"
                f" {self.table!r} in {self.address}; give each its own group (--group)"
            )

    def _start(self, tp: TopicPartition, log_start: int, end: int | None) -> Start:
        stand = self._published.get(tp.partition)
        if end is None and stand is not None:
            end = self._ends[tp.partition]
        start = decide_table_start(tp.offset, tp.metadata or "", stand, self.topic.id, log_start, end=end, replaced=self._replaced)
        if not start.lost and start.offset < tp.offset:
            log.warning(
                "published again",
                extra=fields(
                    group=self.group,
                    table=self.table,
                    partition=f"{self.topic.name}-{tp.partition}",
                    why=f"the group stands at {tp.offset}, the table at {start.offset}",
                ),
            )
        return start

    def _lose(self, partition: int, start: Start) -> None:
        super()._lose(partition, start)
        stand = self._published.get(partition)
        if stand is not None and start.offset < stand.position and stand.topic_id == self.topic.id:
            self.set_back(partition, start.offset)

    def _tag_of(self, partition: int) -> str:
        return tag_of(
            self.topic.id, f"{TABLE_TAG}{quote(self.table, safe='.')}:{quote(self.address, safe='')}{_AT}{self.seen.get(partition, 0)}"
        )
