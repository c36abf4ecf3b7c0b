"""``make shell``: a shell in which ``airflow``, ``factory`` and ``psql`` use the sandbox and the metadata of ``make ui``."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from airflow_env import ROOT, airflow_environment, prepare, run

from factory_agents.sandbox import Sandbox


def main() -> NoReturn:
    """Set up, and become the user's shell (with this program's arguments, ``-c 'airflow dags list'`` for one)."""
    sandbox = Sandbox(ROOT / ".factory")
    sandbox.up()
    os.chdir(ROOT)
    environment = airflow_environment(sandbox)
    prepare(environment)
    shell = os.environ.get("SHELL") or "/bin/sh"
    os.execvpe(shell, [shell, *sys.argv[1:]], environment | {"VIRTUAL_ENV": sys.prefix})


if __name__ == "__main__":
    run(main)
