"""Runs an agent as a process beside the task, with the worker's environment less Airflow's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_factory.runners.base import Access
from airflow_provider_factory.runs import bundle_root, include_folder
from airflow_provider_factory.settings import option_seconds
from factory_agents.protocol import AgentResult, AgentRun
from factory_agents.runners.process import AgentProcess, child_environment
from factory_agents.telemetry.tracing import OF_ITS_PROCESS

if TYPE_CHECKING:
    from airflow.sdk import Context

__all__ = ["ProcessRunner"]

_AIRFLOWS = ("AIRFLOW__", "AIRFLOW_CONN_", "AIRFLOW_VAR_", "_AIRFLOW_")


class ProcessRunner:
    """An ``AgentRunner``: the agent finds the DAG bundle on its path, and ``env_vars`` in its environment."""

    def __init__(self, run: AgentRun, access: Access, env_vars: Mapping[str, str]) -> None:
        self._run = run
        self._access = access
        self._env_vars = env_vars
        self._process: AgentProcess | None = None
        self._stopped = False

    def run(self, context: Context) -> AgentResult:
        """See ``AgentRunner``."""
        self._process = process = AgentProcess(self._run, self._environment(bundle_root(context)), grace=option_seconds("stop_grace"))
        if self._stopped:
            process.stop()
        return process.run()

    def stop(self) -> None:
        """See ``AgentRunner``: SIGTERM, and SIGKILL after ``[factory] stop_grace``."""
        self._stopped = True
        if self._process is not None:
            self._process.stop()

    def _environment(self, root: Path | None) -> dict[str, str]:
        environment = child_environment(
            os.environ,
            private=(*_AIRFLOWS, *OF_ITS_PROCESS),
            secrets=self._access.environment(),
            extra=self._env_vars,
            python_path=[root] if root else [],
        )
        if include := include_folder(root):
            environment.setdefault("FACTORY_INCLUDE", str(include))
        if root:
            environment["FACTORY_FILES"] = os.pathsep.join(filter(None, [str(root), environment.get("FACTORY_FILES")]))
        return environment
