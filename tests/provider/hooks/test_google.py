"""The official Google connection becomes what BigQuery's client needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_provider_factory.hooks import google
from airflow_provider_factory.hooks.database import database_environment
from airflow_provider_factory.hooks.google import google_environment
from factory_agents.errors import ConfigurationError
from factory_agents.sinks.bigquery import account_from_env

KEY = {"type": "service_account", "private_key": "s3cret", "client_email": "a@x"}


def environment(**extra: Any) -> dict[str, str]:
    return google_environment(Connection(conn_id="c", conn_type="google_cloud_platform", extra=json.dumps(extra)))


@pytest.mark.parametrize("value", [KEY, json.dumps(KEY)])
@pytest.mark.parametrize("name", ["keyfile_dict", "extra__google_cloud_platform__keyfile_dict", "credential_config_file"])
def test_a_key_travels_as_json(name: str, value: Any) -> None:
    found = environment(**{name: value, "project": "mine"})
    account = account_from_env(found)
    assert (account.project, account.credentials) == ("mine", KEY)


@pytest.mark.parametrize("name", ["key_path", "credential_config_file"])
def test_a_keys_file_is_read_on_the_worker(name: str, tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    file.write_text(json.dumps(KEY))
    assert json.loads(environment(**{name: str(file)})["BIGQUERY_CREDENTIALS"]) == KEY
    with pytest.raises(ConfigurationError, match=f"extra '{name}': the file cannot be read on the worker: No such file"):
        environment(**{name: str(tmp_path / "missing.json")})


def test_without_a_key_the_machines_own_credentials_are_meant_whatever_the_worker_has() -> None:
    assert environment(is_anonymous=True) == {"GOOGLE_CLOUD_PROJECT": "", "BIGQUERY_CREDENTIALS": "", "BIGQUERY_IMPERSONATE": ""}


@pytest.mark.parametrize("chain", ["a@x,b@x", ["a@x", "b@x"]])
def test_a_chain_of_accounts_travels(chain: Any) -> None:
    assert account_from_env(environment(impersonation_chain=chain)).impersonate == ("a@x", "b@x")


def test_keys_are_masked_in_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    masked: list[str] = []
    monkeypatch.setattr(google, "mask_secret", masked.append)
    environment(keyfile_dict=KEY)
    assert masked == ["s3cret"]


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"keyfile_dict": KEY, "key_path": "/k"}, "extras keyfile_dict and key_path: expected one of them"),
        ({"key_secret_name": "n"}, "extra 'key_secret_name' is not taken here; give keyfile_dict, key_path or credential_config_file"),
        ({"keyfile_dict": '{"private_key": "s3cret"'}, "extra 'keyfile_dict': expected JSON of a service account"),
    ],
)
def test_what_cannot_be_taken_is_one_line_without_secrets(extra: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        environment(**extra)
    assert says in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_a_database_connection_may_be_a_google_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps({"conn_type": "google_cloud_platform", "extra": {"project": "mine"}}))
    assert database_environment("warehouse", required=True)["GOOGLE_CLOUD_PROJECT"] == "mine"
