"""What a run's context says: interval, policy, whether to do it again."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_factory.runs import as_bool, bundle_root, data_interval, epoch, optional_interval, reprocess_wanted, window_policy
from factory_agents.errors import ConfigurationError, WindowError
from tests.provider.samples import INTERVAL, context


def test_the_interval_is_the_runs_data_interval() -> None:
    assert data_interval(context()) == INTERVAL


@pytest.mark.parametrize(
    ("start", "end", "says"),
    [(None, None, "has no data interval"), (datetime(2026, 3, 1, tzinfo=UTC),) * 2 + ("has an empty data interval",)],
)
def test_a_run_without_an_interval_is_told_how_to_get_one(start: Any, end: Any, says: str) -> None:
    run = context(data_interval_start=start, data_interval_end=end)
    with pytest.raises(WindowError, match=says) as error:
        data_interval(run)
    assert "CronDataIntervalTimetable" in str(error.value)
    assert "since_last" in str(error.value)
    assert optional_interval(run) is None


@pytest.mark.parametrize(
    ("run_type", "catchup", "after_pause", "policy"),
    [
        ("scheduled", False, "carry", "carry"),
        ("scheduled", False, "leave", "index"),
        ("scheduled", True, "carry", "index"),
        ("manual", False, "carry", "index"),
        ("backfill", False, "carry", "index"),
    ],
)
def test_only_scheduled_runs_without_catchup_carry_a_pause(run_type: str, catchup: bool, after_pause: str, policy: str) -> None:
    run = context(dag_run=SimpleNamespace(run_type=run_type), dag=SimpleNamespace(catchup=catchup))
    assert window_policy(run, after_pause) == policy


@pytest.mark.parametrize(
    ("max_tries", "retries", "expected"), [(2, 2, 0), (3, 2, 1), (5, 2, 3), (0, 0, 0), (1, 0, 1), (2, 5, 0), (None, 2, 0)]
)
def test_a_clear_raises_the_epoch_and_a_retry_does_not(max_tries: int | None, retries: int, expected: int) -> None:
    assert epoch(context(ti=SimpleNamespace(max_tries=max_tries), task=SimpleNamespace(retries=retries))) == expected


def test_reprocess_is_the_argument_else_the_param() -> None:
    assert reprocess_wanted(context(params={"reprocess": True}), None)
    assert not reprocess_wanted(context(params={"reprocess": True}), "False")
    assert reprocess_wanted(context(), "true")
    assert not reprocess_wanted(context(), None)


def test_a_truth_value_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="dry_run: expected true or false, got 'maybe'"):
        as_bool("maybe", "dry_run")


def test_the_bundle_root_else_the_dag_files_folder(tmp_path: Any) -> None:
    file = tmp_path / "dags" / "a.py"
    file.parent.mkdir()
    file.touch()
    assert bundle_root(context(ti=SimpleNamespace(bundle_instance=SimpleNamespace(path=tmp_path)))) == tmp_path
    assert bundle_root(context(ti=SimpleNamespace(), dag=SimpleNamespace(fileloc=str(file)))) == file.parent
    assert bundle_root(context(ti=SimpleNamespace())) is None
