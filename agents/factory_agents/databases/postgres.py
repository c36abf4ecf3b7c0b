"""PostgreSQL for sinks, sources and lookups: the address, sessions, and what the server's errors mean; secrets are never shown."""

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

__all__ = ["Database", "cut_after", "database_from_env", "database_from_url", "explain", "lost", "usage_grants"]

_CONNECTION = {
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
"""What a URL that says nothing else gets: a peer that vanished is noticed within a minute."""

_REFUSALS = re.compile(
    r"authentication failed|no password supplied|does not exist|pg_hba\.conf|not permitted to log in|invalid \w+ value|could not match"
    r"|permission denied (?:for database|to set parameter)|unsupported startup parameter|no such (?:database|user)"
    r"|invalid value for parameter|unrecognized configuration parameter|invalid command-line argument|cannot be changed"
)
"""What libpq and servers say to settings, credentials and names that a retry doesn't mend; a connection that failed has no code."""

_EXAMPLE = "postgresql://user@host:5432/name"
_SCHEME = re.compile(r"^postgres(?:ql)?(?:\+\w+)?://")
_HOST = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:.]+\])(?::.*)?")


class Database(msgspec.Struct, frozen=True):
    """Where a database is: its connection parameters, and its ``address`` for messages (host:port/name, no credentials)."""

    parameters: dict[str, str]
    address: str
    variable: str

    def __repr__(self) -> str:
        """The address only: the parameters hold the password."""
        return f"Database({self.address})"

    def connect(self, application: str) -> psycopg.Connection[Any]:
        """Open a session in UTF-8 that reads committed data and prepares no statements (a pooler would give them to another session).

        Raises ConfigurationError where the server refuses who asks or what for, UnavailableError where it doesn't answer.
        """
        import psycopg

        parameters: dict[str, Any] = _CONNECTION | self.parameters | {"client_encoding": "UTF8"}
        try:
            connection = psycopg.connect(**parameters, fallback_application_name=application, prepare_threshold=None)
        except psycopg.Error as error:
            said = self._without_secrets(error)
            if isinstance(error, psycopg.ProgrammingError) or _REFUSALS.search(said):
                raise ConfigurationError(f"the database {self.address} refuses: {said}; correct {self.variable}") from None
            raise UnavailableError(f"the database {self.address} does not answer: {said}; is {self.variable} right?") from None
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
    """The database whose URL (or libpq's ``key=value`` text) is in an environment variable.

    Raises ConfigurationError where psycopg isn't installed, or the variable isn't set or isn't understood; its value is never shown.
    """
    url = os.environ.get(variable, "").strip()
    if not url:
        raise ConfigurationError(f"{variable} is not set: expected the URL of a database, for example {_EXAMPLE}")
    return database_from_url(url, variable)


def database_from_url(url: str, variable: str) -> Database:
    """The database of a URL, as libpq reads it, SQLAlchemy's ``postgresql+driver://`` included; ``variable`` says where it came from.

    Raises ConfigurationError where psycopg isn't installed or the URL isn't understood; of the URL no more than the host is shown.
    """
    try:
        from psycopg import Error, conninfo
    except ImportError as error:
        raise ConfigurationError("PostgreSQL needs psycopg: pip install 'factory-agents[postgres]'") from error
    url = _SCHEME.sub("postgresql://", url.strip(), count=1)
    parameters: dict[str, str] = {}
    try:
        _check_url(url)
        parameters = {name: str(value) for name, value in conninfo.conninfo_to_dict(url).items() if value is not None}
        ports = _ports(parameters)
    except (Error, ValueError):
        host = _shown_host(url)
        raise ConfigurationError(
            f"{variable} is not a database URL (its value is not shown{f'; its host is {host}' if host else ''}): expected one such as"
            f" {_EXAMPLE}, with special characters of the user and the password as %40 (for @), %25 (for %) and so on"
        ) from None
    return Database(parameters, _address(parameters, ports), variable)


def _check_url(url: str) -> None:
    """Refuse what libpq would take apart in another place than its writer meant: a password with a bare ``@`` or ``/`` in it."""
    authority, _, name = _authority_and_path(url).partition("/")
    if "@" in name or authority.count("@") > 1:
        raise ValueError


def _authority_and_path(url: str) -> str:
    scheme, found, rest = url.partition("?")[0].partition("://")
    return rest if found and scheme.isalpha() else ""


def _ports(parameters: dict[str, str]) -> list[str]:
    ports = (parameters.get("port") or os.environ.get("PGPORT") or "5432").split(",")
    if not all(port.strip().isdigit() or not port for port in ports):
        raise ValueError
    return ports


def _address(parameters: dict[str, str], ports: list[str]) -> str:
    """``host:port/name``, every host where there are several."""
    hosts = (parameters.get("host") or parameters.get("hostaddr") or os.environ.get("PGHOST") or "localhost").split(",")
    if len(ports) == 1:
        ports = ports * len(hosts)
    pairs = [f"{f'[{host}]' if ':' in host else host}:{port or 5432}" for host, port in zip(hosts, ports, strict=False)]
    name = parameters.get("dbname") or os.environ.get("PGDATABASE") or parameters.get("user", "")
    return f"{','.join(pairs)}/{name}"


def _shown_host(url: str) -> str:
    """The host of a URL that isn't understood, where it can be told from the rest for certain; else ""."""
    _, found, rest = _authority_and_path(url).rpartition("@")
    host = _HOST.fullmatch(rest.partition("/")[0])
    return host[1] if found and host and "@" not in url.partition("?")[2] else ""


def lost(connection: psycopg.Connection[Any], error: Exception) -> bool:
    """Whether the session is gone, which leaves open whether its last statement took effect."""
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


_STATEMENT_MODE = "statement pooling mode"
_NO_PERMISSION = re.compile(r"permission denied for (\w+)")
_RIGHTS = {"schema": "USAGE", "function": "EXECUTE", "procedure": "EXECUTE", "sequence": "USAGE", "database": "TEMPORARY", "type": "USAGE"}


def explain(error: psycopg.Error, where: str, refused: type[FactoryError] = SinkError, right: str = "") -> FactoryError:
    """Our error for one of psycopg's, which begins with ``where``.

    UnavailableError where a retry may help, ConfigurationError for a right or a name that is missing, else ``refused``. ``right`` is what
    was needed on a table: a server that refuses names only the table.
    """
    state = error.sqlstate or ""
    primary = " ".join((error.diag.message_primary or str(error)).split())
    if state == "42501" and (kind := _NO_PERMISSION.match(primary)):
        needed = _RIGHTS.get(kind[1], right)
        return ConfigurationError(f"{where}: the database's user lacks a right; grant {needed or 'it'}: {primary}")
    if "query_wait_timeout" in primary:
        return UnavailableError(
            f"{where}: the pooler has no session free (publish may need two at a time: raise its default_pool_size): {primary}"
        )
    if _STATEMENT_MODE in primary:
        return ConfigurationError(
            f"{where}: the pooler before the database lends a session for one statement only ({primary}); use its transaction mode"
        )
    if state in _REFUSED:
        return ConfigurationError(f"{where}: {_REFUSED[state]}: {primary}")
    if state == "57014":
        return UnavailableError(f"{where}: the statement took longer than statement_timeout allows, or was cancelled: {primary}")
    if state in _UNAVAILABLE:
        return UnavailableError(f"{where}: {_UNAVAILABLE[state]}: {primary}")
    if state.startswith(("08", "53", "57", "58")) or (not state and _is_of_the_connection(error)):
        return UnavailableError(f"{where}: the connection was lost: {primary}")
    detail = " ".join((error.diag.message_detail or "").split())[:300]
    code = f" [{state}]" if state else ""
    return refused(f"{where}: {primary}{f' ({detail})' if detail else ''}{code}")


def usage_grants(connection: psycopg.Connection[Any]) -> str:
    """What would let the session's role use the schemas of its search_path that it may not: PostgreSQL passes them over in silence."""
    rows = connection.execute(
        """
        SELECT format('GRANT USAGE ON SCHEMA %I TO %I', s.nspname, current_user)
        FROM regexp_split_to_table(current_setting('search_path'), ' *, *') AS path
            JOIN pg_catalog.pg_namespace s ON s.nspname = CASE path WHEN '"$user"' THEN current_user ELSE trim('"' FROM path) END
        WHERE NOT has_schema_privilege(s.oid, 'USAGE')
        """
    ).fetchall()
    return "; ".join(row[0] for row in rows)


def _is_of_the_connection(error: psycopg.Error) -> bool:
    import psycopg

    # a result without a code is of no subclass: libpq made it where the server went away in the middle of an answer
    return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)) or type(error) is psycopg.DatabaseError


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
