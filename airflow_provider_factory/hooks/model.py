"""A model's connection, of common.ai's type ``pydanticai`` or any other with a key, as the variables that ``infer`` reads."""

from __future__ import annotations

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import mask_secret

from factory_agents.errors import ConfigurationError

__all__ = ["model_environment"]


def model_environment(conn_id: str) -> dict[str, str]:
    """Key, address and model, as far as the connection has them; the key is masked in logs.

    Raises ConfigurationError where there is no such connection.

    :param conn_id: the connection's name.
    """
    try:
        connection = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise ConfigurationError(f"connection {conn_id!r} (model_conn_id) is not defined in Airflow") from None
    if connection.password:
        mask_secret(connection.password)
    host, extra = connection.host or "", connection.extra_dejson or {}
    if host and "://" not in host:
        host = f"{connection.schema or 'https'}://{host}{f':{connection.port}' if connection.port else ''}"
    found = {
        "FACTORY_MODEL_API_KEY": connection.password or "",
        "FACTORY_MODEL_ENDPOINT": host,
        "FACTORY_MODEL": str(extra.get("model") or ""),
    }
    return {name: value for name, value in found.items() if value}
