"""Dashboards: as their source says, with everything that Grafana wants, about metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from factory_agents.telemetry.metrics import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "deploy/grafana").glob("*.json"))


def panels(page: Path) -> list[dict[str, Any]]:
    return list(json.loads(page.read_text())["panels"])


def asked(page: Path) -> dict[str, str]:
    """What panels and marks ask, by their titles."""
    marks = {mark["name"]: mark["expr"] for mark in json.loads(page.read_text())["annotations"]["list"]}
    return marks | {panel["title"]: panel["targets"][0]["expr"] for panel in panels(page)}


def test_they_are_what_their_source_makes() -> None:
    done = subprocess.run(
        [sys.executable, "deploy/grafana/dashboards.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_panels_are_whole(page: Path) -> None:
    ids, places = set(), set()
    for panel in panels(page):
        ids.add(panel["id"])
        places.add((panel["gridPos"]["x"], panel["gridPos"]["y"]))
        (target,) = panel["targets"]
        assert target["refId"]
        assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "${datasource}"
    assert len(ids) == len(places) == len(panels(page))
    assert len(asked(page)) == len(panels(page)) + len(json.loads(page.read_text())["annotations"]["list"]), "a title twice"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_panels_are_promql(page: Path) -> None:
    """By another parser than Prometheus' own; tests/integration/test_alerts.py asks a Prometheus that scraped a real run."""
    for title, expression in asked(page).items():
        chosen = re.sub(r"\$\w+", ".*", expression.replace("$__rate_interval", "1m"))
        assert promql_parser.parse(chosen) is not None, title


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_panels_ask_for_metrics_that_there_are(page: Path) -> None:
    rules = [rule for of in yaml.safe_load((ROOT / "deploy/prometheus/rules.yaml").read_text())["groups"] for rule in of["rules"]]
    told = {
        name for of in FAMILIES.values() for name in (of.name, *(f"{of.name}{end}" for end in ("_bucket", "_count", "_sum") if of.buckets))
    }
    told |= {rule["record"] for rule in rules if "record" in rule}
    for title, expression in asked(page).items():
        used = set(re.findall(r"\b(?:\w+:)?(?:agent|factory|kafka)_\w+(?::\w+)?", expression))
        assert used
        assert used <= told, title
