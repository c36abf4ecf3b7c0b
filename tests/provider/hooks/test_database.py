"""The official Postgres connection becomes DATABASE_URL."""

from __future__ import annotations

import pytest
from airflow.sdk import Connection

from airflow_provider_factory.hooks.database import database_environment, database_url
from factory_agents.errors import ConfigurationError


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgres://u:p%40ss@db:5433/events", "postgresql://u:p%40ss@db:5433/events"),
        ("postgresql://u@db/events?sslmode=require", "postgresql://u@db/events?sslmode=require"),
        ("postgres://u:p@%2Ftmp%2Fsock/events", "postgresql://u:p@/events?host=%2Ftmp%2Fsock"),
        ("postgres://db", "postgresql://db/"),
    ],
)
def test_a_connection_becomes_a_libpq_url(uri: str, expected: str) -> None:
    assert database_url(Connection.from_uri(uri, conn_id="c")) == expected


def test_what_only_airflow_knows_is_left_out() -> None:
    connection = Connection(
        conn_id="c", conn_type="postgres", host="db", schema="e", extra='{"cursor": "dictcursor", "iam": true, "connect_timeout": 3}'
    )
    assert database_url(connection) == "postgresql://db/e?connect_timeout=3"


def test_another_type_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected the type postgres, got 'mysql'"):
        database_url(Connection(conn_id="c", conn_type="mysql"))


def test_a_missing_connection_is_an_error_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert database_environment("nowhere", required=False) == {}
    with pytest.raises(ConfigurationError, match="no Airflow connection 'nowhere'"):
        database_environment("nowhere", required=True)
    monkeypatch.setenv("AIRFLOW_CONN_THERE", "postgresql://u:p@db/e")
    assert database_environment("there", required=True) == {"DATABASE_URL": "postgresql://u:p@db/e"}
