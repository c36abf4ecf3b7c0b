"""An Airflow of the tests' own: home and metadata database in a scratch folder, migrated once and copied for every worker."""

from __future__ import annotations

import fcntl
import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from factory_agents.sandbox import private
from tests.support import warm
from tests.support.shared_sandbox import HOME

AIRFLOW_HOME = Path(os.environ["AIRFLOW_HOME"])
DAGS = AIRFLOW_HOME / "dags"
DATABASE = AIRFLOW_HOME / "airflow.db"
HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
"""The end of the last whole hour: ``dag.test`` of 05:00 runs the interval from 04:00 to 05:00."""

# Airflow reads these once, when it is imported first.
os.environ.update(
    {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{DATABASE}",
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "120",  # the operators' first import on a busy machine
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__FACTORY__RETRY_DELAY": "0",
        "AIRFLOW__FACTORY__STOP_GRACE": "10",
    }
)


def bytes_of(database: Path) -> bytes:
    """A SQLite file as it lies there, read by another process: a file closed in this one drops the locks that SQLite has on it here."""
    return subprocess.run(["cat", database], capture_output=True, check=True).stdout


def migrated_database() -> Path:
    """A metadata database of the installed Airflow, made once and kept for later sessions."""
    template = HOME.parent / "cache" / f"airflow-{version('apache-airflow')}.db"
    private.folder(template.parent)
    with (template.parent / "airflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not template.exists():
            home = template.parent / f"home-{os.getpid()}"
            environment = {**os.environ, "AIRFLOW_HOME": str(home), "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db"}
            home.mkdir()
            subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], env=environment, check=True, capture_output=True)
            shutil.move(home / "airflow.db", template)
            shutil.rmtree(home)
    return template


@pytest.fixture(scope="session")
def airflow_home() -> Path:
    """This worker's Airflow home, with its metadata database ready and its DAG folder empty."""
    return _home()


@pytest.fixture(scope="module", autouse=True)
def warm_agents() -> Iterator[None]:
    """The operators' agents begin where their imports end (a whole Airflow's tests start them as they are)."""
    with warm.agents():
        yield


@functools.cache
def _home() -> Path:
    """Made once: a fixture that several conftests import is several fixtures, and a database that is in use may not be written over."""
    private.folder(AIRFLOW_HOME)
    shutil.rmtree(DAGS, ignore_errors=True)
    DAGS.mkdir()
    shutil.copyfile(migrated_database(), DATABASE)
    _one_api_server()
    return AIRFLOW_HOME


def _one_api_server() -> None:
    """Airflow 3.2.0 builds the API that ``dag.test`` asks again for each task, some seconds each time; later versions keep it."""
    from airflow.sdk.execution_time import supervisor

    if not hasattr(supervisor.in_process_api_server, "cache_info"):
        supervisor.in_process_api_server = functools.cache(supervisor.in_process_api_server)


@dataclass(frozen=True)
class DagOutcome:
    """How a run of ``dag.test`` ended: the run's state, each task's states in order of map index, and what they pushed."""

    run: Any
    state: str
    states: dict[str, list[str]]
    results: dict[str, Any] = field(default_factory=dict)
    tries: dict[str, list[int]] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)


class DagRunner:
    """Puts DAG files into the DAG folder and runs them with ``dag.test``."""

    def __init__(self, name: str) -> None:
        self.dag_id = re.sub(r"[^\w.-]", "-", name)
        self.path = DAGS / f"{self.dag_id}.py"

    def load(self, source: str) -> Any:
        """The DAG that a file's text makes; ``DAG_ID`` in it stands for an id of the test's own."""
        from airflow.dag_processing.dagbag import DagBag

        self.path.write_text(source.replace("DAG_ID", self.dag_id), encoding="utf-8")
        bag = DagBag(self.path)
        assert not bag.import_errors, next(iter(bag.import_errors.values()))
        return bag.dags[self.dag_id]

    def run(self, source: str, logical_date: datetime | None = HOUR, conf: dict[str, Any] | None = None, **options: Any) -> DagOutcome:
        """One run to its end; its state is for the test to assert."""
        dag = self.load(source)
        run = dag.test(logical_date=logical_date, run_conf=conf, **options)
        return self.outcome(run)

    def outcome(self, run: Any) -> DagOutcome:
        """What is in the metadata database about a run."""
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session

        with create_session() as session:
            states: dict[str, list[str]] = {}
            tries: dict[str, list[int]] = {}
            labels: dict[str, list[str]] = {}
            for ti in sorted(run.get_task_instances(session=session), key=lambda ti: ti.map_index):
                states.setdefault(ti.task_id, []).append(str(ti.state))
                tries.setdefault(ti.task_id, []).append(ti.try_number)
                labels.setdefault(ti.task_id, []).append(ti.rendered_map_index or "")
            rows = session.query(XComModel).filter_by(dag_id=run.dag_id, run_id=run.run_id).order_by(XComModel.map_index).all()
            pushed: dict[str, Any] = {}
            for row in rows:
                key = row.task_id if row.key == "return_value" else f"{row.task_id}.{row.key}"
                value = XComModel.deserialize_value(row)
                pushed[key] = value if row.map_index < 0 else [*pushed.get(key, []), value]
        return DagOutcome(run, str(run.state), states, pushed, tries, labels)


@pytest.fixture
def dag_runner(airflow_home: Path, prefix: str) -> Iterator[DagRunner]:
    """Runs DAGs under an id that nobody else uses."""
    runner = DagRunner(prefix)
    yield runner
    runner.path.unlink(missing_ok=True)
