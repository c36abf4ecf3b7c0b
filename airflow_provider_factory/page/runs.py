"""What Airflow's database says of a pipeline's runs, in few statements whatever their number; and the times that its schedule has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = [
    "MOST_SPANS",
    "PreviewRun",
    "Run",
    "Schedule",
    "Task",
    "more_intervals_than",
    "pods_of",
    "preview_runs",
    "run_of",
    "runs_at",
    "runs_between",
    "schedule_in",
    "session",
    "tasks_of",
    "unfinished_run",
    "why_none_begins",
]

MOST_SPANS = 336
"""Most intervals on one calendar: two weeks of hours."""

_MOST_TASKS = 1000
_MOST_UNFINISHED = 200
_OF_KUBERNETES = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
"""A name of Kubernetes': any task can push others, and people paste what they see into a shell."""

_MOST_PREVIEWS, _LATEST_PREVIEWS = 10, 200


@dataclass(frozen=True)
class Run:
    """A DAG run; ``start`` and ``end`` are its data interval."""

    run_id: str
    state: str
    start: datetime | None
    end: datetime | None


@dataclass(frozen=True)
class Task:
    """A task instance of a run; ``map_index`` is -1 for a task that isn't mapped."""

    task_id: str
    map_index: int
    state: str
    tries: int


@dataclass(frozen=True)
class Schedule:
    """Intervals of a DAG's timetable; ``known`` is False for a DAG whose schedule has none, or that isn't there."""

    spans: tuple[tuple[datetime, datetime], ...] = ()
    known: bool = False


@dataclass(frozen=True)
class PreviewRun:
    """A run of the preview DAG for a pipeline; ``result`` is what its agent returned, if it is over."""

    run_id: str
    state: str
    conf: dict[str, Any]
    result: Any


@contextmanager
def session() -> Iterator[Session]:
    """A session with Airflow's database, ended with the block."""
    from airflow.utils.session import create_session

    with create_session(scoped=False) as opened:
        yield opened


def runs_between(opened: Session, dag_id: str, since: datetime, until: datetime) -> list[Run]:
    """The runs whose data interval begins in a span of time, the newest first (one statement)."""
    from airflow.models.dagrun import DagRun
    from sqlalchemy import select

    start = DagRun.data_interval_start
    wanted = (
        select(DagRun.run_id, DagRun.state, start, DagRun.data_interval_end)
        .where(DagRun.dag_id == dag_id, start >= since, start < until)
        .order_by(start.desc(), DagRun.id.desc())
        .limit(2 * MOST_SPANS)
    )
    return [_run(row) for row in opened.execute(wanted)]


def runs_at(opened: Session, dag_id: str, start: datetime) -> list[Run]:
    """The newest run of the interval that begins at a time, if there is one (one statement)."""
    from airflow.models.dagrun import DagRun
    from sqlalchemy import select

    columns = select(DagRun.run_id, DagRun.state, DagRun.data_interval_start, DagRun.data_interval_end)
    wanted = columns.where(DagRun.dag_id == dag_id, DagRun.data_interval_start == start).order_by(DagRun.id.desc()).limit(1)
    return [_run(row) for row in opened.execute(wanted)]


def run_of(opened: Session, dag_id: str, run_id: str) -> Run | None:
    """A run by its id (one statement)."""
    from airflow.models.dagrun import DagRun
    from sqlalchemy import select

    columns = select(DagRun.run_id, DagRun.state, DagRun.data_interval_start, DagRun.data_interval_end)
    row = opened.execute(columns.where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)).first()
    return None if row is None else _run(row)


def _run(row: Any) -> Run:
    return Run(row[0], str(getattr(row[1], "value", row[1]) or ""), row[2], row[3])


def tasks_of(opened: Session, dag_id: str, run_id: str) -> list[Task]:
    """A run's task instances (one statement)."""
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import select

    wanted = (
        select(TaskInstance.task_id, TaskInstance.map_index, TaskInstance.state, TaskInstance.try_number)
        .where(TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id)
        .order_by(TaskInstance.task_id, TaskInstance.map_index)
        .limit(_MOST_TASKS)
    )
    return [Task(row[0], row[1], str(getattr(row[2], "value", row[2]) or "none"), row[3] or 0) for row in opened.execute(wanted)]


def pods_of(opened: Session, dag_id: str, run_id: str) -> dict[tuple[str, int], tuple[str, str]]:
    """The namespace and name of each task's last pod, by task id and map index, as KubernetesPodOperator tells them (one statement)."""
    from airflow.models.xcom import XComModel
    from sqlalchemy import select

    told = (
        select(XComModel.task_id, XComModel.map_index, XComModel.key, XComModel.value)
        .where(XComModel.dag_id == dag_id, XComModel.run_id == run_id, XComModel.key.in_(("pod_namespace", "pod_name")))
        .order_by(XComModel.task_id, XComModel.map_index)
        .limit(2 * _MOST_TASKS)
    )
    found: dict[tuple[str, int], dict[str, str]] = {}
    for task_id, index, key, value in opened.execute(told):
        found.setdefault((task_id, index), {})[key] = str(value).strip('"')  # a text, or its JSON, however Airflow keeps it
    named = {task: (pod.get("pod_namespace", ""), pod.get("pod_name", "")) for task, pod in found.items()}
    return {task: pod for task, pod in named.items() if all(_OF_KUBERNETES.fullmatch(name) for name in pod)}


def unfinished_run(opened: Session, dag_id: str, conf: dict[str, Any]) -> str:
    """A run of a DAG with just these parameters that is not over; empty where there is none (one statement)."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.state import DagRunState
    from sqlalchemy import select

    unfinished = select(DagRun.run_id, DagRun.conf).where(
        DagRun.dag_id == dag_id, DagRun.state.in_((DagRunState.QUEUED, DagRunState.RUNNING))
    )
    rows = opened.execute(unfinished.order_by(DagRun.id).limit(_MOST_UNFINISHED))
    return next((str(row[0]) for row in rows if row[1] == conf), "")


def why_none_begins(opened: Session, dag_id: str) -> str:
    """Why a new run of a DAG would not begin, or not as its file has it; empty where it would, or no such DAG is known (one statement)."""
    from airflow.models.dag import DagModel
    from sqlalchemy import select

    known = select(DagModel.is_stale, DagModel.has_import_errors, DagModel.is_paused).where(DagModel.dag_id == dag_id)
    row = opened.execute(known).first()
    reasons = ("its file is gone, or no longer has it", "its file cannot be imported", "it is paused; unpause it, and ask again")
    return next((why for why, so in zip(reasons, row or (), strict=False) if so), "")


def preview_runs(opened: Session, preview_dag: str, pipeline: str) -> list[PreviewRun]:
    """The last previews of a pipeline, the newest first (two statements)."""
    from airflow.models.dagrun import DagRun
    from airflow.models.xcom import XComModel
    from sqlalchemy import select

    latest = select(DagRun.run_id, DagRun.state, DagRun.conf).where(DagRun.dag_id == preview_dag)
    rows = [row for row in opened.execute(latest.order_by(DagRun.id.desc()).limit(_LATEST_PREVIEWS)) if _pipeline_of(row[2]) == pipeline]
    rows = rows[:_MOST_PREVIEWS]
    of_task = select(XComModel.run_id, XComModel.value).where(
        XComModel.dag_id == preview_dag, XComModel.task_id == "preview", XComModel.key == "return_value", XComModel.map_index == -1
    )
    wanted = of_task.where(XComModel.run_id.in_([row[0] for row in rows]))
    results = {row[0]: row[1] for row in opened.execute(wanted)} if rows else {}
    return [PreviewRun(row[0], str(getattr(row[1], "value", row[1]) or ""), row[2], results.get(row[0])) for row in rows]


def _pipeline_of(conf: Any) -> str:
    return str(conf.get("pipeline", "")) if isinstance(conf, dict) else ""


def schedule_in(opened: Session, dag_id: str, gaps: Sequence[tuple[datetime, datetime]]) -> Schedule:
    """The intervals of a DAG's timetable in some gaps that are over, ``MOST_SPANS`` at most (one statement).

    To compute an interval takes about a millisecond, so only those are asked for that nobody else knows of.
    """
    dag = _dag(opened, dag_id)
    if dag is None or not dag.timetable.periodic:
        return Schedule()
    spans: list[tuple[datetime, datetime]] = []
    known = True
    for since, until in gaps:
        infos = islice(dag.iter_dagrun_infos_between(since, until), MOST_SPANS - len(spans))
        found = [(_utc(info.data_interval.start), _utc(info.data_interval.end)) for info in infos if info.data_interval]
        known = known and all(start < end for start, end in found)
        spans += [(start, end) for start, end in found if start < end <= until]
    return Schedule(tuple(spans), known)


def more_intervals_than(opened: Session, dag_id: str, since: datetime, until: datetime, most: int) -> bool:
    """Whether a DAG's timetable has more intervals than ``most`` that begin in a span: no more of them are computed (one statement)."""
    dag = _dag(opened, dag_id)
    if dag is None or not dag.timetable.periodic:
        return False
    return sum(1 for _ in islice(dag.iter_dagrun_infos_between(since, until), most + 1)) > most


def _dag(opened: Session, dag_id: str) -> Any:
    from airflow.models.serialized_dag import SerializedDagModel

    found = opened.scalar(SerializedDagModel.latest_item_select_object(dag_id))
    return None if found is None else found.dag


def _utc(moment: Any) -> datetime:
    return datetime.fromtimestamp(moment.timestamp(), UTC)
