"""The environment in which this repository's Airflow runs over a sandbox, and what has to be there before."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from factory_agents.errors import FactoryError
from factory_agents.sandbox import Sandbox
from factory_agents.sandbox.airflow import airflow_variables, prepare_airflow

__all__ = ["PYTHON_BIN", "ROOT", "airflow", "airflow_environment", "apply_topics", "prepare", "run"]

ROOT = Path(__file__).resolve().parent.parent
PYTHON_BIN = Path(sys.executable).parent


def airflow_environment(sandbox: Sandbox, *, trial: bool = False) -> dict[str, str]:
    """``os.environ`` and what Airflow needs; ``trial``: with metadata of their own, for ``airflow dags test``."""
    here = {**os.environ, **sandbox.shell_env(), **airflow_variables(sandbox.info(), ROOT, trial=trial)}
    return {**here, "PATH": f"{PYTHON_BIN}{os.pathsep}{here.get('PATH', '')}"}


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


def prepare(environment: dict[str, str]) -> None:
    """Bring topics, metadata schema and pool into being, each only where it is not there yet."""
    apply_topics(environment)
    prepare_airflow(environment, lambda message: print(message, file=sys.stderr, flush=True))


def run(main: Callable[[], int]) -> NoReturn:
    """Run a program of this folder; an error of ours is one line, one of a command that it ran is that command's exit status."""
    try:
        sys.exit(main())
    except FactoryError as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
