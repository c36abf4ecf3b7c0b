"""The page in a browser, in a frame as Airflow makes it: by keyboard, in both themes, below a base URL, without serious findings of axe."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from airflow_provider_factory.page.letters import LetterPage
from airflow_provider_factory.page.snapshot import Live
from factory_agents.kafka.control import Member
from factory_agents.kafka.lag import LagTotal
from factory_agents.kafka.ledger import FailureRecord
from factory_agents.protocol import Counts, Shard
from factory_agents.runtime.dead_letters import group_letters
from tests.airflow.test_ui import _QUIET, CHROMIUM
from tests.provider.page.test_app import runs
from tests.support.pages import HOUR, START, OfHand, PerDagManager, dead, figures, hour, letter, live, plan, report, stage
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Frame, Page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]

SHOTS = os.environ.get("FACTORY_SCREENSHOTS")
OUTER = """<!doctype html><html lang="en" class="light"><head><base href="/air/"><title>Airflow</title></head><body>
<iframe title="Factory" src="factory/" sandbox="allow-scripts allow-same-origin allow-forms"
  style="border:0;width:100%;height:96vh"></iframe>
</body></html>"""
FOLLOWING = """<script>
const view = "/air/plugin/factory", frame = document.querySelector("iframe");
let known = null;
function rendered(path) {  // some time later, as a busy page's effects are
  setTimeout(() => {
    if (path === known) return;
    known = path;
    frame.contentWindow.location.replace(path);
  }, LATE);
}
frame.addEventListener("load", () => {
  const { pathname, search } = frame.contentWindow.location;
  if (pathname + search === known) return;
  known = pathname + search;
  history.replaceState(history.state, "", view + known);
  rendered(known);
});
addEventListener("popstate", () => rendered(location.pathname.slice(view.length) + location.search));
</script>"""
"""How Airflow from 3.3.2 on keeps its address and the frame's the same, ``LATE`` milliseconds after it hears of either."""


@contextmanager
def served(app: FastAPI, late: int = 0) -> Iterator[str]:
    """The app on loopback, below ``/air/factory``, and a page around it with the frame that Airflow makes."""
    outer = OUTER + FOLLOWING.replace("LATE", str(late))
    around = FastAPI()
    around.mount("/air/factory", app)
    around.get("/{path:path}")(lambda path: HTMLResponse(outer))
    server = uvicorn.Server(uvicorn.Config(around, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started, "the server")
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


def accessible(frame: Frame) -> None:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(frame).response["violations"]  # type: ignore[arg-type]
    serious = [(v["id"], [n["html"][:200] for n in v["nodes"]][:3]) for v in found if v["impact"] in ("serious", "critical")]
    assert serious == []


def in_both_themes(page: Page, frame: Frame, name: str) -> None:
    for theme in ("dark", "light"):
        page.evaluate(f"document.documentElement.className = '{theme}'")
        frame.locator(f"html{'.dark' if theme == 'dark' else ':not(.dark)'}").wait_for(state="attached")
        accessible(frame)
        if SHOTS:
            page.screenshot(path=Path(SHOTS) / f"factory-page-{name}-{theme}.png")


def press(page: Page, frame: Frame, name: str) -> None:
    frame.get_by_role("button", name=name).focus()
    page.keyboard.press("Enter")


def shown(dag_id: str, first: int) -> tuple[Any, LetterPage]:
    """Four hours of which one is missing and the last has failed, and the letters of that one."""
    broken = FailureRecord(
        dag_id, "validate", hour(first + 3).key, Shard(), 2**41, 2**41, "ValidationFailedError", "rejected 25 % is over 10 %"
    )
    records = [r for n in (0, 2, 3) for r in (plan(dag_id, first + n), dead(dag_id, first + n))]
    validated = [
        stage(dag_id, first + n, "validate", counts=Counts(consumed=97, forwarded=97, produced=97), report=report()) for n in (0, 2)
    ]
    seen = [letter(b'{"order": %d, "price": -5}' % n, n, pipeline=dag_id, window=hour(first + 3).key) for n in (1, 2)]
    page = LetterPage("ready", tuple(seen), tuple(group_letters(s.letter for s in seen)), 2, 2, 2, taken_at=START)
    return figures(*records, *validated, broken), page


@contextmanager
def browsing(url: str, token: str) -> Iterator[Page]:
    """A browser that is signed in, at the page."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=_QUIET)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(60_000)
        page.context.add_cookies([{"name": "_token", "value": token, "url": url}])
        page.goto(f"{url}/air/plugin/factory")
        yield page
        browser.close()


def test_clicks_that_are_faster_than_airflows_address_lead_where_they_should(
    page_of: Callable[..., OfHand], users: PerDagManager, hourly: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_factory.page.app.ADDRESS_FOLLOWS_FRAMES", True)  # whichever Airflow is installed
    figures_shown, letters_shown = shown(hourly, (datetime.now(UTC) - START) // HOUR - 3)
    of_hand = page_of(figures_shown, letters_shown)
    with served(of_hand.app, late=1000) as url, browsing(url, users.token(f"editor-of-{hourly}")) as page:
        frame = page.frames[1]
        visited: list[str] = []
        page.on("framenavigated", lambda found: visited.append(found.url.partition("/pipelines/")[2]) if found == frame else None)
        frame.get_by_role("link", name=hourly, exact=True).click()
        frame.get_by_role("heading", name="Calendar").wait_for()
        frame.get_by_role("row").filter(has_text="failed").get_by_role("link").click()
        frame.get_by_role("link", name="dead letters of enrich").click()
        frame.get_by_role("textbox", name="Text").fill("price")
        frame.get_by_role("button", name="Filter", exact=True).click()
        frame.get_by_role("link", name="0@1").click()
        frame.get_by_role("heading", name="Value").wait_for()
        page.wait_for_url("**/air/plugin/factory/air/factory/pipelines/*/letters/0/1?topic=out.dead")
        with page.expect_event("framenavigated", lambda found: found == frame):
            page.go_back()
        page.wait_for_url("**text=price**")
        kinds = [path.partition("?")[0].partition("/")[2] for path in visited]
        assert kinds == ["", "window", "letters", "letters", "letters/0/1", "letters"]


def test_figures_are_refreshed_beside_what_is_read_and_say_how_old_they_are_where_they_are_not(
    page_of: Callable[..., OfHand], users: PerDagManager, hourly: str
) -> None:
    now = datetime.now(UTC)
    figures_shown, letters_shown = shown(hourly, (now - START) // HOUR - 3)
    trend = tuple((now.timestamp() - 60 * n, 7 * n) for n in range(3, 0, -1))
    lagging = replace(figures_shown, lags=(LagTotal(hourly, "raw", 1, 7, 7, 0),), trends={f"{hourly} raw": trend})
    of_hand = page_of(lagging, letters_shown)
    with served(of_hand.app) as url, browsing(url, users.token(f"editor-of-{hourly}")) as page:
        page.clock.install()
        page.goto(f"{url}/air/plugin/factory")
        frame = page.frames[1]
        frame.get_by_role("link", name=hourly, exact=True).click()
        chart = frame.get_by_role("slider", name="moment")
        chart.focus()
        frame.get_by_text("7 records", exact=False).last.wait_for()
        page.keyboard.press("ArrowLeft")
        frame.get_by_text("UTC: 14 records").wait_for()
        box = chart.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 1, box["y"] + 5)
        frame.get_by_text("UTC: 21 records").wait_for()
        assert "21 records" in (chart.get_attribute("aria-valuetext") or "")

        def ahead(behind: int) -> None:
            of_hand.figures = replace(lagging, lags=(LagTotal(hourly, "raw", 1, behind, behind, 0),))
            wait_for(lambda: of_hand.snapshots.current().figures is of_hand.figures, "the figures")
            page.clock.run_for(6000)

        frame.get_by_text("Behind the last planned window: 7").click()  # which puts the focus there
        ahead(8)
        frame.get_by_text("Behind the last planned window: 8").wait_for()
        frame.locator("input[name=start]").first.check()
        ahead(9)
        frame.get_by_text("refreshed once nothing is chosen").wait_for()
        assert frame.get_by_text("Behind the last planned window: 8").count() == 1
        frame.locator("input[name=start]").first.uncheck()
        frame.get_by_role("link", name="Open the DAG").focus()
        page.clock.run_for(6000)
        frame.get_by_text("Behind the last planned window: 9").wait_for()
        assert frame.evaluate("document.activeElement.textContent") == "Open the DAG"
        page.context.clear_cookies()
        page.clock.run_for(6000)
        frame.get_by_role("status").filter(has_text="sign in again").wait_for()
        frame.get_by_text("Shown as of").wait_for()


def test_from_a_failed_window_to_its_records_and_a_missing_one_to_its_backfill(
    page_of: Callable[..., OfHand], users: PerDagManager, hourly: str
) -> None:
    first = (datetime.now(UTC) - START) // HOUR - 3  # the last hour is not over yet: no other becomes missing meanwhile
    figures_shown, letters_shown = shown(hourly, first)
    handover = live(moved=2, held=1, members=[Member("g", "v1", "m1", at=time.time()), Member("g", "v2", "m2", breakers={"geo": "open"})])
    of_hand = page_of(replace(figures_shown, live=Live((handover,))), letters_shown)
    with served(of_hand.app) as url, browsing(url, users.token(f"editor-of-{hourly}")) as page:
        asked: list[str] = []
        faults: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.reload()
        frame = page.frames[1]
        frame.get_by_role("link", name=hourly, exact=True).wait_for()
        in_both_themes(page, frame, "overview")
        frame.get_by_role("link", name="Live agents").click()
        frame.get_by_role("cell", name="v2 holds 1 of 4 partitions").wait_for()
        in_both_themes(page, frame, "live")
        frame.get_by_role("link", name=handover.name).focus()
        page.keyboard.press("Enter")
        frame.get_by_role("cell", name="geo: open").wait_for()
        in_both_themes(page, frame, "live-group")
        frame.get_by_role("link", name="Factory", exact=True).click()
        frame.get_by_role("link", name=hourly, exact=True).focus()
        page.keyboard.press("Enter")

        missing = frame.locator("input[name=start]")
        missing.first.wait_for()
        assert missing.count() == 1
        in_both_themes(page, frame, "calendar")
        press(page, frame, "Show what a backfill would run")
        frame.get_by_text("Select missing windows first").wait_for()
        missing.first.focus()
        page.keyboard.press("Space")
        press(page, frame, "Show what a backfill would run")
        frame.get_by_text("A backfill would run 1 interval").wait_for()
        press(page, frame, "Run this backfill")
        frame.get_by_text("has begun").wait_for()
        assert [(run.data_interval_start - START) // HOUR for run in runs(hourly)] == [first + 1]

        frame.get_by_role("link", name="Preview").focus()
        page.keyboard.press("Enter")
        frame.get_by_role("textbox", name="Contract").fill("contracts/<i>orders.yaml")
        page.keyboard.press("Enter")
        frame.get_by_text("Preview has begun").wait_for()
        in_both_themes(page, frame, "preview")
        press(page, frame, "Preview the stage")
        frame.get_by_text("Preview has begun").wait_for()
        wait_for(lambda: len([run for run in runs("factory_preview") if run.conf["pipeline"] == hourly]) == 2, "the second preview")
        tried = [run.conf for run in runs("factory_preview") if run.conf["pipeline"] == hourly]
        assert sorted((conf["count"], conf.get("stage", "")) for conf in tried) == [(100, "enrich"), (1000, "")]
        frame.get_by_role("link", name=hourly, exact=True).click()

        frame.get_by_role("row").filter(has_text="failed").get_by_role("link").click()
        frame.get_by_text("ValidationFailedError: rejected 25 % is over 10 %").wait_for()
        frame.get_by_text("100 = 97 forwarded + 3 rejected").wait_for()
        in_both_themes(page, frame, "window")
        frame.get_by_role("link", name="dead letters of enrich").click()
        frame.get_by_role("cell", name="price < 0").first.wait_for()
        in_both_themes(page, frame, "letters")
        frame.get_by_role("checkbox", name="Select letter 0@2").focus()
        page.keyboard.press("Space")
        press(page, frame, "Replay the selected letters")
        frame.get_by_text("Replay has begun").wait_for()
        frame.get_by_role("link", name="0@1").click()
        frame.get_by_role("heading", name="Value").wait_for()
        frame.get_by_text('"price": -5').wait_for()
        in_both_themes(page, frame, "letter")
        press(page, frame, "Replay this letter")
        frame.get_by_text("Replay has begun").wait_for()
        asked_for = [run.conf["positions"] for run in runs("factory_replay") if run.conf["pipeline"] == hourly]
        assert sorted(asked_for) == [["0@1"], ["0@2"]]
        frame.get_by_role("link", name="run manual").click()
        page.wait_for_url("**/air/dags/factory_replay/runs/**")
        assert [address for address in asked if not address.startswith((url, "data:"))] == []
        assert faults == []
