"""The two distributions stay one: one version, one locked set for each Airflow, no tie to a place, and a test for every module."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import airflow_provider_factory
import factory_agents

ROOT = Path(__file__).resolve().parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"), key=lambda lock: lock.stem)

MIRRORS = {"agents/factory_agents": "tests/agents", "airflow_provider_factory": "tests/provider"}
"""Where the test modules of a folder's modules are: ``kafka/lag.py`` has ``kafka/test_lag.py``."""

TESTED_WITH = {
    # Part of another module, which alone uses it: its test is that one's.
    "tests/agents/codecs/test_avro.py": ("codecs/avro_types", "codecs/framing"),
    "tests/agents/codecs/test_protobuf.py": ("codecs/protobuf_types",),
    "tests/agents/contracts/test_odcs.py": ("contracts/drafts", "contracts/odcs_types"),
    "tests/agents/contracts/test_schema.py": ("contracts/references",),
    "tests/agents/contracts/test_notations.py": ("contracts/avro", "contracts/figures"),
    "tests/agents/inference/test_transform.py": ("infer", "inference/http", "inference/params", "inference/prompt"),
    "tests/agents/kafka/test_lag.py": ("kafka/followed",),
    "tests/agents/kafka/test_ledger.py": ("kafka/view",),
    "tests/agents/kafka/test_planning.py": ("kafka/plan_view",),
    "tests/agents/kafka/test_transfer.py": ("kafka/translation",),
    "tests/agents/metrics/test_server.py": ("metrics/lags", "metrics/part", "metrics/positions"),
    "tests/agents/replication/test_replicate.py": (
        "replicate",
        "replication/log",
        "replication/pgoutput",
        "replication/runner",
        "replication/session",
        "replication/slot",
        "replication/streams",
        "replication/values",
    ),
    "tests/agents/runtime/test_live.py": ("kafka/predecessors",),
    "tests/agents/runtime/test_exact_sink.py": ("runtime/ledger_sink", "runtime/sink"),
    "tests/agents/runtime/test_shadow.py": ("kafka/shadow_group",),
    "tests/agents/runtime/test_versions.py": ("kafka/control", "kafka/presence", "kafka/version_group"),
    "tests/agents/sandbox/test_model.py": ("sandbox/model_server",),
    "tests/agents/sandbox/test_sandbox.py": (
        "sandbox/emulators",
        "sandbox/kafka",
        "sandbox/postgres",
        "sandbox/private",
        "sandbox/state",
        "sandbox/temporal",
    ),
    "tests/agents/sinks/bigquery/test_sink.py": ("sandbox/bigquery", "sinks/bigquery/statements", "sinks/bigquery/warehouse"),
    "tests/agents/sinks/iceberg/test_sink.py": ("sinks/iceberg/files", "sinks/iceberg/table"),
    "tests/agents/sinks/iceberg/test_catalogs.py": ("sinks/iceberg/catalog", "sinks/iceberg/rest"),
    "tests/agents/sinks/postgres/test_table.py": ("sinks/postgres/catalog",),
    "tests/agents/sinks/snowflake/test_sink.py": (
        "sandbox/snowflake",
        "sinks/snowflake/session",
        "sinks/snowflake/statements",
    ),
    "tests/agents/telemetry/test_live.py": ("telemetry/serving", "telemetry/shown"),
    "tests/agents/telemetry/test_tracing.py": ("telemetry/spans",),
    "tests/agents/temporal/test_workflow.py": ("temporal/activities", "temporal/protocol"),
    "tests/agents/test_cli.py": ("commands", "letter_commands"),
    "tests/agents/test_model_commands.py": ("evaluation", "trial"),
    "tests/agents/testing/test_conformance.py": ("testing/model", "testing/records"),
    "tests/integration/test_traces.py": ("runtime/traced",),
    "tests/provider/alerts/test_receiver.py": ("alerts/facts", "plugins/alerts"),
    "tests/provider/operators/test_kafka_agent.py": ("codecs", "operators/agent_pod", "operators/window"),
    "tests/provider/operators/test_deploy_agent.py": ("runners/kubernetes/deployment",),
    "tests/provider/operators/test_rollout.py": ("sensors/rollout", "triggers/rollout"),
    "tests/provider/operators/test_temporal_pipeline.py": ("triggers/temporal_pipeline",),
    "tests/provider/page/test_app.py": ("kafka/tails", "page/access", "page/actions"),
    "tests/provider/page/views/test_run.py": ("page/runs",),
    "tests/provider/runners/kubernetes/test_manifest.py": ("runners/kubernetes/runner",),
    "tests/provider/runners/test_process.py": ("runners/base",),
    "tests/provider/sensors/test_kafka_sensors.py": (
        "sensors/base",
        "sensors/consumer_lag",
        "sensors/window_closed",
        "triggers/base",
        "triggers/consumer_lag",
        "triggers/window_closed",
    ),
    "tests/provider/triggers/test_agent_pod.py": ("version_compat",),
    "tests/dags/test_dag_files.py": ("plugins/preload",),
}
"""Modules that have no test module of their own, by the one that tests them: they are parts of what it is about."""


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


def test_every_module_has_a_test_module_at_its_place() -> None:
    """Or is named among those that are tested with another one, for as long as that is so."""
    without = set()
    for folder, tests in MIRRORS.items():
        for module in (ROOT / folder).rglob("*.py"):
            name = module.relative_to(ROOT / folder).with_suffix("")
            if "template" in name.parts or name.name == "__init__":
                continue  # a project that is copied, with tests of its own
            if not (ROOT / tests / name.parent / f"test_{name.name.lstrip('_')}.py").exists():
                without.add(str(name))
    named = [name for names in TESTED_WITH.values() for name in names]
    assert without - set(named) == set(), "write a test module of the same path under tests/agents or tests/provider"
    assert set(named) - without == set(), "these have a test module of their own, or are gone: leave them out here"
    assert len(named) == len(set(named))
    assert [module for module in TESTED_WITH if not (ROOT / module).is_file()] == []
