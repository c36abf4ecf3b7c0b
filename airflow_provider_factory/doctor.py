"""Airflow's part of ``factory doctor``: metadata, connections, pool, components, DAG files. Looks only where an Airflow is configured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from factory_agents.doctor import Finding
from factory_agents.errors import FactoryError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["examine_airflow"]

_COMPONENTS = {"scheduler": "SchedulerJob", "triggerer": "TriggererJob", "DAG processor": "DagProcessorJob"}
_POOL = "software_factory"
_MOST = 3


def examine_airflow() -> list[Finding]:
    """Every finding of the Airflow that this environment names."""
    if not any(name == "AIRFLOW_HOME" or name.startswith("AIRFLOW__") for name in os.environ):
        todo = 'eval "$(factory sandbox env --airflow)", or run it where Airflow runs'
        return [Finding("Airflow", "skip", "no AIRFLOW_HOME is set here: not looked at", todo)]
    return list(_examine())


def _examine() -> Iterator[Finding]:
    from airflow import __version__ as airflow_version
    from airflow.utils.session import create_session
    from sqlalchemy.exc import SQLAlchemyError

    import airflow_provider_factory
    import factory_agents

    ours, theirs = airflow_provider_factory.__version__, factory_agents.__version__
    if ours == theirs:
        yield Finding("Airflow", "ok", f"Airflow {airflow_version}, airflow-provider-factory {ours}")
    else:
        text = f"airflow-provider-factory {ours} beside factory-agents {theirs}"
        yield Finding("Airflow", "fail", text, f"pip install factory-agents=={ours}: they are of one version")
    yield from _connections()
    try:
        with create_session() as session:
            yield from (_pool(session), _dags(session), *_components(session))
    except SQLAlchemyError as error:
        said = str(error).partition("\n")[0]
        yield Finding("Airflow's metadata", "fail", f"cannot be read: {said}", "airflow db migrate; check [database] sql_alchemy_conn")


def _connection(conn_id: str) -> Any:
    from airflow.models import Connection

    return Connection.get_connection_from_secrets(conn_id)


def _connections() -> Iterator[Finding]:
    from airflow.sdk.exceptions import AirflowNotFoundException

    from airflow_provider_factory.hooks.database import database_url
    from airflow_provider_factory.hooks.kafka import kafka_config
    from airflow_provider_factory.settings import option
    from factory_agents.databases.postgres import database_from_url
    from factory_agents.kafka.topics import Cluster

    for kind, conn_id, needed in (("kafka", option("kafka_conn_id"), True), ("postgres", option("database_conn_id"), False)):
        part = f"connection {conn_id}"
        try:
            connection = _connection(conn_id)
            if kind == "kafka":
                config = kafka_config(connection.extra_dejson, conn_id)
                with Cluster(config) as cluster:
                    cluster.brokers()
                where = config.bootstrap
            else:
                database = database_from_url(database_url(connection), part)
                database.connect("factory-doctor").close()
                where = database.address
        except AirflowNotFoundException:
            todo = f"airflow connections add {conn_id} --conn-type {kind} …, or AIRFLOW_CONN_{conn_id.upper()}"
            yield Finding(part, "fail" if needed else "warn", "there is none", todo)
        except FactoryError as error:
            yield Finding(part, "fail", str(error), f"airflow connections get {conn_id}, and correct it")
        else:
            yield Finding(part, "ok", where)


def _pool(session: Session) -> Finding:
    from airflow.models.pool import Pool
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import select

    waiting = select(TaskInstance.dag_id, TaskInstance.pool).where(TaskInstance.state == "scheduled")
    stuck = session.execute(waiting.where(TaskInstance.pool.not_in(select(Pool.pool))).limit(1)).first()
    if stuck is not None:
        todo = f"airflow pools set {stuck.pool} 8 'agents at a time'"
        return Finding("pool", "fail", f"tasks of {stuck.dag_id} wait for the pool {stuck.pool!r}, which doesn't exist", todo)
    there = set(session.scalars(select(Pool.pool)))
    for dag_id, name in _named_pools(session):
        if name not in there:
            text = f"DAG {dag_id} names the pool {name!r}, which doesn't exist: its tasks would wait for ever"
            return Finding("pool", "fail", text, f"airflow pools set {name} 8 'agents at a time'")
    pool = session.scalar(select(Pool).where(Pool.pool == _POOL))
    if pool is None:
        todo = f"airflow pools set {_POOL} 8 'agents at a time' (if your DAGs name it, as the examples do)"
        return Finding("pool", "warn", f"there is no pool {_POOL!r}", todo)
    return Finding("pool", "ok", f"{_POOL!r} has {pool.slots} slots")


def _named_pools(session: Session) -> Iterator[tuple[str, str]]:
    """The pools of every DAG's tasks, as the DAG processor has read them."""
    from airflow.models.dag import DagModel
    from airflow.models.serialized_dag import SerializedDagModel
    from sqlalchemy import select

    stale = set(session.scalars(select(DagModel.dag_id).where(DagModel.is_stale)))
    for dag_id, dag in sorted(SerializedDagModel.read_all_dags(session=session).items()):
        if dag_id not in stale:
            yield from ((dag_id, name) for name in sorted({task.pool for task in dag.tasks}))


def _dags(session: Session) -> Finding:
    from airflow.models.errors import ParseImportError
    from sqlalchemy import select

    errors = list(session.scalars(select(ParseImportError)))
    if errors:
        names = ", ".join(str(e.filename) for e in errors[:_MOST])
        last = (errors[0].stacktrace or "").strip().splitlines()[-1:]
        return Finding("DAG files", "fail", f"{len(errors)} cannot be read: {names}: {' '.join(last)}", "airflow dags list-import-errors")
    return Finding("DAG files", "ok", "no import errors")


def _components(session: Session) -> Iterator[Finding]:
    from airflow.jobs.job import most_recent_job

    for name, kind in _COMPONENTS.items():
        job = most_recent_job(kind, session=session)
        if job is not None and job.is_alive():
            yield Finding(name, "ok", f"alive, last heard of at {job.latest_heartbeat:%H:%M:%S} UTC")
        else:
            yield Finding(name, "warn", "none is running", f"make ui here, or airflow {name.lower().replace(' ', '-')}")
