"""What tests on a cluster share: the cluster, a broker and a database that its pods reach, and an Airflow whose agents are pods."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from factory_agents.sandbox import Sandbox, SandboxInfo
from tests.support.airflow_env import DagRunner, airflow_home, dag_runner
from tests.support.cluster import IMAGE, TestCluster, why_not
from tests.support.shared_sandbox import HOME
from tests.support.topics import create_topic

__all__ = ["airflow_home", "dag_runner"]

ROOT = Path(__file__).resolve().parents[2]
SECRET = "factory-agent"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.kubernetes)


@pytest.fixture(scope="session")
def cluster() -> Iterator[TestCluster]:
    """A namespace of the cluster at KUBECONFIG; at the session's end no agent's pod or Secret may be left in it."""
    if reason := why_not():
        pytest.skip(reason)
    made = TestCluster.make()
    yield made
    made.wait_gone()
    left = [name for name in made.secrets() if name != SECRET]
    made.close()
    assert not left, f"Secrets without a pod: {left}"


@pytest.fixture(scope="session")
def sandbox(cluster: TestCluster) -> Iterator[Sandbox]:
    """A broker and a database that listen where pods reach them, in place of the suite's own."""
    own = Sandbox(HOME.parent / "kubernetes", host=cluster.host)
    own.up()
    apply = [sys.executable, "-m", "factory_agents.cli", "topics", "apply", "include/topics.yaml"]
    subprocess.run(apply, cwd=ROOT, env={"PATH": "/usr/bin:/bin", **own.env()}, check=True, capture_output=True)
    yield own
    own.down(wipe=True)


class Pods:
    """The cluster, and the connections and Secret by which this test's pods work."""

    def __init__(self, cluster: TestCluster, info: SandboxInfo, database_url: str) -> None:
        self.cluster = cluster
        self.info = info
        self.database_url = database_url

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(query).fetchall()  # type: ignore[arg-type]  # psycopg wants literals


@pytest.fixture
def pods(cluster: TestCluster, sandbox_info: SandboxInfo, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pods]:
    """Agents run as pods, with an empty database of the test's own; none of its pods is left when it ends."""
    name = f"test_{secrets.token_hex(4)}"
    with psycopg.connect(sandbox_info.database_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]
    url = re.sub(r"/\w+$", f"/{name}", sandbox_info.database_url)
    for key, value in environment(cluster, sandbox_info, url).items():
        monkeypatch.setenv(key, value)
    cluster.put_secret(SECRET, {"KAFKA_BOOTSTRAP": sandbox_info.bootstrap, "DATABASE_URL": url})
    yield Pods(cluster, sandbox_info, url)
    with psycopg.connect(sandbox_info.database_url, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # type: ignore[arg-type]


def environment(cluster: TestCluster, info: SandboxInfo, database_url: str) -> dict[str, str]:
    """Airflow's settings and connections for agents as pods of the cluster."""
    kafka = {"conn_type": "kafka", "extra": {"bootstrap.servers": info.bootstrap, "group.id": "airflow"}}
    return {
        "AIRFLOW__FACTORY__RUNNER": "kubernetes",
        "AIRFLOW__FACTORY__IMAGE": IMAGE,
        "AIRFLOW_CONN_KUBERNETES_DEFAULT": cluster.connection,
        "AIRFLOW_CONN_KAFKA_DEFAULT": json.dumps(kafka),
        "AIRFLOW_CONN_POSTGRES_DEFAULT": database_url,
        "FACTORY_INCLUDE": str(ROOT / "include"),
    }


@pytest.fixture
def topics(pods: Pods, prefix: str) -> Any:
    """Creates a topic of the test's own and fills it with events that arrive now; gives its name."""
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": pods.info.bootstrap, "log_level": 0})

    def make(name: str, partitions: int = 4, events: int = 0) -> str:
        topic = f"{prefix}.{name}"
        create_topic(admin, topic, partitions)
        producer = Producer({"bootstrap.servers": pods.info.bootstrap, "log_level": 0, "linger.ms": 50, "queue.buffering.max.messages": 2_000_000})
        for i in range(events):
            producer.produce(topic, json.dumps({"event_id": f"e{i}", "n": i}), partition=i % partitions)
            if i % 10_000 == 0:
                producer.poll(0)
        assert producer.flush(60) == 0
        return topic

    return make


