"""What a task's context says about the run: its interval, how it came about, and whether it is to be done anew."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from factory_agents.errors import ConfigurationError, WindowError
from factory_agents.protocol import Interval

__all__ = ["as_bool", "bundle_root", "data_interval", "epoch", "optional_interval", "reprocess_wanted", "window_policy"]

log = logging.getLogger(__name__)

_HOW = (
    "schedule the DAG with CronDataIntervalTimetable('@hourly', timezone='UTC') (a bare cron expression has an empty interval in "
    "Airflow 3), trigger it with a logical date, or plan windows without one: WindowOperator(no_interval='since_last')"
)


def _utc(value: Any) -> datetime:
    return datetime.fromtimestamp(value.timestamp(), UTC)


def optional_interval(context: Mapping[str, Any]) -> Interval | None:
    """The run's data interval; None for a run that has none, or an empty one."""
    start, end = context.get("data_interval_start"), context.get("data_interval_end")
    if start is None or end is None or start == end:
        return None
    return Interval(_utc(start), _utc(end))


def data_interval(context: Mapping[str, Any]) -> Interval:
    """The run's data interval; raises WindowError, which says how to get one, for a run without."""
    interval = optional_interval(context)
    if interval is not None:
        return interval
    run_id, start = context.get("run_id", ""), context.get("data_interval_start")
    what = "has no data interval" if start is None else f"has an empty data interval (both ends {start})"
    raise WindowError(f"run {run_id!r} {what}: {_HOW}")


def window_policy(context: Mapping[str, Any], after_pause: str) -> str:
    """``carry`` for a scheduled run of a ``catchup=False`` DAG that carries pauses, else ``index``: each cut is the timestamp index's."""
    scheduled = str(getattr(context.get("dag_run"), "run_type", "")).rpartition(".")[2].lower() == "scheduled"
    catchup = bool(getattr(context.get("dag"), "catchup", False))
    return "carry" if scheduled and not catchup and after_pause == "carry" else "index"


def epoch(context: Mapping[str, Any]) -> int:
    """How often the task was told to run again: 0 at first and in its retries, greater after each clear.

    A clear raises ``max_tries`` to the tries so far plus ``retries``; a retry leaves it alone.
    """
    tries = getattr(context["ti"], "max_tries", None)
    retries = getattr(context["task"], "retries", 0) or 0
    return max(0, int(tries if tries is not None else 0) - int(retries))


_TRUE, _FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off", "", "none"}


def as_bool(value: Any, name: str) -> bool:
    """A templated argument as a truth value; raises ConfigurationError for text that is neither."""
    text = str(value).strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ConfigurationError(f"{name}: expected true or false, got {value!r}")


def reprocess_wanted(context: Mapping[str, Any], argument: Any) -> bool:
    """Whether finished work is to be done anew: the task's argument, else the DAG's param ``reprocess``."""
    if argument is not None:
        return as_bool(argument, "reprocess")
    params = context.get("params") or {}
    return as_bool(params["reprocess"], "param 'reprocess'") if "reprocess" in params else False


def bundle_root(context: Mapping[str, Any]) -> Path | None:
    """Where the DAG's bundle is on this machine, else the DAG file's folder; None when neither is known."""
    path = getattr(getattr(context.get("ti"), "bundle_instance", None), "path", None)
    if path is not None and Path(path).is_dir():
        return Path(path)
    fileloc = getattr(context.get("dag"), "fileloc", "") or ""
    return Path(fileloc).parent if fileloc and Path(fileloc).is_file() else None
