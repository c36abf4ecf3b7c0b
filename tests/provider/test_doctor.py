"""Airflow's part of ``factory doctor``, over metadata of the installed Airflow."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest

from airflow_provider_factory.doctor import examine_airflow
from factory_agents.doctor import Finding

pytestmark = pytest.mark.airflow


def findings() -> dict[str, Finding]:
    return {finding.part: finding for finding in examine_airflow()}


def test_pool_connections_and_components_are_looked_at(
    airflow_home: Path, bootstrap: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.exceptions import PoolNotFound
    from airflow.models.pool import Pool

    with suppress(PoolNotFound):  # of a DAG that ran here before
        Pool.delete_pool("software_factory")
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps({"conn_type": "kafka", "extra": {"bootstrap.servers": bootstrap}}))
    monkeypatch.setenv("AIRFLOW_CONN_POSTGRES_DEFAULT", database_url)
    found = findings()
    assert (found["connection kafka_default"].state, found["connection kafka_default"].text) == ("ok", bootstrap)
    assert found["connection postgres_default"].state == "ok"
    assert "scheduler" in found, found
    assert found["scheduler"].state == "warn"
    assert "airflow pools set software_factory 8" in found["pool"].todo

    Pool.create_or_update_pool("software_factory", slots=8, description="", include_deferred=False)
    try:
        assert findings()["pool"] == Finding("pool", "ok", "'software_factory' has 8 slots")
    finally:
        Pool.delete_pool("software_factory")


def test_a_connection_that_is_missing_or_wrong_says_what_to_do(airflow_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_KAFKA_DEFAULT", raising=False)
    monkeypatch.setenv("AIRFLOW_CONN_POSTGRES_DEFAULT", "postgresql://u:hush-hush@127.0.0.1:1/d")
    found = findings()
    assert found["connection kafka_default"].state == "fail"
    assert "AIRFLOW_CONN_KAFKA_DEFAULT" in found["connection kafka_default"].todo
    assert found["connection postgres_default"].state == "fail"
    assert "hush" not in str(found)
