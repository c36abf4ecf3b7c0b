"""Snowflake as the sink asks it: one session, its statements and transactions, and what its errors mean."""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents import failpoints
from factory_agents.errors import ConfigurationError, FactoryError, SinkError, UnavailableError
from factory_agents.sinks.snowflake.names import TableName, quoted

if TYPE_CHECKING:
    from snowflake.connector import SnowflakeConnection

__all__ = ["Account", "ConflictError", "LostSessionError", "NotFoundError", "Session", "account_from_env", "explain"]

_LOGIN = 60
"""Seconds that a login may take."""
_HOW = (
    "give a snowflake connection in Airflow, or SNOWFLAKE_ACCOUNT, SNOWFLAKE_USER and one of SNOWFLAKE_PRIVATE_KEY_FILE,"
    " SNOWFLAKE_PRIVATE_KEY, SNOWFLAKE_TOKEN_FILE, SNOWFLAKE_TOKEN or SNOWFLAKE_PASSWORD"
)
_MISSING = {2003, 2043}
_DENIED = {3001, 3011, 3041}
_NOWHERE = {606, 90105, 90106}
"""No warehouse, no database, no schema."""
_LOCKED = {625, 626}
_CANCELLED = {604, 630}
_GONE = {390103, 390104, *range(390111, 390116), 390195}
"""A session, or its tokens, that Snowflake doesn't know any more."""
_OUTAGES = ("HTTP request failed", "timed out")
"""What the client says of a server that it doesn't reach while it logs in; the number is that of a wrong password."""
_LOGIN_ERRORS = {7, 250001, 250003, 250006, 251007}
"""What the client itself says of a login, or of what it was given for one."""


class ConflictError(UnavailableError):
    """Another transaction was in the way; nothing of this one was done."""


class NotFoundError(ConfigurationError):
    """A table, or its schema, isn't there."""


class LostSessionError(SinkError):
    """The session is gone, and what was staged in it; a retry begins again."""

    retriable = True


class Account(msgspec.Struct, frozen=True):
    """Whom to ask as: ``place`` (account, host, …) and ``secrets`` are the client's own parameters; "" is the user's default."""

    place: dict[str, Any]
    secrets: dict[str, Any]
    database: str = ""
    schema: str = ""
    warehouse: str = ""
    role: str = ""

    @property
    def name(self) -> str:
        """The account's name."""
        return str(self.place.get("account", ""))

    def __repr__(self) -> str:
        """Without the credentials."""
        return f"Account({self.name})"


_SECRETS = {"SNOWFLAKE_PRIVATE_KEY": "private_key", "SNOWFLAKE_TOKEN": "token", "SNOWFLAKE_PASSWORD": "password"}
_FILES = {"SNOWFLAKE_PRIVATE_KEY_FILE": "private_key", "SNOWFLAKE_TOKEN_FILE": "token"}
_AUTHENTICATORS = {"private_key": "SNOWFLAKE_JWT", "token": "OAUTH"}
_PLACE = {"SNOWFLAKE_ACCOUNT": "account", "SNOWFLAKE_USER": "user", "SNOWFLAKE_HOST": "host", "SNOWFLAKE_PROTOCOL": "protocol"}
_OAUTH = {
    "SNOWFLAKE_OAUTH_CLIENT_ID": "oauth_client_id",
    "SNOWFLAKE_OAUTH_CLIENT_SECRET": "oauth_client_secret",
    "SNOWFLAKE_OAUTH_TOKEN_REQUEST_URL": "oauth_token_request_url",
    "SNOWFLAKE_OAUTH_SCOPE": "oauth_scope",
}


def account_from_env(environ: Mapping[str, str] | None = None) -> Account:
    """The account that the environment names.

    Raises ConfigurationError where the client isn't installed, and where there are no credentials, several, or a file that can't be read;
    no value is shown.
    """
    environ = os.environ if environ is None else environ
    try:
        import snowflake.connector  # noqa: F401
    except ImportError as error:
        raise ConfigurationError("publish to Snowflake needs its client: pip install 'factory-agents[snowflake]'") from error
    place: dict[str, Any] = {name: environ[variable] for variable, name in _PLACE.items() if environ.get(variable)}
    if not place.get("account"):
        raise ConfigurationError(f"SNOWFLAKE_ACCOUNT is not set: {_HOW}")
    if port := environ.get("SNOWFLAKE_PORT"):
        if not port.isdecimal():
            raise ConfigurationError(f"SNOWFLAKE_PORT: expected a number, got {port!r}")
        place["port"] = int(port)
    return Account(
        place,
        _secrets(environ),
        database=environ.get("SNOWFLAKE_DATABASE", ""),
        schema=environ.get("SNOWFLAKE_SCHEMA", ""),
        warehouse=environ.get("SNOWFLAKE_WAREHOUSE", ""),
        role=environ.get("SNOWFLAKE_ROLE", ""),
    )


def _secrets(environ: Mapping[str, str]) -> dict[str, Any]:
    oauth = {name: environ[variable] for variable, name in _OAUTH.items() if environ.get(variable)}
    given = [variable for variable in (*_SECRETS, *_FILES) if environ.get(variable)]
    if len(given) + bool(oauth) > 1:
        raise ConfigurationError(f"{', '.join([*given, *(['SNOWFLAKE_OAUTH_…'] if oauth else [])])}: expected one of them")
    authenticator = environ.get("SNOWFLAKE_AUTHENTICATOR", "")
    if oauth:
        return oauth | {"authenticator": authenticator or "OAUTH_CLIENT_CREDENTIALS"}
    if not given and not authenticator:
        raise ConfigurationError(f"Snowflake: there are no credentials: {_HOW}")
    secrets = {_SECRETS.get(variable) or _FILES[variable]: _secret(variable, environ[variable]) for variable in given}
    if (passphrase := environ.get("SNOWFLAKE_PRIVATE_KEY_PASSPHRASE")) and "private_key" in secrets:
        secrets["private_key_password"] = passphrase
    authenticator = authenticator or next((_AUTHENTICATORS[name] for name in secrets if name in _AUTHENTICATORS), "")
    return secrets | ({"authenticator": authenticator} if authenticator else {})


def _secret(variable: str, value: str) -> str:
    if variable not in _FILES:
        return value
    try:
        return Path(value).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{variable}: the file cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}") from None


class Session:
    """A session in the schema of one table; it is opened when it is needed, and again after it was lost.

    ``timeout`` is how many seconds one statement may take, and wait for another transaction. All raise ConfigurationError for what we may
    not do or name wrongly, SinkError for what Snowflake refuses, UnavailableError where it doesn't answer, or another transaction is in
    the way.
    """

    def __init__(self, account: Account, table: TableName, *, timeout: float, query_tag: str = "") -> None:
        self._account, self._table = account, table
        self._parameters = {
            "AUTOCOMMIT": True,
            "CLIENT_TELEMETRY_ENABLED": False,
            "DATE_INPUT_FORMAT": "AUTO",
            "LOCK_TIMEOUT": max(round(timeout), 1),
            "QUERY_TAG": query_tag or "factory publish",
            "QUOTED_IDENTIFIERS_IGNORE_CASE": False,
            "STATEMENT_TIMEOUT_IN_SECONDS": max(round(timeout), 1),
            "TIMESTAMP_INPUT_FORMAT": "AUTO",
            "TIMEZONE": "UTC",
        }
        self._connection: SnowflakeConnection | None = None
        self.number = 0
        """How many sessions there were before this one: what was staged in another is gone."""

    def close(self) -> None:
        """End the session, and with it what was staged."""
        connection, self._connection = self._connection, None
        self.number += 1
        if connection is not None:
            with suppress(Exception):
                connection.close()

    def _connected(self) -> SnowflakeConnection:
        if self._connection is None:
            import snowflake.connector

            logging.getLogger("snowflake.connector._core").setLevel(logging.ERROR)  # it warns of clouds that it isn't in
            account, table = self._account, self._table
            named = {
                "database": quoted(table.database) if table.database else account.database,
                "schema": quoted(table.schema) if table.schema else account.schema,
                "warehouse": account.warehouse,
                "role": account.role,
            }
            with self._explained(f"logging in to {account.name}"):
                self._connection = snowflake.connector.connect(
                    **account.place,
                    **account.secrets,
                    **{name: value for name, value in named.items() if value},
                    application="factory_agents",
                    client_session_keep_alive=True,
                    login_timeout=_LOGIN,
                    paramstyle="qmark",
                    enable_server_session_keep_alive_auto_detection=False,
                    session_parameters=self._parameters,
                )
        return self._connection

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a query gives."""
        return self._asked(sql, values)[1]

    def run(self, sql: str, *values: Any) -> int:
        """Run a statement; how many rows it changed."""
        return self._asked(sql, values)[0]

    def put(self, data: io.BytesIO, stage: str, file: str) -> None:
        """Upload a file to a stage, in the place of one of this name; both names are plain."""
        data.seek(0)
        self._asked(f"PUT file://{file} @{stage} AUTO_COMPRESS = FALSE OVERWRITE = TRUE", (), data)

    def _asked(self, sql: str, values: tuple[Any, ...], stream: io.BytesIO | None = None) -> tuple[int, list[tuple[Any, ...]]]:
        failpoints.hit("snowflake.asking")
        connection = self._connected()
        with self._explained(f"asking {self._account.name}"), connection.cursor() as cursor:
            if stream is None:
                cursor.execute(sql, values or None)
            else:
                cursor.execute(sql, file_stream=stream)
            rows = cursor.fetchall()
            changed = int(cursor.rowcount or 0)
        failpoints.hit("snowflake.answered")
        return changed, [tuple(row) for row in rows]

    @contextmanager
    def transaction(self) -> Iterator[str]:
        """A transaction, and its id; it is committed at the end, and rolled back where something is raised.

        Snowflake aborts one that is idle for minutes while others wait for it, and then runs each further statement by itself: what must be
        done in the transaction or not at all names the id.
        """
        try:
            self.run("BEGIN TRANSACTION")
            ((number,),) = self.rows("SELECT CURRENT_TRANSACTION()")
            yield str(number)
            self.run("COMMIT")
        except Exception:
            self._roll_back()
            raise

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """A transaction that is rolled back, whatever came of it."""
        self.run("BEGIN TRANSACTION")
        try:
            yield
        finally:
            self._roll_back()

    def _roll_back(self) -> None:
        """Where that can't be said to Snowflake, the session is given up, so that no later statement runs in the transaction."""
        try:
            if self._connection is not None:
                self.run("ROLLBACK")
        except FactoryError:
            self.close()

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Turn the client's errors into ours."""
        from snowflake.connector.errors import Error

        try:
            yield
        except Error as error:
            explained = explain(error, doing)
            if isinstance(explained, LostSessionError):
                self.close()
            raise explained from error


def explain(error: Any, doing: str) -> FactoryError:
    """Our error for one of the client's."""
    from snowflake.connector.errors import InterfaceError, OperationalError

    number, said = error.errno or 0, f"{doing}: Snowflake says: {_line(error)}"
    if number in _GONE:
        return LostSessionError(f"{said}; a retry begins again")
    if number in _LOCKED:
        return ConflictError(f"{said}; retry")
    if number in _CANCELLED:
        return UnavailableError(f"{said}; raise timeout, or retry")
    if number in _MISSING:
        return NotFoundError(f"{said}; create it, grant USAGE on its database and schema, or correct the table's name")
    if number in _DENIED:
        return ConfigurationError(
            f"{said}; grant the role USAGE on the schema, CREATE TABLE in it, and OWNERSHIP or SELECT, INSERT, UPDATE, DELETE"
        )
    if number in _NOWHERE:
        return ConfigurationError(
            f"{said}; name it: warehouse, database.schema.table, or SNOWFLAKE_WAREHOUSE, SNOWFLAKE_DATABASE, SNOWFLAKE_SCHEMA"
        )
    if isinstance(error, OperationalError | InterfaceError) or any(sign in said for sign in _OUTAGES):
        return UnavailableError(f"{doing}: Snowflake does not answer: {_line(error)}")
    if number in _LOGIN_ERRORS or 390000 <= number < 391000:
        return ConfigurationError(f"{said}; {_HOW}")
    return SinkError(said)


def _line(error: Any) -> str:
    """What the client says, in one line; its number once."""
    text = " ".join(str(getattr(error, "msg", None) or error).split())
    return re.sub(r"^(\d{6}(?: \(\w+\))?: )\1", r"\1", text).rstrip(".")[:500]
