"""Puts the Factory page into Airflow's navigation."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from airflow_provider_factory.plugins import serves_pages

__all__ = ["FactoryPagePlugin"]


def _apps() -> list[dict[str, Any]]:
    """The app where pages are served, nothing in other processes: they only want the plugin's name."""
    if not serves_pages():
        return []
    from airflow_provider_factory.page.app import create_app

    return [{"app": create_app(), "url_prefix": "/factory", "name": "Factory"}]


# Addresses are relative, so any base URL will do; and Airflow puts the encoded ids in. It shows the tabs on every DAG.
_PIPELINE = "factory/pipelines/{DAG_ID}"
_RUN = f"{_PIPELINE}/runs/{{RUN_ID}}"
_VIEWS = [
    {"name": "Factory", "href": "factory/", "destination": "nav", "category": "browse", "url_route": "factory"},
    {"name": "Factory", "href": _PIPELINE, "destination": "dag", "url_route": "factory-windows"},
    {"name": "Factory", "href": _RUN, "destination": "dag_run", "url_route": "factory-window"},
    {
        "name": "Factory",
        "href": f"{_RUN}?task={{TASK_ID}}",
        "destination": "task_instance",
        "url_route": "factory-stage",
    },
]


class FactoryPagePlugin(AirflowPlugin):
    """A navigation entry, and tabs on DAGs, runs and their tasks, over an app of our own."""

    name = "factory_page"
    fastapi_apps = _apps()  # an instance variable by Airflow's declaration
    external_views = _VIEWS  # an instance variable by Airflow's declaration
