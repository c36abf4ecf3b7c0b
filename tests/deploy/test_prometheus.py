"""Alert and recording rules: valid, tested, explained, and about metrics that there are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from factory_agents.telemetry.metrics import FAMILIES
from tests.support.prometheus import AMTOOL, PROMTOOL

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/prometheus"
RULES: list[dict[str, Any]] = [rule for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (apt-get install prometheus)")


@pytest.mark.slow
@needs_promtool
@pytest.mark.parametrize(
    "what", [("check", "rules", "rules.yaml"), ("check", "config", "prometheus.yaml"), ("test", "rules", "rules_test.yaml")]
)
def test_promtool_is_content(what: tuple[str, ...]) -> None:
    done = subprocess.run([str(PROMTOOL), *what], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(AMTOOL is None, reason="amtool is not installed (apt-get install prometheus-alertmanager)")
def test_amtool_is_content() -> None:
    done = subprocess.run([str(AMTOOL), "check-config", "alertmanager.yaml"], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested_quiet_and_firing() -> None:
    tests = [case for of in yaml.safe_load((FOLDER / "rules_test.yaml").read_text())["tests"] for case in of.get("alert_rule_test", [])]
    firing = {case["alertname"] for case in tests if case["exp_alerts"]}
    assert firing == {alert["alert"] for alert in ALERTS}
    quiet = {case["alertname"] for case in tests if not case["exp_alerts"]}
    # of a share the quiet case is the pipeline that is left out of the alerts expected
    assert firing - quiet == {"FactoryRejectedShareHigh"}


def test_each_alert_has_its_section_in_the_runbooks_and_nothing_else_has() -> None:
    page = (ROOT / "docs/runbooks.md").read_text()
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == [alert["alert"] for alert in ALERTS]
    for alert in ALERTS:
        assert alert["annotations"]["runbook"] == f"docs/runbooks.md#{alert['alert'].lower()}"
        assert alert["labels"]["severity"] in ("page", "ticket")


def test_each_metric_in_the_rules_and_the_runbooks_is_told_by_somebody() -> None:
    told = {
        name for of in FAMILIES.values() for name in (of.name, *(f"{of.name}{end}" for end in ("_bucket", "_count", "_sum") if of.buckets))
    }
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    for rule in RULES:
        used = set(re.findall(r"\b(?:\w+:)?(?:agent|factory|kafka)_\w+(?::\w+)?", rule["expr"])) - {"agent_pipeline_stage"}
        assert used
        assert {name for name in used if ":" in name} <= recorded, rule
        assert {name for name in used if ":" not in name} <= told, rule
    page = (ROOT / "docs/runbooks.md").read_text()
    assert set(re.findall(r"\b(?:agent|factory|kafka)_\w+", page)) <= told


def test_names_of_recording_rules_say_level_metric_and_operation() -> None:
    for rule in RULES:
        if "record" in rule:
            assert re.fullmatch(r"[a-z_]+:[a-z_]+:[a-z0-9]+", rule["record"]), rule
