"""Imports what every DAG file with agents needs once per process, before DAG files are parsed in forks of it."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

from airflow.plugins_manager import AirflowPlugin

__all__ = ["PreloadPlugin"]


class PreloadPlugin(AirflowPlugin):
    """KubernetesPodOperator costs 2-3 s to import; the DAG processor loads plugins before it forks a parser for each file."""

    name = "factory_preload"

    @classmethod
    def on_load(cls, *args: Any, **kwargs: Any) -> None:
        """Import the operators; whatever goes wrong shows, with its file, in the DAG that needs them."""
        with contextlib.suppress(Exception):
            importlib.import_module("airflow_provider_factory.operators.kafka_agent")
