"""The official Postgres connection as the DATABASE_URL that agents use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import mask_secret

from factory_agents.errors import ConfigurationError

__all__ = ["database_environment", "database_url"]

_NOT_LIBPQ = {
    "cursor",
    "iam",
    "redshift",
    "azure_conn_id",
    "aws_conn_id",
    "cluster-identifier",
    "workgroup-name",
    "sqlalchemy_scheme",
    "sqlalchemy_query",
}


def database_url(connection: Any) -> str:
    """A libpq URL from a connection's parts and extra; a host that begins with ``/`` is a socket's folder.

    Raises ConfigurationError for a connection of another type.
    """
    if connection.conn_type not in ("postgres", "postgresql"):
        raise ConfigurationError(f"connection {connection.conn_id!r}: expected the type postgres, got {connection.conn_type!r}")
    extra: Mapping[str, Any] = connection.extra_dejson or {}
    query = {k: str(v) for k, v in extra.items() if k not in _NOT_LIBPQ and not isinstance(v, (dict, list, bool)) and v is not None}
    host = connection.host or ""
    netloc = ""
    if connection.login:
        netloc = quote(connection.login, safe="") + (f":{quote(connection.password, safe='')}" if connection.password else "") + "@"
    if host.startswith("/"):
        query["host"] = host
        if connection.port:
            query["port"] = str(connection.port)
    else:
        netloc += host + (f":{connection.port}" if connection.port else "")
    return f"postgresql://{netloc}/{quote(connection.schema or '', safe='')}" + (f"?{urlencode(query)}" if query else "")


def database_environment(conn_id: str, *, required: bool) -> dict[str, str]:
    """``DATABASE_URL`` of an Airflow connection, its password masked in logs; nothing where the connection may be missing and is.

    Raises ConfigurationError where a required one is missing.
    """
    try:
        connection = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        if not required:
            return {}
        raise ConfigurationError(
            f"there is no Airflow connection {conn_id!r} (type postgres); add it, or set AIRFLOW_CONN_{conn_id.upper()}, for example "
            "postgresql://user:password@host:5432/database"
        ) from None
    if connection.password:
        mask_secret(connection.password)
    return {"DATABASE_URL": database_url(connection)}
