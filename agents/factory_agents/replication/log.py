"""The replication connection: messages of the log, in order, as they are written; and what is confirmed to the server."""

from __future__ import annotations

import select
import struct
import time
from contextlib import suppress
from typing import Any

from factory_agents.databases.postgres import Database
from factory_agents.errors import ConfigurationError
from factory_agents.replication.slot import DatabaseGoneError, asking, lsn_text, session

__all__ = ["LogReader"]

_MICROS_2000 = 946_684_800_000_000
_STATUS_SECONDS = 5.0
_FINISH_SECONDS = 5.0
_DATA, _KEEPALIVE = 0x77, 0x6B  # w, k
_u64 = struct.Struct("!Q").unpack_from
_keepalive = struct.Struct("!QqB").unpack_from


class LogReader:
    """Reads one slot from a place on. ``confirmed`` is what the server was told to be safe; it may forget what lies before.

    ``seen`` is how far the server says that it has sent all there is for us. Raises DatabaseGoneError where the connection is lost.
    """

    def __init__(self, database: Database, slot: str, publication: str, start: int) -> None:
        self._what = f"slot {slot!r} ({database.address})"
        self.confirmed = start
        self.seen = 0
        self._told = 0.0
        self._connection = session(database, replication=True)
        name = publication.replace('"', '""').replace("'", "''")
        try:
            with asking(f"reading {self._what}"):
                self._connection.execute(
                    f"START_REPLICATION SLOT \"{slot}\" LOGICAL {lsn_text(start)} (proto_version '1', publication_names '\"{name}\"')"
                )
            self._pg: Any = self._connection.pgconn
            self.confirm(start)
        except ConfigurationError as error:
            self.close()
            if "is active for PID" in str(error):
                raise DatabaseGoneError(f"reading {self._what}: another process reads it; try again") from error
            raise
        except BaseException:
            self.close()
            raise

    def next(self, wait: float) -> tuple[int, bytes] | None:
        """The next message and its place in the log; None where nothing comes for so many seconds, or the server says only where it is."""
        import psycopg

        try:
            size, data = self._pg.get_copy_data(1)
            if size == 0:
                self._idle(wait)
                size, data = self._pg.get_copy_data(1)
        except psycopg.Error as error:
            raise self._lost(str(error)) from error
        if size == 0:
            return None
        if size < 0:
            raise self._lost(self._pg.get_error_message())
        kind = data[0]
        if kind == _DATA:
            return _u64(data, 1)[0], bytes(data[25:])
        if kind == _KEEPALIVE:
            end, _, reply = _keepalive(data, 1)
            self.seen = max(self.seen, end)
            if reply:
                self.confirm(self.confirmed)
        return None

    def _idle(self, wait: float) -> None:
        if time.monotonic() - self._told > _STATUS_SECONDS:
            self.confirm(self.confirmed)
        if wait > 0:
            select.select([self._pg.socket], [], [], wait)
        self._pg.consume_input()

    def confirm(self, lsn: int, *, ask: bool = False) -> None:
        """Tell the server what is safe; ``ask``: it is to say where it is."""
        import psycopg

        self.confirmed = max(self.confirmed, lsn)
        self._told = time.monotonic()
        at = self.confirmed
        now = int(time.time() * 1_000_000) - _MICROS_2000
        try:
            self._pg.put_copy_data(b"r" + struct.pack("!QQQqB", max(at, self.seen), at, at, now, ask))
            self._pg.flush()
        except psycopg.Error as error:
            raise self._lost(str(error)) from error

    def _lost(self, said: object) -> DatabaseGoneError:
        text = " ".join((said.decode(errors="replace") if isinstance(said, bytes) else str(said)).split())
        return DatabaseGoneError(f"reading {self._what}: the connection was lost: {text or 'the server closed it'}")

    def finish(self) -> None:
        """Disconnect once the server has taken what was confirmed, or after some seconds."""
        until = time.monotonic() + _FINISH_SECONDS
        with suppress(DatabaseGoneError):  # it has ended
            self._pg.put_copy_end()
            self._pg.flush()
            while time.monotonic() < until:
                self.next(0.1)
        self.close()

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()
