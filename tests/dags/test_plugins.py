"""Sources and sinks from elsewhere in a DAG: in the process that runs the agent."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.conftest import TopicFactory
from tests.dags.test_clicks import connections
from tests.dags.test_shapes import text
from tests.support.airflow_env import DagRunner
from tests.support.plugin_wheel import install_plugins
from tests.support.sqlite_sink import CONTRACT

__all__ = ["connections"]

pytestmark = [pytest.mark.airflow, pytest.mark.slow]


def test_an_installed_source_and_sink(dag_runner: DagRunner, topic: TopicFactory, tmp_path: Path) -> None:
    body = """
installed = {"PYTHONPATH": "<site>"}
numbers = KafkaAgentOperator(
    task_id="ingest", agent="ingest", output_topic="<raw>", agent_params={"source": "acme-numbers", "upto": 20}, env_vars=installed
)
KafkaAgentOperator(
    task_id="publish", agent="publish", window=numbers.output, contract=<contract>,
    agent_params={"sink": "acme-lines", "path": "<database>"}, env_vars=installed,
)
"""
    database = tmp_path / "db"
    names = {"site": str(install_plugins(tmp_path)), "raw": topic("raw", partitions=2), "database": str(database)}
    ran = dag_runner.run(text(body, **names, contract=repr(CONTRACT)))
    assert ran.state == "success", ran.states
    assert ran.results["publish"]["counts"]["written"] == 20
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (20,)
