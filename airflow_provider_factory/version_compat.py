"""Everything that depends on which Airflow is installed: the one place that asks for its version."""

from __future__ import annotations

from typing import Any

from airflow import __version__ as _airflow_version
from packaging.version import Version

__all__ = ["ADDRESS_FOLLOWS_FRAMES", "AIRFLOW_V_3_3_PLUS", "previous_run"]

AIRFLOW_V_3_3_PLUS = Version(Version(_airflow_version).base_version) >= Version("3.3.0")
"""Triggers have ``on_kill``, tasks have state stores (``durable``) and retry policies."""

ADDRESS_FOLLOWS_FRAMES = Version(Version(_airflow_version).base_version) >= Version("3.3.2")
"""The UI's address and the page in a plugin's frame are kept the same; before, an address below the plugin's was no page."""


def previous_run(run: Any) -> Any:
    """The DAG's run before this one by logical date, of whatever kind; None where there is none, or nobody to ask.

    The task instance's own ``get_previous_dagrun`` looks back from its own run only.
    """
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import GetPreviousDagRun

    supervisor = getattr(task_runner, "SUPERVISOR_COMMS", None)
    if supervisor is None or getattr(run, "logical_date", None) is None:
        return None
    answer = supervisor.send(msg=GetPreviousDagRun(dag_id=run.dag_id, logical_date=run.logical_date))
    return getattr(answer, "dag_run", None)
