"""Emulators of a sandbox, and its model: each has its own Python environment, built once from locked requirements for all sandboxes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.sandbox import private
from factory_agents.sandbox.processes import ProcessRecord, alive, last_line, stop, wait_until

_PATIENCE = 60.0  # seconds until it must serve
_BUILD_PATIENCE = 600.0
_READY = "ready"


class Emulator(msgspec.Struct, frozen=True):
    """What one is built of: ``requirements`` with hashes; ``prepare`` is Python code that its environment runs once."""

    name: str
    oldest_python: tuple[int, int]
    prepare: str = ""

    @property
    def requirements(self) -> Path:
        """The file of its locked requirements."""
        return Path(__file__).with_name(f"{self._slug}.txt")

    @property
    def _slug(self) -> str:
        return self.name.lower().replace(" ", "-")

    def build(self, tell: Callable[[str], None]) -> Path:
        """Its environment, built if it isn't there yet: up to 800 MB, kept under ``XDG_CACHE_HOME`` by what is in it.

        Raises:
            ConfigurationError: there is no Python that it runs on.
            UnavailableError: its packages could not be had.
        """
        name = f"{self._slug}-{hashlib.sha256(self.requirements.read_bytes()).hexdigest()[:12]}"
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "factory" / name
        if is_ready(folder):
            return folder
        python = _python(self.name, self.oldest_python)
        with _locked(folder):
            if not is_ready(folder):
                tell(f"building the environment of the {self.name}, once")
                shutil.rmtree(folder, ignore_errors=True)  # of a building that was cut off, or what another user may have changed
                private.folder(folder)
                self._run([python, "-m", "venv", str(folder)], folder)
                own = str(folder / "bin" / "python")
                pip = [own, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
                self._run([*pip, "--require-hashes", "--requirement", str(self.requirements)], folder)
                if self.prepare:
                    self._run([own, "-c", self.prepare], folder)
                (folder / _READY).touch()
        return folder

    def _run(self, command: list[str], environment: Path) -> None:
        try:
            done = subprocess.run(
                command,
                env=variables(environment),
                cwd="/",
                capture_output=True,
                text=True,
                check=False,
                timeout=_BUILD_PATIENCE,
                umask=private.UMASK,
            )
        except subprocess.TimeoutExpired:
            shown = " ".join(command[:4])
            raise UnavailableError(f"the {self.name} could not be built in {_BUILD_PATIENCE:g} s: {shown} …") from None
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise UnavailableError(f"the {self.name} could not be built: {said[-1] if said else done.returncode}")

    def wait_ready(self, folder: Path, process: ProcessRecord, answers: Callable[[], bool]) -> None:
        """Wait until it answers.

        Raises:
            UnavailableError: it ended, or doesn't answer after a minute.
        """
        wait_until(lambda: answers() or not alive(process), _PATIENCE)
        if not (alive(process) and answers()):
            raise UnavailableError(f"the {self.name} did not start: {last_line(log_of(folder))} (see {log_of(folder)})")


def is_ready(folder: Path) -> bool:
    """Whether an environment is built, and nobody else can have changed it."""
    return private.is_private(folder) and (folder / _READY).exists()


def variables(environment: Path) -> dict[str, str]:
    """What an emulator runs with. Its home is in its environment: DuckDB keeps extensions there."""
    return {**os.environ, "HOME": str(environment)}


def log_of(folder: Path) -> Path:
    """Where an emulator whose data are in ``folder`` writes its log."""
    return folder / "server.log"


def end(process: ProcessRecord | None) -> None:
    """Stop an emulator."""
    stop(process, (signal.SIGTERM, 5), (signal.SIGKILL, 10))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    private.folder(folder.parent)
    with private.append(folder.with_suffix(".lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _python(name: str, oldest: tuple[int, int]) -> str:
    """A Python that runs and is new enough; a version manager's shim may be neither."""
    minors = range(14, oldest[1] - 1, -1)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    managed = (str(path) for minor in minors for path in sorted(pyenv.glob(f"3.{minor}.*/bin/python"), reverse=True))
    named = (shutil.which(f"python3.{minor}") for minor in minors)
    for candidate in filter(None, (sys.executable, *named, *managed)):
        if _is_new_enough(candidate, oldest):
            return candidate
    wanted = ".".join(map(str, oldest))
    raise ConfigurationError(f"the {name} needs Python {wanted} or newer, found none: put python{wanted} on the PATH")


def _is_new_enough(python: str, oldest: tuple[int, int]) -> bool:
    check = f"import sys, venv; sys.exit(sys.version_info < {oldest})"
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run([python, "-c", check], capture_output=True, check=False, timeout=30).returncode == 0
    return False
