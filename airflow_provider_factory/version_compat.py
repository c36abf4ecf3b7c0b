"""Everything that depends on which Airflow is installed: the one place that asks for its version."""

from __future__ import annotations

from airflow import __version__ as _airflow_version
from packaging.version import Version

__all__ = ["AIRFLOW_V_3_3_PLUS"]

AIRFLOW_V_3_3_PLUS = Version(Version(_airflow_version).base_version) >= Version("3.3.0")
"""Triggers have ``on_kill``, tasks have state stores (``durable``) and retry policies."""
