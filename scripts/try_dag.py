"""``make try DAG=my_dag AT=2026-11-01T05:00``: one run of a DAG by ``airflow dags test``, beside a scheduler that knows nothing of it."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from airflow_env import ROOT, airflow, airflow_environment, prepare, run

from factory_agents.sandbox import Sandbox


def main() -> int:
    """Set up, run it, and end with its exit status."""
    parser = argparse.ArgumentParser(prog="make try", description=__doc__)
    parser.add_argument("dag", help="the DAG's id")
    parser.add_argument("at", nargs="?", help="end of the interval to run, as airflow dags test takes it (default: this hour's beginning)")
    parser.add_argument("--conf", help="parameters as JSON")
    given = parser.parse_args()
    sandbox = Sandbox(ROOT / ".factory")
    sandbox.up()
    environment = airflow_environment(sandbox, trial=True)
    prepare(environment)
    at = given.at or datetime.now(UTC).strftime("%Y-%m-%dT%H:00")
    airflow(environment, "dags", "test", given.dag, at, *(("--conf", given.conf) if given.conf else ()), quiet=False)
    return 0


if __name__ == "__main__":
    run(main)
