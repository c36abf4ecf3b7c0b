"""DAG files as the DAG processor sees them: no errors, no network, fast, and whole after serialisation."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = [*sorted((ROOT / "dags").glob("*.py")), HERE / "clicks.py"]

pytestmark = pytest.mark.airflow

OFFICIAL = """
from datetime import datetime
from airflow.sdk import Asset, CronDataIntervalTimetable, Param, dag, task
from airflow.providers.apache.kafka.operators.consume import ConsumeFromTopicOperator
from airflow.providers.apache.kafka.sensors.kafka import AwaitMessageSensor
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

RAW, ENRICHED, VALID = (Asset(name=t, uri=f"kafka://main/{t}") for t in ("raw_events", "enriched_events", "valid_events"))

@dag(schedule=CronDataIntervalTimetable("@hourly", timezone="UTC"), catchup=False, start_date=datetime(2026, 11, 1), doc_md="Clicks.",
     params={"shards": Param(4, type="integer", minimum=1), "reprocess": Param(False, type="boolean")},
     default_args={"owner": "data-eng", "retries": 2})
def official():
    closed = AwaitMessageSensor(task_id="closed", topics=["raw"], apply_function="x.y")
    window = ConsumeFromTopicOperator(task_id="window", topics=["raw"], apply_function="x.y")

    @task.kubernetes(image="x", name="enrich", outlets=[ENRICHED], map_index_template="{{ task.task_id }}")
    def enrich(window):
        return window

    enriched = enrich.expand(window=window.output)
    valid = KubernetesPodOperator(task_id="validate", name="v", image="x", arguments=["validate"], outlets=[VALID])
    publish = KubernetesPodOperator(task_id="publish", name="p", image="x", arguments=["publish"])
    closed >> window >> enriched >> valid >> publish

official()
"""

PARSE = """
import json, os, socket, time

def refuse(*args, **kwargs):
    raise AssertionError("a connection was opened while a DAG file was parsed")

import airflow
from airflow import plugins_manager
plugins_manager.ensure_plugins_loaded()  # as the DAG processor does before it forks a parser for each file
from airflow.dag_processing.dagbag import DagBag
{preload}
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse

def parse(path):
    start = time.process_time()
    bag = DagBag(path)
    return {{"seconds": time.process_time() - start, "errors": bag.import_errors, "dags": sorted(bag.dags)}}

for path in {paths!r}:
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, json.dumps(parse(path)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        print("PARSED " + answer.read())
    os.wait()
"""


def parse(*paths: Path, preload: str = "") -> list[dict[str, Any]]:
    """Parse DAG files in forks of a fresh process with the network shut, as the DAG processor does; one outcome a fork."""
    code = PARSE.format(paths=[str(path) for path in paths], preload=preload)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line.removeprefix("PARSED ")) for line in done.stdout.splitlines() if line.startswith("PARSED ")]


def test_dag_files_parse_without_errors_and_without_the_network(airflow_home: Path) -> None:
    for file, parsed in zip(FILES, parse(*FILES), strict=True):
        assert parsed["errors"] == {}
        assert parsed["dags"], file


@pytest.mark.soak
def test_parsing_takes_no_longer_than_a_dag_of_the_official_operators(airflow_home: Path, tmp_path: Path) -> None:
    official = tmp_path / "official.py"
    official.write_text(OFFICIAL)
    preload = "import airflow.providers.cncf.kubernetes.operators.pod"  # which the DAG processor finds in the file, and imports beforehand
    ours = statistics.median(p["seconds"] for p in parse(*[HERE / "clicks.py"] * 5))
    theirs = statistics.median(p["seconds"] for p in parse(*[official] * 5, preload=preload))
    print(f"parse time: {ours * 1000:.0f} ms, beside {theirs * 1000:.0f} ms of the official operators' DAG: × {ours / theirs:.2f}")
    assert ours <= 1.3 * theirs


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_a_dag_is_whole_after_serialisation(file: Path, airflow_home: Path) -> None:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.serialization.serialized_objects import DagSerialization

    bag = DagBag(file)
    assert bag.import_errors == {}
    for dag in bag.dags.values():
        data = DagSerialization.to_dict(dag)
        again = DagSerialization.from_dict(json.loads(json.dumps(data)))
        assert set(again.task_dict) == set(dag.task_dict)
        for task_id, task in dag.task_dict.items():
            assert again.task_dict[task_id].downstream_task_ids == task.downstream_task_ids
            assert again.task_dict[task_id].is_mapped == task.is_mapped
            assert all(asset.uri in str(again.task_dict[task_id].outlets) for asset in task.outlets)


def test_topics_and_tables_are_assets_of_the_tasks_that_write_them(airflow_home: Path) -> None:
    from airflow.dag_processing.dagbag import DagBag

    dag = DagBag(HERE / "clicks.py").dags["clicks"]
    assert {t: [a.uri for a in dag.task_dict[t].outlets] for t in ("enrich", "validate", "publish")} == {
        "enrich": ["kafka://main/enriched_events"],
        "validate": ["kafka://main/valid_events"],
        "publish": ["postgres://main:5432/main/public/events"],
    }
    assert dag.task_dict["window"].inlets[0].uri == "kafka://main/raw_events"
    assert dag.task_dict["enrich"].map_index_template == "{{ shard_label }}"
    assert dag.task_dict["publish"].upstream_task_ids == {"validate"}
