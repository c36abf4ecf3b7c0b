"""The two distributions stay one: one version, one locked set for each Airflow, nothing in it that ties it to a place."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import airflow_provider_factory
import factory_agents

ROOT = Path(__file__).resolve().parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"), key=lambda lock: lock.stem)


def _project(path: str) -> dict[str, object]:
    project = tomllib.loads((ROOT / path).read_text())["project"]
    assert isinstance(project, dict)
    return project


def test_both_distributions_have_one_version() -> None:
    provider = _project("pyproject.toml")
    version = provider["version"]
    assert {factory_agents.__version__, airflow_provider_factory.__version__} == {version}
    pins = re.findall(r"factory-agents\S*==([\d.]+)", (ROOT / "pyproject.toml").read_text())
    assert pins
    assert set(pins) == {version}


def test_there_is_a_lock_for_each_environment() -> None:
    assert {"agent", "airflow", "airflow-newest", "airflow-oldest", "benchmarks", "tools"} <= {lock.stem for lock in LOCKS}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_pins_and_hashes_everything(lock: Path) -> None:
    requirements = [part for part in lock.read_text().replace("\\\n", " ").splitlines() if not part.startswith("#")]
    assert requirements
    assert [line for line in requirements if "==" not in line or "--hash=sha256:" not in line] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_names_no_host_and_no_place(lock: Path) -> None:
    assert not re.search(r"://|--(extra-)?index|--find-links|^-e|^\.|^/| @ ", lock.read_text(), re.MULTILINE)


def test_the_tools_are_those_of_the_newest_lock() -> None:
    uv = {lock.stem: set(re.findall(r"^uv==\S+", lock.read_text(), re.MULTILINE)) for lock in LOCKS}
    assert uv["tools"] == uv["airflow-newest"]
    assert uv["tools"]
