"""What the provider tells Airflow is complete and true."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import airflow
import jsonschema
import pytest
from airflow.sdk.configuration import conf

import airflow_provider_factory
from airflow_provider_factory.get_provider_info import get_provider_info
from airflow_provider_factory.settings import option, option_seconds, retry_delay, runner
from factory_agents.errors import ConfigurationError

INFO = get_provider_info()


def test_it_keeps_airflows_schema() -> None:
    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
    jsonschema.validate(INFO, schema)


def modules(kind: str) -> set[str]:
    return {m for entry in INFO[kind] for m in entry["python-modules"]}


@pytest.mark.parametrize("kind", ["operators", "sensors", "triggers", "hooks"])
def test_every_module_of_its_kind_is_named(kind: str) -> None:
    package = importlib.import_module(f"airflow_provider_factory.{kind}")
    there = {f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__) if m.name != "base"}
    assert modules(kind) == there
    for module in there:
        importlib.import_module(module)


def resolve(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_every_class_it_names_is_there() -> None:
    names = [d["class-name"] for d in INFO["task-decorators"]] + INFO["extra-links"] + [p["plugin-class"] for p in INFO["plugins"]]
    for name in names:
        assert resolve(name)


def test_links_it_names_are_those_of_the_operators() -> None:
    from airflow_provider_factory.operators.validation import ValidationOperator

    assert {f"{type(link).__module__}.{type(link).__name__}" for link in ValidationOperator.operator_extra_links} == set(
        INFO["extra-links"]
    )


@pytest.mark.parametrize("name", INFO["config"]["factory"]["options"])
def test_every_option_is_documented_and_read_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    described = INFO["config"]["factory"]["options"][name]
    assert {"description", "version_added", "type", "example", "default"} <= described.keys()
    monkeypatch.delenv(f"AIRFLOW__FACTORY__{name.upper()}", raising=False)
    assert option(name) == described["default"]
    assert conf.get("factory", name) == described["default"]
    monkeypatch.setenv(f"AIRFLOW__FACTORY__{name.upper()}", "7")
    assert option(name) == "7"


def test_the_version_is_the_package_s_own() -> None:
    from importlib.metadata import version

    assert version("airflow-provider-factory") == airflow_provider_factory.__version__
    assert f"factory-agents:{airflow_provider_factory.__version__}" == INFO["config"]["factory"]["options"]["image"]["default"]


def test_bad_configuration_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__FACTORY__RUNNER", "docker")
    with pytest.raises(ConfigurationError, match="runner: expected one of process, kubernetes, got 'docker'"):
        runner()
    assert runner("kubernetes") == "kubernetes"
    monkeypatch.setenv("AIRFLOW__FACTORY__STOP_GRACE", "soon")
    with pytest.raises(ConfigurationError, match=r"\[factory\] stop_grace: expected seconds \(a number\), got 'soon'"):
        option_seconds("stop_grace")
    monkeypatch.setenv("AIRFLOW__FACTORY__RETRY_DELAY", "-1")
    with pytest.raises(ConfigurationError, match="0 or more"):
        retry_delay()


def test_the_description_imports_nothing_of_airflow() -> None:
    code = (
        "import sys, airflow_provider_factory.get_provider_info as g; g.get_provider_info(); "
        "print([m for m in sys.modules if m.split('.')[0] in ('airflow', 'kubernetes')])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_airflow_lists_the_provider_and_its_decorator() -> None:
    from airflow.providers_manager import ProvidersManager
    from airflow.sdk import task

    assert "airflow-provider-factory" in ProvidersManager().providers
    assert callable(task.kafka_agent)
