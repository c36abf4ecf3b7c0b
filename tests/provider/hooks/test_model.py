"""A model's connection becomes what ``infer`` reads."""

from __future__ import annotations

import json

import pytest

from airflow_provider_factory.hooks.model import model_environment
from factory_agents.errors import ConfigurationError


def test_a_connection_of_common_ai(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"conn_type": "pydanticai", "password": "sk-1", "host": "https://models.example/v1", "extra": {"model": "openai:gpt-5-mini"}}
    monkeypatch.setenv("AIRFLOW_CONN_MODEL", json.dumps(given))
    assert model_environment("model") == {
        "FACTORY_MODEL_API_KEY": "sk-1",
        "FACTORY_MODEL_ENDPOINT": "https://models.example/v1",
        "FACTORY_MODEL": "openai:gpt-5-mini",
    }


def test_a_key_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MODEL", json.dumps({"conn_type": "generic", "password": "sk-1"}))
    assert model_environment("model") == {"FACTORY_MODEL_API_KEY": "sk-1"}


def test_one_that_is_missing() -> None:
    with pytest.raises(ConfigurationError, match="connection 'nowhere' \\(model_conn_id\\) is not defined in Airflow"):
        model_environment("nowhere")
