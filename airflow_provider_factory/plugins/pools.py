"""Says at the start of a run that a pool which its tasks name isn't there: only the scheduler's log would say why they wait."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun

__all__ = ["MissingPools", "PoolsPlugin", "missing_pools"]

log = logging.getLogger(__name__)


def missing_pools(dag_run: DagRun) -> str:
    """What to do about the pools that a run's tasks name and nobody made; empty where all are there."""
    from airflow.models.pool import Pool
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select
    from sqlalchemy.orm import object_session

    named = select(TaskInstance.pool).where(TaskInstance.dag_id == dag_run.dag_id, TaskInstance.run_id == dag_run.run_id).distinct()
    attached = object_session(dag_run)
    with nullcontext(attached) if attached is not None else create_session() as session, session.no_autoflush:
        missing = sorted(session.scalars(named.where(TaskInstance.pool.not_in(select(Pool.pool)))))
    if not missing:
        return ""
    todo = "; ".join(f"airflow pools set {name} 8 'agents at a time'" for name in missing)
    names = ", ".join(repr(name) for name in missing)
    return f"Tasks of this run name a pool that doesn't exist ({names}): under a scheduler they wait for ever. Create it: {todo}"


class MissingPools:
    """A listener: the scheduler calls it at a run's start, ``airflow dags test`` (which needs no pool) at its end."""

    @hookimpl
    def on_dag_run_running(self, dag_run: DagRun, msg: str) -> None:
        """A run begins: a missing pool is told in the log, and in the run's note, which the UI shows."""
        if said := missing_pools(dag_run):
            log.error("%s %s: %s", dag_run.dag_id, dag_run.run_id, said)
            if not dag_run.note:
                dag_run.note = said

    @hookimpl
    def on_dag_run_success(self, dag_run: DagRun, msg: str) -> None:
        """A run is over although a pool is missing: no scheduler ran it."""
        if said := missing_pools(dag_run):
            log.warning("%s %s: %s", dag_run.dag_id, dag_run.run_id, said)


class PoolsPlugin(AirflowPlugin):
    """Registers the listener."""

    name = "factory_pools"
    listeners = [MissingPools()]  # noqa: RUF012  # an instance variable by Airflow's declaration
