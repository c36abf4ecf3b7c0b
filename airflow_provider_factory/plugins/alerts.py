"""Lets Alertmanager post to Airflow's API server, below ``/factory-alerts``."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from airflow_provider_factory.plugins import serves_pages

__all__ = ["FactoryAlertsPlugin"]


def _apps() -> list[dict[str, Any]]:
    if not serves_pages():
        return []
    from airflow_provider_factory.alerts.receiver import create_receiver

    return [{"app": create_receiver(), "url_prefix": "/factory-alerts", "name": "Factory alerts"}]


class FactoryAlertsPlugin(AirflowPlugin):
    """An app of our own, closed until ``[factory] alerts_token`` is set."""

    name = "factory_alerts"
    fastapi_apps = _apps()  # an instance variable by Airflow's declaration
