"""Months done again: whatever dies meanwhile, in whatever order, a backfill leaves what one pass over the log would."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka.admin import AdminClient

from tests.airflow.pipelines import HOURS, SOAK, Pipeline
from tests.support.airflow_components import RunningAirflow

PATIENCE = 7200 if SOAK else 900

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * PATIENCE)]


@pytest.fixture(scope="module")
def forward(airflow_running: RunningAirflow, admin: AdminClient, bootstrap: str) -> Pipeline:
    return Pipeline(airflow_running, admin, bootstrap, "forward", seed=1)


@pytest.fixture(scope="module")
def backward(airflow_running: RunningAirflow, admin: AdminClient, bootstrap: str) -> Pipeline:
    return Pipeline(airflow_running, admin, bootstrap, "backward", seed=2, hours=HOURS if SOAK else 3)


def troubles(airflow: RunningAirflow, pipeline: Pipeline) -> Iterator[Callable[[], object]]:
    """A worker at work, as long as there surely is one; then each after its share of the runs: the scheduler, the triggerer, in the soak
    the scheduler again.
    """
    yield airflow.kill_worker
    yield lambda: airflow.crash("scheduler")
    yield lambda: airflow.crash("triggerer")
    if SOAK:
        yield lambda: airflow.crash("scheduler")


def test_a_backfill_leaves_what_one_pass_leaves_though_scheduler_triggerer_and_worker_die(
    airflow_running: RunningAirflow, forward: Pipeline
) -> None:
    airflow_running.unpause("forward")
    forward.backfill_by_cli()
    for i, trouble in enumerate(troubles(airflow_running, forward)):
        if i:
            airflow_running.wait_done("forward", max(1, i * HOURS // 6), PATIENCE)
        trouble()
    airflow_running.wait_runs("forward", HOURS, patience=PATIENCE)
    forward.check()


def test_clears_of_random_runs_and_tasks_change_nothing(airflow_running: RunningAirflow, forward: Pipeline) -> None:
    airflow_running.unpause("forward")
    if not airflow_running.runs("forward"):  # this test alone
        forward.backfill()
        airflow_running.wait_runs("forward", HOURS, patience=PATIENCE)
    chance = random.Random(3)
    runs = [run["dag_run_id"] for run in airflow_running.runs("forward")]
    for run in chance.sample(runs, max(1, HOURS // 8)):
        task = chance.choice(["", "enrich", "validate", "publish"])
        if task:
            airflow_running.clear_tasks("forward", run, task, downstream=chance.random() < 0.5)
        else:
            airflow_running.clear("forward", run)
    airflow_running.wait_runs("forward", HOURS, patience=PATIENCE)
    tries = [ti["try_number"] for ti in airflow_running.tasks("forward") if ti["task_id"] == "publish"]
    assert max(tries) > 1
    forward.check()


@pytest.mark.soak
def test_in_reverse_it_leaves_the_same_and_again_changes_nothing(airflow_running: RunningAirflow, backward: Pipeline) -> None:
    airflow_running.unpause("backward")
    backward.backfill(run_backwards=True)
    airflow_running.wait_runs("backward", backward.hours, patience=PATIENCE)
    order = sorted(airflow_running.runs("backward"), key=lambda run: run["start_date"])
    assert order[0]["logical_date"] > order[-1]["logical_date"]
    backward.check()
    before = sorted(backward.table())

    again = max(2, HOURS // 4)
    backward.backfill(last=again - 1, reprocess_behavior="completed")
    airflow_running.wait_runs("backward", backward.hours, patience=PATIENCE)
    published = [ti for ti in airflow_running.tasks("backward") if ti["task_id"] == "publish"]
    assert len(airflow_running.runs("backward")) == backward.hours
    assert sum(ti["try_number"] > 1 for ti in published) >= again
    assert sorted(backward.table()) == before
