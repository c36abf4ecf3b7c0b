"""Imports what every DAG file with agents needs once per process, before DAG files are parsed in forks of it."""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import Any

from airflow.plugins_manager import AirflowPlugin

__all__ = ["PreloadPlugin"]

_MODULES = ("operators.kafka_agent", "operators.validation", "operators.window", "sensors.window_closed", "decorators.kafka_agent")
_RUNS_NO_DAG_FILES = {"api-server", "triggerer", "db", "kerberos", "users", "connections", "variables", "pools"}


class PreloadPlugin(AirflowPlugin):
    """KubernetesPodOperator costs 2-3 s to import; the DAG processor loads plugins before it forks a parser for each file."""

    name = "factory_preload"

    @classmethod
    def on_load(cls, *args: Any, **kwargs: Any) -> None:
        """Import the operators where DAG files are read; whatever goes wrong shows, with its file, in the DAG that needs them."""
        if sys.argv[1:2] and sys.argv[1] in _RUNS_NO_DAG_FILES:
            return
        for module in _MODULES:
            with contextlib.suppress(Exception):
                importlib.import_module(f"airflow_provider_factory.{module}")
