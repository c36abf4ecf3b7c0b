"""What Airflow needs to run over a sandbox."""

from __future__ import annotations

from pathlib import Path

from factory_agents.sandbox import SandboxInfo
from factory_agents.sandbox.airflow import airflow_variables


def test_a_trial_has_metadata_of_its_own(sandbox_info: SandboxInfo, tmp_path: Path) -> None:
    """A run of ``airflow dags test`` takes the place of the scheduler's own run where both share a database."""
    scheduler, trial = (airflow_variables(sandbox_info, tmp_path, trial=trial) for trial in (False, True))
    assert {name for name in scheduler if scheduler[name] != trial[name]} == {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"}
