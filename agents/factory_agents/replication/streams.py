"""Looks at the logs that are read, and gives one up."""

from __future__ import annotations

import time

import msgspec

from factory_agents.databases.postgres import Database
from factory_agents.errors import ConfigurationError, FactoryError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.ledger import Ledger, StreamRecord
from factory_agents.kafka.topics import Cluster
from factory_agents.kafka.writer import TransactionalWriter
from factory_agents.protocol import transactional_id
from factory_agents.replication.slot import Server, lsn_text

__all__ = ["StreamStatus", "drop_stream", "find_streams", "statuses"]

_SECONDS = 60.0


class StreamStatus(msgspec.Struct, frozen=True):
    """How a log stands. ``state``: reading, idle, lost, gone (the slot), elsewhere (it is another database's), or the server's error.

    ``lsn`` is the place up to which all is in ``topic``, ``changed`` when the newest change there was committed (milliseconds).
    ``behind`` bytes of the log are behind that place, ``held`` are kept on the server's disk, and ``left`` more make it give the slot up
    (-1: max_slot_wal_keep_size sets no limit). ``copied``: rows of the first copy that are in, -1 once all are.
    """

    pipeline: str
    stage: str
    table: str
    slot: str
    topic: str
    state: str
    lsn: str
    window: str
    copied: int = -1
    behind: int = -1
    held: int = -1
    left: int = -1
    changed: int = 0

    @property
    def is_well(self) -> bool:
        """Whether the log can be read on."""
        return self.state in ("reading", "idle", "elsewhere")


def find_streams(config: KafkaConfig, *, prefix: str, pipeline: str = "", stage: str = "") -> list[StreamRecord]:
    """What the ledger knows of logs, of one pipeline or of all."""
    with Cluster(config) as cluster:
        ledger = Ledger(config, cluster, prefix=prefix, pipeline=pipeline)
        if cluster.find(ledger.topic) is None:
            return []
        view = ledger.read_stable(deadline=time.monotonic() + _SECONDS, wanted=(b"stream|",))
    found = [record for record in view.of(StreamRecord) if pipeline in ("", record.pipeline) and stage in ("", record.stage)]
    return sorted(found, key=lambda record: (record.pipeline, record.stage, record.scope))


def statuses(streams: list[StreamRecord], database: Database) -> list[StreamStatus]:
    """How each log stands, as the database tells."""
    server = Server(database)
    try:
        return [_status(server, stream) for stream in streams]
    finally:
        server.close()


def _status(server: Server, stream: StreamRecord) -> StreamStatus:
    status = StreamStatus(
        stream.pipeline,
        stream.stage,
        stream.name,
        stream.slot,
        stream.topic,
        "gone",
        lsn_text(stream.lsn),
        stream.window if stream.open else "",
        stream.copying.rows if stream.copying is not None else -1,
        changed=stream.changed,
    )
    try:
        if server.identity() != (stream.system, stream.database):
            return msgspec.structs.replace(status, state="elsewhere")
        slot = server.slot(stream.slot)
    except FactoryError as error:
        return msgspec.structs.replace(status, state=str(error))
    if slot is None:
        return status
    behind = max(0, slot.confirmed + slot.behind - stream.lsn)
    state = "lost" if slot.state == "lost" else "reading" if slot.reader else "idle"
    return msgspec.structs.replace(status, state=state, behind=behind, held=slot.held, left=slot.left)


def drop_stream(config: KafkaConfig, stream: StreamRecord, database: Database, *, prefix: str) -> list[str]:
    """Give a log up: end its reader, drop slot and publication, and have the ledger forget it; what was dropped.

    The next run begins with a snapshot. Raises ConfigurationError where the database is not the one that was read.
    """
    server = Server(database)
    scope = (stream.pipeline, stream.stage, stream.scope)
    writer = TransactionalWriter(config, transactional_id(prefix, "stream", *scope))
    deadline = time.monotonic() + _SECONDS
    try:
        if server.identity() != (stream.system, stream.database):
            raise ConfigurationError(
                f"slot {stream.slot!r} is another database's (system {stream.system}, database {stream.database}) than {database.address}; "
                f"give that one's address"
            )
        writer.open(deadline)
        gone = server.drop(stream.slot, stream.publication)
        with Cluster(config) as cluster:
            writer.begin()
            Ledger(config, cluster, prefix=prefix, pipeline=stream.pipeline).erase(writer.producer, [stream.key().encode()])
            writer.flush(deadline)
            writer.commit(deadline)
    finally:
        writer.close()
        server.close()
    return gone
