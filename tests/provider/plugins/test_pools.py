"""A pool that a DAG names and nobody made is told, with what to do about it."""

from __future__ import annotations

import pytest

from tests.support.airflow_env import DagRunner

pytestmark = pytest.mark.airflow

TEXT = """
from airflow.sdk import CronDataIntervalTimetable, dag, task
from datetime import datetime

@dag(dag_id="DAG_ID", schedule=CronDataIntervalTimetable("@hourly", timezone="UTC"), catchup=False, start_date=datetime(2026, 1, 1))
def pipeline():
    @task(pool="POOL")
    def work(): ...

    work()

pipeline()
"""


def test_a_run_without_a_scheduler_says_what_one_would_wait_for(dag_runner: DagRunner, capfd: pytest.CaptureFixture[str]) -> None:
    from airflow.api.common.delete_dag import delete_dag

    assert dag_runner.run(TEXT.replace("POOL", "nobody_made_it")).state == "success"
    said = capfd.readouterr()
    delete_dag(dag_runner.dag_id)
    assert "airflow pools set nobody_made_it 8 'agents at a time'" in said.out + said.err

    assert dag_runner.run(TEXT.replace("POOL", "default_pool")).state == "success"
    said = capfd.readouterr()
    assert "name a pool that doesn't exist" not in said.out + said.err
