"""The official iceberg connection as the variable by which agents open an Iceberg catalog."""

from __future__ import annotations

import json
from typing import Any

from airflow.sdk.log import mask_secret

from factory_agents.errors import ConfigurationError

__all__ = ["CONNECTION_TYPE", "iceberg_environment"]

CONNECTION_TYPE = "iceberg"

_SECRET = ("secret", "token", "credential", "password", "access-key")


def iceberg_environment(connection: Any) -> dict[str, str]:
    """The catalog's properties, as ``publish`` reads them; secrets are masked in logs.

    A host is the URL of a REST catalog, login and password are its client's id and secret; extras are pyiceberg's own properties, and go
    before those. Raises ConfigurationError for a connection that says nothing of a catalog.

    :param connection: an Airflow connection of type ``iceberg``.
    """
    found = {name: value for name, value in (connection.extra_dejson or {}).items() if value not in (None, "")}
    if connection.host and "uri" not in found:
        scheme = "" if "://" in connection.host else f"{connection.schema or 'https'}://"
        port = f":{connection.port}" if connection.port else ""
        found = {"type": "rest", "uri": f"{scheme}{connection.host}{port}", **found}
    if not found:
        raise ConfigurationError(
            f"connection {connection.conn_id!r}: expected a REST catalog's URL as its host, or pyiceberg's properties as extras, such as"
            ' {"type": "glue", "warehouse": "s3://…"}'
        )
    if connection.login and connection.password and found.get("type") == "rest" and "credential" not in found:
        found["credential"] = f"{connection.login}:{connection.password}"
    for name, value in found.items():
        if any(word in name for word in _SECRET) and isinstance(value, str):
            mask_secret(value)
    if connection.password:
        mask_secret(connection.password)
    return {"ICEBERG_CATALOG": json.dumps(found)}
