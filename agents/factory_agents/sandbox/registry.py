"""The schema registry of a sandbox: Apicurio with its Confluent-compatible interface, on the broker's Java runtime."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

from factory_agents.errors import ConfigurationError, FactoryError, UnavailableError
from factory_agents.sandbox import private
from factory_agents.sandbox.kafka import cache, exclusive, java_home
from factory_agents.sandbox.processes import ProcessRecord, alive, last_line, spawn, stop, wait_until

VERSION = "3.3.3"
_SHA256 = "8bc6751c76d963734224b01d5e7f84ccb3cb61c87d3bd77c36c35f10a5cbed63"
_PATIENCE = 120.0  # seconds until it must serve
_JVM = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true")
_READY = "ready"


def start(folder: Path, host: str, port: int, management_port: int, tell: Callable[[str], None]) -> ProcessRecord:
    """Begin to start the registry whose schemas are in ``folder``, fetching it if need be.

    Raises:
        ConfigurationError: the ``sandbox`` extra isn't installed.
        UnavailableError: it could not be fetched.
        FactoryError: what was fetched is not the expected thing.
    """
    program = _program(tell)
    private.tighten_all(private.folder(folder))
    variables = {
        **os.environ,
        # Of these four each one that is missing has it listen everywhere.
        "QUARKUS_HTTP_HOST": host,
        "QUARKUS_HTTP_PORT": str(port),
        "QUARKUS_MANAGEMENT_HOST": host,
        "QUARKUS_MANAGEMENT_PORT": str(management_port),
        "APICURIO_STORAGE_KIND": "sql",
        "APICURIO_STORAGE_SQL_KIND": "h2",
        "APICURIO_DATASOURCE_URL": f"jdbc:h2:file:{folder / 'schemas'}",
    }
    private.write(log_of(folder), b"")
    java = [str(java_home() / "bin" / "java"), *_JVM, "-jar", str(program / "quarkus-run.jar")]
    return spawn(java, log=log_of(folder), env=variables)


def wait_ready(folder: Path, process: ProcessRecord, host: str, port: int) -> None:
    """Wait until the registry answers.

    Raises:
        UnavailableError: it ended, or doesn't answer in time.
    """
    wait_until(lambda: answers(host, port) or not alive(process), _PATIENCE)
    if not (alive(process) and answers(host, port)):
        raise UnavailableError(f"the schema registry did not start: {last_line(log_of(folder))} (see {log_of(folder)})")


def answers(host: str, port: int) -> bool:
    """Whether the registry answers there."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/apis/ccompat/v7/subjects", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def end(process: ProcessRecord | None) -> None:
    """Stop the registry."""
    stop(process, (signal.SIGTERM, 15), (signal.SIGKILL, 10))


def log_of(folder: Path) -> Path:
    """Where the registry writes its log."""
    return folder / "registry.log"


def _program(tell: Callable[[str], None]) -> Path:
    """The folder of the registry's jars; fetched and unpacked once for a machine's user."""
    folder = cache() / f"apicurio-{VERSION}-{_SHA256[:12]}"
    with exclusive(cache() / "registry.lock"):
        if private.is_private(folder) and (folder / _READY).exists():
            return folder
        tell(f"fetching the schema registry Apicurio {VERSION}: 168 MB when unpacked, the first time only")
        archive = _fetch()
        if hashlib.sha256(archive.read_bytes()).hexdigest() != _SHA256:
            raise FactoryError(f"{archive} is not the expected file; remove it so that it is fetched again")
        shutil.rmtree(folder, ignore_errors=True)  # of an unpacking that was cut off
        private.folder(folder)
        _unpack(archive, folder)
        private.tighten_all(folder)
        (folder / _READY).touch()
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the archive, whose sum has been checked: Python before 3.11.4 (Debian 12 has 3.11.2) knows no filters."""
    with tarfile.open(archive) as tar:
        if filtered := getattr(tarfile, "data_filter", None):
            tar.extraction_filter = filtered
        tar.extractall(folder)


def _fetch() -> Path:
    script = (
        "import sys; from jgo.maven import MavenContext; "
        "project = MavenContext().project('io.apicurio', 'apicurio-registry-app'); "
        "print('\\n' + str(project.at_version(sys.argv[1]).artifact('all', 'tar.gz').resolve()))"
    )
    with contextlib.suppress(ImportError):
        import jgo  # noqa: F401  # only whether it is there

        done = subprocess.run([sys.executable, "-c", script, VERSION], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UnavailableError(f"the schema registry could not be fetched from Maven Central: {reason}")
        return Path(done.stdout.strip().splitlines()[-1])
    raise ConfigurationError("the sandbox needs jgo to fetch the schema registry: pip install 'factory-agents[sandbox]'")
