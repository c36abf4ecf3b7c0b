"""The tests below this folder run on one real Airflow, and therefore in one worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.airflow_components import airflow_running

__all__ = ["airflow_running"]

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.airflow)
            item.add_marker(pytest.mark.xdist_group("airflow"))
