"""The hourly pipeline with every agent a pod: the same table as with processes."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
import yaml

from tests.kubernetes.conftest import Pods
from tests.support.airflow_env import DagRunner

ROOT = Path(__file__).resolve().parents[2]
NINE = datetime(2018, 6, 5, 9, tzinfo=UTC)  # the sample's hour from eight on
STAGES = ["ingest_events", "enrich_events", "validate_events", "publish_results"]
COLUMNS = ", ".join(yaml.safe_load((ROOT / "include" / "contracts" / "events.yaml").read_text())["schema"]["properties"])
TABLE = f"SELECT {COLUMNS} FROM events ORDER BY event_id"


def table_of(pods: Pods, runner: DagRunner, name: str) -> list[tuple[object, ...]]:
    """The table after one hour of the repository's own DAG under a name of the test's, in a database that held nothing."""
    other = DagRunner(f"{runner.dag_id}-{name}")
    try:
        outcome = other.run((ROOT / "dags" / "software_factory.py").read_text().replace('"software_factory_pipeline"', '"DAG_ID"'), NINE)
    finally:
        other.path.unlink()
    assert outcome.states == {stage: ["success"] for stage in STAGES}
    assert outcome.state == "success"
    rows = pods.rows(TABLE)
    with psycopg.connect(pods.database_url, autocommit=True) as connection:
        connection.execute("DROP TABLE events")
    return rows


@pytest.mark.timeout(600)
def test_the_hourly_pipeline_lands_the_same_rows_as_with_processes(
    pods: Pods, dag_runner: DagRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_pods = table_of(pods, dag_runner, "pods")
    assert as_pods
    monkeypatch.setenv("AIRFLOW__FACTORY__RUNNER", "process")
    assert table_of(pods, dag_runner, "processes") == as_pods
