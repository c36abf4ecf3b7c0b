"""What a task's context says about the run: its interval, how it came about, and whether it is to be done anew."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_provider_factory.version_compat import previous_run
from factory_agents.errors import ConfigurationError, WindowError
from factory_agents.protocol import Interval, Order

__all__ = [
    "as_bool",
    "bundle_root",
    "data_interval",
    "follows",
    "instance",
    "mapped",
    "optional_interval",
    "order",
    "reprocess_wanted",
    "window_policy",
]

log = logging.getLogger(__name__)

_HOW = (
    "schedule the DAG with CronDataIntervalTimetable('@hourly', timezone='UTC') (a bare cron expression has an empty interval in "
    "Airflow 3), or plan windows without one: WindowOperator(no_interval='since_last')"
)


_MOST_RUNS_BEFORE = 100


def _run_type(run: Any) -> str:
    return str(getattr(run, "run_type", "")).rpartition(".")[2].lower()


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
    if start is None:
        dag_id = getattr(context.get("ti"), "dag_id", "DAG")
        what += f": a run by hand gets one with airflow dags trigger {dag_id} --logical-date {datetime.now(UTC):%Y-%m-%dT%H}:00"
    raise WindowError(f"run {run_id!r} {what}; or {_HOW}" if start is None else f"run {run_id!r} {what}: {_HOW}")


def window_policy(context: Mapping[str, Any], after_pause: str) -> str:
    """``carry`` for a scheduled run of a ``catchup=False`` DAG that carries pauses, else ``index``: each cut is the timestamp index's."""
    scheduled = _run_type(context.get("dag_run")) == "scheduled"
    catchup = bool(getattr(context.get("dag"), "catchup", False))
    return "carry" if scheduled and not catchup and after_pause == "carry" else "index"


def follows(context: Mapping[str, Any], interval: Interval) -> bool:
    """Whether another scheduled run is there for the time right before the interval, done or not: else there was a pause.

    Runs by hand and backfills in between are passed over. False where Airflow doesn't know of an earlier scheduled run.
    """
    before = context.get("dag_run")
    for _ in range(_MOST_RUNS_BEFORE):
        before = previous_run(before)
        if before is None or before.data_interval_end is None:
            return False
        if _run_type(before) == "scheduled":
            return bool(_utc(before.data_interval_end) >= interval.start)
    return False


def order(context: Mapping[str, Any]) -> Order:
    """What this task instance has been told so far, to be compared with what it was told before.

    A clear sets ``max_tries`` to the tries so far plus ``retries`` and counts up the run's ``clear_number``; a retry leaves both alone.
    """
    ti, run, map_index = context["ti"], context.get("dag_run"), _map_index(context)
    tries = int(getattr(ti, "max_tries", None) or 0)
    retries = int(getattr(context["task"], "retries", 0) or 0)
    clears = int(getattr(run, "clear_number", None) or 0)
    # A run that is deleted and made again by hand has its old name, and begins to count again.
    task = " ".join(str(part) for part in (context["run_id"], getattr(run, "run_after", None), max(map_index, 0)) if part)
    return Order(task, tries, clears, again=tries > retries)


def _map_index(context: Mapping[str, Any]) -> int:
    index = getattr(context["ti"], "map_index", None)
    return -1 if index is None else int(index)


def instance(context: Mapping[str, Any], *, inherited: int, sharded: bool) -> int:
    """Which of the tasks that are mapped beside each other this is, so that the work of each is its own.

    The shards of one plan are one work, and those that are mapped over windows or results alone are told apart by these (``inherited``).
    Raises ConfigurationError for a task that is mapped over shards and something else at once: each would do the same shards.
    """
    index = _map_index(context)
    if index < 0:
        return inherited
    others = sorted(_mapped_arguments(context) - {"window", "shard"})
    if not sharded:
        return index if others else inherited
    if others and _is_product(context):
        raise ConfigurationError(
            f"mapped over shards and {', '.join(others)} at once, so that several tasks would do the same shard; give the whole window: "
            f"partial(window=….output).expand({others[0]}=…), or put each into a set of its own with expand_kwargs"
        )
    return inherited


def _expand_input(context: Mapping[str, Any]) -> Any:
    """What the task itself is mapped over; None for one that is in a mapped group."""
    task = context["task"]
    original = getattr(context.get("dag"), "task_dict", {}).get(task.task_id)
    return getattr(original, "expand_input", None)


def _is_product(context: Mapping[str, Any]) -> bool:
    return isinstance(getattr(_expand_input(context), "value", None), Mapping)


def _mapped_arguments(context: Mapping[str, Any]) -> set[str]:
    """Names of the arguments that differ between the mapped tasks; ``group`` where a task group is mapped, or nobody can tell."""
    value = getattr(_expand_input(context), "value", None)
    if isinstance(value, Mapping):  # expand(a=…, b=…)
        return set(value)
    if isinstance(value, (list, tuple)) and all(isinstance(item, Mapping) for item in value):  # expand_kwargs([{…}, …])
        return {name for item in value for name in item}
    return {"group"}


def mapped(context: Mapping[str, Any]) -> int:
    """How many tasks this one's stage is mapped to; 0 where it isn't mapped, or nobody can tell."""
    ti = context["ti"]
    if _map_index(context) < 0 or not hasattr(ti, "get_ti_count"):
        return 0
    of = {"dag_id": ti.dag_id, "task_ids": [ti.task_id], "run_ids": [ti.run_id]}
    return int(ti.get_ti_count(**of) - ti.get_ti_count(**of, states=["removed"]))


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
