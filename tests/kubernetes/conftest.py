"""What tests on a cluster share: the cluster, a broker and a database that its pods reach, and an Airflow whose agents are pods."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka.admin import AdminClient

from factory_agents.protocol import decode_result
from factory_agents.sandbox import Sandbox, SandboxInfo
from tests.conftest import WORKER
from tests.kubernetes.dags import one_agent
from tests.support.airflow_env import DagOutcome, DagRunner, airflow_home, dag_runner
from tests.support.cluster import IMAGE, TestCluster, why_not
from tests.support.databases import own_database
from tests.support.runs import Runs
from tests.support.shared_sandbox import HOME

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
    own = Sandbox(HOME.parent / f"kubernetes-{WORKER}", host=cluster.host)
    own.up()
    apply = [sys.executable, "-m", "factory_agents.cli", "topics", "apply", "include/topics.yaml"]
    subprocess.run(apply, cwd=ROOT, env={"PATH": "/usr/bin:/bin", **own.env()}, check=True, capture_output=True)
    yield own
    own.down(wipe=True)


@pytest.fixture(scope="session")
def sandbox_info(sandbox: Sandbox) -> SandboxInfo:
    """Where the sandbox is that pods reach."""
    return sandbox.info()


@pytest.fixture(scope="session")
def bootstrap(sandbox_info: SandboxInfo) -> str:
    """Its broker's address."""
    return sandbox_info.bootstrap


@pytest.fixture(scope="session")
def admin(bootstrap: str) -> AdminClient:
    """An admin client of its broker."""
    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})


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
    with own_database(sandbox_info.database_url, "pods") as url:
        for key, value in environment(cluster, sandbox_info, url).items():
            monkeypatch.setenv(key, value)
        cluster.put_secret(SECRET, {"KAFKA_BOOTSTRAP": sandbox_info.bootstrap, "DATABASE_URL": url})
        yield Pods(cluster, sandbox_info, url)


def environment(cluster: TestCluster, info: SandboxInfo, database_url: str) -> dict[str, str]:
    """Airflow's settings and connections for agents as pods of the cluster."""
    kafka = {"conn_type": "kafka", "extra": {"bootstrap.servers": info.bootstrap, "group.id": "airflow"}}
    return {
        "AIRFLOW__FACTORY__RUNNER": "kubernetes",
        "AIRFLOW__FACTORY__IMAGE": IMAGE,
        "AIRFLOW__FACTORY__DEADLINES": "False",  # dag.test fails on a deadline when the run succeeds (Airflow #73428)
        "AIRFLOW_CONN_KUBERNETES_DEFAULT": cluster.connection,
        "AIRFLOW_CONN_KAFKA_DEFAULT": json.dumps(kafka),
        "AIRFLOW_CONN_POSTGRES_DEFAULT": database_url,
        "FACTORY_INCLUDE": str(ROOT / "include"),
    }


class Meanwhile:
    """Does something beside the test in a thread; its error is the test's."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._error: BaseException | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    def __enter__(self) -> Meanwhile:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.join(120)
        if self._error is not None:
            raise self._error


class OneAgent:
    """Runs DAGs of one agent over a topic with so many events, and looks at what came of it."""

    def __init__(self, pods: Pods, runner: DagRunner, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
        self.cluster = pods.cluster
        self.pods = pods
        self.runs = runs
        self.runner = runner
        self.dag_id = runner.dag_id
        self._capsys = capsys
        self.log = ""
        self.expected: set[str] = set()

    def run(
        self, *body: str, events: int = 600, partitions: int = 4, meanwhile: Callable[[], None] | None = None, **options: Any
    ) -> DagOutcome:
        """One run of ``dag.test`` to its end; ``body`` and ``options`` are those of ``one_agent``."""
        topic, output = self.runs.topic("in", partitions), self.runs.topic("out", partitions)
        self.expected = {f"e{i}" for i in range(events)}
        self.runs.produce(topic, (json.dumps({"event_id": f"e{i}", "n": i}).encode() for i in range(events)))
        with Meanwhile(meanwhile) if meanwhile else contextlib.nullcontext():
            outcome = self.runner.run(one_agent(topic, output, *body, **options), None)
        self.log = self._capsys.readouterr().out
        return outcome

    def assert_exact(self, outcome: DagOutcome, tries: int = 1) -> None:
        """Every event came out once, after so many tries, and no pod is left."""
        assert outcome.state == "success", self.log[-60000:]
        assert max(outcome.tries["work"]) == tries, self.log[-60000:]
        written = [r.id for result in outcome.results["work"] for r in self.runs.manifest(decode_result(result).manifest)]
        assert sorted(written) == sorted(self.expected)
        self.cluster.wait_gone(self.dag_id)

    def wait_working(self, **options: Any) -> Any:
        """The pod, once its agent says that it works."""
        return self.cluster.wait_pod(self.dag_id, "work", says="working", **options)


@pytest.fixture
def runs(bootstrap: str, prefix: str, topic: Any, admin: AdminClient) -> Iterator[Runs]:
    """Topics of this test's own."""
    own = Runs(bootstrap, prefix, topic, admin)
    yield own
    own.close()


@pytest.fixture
def one(pods: Pods, dag_runner: DagRunner, runs: Runs, capsys: pytest.CaptureFixture[str]) -> OneAgent:
    """Runs DAGs of one agent."""
    return OneAgent(pods, dag_runner, runs, capsys)
