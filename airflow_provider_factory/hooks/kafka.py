"""The official Kafka connection as the settings that agents, planners and sensors use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from airflow.providers.apache.kafka.hooks.base import KafkaBaseHook
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import mask_secret

from factory_agents.errors import ConfigurationError
from factory_agents.kafka.config import KafkaConfig

__all__ = ["FactoryKafkaHook", "kafka_config"]

_DROPPED = {
    "group.id",
    "enable.auto.commit",
    "auto.offset.reset",
    "isolation.level",
    "enable.partition.eof",
    "transactional.id",
    "enable.idempotence",
}
_CALLBACKS = {"error_cb", "throttle_cb", "stats_cb", "log_cb", "oauth_cb", "on_commit"}
_SECRET_WORDS = ("password", "secret", ".pem", "jaas", "token", "userinfo", "user.info")


class FactoryKafkaHook(KafkaBaseHook):
    """Reads a connection of the official type ``kafka``; what its extra says of consumer groups is left out, since windows have none."""

    def __init__(self, kafka_config_id: str = KafkaBaseHook.default_conn_name) -> None:
        super().__init__(kafka_config_id)  # type: ignore[no-untyped-call]  # the official provider's has no types

    def config(self) -> KafkaConfig:
        """Typed settings; secrets are masked in every log from now on.

        Raises ConfigurationError where there is no such connection, it names no broker, or it holds a key that librdkafka doesn't know.
        """
        try:
            extra: dict[str, Any] = self.get_connection(self.kafka_config_id).extra_dejson
        except AirflowNotFoundException:
            raise _missing(self.kafka_config_id) from None
        for key, value in extra.items():
            if any(word in key for word in _SECRET_WORDS):
                mask_secret(value, key)
        return kafka_config(extra, self.kafka_config_id)

    async def aconfig(self) -> KafkaConfig:
        """The same in a trigger, where the event loop may not wait."""
        try:
            connection = await self.aget_connection(self.kafka_config_id)
        except AirflowNotFoundException:
            raise _missing(self.kafka_config_id) from None
        return kafka_config(connection.extra_dejson, self.kafka_config_id)

    def environment(self) -> dict[str, str]:
        """What an agent's process needs in its environment to reach the cluster; holds secrets."""
        return self.config().to_env()


def kafka_config(extra: Mapping[str, Any], name: str) -> KafkaConfig:
    """A connection's extra as typed settings; ``name`` stands in the errors."""
    callbacks = sorted(_CALLBACKS & extra.keys())
    if callbacks:
        raise ConfigurationError(
            f"connection {name!r}: {', '.join(callbacks)} names a Python callback, which agents in processes of their own cannot call; use "
            "librdkafka's own keys (sasl.oauthbearer.method=oidc, or a mechanism with credentials)"
        )
    values = {key: _text(value) for key, value in extra.items() if key not in _DROPPED}
    if not values.get("bootstrap.servers", "").strip():
        raise ConfigurationError(f'connection {name!r}: its extra names no broker; set "bootstrap.servers": "host:port"')
    return KafkaConfig.from_mapping(values, where=f"connection {name!r}")


def _missing(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"there is no Airflow connection {name!r} (type kafka); add it, or set AIRFLOW_CONN_{name.upper()}, for example "
        '{"conn_type": "kafka", "extra": {"bootstrap.servers": "localhost:9092"}}'
    )


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else json.dumps(value)
