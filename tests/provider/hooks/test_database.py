"""The official Postgres connection becomes DATABASE_URL."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import create_autospec
from urllib.parse import quote

import psycopg
import pytest
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import Connection
from psycopg.conninfo import conninfo_to_dict

from airflow_provider_factory.hooks.database import NOT_LIBPQ, database_environment
from airflow_provider_factory.hooks.database import database_url as url_of
from airflow_provider_factory.lineage import result_lineage
from factory_agents.databases.postgres import database_from_url
from factory_agents.errors import ConfigurationError
from factory_agents.protocol import AgentResult, Dataset


def connection(**parts: Any) -> Connection:
    return Connection(**({"conn_id": "c", "conn_type": "postgres"} | parts))


def official(of: Connection, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the official hook gives to libpq."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(PostgresHook, "get_connection", lambda self, conn_id: of)
    monkeypatch.setattr(PostgresHook, "_create_connection", lambda self, arguments: given.update(arguments))
    PostgresHook().get_conn()
    return {name: str(value) for name, value in given.items() if value not in (None, "") and name != "row_factory"}


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgres://u:p%40ss@db:5433/events", "postgresql://u:p%40ss@db:5433/events"),
        ("postgresql://u@db/events?sslmode=require", "postgresql://u@db/events?sslmode=require"),
        ("postgres://u:p@%2Ftmp%2Fsock/events", "postgresql://u:p@/events?host=%2Ftmp%2Fsock"),
        ("postgres://db", "postgresql://db/"),
        ("postgres://u@[::1]:5433/events", "postgresql://u@[::1]:5433/events"),
    ],
)
def test_a_connection_becomes_a_libpq_url(uri: str, expected: str) -> None:
    assert url_of(Connection.from_uri(uri, conn_id="c")) == expected


@pytest.mark.skipif(
    not hasattr(PostgresHook, "_create_connection"), reason="this Postgres provider's hook keeps to itself what it gives libpq"
)
@pytest.mark.parametrize(
    "uri",
    [
        "postgres://u:p%40s%2Fs%25@db:5433/ev%2Fents",
        "postgres://u@h1,h2:5433/events",
        "postgres://u@h1,h2/events?target_session_attrs=read-write",
        "postgres://u@/events?host=h1,h2&port=5433,5434",
        "postgres://u@[fe80::1]:5433/events",
        "postgres://u@fe80%3A%3A1%25eth0/events",
        "postgres://u@%2Ftmp%2Fa b:5433/events",
        "postgres://db/events?options=-c%20search_path%3Dx%2Cpublic",
        "postgres://db/events?options=-c+search_path%3Dx%2Cpublic%20-c%20work_mem%3D1MB",
        "postgres://db/events?sslmode=verify-full&sslrootcert=/etc/my%20certs/a%2Bb%26c.pem",
        "postgres://:5433/events",
        "postgres://:p%40ss@db/events",
        "postgres://:p@db/events?user=somebody",
    ],
)
def test_every_form_of_a_connection_is_to_libpq_what_the_official_hook_makes_of_it(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of = Connection.from_uri(uri, conn_id="c")
    assert conninfo_to_dict(url_of(of)) == official(of, monkeypatch)


def there(url: str, **changes: Any) -> Connection:
    """A connection to the database at a URL."""
    parts = conninfo_to_dict(url)
    of = {"host": parts["host"], "login": parts["user"], "password": parts.get("password"), "schema": parts["dbname"]}
    return connection(**(of | {"port": int(str(parts["port"]))} | changes))


def test_options_with_spaces_reach_the_session(database_url: str) -> None:
    extra = json.dumps({"options": "-c search_path=x,public -c work_mem=2MB"})
    with psycopg.connect(url_of(there(database_url, extra=extra))) as session:
        assert session.execute("SELECT current_setting('search_path'), current_setting('work_mem')").fetchone() == ("x,public", "2MB")


def test_a_port_counts_for_each_of_several_hosts(database_url: str) -> None:
    host = str(conninfo_to_dict(database_url)["host"])
    with psycopg.connect(url_of(there(database_url, host=f"{host},{host}"))) as session:
        assert str(session.info.port) == str(conninfo_to_dict(database_url)["port"])


def test_what_only_airflow_knows_is_left_out() -> None:
    extra = {
        "cursor": "dictcursor",
        "autocommit": True,
        "prepare_threshold": 0,
        "connect_timeout": 3,
        "keepalives": False,
        "redshift-serverless": False,
        "sslcert": None,
    }
    assert url_of(connection(host="db", schema="e", extra=json.dumps(extra))) == "postgresql://db/e?connect_timeout=3&keepalives=0"
    assert set(getattr(PostgresHook, "ignored_extra_options", ())) <= NOT_LIBPQ


def test_what_libpq_cannot_take_is_named() -> None:
    with pytest.raises(ConfigurationError, match="connection 'c': extra 'options': expected a text or a number"):
        url_of(connection(host="db", extra='{"options": {"search_path": "x"}}'))


def test_what_libpq_does_not_know_is_named() -> None:
    with pytest.raises(ConfigurationError, match="connection 'c': extra 'ssl_mode': no parameter of libpq's; did you mean 'sslmode'"):
        url_of(connection(host="db", extra='{"ssl_mode": "require"}'))


def test_iam_takes_user_token_and_port_as_the_official_hook_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    token = "db.x:5432/?Action=connect&DBUser=someone&X-Amz-Signature=a/b%20c="
    get = create_autospec(PostgresHook.get_iam_token, return_value=("someone", token, 5439))
    monkeypatch.setattr(PostgresHook, "get_iam_token", get)
    url = url_of(connection(host="db.x", login="someone", schema="e", extra='{"iam": true, "aws_conn_id": "mine"}'))
    assert url == f"postgresql://someone:{quote(token, safe='')}@db.x:5439/e"
    assert conninfo_to_dict(url)["password"] == token


def test_iam_without_what_it_needs_says_what_to_install() -> None:
    with pytest.raises(ConfigurationError, match=r"connection 'c': its extra asks for iam.*amazon"):
        url_of(connection(host="db", extra='{"iam": true}'))


def test_another_type_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected the type postgres, got 'mysql'"):
        url_of(connection(conn_type="mysql"))


def test_a_missing_connection_is_an_error_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert database_environment("nowhere", required=False) == {}
    with pytest.raises(ConfigurationError, match="no Airflow connection 'nowhere'"):
        database_environment("nowhere", required=True)
    monkeypatch.setenv("AIRFLOW_CONN_THERE", "postgresql://u:p@db/e")
    assert database_environment("there", required=True) == {"DATABASE_URL": "postgresql://u:p@db/e"}


@pytest.mark.parametrize(
    ("parts", "namespace"),
    [
        ({"host": "db", "port": 5433}, "postgres://db:5433"),
        ({"host": "h1,h2", "port": 5433}, "postgres://h1:5433"),
        ({"host": "::1"}, "postgres://[::1]:5432"),
        ({}, "postgres://localhost:5432"),
    ],
)
def test_lineage_names_the_first_host(parts: dict[str, Any], namespace: str) -> None:
    address = database_from_url(url_of(connection(schema="e", **parts)), "X").address
    [table] = result_lineage(AgentResult("p", "publish", "k", dataset=Dataset("postgres", "s.t", address))).outputs
    assert (table.namespace, table.name) == (namespace, "e.s.t")


def test_an_address_names_every_host() -> None:
    assert database_from_url(url_of(connection(host="h1,h2", port=7, schema="e")), "X").address == "h1:7,h2:7/e"
