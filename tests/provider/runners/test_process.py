"""A task's agent as a process: what it is given, and that a stop at any moment ends it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from airflow_provider_factory.runners.base import Access
from airflow_provider_factory.runners.process import ProcessRunner
from factory_agents.errors import AgentCrashedError, ConfigurationError
from factory_agents.protocol import AgentRef, AgentRun
from tests.support.samples import context, window

RUN = AgentRun("clicks", "enrich", AgentRef("enrich"), window=window())


@pytest.fixture
def access(monkeypatch: pytest.MonkeyPatch) -> Access:
    """A connection to a broker that is nowhere."""
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", '{"conn_type": "kafka", "extra": {"bootstrap.servers": "127.0.0.1:1"}}')
    return Access("kafka_default")


def test_the_environment_is_the_workers_without_airflows_own_and_finds_the_bundle(
    access: Access, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "secret")
    monkeypatch.setenv("FACTORY_FILES", "/elsewhere")
    monkeypatch.delenv("FACTORY_INCLUDE", raising=False)
    (tmp_path / "include").mkdir()
    environment = ProcessRunner(RUN, access, {"MODE": "x"})._environment(tmp_path)
    assert not [name for name in environment if name.startswith(("AIRFLOW__", "AIRFLOW_CONN_"))]
    assert environment["MODE"] == "x"
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path)
    assert environment["FACTORY_INCLUDE"] == str(tmp_path / "include")
    assert environment["FACTORY_FILES"] == f"{tmp_path}{os.pathsep}/elsewhere"


def test_what_is_stopped_before_it_runs_never_starts(access: Access) -> None:
    runner = ProcessRunner(RUN, access, {})
    runner.stop()
    with pytest.raises(AgentCrashedError, match="stopped before it started"):
        runner.run(context())  # type: ignore[arg-type]


def test_a_database_that_is_named_has_to_exist_and_a_default_one_need_not(access: Access) -> None:
    assert "DATABASE_URL" not in Access("kafka_default", default_database="nowhere").environment()
    with pytest.raises(ConfigurationError, match="nowhere"):
        Access("kafka_default", database="nowhere").environment()
