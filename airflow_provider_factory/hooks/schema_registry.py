"""A schema registry's connection: Confluent's interface, by address, user and the keys of Confluent's client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import mask_secret

from factory_agents.errors import ConfigurationError, FactoryError

if TYPE_CHECKING:
    from factory_agents.codecs.registry import RegistryConfig

__all__ = ["SchemaRegistryHook", "registry_environment"]


class SchemaRegistryHook(BaseHook):
    """Reads a connection of the type ``schema_registry``.

    Its host is the registry's address (several are separated by commas), login and password are the user's or an API key's, and its extra
    holds keys of Confluent's client: ``ssl.ca.location``, ``bearer.auth.token``, ``timeout``.

    :param registry_conn_id: the connection's name.

    Example::

        def subjects() -> list[str]:
            return SchemaRegistryHook("schema_registry_default").get_conn().get_subjects()
    """

    conn_name_attr = "registry_conn_id"
    default_conn_name = "schema_registry_default"
    conn_type = "schema_registry"
    hook_name = "Schema Registry"

    def __init__(self, registry_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.registry_conn_id = registry_conn_id

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """How Airflow's form shows the connection."""
        return {
            "hidden_fields": ["schema", "port"],
            "relabeling": {"host": "Address", "login": "User or API key", "password": "Password or API secret"},
            "placeholders": {"host": "https://registry.example.com", "extra": '{"ssl.ca.location": "/etc/ssl/ca.pem", "timeout": 10}'},
        }

    def get_conn(self) -> Any:
        """A client of Confluent's for the registry."""
        return self.config().client()

    def config(self) -> RegistryConfig:
        """The connection as settings; secrets are masked in every log from now on.

        Raises ConfigurationError where there is no such connection, it names no address, or the client doesn't take its settings.
        """
        from factory_agents.codecs.registry import RegistryConfig, is_registry_secret

        name = self.registry_conn_id
        try:
            connection = self.get_connection(name)
        except AirflowNotFoundException:
            raise ConfigurationError(
                f"there is no Airflow connection {name!r} (type schema_registry); add it, or set AIRFLOW_CONN_{name.upper()}, for example "
                '{"conn_type": "schema_registry", "host": "https://registry.example.com"}'
            ) from None
        values = {key: value for key, value in (connection.extra_dejson or {}).items() if value is not None}
        if connection.login:
            values["basic.auth.user.info"] = f"{connection.login}:{connection.password or ''}"
        for secret in (connection.password, *(value for key, value in values.items() if is_registry_secret(key))):
            if secret:
                mask_secret(str(secret))
        hosts = [host.strip() for host in (connection.host or "").split(",") if host.strip()]
        if not hosts:
            raise ConfigurationError(f"connection {name!r}: it names no address; its host is one, such as https://registry.example.com")
        port = f":{connection.port}" if connection.port else ""
        url = ",".join(host if "://" in host else f"{connection.schema or 'https'}://{host}{port}" for host in hosts)
        return RegistryConfig(url, RegistryConfig.typed(values, f"connection {name!r}"))

    def test_connection(self) -> tuple[bool, str]:
        """What Airflow's test button asks: whether the registry answers, and lets this user see its subjects."""
        from factory_agents.codecs.registry import ask

        try:
            config = self.config()
            client = config.client()
            found = ask(config, "its subjects", client.get_subjects)
        except FactoryError as error:
            return False, str(error)
        return True, f"the registry {config.shown} answers, and has {len(found):,} subjects"


def registry_environment(conn_id: str, *, required: bool) -> dict[str, str]:
    """The variables that agents read a registry from; they hold secrets. None for a connection that isn't there and isn't ``required``.

    Raises ConfigurationError as ``SchemaRegistryHook.config``.

    :param conn_id: the connection's name.
    :param required: whether a connection that is missing is an error.
    """
    if not required:
        try:
            BaseHook.get_connection(conn_id)
        except AirflowNotFoundException:
            return {}
    return SchemaRegistryHook(conn_id).config().to_env()
