"""A whole Airflow on loopback, shared by a session's tests: real components, metadata in the sandbox's PostgreSQL, and its REST API."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from airflow_components import NEW_FILES_SOON, Components, free_port, loopback_environment
from airflow_env import PYTHON_BIN, airflow, airflow_environment

from airflow_provider_factory.version_compat import AIRFLOW_V_3_3_PLUS
from factory_agents.sandbox import Sandbox, SandboxInfo
from tests.support.databases import own_database
from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
DAGS = ROOT / "tests" / "airflow" / "dags"
BASE = os.environ.get("FACTORY_TEST_BASE_PATH", "" if AIRFLOW_V_3_3_PLUS else "/air")
"""Where Airflow is below its host: the oldest elsewhere than the newest, so that both are tried."""

_QUICK = {
    **NEW_FILES_SOON,
    "AIRFLOW__CORE__PARALLELISM": "8",
    "AIRFLOW__FACTORY__STOP_GRACE": "10",
    "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "2",
    "AIRFLOW__SCHEDULER__JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "45",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "3",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",  # a busy machine's first answer takes longer than 5 s, which loses the task
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "30",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
}
"""What makes the loss of a component noticed in seconds, not minutes."""


_BUSY_PATIENCE = 30.0
"""Seconds for which a question is asked again that the API server answers with an error of its own."""


class RunningAirflow:
    """The components, and what a user does with them. ``topics`` and ``database_url`` are where the tests' DAGs read and write."""

    def __init__(self, components: Components, topics: str, database_url: str) -> None:
        self.components = components
        self.topics = topics
        self.database_url = database_url
        self._http = httpx.Client(base_url=components.url, timeout=120, transport=httpx.HTTPTransport(retries=3))
        self._token = ""

    def close(self) -> None:
        self._http.close()

    def call(self, method: str, path: str, json: Any = None, **query: Any) -> Any:
        """One request of the REST API (``path`` below ``/api/v2``), which has to succeed."""
        if not self._token:
            answer = self._http.post("/auth/token", json={"username": "admin", "password": self.components.password})
            self._token = answer.raise_for_status().json()["access_token"]
        headers = {"Authorization": f"Bearer {self._token}"}
        answer = self._http.request(method, f"/api/v2{path}", json=json, params=query, headers=headers)
        until = time.monotonic() + _BUSY_PATIENCE
        while method == "GET" and answer.status_code >= 500 and time.monotonic() < until:  # a busy server's "not yet"
            time.sleep(1)
            answer = self._http.request(method, f"/api/v2{path}", params=query, headers=headers)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def cli(self, *arguments: str) -> str:
        """What an ``airflow`` command prints; it has to succeed."""
        command = [str(PYTHON_BIN / "airflow"), *arguments]
        done = subprocess.run(command, env=self.components.environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # DAGs and runs

    def pause(self, dag_id: str, paused: bool = True) -> None:
        self.call("PATCH", f"/dags/{dag_id}", {"is_paused": paused})

    def unpause(self, dag_id: str) -> None:
        """Let a DAG run, as soon as its file has been parsed."""
        wait_for(lambda: self.knows(dag_id), f"the DAG {dag_id}", 120)
        self.pause(dag_id, False)

    def parse_again(self, dag_id: str) -> None:
        """Have a DAG's file parsed now: the watchers of an unpaused DAG begin with the next parse."""
        token = self.call("GET", f"/dags/{dag_id}")["file_token"]
        self.call("PUT", f"/parseDagFile/{token}")

    def knows(self, dag_id: str) -> bool:
        """Whether a DAG was parsed; fails on a file that doesn't import."""
        errors = self.call("GET", "/importErrors")["import_errors"]
        assert not errors, errors[0]["stack_trace"]
        return any(dag["dag_id"] == dag_id for dag in self.call("GET", "/dags", dag_id_pattern=dag_id)["dags"])

    def trigger(self, dag_id: str, logical_date: str | None = None, **conf: Any) -> str:
        """Start a run by hand; returns its id."""
        run: dict[str, Any] = self.call("POST", f"/dags/{dag_id}/dagRuns", {"logical_date": logical_date, "conf": conf})
        return str(run["dag_run_id"])

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """All of a DAG's runs, in order of their data."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.call("GET", f"/dags/{dag_id}/dagRuns", limit=100, offset=len(found), order_by="id")
            found += page["dag_runs"]
            if len(found) >= page["total_entries"]:
                return found

    def tasks(self, dag_id: str, run_id: str = "~") -> list[dict[str, Any]]:
        """The task instances of a run, or of all."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances", limit=100, offset=len(found))
            found += page["task_instances"]
            if len(found) >= page["total_entries"]:
                return found

    def task(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        """One task instance of a run."""
        return next(ti for ti in self.tasks(dag_id, run_id) if ti["task_id"] == task_id)

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        return self.call("GET", path, map_index=map_index, deserialize=True)["value"]

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """A task's log as the UI shows it."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        lines = self.call("GET", path, map_index=map_index, full_content=True)["content"]
        return "\n".join(
            "".join([line["event"], *(f"\n{e['exc_type']}: {e['exc_value']}" for e in line.get("error_detail") or [])]) for line in lines
        )

    def clear(self, dag_id: str, run_id: str) -> None:
        """Clear a whole run."""
        self.call("POST", f"/dags/{dag_id}/dagRuns/{run_id}/clear", {"dry_run": False})

    def clear_tasks(self, dag_id: str, run_id: str, *task_ids: str, downstream: bool = True) -> None:
        """Clear some tasks of a run, by default with all that follow."""
        body = {"dry_run": False, "dag_run_id": run_id, "task_ids": list(task_ids), "include_downstream": downstream, "only_failed": False}
        self.call("POST", f"/dags/{dag_id}/clearTaskInstances", body)

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Set a task's state by hand."""
        self.call("PATCH", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}", {"new_state": state})

    def wait_runs(self, dag_id: str, count: int, patience: float = 600) -> None:
        """Until at least ``count`` runs have succeeded, and no other is left; a failed one ends the wait."""

        def settled() -> bool:
            states = [run["state"] for run in self.runs(dag_id)]
            assert "failed" not in states, self.story(dag_id)
            return states.count("success") >= count and len(states) == states.count("success")

        wait_for(settled, f"{count} runs of {dag_id} to succeed", patience)

    def wait_done(self, dag_id: str, count: int, patience: float = 600) -> None:
        """Until at least ``count`` runs have succeeded."""

        def done() -> bool:
            return sum(run["state"] == "success" for run in self.runs(dag_id)) >= count

        wait_for(done, f"{count} runs of {dag_id} to be done", patience)

    def wait_quiet(self, dag_id: str, patience: float = 600) -> None:
        """Until no run is under way."""
        wait_for(lambda: all(run["state"] in ("success", "failed") for run in self.runs(dag_id)), f"the runs of {dag_id} to end", patience)

    def wait_run(self, dag_id: str, run_id: str, *states: str, patience: float = 400) -> str:
        """Until a run has ended (in one of ``states``, by default ``success``); returns its state."""
        wanted = states or ("success",)

        def ended() -> bool:
            return self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"] in ("success", "failed")

        wait_for(ended, f"the end of {dag_id} {run_id}", patience)
        state = str(self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"])
        assert state in wanted, self.story(dag_id)
        return state

    def story(self, dag_id: str) -> str:
        """What went wrong, for an assertion's message: the last log of each failed task."""
        lines = [f"{run['dag_run_id']}: {run['state']}" for run in self.runs(dag_id)]
        for ti in self.tasks(dag_id):
            if ti["state"] == "failed":
                log = self.log(dag_id, ti["dag_run_id"], ti["task_id"], ti["try_number"], ti["map_index"])
                lines.append(f"{ti['dag_run_id']} {ti['task_id']}[{ti['map_index']}] try {ti['try_number']}:\n{log[-3000:]}")
        return "\n".join(lines)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What a query of the pipelines' database gives; nothing where the table isn't there."""
        with psycopg.connect(self.database_url) as connection:
            try:
                return connection.execute(query).fetchall()  # type: ignore[arg-type]  # psycopg wants literals
            except psycopg.errors.UndefinedTable:
                return []

    # Components

    def crash(self, name: str) -> None:
        """Kill a component and start it again."""
        self.components.kill(name)
        self.components.start(name)

    def wait_healthy(self, patience: float = 180) -> None:
        def healthy() -> bool:
            ended = self.components.ended()
            assert not ended, {name: (self.components.logs / f"{name}.log").read_text()[-3000:] for name in ended}
            return not self.components.unhealthy()

        wait_for(healthy, "every component of Airflow to be healthy", patience)

    def workers(self) -> list[int]:
        """The process ids of the executor's workers whose tasks have begun: who kills one before its task begins loses that for good."""
        import psutil

        running = self.call("GET", "/dags/~/dagRuns/~/taskInstances", state="running")["task_instances"]
        begun, found = {ti["pid"] for ti in running}, []
        for worker in psutil.Process(self.components.pid("scheduler")).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if begun & {child.pid for child in worker.children()}:
                    found.append(worker.pid)
        return found

    def kill_worker(self) -> None:
        """Kill a worker in the middle of its task: an idle one would take the lock of the executor's queue with it."""
        import psutil

        def killed() -> bool:
            for pid in self.workers():
                worker = psutil.Process(pid)
                worker.suspend()
                if any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in worker.children()):
                    worker.kill()
                    return True
                worker.resume()
            return False

        wait_for(killed, "a worker in the middle of a task", 60)


@contextmanager
def running_airflow(
    sandbox: Sandbox, folder: Path, dags: Iterable[Path], database_url: str, topics: str, **settings: str
) -> Iterator[RunningAirflow]:
    """Airflow in ``folder`` over a sandbox, with copies of DAG files; everything it started is ended at the end."""
    (folder / "dags").mkdir(parents=True)
    for path in dags:
        shutil.copy(path, folder / "dags")
    with own_database(sandbox.info().database_url, "airflow") as metadata:
        environment = {
            **{k: v for k, v in airflow_environment(sandbox).items() if not k.startswith("PYTEST_")},
            **loopback_environment(free_port(), folder, BASE),
            **_QUICK,
            "AIRFLOW_HOME": str(folder),
            "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": metadata.replace("://", "+psycopg2://", 1),
            "AIRFLOW__FACTORY__PREFIX": topics,
            "AIRFLOW_CONN_POSTGRES_DEFAULT": database_url,
            "TEST_TOPICS": topics,
            **settings,
        }
        airflow(environment, "db", "migrate")
        components = Components(environment, folder / "components")
        running = RunningAirflow(components, topics, database_url)
        try:
            components.start()
            running.wait_healthy(patience=600)  # on a busy machine
            airflow(environment, "pools", "set", "software_factory", "8", "agents at a time")
            yield running
        finally:
            running.close()
            components.down()


@pytest.fixture(scope="session")
def airflow_running(sandbox: Sandbox, sandbox_info: SandboxInfo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAirflow]:
    """The Airflow that all tests below tests/airflow share: one worker runs them all."""
    topics = f"airflow-{os.getpid()}-{secrets.token_hex(3)}"
    dags = [*DAGS.glob("*.py"), *(ROOT / "dags").glob("*.py")]
    folder = tmp_path_factory.mktemp("airflow") / "home"
    with (
        own_database(sandbox_info.database_url, "airflow") as database_url,
        running_airflow(sandbox, folder, dags, database_url, topics) as running,
    ):
        yield running
