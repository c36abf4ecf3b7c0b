"""Who may see and do what: every route asks Airflow's auth manager, and is closed where it cannot be asked."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

__all__ = [
    "ACTION_HEADER",
    "PREVIEW_DAG",
    "REPLAY_DAG",
    "action",
    "cluster_reader",
    "guard",
    "may_act",
    "readable_dags",
    "reader",
    "user_name",
]

log = logging.getLogger(__name__)

ACTION_HEADER = "X-Factory-Action"
"""What every action's request carries: a form on another site cannot set it."""

REPLAY_DAG = "factory_replay"
PREVIEW_DAG = "factory_preview"


def _closed() -> None:
    raise HTTPException(status_code=403, detail="Airflow's security could not be loaded, so nobody is let in; see the API server's log")


def _or_closed(make: Callable[[], Callable[..., Any]]) -> Callable[[], Callable[..., Any]]:
    """Where Airflow's security can't be loaded, for whatever reason, the dependency lets nobody in, and the log says why."""

    @functools.wraps(make)
    def made() -> Callable[..., Any]:
        try:
            return make()
        except Exception:
            log.exception("the Factory page is closed: Airflow's security could not be loaded")
            return _closed

    return made


@_or_closed
def guard() -> Callable[..., Any]:
    """The dependency of the whole app: a signed-in user who may see plugins (else 401, 403)."""
    from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
    from airflow.api_fastapi.core_api.security import requires_access_view

    return requires_access_view(AccessView.PLUGINS)


@_or_closed
def readable_dags() -> Callable[..., Any]:
    """The dependency that gives the ids of the DAGs whose runs the user may read."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.core_api.security import GetUserDep

    def readable(user: GetUserDep) -> set[str]:
        return get_auth_manager().get_authorized_dag_ids(user=user, method="GET")

    # FastAPI resolves annotations by the function's module, which must not import Airflow's security for this.
    readable.__annotations__ = {"user": GetUserDep, "return": set[str]}
    return readable


@_or_closed
def reader() -> Callable[..., Any]:
    """The dependency of pages about one DAG: a user who may read its runs."""
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
    from airflow.api_fastapi.core_api.security import requires_access_dag

    return requires_access_dag("GET", DagAccessEntity.RUN)


@_or_closed
def cluster_reader() -> Callable[..., Any]:
    """The dependency of pages about what belongs to no DAG: a user who may see the cluster's activity, as on Airflow's own first page."""
    from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
    from airflow.api_fastapi.core_api.security import requires_access_view

    return requires_access_view(AccessView.CLUSTER_ACTIVITY)


@_or_closed
def may_act() -> Callable[..., Any]:
    """The dependency that says whether the user may edit the DAG and start runs of it: what is offered, not what is let through."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
    from airflow.api_fastapi.core_api.security import GetUserDep

    def allowed(dag_id: str, user: GetUserDep) -> bool:
        manager, dag = get_auth_manager(), DagDetails(id=dag_id)
        return manager.is_authorized_dag(method="PUT", details=dag, user=user) and manager.is_authorized_dag(
            method="POST", access_entity=DagAccessEntity.RUN, details=dag, user=user
        )

    allowed.__annotations__ = {"dag_id": str, "user": GetUserDep, "return": bool}
    return allowed


@_or_closed
def user_name() -> Callable[..., Any]:
    """The dependency that gives the user's name, for the runs that they start."""
    from airflow.api_fastapi.core_api.security import GetUserDep

    def name(user: GetUserDep) -> str:
        return str(user.get_name())

    name.__annotations__ = {"user": GetUserDep, "return": str}
    return name


def action(event: str, body: type[BaseModel], *more: tuple[str, str]) -> Sequence[Any]:
    """The dependencies of a route that does something: from the page itself, by an editor of the DAG, into the audit log as ``event``.

    Its request holds ``body`` and nothing else. ``more`` are further DAGs, each with a method, whose runs the user must be allowed to
    touch so.
    """
    try:
        from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
        from airflow.api_fastapi.core_api.security import requires_access_dag
        from airflow.api_fastapi.logging.decorators import action_logging
    except Exception:
        return [Depends(_closed)]
    others = [Depends(requires_access_dag(method, DagAccessEntity.RUN, param_dag_id=dag_id)) for dag_id, method in more]  # type: ignore[arg-type]
    return [
        Depends(requires_access_dag("PUT")),
        Depends(requires_access_dag("POST", DagAccessEntity.RUN)),
        *others,
        Depends(_from_the_page),
        Depends(_nothing_but(body)),
        Depends(action_logging(event)),
    ]


def _from_the_page(request: Request) -> None:
    """Refuse what another site made a browser send (the session's cookie would come along)."""
    if request.headers.get(ACTION_HEADER) != "1":
        raise HTTPException(403, f"expected the header {ACTION_HEADER}: 1, which the page's own requests carry")
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if site not in (None, "same-origin") or (site is None and (origin is None or not _is_ours(origin, request))):
        raise HTTPException(403, "expected a request from the page itself; another site sent it")


def _nothing_but(body: type[BaseModel]) -> Callable[..., Any]:
    """Refuse other fields before the audit log sees them: it would take a ``dag_id`` or ``run_id`` among them for the one that is meant."""

    async def checked(request: Request) -> None:
        if request.query_params:
            raise HTTPException(422, "expected an address without a query")
        try:
            body.model_validate_json(await request.body())
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from error

    return checked


def _is_ours(origin: str, request: Request) -> bool:
    """Whether an origin is where Airflow is: by its own address, or by the one that the browser asked."""
    from airflow.configuration import conf

    base = urlsplit(str(conf.get("api", "base_url", fallback="") or ""))
    return urlsplit(origin).netloc in {base.netloc, request.headers.get("Host", "")} - {""}
