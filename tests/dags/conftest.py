"""Airflow for the tests below this folder."""

from __future__ import annotations

from tests.provider.conftest import runs
from tests.support.airflow_env import airflow_home, dag_runner, warm_agents
from tests.support.repository import repository, repository_topics

__all__ = ["airflow_home", "dag_runner", "repository", "repository_topics", "runs", "warm_agents"]
