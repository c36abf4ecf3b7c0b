"""A late run is told of once, by name; where deadlines can't work there is none."""

from __future__ import annotations

import asyncio
import logging
import sys
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_factory.notifications import deadline_missed, late_after


@pytest.mark.parametrize(
    ("value", "argv", "there"),
    [
        ("True", ["airflow", "scheduler"], True),
        ("1", ["airflow", "scheduler"], True),
        ("False", ["airflow", "scheduler"], False),
        ("True", ["airflow", "dags", "test", "clicks"], False),
        ("True", ["airflow", "dags", "list"], True),
    ],
)
def test_a_dag_has_a_deadline_where_they_are_on(monkeypatch: pytest.MonkeyPatch, value: str, argv: list[str], there: bool) -> None:
    monkeypatch.setenv("AIRFLOW__FACTORY__DEADLINES", value)
    monkeypatch.setattr(sys, "argv", argv)
    alert = late_after(timedelta(minutes=50))
    assert (alert is not None) is there
    if alert is not None:
        assert alert.interval == timedelta(minutes=50)


@pytest.mark.parametrize(
    "context",
    [{"dag_run": {"dag_id": "clicks", "run_id": "r1"}}, {"dag_run": SimpleNamespace(dag_id="clicks", run_id="r1")}],
)
def test_the_alert_names_dag_and_run(context: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        asyncio.run(deadline_missed(context, team="data"))
    assert [r.getMessage() for r in caplog.records] == ["deadline missed: dag clicks run r1 {'team': 'data'}"]


def test_an_alert_without_a_run_is_told_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(deadline_missed(None))
    assert "deadline missed" in caplog.text
