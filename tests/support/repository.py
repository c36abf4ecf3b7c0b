"""This repository's own DAGs in an Airflow over a sandbox, run by the command."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from factory_agents.sandbox import Sandbox
from tests.support.airflow_env import migrated_database

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = "software_factory_pipeline"
HOUR = "2018-06-05T09:00"
"""The run of 08:00 to 09:00 of the sample."""


@dataclass(frozen=True)
class Repository:
    """This repository's DAGs in an Airflow over a sandbox of the test's own."""

    sandbox: Sandbox
    environment: dict[str, str]
    metadata: Path

    def dags_test(self, conf: dict[str, Any] | None = None, hour: str = HOUR, dag: str = PIPELINE) -> tuple[int, str]:
        """The literal command; its exit status and everything it printed. No secret is in that, nor in Airflow's metadata (XCom: results,
        links, what lineage is made of; rendered fields).
        """
        command = [sys.executable, "-m", "airflow", "dags", "test", dag, hour, *(["--conf", json.dumps(conf)] if conf else [])]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240, check=False
        )
        password = str(urlsplit(self.sandbox.info().database_url).password)
        assert password not in done.stdout
        assert password.encode() not in self.metadata.read_bytes()
        return done.returncode, done.stdout

    def rows(self, table: str, columns: str = "t.*") -> list[tuple[Any, ...]]:
        """A table's rows by key, and none where there is no table."""
        with psycopg.connect(self.sandbox.info().database_url) as connection:
            if connection.execute("SELECT to_regclass(%s)", [table]).fetchone() == (None,):
                return []
            query = f"SELECT {columns} FROM {table} t ORDER BY event_id"  # the test's own names
            return connection.execute(query).fetchall()


@pytest.fixture
def repository(own_sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from airflow_env import airflow_environment, apply_topics

    database = tmp_path / "airflow.db"
    database.write_bytes(migrated_database().read_bytes())
    with closing(sqlite3.connect(database, isolation_level=None)) as metadata:
        metadata.execute("INSERT INTO slot_pool (pool, slots, description, include_deferred) VALUES ('software_factory', 8, '', 0)")
    environment = airflow_environment(own_sandbox) | {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{database}",
        "AIRFLOW__FACTORY__RETRY_DELAY": "0",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
    }
    apply_topics(environment)
    return Repository(own_sandbox, environment, database)
