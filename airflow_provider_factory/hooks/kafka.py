"""The official Kafka connection as the settings that agents, planners and sensors use."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from airflow.providers.apache.kafka.hooks.base import KafkaBaseHook
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import mask_secret

from factory_agents.errors import ConfigurationError
from factory_agents.kafka.config import KafkaConfig, is_secret
from factory_agents.kafka.oauth import CALLBACK

__all__ = ["FactoryKafkaHook", "kafka_config"]

_DROPPED = {
    "group.id",
    "group.instance.id",
    "group.protocol",
    "enable.auto.commit",
    "auto.offset.reset",
    "isolation.level",
    "enable.partition.eof",
    "transactional.id",
    "enable.idempotence",
    "acks",
    "request.required.acks",
    "retries",
    "message.send.max.retries",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "delivery.timeout.ms",
    "message.timeout.ms",
}
"""What a connection tells consumers in groups of their own and producers without transactions, which it is for as well."""


class FactoryKafkaHook(KafkaBaseHook):
    """Reads a connection of the official type ``kafka``.

    Settings in its extra of consumer groups, which windows have none of, and of producers' delivery, which transactions decide, are left
    out.

    :param kafka_config_id: the connection's name.

    Example::

        def brokers() -> str:
            return FactoryKafkaHook("kafka_default").config().bootstrap
    """

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
        _mask(extra)
        return kafka_config(extra, self.kafka_config_id)

    async def aconfig(self) -> KafkaConfig:
        """The same in a trigger, where the event loop may not wait."""
        try:
            connection = await self.aget_connection(self.kafka_config_id)
        except AirflowNotFoundException:
            raise _missing(self.kafka_config_id) from None
        extra: dict[str, Any] = connection.extra_dejson
        await asyncio.to_thread(_mask, extra)  # it tells the triggerer, and waits for its answer
        return kafka_config(extra, self.kafka_config_id)

    def environment(self) -> dict[str, str]:
        """What an agent's process needs in its environment to reach the cluster; holds secrets."""
        return self.config().to_env()


def kafka_config(extra: Mapping[str, Any], name: str) -> KafkaConfig:
    """A connection's extra as typed settings; ``name`` appears in errors.

    As for the official hooks, a value of null leaves its key unset, and ``oauth_cb`` names a function only where
    ``[apache_kafka] callback_allowlist`` has it.

    :param extra: the connection's extra: librdkafka's keys.
    :param name: the connection's name.
    """
    values = {key: value for key, value in extra.items() if value is not None and key not in _DROPPED}
    if values.get(CALLBACK) == "":
        del values[CALLBACK]
    if CALLBACK in values:
        _check_callback(str(values[CALLBACK]), name)
    return KafkaConfig.from_mapping(values, where=f"connection {name!r}")


def _mask(extra: Mapping[str, Any]) -> None:
    """Keep a connection's secrets out of every log from now on."""
    for key, value in extra.items():
        if value is not None and is_secret(key):
            mask_secret(str(value))


def _check_callback(path: str, name: str) -> None:
    allowed = [p.strip() for p in conf.get("apache_kafka", "callback_allowlist", fallback="").split(",")]
    if path not in allowed:
        raise ConfigurationError(
            f"connection {name!r}: {CALLBACK} {path!r} is not in [apache_kafka] callback_allowlist; add it there if you trust it"
        )


def _missing(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"there is no Airflow connection {name!r} (type kafka); add it, or set AIRFLOW_CONN_{name.upper()}, for example "
        '{"conn_type": "kafka", "extra": {"bootstrap.servers": "localhost:9092"}}'
    )
