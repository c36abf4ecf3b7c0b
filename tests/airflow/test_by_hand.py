"""What people do with a run: mark, clear, trigger, leave it failed. Each event lands once, or the run says what is missing."""

from __future__ import annotations

import pytest
from confluent_kafka.admin import AdminClient

from tests.airflow.pipelines import Pipeline
from tests.support.airflow_components import RunningAirflow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

DAG_ID = "by_hand"


def test_marking_clearing_and_leaving_runs_failed_loses_and_doubles_nothing(
    airflow_running: RunningAirflow, admin: AdminClient, bootstrap: str
) -> None:
    airflow = airflow_running
    pipeline = Pipeline(airflow, admin, bootstrap, DAG_ID, seed=4, hours=3)

    # Triggered by hand for an hour each, while the DAG is paused; in the second a stage is marked as done that isn't.
    runs = [airflow.trigger(DAG_ID, logical_date=f"2025-01-06T0{hour + 1}:00:00Z") for hour in range(3)]
    airflow.mark(DAG_ID, runs[1], "validate", "success")
    airflow.unpause(DAG_ID)
    assert airflow.wait_run(DAG_ID, runs[0]) == "success"
    assert airflow.wait_run(DAG_ID, runs[1], "failed") == "failed"
    assert airflow.wait_run(DAG_ID, runs[2]) == "success"
    log = airflow.log(DAG_ID, runs[1], "publish", airflow.task(DAG_ID, runs[1], "publish")["try_number"])
    assert "expected the results of the stage before, got none; was it skipped, or marked as a success by hand?" in log
    landed = set(pipeline.table())
    assert landed
    assert landed != pipeline.expected  # the second hour's are not there, and nobody claims they were

    # A good task marked as failed keeps what it did; cleared, it does it again.
    airflow.mark(DAG_ID, runs[0], "publish", "failed")
    assert airflow.task(DAG_ID, runs[0], "publish")["state"] == "failed"
    assert set(pipeline.table()) == landed
    airflow.clear_tasks(DAG_ID, runs[0], "publish")
    airflow.wait_run(DAG_ID, runs[0])
    assert set(pipeline.table()) == landed

    # The hour that was left out comes when somebody clears it.
    airflow.clear_tasks(DAG_ID, runs[1], "validate")
    airflow.wait_run(DAG_ID, runs[1])
    pipeline.check()
