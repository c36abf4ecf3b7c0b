"""``make ui``: the whole of Airflow on loopback, over the sandbox, until Ctrl-C."""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

from airflow_env import PYTHON_BIN, ROOT, airflow_environment, prepare

from factory_agents.sandbox import Sandbox

COMPONENTS = (("dag-processor",), ("scheduler", "-s"), ("triggerer", "-s"))


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/v2/monitor/health", timeout=5) as answer:
            health = json.load(answer)
    except OSError:
        return False
    return all(health.get(part, {}).get("status") == "healthy" for part in ("metadatabase", "scheduler", "triggerer", "dag_processor"))


def main() -> int:
    """Start every component, say where the UI is once all are healthy, and end them all at Ctrl-C or when one ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080, help="port of the web UI on 127.0.0.1; 0 takes a free one (default: 8080)")
    port = parser.parse_args().port or _free_port()
    sandbox = Sandbox(ROOT / ".factory")
    sandbox.up()
    url = f"http://127.0.0.1:{port}"
    passwords = sandbox.home / "airflow" / "passwords.json"
    environment = airflow_environment(sandbox) | {
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
    }
    print("preparing topics and metadata …", file=sys.stderr)
    prepare(sandbox, environment)
    if not passwords.exists():
        passwords.touch(mode=0o600)
        passwords.write_text(json.dumps({"admin": secrets.token_urlsafe(12)}))
    logs = sandbox.home / "airflow" / "components"
    logs.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    commands = [("api-server", "--host", "127.0.0.1", "--port", str(port)), *COMPONENTS]
    running = [_start(command, environment, logs) for command in commands]
    try:
        return _watch(running, url, passwords, logs, stop)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _start(command: tuple[str, ...], environment: dict[str, str], logs: Path) -> subprocess.Popen[bytes]:
    with (logs / f"{command[0]}.log").open("ab") as log:
        return subprocess.Popen([str(PYTHON_BIN / "airflow"), *command], env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def _watch(running: list[subprocess.Popen[bytes]], url: str, passwords: Path, logs: Path, stop: threading.Event) -> int:
    said = False
    while not stop.wait(1.0):
        for process in running:
            if process.poll() is not None:
                print(f"{' '.join(process.args[1:])} ended with {process.returncode}; see {logs}", file=sys.stderr)
                return 1
        if not said and _healthy(url):
            said = True
            print(f"\nAirflow: {url}   user admin, password {json.loads(passwords.read_text())['admin']}\nlogs: {logs}\nCtrl-C ends it.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
