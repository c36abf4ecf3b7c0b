"""Who may see what: every route asks Airflow's auth manager, and is closed where it cannot be asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import HTTPException

__all__ = ["guard", "readable_dags"]


def _closed() -> None:
    raise HTTPException(status_code=403, detail="Airflow's security could not be loaded, so nobody is let in; see the API server's log")


def guard() -> Callable[..., Any]:
    """The dependency of the whole app: a signed-in user who may see plugins (else 401, 403)."""
    try:
        from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
        from airflow.api_fastapi.core_api.security import requires_access_view
    except Exception:
        return _closed
    return requires_access_view(AccessView.PLUGINS)


def readable_dags() -> Callable[..., Any]:
    """The dependency that gives the ids of the DAGs whose runs the user may read."""
    try:
        from airflow.api_fastapi.app import get_auth_manager
        from airflow.api_fastapi.core_api.security import GetUserDep
    except Exception:
        return _closed

    def readable(user: GetUserDep) -> set[str]:
        return get_auth_manager().get_authorized_dag_ids(user=user, method="GET")

    # FastAPI resolves annotations by the function's module, which must not import Airflow's security for this.
    readable.__annotations__ = {"user": GetUserDep, "return": set[str]}
    return readable
