"""Airflow plugins that come with the provider."""

from __future__ import annotations

import sys

__all__ = ["serves_pages"]


def serves_pages() -> bool:
    """Whether this process may be an API server: the others need no web apps."""
    return sys.argv[1:2] == [] or sys.argv[1] not in {"scheduler", "dag-processor", "triggerer", "dags", "tasks", "db"}
