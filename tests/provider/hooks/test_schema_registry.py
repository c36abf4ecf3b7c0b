"""A registry's connection: its form, its test button, and what agents get of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_factory.hooks.schema_registry import SchemaRegistryHook, registry_environment
from airflow_provider_factory.runners.base import Access
from factory_agents.codecs.registry import RegistryConfig
from factory_agents.errors import ConfigurationError
from tests.support.registries import answering

GIVEN: dict[str, Any] = {
    "conn_type": "schema_registry",
    "host": "https://registry.example",
    "login": "key",
    "password": "s3cret",
    "extra": {"timeout": "7", "ssl.ca.location": None},
}


def connect(monkeypatch: pytest.MonkeyPatch, name: str = "SCHEMA_REGISTRY_DEFAULT", **changes: Any) -> None:
    monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps({**GIVEN, **changes}))


def test_agents_get_address_user_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch)
    read = RegistryConfig.from_env(registry_environment("schema_registry_default", required=True))
    assert (read.url, read.values) == ("https://registry.example", {"timeout": 7.0, "basic.auth.user.info": "key:s3cret"})
    assert "s3cret" not in repr(read)


@pytest.mark.parametrize(
    ("changes", "url"),
    [
        ({"host": "registry.example"}, "https://registry.example"),
        ({"host": "registry.example", "port": 8081, "schema": "http"}, "http://registry.example:8081"),
        ({"host": "http://a:1, http://b:2"}, "http://a:1,http://b:2"),
    ],
)
def test_an_address_may_be_in_parts_or_several(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], url: str) -> None:
    connect(monkeypatch, **changes)
    assert SchemaRegistryHook().config().url == url


def test_the_test_button_asks_the_registry(monkeypatch: pytest.MonkeyPatch, registry_url: str) -> None:
    connect(monkeypatch, host=registry_url, login=None, password=None)
    works, said = SchemaRegistryHook().test_connection()
    assert works, said
    assert said.startswith(f"the registry {registry_url} answers, and has ")


def test_the_test_button_says_what_is_wrong_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering({"/subjects": {"error_code": 40101, "message": "who is s3cret?"}}, status=401) as (url, asked):
        connect(monkeypatch, host=url)
        assert SchemaRegistryHook().test_connection() == (
            False,
            f"the registry {url} refuses to tell its subjects (HTTP 401): set its user in SCHEMA_REGISTRY_CONFIG",
        )
        assert asked[0][1].startswith("Basic ")
    connect(monkeypatch, host=url, extra={"max.retries": 0})
    works, said = SchemaRegistryHook().test_connection()
    assert (works, "cannot be asked for its subjects" in said, "s3cret" in said) == (False, True, False)
    connect(monkeypatch, host="")
    assert SchemaRegistryHook().test_connection()[1].startswith("connection 'schema_registry_default': it names no address")


def test_one_that_is_missing_is_one_line_where_it_is_needed() -> None:
    assert registry_environment("nowhere", required=False) == {}
    with pytest.raises(ConfigurationError, match=r"there is no Airflow connection 'nowhere' \(type schema_registry\)"):
        registry_environment("nowhere", required=True)


def test_an_agent_gets_the_one_that_is_named_else_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps({"conn_type": "kafka", "extra": {"bootstrap.servers": "h:1"}}))
    connect(monkeypatch)
    connect(monkeypatch, "OTHER", host="https://other.example")
    urls = [
        access.environment().get("SCHEMA_REGISTRY_URL")
        for access in (
            Access("kafka_default"),
            Access("kafka_default", default_registry="schema_registry_default"),
            Access("kafka_default", default_registry="nowhere"),
            Access("kafka_default", registry="other", default_registry="schema_registry_default"),
        )
    ]
    assert urls == [None, "https://registry.example", None, "https://other.example"]
