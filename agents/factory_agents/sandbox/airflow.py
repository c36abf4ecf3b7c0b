"""What Airflow needs to run over a sandbox: its variables, and its metadata schema and pool, made once. Imports nothing of Airflow."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from factory_agents.errors import ConfigurationError, FactoryError
from factory_agents.sandbox import private
from factory_agents.sandbox.state import SandboxInfo

__all__ = ["POOL", "airflow_program", "airflow_variables", "prepare_airflow"]

POOL = ("software_factory", "8", "agents at a time")
"""The pool that the repository's DAGs name: its slots, and what they are."""

_METADATA = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
_OWN_LINES = "airflow.task.operators.airflow_provider_factory=INFO factory_agents.runners.process=INFO"


def airflow_variables(info: SandboxInfo, project: Path, *, trial: bool = False) -> dict[str, str]:
    """The variables that make Airflow use a sandbox and the DAGs of ``project``: agents are processes, metadata are in the sandbox.

    ``trial``: metadata in a file of their own, for ``airflow dags test``. On a scheduler's database its runs would take the place of the
    schedule's.
    """
    home = info.home / "airflow"
    key = hashlib.sha256(info.airflow_database_url.encode()).digest()
    return {
        **info.env(),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(project / "dags"),
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "120",  # the operators' first import on a slow or busy machine
        "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": "150",  # longer than that, or the file's process is killed amid it
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "8",
        "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(key).decode(),
        _METADATA: f"sqlite:///{home / 'trial.db'}" if trial else info.airflow_database_url,
        "AIRFLOW__LOGGING__FILE_TASK_HANDLER_NEW_FOLDER_PERMISSIONS": "0o700",
        "AIRFLOW__LOGGING__FILE_TASK_HANDLER_NEW_FILE_PERMISSIONS": "0o600",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": os.environ.get("AIRFLOW__LOGGING__LOGGING_LEVEL", "WARNING"),
        "AIRFLOW__LOGGING__NAMESPACE_LEVELS": os.environ.get("AIRFLOW__LOGGING__NAMESPACE_LEVELS", _OWN_LINES),
        "AIRFLOW__FACTORY__RUNNER": os.environ.get("AIRFLOW__FACTORY__RUNNER", "process"),
        "FACTORY_INCLUDE": str(project / "include"),
        "PYTHONWARNINGS": "ignore",
    }


def airflow_program() -> Path:
    """The ``airflow`` command beside this Python; raises ConfigurationError where there is none."""
    program = Path(sys.executable).parent / "airflow"
    if not program.exists():
        raise ConfigurationError(f"no Airflow is installed beside {sys.executable}: pip install airflow-provider-factory")
    return program


def prepare_airflow(variables: Mapping[str, str], tell: Callable[[str], None]) -> None:
    """Bring the metadata schema and the pool into being, once for each database and version of Airflow.

    Raises FactoryError where Airflow cannot.
    """
    program = airflow_program()
    try:
        installed = version("apache-airflow-core")
    except PackageNotFoundError:
        installed = version("apache-airflow")
    made = hashlib.sha256(f"{variables[_METADATA]} {installed}".encode()).hexdigest()[:12]
    marker = Path(variables["AIRFLOW_HOME"]) / f".migrated-{made}"
    if marker.exists():
        return
    private.tighten_all(private.folder(marker.parent))
    tell(f"preparing Airflow {installed}: its metadata and the pool {POOL[0]!r} (once)")
    for arguments in (("db", "migrate"), ("pools", "set", *POOL)):
        done = subprocess.run(
            [program, *arguments],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            umask=private.UMASK,
        )
        if done.returncode:
            last = (done.stdout.strip().splitlines() or ["it said nothing"])[-1]
            raise FactoryError(f"airflow {' '.join(arguments[:2])} failed: {last}")
    private.write(marker, f"Airflow {installed}: metadata schema and pool are there\n")
