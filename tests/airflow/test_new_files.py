"""A DAG file put beside the others is a DAG within seconds, as under ``make ui``; a pool that nobody made is warned of."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

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


def test_a_new_file_is_there_soon_and_its_missing_pool_is_named(airflow_running: RunningAirflow) -> None:
    folder = Path(airflow_running.components.environment["AIRFLOW__CORE__DAGS_FOLDER"])
    assert not airflow_running.knows("put_there_later")
    began = time.monotonic()
    (folder / "put_there_later.py").write_text(TEXT)
    try:
        wait_for(lambda: airflow_running.knows("put_there_later"), "the new DAG", 60)
        assert time.monotonic() - began < 30, "10 s on an idle machine"
        wait_for(lambda: "nobody_made_it" in str(airflow_running.call("GET", "/dagWarnings")), "Airflow's warning of the pool", 60)
    finally:
        (folder / "put_there_later.py").unlink()
