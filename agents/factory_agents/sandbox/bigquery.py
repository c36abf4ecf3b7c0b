"""The BigQuery emulator of a sandbox: built once into an environment of its own, which is cached for all sandboxes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.sandbox import private
from factory_agents.sandbox.processes import ProcessRecord, alive, last_line, spawn, stop, wait_until
from factory_agents.sandbox.state import BIGQUERY_PROJECT

_REQUIREMENTS = Path(__file__).with_name("bigquery-emulator.txt")
_EXTENSIONS = ("ducklake", "icu", "spatial")
_OLDEST_PYTHON = (3, 13)
_PATIENCE = 60.0  # seconds until it must serve
_BUILD_PATIENCE = 600.0
_READY = "ready"


def start(folder: Path, host: str, port: int, grpc_port: int, tell: Callable[[str], None]) -> ProcessRecord:
    """Begin to start the emulator whose data are in ``folder``.

    Raises:
        ConfigurationError: there is no Python that it runs on.
        UnavailableError: its environment could not be built.
    """
    environment = build(tell)
    private.tighten_all(private.folder(folder))
    command = [str(environment / "bin" / "local-bigquery"), "serve", "--host", host, "--port", str(port), "--grpc-port", str(grpc_port)]
    return spawn(
        [*command, "--project", BIGQUERY_PROJECT, "--data-dir", str(folder / "data")], log=log_of(folder), env=_variables(environment)
    )


def wait_ready(folder: Path, process: ProcessRecord, host: str, port: int) -> None:
    """Wait until the emulator answers.

    Raises:
        UnavailableError: it ended, or doesn't answer after a minute.
    """
    wait_until(lambda: answers(host, port) or not alive(process), _PATIENCE)
    if not (alive(process) and answers(host, port)):
        raise UnavailableError(f"the BigQuery emulator did not start: {last_line(log_of(folder))} (see {log_of(folder)})")


def answers(host: str, port: int) -> bool:
    """Whether the emulator answers there."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/bigquery/v2/projects/{BIGQUERY_PROJECT}/datasets", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def end(process: ProcessRecord | None) -> None:
    """Stop the emulator."""
    stop(process, (signal.SIGTERM, 5), (signal.SIGKILL, 10))


def log_of(folder: Path) -> Path:
    """Where the emulator writes its log."""
    return folder / "server.log"


def build(tell: Callable[[str], None]) -> Path:
    """The emulator's environment, built if it isn't there yet: some 600 MB, kept under ``XDG_CACHE_HOME`` by what is in it.

    Raises:
        ConfigurationError: there is no Python that it runs on.
        UnavailableError: its packages could not be had.
    """
    name = f"bigquery-emulator-{hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()[:12]}"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "factory" / name
    if _is_ready(folder):
        return folder
    python = _python()
    with _locked(folder):
        if not _is_ready(folder):
            tell("building the BigQuery emulator's environment, once")
            shutil.rmtree(folder, ignore_errors=True)  # of a building that was cut off, or what another user may have changed
            private.folder(folder)
            _run([python, "-m", "venv", str(folder)], folder)
            own = str(folder / "bin" / "python")
            pip = [own, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
            _run([*pip, "--require-hashes", "--requirement", str(_REQUIREMENTS)], folder)
            imports = "; ".join(f"import_extension({name!r})" for name in _EXTENSIONS)
            _run([own, "-c", f"from duckdb_extensions import import_extension; {imports}"], folder)
            (folder / _READY).touch()
    return folder


def _is_ready(folder: Path) -> bool:
    return private.is_private(folder) and (folder / _READY).exists()


def _variables(environment: Path) -> dict[str, str]:
    """Its home is in its environment: DuckDB keeps extensions there."""
    return {**os.environ, "HOME": str(environment)}


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    private.folder(folder.parent)
    with private.append(folder.with_suffix(".lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], environment: Path) -> None:
    try:
        done = subprocess.run(
            command,
            env=_variables(environment),
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            timeout=_BUILD_PATIENCE,
            umask=private.UMASK,
        )
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"the BigQuery emulator could not be built in {_BUILD_PATIENCE:g} s: {' '.join(command[:4])} …") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise UnavailableError(f"the BigQuery emulator could not be built: {said[-1] if said else done.returncode}")


def _python() -> str:
    """A Python that runs and is new enough; a version manager's shim may be neither."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    managed = sorted(map(str, pyenv.glob("3.1[3-9]*/bin/python")), reverse=True)
    named = (shutil.which(f"python3.{minor}") for minor in (14, 13))
    for candidate in filter(None, (sys.executable, *named, *managed)):
        if _is_new_enough(candidate):
            return candidate
    oldest = ".".join(map(str, _OLDEST_PYTHON))
    raise ConfigurationError(f"the BigQuery emulator needs Python {oldest} or newer, found none: put python{oldest} on the PATH")


def _is_new_enough(python: str) -> bool:
    check = f"import sys, venv; sys.exit(sys.version_info < {_OLDEST_PYTHON})"
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run([python, "-c", check], capture_output=True, check=False, timeout=30).returncode == 0
    return False
