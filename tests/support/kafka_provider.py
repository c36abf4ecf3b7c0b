"""Answers Terraform in the place of the provider mongey/kafka: topics and rights, by Kafka's own client, on the broker that it is told."""

from __future__ import annotations

import sys
from typing import Any

from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)
from tf.iface import Resource
from tf.provider import Provider
from tf.runner import run_provider
from tf.schema import Attribute, Schema
from tf.types import List, Number, String, TfType, Unknown


class StringMap(TfType):
    """A map of texts."""

    def encode(self, value: Any) -> Any:
        return value

    def decode(self, value: Any) -> Any:
        return value

    def tf_type(self) -> bytes:
        return b'["map","string"]'


class Kafka(Provider):
    """The provider: only where the cluster is; a password is taken and not used."""

    def __init__(self) -> None:
        self.admin: AdminClient | None = None

    def get_model_prefix(self) -> str:
        return "kafka_"

    def full_name(self) -> str:
        return "registry.terraform.io/mongey/kafka"

    def get_provider_schema(self, diags: Any) -> Schema:
        login = [Attribute(name, String(), optional=True) for name in ("sasl_username", "sasl_password")]
        return Schema(version=1, attributes=[Attribute("bootstrap_servers", List(String()), required=True), *login])

    def validate_config(self, diags: Any, config: dict[str, Any]) -> None:
        """Anything may be unknown still."""

    def configure_provider(self, diags: Any, config: dict[str, Any]) -> None:
        self.admin = AdminClient({"bootstrap.servers": ",".join(config["bootstrap_servers"])})

    def get_data_sources(self) -> list[Any]:
        return []

    def get_resources(self) -> list[Any]:
        return [Topic, Acl]


class _Part(Resource):
    def __init__(self, provider: Kafka) -> None:
        self.provider = provider

    @property
    def admin(self) -> AdminClient:
        assert self.provider.admin is not None
        return self.provider.admin


class Topic(_Part):
    """kafka_topic."""

    @classmethod
    def get_name(cls) -> str:
        return "topic"

    @classmethod
    def get_schema(cls) -> Schema:
        return Schema(
            attributes=[
                Attribute("name", String(), required=True, requires_replace=True),
                Attribute("partitions", Number(), required=True),
                Attribute("replication_factor", Number(), required=True, requires_replace=True),
                Attribute("config", StringMap(), optional=True),
            ]
        )

    def create(self, ctx: Any, planned: dict[str, Any]) -> dict[str, Any]:
        topic = NewTopic(planned["name"], int(planned["partitions"]), int(planned["replication_factor"]), config=planned["config"])
        self.admin.create_topics([topic])[planned["name"]].result()
        return planned

    def read(self, ctx: Any, current: dict[str, Any]) -> dict[str, Any] | None:
        found = self.admin.list_topics(timeout=10).topics.get(current["name"])
        if found is None or found.error is not None:
            return None
        resource = ConfigResource(ResourceType.TOPIC, current["name"])
        config = self.admin.describe_configs([resource])[resource].result()
        replicas = len(next(iter(found.partitions.values())).replicas)
        told = {name: config[name].value for name in current["config"]}
        return {"name": current["name"], "partitions": len(found.partitions), "replication_factor": replicas, "config": told}

    def update(self, ctx: Any, current: dict[str, Any], planned: dict[str, Any]) -> dict[str, Any]:
        if planned["partitions"] != current["partitions"]:
            more = NewPartitions(planned["name"], int(planned["partitions"]))
            self.admin.create_partitions([more])[planned["name"]].result()
        entries = [ConfigEntry(k, v, incremental_operation=AlterConfigOpType.SET) for k, v in planned["config"].items()]
        resource = ConfigResource(ResourceType.TOPIC, planned["name"], incremental_configs=entries)
        self.admin.incremental_alter_configs([resource])[resource].result()
        return planned

    def delete(self, ctx: Any, current: dict[str, Any]) -> None:
        self.admin.delete_topics([current["name"]])[current["name"]].result()


_RIGHT = (
    "acl_principal",
    "acl_host",
    "resource_type",
    "resource_name",
    "acl_operation",
    "acl_permission_type",
    "resource_pattern_type_filter",
)


class Acl(_Part):
    """kafka_acl: planned only; a broker's own rights are tried in the tests of docs/least-rights.md."""

    @classmethod
    def get_name(cls) -> str:
        return "acl"

    @classmethod
    def get_schema(cls) -> Schema:
        return Schema(attributes=[Attribute(name, String(), required=True, requires_replace=True) for name in _RIGHT])

    def create(self, ctx: Any, planned: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in planned.items() if value is not Unknown}

    def read(self, ctx: Any, current: dict[str, Any]) -> dict[str, Any]:
        return current

    def update(self, ctx: Any, current: dict[str, Any], planned: dict[str, Any]) -> dict[str, Any]:
        return planned

    def delete(self, ctx: Any, current: dict[str, Any]) -> None:
        """Nothing is there."""


if __name__ == "__main__":
    run_provider(Kafka(), sys.argv)
