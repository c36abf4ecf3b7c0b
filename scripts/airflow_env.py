"""The environment in which this repository's Airflow runs over a sandbox: home, DAGs, metadata, connections."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from factory_agents.sandbox import Sandbox

__all__ = ["PYTHON_BIN", "ROOT", "airflow", "airflow_environment", "apply_topics", "prepare"]

ROOT = Path(__file__).resolve().parent.parent
PYTHON_BIN = Path(sys.executable).parent


def airflow_environment(sandbox: Sandbox) -> dict[str, str]:
    """``os.environ`` and what Airflow needs: its metadata is in the sandbox's PostgreSQL, its agents are processes."""
    info = sandbox.info()
    key = hashlib.sha256(info.airflow_database_url.encode()).digest()
    return {
        **os.environ,
        **sandbox.env(),
        "PATH": f"{PYTHON_BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        "AIRFLOW_HOME": str(sandbox.home / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "120",  # the operators' first import on a slow or busy machine
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "8",
        "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(key).decode(),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": info.airflow_database_url,
        "AIRFLOW__LOGGING__LOGGING_LEVEL": os.environ.get("AIRFLOW__LOGGING__LOGGING_LEVEL", "WARNING"),
        "AIRFLOW__FACTORY__RUNNER": os.environ.get("AIRFLOW__FACTORY__RUNNER", "process"),
        "FACTORY_INCLUDE": str(ROOT / "include"),
        "PYTHONWARNINGS": "ignore",
    }


def airflow(environment: dict[str, str], *arguments: str, quiet: bool = True) -> None:
    """Run an ``airflow`` command; raises CalledProcessError, after showing what it printed."""
    command = [str(PYTHON_BIN / "airflow"), *arguments]
    done = subprocess.run(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
        check=False,
    )
    if done.returncode != 0:
        if quiet:
            sys.stderr.buffer.write(done.stdout or b"")
        raise subprocess.CalledProcessError(done.returncode, command)


def apply_topics(environment: dict[str, str]) -> None:
    """Create the topics of ``include/topics.yaml`` that are missing."""
    command = [str(PYTHON_BIN / "factory"), "topics", "apply", "include/topics.yaml"]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def prepare(sandbox: Sandbox, environment: dict[str, str]) -> None:
    """Bring topics, metadata schema and pool into being, each only where it is not there yet."""
    apply_topics(environment)
    marker = sandbox.home / "airflow" / ".migrated"
    if not marker.exists():
        airflow(environment, "db", "migrate")
        airflow(environment, "pools", "set", "software_factory", "8", "agents at a time")
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text("the metadata schema and the pool are there\n")
