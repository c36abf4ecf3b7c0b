"""Connections to PostgreSQL, and what its errors mean: whose fault, whether a retry may help, never a secret."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents.errors import ConfigurationError, FactoryError, SinkError, UnavailableError

if TYPE_CHECKING:
    import psycopg

__all__ = ["Database", "cut_after", "database_from_env", "explain", "lost"]

_CONNECTION = {
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
"""What a URL that says nothing else gets: a peer that vanished is noticed within a minute."""

_REFUSALS = ("authentication failed", "no password supplied", "does not exist", "pg_hba.conf", "not permitted to log in")
"""What a server says to credentials and names that a retry doesn't mend; psycopg gives no code for a connection that failed."""


class Database(msgspec.Struct, frozen=True):
    """Where a database is: its connection parameters, and its ``address`` for messages (host:port/name, no credentials)."""

    parameters: dict[str, str]
    address: str
    variable: str

    def __repr__(self) -> str:
        """The address only: the parameters hold the password."""
        return f"Database({self.address})"

    def connect(self, application: str) -> psycopg.Connection[Any]:
        """Open a session that reads committed data.

        Raises ConfigurationError where the server refuses who asks or what for, UnavailableError where it doesn't answer.
        """
        import psycopg

        parameters: dict[str, Any] = _CONNECTION | self.parameters | {"application_name": application}
        try:
            connection = psycopg.connect(**parameters, prepare_threshold=None)
        except psycopg.Error as error:
            said = self._without_secrets(error)
            if any(sign in said for sign in _REFUSALS):
                raise ConfigurationError(f"the database {self.address} refuses: {said}; correct {self.variable}") from None
            raise UnavailableError(f"the database {self.address} does not answer: {said}") from None
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        return connection

    def _without_secrets(self, error: Exception) -> str:
        text = " ".join(str(error).split())
        for name in ("password", "sslpassword", "passfile"):
            secret = self.parameters.get(name)
            if secret:
                text = text.replace(secret, "***")
        return text


def database_from_env(variable: str) -> Database:
    """The database whose URL (or libpq's ``key=value`` text) stands in an environment variable.

    Raises ConfigurationError where psycopg isn't installed, or the variable isn't set or isn't understood; its value is never shown.
    """
    try:
        from psycopg import Error, conninfo
    except ImportError as error:
        raise ConfigurationError("publish to PostgreSQL needs psycopg: pip install 'factory-agents[postgres]'") from error
    url = os.environ.get(variable, "")
    if not url:
        raise ConfigurationError(f"{variable} is not set: expected the database's URL, for example postgresql://user@host:5432/name")
    try:
        parsed = conninfo.conninfo_to_dict(re.sub(r"^postgres(ql)?\+\w+://", "postgresql://", url))
    except Error:
        raise ConfigurationError(
            f"{variable} is not a database URL (its value is not shown): expected one such as postgresql://user@host:5432/name"
        ) from None
    parameters = {name: str(value) for name, value in parsed.items() if value is not None}
    host = parameters.get("host") or parameters.get("hostaddr") or os.environ.get("PGHOST") or "localhost"
    port = parameters.get("port") or os.environ.get("PGPORT") or "5432"
    name = parameters.get("dbname") or os.environ.get("PGDATABASE") or parameters.get("user", "")
    return Database(parameters, f"{host}:{port}/{name}", variable)


def lost(connection: psycopg.Connection[Any], error: Exception) -> bool:
    """Whether the session is gone, so that nobody knows what it did last."""
    state = getattr(error, "sqlstate", None) or ""
    return connection.closed or connection.broken or state.startswith(("08", "57P0"))


_UNAVAILABLE = {
    "53100": "the database's disk is full; make room there, then retry",
    "53200": "the database is out of memory",
    "53300": "the database takes no more connections",
    "25006": "the database is read-only (a standby?); retry after the failover, or correct the address",
    "40001": "transactions kept getting in each other's way",
    "40P01": "transactions kept blocking each other (deadlock)",
    "58030": "the database cannot read or write its files",
    "55000": "the database cannot do that in its present state",
}
_REFUSED = {
    "42501": "the database's user lacks a right; grant it",
    "3F000": "the schema does not exist; create it",
    "28000": "the database refuses the user",
    "28P01": "the database refuses the user",
    "3D000": "the database does not exist",
}


def explain(error: psycopg.Error, doing: str, address: str) -> FactoryError:
    """Our error for one of psycopg's: UnavailableError where a retry may help, else ConfigurationError or SinkError."""
    state = error.sqlstate or ""
    said = f"{doing} ({address}): "
    primary = " ".join((error.diag.message_primary or str(error)).split())
    if state in _REFUSED:
        return ConfigurationError(f"{said}{_REFUSED[state]}: {primary}")
    if state == "57014":
        return UnavailableError(f"{said}the statement took longer than statement_timeout allows, or was cancelled: {primary}")
    if state in _UNAVAILABLE:
        return UnavailableError(f"{said}{_UNAVAILABLE[state]}: {primary}")
    if not state or state.startswith(("08", "53", "57", "58")):
        return UnavailableError(f"{said}the connection was lost: {primary}")
    detail = " ".join((error.diag.message_detail or "").split())[:300]
    return SinkError(f"{said}the database refuses: {primary}{f' ({detail})' if detail else ''} [{state}]")


@contextmanager
def cut_after(connection: psycopg.Connection[Any], seconds: float) -> Iterator[None]:
    """Close the connection's socket if the block takes longer (0: no limit): an answer lost on its way must not hold us for ever."""
    if seconds <= 0:
        yield
        return
    timer = threading.Timer(seconds, _cut, [connection])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _cut(connection: psycopg.Connection[Any]) -> None:
    import socket

    import psycopg

    try:
        with socket.socket(fileno=os.dup(connection.fileno())) as own:
            own.shutdown(socket.SHUT_RDWR)
    except (OSError, psycopg.Error):
        pass  # closed meanwhile: nothing waits any more
