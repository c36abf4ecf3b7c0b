"""The official Snowflake connection becomes what Snowflake's client needs."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_provider_factory.hooks import snowflake
from airflow_provider_factory.hooks.database import database_environment
from airflow_provider_factory.hooks.snowflake import snowflake_environment
from factory_agents.errors import ConfigurationError
from factory_agents.sinks.snowflake import Account, account_from_env

KEY = "-----BEGIN PRIVATE KEY-----\ns3cret\n-----END PRIVATE KEY-----\n"


def account(password: str | None = "pa55word", **extra: Any) -> Account:
    connection = Connection(
        conn_id="c",
        conn_type="snowflake",
        login="loader",
        password=password,
        schema="public",
        extra=json.dumps({"account": "acme", **extra}),
    )
    return account_from_env(snowflake_environment(connection))


def test_a_password() -> None:
    found = account(database="analytics", warehouse="wh", extra__snowflake__role="writer", region="eu-central-1", authenticator="snowflake")
    assert found.place == {"account": "acme.eu-central-1", "user": "loader"}
    assert (found.database, found.schema, found.warehouse, found.role) == ("analytics", "public", "wh", "writer")
    assert found.secrets == {"password": "pa55word"}


@pytest.mark.parametrize("content", [KEY, base64.b64encode(KEY.encode()).decode()])
def test_a_key_travels_and_the_password_is_its_own(content: str, tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text(KEY)
    for extra in ({"private_key_content": content}, {"private_key_file": str(file)}):
        assert account(**extra).secrets == {"private_key": KEY, "private_key_password": "pa55word", "authenticator": "SNOWFLAKE_JWT"}


def test_tokens_and_an_oauth_client() -> None:
    assert account(password="t0ken", authenticator="oauth").secrets == {"token": "t0ken", "authenticator": "oauth"}
    found = account(authenticator="oauth", grant_type="client_credentials", token_endpoint="https://idp/token", scope="session:role:writer")
    assert found.secrets == {
        "oauth_client_id": "loader",
        "oauth_client_secret": "pa55word",
        "oauth_token_request_url": "https://idp/token",
        "oauth_scope": "session:role:writer",
        "authenticator": "OAUTH_CLIENT_CREDENTIALS",
    }


def test_what_the_worker_has_is_not_the_agents() -> None:
    found = snowflake_environment(Connection(conn_id="c", conn_type="snowflake", login="u", password="p", extra='{"account": "acme"}'))
    assert {name for name, value in found.items() if value} == {"SNOWFLAKE_ACCOUNT", "SNOWFLAKE_USER", "SNOWFLAKE_PASSWORD"}
    assert found["SNOWFLAKE_PRIVATE_KEY_FILE"] == found["SNOWFLAKE_TOKEN"] == ""


def test_secrets_are_masked_in_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    masked: list[str] = []
    monkeypatch.setattr(snowflake, "mask_secret", masked.append)
    account(private_key_content=KEY)
    assert masked == [KEY, "pa55word"]


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"private_key_content": KEY, "private_key_file": "/k"}, "extras private_key_file and private_key_content: expected one of them"),
        ({"private_key_file": "/nowhere/s3cret"}, "extra 'private_key_file': the file cannot be read on the worker: No such file"),
        ({"private_key_content": "s3cret!"}, "extra 'private_key_content': expected a key in PEM, or that in base64"),
        ({"refresh_token": "s3cret"}, "extra 'refresh_token' is not taken here; give a private key, or grant_type client_credentials"),
    ],
)
def test_what_cannot_be_taken_is_one_line_without_secrets(extra: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        account(**extra)
    assert says in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_a_database_connection_may_be_a_snowflake_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps({"conn_type": "snowflake", "login": "u", "extra": {"account": "acme"}}))
    assert database_environment("warehouse", required=True)["SNOWFLAKE_ACCOUNT"] == "acme"
