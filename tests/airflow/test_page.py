"""The Factory page inside a whole Airflow, in a browser: who may see it, what it shows of a run, in light and dark."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from tests.airflow.test_ui import CHROMIUM, PIPELINE, page, pipeline, pytestmark
from tests.support.airflow_components import RunningAirflow

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["CHROMIUM", "page", "pipeline", "pytestmark"]

SHOTS = os.environ.get("FACTORY_SCREENSHOTS")


def test_who_is_not_signed_in_sees_nothing(airflow_running: RunningAirflow) -> None:
    for path in ("", "pipelines/x", "static/factory.css"):
        assert httpx.get(f"{airflow_running.components.url}/factory/{path}").status_code == 401
    for path in ("openapi.json", "docs"):
        assert httpx.get(f"{airflow_running.components.url}/factory/{path}").status_code in (401, 404)


def test_it_shows_the_windows_of_a_run_and_follows_the_theme(airflow_running: RunningAirflow, page: Page, pipeline: str) -> None:
    airflow_running.unpause(pipeline)
    run = airflow_running.trigger(pipeline, logical_date="2018-07-01T09:00:00Z")
    airflow_running.wait_run(pipeline, run)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"{airflow_running.components.url}/plugin/factory")
    frame = page.frame_locator("iframe")
    frame.get_by_role("heading", name="Factory").wait_for()
    frame.get_by_role("link", name=PIPELINE, exact=True).click()
    row = frame.get_by_role("row").filter(has_text="2018-07-01 08:00")
    row.get_by_text("whole").wait_for()
    assert "publish_results" in row.inner_text()
    for theme in ("light", "dark"):
        page.evaluate(f"document.documentElement.className = '{theme}'")
        frame.locator(f"html{'.dark' if theme == 'dark' else ':not(.dark)'}").wait_for(state="attached")
        if SHOTS:
            page.screenshot(path=Path(SHOTS) / f"factory-page-{theme}.png")
    assert [url for url in requests if not url.startswith((airflow_running.components.url, "data:", "blob:"))] == []
    frame.get_by_text("Open the DAG").click()
    page.wait_for_url(f"**/dags/{PIPELINE}**")
