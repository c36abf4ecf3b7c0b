"""The Factory page inside a whole Airflow, in a browser: from a failed window to its records and back, by mouse and by keyboard."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from tests.airflow.pipelines import START, Pipeline
from tests.airflow.test_ui import CHROMIUM, page, pytestmark
from tests.support.airflow_components import RunningAirflow
from tests.support.topics import create_topic
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Frame, Page

__all__ = ["CHROMIUM", "page", "pytestmark"]

SHOTS = os.environ.get("FACTORY_SCREENSHOTS")


@pytest.fixture
def only_here(page: Page, airflow_running: RunningAirflow) -> Iterator[None]:
    """No request of the frame may go to another host (Airflow 3.2 loads an editor of its own from one)."""
    asked: list[str] = []

    def note(request: Any) -> None:
        if request.is_navigation_request() or request.frame != page.main_frame:
            asked.append(request.url)

    page.on("request", note)
    yield
    page.remove_listener("request", note)
    assert [url for url in asked if not url.startswith((airflow_running.components.url, "data:", "blob:"))] == []


def opened(page: Page, airflow: RunningAirflow) -> Frame:
    """The page's frame within Airflow."""
    page.goto(f"{airflow.components.url}/plugin/factory")
    page.frame_locator("iframe").get_by_role("heading", name="Factory").wait_for()
    return next(f for f in page.frames if f.parent_frame is not None)


def accessible(frame: Frame) -> None:
    """Nothing serious for axe."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(frame).response["violations"]  # type: ignore[arg-type]
    serious = [(v["id"], [n["html"][:200] for n in v["nodes"]][:3]) for v in found if v["impact"] in ("serious", "critical")]
    assert serious == []


def shoot(page: Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"factory-page-{name}.png")


def in_both_themes(page: Page, frame: Frame, name: str) -> None:
    """As Airflow's own toggle sets them, while the page is open (axe looks at every page in both in a test of the page's own)."""
    for theme in ("dark", "light"):
        page.evaluate(f"document.documentElement.className = '{theme}'")
        frame.locator(f"html{'.dark' if theme == 'dark' else ':not(.dark)'}").wait_for(state="attached")
        shoot(page, f"{name}-{theme}")


def test_who_is_not_signed_in_sees_nothing(airflow_running: RunningAirflow) -> None:
    for path in ("", "pipelines/x", "pipelines/x/letters", "static/factory.css"):
        assert httpx.get(f"{airflow_running.components.url}/factory/{path}").status_code == 401
    assert httpx.post(f"{airflow_running.components.url}/factory/pipelines/x/replay", json={}).status_code == 401
    for path in ("openapi.json", "docs"):
        assert httpx.get(f"{airflow_running.components.url}/factory/{path}").status_code in (401, 404)


def test_from_a_failed_window_to_the_record_and_into_the_table(
    page: Page, airflow_running: RunningAirflow, admin: AdminClient, bootstrap: str, only_here: None
) -> None:
    topic = f"{airflow_running.topics}.priced"
    for name in (topic, f"{topic}.read", f"{topic}.read.dead", f"{topic}.valid", f"{topic}.valid.dead"):
        create_topic(admin, name, 1)
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
    for order, price in ((1, 10), (2, -5), (3, 7)):
        producer.produce(topic, json.dumps({"order": order, "price": price}).encode())
    assert producer.flush(60) == 0
    airflow_running.unpause("priced")
    airflow_running.unpause("factory_replay")
    airflow_running.unpause("factory_preview")
    failed = airflow_running.trigger("priced")
    airflow_running.wait_run("priced", failed, "failed")

    frame = opened(page, airflow_running)
    frame.get_by_role("link", name="priced", exact=True).click()
    frame.wait_for_url("**/pipelines/priced")  # the page before has a row of this window, too
    row = frame.get_by_role("row").filter(has_text="failed")
    row.get_by_role("link").click()
    frame.get_by_text("3 = 2 forwarded + 1 rejected").wait_for()
    frame.get_by_text("ValidationFailedError").first.wait_for()
    frame.get_by_role("heading", name="Validation: fail").wait_for()
    in_both_themes(page, frame, "window")
    accessible(frame)
    frame.get_by_role("link", name="dead letters of read_price").click()
    frame.get_by_role("cell", name="price < 0").first.wait_for()
    in_both_themes(page, frame, "letters")
    frame.get_by_role("link", name="0@0").click()
    frame.get_by_role("heading", name="Value").wait_for()
    frame.get_by_text('"price": -5').wait_for()
    in_both_themes(page, frame, "letter")

    button = frame.get_by_role("button", name="Replay this letter")  # by keyboard from here on
    button.focus()
    page.keyboard.press("Enter")
    frame.get_by_text("Replay has begun").wait_for()
    replays = airflow_running.runs("factory_replay")
    airflow_running.wait_run("factory_replay", replays[-1]["dag_run_id"])
    mended = airflow_running.trigger("priced", mended="yes", enough=1)

    frame.get_by_role("link", name="priced", exact=True).click()
    frame.get_by_role("link", name="Preview").click()
    frame.get_by_role("combobox", name="Stage, and what it reads").select_option(label=f"read_price on {topic}")
    frame.get_by_role("button", name="Preview the stage").focus()
    page.keyboard.press("Enter")
    frame.get_by_text("Preview has begun").wait_for()
    frame.locator("#results .sum", has_text="4 = 2 forwarded + 2 rejected").wait_for()
    in_both_themes(page, frame, "preview")

    airflow_running.wait_run("priced", mended)
    assert airflow_running.rows('SELECT "order", price FROM priced') == [(2, 5)]


def test_missing_windows_are_backfilled_from_the_calendar_and_dags_and_runs_have_a_tab(
    page: Page, airflow_running: RunningAirflow, admin: AdminClient, bootstrap: str, only_here: None
) -> None:
    Pipeline(airflow_running, admin, bootstrap, "from_calendar", seed=7, hours=6)
    airflow_running.unpause("from_calendar")
    for n in (0, 4):  # not as backfills: Airflow takes half a minute to call one completed, and refuses another before
        airflow_running.trigger("from_calendar", logical_date=(START + timedelta(hours=n + 1)).isoformat())
    airflow_running.wait_runs("from_calendar", 2)
    frame = opened(page, airflow_running)
    until = (START + timedelta(hours=6)).strftime("%Y-%m-%dT%H:%M:%SZ")
    frame.goto(f"{airflow_running.components.url}/factory/pipelines/from_calendar?until={until}")
    missing = frame.locator("input[name=start]")
    wait_for(lambda: missing.count() == 4, "the missing hours", 60)
    in_both_themes(page, frame, "calendar")
    for nth in (1, 2):  # the logical date of a run by hand for hour 0 is that of a backfill's for hour 1
        missing.nth(nth).focus()
        page.keyboard.press("Space")
    frame.get_by_role("button", name="Show what a backfill would run").focus()
    page.keyboard.press("Enter")
    frame.get_by_text("A backfill would run 2 intervals").wait_for()
    shoot(page, "backfill")
    frame.get_by_role("button", name="Run this backfill").focus()
    page.keyboard.press("Enter")
    frame.get_by_text("has begun").wait_for()
    airflow_running.wait_quiet("from_calendar")
    assert [run["data_interval_start"][11:13] for run in airflow_running.runs("from_calendar")] == ["00", "04", "02", "03"]
    frame.goto(f"{airflow_running.components.url}/factory/pipelines/from_calendar?until={until}")
    wait_for(lambda: frame.goto(frame.url) is not None and frame.locator(".cell.whole").count() == 4, "the windows to be whole", 60)
    assert frame.locator(".cell.missing").count() == 2
    frame.get_by_role("link", name="Open the DAG").click()
    page.wait_for_url("**/dags/from_calendar**")

    page.get_by_role("link", name="Factory", exact=True).last.click()  # the tab of the DAG, and those of its runs
    inner = page.frame_locator("iframe")
    inner.get_by_role("heading", name="from_calendar").wait_for()
    run_id = airflow_running.runs("from_calendar")[0]["dag_run_id"]
    page.goto(f"{airflow_running.components.url}/dags/from_calendar/runs/{quote(run_id)}")
    page.get_by_role("link", name="Factory", exact=True).last.click()
    inner.locator(".chip.whole").first.wait_for()
    shoot(page, "tab")
    page.goto(f"{airflow_running.components.url}/dags/factory_replay/plugin/factory-windows")
    inner.get_by_text("The ledger holds no windows of factory_replay").wait_for()
