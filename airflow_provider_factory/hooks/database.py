"""The official Postgres connection as the DATABASE_URL that agents use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowException, AirflowNotFoundException
from airflow.sdk.log import mask_secret

from airflow_provider_factory.hooks.google import CONNECTION_TYPES, google_environment
from airflow_provider_factory.hooks.iceberg import CONNECTION_TYPE as ICEBERG
from airflow_provider_factory.hooks.iceberg import iceberg_environment
from airflow_provider_factory.hooks.snowflake import CONNECTION_TYPE, snowflake_environment
from factory_agents.errors import ConfigurationError
from factory_agents.text import did_you_mean

__all__ = ["database_environment", "database_url"]

NOT_LIBPQ = {
    "autocommit",
    "aws_conn_id",
    "azure_conn_id",
    "cluster-identifier",
    "cursor",
    "iam",
    "prepare_threshold",
    "redshift",
    "redshift-serverless",
    "sqlalchemy_query",
    "sqlalchemy_scheme",
    "workgroup-name",
}
"""What the official hook keeps to itself, and psycopg's settings of a session, which agents decide; everything else in the extra
is a parameter of libpq's."""


def database_url(connection: Any) -> str:
    """A libpq URL from a connection's parts and extra: the session that the official hook opens, several hosts and IAM tokens included.

    Raises ConfigurationError for a connection of another type, for an extra that libpq can't take, and if no token can be obtained.

    :param connection: an Airflow connection of type ``postgres``.
    """
    if connection.conn_type not in ("postgres", "postgresql"):
        raise ConfigurationError(f"connection {connection.conn_id!r}: expected the type postgres, got {connection.conn_type!r}")
    extra: Mapping[str, Any] = connection.extra_dejson or {}
    login, password, port = connection.login, connection.password, connection.port
    if extra.get("iam"):
        login, password, port = _iam_token(connection)
    netloc = ""
    if login or password:  # the user may be in the extra, or be whoever runs the agent
        netloc = quote(login or "", safe="") + (f":{quote(password, safe='')}" if password else "") + "@"
    place = _place(connection.host or "", port)
    if isinstance(place, str):
        netloc, place = netloc + place, {}
    given = {name: value for name, value in extra.items() if name not in NOT_LIBPQ and value is not None}
    _check_names(connection, given)
    query = place | {name: _parameter(connection, name, value) for name, value in given.items()}
    return f"postgresql://{netloc}/{quote(connection.schema or '', safe='')}" + (f"?{urlencode(query, quote_via=quote)}" if query else "")


def _place(host: str, port: int | None) -> str | dict[str, str]:
    """``host:port`` for one host; parameters for a socket's folder, and for several hosts, which share a port."""
    after = f":{port}" if port else ""
    if re.fullmatch(r"[\w.-]*", host) and (host or not port):
        return host + after
    if re.fullmatch(r"[0-9A-Fa-f:.]+", host):
        return f"[{host}]{after}"  # an IPv6 address
    return ({"host": host} if host else {}) | ({"port": str(port)} if port else {})


def _check_names(connection: Any, given: Iterable[str]) -> None:
    """Raise ConfigurationError for what libpq, where it is installed here, doesn't know: it would refuse the whole URL."""
    try:
        from psycopg.pq import Conninfo
    except ImportError:
        return
    known = [option.keyword.decode() for option in Conninfo.get_defaults()]
    for name in given:
        if name not in known:
            near = did_you_mean(name, known)
            raise ConfigurationError(f"connection {connection.conn_id!r}: extra {name!r}: no parameter of libpq's{near}; leave it out")


def _parameter(connection: Any, name: str, value: Any) -> str:
    if isinstance(value, (dict, list)):
        raise ConfigurationError(f"connection {connection.conn_id!r}: extra {name!r}: expected a text or a number, as libpq takes it")
    return str(int(value) if isinstance(value, bool) else value)


def _iam_token(connection: Any) -> tuple[str, str, int]:
    """User, token and port for ``iam: true``, as the official hook gets them."""
    try:
        from airflow.providers.postgres.hooks.postgres import PostgresHook

        login, token, port = PostgresHook(postgres_conn_id=connection.conn_id).get_iam_token(connection)
    except (ImportError, AirflowException) as error:
        raise ConfigurationError(
            f"connection {connection.conn_id!r}: its extra asks for iam, and no token could be obtained: {error}"
        ) from error
    mask_secret(token)
    return login, token, port


def database_environment(conn_id: str, *, required: bool) -> dict[str, str]:
    """``DATABASE_URL`` of an Airflow connection, its password masked in logs; empty if the connection is missing and not required.

    A google, a snowflake or an iceberg connection gives what BigQuery's, Snowflake's or Iceberg's client needs instead. Raises
    ConfigurationError where a required one is missing.

    :param conn_id: the connection's name.
    :param required: whether a connection that is missing is an error.
    """
    try:
        connection = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        if not required:
            return {}
        raise ConfigurationError(
            f"there is no Airflow connection {conn_id!r} (type postgres, google_cloud_platform, snowflake or iceberg); add it, or set"
            f" AIRFLOW_CONN_{conn_id.upper()}, for example "
            "postgresql://user:password@host:5432/database"
        ) from None
    if connection.conn_type in CONNECTION_TYPES:
        return google_environment(connection)
    if connection.conn_type == CONNECTION_TYPE:
        return snowflake_environment(connection)
    if connection.conn_type == ICEBERG:
        return iceberg_environment(connection)
    if connection.password:
        mask_secret(connection.password)
    return {"DATABASE_URL": database_url(connection)}
