"""``make cluster-install``: every release pinned, in an order that works, with values that there are."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cluster_install import VALUES, commands, main, releases
from lint_deploy import CHARTS, Combination, breaches, render

from factory_agents.errors import ConfigurationError

ROOT = CHARTS.parents[1]
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


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a program in the place of helm or kubectl."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("FACTORY_HELM", str(tmp_path / "helm"))

    def put(name: str, script: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    return put


def test_a_failure_ends_it_and_says_how_to_go_on(programs: Callable[[str, str], None], capfd: pytest.CaptureFixture[str]) -> None:
    programs("helm", "exit 1")
    programs("kubectl", f"echo {' '.join(key for release in releases() for keys in release.secrets.values() for key in keys)}")
    assert main([]) == 1
    said = capfd.readouterr()
    assert said.err == "error: strimzi could not be installed; correct it and run this again, which goes on from here\n"
    assert len(said.out.splitlines()) == 1


def test_a_secret_that_is_missing_is_named_before_anything_is_installed(
    programs: Callable[[str, str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    programs("helm", "exit 1")
    programs("kubectl", "case $3 in grafana-admin) echo user ;; esac")
    assert main(["--only", "kube-prometheus-stack", "--only", "temporal"]) == 1
    said = capfd.readouterr()
    assert said.out == ""
    grafana, temporal = (line.split(": kubectl ") for line in said.err.splitlines())
    assert grafana == [
        "error: kube-prometheus-stack needs password in the Secret grafana-admin of the namespace monitoring",
        "create secret generic grafana-admin --namespace monitoring --from-literal=user=… --from-literal=password=…",
    ]
    assert temporal[0] == "error: temporal needs password in the Secret temporal-postgres of the namespace temporal"
    programs("kubectl", "echo 'connection refused' >&2; exit 1")
    with pytest.raises(ConfigurationError, match="kubectl could not ask the cluster: connection refused"):
        main(["--only", "temporal"])


def test_the_secrets_are_those_that_the_values_name() -> None:
    for release in releases():
        text = (VALUES / release.values).read_text()
        assert all(name in text for name in release.secrets), release
    named = {name for release in releases() for name in release.secrets}
    assert {"grafana-admin", "temporal-postgres", "airflow-metadata", "airflow-factory", "factory-agent"} == named


def test_airflows_release_fits_the_image() -> None:
    """What the official chart takes for granted is of the official image: its entry point, its auth manager, its programs."""
    values = yaml.safe_load((VALUES / "airflow.yaml").read_text())
    assert f"\napache-airflow=={values['airflowVersion']} " in (ROOT / "requirements/airflow.txt").read_text()
    module, _, name = values["config"]["core"]["auth_manager"].rpartition(".")
    assert hasattr(importlib.import_module(module), name)
    assert "apache-airflow-providers-fab" in (ROOT / "requirements/airflow.txt").read_text() or not values["createUserJob"]["enabled"]
    keys = {values[name] for name in ("apiSecretKeySecretName", "fernetKeySecretName", "jwtSecretName")}
    assert keys == {"airflow-metadata"}  # the chart would make others with each upgrade, which restarts its scheduler
    assert values["migrateDatabaseJob"]["useHelmHooks"] is False  # `helm --wait` runs hooks after what waits for the migration is ready


def test_the_images_entry_point_runs_commands_as_the_official_one_does(tmp_path: Path) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text().partition("AS airflow\n")[2]
    (made,) = re.findall(r"(printf .* >)/entrypoint", dockerfile)
    entrypoint = tmp_path / "entrypoint"
    subprocess.run(["sh", "-c", f"{made}{entrypoint}"], check=True)
    entrypoint.chmod(0o755)
    (tmp_path / "airflow").write_text("#!/bin/sh\necho airflow $*\n")
    (tmp_path / "airflow").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    for given, said in {"scheduler": "scheduler", "bash -c 'exec airflow db migrate'": "db migrate", "airflow jobs": "jobs"}.items():
        done = subprocess.run([entrypoint, *shlex.split(given)], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == f"airflow {said}\n"


@pytest.mark.skipif(HELM is None, reason="Helm is not installed (FACTORY_HELM)")
@pytest.mark.parametrize("chart", ["factory", "kafka"])
def test_our_charts_take_these_values(chart: str) -> None:
    assert list(breaches(render(Combination(CHARTS / chart, VALUES / f"{chart}.yaml")))) == []
