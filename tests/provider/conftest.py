"""Airflow for the tests below this folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.airflow_env import airflow_home, dag_runner, warm_agents
from tests.support.runs import Runs

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

    from tests.conftest import TopicFactory

__all__ = ["airflow_home", "dag_runner", "warm_agents"]


@pytest.fixture
def runs(bootstrap: str, prefix: str, topic: TopicFactory, admin: AdminClient) -> Iterator[Runs]:
    """A pipeline of this test's own."""
    own = Runs(bootstrap, prefix, topic, admin)
    yield own
    own.close()
