"""The tests below this folder run on one real Airflow."""

from __future__ import annotations

import pytest

from tests.support.airflow_components import airflow_running

__all__ = ["airflow_running"]


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.airflow)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Function, nextitem: pytest.Item | None) -> None:
    """After the last of them the components end, so that they take nothing from other tests."""
    airflow = item.funcargs.get("airflow_running")
    if airflow is not None and (nextitem is None or nextitem.path.parent != item.path.parent):
        airflow.components.down()
