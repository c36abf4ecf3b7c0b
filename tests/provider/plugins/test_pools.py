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


def test_a_run_without_a_scheduler_says_what_one_would_wait_for(
    dag_runner: DagRunner, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from airflow.api.common.delete_dag import delete_dag

    def said_by_a_run(pool: str) -> str:
        caplog.clear()
        assert dag_runner.run(TEXT.replace("POOL", pool)).state == "success"
        printed = capfd.readouterr()
        return printed.out + printed.err + caplog.text  # logging may lead to either by now

    missing = said_by_a_run("nobody_made_it")
    delete_dag(dag_runner.dag_id)
    assert "airflow pools set nobody_made_it 8 'agents at a time'" in missing
    assert "name a pool that doesn't exist" not in said_by_a_run("default_pool")
