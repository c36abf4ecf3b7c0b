"""The official Kafka connection becomes agents' settings."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_factory.hooks.kafka import FactoryKafkaHook
from factory_agents.errors import ConfigurationError


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(**extra: Any) -> FactoryKafkaHook:
        monkeypatch.setenv("AIRFLOW_CONN_KAFKA_TEST", json.dumps({"conn_type": "kafka", "extra": extra}))
        return FactoryKafkaHook("kafka_test")

    return put


def test_librdkafkas_keys_pass_and_a_consumers_own_are_left_out(connection: Any) -> None:
    hook = connection(
        **{
            "bootstrap.servers": "b:9092",
            "group.id": "airflow",
            "enable.auto.commit": False,
            "auto.offset.reset": "beginning",
            "security.protocol": "SASL_SSL",
            "sasl.password": "hush-hush",
            "socket.keepalive.enable": True,
            "socket.timeout.ms": 5000,
        }
    )
    config = hook.config()
    assert config.bootstrap == "b:9092"
    assert config.values == {
        "security.protocol": "SASL_SSL",
        "sasl.password": "hush-hush",
        "socket.keepalive.enable": "true",
        "socket.timeout.ms": "5000",
    }
    assert "hush-hush" not in repr(config)
    assert json.loads(hook.environment()["KAFKA_CONFIG"])["sasl.password"] == "hush-hush"


def test_secrets_are_masked_in_logs(connection: Any) -> None:
    from airflow.sdk.log import redact

    connection(**{"bootstrap.servers": "b:9092", "sasl.password": "correct-horse-battery"}).config()
    assert "correct-horse-battery" not in str(redact("the password is correct-horse-battery"))


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({}, "its extra names no broker"),
        (
            {"bootstrap.servers": "b:1", "sasl.pasword": "x"},
            r"connection 'kafka_test': 'sasl.pasword' is no librdkafka configuration key; did you mean 'sasl.password'",
        ),
        ({"bootstrap.servers": "b:1", "oauth_cb": "my.cb"}, "oauth_cb names a Python callback"),
    ],
)
def test_what_cannot_be_used_is_named(connection: Any, extra: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        connection(**extra).config()


def test_a_missing_connection_says_how_to_set_it() -> None:
    with pytest.raises(ConfigurationError, match=r"no Airflow connection 'nowhere' .*AIRFLOW_CONN_NOWHERE"):
        FactoryKafkaHook("nowhere").config()
