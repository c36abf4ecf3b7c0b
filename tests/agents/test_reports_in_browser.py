"""The report's page in Chromium: few and very many failures, both themes, narrow and wide; nothing from an event runs or leads anywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from factory_agents.reports import WindowReport, html_page
from tests.agents.test_reports import HOSTILE, report, shown, window
from tests.airflow.test_ui import _QUIET, CHROMIUM

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]

SHOTS = os.environ.get("FACTORY_SCREENSHOTS")
ANY_HANDLER = "[...document.querySelectorAll('*')].some(e => [...e.attributes].some(a => a.name.startsWith('on')))"
EVIL = (
    HOSTILE,
    "<script>fetch('http://127.0.0.1:9/')</script>",
    "<svg/onload=alert(1)>",
    "</style><style>body{background:url(http://127.0.0.1:9/)}</style>",
    "</title></head><body onload=alert(1)>",
    '"><iframe srcdoc="<script>alert(1)</script>">',
    "javascript:alert(1)//",
    "\u202egnp.exe " + "x" * 500,
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "{{constructor.constructor('alert(1)')()}}",
)


def hostile() -> WindowReport:
    """Everything that somebody else names is hostile: reasons, rules, topics, the contract, the window's names."""
    found: dict[str, Any] = report(valid=3, rejected=0)
    samples = [{"topic": evil, "partition": 0, "offset": n, "rules": [evil], "reason": evil} for n, evil in enumerate(EVIL)]
    found |= {"rejected": len(EVIL), "rows": 3 + len(EVIL), "samples": samples, "rules": dict.fromkeys(EVIL, 1)}
    found["contract"] |= {"name": HOSTILE, "version": EVIL[3]}
    found["not_run"] = list(EVIL)
    return WindowReport(EVIL[1], EVIL[2], window(4), 4, found)


PAGES = {
    "none": (shown(valid=50, rejected=0), [shown(n, valid=40 + n, rejected=0) for n in range(3)]),
    "one": (shown(valid=49, rejected=1), [shown(n, valid=40, rejected=n) for n in range(3)]),
    "ten thousand": (shown(valid=90_000, rejected=10_000), [shown(n, valid=900, rejected=n) for n in range(23) if n != 4]),
    "hostile": (hostile(), [hostile()]),
}


def test_it_is_readable_and_obeys_nothing(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    from axe_playwright_python.sync_playwright import Axe

    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=_QUIET)
        for name, (own, earlier) in PAGES.items():
            file = tmp_path / f"{name}.html"
            file.write_text(html_page(own, earlier), encoding="utf-8")
            for theme in ("light", "dark"):
                context = browser.new_context(color_scheme=theme, viewport={"width": 1280, "height": 900})
                page = context.new_page()
                asked: list[str] = []
                happened: list[str] = []
                page.on("request", lambda request, asked=asked: asked.append(request.url))
                page.on("dialog", lambda dialog, happened=happened: (happened.append(dialog.message), dialog.dismiss()))
                page.on("pageerror", lambda error, happened=happened: happened.append(str(error)))
                page.goto(file.as_uri())
                for width in (1280, 360):
                    page.set_viewport_size({"width": width, "height": 900})
                    assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
                    if SHOTS:
                        page.screenshot(path=Path(SHOTS) / f"report-{name.replace(' ', '-')}-{theme}-{width}.png", full_page=True)
                found = Axe().run(page).response["violations"]
                assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
                assert (asked, happened) == ([file.as_uri()], [])
                tags = set(page.evaluate("[...document.querySelectorAll('*')].map(e => e.tagName.toLowerCase())"))
                assert not tags & {"script", "img", "iframe", "a", "link", "object", "form"}
                assert not page.evaluate(ANY_HANDLER)
                assert page.locator("h1").inner_text()
                context.close()
        browser.close()
