"""What a task's context says about the run: its interval, how it came about, and whether it is to be redone."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.configuration import conf
from airflow.sdk.definitions.xcom_arg import PlainXComArg
from airflow.sdk.exceptions import AirflowSkipException

from airflow_provider_factory.assets import topic_name
from airflow_provider_factory.version_compat import previous_run
from factory_agents.errors import ConfigurationError, WindowError
from factory_agents.protocol import Interval, Order
from factory_agents.stage_plan import StageInput
from factory_agents.telemetry import TraceContext

__all__ = [
    "as_bool",
    "bundle_root",
    "data_interval",
    "follows",
    "include_folder",
    "instance",
    "mapped",
    "optional_interval",
    "order",
    "places",
    "reprocess_wanted",
    "traceparent",
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
        if before is None:
            return False
        if _run_type(before) == "scheduled":
            end = before.data_interval_end
            return end is not None and _utc(end) >= interval.start
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
    began = getattr(run, "start_date", None)
    return Order(task, tries, clears, again=tries > retries, began=0 if began is None else int(began.timestamp() * 1000))


def _map_index(context: Mapping[str, Any]) -> int:
    index = getattr(context["ti"], "map_index", None)
    return -1 if index is None else int(index)


def instance(context: Mapping[str, Any], given: StageInput | None) -> int:
    """Which of the tasks that are mapped beside each other this is, so that the work of each is its own.

    The shards of one plan are one work, in whatever order they are mapped; so are those of each plan, where it is several plans' shards.
    What one mapped stage wrote, or windows of a topic each, are told apart by their scope: where a task is skipped Airflow moves those
    after it up, and their works stay what they were.
    Raises ConfigurationError for a task that is mapped over shards first and something else then: no set of shards would come of that.
    """
    index, inherited = _map_index(context), given.window.instance if given is not None else 0
    if index < 0 or (given is not None and _told_apart_by_scope(context)):
        return inherited
    over = _mapped_over(context)
    if given is None or not given.sharded:
        return index
    if isinstance(over, Mapping):
        return _of_product(over, context, given, index)
    if over is not None:
        return _set_of(_inputs(over, context), index, inherited)
    return inherited if mapped(context) <= given.shard.of else index - given.shard.index


_READ = ("shard", "window")
"""The arguments that say what is read."""


def _of_product(over: Mapping[str, Any], context: Mapping[str, Any], given: StageInput, index: int) -> int:
    """As ``instance``, for a shard in a task mapped by ``expand``: over shards, over something else, or over each of both."""
    read = [name for name in over if name in _READ]
    others = [name for name in over if name not in _READ]
    if not read:
        return index
    if others:
        shards, tasks = len(_resolved(over[read[-1]], context)), mapped(context)
        if tasks > shards and list(over)[-1] in others:
            raise ConfigurationError(
                f"mapped over shards and {others[-1]} at once: the shards have to come last, expand({others[-1]}=…, {read[-1]}=…), or give "
                f"the whole window, partial(window=….output).expand({others[-1]}=…)"
            )
        if given.shard.of >= shards and tasks > shards:
            return index // shards  # whatever the number of shards
    return given.window.instance if mapped(context) <= given.shard.of else index - given.shard.index


def _told_apart_by_scope(context: Mapping[str, Any]) -> bool:
    """Whether a task is mapped over what one mapped stage wrote, or over windows that were planned for a topic each, and nothing else."""
    from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
    from airflow_provider_factory.operators.window import WindowOperator

    over = _mapped_over(context)
    if not isinstance(over, Mapping) or list(over) != ["window"]:
        return False
    given = over["window"]
    stage = given.operator if isinstance(given, PlainXComArg) and given.key == BaseXCom.XCOM_RETURN_KEY else None
    kind = getattr(stage, "operator_class", None)
    if not isinstance(kind, type):
        return False
    theirs = getattr(getattr(stage, "expand_input", None), "value", None)
    if issubclass(kind, KafkaAgentOperator):  # one that only judges returns others' results, which may be of one scope
        return not (isinstance(theirs, Mapping) and "results" in theirs)
    if not issubclass(kind, WindowOperator) or not isinstance(theirs, Mapping) or list(theirs) != ["topic"]:
        return False
    topics = [topic_name(topic) for topic in _each(theirs["topic"], context) if topic is not None]
    return len(set(topics)) == len(topics)


def _original(context: Mapping[str, Any]) -> Any:
    """The task as it stands in the DAG, before it is mapped."""
    return getattr(context.get("dag"), "task_dict", {}).get(context["task"].task_id)


def _mapped_over(context: Mapping[str, Any]) -> Any:
    """What the task itself is mapped over: a mapping (``expand``), a list or a reference (``expand_kwargs``); None for a mapped group's."""
    return getattr(getattr(_original(context), "expand_input", None), "value", None)


def _resolved(value: Any, context: Mapping[str, Any]) -> Sequence[Any]:
    """What a task is mapped over, as a list or as another task's output that is fetched now."""
    resolve = getattr(value, "resolve", None)
    found = value if resolve is None else resolve(context)
    return found if isinstance(found, Sequence) else list(found or ())


def _each(value: Any, context: Mapping[str, Any]) -> list[Any]:
    """The same, each of it; None where a function given to ``.map()`` skips, whose own task Airflow skips."""
    found = _resolved(value, context)
    items: list[Any] = []
    for at in range(len(found)):
        try:
            items.append(found[at])
        except AirflowSkipException:
            items.append(None)
    return items


def _inputs(over: Any, context: Mapping[str, Any]) -> list[tuple[str, int] | None]:
    """What each set of arguments of ``expand_kwargs`` says to read, as plan and shard; None for one that is skipped."""
    return [None if arguments is None else _input(arguments) for arguments in _each(over, context)]


def _input(arguments: Any) -> tuple[str, int]:
    given = {name: arguments[name] for name in _READ if name in arguments} if isinstance(arguments, Mapping) else {}
    for value in given.values():
        if isinstance(value, Mapping) and "plan" in value:
            return str(value["plan"]), int(value.get("shard", (0, 1))[0])
    pair = given.get("shard")
    index, of = pair if isinstance(pair, Sequence) and len(pair) == 2 and not isinstance(pair, str) else (0, 1)
    return repr((given.get("window"), of)), int(index)  # it may be another task's output, which isn't fetched yet


def _set_of(inputs: Sequence[tuple[str, int] | None], index: int, inherited: int) -> int:
    """Which set of shards the one at ``index`` belongs to: its number, or where it begins if there are several plans.

    Of shards that stand there several times, with other arguments each, the first ones are a set, the second ones, and so on: whether
    all shards of the first arguments come first, or the first shard of all arguments.
    """
    mine = inputs[index]
    turn = inputs[:index].count(mine)
    seen: Counter[tuple[str, int]] = Counter()
    first = index
    for at, shard in enumerate(inputs):
        if shard is not None and mine is not None and shard[0] == mine[0]:
            if seen[shard] == turn:
                first = min(first, at)
            seen[shard] += 1
    if len({shard[0] for shard in inputs if shard is not None}) > 1:
        return first
    return turn if any(count > 1 for count in seen.values()) else inherited


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
    """Whether finished work is to be redone: the task's argument, else the DAG's param ``reprocess``."""
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


def traceparent(context: Mapping[str, Any]) -> str:
    """The task's span, which its agent's is a part of; empty where Airflow writes no traces (it makes ids all the same)."""
    if not conf.getboolean("traces", "otel_on", fallback=False):
        return ""
    from opentelemetry import trace

    own = trace.get_current_span().get_span_context()
    if own.is_valid:
        return TraceContext(f"{own.trace_id:032x}", f"{own.span_id:016x}", own.trace_flags.sampled).text
    carrier = getattr(context.get("ti"), "context_carrier", None) or {}  # ``airflow dags test`` has no span around the task
    return str(carrier.get("traceparent") or "")


def include_folder(root: Path | None) -> Path | None:
    """The repository's ``include`` folder: in the bundle's root, or beside it where the bundle is the ``dags`` folder alone."""
    return next((p for p in (root / "include", root.parent / "include") if p.is_dir()), None) if root else None


def places(root: Path | None) -> list[Path]:
    """Where a file that a DAG names is looked for: ``FACTORY_INCLUDE``, the repository's ``include``, the repository."""
    include = os.environ.get("FACTORY_INCLUDE")
    return [place for place in (Path(include) if include else None, include_folder(root), root) if place]
