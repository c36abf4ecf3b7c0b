"""The official iceberg connection becomes what pyiceberg needs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_provider_factory.hooks import iceberg
from airflow_provider_factory.hooks.database import database_environment
from airflow_provider_factory.hooks.iceberg import iceberg_environment
from factory_agents.errors import ConfigurationError
from factory_agents.sinks.iceberg import CatalogSettings, catalog_from_env


def catalog(extra: dict[str, Any] | None = None, **given: Any) -> CatalogSettings:
    connection = Connection(conn_id="c", conn_type="iceberg", extra=json.dumps(extra) if extra else None, **given)
    return catalog_from_env(environ=iceberg_environment(connection))


def test_a_rest_catalog_with_a_client_of_its_own() -> None:
    found = catalog({"warehouse": "lake"}, host="https://lake.example/api", login="loader", password="pa55word")
    assert found.properties == {"type": "rest", "uri": "https://lake.example/api", "warehouse": "lake", "credential": "loader:pa55word"}
    assert catalog(host="lake.example", port=8181).properties["uri"] == "https://lake.example:8181"
    assert "pa55word" not in repr(found) + found.place


def test_extras_are_properties_of_pyiceberg() -> None:
    glue = {"type": "glue", "warehouse": "s3://lake/", "glue.region": "eu-central-1", "s3.path-style-access": True}
    assert catalog(glue).properties == glue | {"s3.path-style-access": "true"}
    assert catalog({"type": "sql", "uri": "postgresql+psycopg://u:pa55word@db:5432/lake"}).place == "sql postgresql+psycopg://db:5432/lake"


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    masked: list[str] = []
    monkeypatch.setattr(iceberg, "mask_secret", masked.append)
    catalog({"s3.secret-access-key": "key", "token": "t0ken"}, host="https://h", login="u", password="pa55word")
    assert {"key", "t0ken", "pa55word", "u:pa55word"} <= set(masked)


def test_a_connection_without_a_catalog_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"connection 'c': expected a REST catalog's URL as its host, or pyiceberg's properties"):
        catalog()


def test_its_type_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", '{"conn_type": "iceberg", "host": "https://h"}')
    assert json.loads(database_environment("lake", required=True)["ICEBERG_CATALOG"]) == {"type": "rest", "uri": "https://h"}
