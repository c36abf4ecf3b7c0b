"""OAUTHBEARER: tokens for every client, from the place that the settings or the brokers' names say."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from factory_agents.errors import ConfigurationError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.oauth import token_source
from factory_agents.kafka.topics import Cluster
from factory_agents.sandbox import Sandbox
from factory_agents.sandbox import kafka as broker

MSK = "b-1.demo.abcde1.c2.kafka.us-east-1.amazonaws.com:9098"
OAUTH = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "OAUTHBEARER"}
JAAS = 'org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";'


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A broker whose SASL listener wants tokens."""
    settings = broker._settings

    def with_tokens(*arguments: Any) -> dict[str, str]:
        listener = {"listener.name.sasl.sasl.enabled.mechanisms": "OAUTHBEARER", "listener.name.sasl.oauthbearer.sasl.jaas.config": JAAS}
        return settings(*arguments) | listener

    monkeypatch.setattr(broker, "_settings", with_tokens)
    sandbox = Sandbox(tmp_path / "factory", sasl=True)
    address = sandbox.up().sasl_bootstrap
    assert address
    yield address
    sandbox.down(wipe=True)


def test_every_client_gets_its_token(bootstrap: str) -> None:
    config = KafkaConfig(bootstrap, {**OAUTH, "oauth_cb": "tests.support.tokens.unsecured", "sasl.oauthbearer.config": "factory"})
    Cluster(config).create("t", 1)
    producer = config.producer("x")
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce("t", b"1")
    producer.commit_transaction(30)
    consumer = config.consumer(auto_offset_reset="earliest")
    consumer.subscribe(["t"])
    messages = consumer.consume(1, 30)
    consumer.close()
    assert [m.value() for m in messages] == [b"1"]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"sasl.mechanism": "PLAIN", "sasl.username": "u"},
        {**OAUTH, "sasl.oauthbearer.method": "oidc"},
        {**OAUTH, "enable.sasl.oauthbearer.unsecure.jwt": "true"},
        {**OAUTH, "enable.sasl.oauthbearer.unsecure.jwt": "True"},
    ],
)
def test_what_librdkafka_does_itself_is_left_to_it(values: dict[str, str]) -> None:
    assert token_source(MSK, values) is None


@pytest.mark.parametrize(
    ("servers", "values", "says"),
    [
        ("b:9092", {}, "Kafka at b:9092: sasl.mechanism OAUTHBEARER needs a source of tokens: sasl.oauthbearer.method=oidc"),
        ("b:9092", {"oauth_cb": "no.such.module.f"}, "oauth_cb: cannot import 'no.such.module.f' here"),
        ("b:9092", {"oauth_cb": "json.nothing"}, "oauth_cb: cannot import 'json.nothing' here"),
        ("b:9092", {"oauth_cb": "json.decoder"}, "oauth_cb: expected a function as module.function, got 'json.decoder'"),
        (MSK, {}, "Amazon MSK with IAM: no signer is installed here: pip install aws-msk-iam-sasl-signer-python"),
    ],
)
def test_without_a_source_one_line_says_what_to_do_at_once(servers: str, values: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        KafkaConfig(servers, {**OAUTH, **values}).admin()
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("servers", "region"),
    [
        (MSK, "us-east-1"),
        (f"{MSK},{MSK.replace('b-1', 'b-2')}", "us-east-1"),
        ("boot-abcde1.c2.kafka-serverless.eu-west-2.amazonaws.com", "eu-west-2"),
        ("b-1.demo.abcde1.c2.kafka.cn-north-1.amazonaws.com.cn:9098", "cn-north-1"),
    ],
)
def test_msk_brokers_get_tokens_signed_for_their_region(servers: str, region: str, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = SimpleNamespace(generate_auth_token=lambda region: (f"token of {region}", 1500))
    monkeypatch.setitem(sys.modules, "aws_msk_iam_sasl_signer", SimpleNamespace(MSKAuthTokenProvider=provider))  # type: ignore[arg-type]
    source = token_source(servers, OAUTH)
    assert source is not None
    assert source("") == (f"token of {region}", 1.5)
