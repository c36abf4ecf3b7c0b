"""The verdict over a validation report: what it does to the task, and who is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, Asset
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from airflow_provider_factory.errors import airflow_errors
from airflow_provider_factory.operators.validation import ValidationOperator
from factory_agents.contracts import WindowStatistics, load_contract
from tests.support.samples import context, result

CONTRACT = load_contract({"name": "c", "id": None, "schema": {"type": "object"}})
VALID = Asset("kafka://local/valid")


def judge(rejected: int, **arguments: Any) -> dict[str, Any]:
    """Judge a report with so many of four events rejected, as a dry run: the ledger is not asked. What its asset is told is returned."""
    statistics = WindowStatistics(CONTRACT)
    statistics.add_valid([{}] * (4 - rejected))
    for i in range(rejected):
        statistics.add_rejected(["schema"], "bad", ("t", 0, i))
    judged = result(report=statistics.report(), dry_run=True)
    with DAG("clicks", schedule=None):
        task = ValidationOperator(task_id="check", outlets=[VALID], **arguments)
    events = {VALID: SimpleNamespace(extra={"window": "w"})}
    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))
    with airflow_errors():
        task._check_arguments()
        task._verdict(context(ti=ti, task=task, dag=task.dag, outlet_events=events), judged)  # type: ignore[arg-type]
    return dict(events[VALID].extra)


@pytest.mark.parametrize(
    ("how", "error"),
    [({}, AirflowFailException), ({"on_failure": "fail"}, AirflowFailException), ({"on_failure": "skip"}, AirflowSkipException)],
)
def test_a_broken_condition_fails_or_skips(how: dict[str, str], error: type[Exception]) -> None:
    with pytest.raises(error, match="rejected"):
        judge(1, fail_if="rejected >= 1", **how)


@pytest.mark.parametrize(
    ("rejected", "conditions", "outcome"),
    [
        (0, {"fail_if": "rejected >= 1"}, "pass"),
        (1, {"fail_if": "rejected >= 1", "on_failure": "warn"}, "fail"),
        (1, {"warn_if": "rejected > 20 %"}, "warn"),
    ],
)
def test_the_outlets_are_told_the_verdict(rejected: int, conditions: dict[str, str], outcome: str) -> None:
    assert judge(rejected, **conditions) == {"window": "w", "validation": {"outcome": outcome, "rows": 4, "rejected": rejected}}


def test_another_word_is_refused() -> None:
    with pytest.raises(AirflowFailException, match="on_failure='ignore': expected one of fail, skip, warn"):
        judge(0, on_failure="ignore")
