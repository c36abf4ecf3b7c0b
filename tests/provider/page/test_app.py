"""Every route of the page asks Airflow who is there, and is closed where Airflow cannot be asked."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from airflow_provider_factory.page import access
from airflow_provider_factory.page.app import create_app
from airflow_provider_factory.page.snapshot import Snapshots
from factory_agents.kafka.windows import WindowStatus
from tests.support.waiting import wait_for

PATHS = ("/", "/pipelines/p", "/static/factory.css", "/openapi.json", "/docs", "/redoc")


@pytest.fixture
def snapshots() -> Snapshots:
    return Snapshots(lambda: ())


def test_there_is_no_route_without_a_guard(snapshots: Snapshots) -> None:
    app = create_app(snapshots)
    routes = {route.path for route in app.routes}  # type: ignore[attr-defined]
    assert routes == {"/", "/pipelines/{dag_id}", "/static/{name}"}
    assert all(route.dependant.dependencies for route in app.routes)  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", PATHS)
def test_nobody_is_let_in_where_airflows_security_does_not_load(path: str, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "airflow.api_fastapi.core_api.security", None)
    answer = TestClient(create_app(snapshots)).get(path)
    assert answer.status_code in (403, 404)
    assert "ledger" not in answer.text


@pytest.mark.parametrize("path", PATHS)
def test_whoever_is_not_signed_in_gets_401(path: str, snapshots: Snapshots) -> None:
    assert TestClient(create_app(snapshots)).get(path).status_code in (401, 404)


def test_a_page_may_load_nothing_from_elsewhere_and_run_nothing_inline(snapshots: Snapshots) -> None:
    app = create_app(snapshots)
    headers = TestClient(app).get("/").headers
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
    assert "unsafe" not in headers["Content-Security-Policy"]


def test_names_are_inert_and_other_dags_are_closed() -> None:
    name = "<script>alert(1)</script>"
    snapshots = Snapshots(lambda: (WindowStatus(name, "<b>", "planned"),), every=0.01)
    wait_for(lambda: snapshots.current().taken_at, "figures")
    app = create_app(snapshots)
    for dependency in _dependencies(app):
        app.dependency_overrides[dependency] = (lambda: {name}) if dependency.__name__ == "readable" else (lambda: None)
    client = TestClient(app)
    page = client.get("/").text
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert "<b>" not in page.replace("<b>enrich", "")
    assert client.get("/pipelines/another").status_code == 403
    snapshots.close()


def _dependencies(app: FastAPI) -> set[Callable[..., Any]]:
    return {d.call for route in app.routes for d in route.dependant.dependencies}  # type: ignore[attr-defined]


def test_the_guard_is_airflows_own() -> None:
    assert "airflow.api_fastapi" in access.guard().__module__
