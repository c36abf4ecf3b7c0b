"""On a whole Airflow, with a scheduler, a triggerer and workers that die: agents as pods, deferred and not."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka.admin import AdminClient

from factory_agents.protocol import decode_result
from factory_agents.sandbox import Sandbox, SandboxInfo
from tests.kubernetes.conftest import SECRET, environment
from tests.support.airflow_components import RunningAirflow, running_airflow
from tests.support.cluster import TestCluster
from tests.support.databases import own_database
from tests.support.runs import Runs
from tests.support.topics import create_topic
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
NINE = "2018-06-05T09:00:00Z"
PIPELINE = "software_factory_pipeline"


@pytest.fixture(scope="module")
def airflow(
    cluster: TestCluster, sandbox: Sandbox, sandbox_info: SandboxInfo, admin: AdminClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningAirflow]:
    """Airflow whose agents are pods, deferred unless their task says otherwise."""
    topics = f"pods-{secrets.token_hex(4)}"
    folder = tmp_path_factory.mktemp("airflow")
    as_processes = (ROOT / "dags" / "software_factory.py").read_text().replace(f'"{PIPELINE}"', '"as_processes"')
    (folder / "as_processes.py").write_text(as_processes.replace('"owner": "data-eng"', '"owner": "data-eng", "runner": "process"'))
    dags = [ROOT / "dags" / "software_factory.py", folder / "as_processes.py", HERE / "dags_pods.py"]
    with own_database(sandbox_info.database_url, "pods") as url:
        cluster.put_secret(SECRET, {"KAFKA_BOOTSTRAP": sandbox_info.bootstrap, "DATABASE_URL": url})
        settings = environment(cluster, sandbox_info, url) | {
            "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": "True",
            "AIRFLOW__FACTORY__RETRY_DELAY": "5",
            "AIRFLOW__FACTORY__DEADLINES": "True",
        }
        settings.pop("AIRFLOW_CONN_POSTGRES_DEFAULT")
        with running_airflow(sandbox, folder / "home", dags, url, topics, **settings) as running:
            yield running


class Started:
    """A run of one of the DAGs of this folder over so many events."""

    def __init__(self, airflow: RunningAirflow, cluster: TestCluster, runs: Runs, dag: str, events: int, partitions: int = 4) -> None:
        self.airflow, self.cluster, self.runs, self.dag = airflow, cluster, runs, dag
        self.events = events
        for name in (dag, f"{dag}.out"):
            create_topic(runs.admin, f"{airflow.topics}.{name}", partitions)
        runs.produce(f"{airflow.topics}.{dag}", (b'{"event_id": "e%d", "n": %d}' % (i, i) for i in range(events)))
        airflow.unpause(dag)
        self.run_id = airflow.trigger(dag)

    def working(self) -> Any:
        return self.cluster.wait_pod(self.dag, "work", says="working on")

    def task(self, index: int = 0) -> dict[str, Any]:
        return next(t for t in self.airflow.tasks(self.dag, self.run_id) if (t["task_id"], t["map_index"]) == ("work", index))

    def wait_state(self, state: str) -> None:
        wait_for(lambda: self.task()["state"] == state, f"the task to be {state}", 60)

    def assert_exact(self, shards: int = 1) -> None:
        """The run succeeded, every event came out once, and no pod is left."""
        self.airflow.wait_run(self.dag, self.run_id, patience=240)
        written: list[Any] = []
        for index in range(shards):
            manifest = decode_result(self.airflow.xcom(self.dag, self.run_id, "work", map_index=index)).manifest
            written += [r.id for r in self.runs.manifest(manifest)]
        assert sorted(written) == sorted(f"e{i}" for i in range(self.events))
        self.cluster.wait_gone(self.dag)


@pytest.fixture
def runs(bootstrap: str, prefix: str, topic: Any, admin: AdminClient) -> Iterator[Runs]:
    made = Runs(bootstrap, prefix, topic, admin)
    yield made
    made.close()


def test_the_hourly_pipeline_deferred_lands_the_same_rows_as_with_processes(airflow: RunningAirflow, cluster: TestCluster) -> None:
    tables = {PIPELINE: "by_pods", "as_processes": "by_processes"}
    for dag in tables:
        airflow.unpause(dag)
    runs = {dag: airflow.trigger(dag, NINE, table=table) for dag, table in tables.items()}
    for dag, run_id in runs.items():
        airflow.wait_run(dag, run_id, patience=240)
        airflow.wait_runs(dag, 1)  # the schedule's own run too
    by_pods, by_processes = (airflow.rows(f"SELECT event_id, repo, path, language FROM {t} ORDER BY event_id") for t in tables.values())
    assert len(by_pods) > 100
    assert by_pods == by_processes
    cluster.wait_gone(PIPELINE)


def test_twelve_partitions_in_four_shards_each_with_its_own_log(airflow: RunningAirflow, cluster: TestCluster, runs: Runs) -> None:
    events = 1_000_000 if os.environ.get("FACTORY_SOAK") else 100_000
    started = Started(airflow, cluster, runs, "shards", events, partitions=12)
    started.assert_exact(shards=4)
    tasks = [started.task(index) for index in range(4)]
    labels = [task["rendered_map_index"] for task in tasks]
    assert [label.split(":")[0] for label in labels] == ["1 of 4", "2 of 4", "3 of 4", "4 of 4"]
    shown = ""
    for index, task in enumerate(tasks):
        log = airflow.log("shards", started.run_id, "work", task["try_number"], index)
        assert log.count("done reused=False") == 1, log
        shown += log
    assert [shown.count(f"working on e{i}.") for i in range(0, events, 1000)] == [1] * (events // 1000)


def test_a_triggerer_that_restarts_takes_the_pod_up_again(airflow: RunningAirflow, cluster: TestCluster, runs: Runs) -> None:
    started = Started(airflow, cluster, runs, "triggerer_restarts", 250)
    pod = started.working()
    started.wait_state("deferred")
    airflow.crash("triggerer")
    started.assert_exact()
    assert started.task()["try_number"] == 1
    assert airflow.xcom(started.dag, started.run_id, "work", "pod_name", 0) == pod.metadata.name


def test_a_worker_that_dies_leaves_its_pod_to_the_retry(airflow: RunningAirflow, cluster: TestCluster, runs: Runs) -> None:
    started = Started(airflow, cluster, runs, "worker_dies", 700)
    pod = started.working()
    for worker in airflow.workers():
        family = [*psutil.Process(worker).children(recursive=True), psutil.Process(worker)]
        for process in family:
            os.kill(process.pid, signal.SIGKILL)
    started.assert_exact()
    assert started.task()["try_number"] == 2
    assert airflow.xcom(started.dag, started.run_id, "work", "pod_name", 0) == pod.metadata.name, "taken up again"


def test_a_task_that_is_told_to_stop_never_succeeds_without_its_agent(airflow: RunningAirflow, cluster: TestCluster, runs: Runs) -> None:
    """As a worker does it whose node is drained; KubernetesPodOperator's task succeeds then (Airflow #73006)."""
    started = Started(airflow, cluster, runs, "task_is_told_to_stop", 700)
    pod = started.working()
    for worker in airflow.workers():
        for process in psutil.Process(worker).children(recursive=True):
            process.terminate()
    started.assert_exact()
    assert started.task()["try_number"] == 2
    assert airflow.xcom(started.dag, started.run_id, "work", "pod_name", 0) != pod.metadata.name


@pytest.mark.parametrize("dag", ["failed_while_deferred", "failed_while_running", "success_while_deferred"])
def test_a_task_that_is_marked_takes_its_pod_along(airflow: RunningAirflow, cluster: TestCluster, runs: Runs, dag: str) -> None:
    """KubernetesPodOperator's pod goes on where its task was deferred (Airflow #62398)."""
    started = Started(airflow, cluster, runs, dag, 1200)
    marked, _, meanwhile = dag.split("_")
    started.working()
    started.wait_state(meanwhile)
    airflow.call("PATCH", f"/dags/{dag}/dagRuns/{started.run_id}/taskInstances/work/0", {"new_state": marked})
    cluster.wait_gone(dag, patience=60)
    assert started.task()["state"] == marked
