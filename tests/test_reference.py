"""The reference is what the docstrings say now, and explains every parameter that a user sets."""

from __future__ import annotations

import re
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import reference

from factory_agents import agent, split


def test_the_page_is_up_to_date() -> None:
    assert reference.main(["--check"]) == 0, "docs/reference.md is not what the docstrings say; run make reference"


def test_every_operator_sensor_and_decorator_that_there_is_stands_in_it() -> None:
    from airflow_provider_factory.get_provider_info import get_provider_info

    info, page = get_provider_info(), reference.page()
    modules = [
        module for kind in ("operators", "sensors", "hooks", "triggers") for group in info[kind] for module in group["python-modules"]
    ]
    assert modules
    assert all(f"`{module}." in page for module in modules)
    for decorator in info["task-decorators"]:
        assert decorator["class-name"].rpartition(".")[0] in page


def test_every_parameter_is_explained() -> None:
    python = [member for name in reference.PYTHON for member in reference.public(import_module(name))]
    for member in (*python, *(member for name in reference.PROVIDER.values() for member in reference.members(name))):
        silent = [row.name for row in reference.documented(member)[1] if not row.text]
        assert not silent, f"{member.__name__}: no :param for {', '.join(silent)}"


def test_what_dags_and_agents_are_written_with_has_an_example_that_runs(tmp_path: Path) -> None:
    """Each in a file of its own, as functions travel with their source; what a reader imports is known there."""
    from airflow.sdk import DAG, Asset, AssetWatcher, task

    from airflow_provider_factory import assets, notifications
    from airflow_provider_factory.decorators.kafka_agent import kafka_agent_task
    from airflow_provider_factory.hooks.kafka import FactoryKafkaHook
    from airflow_provider_factory.hooks.schema_registry import SchemaRegistryHook
    from airflow_provider_factory.operators.agent_pod import AgentPodOperator
    from airflow_provider_factory.sensors.base import KafkaSensor
    from airflow_provider_factory.triggers.topic_ready import TopicReadyTrigger
    from factory_agents import Codec, Deleted, Dependency, Reject, SinkBackpressureError

    bases = (AgentPodOperator, KafkaSensor)  # of which users take the subclasses
    shown = [m for title in ("Operators", "Sensors") for m in reference.members(reference.PROVIDER[title]) if m not in bases]
    shown += [kafka_agent_task, TopicReadyTrigger, assets.table_asset, assets.topic_asset]
    shown += [notifications.FactoryNotifier, notifications.late_after, FactoryKafkaHook, SchemaRegistryHook]
    shown += [agent, split, Dependency, Reject, Codec, Deleted, SinkBackpressureError]
    known = {"DAG": DAG, "Asset": Asset, "AssetWatcher": AssetWatcher, "task": task, "timedelta": timedelta}
    known |= {member.__name__: member for member in shown}
    for member in shown:
        file, code = tmp_path / f"{member.__name__}.py", reference.example(member)
        assert code, f"{member.__name__}: no example"
        file.write_text(code)
        with DAG("examples"):
            exec(compile(code, file, "exec"), dict(known))


def test_every_command_and_option_is_explained() -> None:
    items = re.split("^- ", "\n".join([*reference.commands(), reference.configuration()]), flags=re.MULTILINE)[1:]
    assert items
    assert not [item for item in items if ": " not in " ".join(item.split())]
