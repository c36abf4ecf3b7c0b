"""A registry's settings, what it is asked and how often, its cache on disk, and whose fault it is that it doesn't answer."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from factory_agents.codecs.registry import Registry, RegistryConfig, StoredSchema, UnknownSchemaError, registry_of
from factory_agents.errors import ConfigurationError, UnavailableError
from tests.support.registries import answering

LATEST = {"subject": "t-value", "version": 1, "id": 1, "schema": '"int"'}
ANSWERS: dict[str, Any] = {
    "/schemas/ids/1": {"schema": '"int"'},
    "/subjects/t-value/versions/latest": LATEST,
    "/subjects/t-value/versions/1": LATEST,
}


def registry(url: str, cache: str | Path = "", **values: Any) -> Registry:
    return Registry(RegistryConfig(url, {"max.retries": 0, "timeout": 5, **values}, str(cache)))


def test_settings_come_from_the_environment_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "registry.properties"
    file.write_text("# ours\nurl = https://file\nbasic.auth.user.info=me:s3cret\ntimeout=3\n")
    environment = {"SCHEMA_REGISTRY_CONFIG_FILE": str(file)}
    assert RegistryConfig.from_env(environment) == RegistryConfig("https://file", {"basic.auth.user.info": "me:s3cret", "timeout": 3.0})
    environment |= {"SCHEMA_REGISTRY_URL": "https://env", "SCHEMA_REGISTRY_CONFIG": '{"timeout": 4}', "FACTORY_SCHEMA_CACHE": "/c"}
    config = RegistryConfig.from_env(environment)
    assert (config.url, config.values["timeout"], config.cache) == ("https://env", 4.0, "/c")


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, "no schema registry is named; set SCHEMA_REGISTRY_URL"),
        ({"SCHEMA_REGISTRY_CONFIG": '{"basic.auth.user.info": "me:s3cret"'}, "SCHEMA_REGISTRY_CONFIG: expected a JSON object"),
        ({"SCHEMA_REGISTRY_CONFIG": '["s3cret"]'}, "SCHEMA_REGISTRY_CONFIG: expected a JSON object"),
        ({"SCHEMA_REGISTRY_CONFIG": '{"timeout": "soon"}'}, "SCHEMA_REGISTRY_CONFIG: timeout: expected a number, got 'soon'"),
        ({"SCHEMA_REGISTRY_CONFIG_FILE": "/nowhere"}, "SCHEMA_REGISTRY_CONFIG_FILE: cannot read /nowhere: No such file"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line_without_secrets(environment: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as raised:
        RegistryConfig.from_env(environment)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"basic.auth.user": "x"}, "Unrecognized properties: basic.auth.user"),
        ({"ssl.ca.location": "/nowhere"}, "a certificate or key: No such file or directory"),
        ({"ssl.key.location": "/k"}, "ssl.certificate.location required"),
    ],
)
def test_what_the_client_does_not_take_is_one_line(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=f"schema registry https://host: {says}"):
        RegistryConfig("https://me:s3cret@host", values).client()


def test_the_user_and_password_are_sent_and_never_shown() -> None:
    with answering(ANSWERS) as (url, asked):
        registry(url, **{"basic.auth.user.info": "me:s3cret"}).by_id(1)
        assert asked[0][1].startswith("Basic ")
    away = registry(url.replace("//", "//me:s3cret@"))
    with pytest.raises(UnavailableError) as raised:
        away.by_id(1)
    shown = f"{raised.value} {away.config!r} {RegistryConfig(url, {'basic.auth.user.info': 'me:s3cret', 'bearer.auth.token': 's3cret'})!r}"
    assert url in shown
    assert "s3cret" not in shown


def test_a_schema_is_asked_for_once_and_so_is_one_that_is_not_known() -> None:
    with answering(ANSWERS) as (url, asked):
        known = registry(url)
        assert known.by_id(1) == known.by_id(1) == StoredSchema("AVRO", '"int"', id=1)
        assert known.by_version("t-value", 1).id == known.latest("t-value").id == 1
        known.latest("t-value")
        for _ in range(3):
            with pytest.raises(UnknownSchemaError, match=f"the registry {url} has no schema id 7"):
                known.by_id(7)
        assert len(asked) == 4


@pytest.mark.parametrize(
    ("status", "answer", "error", "says"),
    [
        (404, {"error_code": 40403, "message": "no"}, UnknownSchemaError, "has no schema id 1"),
        (404, b"<html>not here</html>", ConfigurationError, "is SCHEMA_REGISTRY_URL the registry's address?"),
        (404, {"error_code": 404, "message": "HTTP 404 Not Found"}, ConfigurationError, "is SCHEMA_REGISTRY_URL the registry's address?"),
        (401, {"error_code": 40101, "message": "no"}, ConfigurationError, "set its user in SCHEMA_REGISTRY_CONFIG"),
        (403, {"error_code": 40301, "message": "no"}, ConfigurationError, "set its user in SCHEMA_REGISTRY_CONFIG"),
        (429, {"error_code": 42901, "message": "slow down"}, UnavailableError, "cannot tell schema id 1 now"),
        (500, {"error_code": 50001, "message": "store"}, UnavailableError, "cannot tell schema id 1 now"),
        (502, b"<html>bad gateway</html>", UnavailableError, "cannot tell schema id 1 now"),
        (200, b"<html>log in first</html>", UnavailableError, "cannot be asked for schema id 1"),
    ],
)
def test_an_outage_is_told_from_a_schema_that_is_not_there(status: int, answer: Any, error: type[Exception], says: str) -> None:
    with answering({"/schemas/ids/1": (status, answer)}) as (url, _), pytest.raises(error) as raised:
        registry(url).by_id(1)
    assert says in str(raised.value)


def test_the_cache_on_disk_serves_while_the_registry_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with answering(ANSWERS) as (url, _):
        warm = registry(url, tmp_path)
        warm.by_id(1)
        warm.latest("t-value")
    again = registry(url, tmp_path)
    assert (again.by_id(1).text, again.by_version("t-value", 1).id) == ('"int"', 1)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert again.latest("t-value").version == 1
    assert "going by what the schema cache knows: version 1 of subject 't-value'" in caplog.text
    with pytest.raises(UnavailableError):
        again.by_id(2)
    with pytest.raises(UnavailableError):
        registry(url).by_id(1)
    with pytest.raises(UnavailableError):
        registry(url.replace("127.0.0.1", "localhost"), tmp_path).by_id(1)


def test_a_cache_that_is_damaged_or_cannot_be_written_is_as_good_as_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with answering(ANSWERS) as (url, asked):
        registry(url, tmp_path).by_id(1)
        (kept,) = tmp_path.rglob("*.json")
        kept.write_bytes(kept.read_bytes()[:10])
        assert registry(url, tmp_path).by_id(1).text == '"int"'
        assert json.loads(kept.read_bytes())["text"] == '"int"'
        (tmp_path / "file").touch()
        assert registry(url, tmp_path / "file").by_id(1).text == '"int"'
        assert "cannot be written" in caplog.text
        assert len(asked) == 3


def test_a_process_has_one_registry_of_the_same_settings() -> None:
    config = RegistryConfig("http://127.0.0.1:1", {"timeout": 1})
    assert registry_of(config) is registry_of(RegistryConfig("http://127.0.0.1:1", {"timeout": 1}))
    assert registry_of(config) is not registry_of(RegistryConfig("http://127.0.0.1:1"))
