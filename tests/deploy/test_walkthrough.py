"""scripts/walkthrough.sh beside programs that only note what they are asked: the steps, their order, and what it says of a failure.

What the steps come to is tested on a real cluster: tests/kubernetes/test_chart.py.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from lint_deploy import CHARTS, Combination, breaches, invalid, render

from tests.support.helm import HELM

ROOT = Path(__file__).resolve().parents[2]
KIND = ROOT / "deploy" / "kind"

ANSWERS = """#!/bin/sh
echo "$(basename "$0") $*" >>"$ASKED"
case "$(basename "$0") $*" in
  "kind get clusters") echo "$CLUSTERS" ;;
  *jsonpath=*) echo broker-0 ;;
  *create\\ *--dry-run=client*) echo "kind: Namespace" ;;
  *"apply --filename -") cat >/dev/null ;;
  *console-producer*) cat >"$ASKED.event" ;;
  *console-consumer*) sed 's/}/,"enriched":true}/' "$ASKED.event"; [ -z "$TWICE" ] || sed 's/}/,"enriched":true}/' "$ASKED.event"; exit 1 ;;
esac
"""


class Walk:
    """The script beside such programs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("kind", "docker", "kubectl", "helm"):
            (folder / name).write_text(ANSWERS)
            (folder / name).chmod(0o755)

    def run(self, *arguments: str, clusters: str = "", twice: str = "") -> tuple[int, str, list[str]]:
        """Exit status, what was said, what was asked of the programs."""
        asked = self._folder / "asked"
        asked.unlink(missing_ok=True)
        environment = {"PATH": f"{self._folder}:/usr/bin:/bin", "ASKED": str(asked), "CLUSTERS": clusters, "TWICE": twice}
        done = subprocess.run([ROOT / "scripts/walkthrough.sh", *arguments], env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr, asked.read_text().splitlines() if asked.exists() else []


@pytest.fixture
def walk(tmp_path: Path) -> Walk:
    return Walk(tmp_path)


def test_it_goes_through_the_steps_in_an_order_that_works(walk: Walk) -> None:
    code, said, asked = walk.run()
    assert code == 0, said
    order = ["kind create", "strimzi", "deploy/helm/kafka", "docker build", "deploy/kind/temporal.yaml", "kube-prometheus-stack", "loki"]
    order += ["deploy/helm/factory", "console-producer", "console-consumer", "workflow result"]
    places = [next(i for i, line in enumerate(asked) if what in line) for what in order]
    assert places == sorted(places)
    assert [line for line in asked if line.startswith("helm") and "--wait" not in line] == []
    assert said.rstrip().endswith(": completed")
    assert '"payload":"sample","enriched":true' in said


def test_a_second_time_makes_no_second_cluster(walk: Walk) -> None:
    code, said, asked = walk.run("--without-observability", clusters="factory")
    assert code == 0, said
    assert not [line for line in asked if "kind create" in line or "monitoring" in line.partition("--set")[0]]


def test_an_event_that_came_out_twice_is_a_failure(walk: Walk) -> None:
    code, said, _ = walk.run(twice="yes")
    assert code == 1
    assert "error: expected one enriched event" in said


def test_what_is_missing_or_mistyped_is_named(walk: Walk, tmp_path: Path) -> None:
    assert walk.run("--donw")[:2] == (2, "error: unknown argument --donw: --without-observability or --down\n")
    (tmp_path / "kind").unlink()
    assert walk.run()[:2] == (1, "error: kind is not installed\n")


def test_its_manifests_are_within_the_policies() -> None:
    documents = list(yaml.safe_load_all((KIND / "temporal.yaml").read_text()))
    assert list(breaches(documents)) == []
    assert [what for document in documents for what in invalid(document, {})] == []
    compose = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
    assert documents[1]["spec"]["template"]["spec"]["containers"][0]["image"] == compose["services"]["temporal"]["image"]


@pytest.mark.skipif(HELM is None, reason="Helm is not installed (FACTORY_HELM)")
@pytest.mark.parametrize("chart", ["factory", "kafka"])
def test_the_charts_take_its_values(chart: str) -> None:
    assert list(breaches(render(Combination(CHARTS / chart, KIND / f"{chart}.yaml")))) == []


def test_the_image_that_it_builds_is_the_one_that_runs() -> None:
    image = yaml.safe_load((KIND / "factory.yaml").read_text())["image"]
    assert f"--tag {image['repository']}:{image['tag']} " in (ROOT / "scripts/walkthrough.sh").read_text()
    assert os.access(ROOT / "scripts/walkthrough.sh", os.X_OK)
