"""A DAG file put beside the others is a DAG within seconds, as under ``make ui``; ``factory doctor`` names a pool that nobody made."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from airflow_env import PYTHON_BIN

from tests.support.airflow_components import RunningAirflow
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TEXT = """
from airflow.sdk import dag, task

@dag(schedule=None)
def put_there_later():
    @task(pool="nobody_made_it")
    def work(): ...

    work()

put_there_later()
"""


def pool_of(airflow_running: RunningAirflow) -> dict[str, str]:
    """What ``factory doctor`` says of pools."""
    command = [PYTHON_BIN / "factory", "doctor", "--json"]
    done = subprocess.run(command, env=airflow_running.components.environment, capture_output=True, check=False)
    (pool,) = [finding for finding in json.loads(done.stdout) if finding["part"] == "pool"]
    return dict(pool)


def test_a_new_file_is_there_soon_and_its_missing_pool_is_named(airflow_running: RunningAirflow) -> None:
    folder = Path(airflow_running.components.environment["AIRFLOW__CORE__DAGS_FOLDER"])
    assert not airflow_running.knows("put_there_later")
    (folder / "put_there_later.py").write_text(TEXT)
    try:
        wait_for(lambda: airflow_running.knows("put_there_later"), "the new DAG", 120)  # else it takes Airflow five minutes
        assert "DAG put_there_later names the pool 'nobody_made_it', which doesn't exist" in pool_of(airflow_running)["text"]

        airflow_running.unpause("put_there_later")
        run = airflow_running.trigger("put_there_later")
        wait_for(lambda: airflow_running.task("put_there_later", run, "work")["state"] == "scheduled", "the task to wait for its pool", 120)
        (begun,) = airflow_running.runs("put_there_later")
        assert begun["note"].startswith("Tasks of this run name a pool that doesn't exist ('nobody_made_it')")
        assert "airflow pools set nobody_made_it 8" in begun["note"]
        pool = pool_of(airflow_running)
        assert (pool["state"], pool["todo"]) == ("fail", "airflow pools set nobody_made_it 8 'agents at a time'")
        assert "tasks of put_there_later wait for the pool 'nobody_made_it'" in pool["text"]
    finally:
        airflow_running.pause("put_there_later")
        (folder / "put_there_later.py").unlink()
