"""The web UI as people use it, in a browser without a window: sign in, trigger with the form, backfill, clear, read a log."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from airflow_provider_factory.version_compat import AIRFLOW_V_3_3_PLUS
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.topics import Cluster
from tests.support.airflow_components import RunningAirflow
from tests.support.topics import create_topic
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PIPELINE = "software_factory_pipeline"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]

_QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def page(airflow_running: RunningAirflow) -> Iterator[Page]:
    """A browser that is signed in."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=_QUIET)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(120_000)
        page.goto(airflow_running.components.url)
        page.locator("input[name=username]").fill("admin")
        page.locator("input[type=password]").fill(airflow_running.components.password)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("link", name="Dags").first.wait_for()
        yield page
        browser.close()


@pytest.fixture(scope="module")
def pipeline(airflow_running: RunningAirflow, bootstrap: str) -> str:
    """The repository's own pipeline, with its topics."""
    cluster = Cluster(KafkaConfig(bootstrap))
    for topic in ("raw_events", "enriched_events", "validated_events"):
        for name in (topic, f"{topic}.dead"):
            cluster.create(name, 4, settings={"message.timestamp.type": "LogAppendTime"})
    wait_for(lambda: airflow_running.knows(PIPELINE), "the pipeline to be parsed", 120)
    return PIPELINE


def set_time(page: Page, field: Locator, date: str, time: str) -> None:
    """Fill one of the UI's date fields; in Airflow 3.2 they are the browser's own."""
    if not AIRFLOW_V_3_3_PLUS:
        field.fill(f"{date.replace('/', '-')}T{time}")
        return
    field.click()
    popover = page.locator("[data-scope=popover][data-part=content]:visible")
    popover.get_by_placeholder("YYYY/MM/DD").fill(date)
    popover.get_by_placeholder("HH:mm").fill(time)
    popover.get_by_placeholder("HH:mm").press("Enter")
    page.keyboard.press("Escape")
    popover.wait_for(state="hidden")


def open_dialog(page: Page, airflow: RunningAirflow, dag_id: str) -> Locator:
    page.goto(f"{airflow.components.url}/dags/{dag_id}")
    page.get_by_role("button", name="Trigger").first.click()
    dialog = page.get_by_role("dialog").filter(has_text="Single Run")
    dialog.get_by_text("Run Parameters").wait_for()
    return dialog


def run_of(airflow: RunningAirflow, dag_id: str, interval_start: str) -> str:
    """The id of the run of an interval, once it is there."""

    def found() -> list[str]:
        return [r["dag_run_id"] for r in airflow.runs(dag_id) if str(r["data_interval_start"]).startswith(interval_start)]

    wait_for(found, f"the run of {interval_start}", 120)
    return found()[0]


def test_a_run_is_triggered_with_the_form_then_a_task_of_it_is_cleared(
    page: Page, airflow_running: RunningAirflow, pipeline: str, tmp_path: Path
) -> None:
    dialog = open_dialog(page, airflow_running, pipeline)
    dialog.locator("#element_table").fill("by_form")
    set_time(page, dialog.get_by_test_id("datetime-input").first, "2018/06/05", "09:00")
    page.screenshot(path=tmp_path / "form.png")
    dialog.get_by_role("button", name="Trigger", exact=True).click()
    run = run_of(airflow_running, pipeline, "2018-06-05T08:00")
    airflow_running.wait_run(pipeline, run)
    landed = sorted(airflow_running.rows("SELECT event_id FROM by_form"))
    assert len(landed) > 100

    page.goto(f"{airflow_running.components.url}/dags/{pipeline}/runs/{run}/tasks/publish_results")
    page.get_by_role("button", name="Clear").first.click()
    page.get_by_role("button", name="Confirm").click()
    wait_for(lambda: airflow_running.task(pipeline, run, "publish_results")["try_number"] == 2, "the task to run again", 240)
    airflow_running.wait_run(pipeline, run)
    assert sorted(airflow_running.rows("SELECT event_id FROM by_form")) == landed
    page.goto(f"{airflow_running.components.url}/dags/{pipeline}/runs/{run}")
    page.get_by_text("publish_results").first.wait_for()
    page.screenshot(path=tmp_path / "run.png")


@pytest.mark.soak
def test_a_backfill_is_run_from_its_dialog(page: Page, airflow_running: RunningAirflow, pipeline: str, tmp_path: Path) -> None:
    dialog = open_dialog(page, airflow_running, pipeline)
    dialog.get_by_text("Run this Dag for a range of dates").click()
    for i in range(2):
        set_time(page, dialog.get_by_test_id("datetime-input").nth(i), "2018/05/31", "08:00")
    dialog.get_by_text("1 run will be triggered.").wait_for()
    dialog.locator("#element_table").fill("by_backfill")
    override = dialog.get_by_text("Override parameters on existing runs")
    if override.count():  # Airflow 3.3 takes the form's parameters only then
        override.click()
    page.screenshot(path=tmp_path / "backfill.png")
    dialog.get_by_role("button", name="Run Backfill").click()
    airflow_running.wait_run(pipeline, run_of(airflow_running, pipeline, "2018-05-31T08:00"))
    assert airflow_running.rows("SELECT 1 FROM by_backfill")


def test_the_log_of_a_failed_shard_says_what_was_wrong(
    page: Page, airflow_running: RunningAirflow, admin: AdminClient, bootstrap: str, tmp_path: Path
) -> None:
    topic = f"{airflow_running.topics}.broken"
    for name in (topic, f"{topic}.out", f"{topic}.out.dead"):
        create_topic(admin, name, 2)
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
    for partition, value in ((0, b'{"number": 4}'), (1, b'{"number": "four"}')):
        producer.produce(topic, value, partition=partition)
    assert producer.flush(60) == 0
    airflow_running.unpause("broken")
    run = airflow_running.trigger("broken")
    airflow_running.wait_run("broken", run, "failed")
    failed = next(ti for ti in airflow_running.tasks("broken", run) if ti["state"] == "failed")
    page.goto(f"{airflow_running.components.url}/dags/broken/runs/{run}/tasks/work/mapped/{failed['map_index']}")
    page.get_by_text("1 of 1 events rejected").first.wait_for()
    page.screenshot(path=tmp_path / "log.png")
