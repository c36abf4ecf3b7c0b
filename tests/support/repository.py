"""This repository's own DAGs over the shared sandbox: by the command as users type it, or within the test's process."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from airflow_env import airflow_environment, apply_topics

from factory_agents.sandbox import Sandbox
from tests.support import airflow_env
from tests.support.databases import own_database

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = "software_factory_pipeline"
HOUR = "2018-06-05T09:00"
"""The run of 08:00 to 09:00 of the sample."""

_READ_ONCE = ("AIRFLOW_HOME", "AIRFLOW__CORE__", "AIRFLOW__DATABASE__", "AIRFLOW__LOGGING__", "AIRFLOW__TRACES__", "PYTEST_")
_POOL = "INSERT INTO slot_pool (pool, slots, description, include_deferred) VALUES ('software_factory', 8, '', 0) ON CONFLICT DO NOTHING"


@dataclass(frozen=True)
class Repository:
    """This repository's DAGs with a ledger, a database and metadata of the test's own; events lie in the topics that they name."""

    environment: dict[str, str]
    database_url: str
    prefix: str
    metadata: Path
    output: pytest.CaptureFixture[str]

    def dags_test(self, conf: dict[str, Any] | None = None, hour: str = HOUR, dag: str = PIPELINE) -> tuple[int, str]:
        """The literal command; its exit status and everything it printed. No secret is in that, nor in Airflow's metadata (XCom: results,
        links, what lineage is made of; rendered fields).
        """
        command = [sys.executable, "-m", "airflow", "dags", "test", dag, hour, *(["--conf", json.dumps(conf)] if conf else [])]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False
        )
        self._holds_no_password(done.stdout, self.metadata)
        return done.returncode, done.stdout

    def run(self, conf: dict[str, Any] | None = None, hour: str = HOUR, dag: str = PIPELINE) -> tuple[str, str]:
        """What the command does, without its start: the run's state, and everything that was printed."""
        from airflow.dag_processing.dagbag import DagBag

        self.output.readouterr()
        file = shutil.copy(ROOT / "dags" / f"{dag.removesuffix('_pipeline')}.py", airflow_env.DAGS)
        try:
            with pytest.MonkeyPatch.context() as patch:
                for name, value in self.environment.items():
                    if not name.startswith(_READ_ONCE):
                        patch.setenv(name, value)
                patch.setenv("AIRFLOW__FACTORY__DEADLINES", "False")  # as in the command: see late_after
                bag = DagBag(file)
                assert not bag.import_errors, bag.import_errors
                run = bag.dags[dag].test(logical_date=datetime.fromisoformat(f"{hour}+00:00"), run_conf=conf)
        finally:
            Path(file).unlink()
        printed = "".join(self.output.readouterr())
        self._holds_no_password(printed, airflow_env.DATABASE)
        return str(run.state), printed

    def _holds_no_password(self, printed: str, metadata: Path) -> None:
        password = str(urlsplit(self.database_url).password)
        assert password not in printed
        assert password.encode() not in airflow_env.bytes_of(metadata)

    def rows(self, table: str, columns: str = "t.*") -> list[tuple[Any, ...]]:
        """A table's rows by key, and none where there is no table."""
        with psycopg.connect(self.database_url) as connection:
            if connection.execute("SELECT to_regclass(%s)", [table]).fetchone() == (None,):
                return []
            query = f"SELECT {columns} FROM {table} t ORDER BY event_id"  # the test's own names
            return connection.execute(query).fetchall()


@pytest.fixture(scope="session")
def repository_topics(sandbox: Sandbox) -> None:
    """The topics of ``include/topics.yaml``: all tests write there, and find their own by their ledgers."""
    apply_topics(airflow_environment(sandbox))


@pytest.fixture
def repository(
    sandbox: Sandbox, repository_topics: None, airflow_home: Path, prefix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Iterator[Repository]:
    metadata = tmp_path / "airflow.db"
    shutil.copyfile(airflow_env.migrated_database(), metadata)
    for database in (metadata, airflow_env.DATABASE):
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            connection.execute(_POOL)
    with own_database(sandbox.info().database_url, "repository") as url:
        environment = airflow_environment(sandbox) | {
            "AIRFLOW_HOME": str(tmp_path / "airflow"),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{metadata}",
            "AIRFLOW__FACTORY__PREFIX": prefix,
            "AIRFLOW__FACTORY__RETRY_DELAY": "0",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
            "AIRFLOW_CONN_POSTGRES_DEFAULT": url,
            "DATABASE_URL": url,
        }
        yield Repository(environment, url, prefix, metadata, capfd)
