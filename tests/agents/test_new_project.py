"""``factory init``: what it writes, what it leaves alone, and that the project runs as it is."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from factory_agents.errors import ConfigurationError
from factory_agents.new_project import create_project
from tests.conftest import TopicFactory
from tests.support.airflow_env import AIRFLOW_HOME, DAGS, DagRunner, airflow_home, dag_runner
from tests.support.commands import Command

__all__ = ["airflow_home", "dag_runner"]


def test_it_writes_a_project_once(offline: Command, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "shop"
    first = offline("init", str(folder), "--json").data
    assert {"README.md", ".gitignore", "dags/orders.py", "dags/pricing.py", "include/topics.yaml"} <= set(first["new"])
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == first["new"]
    (folder / "dags" / "mine.py").write_text("x = 1\n")
    assert create_project(folder) == []
    (folder / "include" / "topics.yaml").unlink()
    assert create_project(folder) == ["include/topics.yaml"]


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine\n")
    with pytest.raises(ConfigurationError, match=r"README.md would be overwritten; name another folder"):
        create_project(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]


def test_a_folder_that_cannot_be_is_one_line(offline: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "no project can be made here" in offline("init", str(tmp_path / "file" / "shop")).error


@pytest.mark.slow
def test_its_own_tests_pass(tmp_path: Path) -> None:
    create_project(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.airflow
@pytest.mark.slow
def test_it_runs_as_it_is(
    tmp_path: Path, dag_runner: DagRunner, topic: TopicFactory, bootstrap: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    create_project(tmp_path)
    for file in ("contracts/orders.yaml", "data/orders.jsonl"):
        (AIRFLOW_HOME / "include" / file).parent.mkdir(parents=True, exist_ok=True)
        (AIRFLOW_HOME / "include" / file).write_text((tmp_path / "include" / file).read_text())
    (DAGS / "pricing.py").write_text((tmp_path / "dags" / "pricing.py").read_text())
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps({"conn_type": "kafka", "extra": {"bootstrap.servers": bootstrap}}))
    monkeypatch.setenv("AIRFLOW_CONN_POSTGRES_DEFAULT", database_url)
    source = (
        (tmp_path / "dags" / "orders.py")
        .read_text()
        .replace("@dag(", '@dag(dag_id="DAG_ID", ')
        .replace('"table": "orders"', '"table": "init_orders"')
    )
    for name in ("raw_orders", "priced_orders", "checked_orders"):
        source = source.replace(f'"{name}"', f'"{topic(name)}"')

    assert dag_runner.run(source, datetime(2026, 11, 1, 5, tzinfo=UTC)).state == "success"
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT order_id, revision, status, total_cents FROM init_orders ORDER BY 1").fetchall()
    assert rows == [("A-17", 2, "paid", 2500), ("A-18", 1, "placed", 990), ("A-20", 1, "placed", 600), ("A-22", 1, "placed", 7300)]
