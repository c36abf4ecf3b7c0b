"""``make cluster-install``: every release pinned, in an order that works, with values that there are."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from cluster_install import VALUES, commands, main, releases
from lint_deploy import CHARTS, Combination, breaches, render

HELM = os.environ.get("FACTORY_HELM") or shutil.which("helm")


def test_every_release_is_pinned_or_ours_and_has_its_values() -> None:
    for release in releases():
        assert (CHARTS / release.chart).is_dir() != bool(re.fullmatch(r"\d+\.\d+\.\d+", release.version)), release
        assert yaml.safe_load((VALUES / release.values).read_text()), release
    assert {path.name for path in VALUES.glob("*.yaml")} == {release.values for release in releases()} | {"releases.yaml"}


def test_what_defines_a_kind_comes_before_what_uses_it() -> None:
    order = [release.name for release in releases()]
    for before, after in (("strimzi", "kafka"), ("kube-prometheus-stack", "factory"), ("kafka", "factory"), ("temporal", "factory")):
        assert order.index(before) < order.index(after)


def test_a_dry_run_shows_the_commands_and_runs_none(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("FACTORY_HELM", raising=False)
    assert main(["--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == sum(len(list(commands(release))) for release in releases())
    assert all(line.startswith(("helm upgrade --install ", "kubectl ")) for line in said)
    assert sum("--version" in line for line in said) == sum(bool(release.version) for release in releases())


def test_a_release_that_is_not_listed_is_refused() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--dry-run", "--only", "kafak"])
    assert ended.value.code == 2


def test_a_failure_ends_it_and_says_how_to_go_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    helm = tmp_path / "helm"
    helm.write_text("#!/bin/sh\nexit 1\n")
    helm.chmod(0o755)
    monkeypatch.setenv("FACTORY_HELM", str(helm))
    assert main([]) == 1
    said = capfd.readouterr()
    assert said.err == "error: strimzi could not be installed; correct it and run this again, which goes on from here\n"
    assert len(said.out.splitlines()) == 1


@pytest.mark.skipif(HELM is None, reason="Helm is not installed (FACTORY_HELM)")
@pytest.mark.parametrize("chart", ["factory", "kafka"])
def test_our_charts_take_these_values(chart: str) -> None:
    assert list(breaches(render(Combination(CHARTS / chart, VALUES / f"{chart}.yaml")))) == []
