"""The components of Airflow as processes on loopback: started, watched, killed and ended by their ids."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_env import PYTHON_BIN, ROOT

from factory_agents.sandbox import private, processes

__all__ = ["COMPONENTS", "NEW_FILES_SOON", "Components", "free_port", "loopback_environment"]

COMPONENTS: Mapping[str, tuple[str, ...]] = {
    "api-server": ("api-server", "--host", "127.0.0.1"),
    "dag-processor": ("dag-processor",),
    "scheduler": ("scheduler", "-s"),  # -s: without it, a server for its logs listens everywhere
    "triggerer": ("triggerer", "-s"),
}
"""What is started, by name, and how."""

NEW_FILES_SOON = {
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "3",
    "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "5",
}
"""A new DAG file is there within seconds, and a changed one; by default Airflow looks for new ones every five minutes."""

_HEALTH = {"scheduler": "scheduler", "triggerer": "triggerer", "dag-processor": "dag_processor"}
_GRACE = 30.0


def free_port(wanted: int = 0) -> int:
    """The port wanted where nobody uses it now, else another that is free."""
    return wanted if wanted and processes.is_free("127.0.0.1", wanted) else processes.free_port("127.0.0.1")


def loopback_environment(port: int, home: Path, base: str = "") -> dict[str, str]:
    """The settings with which components find each other on 127.0.0.1, below ``base``, and one user, ``admin``.

    Their password is kept in ``home``.
    """
    url = f"http://127.0.0.1:{port}{base}"
    passwords = home / "passwords.json"
    if not passwords.exists():
        private.folder(home)
        private.write(passwords, json.dumps({"admin": secrets.token_urlsafe(12)}))
    return {
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
    }


class Components:
    """One process for each component, each the head of a group of its own, its output in ``logs/<name>.log``."""

    def __init__(self, environment: Mapping[str, str], logs: Path) -> None:
        self.environment = dict(environment)
        self.url = environment["AIRFLOW__API__BASE_URL"]
        self.password: str = json.loads(Path(environment["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"]).read_text())["admin"]
        self.logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._groups: list[int] = []

    def start(self, *names: str) -> None:
        """Start components (all of them by default); returns at once."""
        private.folder(self.logs)
        for name in names or COMPONENTS:
            command = [*COMPONENTS[name], *(("--port", self.environment["AIRFLOW__API__PORT"]) if name == "api-server" else ())]
            with private.append(self.logs / f"{name}.log") as log:
                process = subprocess.Popen(
                    [str(PYTHON_BIN / "airflow"), *command],
                    env=self.environment,
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    umask=private.UMASK,
                )
            self._running[name] = process
            self._groups.append(process.pid)

    def pid(self, name: str) -> int:
        """A component's process id."""
        return self._running[name].pid

    def kill(self, name: str) -> None:
        """End a component as a crash does (SIGKILL), and its own workers with it; the tasks that these run are left to themselves.

        Workers outliving a LocalExecutor's scheduler hold its database connection open, and with it, if it died in its critical section,
        the lock on the pools: no other scheduler could queue a task.
        """
        import psutil

        process = self._running.pop(name)
        workers = psutil.Process(process.pid).children()
        process.kill()
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        process.wait()

    def stop(self, name: str) -> None:
        """End a component in order (SIGTERM), after a grace by force, and with it what it left running."""
        process = self._running.pop(name)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
        self._end_group(process.pid)
        process.wait()

    def down(self) -> None:
        """End everything that was ever started here."""
        for process in self._running.values():
            process.terminate()
        until = time.monotonic() + _GRACE
        for process in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, until - time.monotonic()))
        for group in dict.fromkeys(self._groups):
            self._end_group(group)
        for process in self._running.values():
            process.wait()
        self._running.clear()

    def _end_group(self, group: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        self._groups = [g for g in self._groups if g != group]

    def ended(self) -> dict[str, int]:
        """Components that ended by themselves, with their exit codes."""
        return {name: code for name, process in self._running.items() if (code := process.poll()) is not None}

    def ensure_pool(self, name: str, slots: str, description: str) -> None:
        """Create a pool of the running Airflow where there is none of this name."""
        pool = {"name": name, "slots": int(slots), "description": description}
        with contextlib.suppress(urllib.error.HTTPError):  # 409: it is there
            self._post("/api/v2/pools", pool, self._post("/auth/token", {"username": "admin", "password": self.password})["access_token"])

    def _post(self, path: str, body: Mapping[str, object], token: str = "") -> dict[str, Any]:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def unhealthy(self) -> list[str]:
        """Components that don't report themselves as healthy (yet); none: all is well."""
        try:
            with urllib.request.urlopen(f"{self.url}/api/v2/monitor/health", timeout=10) as answer:
                health = json.load(answer)
        except (OSError, ValueError):
            return ["api-server"]
        return [name for name, part in _HEALTH.items() if (health.get(part) or {}).get("status") != "healthy"]
