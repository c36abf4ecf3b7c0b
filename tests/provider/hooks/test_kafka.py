"""The official Kafka connection becomes agents' settings."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from airflow_provider_factory.hooks.kafka import FactoryKafkaHook
from factory_agents.errors import ConfigurationError
from factory_agents.kafka.config import KafkaConfig
from tests.support import tokens


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(**extra: Any) -> FactoryKafkaHook:
        monkeypatch.setenv("AIRFLOW_CONN_KAFKA_TEST", json.dumps({"conn_type": "kafka", "extra": extra}))
        return FactoryKafkaHook("kafka_test")

    return put


def test_librdkafkas_keys_pass_and_those_of_groups_and_of_delivery_are_left_out(connection: Any) -> None:
    hook = connection(
        **{
            "bootstrap.servers": "b:9092",
            "group.id": "airflow",
            "group.instance.id": "airflow-1",
            "group.protocol": "consumer",
            "acks": 1,
            "retries": 0,
            "max.in.flight.requests.per.connection": 10,
            "delivery.timeout.ms": 300_000,
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


@pytest.mark.parametrize("key", ["bootstrap.servers", "bootstrap_servers", "metadata.broker.list"])
def test_the_broker_has_several_names(connection: Any, key: str) -> None:
    assert connection(**{key: "b:9092"}).config() == KafkaConfig("b:9092")


@pytest.mark.parametrize("key", ["sasl.password", "ssl.key.pem", "sasl.oauthbearer.client.secret"])
@pytest.mark.parametrize("in_a_trigger", [False, True])
def test_secrets_are_masked_in_logs_and_wherever_the_settings_are_shown(connection: Any, key: str, in_a_trigger: bool) -> None:
    from airflow.sdk.log import redact

    secret = f"correct-horse-{key}-{in_a_trigger}"
    hook = connection(**{"bootstrap.servers": "b:9092", "client.id": "shown", key: secret})
    config = asyncio.run(hook.aconfig()) if in_a_trigger else hook.config()
    assert secret not in str(redact(f"the secret is {secret}"))
    for shown in (config, config.values, config.client(), {"settings": config.client()}, [config]):
        assert secret not in f"{shown} {shown!r}"
        assert "shown" in str(shown)
    assert config.client()[key] == secret


def test_null_leaves_a_key_unset(connection: Any) -> None:
    config = connection(
        **{"bootstrap.servers": "b:9092", "sasl.password": None, "client.id": None, "oauth_cb": "", "linger.ms": 5}
    ).config()
    assert config.values == {"linger.ms": "5"}
    with pytest.raises(ConfigurationError, match="names no broker"):
        connection(**{"bootstrap.servers": None}).config()


def test_a_callback_for_tokens_has_to_be_on_airflows_list(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"bootstrap.servers": "b:9092", "sasl.mechanism": "OAUTHBEARER", "oauth_cb": "tests.support.tokens.unsecured"}
    with pytest.raises(
        ConfigurationError, match=r"oauth_cb 'tests.support.tokens.unsecured' is not in \[apache_kafka\] callback_allowlist"
    ):
        connection(**extra).config()
    monkeypatch.setenv("AIRFLOW__APACHE_KAFKA__CALLBACK_ALLOWLIST", "other.function, tests.support.tokens.unsecured")
    config = connection(**extra).config()
    assert config.client()["oauth_cb"] is tokens.unsecured
    assert KafkaConfig.from_env(config.to_env()).client()["oauth_cb"] is tokens.unsecured, "the agent has it too"


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({}, "it names no broker"),
        (
            {"bootstrap.servers": "b:1", "sasl.pasword": "x"},
            r"connection 'kafka_test': unknown librdkafka key 'sasl.pasword'; did you mean 'sasl.password'",
        ),
        ({"bootstrap.servers": "b:1", "error_cb": "my.cb"}, "'error_cb' cannot be used: it names a Python callback"),
        ({"bootstrap.servers": "b:1", "rebalance_cb": "my.cb"}, "'rebalance_cb' cannot be used: it names a Python callback"),
        (
            {"bootstrap.servers": "b:1", "default.topic.config": {"acks": "all"}},
            r"connection 'kafka_test': 'default.topic.config' cannot be used: its keys stand beside all others nowadays",
        ),
        ({"bootstrap.servers": "b:1", "linger.ms": [1]}, "'linger.ms': expected text, a number, true or false, got list"),
    ],
)
def test_what_cannot_be_used_is_named(connection: Any, extra: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        connection(**extra).config()


def test_a_missing_connection_says_how_to_set_it() -> None:
    with pytest.raises(ConfigurationError, match=r"no Airflow connection 'nowhere' .*AIRFLOW_CONN_NOWHERE"):
        FactoryKafkaHook("nowhere").config()
