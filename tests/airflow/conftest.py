"""The tests below this folder run on one real Airflow."""

from __future__ import annotations

import pytest

from tests.support.airflow_components import airflow_running

__all__ = ["airflow_running"]


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.airflow)
